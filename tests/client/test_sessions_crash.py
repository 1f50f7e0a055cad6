"""This home's sessions under loss, doubling, reordering and crashes between any two steps, with two
and three parties.

What is kept in an outbox arrives; what was recorded is recorded once; no message key is used for
two envelopes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cipherbox.envelope import layout as layouts
from cipherbox.errors import CipherBoxError, DecryptionFailed, KeyMissing, StoreError
from cipherbox.limits import LIMITS
from cipherbox.sealing.open import parse_envelope
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.ratchet.settings import SessionSettings
from tests import soak
from tests.client.session_world import Home, World, stanza, world
from tests.golden.make_envelopes import resigned

PLACE = "/dev/shm" if Path("/dev/shm").is_dir() else None


WHATS = ["send", "send", "hear", "hear", "hear", "turn", "day", "offer"]
STEPS = st.tuples(st.sampled_from(WHATS), st.integers(0, 1 << 20))


@soak.more
@settings(max_examples=soak.of(40))
@given(st.lists(STEPS, max_size=40), st.integers(2, 3))
def test_crashes_between_any_two_steps(plan: list[tuple[str, int]], count: int) -> None:
    with tempfile.TemporaryDirectory(dir=PLACE) as directory:
        here, now = world(
            Path(directory), count, SessionSettings(one_time_prekeys=3, sessions_per_peer=100)
        )
        kept: dict[bytes, tuple[str, bytes]] = {}
        names = list(here.homes)
        for number, (what, chance) in enumerate(plan):
            now[0] += 1000
            home = here.homes[names[chance % count]]
            to = names[(chance + 1 + chance // count % (count - 1)) % count]
            if what == "send":
                text = b"%d" % number
                raw = here.seal(home, to, text, keep=chance % 5 != 0)
                if chance % 5 == 0:  # crashed before the outbox had it: it never was
                    home.crash()
                    continue
                kept[text] = to, raw
                here.boxes[to] += [(home.name, raw)] * (1 + (chance % 3 == 0))
            elif what == "hear":
                hear(here, home, chance)
            elif what == "turn":
                turned = home.sessions.make_step(to)
                if turned is not None:
                    assert home.outbox.write(steps=[turned[1]]) == set()
                    home.sessions.committed([turned[1]])
                    if chance % 3:
                        here.turns.append((home.name, to, turned[0]))
                if here.turns:
                    sender, reader, raw_turn = here.turns.pop(chance % len(here.turns))
                    try:
                        here.homes[reader].sessions.receive_step(sender, raw_turn)
                    except KeyMissing:
                        pass  # its session is not known there yet, or it was dropped
            elif what == "day":
                now[0] += 90_000_000
            else:
                here.offer(home.name)
        for name in names:  # in the end everything is delivered
            home = here.homes[name]
            while here.boxes[name]:
                hear(here, home, 1)
            assert sorted(home.recorded) == sorted(
                text for text, (to, _) in kept.items() if to == name
            )
            home.crash()


def hear(here: World, home: Home, chance: int) -> None:
    """One delivery: opened, recorded, acknowledged; a crash may come after each of these."""
    box = here.boxes[home.name]
    if not box:
        return
    sender, raw = box[chance % len(box)]
    digest = parse_envelope(raw).hashes.envelope_hash
    if digest not in home.known:
        text = here.open(home, sender, raw)
        if chance % 7 == 2:
            home.crash()
            return
        home.recorded.append(text)
        home.known.add(digest)
    if chance % 7 == 3:
        home.crash()
        return
    box.remove((sender, raw))
    if (sender, raw) not in box:
        home.sessions.acknowledged([digest])


def test_what_is_changed_changes_nothing(tmp_path: Path) -> None:
    """A sender who signs changed stanzas, of a first contact and of a session: nothing opens,
    nothing is different.
    """
    here, _ = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    for text in (b"first", b"second"):
        raw = here.seal(lab, "CA-RC", text)
        before = dump(center)
        start = layouts.split(raw).stanzas_at
        size = len(stanza(raw))
        for at in [*range(0, size, 1 if size < 200 else 13), size - 1]:
            changed = resigned(
                raw[: start + at] + bytes([raw[start + at] ^ 2]) + raw[start + at + 1 :],
                lab.party.identity,
            )
            with pytest.raises(CipherBoxError):
                here.open(center, "FL-LAB", changed)
        # a stanza that opens, with a body that does not: what the stanza turned is turned back
        body = layouts.split(raw).body_at
        broken = resigned(raw[:body] + bytes([raw[body] ^ 1]) + raw[body + 1 :], lab.party.identity)
        with pytest.raises(DecryptionFailed):
            here.open(center, "FL-LAB", broken)
        assert dump(center) == before
        assert here.open(center, "FL-LAB", raw) == text
        assert dump(center) != before
        turn = center.sessions.make_step("FL-LAB")
        assert turn is not None
        center.outbox.write(steps=[turn[1]])
        center.sessions.committed([turn[1]])
        lab.sessions.receive_step("CA-RC", turn[0])


def dump(home: Home) -> list[Any]:
    db = home.sessions._db
    return [
        db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
        for table in ("sessions", "secrets", "held")
    ]


def test_nothing_secret_lies_in_clear(tmp_path: Path) -> None:
    here, _ = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"x"))
    own = center.sessions.keys.identity()
    for home in (lab, center):
        home.end()
    raw = b"".join(f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert own not in raw
    assert len(raw) > 10_000


def test_one_time_secrets_go_when_used_and_replaced_ones_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, now = world(tmp_path)
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: now[0])
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]

    def count(kind: int) -> int:
        db = center.sessions._db
        return int(db.execute("SELECT count(*) FROM secrets WHERE kind = ?", (kind,)).fetchone()[0])

    early = here.seal(lab, "CA-RC", b"early")
    assert (count(1), count(2)) == (1, 3)
    here.open(center, "FL-LAB", early)
    assert count(2) == 2
    lab.forget()
    late = here.seal(lab, "CA-RC", b"late")
    for _ in range(2):
        now[0] += 8 * 86_400_000
        assert center.sessions.keys.must_replace()
        here.offer("CA-RC")
        assert not center.sessions.keys.must_replace()
    assert here.open(center, "FL-LAB", late) == b"late"  # begun with what was replaced
    lab.forget()
    now[0] += 31 * 86_400_000
    here.offer("CA-RC")
    assert (count(1), count(2)) == (2, 6)  # the newest, and those replaced just now


def test_old_sessions_are_forgotten_beyond_a_number(tmp_path: Path) -> None:
    here, now = world(tmp_path, numbers=SessionSettings(one_time_prekeys=0, sessions_per_peer=3))
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    sent = []
    for i in range(5):
        now[0] += 90_000_000
        sent.append(here.seal(lab, "CA-RC", b"%d" % i))
    for raw in sent:
        here.open(center, "FL-LAB", raw)
    for home in (lab, center):
        assert home.sessions._db.execute("SELECT count(*) FROM sessions").fetchone() == (3,)
    assert len({session.parse(stanza(raw)).session_id for raw in sent}) == 5


def test_what_was_heard_is_synced_before_a_chain_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ratchet key that a crash could take back must not have left; hearing alone costs no
    sync.
    """
    from cipherbox.client.sessions import sessions as module

    synced: list[Path] = []
    here, _ = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    sent = [here.seal(lab, "CA-RC", text) for text in (b"1", b"2", b"3")]
    monkeypatch.setattr(module, "sync_file", synced.append)
    for raw in sent[:2]:
        here.open(center, "FL-LAB", raw)
    center.sessions.sync()
    assert synced == []
    for text in (b"4", b"5"):
        here.seal(center, "FL-LAB", text)
    here.open(center, "FL-LAB", sent[2])
    here.seal(center, "FL-LAB", b"6")
    assert [path.name for path in synced] == ["inbox.sqlite3-wal"]

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"7"))
    monkeypatch.setattr(module, "sync_file", full)
    here.seal(lab, "CA-RC", b"8", keep=False)
    with pytest.raises(StoreError):
        lab.sessions.sync()
    monkeypatch.setattr(module, "sync_file", synced.append)
    lab.sessions.sync()
    lab.sessions.sync()
    assert len(synced) == 2  # what failed is tried again


def test_a_clock_that_was_days_ahead(tmp_path: Path) -> None:
    """The session begun meanwhile is not taken, the one that follows is, though the clock is
    right only now.
    """
    here, now = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    now[0] += 3 * LIMITS.clock_ahead_ms
    ahead = here.seal(lab, "CA-RC", b"ahead")
    now[0] -= 3 * LIMITS.clock_ahead_ms
    with pytest.raises(KeyMissing, match="begun in the future"):
        here.open(center, "FL-LAB", ahead)
    lab.sessions.retire("CA-RC", ahead)  # as the receipt says
    assert here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"now")) == b"now"
    assert here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"back")) == b"back"


def test_a_power_cut_takes_back_what_was_heard(tmp_path: Path) -> None:
    """What was acknowledged and not synced: the state before opens all that follows, and both go
    on in the session.
    """
    here, _ = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"1"))
    here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"2"))
    before = center.sessions._db.execute("SELECT * FROM sessions").fetchall()
    for text in (b"3", b"4"):
        here.open(center, "FL-LAB", here.seal(lab, "CA-RC", text))
    with center.sessions.receiving._transaction():
        row = f"({', '.join('?' * len(before[0]))})"
        center.sessions._db.executemany(f"INSERT OR REPLACE INTO sessions VALUES {row}", before)
    center.crash()
    for text in (b"5", b"6"):
        assert here.open(center, "FL-LAB", here.seal(lab, "CA-RC", text)) == text
        assert here.open(lab, "CA-RC", here.seal(center, "FL-LAB", text)) == text
    assert len({name for name, *_ in here.used}) == 1


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """The fresh session is still the one both speak in, and not every message begins another."""
    here, now = world(tmp_path, numbers=SessionSettings(one_time_prekeys=3, rotation_s=1))
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    now[0] = 1_000_000_000
    first = here.seal(lab, "CA-RC", b"1")
    now[0] = 5000
    with lab.sessions.receiving._transaction():
        state = attrs.evolve(lab.sessions._newest("CA-RC")[0], since=1000)
        lab.sessions.receiving._put(lab.sessions._db, ("CA-RC", state.session_id), state, 1, 2)
    sent = [first, here.seal(lab, "CA-RC", b"2"), here.seal(lab, "CA-RC", b"3")]
    spoken = [session.parse(stanza(raw)).session_id for raw in sent]
    assert spoken[0] != spoken[1] == spoken[2]
    now[0] = 1_000_000_000
    assert [here.open(center, "FL-LAB", raw) for raw in sent] == [b"1", b"2", b"3"]
    answer = session.parse(stanza(here.seal(center, "FL-LAB", b"4")))
    assert answer.session_id == spoken[2]


def test_numbers_driven_up_by_somebody_begin_anew(tmp_path: Path) -> None:
    here, _ = world(tmp_path)
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    old = here.seal(lab, "CA-RC", b"old")
    assert here.open(center, "FL-LAB", old) == b"old"
    keys = center.sessions.keys
    own = keys.identity()
    keys._note_number("once_id", 0xFFFFFFFF)
    assert not keys.must_replace()  # nobody has lost so many
    keys._note_number("once_id", 1000)
    assert keys.must_replace()
    here.offer("CA-RC")
    assert int.from_bytes(keys._fact("once_id") or b"", "big") == 1003
    keys._put_fact("once_id", 0xF0000001.to_bytes(4, "big"))
    here.offer("CA-RC")
    assert keys.identity() != own
    assert int.from_bytes(keys._fact("once_id") or b"", "big") == 3
    assert here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"on")) == b"on"  # sessions go on
    lab.forget()
    assert here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"anew")) == b"anew"
