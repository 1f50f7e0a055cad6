"""The ratchet and the handshake: what opens, what does not, what is forgotten, and that failing
changes nothing.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherbox.errors import (
    BundleMalformed,
    CipherBoxError,
    DecryptionFailed,
    InvalidRequest,
    KeyMissing,
    MalformedEnvelope,
    StoreError,
)
from cipherbox.sealing.ratchet import double_ratchet as ratchet
from cipherbox.sealing.ratchet import handshake, session
from cipherbox.sealing.ratchet.session import Session
from tests import soak
from tests.sealing.sessions.pairs import PARTIES, Person, answer, begin, person


def pair(once: bool = True) -> tuple[Session, Session]:
    """A and B, after A's first message arrived."""
    alice = begin(person("B", once), person("A"))
    alice, raw = session.seal(alice, b"first", b"")
    bob = answer(person("B", once), raw)
    bob, plain = session.decrypt(bob, session.parse(raw), b"")
    assert plain == b"first"
    return alice, bob


def hand(
    sender: Session, receiver: Session, text: bytes, binding: bytes = b""
) -> tuple[Session, Session, bytes]:
    sender, raw = session.seal(sender, text, binding)
    receiver, plain = session.decrypt(receiver, session.parse(raw), binding)
    assert plain == text
    return sender, receiver, raw


@pytest.mark.parametrize("once", [True, False])
def test_a_conversation(once: bool) -> None:
    alice, bob = pair(once)
    for turn in range(20):
        alice, bob, _ = hand(alice, bob, b"to bob %d" % turn, b"bound")
        if turn % 3:
            bob, alice, _ = hand(bob, alice, b"to alice %d" % turn)
        assert session.decode(session.encode(alice)) == alice
        assert session.decode(session.encode(bob)) == bob


def test_the_handshake_goes_with_every_message_until_one_comes_back() -> None:
    alice = begin(person("B"), person("A"))
    sent = []
    for text in (b"1", b"2", b"3"):
        assert alice.size(len(text)) == 1 + 16 + 1168 + 40 + 1 + 16
        alice, raw = session.seal(alice, text, b"")
        assert len(raw) == 1 + 16 + 1168 + 40 + 1 + 16
        sent.append(raw)
    bob = answer(person("B"), sent[2])
    for raw in (sent[2], sent[0], sent[1]):
        bob, _ = session.decrypt(bob, session.parse(raw), b"")
    bob, alice, raw = hand(bob, alice, b"back")
    assert len(raw) == alice.size(4) == 1 + 16 + 40 + 4 + 16


def test_who_speaks_second_cannot_speak_first() -> None:
    alice = begin(person("B"), person("A"))
    _, raw = session.seal(alice, b"", b"")
    bob = answer(person("B"), raw)
    assert bob.state.turn == 0
    with pytest.raises(InvalidRequest):
        session.seal(bob, b"", b"")


def hear_first(raw: bytes) -> None:
    parsed = session.parse(raw)
    if parsed.handshake is None:
        raise KeyMissing
    agreed = handshake.answer(person("B").secrets(), parsed.handshake, PARTIES)
    session.decrypt(
        session.answered(parsed.handshake, agreed, person("B").signed.dh, 2000), parsed, b"place"
    )


def test_every_byte_is_bound() -> None:
    """Header, handshake, ciphertext: changed in any byte it never opens, and nothing has
    changed.
    """
    alice, bob = begin(person("B"), person("A")), None
    alice, raw = session.seal(alice, bytes(32), b"place")
    hear_first(raw)
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 0x40]) + raw[at + 1 :]
        with pytest.raises(CipherBoxError):
            hear_first(changed)
    bob = answer(person("B"), raw)
    with pytest.raises(DecryptionFailed):
        session.decrypt(bob, session.parse(raw), b"other place")
    bob, _ = session.decrypt(bob, session.parse(raw), b"place")
    bob, alice, _ = hand(bob, alice, b"answer")
    alice, short = session.seal(alice, b"key", b"place")
    before = session.encode(bob)
    for at in range(len(short)):
        for bit in (1, 0x80):
            changed = short[:at] + bytes([short[at] ^ bit]) + short[at + 1 :]
            with pytest.raises(CipherBoxError):
                session.decrypt(bob, session.parse(changed), b"place")
            assert session.encode(bob) == before
    for cut in range(len(short)):
        with pytest.raises(CipherBoxError):
            session.decrypt(bob, session.parse(short[:cut]), b"place")
    assert session.decrypt(bob, session.parse(short), b"place")[1] == b"key"


def test_a_key_opens_once() -> None:
    alice, bob = pair()
    alice, bob, raw = hand(alice, bob, b"x")
    with pytest.raises(KeyMissing):
        session.decrypt(bob, session.parse(raw), b"")
    alice, late = session.seal(alice, b"late", b"")
    alice, bob, _ = hand(alice, bob, b"later")
    bob, plain = session.decrypt(bob, session.parse(late), b"")
    assert plain == b"late"
    with pytest.raises(KeyMissing):
        session.decrypt(bob, session.parse(late), b"")


def test_skipped_keys_have_a_bound_and_the_oldest_go_first() -> None:
    alice, bob = pair()
    sent = []
    for i in range(12):
        alice, raw = session.seal(alice, b"%d" % i, b"")
        sent.append(raw)

    def opened(bob: Session, index: int) -> tuple[Session, bytes]:
        return session.decrypt(bob, session.parse(sent[index]), b"", max_skipped=5)

    before = session.encode(bob)
    with pytest.raises(KeyMissing, match="6 messages"):
        opened(bob, 6)
    assert session.encode(bob) == before
    bob, _ = opened(bob, 5)
    assert len(bob.state.skipped) == 5
    bob, _ = opened(bob, 8)
    assert len(bob.state.skipped) == 5
    with pytest.raises(KeyMissing):
        opened(bob, 0)
    for index in (2, 3, 4, 6, 7, 9):
        bob, plain = opened(bob, index)
        assert plain == b"%d" % index
    assert len(bob.state.skipped) == 0


def test_a_stolen_state_opens_nothing_from_before() -> None:
    alice, bob = pair()
    alice, bob, old = hand(alice, bob, b"before the theft")
    stolen_a, stolen_b = alice, bob
    for stolen in (stolen_a, stolen_b):
        with pytest.raises(CipherBoxError):
            session.decrypt(stolen, session.parse(old), b"")


def test_a_turn_of_both_ends_heals() -> None:
    """What a thief has copied opens what comes in the same chain, and nothing after a turn on
    both sides.
    """
    alice, bob = pair()
    bob, alice, _ = hand(bob, alice, b"turn")
    thief = bob
    alice, bob, raw = hand(alice, bob, b"still open to the thief")
    assert session.decrypt(thief, session.parse(raw), b"")[1] == b"still open to the thief"
    bob, alice, _ = hand(bob, alice, b"a receipt")
    alice, bob, raw = hand(alice, bob, b"closed")
    with pytest.raises(CipherBoxError):
        session.decrypt(thief, session.parse(raw), b"")


def test_a_state_set_back_uses_no_key_twice() -> None:
    """As after a restored backup: the same message key, but another text for another place has
    another key.
    """
    alice, _ = pair()
    _, one = session.seal(alice, bytes(32), b"envelope 1")
    _, two = session.seal(alice, bytes(32), b"envelope 2")
    assert session.parse(one).header == session.parse(two).header
    assert session.parse(one).ciphertext != session.parse(two).ciphertext


def test_no_secret_is_shown() -> None:
    alice, bob = pair()
    alice, _ = session.seal(alice, b"x", b"")
    bob = attrs.evolve(bob, state=attrs.evolve(bob.state, skipped={(bytes(32), 1): b"k" * 32}))
    shown = [repr(x) for x in (alice, bob, alice.state, person("B").secrets(), person("B").signed)]
    for secret in (
        alice.state.root,
        alice.state.own,
        alice.chain.chain,
        bob.state.receiving,
        person("B").identity,
        person("B").signed.kem,
        alice.associated,
        b"k" * 32,
    ):
        for text in shown:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_damaged_states_are_refused() -> None:
    alice, bob = pair()
    alice, _ = session.seal(alice, b"lost", b"")
    alice, bob, _ = hand(alice, bob, b"x")
    raw = session.encode(bob)
    assert len(bob.state.skipped) == 1
    for bad in (b"", raw[:-1], raw + b"x", b"\x03" + raw[1:], raw[: len(raw) // 2]):
        with pytest.raises(StoreError):
            session.decode(bad)


def test_prekeys_that_are_no_keys() -> None:
    good = person("B").prekeys()
    for bad in (
        {"kem": bytes(10)},
        {"kem": b"\xff" * 1184},
        {"signed": bytes(32)},
        {"identity": bytes(32)},
        {"once": bytes(32)},
    ):
        with pytest.raises(BundleMalformed):
            handshake.begin(person("A").identity, attrs.evolve(good, **bad), 1, PARTIES)
    shaken, _ = handshake.begin(person("A").identity, good, 1, PARTIES)
    with pytest.raises(DecryptionFailed):
        handshake.answer(person("B").secrets(), attrs.evolve(shaken, ephemeral=bytes(32)), PARTIES)


def test_both_must_agree_on_who_they_are() -> None:
    shaken, mine = handshake.begin(person("A").identity, person("B").prekeys(), 1, PARTIES)
    theirs = handshake.answer(
        person("B").secrets(), shaken, handshake.parties("FL-LAB", "CA-RC", b"other")
    )
    assert mine.root == theirs.root
    assert mine.session_id != theirs.session_id
    assert mine.associated != theirs.associated


def test_the_kem_secret_counts() -> None:
    """Who knows every X25519 secret still lacks the root."""
    alice, agreed = handshake.begin(person("A").identity, person("B", False).prekeys(), 1, PARTIES)
    secrets = person("B", False).secrets()
    other = attrs.evolve(secrets, kem=hashlib.sha512(b"guess").digest())
    assert handshake.answer(secrets, alice, PARTIES).root == agreed.root
    assert handshake.answer(other, alice, PARTIES).root != agreed.root


@st.composite
def plans(draw: Any) -> list[tuple[str, int]]:
    return draw(st.lists(st.tuples(st.sampled_from("sdcl"), st.integers(0, 1 << 16)), max_size=60))


@soak.more
@settings(max_examples=soak.of(60))
@given(plans(), st.integers(2, 3))
def test_loss_doubling_reordering_and_crashes(plan: list[tuple[str, int]], count: int) -> None:
    """Parties who send to each other over a bad line, each writing its state after every step
    and crashing anywhere.
    """
    people: list[Person] = [person(f"P{i}") for i in range(count)]
    disk: list[dict[tuple[int, bytes], bytes]] = [{} for _ in people]  # (peer, session) -> state
    line: list[tuple[int, int, bytes, bytes]] = []
    opened: set[bytes] = set()
    clock = 0

    def roles(a: int, b: int) -> bytes:
        return handshake.parties(f"P{a}", f"P{b}")

    for what, number in plan:
        clock += 1
        a = number % count
        b = (a + 1 + number // count % (count - 1)) % count
        if what in "sc":
            mine = [session.decode(raw) for (peer, _), raw in disk[a].items() if peer == b]
            able = [one for one in mine if one.state.turn]
            speaking = max(able, key=lambda one: (one.made_at, one.session_id), default=None)
            if speaking is None or number % 11 == 0:
                speaking = begin(people[b], people[a], clock, roles(a, b))
            text = b"%d" % clock
            speaking, raw = session.seal(speaking, text, b"")
            disk[a][(b, speaking.session_id)] = session.encode(speaking)
            if what == "s":  # else: it crashed with its state written, before anything left
                line.append((a, b, text, raw))
        elif line:
            at = number % len(line)
            if what == "l":
                line.pop(at)
                continue
            a, b, text, raw = line[at]
            if number % 3:
                line.pop(at)
            parsed = session.parse(raw)
            known = disk[b].get((a, parsed.session_id))
            own = session.decode(known) if known else answer(people[b], raw, roles(a, b))
            if raw in opened:
                with pytest.raises(CipherBoxError):
                    session.decrypt(own, parsed, b"")
                continue
            own, plain = session.decrypt(own, parsed, b"")
            assert plain == text
            if number % 7:  # else: it crashed before it wrote; the message comes again
                disk[b][(a, own.session_id)] = session.encode(own)
                opened.add(raw)
            else:
                line.append((a, b, text, raw))


def test_chains_are_those_of_the_specification() -> None:
    root, chain = ratchet.kdf_rk(bytes(32), b"\x01" * 32)
    assert len(root) == len(chain) == 32
    following, key = ratchet.kdf_ck(chain)
    assert len({root, chain, following, key}) == 4


def test_states_of_version_1_go_on() -> None:
    """As they were written when both halves of a session were kept as one."""
    old = json.loads((Path(__file__).parent / "states_version_1.json").read_text())
    alice, bob = (session.decode(bytes.fromhex(old[name])) for name in "ab")
    bob, plain = session.decrypt(bob, session.parse(bytes.fromhex(old["late"])), b"")
    assert plain == b"late"
    assert len(bob.state.skipped) == 0
    after, raw = session.seal(alice, b"next", b"")
    assert raw.hex() == old["next"]  # what the program of then would have said
    bob, _ = session.decrypt(bob, session.parse(raw), b"")
    bob, after, _ = hand(bob, after, b"and back")
    assert session.decode(session.encode(after)) == after
    with pytest.raises(StoreError):
        session.decode(bytes.fromhex(old["a"])[:-1])


def test_saying_leaves_nothing_to_say_it_again_with() -> None:
    """The first key of a chain makes all its keys: it goes when the chain is there, and the
    chain keeps none.
    """
    alice = begin(person("B"), person("A"))
    start = alice.state.start
    assert start
    alice, _ = session.seal(alice, b"1", b"")
    assert start not in session.encode(alice)


def test_a_half_that_speaks_late_says_how_many_went_before() -> None:
    """Turns in which nothing was said have no messages; the other end must not wait for any."""
    alice, bob = pair()
    for _ in range(3):
        bob, alice, _ = hand(bob, alice, b"back")
        alice, bob, _ = hand(alice, bob, b"on")
    first = alice.chain
    bob, alice, _ = hand(bob, alice, b"a turn")
    once = ratchet.sending(alice.state, first)
    assert (once.turn, once.sent, once.previous) == (first.turn + 1, 0, first.sent)
    late = attrs.evolve(alice.state, turn=alice.state.turn + 1)
    assert ratchet.sending(late, first).previous == 0
    assert ratchet.sending(late, None).previous == 0


def test_a_handshake_has_one_length() -> None:
    handshake.decode(bytes(handshake.SIZE))
    for size in (0, handshake.SIZE - 1, handshake.SIZE + 1):
        with pytest.raises(MalformedEnvelope, match="length"):
            handshake.decode(bytes(size))
