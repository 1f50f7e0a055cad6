"""Seal and open: golden envelopes, and every failure by its name."""

from __future__ import annotations

import base64
import hashlib
import os
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from cipherbox.envelope.bundle import decode_bundle
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.layout import split
from cipherbox.envelope.prefix import Recipient, encode_prefix
from cipherbox.envelope.stanza_types import stanza_label
from cipherbox.errors import (
    BundleError,
    BundleMalformed,
    CommitmentMismatch,
    DecryptionFailed,
    EnvelopeError,
    InvalidRequest,
    KeyMissing,
    NotRecipient,
    SignatureInvalid,
    TooLarge,
    UnsafeMix,
)
from cipherbox.sealing import primitives, stanzas
from cipherbox.sealing import seal as sealing
from cipherbox.sealing.body import Message, pack, text_message, unpack
from cipherbox.sealing.identity import DecryptKey, Identity
from cipherbox.sealing.open import (
    content_key,
    is_signed_by,
    open_envelope,
    open_plain,
    parse_envelope,
)
from cipherbox.sealing.seal import seal
from tests.golden import files
from tests.golden.make_envelopes import MESSAGES, damaged, dishonest, resigned, sealed, stripped
from tests.parties import Party, now_ms, party

GOLDEN = files.read("envelopes")
FIRST = files.read("envelopes_v1")
IDS = EnvelopeIds(now_ms)


def open_as(who: Party | Identity, raw: bytes, sender: Party) -> list[Message]:
    identity = who.identity if isinstance(who, Party) else who
    return open_envelope(parse_envelope(raw), identity, sender.bundle)


def golden_identity(name: str) -> Identity:
    keys = [
        DecryptKey.from_seed(kind, bytes.fromhex(seed)) for kind, seed in GOLDEN["recipients"][name]
    ]
    return Identity(name, bytes(32), None, keys)


# -- golden ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("row", GOLDEN["opens"], ids=lambda r: r["name"])
def test_golden_envelopes_open_for_every_recipient(row: dict[str, object]) -> None:
    parsed = parse_envelope(bytes.fromhex(str(row["envelope"])))
    sender = decode_bundle(bytes.fromhex(GOLDEN["bundles"][row["sender_bundle"]]))
    assert parsed.hashes.header_hash.hex() == row["header_hash"]
    assert parsed.hashes.envelope_hash.hex() == row["envelope_hash"]
    keys = primitives.derive(bytes.fromhex(str(row["content_key"])))
    assert [keys.body_key.hex(), keys.nonce.hex()] == [row["body_key"], row["body_nonce"]]
    assert open_plain(parsed, bytes.fromhex(str(row["content_key"])))
    assert parsed.hashes.stored_hash.hex() == row["stored_hash"]
    for recipient in parsed.layout.prefix.recipients:
        messages = open_envelope(parsed, golden_identity(recipient.client_id), sender)
        wanted = [dict(m) for m in row["messages"]]  # type: ignore[attr-defined]
        for m in wanted:
            m["sent_at"] = m["sent_at"] or parsed.layout.prefix.sealed_at
        assert [files.plain(m) for m in messages] == [
            {**m, "headers": m["headers"]} for m in wanted
        ]


@pytest.mark.parametrize("row", GOLDEN["fails"], ids=lambda r: r["name"])
def test_golden_damage_fails_by_its_name(row: dict[str, str]) -> None:
    sender = decode_bundle(bytes.fromhex(GOLDEN["bundles"][row["sender_bundle"]]))
    with pytest.raises(EnvelopeError) as found:
        open_envelope(
            parse_envelope(bytes.fromhex(row["envelope"])),
            golden_identity(row["recipient"]),
            sender,
        )
    assert found.value.name == row["error"]


@pytest.mark.parametrize("row", FIRST["opens"], ids=lambda r: r["name"])
def test_envelopes_of_version_1_still_open(row: dict[str, Any]) -> None:
    """They wait at HQ from 0.5.0; nothing makes them any more."""
    parsed = parse_envelope(bytes.fromhex(row["envelope"]))
    keys = {int(kind): bytes.fromhex(key) for kind, key in row["sign_keys"].items()}
    sender: Any = SimpleNamespace(
        client_id=row["sender"], hash=bytes.fromhex(row["bundle_hash"]), sign_keys=keys
    )
    for recipient in parsed.layout.prefix.recipients:
        keys_here = [
            DecryptKey.from_seed(k, bytes.fromhex(s))
            for k, s in FIRST["recipients"][recipient.client_id]
        ]
        messages = open_envelope(
            parsed, Identity(recipient.client_id, bytes(32), None, keys_here), sender
        )
        assert [m.content.hex() for m in messages] == [m["content"] for m in row["messages"]]
    plain = open_plain(parsed, bytes.fromhex(row["content_key"]))
    assert plain.hex() == row["body"]
    assert (parsed.layout.prefix.version, parsed.layout.prefix.plain_commitment) == (1, b"")


def test_every_generation_commits_to_the_same_plaintext() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    plain, envelope_id, at = pack(MESSAGES), IDS.next(), now_ms()

    def made(generation: int, plain: bytes) -> bytes:
        raw = seal(
            lab.identity,
            [ca.bundle],
            plain,
            3,
            envelope_id=envelope_id,
            sealed_at=at,
            generation=generation,
        )
        return split(raw.raw).prefix.plain_commitment

    first = made(0, plain)
    assert first == made(1, plain) == primitives.commit_to(plain, at)
    # the same text under another salt: HQ cannot guess what it is
    assert first != made(1, pack(MESSAGES))


def test_a_flag_that_may_be_passed_over_may_have_bytes_behind_the_recipients() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], MESSAGES)
    at = split(raw)
    length = (at.stanzas_at + 3).to_bytes(4, "big")
    hinted = raw[:5] + b"\x02" + length + raw[10 : at.stanzas_at] + b"new" + raw[at.stanzas_at :]
    assert split(hinted).prefix._replace(prefix_length=at.stanzas_at, flags=0) == at.prefix
    assert split(hinted[:5] + b"\x03" + hinted[6:]).prefix.prompt_receipt
    for flags in (b"\x00", b"\x01", b"\x12", b"\x80"):  # flag 1 has no bytes
        with pytest.raises(EnvelopeError):
            split(hinted[:5] + flags + hinted[6:])


# -- round trips -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stanza", [1, 2])
@pytest.mark.parametrize("cipher", [1, 2])
@pytest.mark.parametrize("suite", [1, 2])
def test_what_is_sealed_opens(stanza: int, cipher: int, suite: int) -> None:
    sender, ca, ny = party("FL-LAB", suite), party("CA-RC"), party("NY-RC", 2)
    raw = sealed(sender, [ca, ny], MESSAGES, stanza=stanza, cipher=cipher)
    for who in (ca, ny):
        opened = open_as(who, raw, sender)
        assert [m.content for m in opened] == [m.content for m in MESSAGES]
        assert [m.content_type for m in opened] == [m.content_type for m in MESSAGES]
        assert [m.headers for m in opened] == [m.headers for m in MESSAGES]
        assert opened[1].sent_at == MESSAGES[1].sent_at


def test_256_recipients_share_one_body_and_257_are_refused() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    many = [attrs.evolve(ca.bundle, client_id=f"R{i}") for i in range(257)]
    plain = pack([text_message("x" * 100_000)])
    raw = sealing.seal(
        lab.identity, many[:256], plain, 1, envelope_id=IDS.next(), sealed_at=now_ms()
    ).raw
    assert len(raw) < 100_000 + 256 * (1168 + 24) + 400
    for name in ("R0", "r255"):
        (message,) = open_as(Identity(name, bytes(32), None, ca.identity.current), raw, lab)
        assert message.content == b"x" * 100_000
    with pytest.raises(InvalidRequest, match="256"):
        sealing.choose_keys(many)


def test_an_envelope_above_the_limit_is_not_made() -> None:
    with pytest.raises(TooLarge):
        sealed(party("FL-LAB"), [party("CA-RC")], [Message(bytes(17 * 1024 * 1024))])


# -- failures --------------------------------------------------------------------------------------


def test_damage_in_each_part_has_its_name() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    for what, raw, error in damaged(sealed(lab, [ca], MESSAGES)):
        with pytest.raises(EnvelopeError) as found:
            open_as(ca, raw, lab)
        assert found.value.name == error, what


def test_every_byte_of_an_envelope_counts() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], [text_message("every byte")], stanza=2)
    for offset in range(len(raw)):
        for bit in (0x01, 0x80):
            changed = raw[:offset] + bytes([raw[offset] ^ bit]) + raw[offset + 1 :]
            with pytest.raises(EnvelopeError):
                open_as(ca, changed, lab)


def test_a_dishonest_sender_is_told_apart_by_the_failure() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    for what, raw, error in dishonest(lab, ca):
        with pytest.raises(EnvelopeError) as found:
            open_as(ca, raw, lab)
        assert found.value.name == error, what


def test_every_byte_of_the_sealed_parts_counts_even_when_the_sender_signs_it() -> None:
    """Prefix, stanzas and body hold together without the signature: nothing in them may change
    unseen.
    """
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], [text_message("every byte")], stanza=2)
    for offset in range(split(raw).signatures_at):
        changed = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
        with pytest.raises(EnvelopeError):
            open_as(ca, resigned(changed, lab.identity), lab)


def test_a_swapped_sender_is_not_opened() -> None:
    """Another client's name and keys put over the same stanzas and body."""
    lab, thief, ca = party("FL-LAB"), party("MA-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], MESSAGES)
    taken = raw[:57] + thief.bundle.hash + raw[89:158] + b"MA-LAB" + raw[164:]
    with pytest.raises(DecryptionFailed, match="stanza"):
        open_as(ca, resigned(taken, thief.identity), thief)
    with pytest.raises(SignatureInvalid):
        open_as(ca, raw, thief)


def test_a_sender_cannot_sign_in_anothers_name() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], MESSAGES)
    named = raw[:158] + b"MA-LAB" + raw[164:]
    with pytest.raises(SignatureInvalid, match="other sender's keys"):
        open_as(ca, resigned(named, lab.identity), lab)


def test_the_bundle_is_the_one_the_prefix_names_though_its_signing_key_is_the_same() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    other = lab.identity.make_bundle(lab.key, lab.chain, lab.bundle.created_at + 1)
    with pytest.raises(SignatureInvalid, match="other sender's keys"):
        open_envelope(parse_envelope(sealed(lab, [ca], MESSAGES)), ca.identity, other)


def test_a_key_opens_stanzas_of_its_own_type_alone() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    hybrid = ca.bundle.encrypt_keys[0]
    prefix = encode_prefix(
        body_length=16,
        sealed_at=5,
        expires_at=0,
        envelope_id=IDS.next(),
        generation=0,
        message_count=1,
        body_cipher=1,
        signature_suite=1,
        bundle_hash=lab.bundle.hash,
        commitment=bytes(32),
        plain_commitment=bytes(32),
        sender="FL-LAB",
        exchange="",
        routing_key="",
        recipients=(Recipient(hybrid.key_id, 2, 80, "CA-RC"),),
    )
    with pytest.raises(KeyMissing):
        open_as(ca, resigned(prefix + bytes(80 + 16 + 64), lab.identity), lab)


def test_two_texts_of_one_envelope_are_caught_by_the_commitment() -> None:
    """A stanza that wraps another content key than the prefix commits to."""
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], MESSAGES)
    at = split(raw)
    entry = at.prefix.recipients[0]
    key = ca.identity.decrypt_key(entry.key_id)
    assert key is not None
    prefix_hash = hashlib.sha256(raw[: at.prefix.prefix_length]).digest()
    other = stanzas.wrap(entry.stanza_type, key.public, os.urandom(32), prefix_hash, 0)
    with pytest.raises(CommitmentMismatch):
        open_as(ca, resigned(raw[: at.stanzas_at] + other + raw[at.body_at :], lab.identity), lab)


def test_stanzas_of_two_recipients_cannot_change_places() -> None:
    lab, ca, ny = party("FL-LAB"), party("CA-RC"), party("NY-RC")
    raw = sealed(lab, [ca, ny], MESSAGES)
    at = split(raw)
    middle = at.stanzas_at + 1168
    crossed = (
        raw[: at.stanzas_at]
        + raw[middle : at.body_at]
        + raw[at.stanzas_at : middle]
        + raw[at.body_at :]
    )
    for who in (ca, ny):
        with pytest.raises(DecryptionFailed, match="stanza"):
            open_as(who, resigned(crossed, lab.identity), lab)


@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("fill", [0x00, 0x01, 0xFF])
def test_any_bytes_in_place_of_a_stanza_are_refused(kind: int, fill: int) -> None:
    """All zeros is a point of small order: the library's error for it must not come through."""
    key = party("CA-RC").identity.current[kind - 1]
    for size in (0, 1, len(stanzas.wrap(kind, key.public, bytes(32), bytes(32), 0))):
        with pytest.raises(DecryptionFailed):
            stanzas.unwrap(kind, key.private, bytes([fill]) * size, bytes(32), 0)


@pytest.mark.parametrize("kind", [1, 2])
def test_a_recipient_whose_key_nobody_can_seal_for_is_named(kind: int) -> None:
    ca = party("CA-RC")
    good = ca.identity.current[kind - 1]
    with pytest.raises(BundleMalformed):
        stanzas.wrap(kind, good.public[:-32] + bytes(32), bytes(32), bytes(32), 0)
    zeros = DecryptKey(kind, good.seed, good.public[:-32] + bytes(32), good.private)
    bundle = Identity("CA-RC", bytes(32), None, [zeros]).make_bundle(ca.key, ca.chain, now_ms())
    with pytest.raises(BundleMalformed, match="CA-RC"):
        sealing.seal(
            party("FL-LAB").identity,
            [bundle],
            pack(MESSAGES),
            3,
            envelope_id=IDS.next(),
            sealed_at=now_ms(),
        )


@pytest.mark.parametrize(
    "bad",
    [
        {"exchange": "x" * 300},
        {"exchange": "x" * 128},
        {"routing_key": "\ud800"},
        {"routing_key": "a\nb"},
        {"envelope_id": bytes(16)},
        {"expires_at": 5},
        {"expires_at": -1},
        {"expires_at": 2**64},
        {"count": 2},
        {"generation": 2**32},
        {"keys": []},
        {"keys": "stranger's"},
        {"twice": True},
    ],
    ids=str,
)
def test_what_a_reader_would_refuse_is_not_sealed(bad: dict[str, Any]) -> None:
    to = [party("CA-RC").bundle] * (2 if bad.get("twice") else 1)
    more = {"envelope_id": IDS.next(), "sealed_at": 5, **bad}
    count = more.pop("count", 1)
    more.pop("twice", None)
    if more.get("keys"):
        more["keys"] = party("NY-RC").bundle.encrypt_keys[:1]
    with pytest.raises(InvalidRequest):
        sealing.seal(party("FL-LAB").identity, to, pack(MESSAGES[:1]), count, **more)


def test_a_stanza_opens_in_its_own_place_alone() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    key = ca.identity.current[0]
    wrapped = stanzas.wrap(key.algorithm, key.public, bytes(32), b"h" * 32, 0)
    assert stanzas.unwrap(key.algorithm, key.private, wrapped, b"h" * 32, 0) == bytes(32)
    for prefix_hash, index in ((b"i" * 32, 0), (b"h" * 32, 1)):
        with pytest.raises(DecryptionFailed):
            stanzas.unwrap(key.algorithm, key.private, wrapped, prefix_hash, index)
    del lab


def test_who_is_no_recipient_and_who_has_no_key() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    raw = sealed(lab, [ca], MESSAGES)
    with pytest.raises(NotRecipient):
        open_as(party("NY-RC"), raw, lab)
    with pytest.raises(KeyMissing):
        open_as(Identity.generate("CA-RC"), raw, lab)


def test_another_senders_bundle_and_a_stripped_suite_do_not_verify() -> None:
    lab, strong, ca = party("FL-LAB"), party("PA-LAB", 2), party("CA-RC")
    with pytest.raises(SignatureInvalid):
        open_as(ca, sealed(lab, [ca], MESSAGES), party("FL-LAB", copy=1))
    raw = sealed(strong, [ca], MESSAGES)
    with pytest.raises(SignatureInvalid, match="suite"):
        open_as(ca, stripped(raw, strong.identity), strong)
    for offset in (len(raw) - 1, len(raw) - 3309 - 1):  # either signature alone is not enough
        with pytest.raises(SignatureInvalid):
            open_as(ca, raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :], strong)


def test_a_mix_of_post_quantum_and_classical_needs_a_word() -> None:
    ca = party("CA-RC")
    old = Identity(
        "OLD-RC", bytes(32), None, [k for k in party("OLD-RC").identity.current if k.algorithm == 2]
    )
    weak = old.make_bundle(party("OLD-RC").key, party("OLD-RC").chain, now_ms())
    with pytest.raises(UnsafeMix, match="OLD-RC"):
        sealing.choose_keys([ca.bundle, weak])
    assert len(sealing.choose_keys([ca.bundle, weak], allow_mixed=True)) == 2
    with pytest.raises(BundleError):
        sealing.choose_keys([weak], stanza=1)
    for unknown in (0, 4, 99):
        with pytest.raises(InvalidRequest):
            sealing.choose_keys([ca.bundle], stanza=unknown)


def test_new_ids_make_new_bytes() -> None:
    lab, ca = party("FL-LAB"), party("CA-RC")
    assert sealed(lab, [ca], MESSAGES) != sealed(lab, [ca], MESSAGES)
    assert EnvelopeIds(now_ms).next() != EnvelopeIds(now_ms).next()
    assert base64.b64encode(ca.identity.current[0].seed).decode() not in repr(ca.identity)


def test_a_signature_is_recognised_whatever_bundle_of_its_keys_the_envelope_names() -> None:
    a, b, c = party("A"), party("B"), party("C")
    raw = sealed(a, [b], MESSAGES)
    assert is_signed_by(raw, a.bundle)
    assert is_signed_by(raw, attrs.evolve(a.bundle, hash=bytes(32)))
    assert not is_signed_by(raw, c.bundle)
    assert not is_signed_by(raw, attrs.evolve(c.bundle, client_id="A"))
    assert not is_signed_by(raw[:-1] + bytes([raw[-1] ^ 1]), a.bundle)


def test_the_content_key_is_the_same_for_every_recipient_and_opens_the_body() -> None:
    a, b, c = party("A"), party("B"), party("C")
    parsed = parse_envelope(sealed(a, [b, c], MESSAGES))
    key = content_key(parsed, b.identity)
    assert key == content_key(parsed, c.identity)
    prefix = parsed.layout.prefix
    assert unpack(open_plain(parsed, key), len(MESSAGES), prefix.sealed_at)
    with pytest.raises(NotRecipient):
        content_key(parsed, a.identity)


# -- sessions --------------------------------------------------------------------------------------


@attrs.frozen
class Wrapping:
    """A sending chain that says what it was given: its stanza is the content key under an XOR of
    the binding's hash.
    """

    key_id: bytes
    stanza_bytes: int = 32

    def wrap(self, content_key: bytes, binding: bytes) -> bytes:
        return under(content_key, binding)


def under(data: bytes, binding: bytes) -> bytes:
    mask = hashlib.sha256(binding).digest()
    return bytes(a ^ b for a, b in zip(data, mask, strict=True))


def test_a_stanza_of_a_session_is_bound_to_its_envelope_and_place() -> None:
    lab, first, second = party("FL-LAB"), party("CA-RC"), party("NY-RC")
    raw = seal(
        lab.identity,
        [first.bundle, second.bundle],
        pack(MESSAGES),
        len(MESSAGES),
        envelope_id=IDS.next(),
        sealed_at=now_ms(),
        sending_chains=[Wrapping(b"first-id" * 2), Wrapping(b"secondid" * 2)],
    ).raw
    parsed = parse_envelope(raw)
    head = raw[: parsed.layout.prefix.prefix_length]
    asked = []

    def in_session(key_id: bytes, stanza: bytes, binding: bytes) -> bytes:
        asked.append((key_id, binding))
        return under(stanza, binding)

    for center in (first, second):
        found = open_envelope(parsed, center.identity, lab.bundle, in_session)
        assert [one.content for one in found] == [one.content for one in MESSAGES]
        with pytest.raises(KeyMissing):
            open_envelope(parsed, center.identity, lab.bundle)
    assert asked == [
        (key_id, stanza_label(4) + hashlib.sha256(head).digest() + bytes([0, index]))
        for index, key_id in enumerate((b"first-id" * 2, b"secondid" * 2))
    ]


def test_other_stanzas_are_not_given_to_a_session() -> None:
    lab, center = party("FL-LAB"), party("CA-RC")

    def in_session(key_id: bytes, stanza: bytes, binding: bytes) -> bytes:
        raise AssertionError("not a session's")

    raw = sealed(lab, [center], MESSAGES)
    found = open_envelope(parse_envelope(raw), center.identity, lab.bundle, in_session)
    assert [one.content for one in found] == [one.content for one in MESSAGES]
