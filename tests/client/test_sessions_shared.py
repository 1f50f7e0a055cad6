"""Sessions that several processes of one home, and several parts of one, use at once; a disk
that fails meanwhile.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.lines import Received
from cipherbox.client.outbox.rows import OutboxEntry
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.envelope import layout as layouts
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import KeyMissing, StoreError
from cipherbox.sealing.body import Message, pack
from cipherbox.sealing.open import parse_envelope
from cipherbox.sealing.ratchet import session
from cipherbox.sealing.ratchet.settings import SessionSettings
from cipherbox.sealing.seal import seal
from tests.client.session_world import IDS, Home, World, stanza, world
from tests.parties import now_ms

Sealed = tuple[bytes, tuple[RatchetStep, ...]]


def sealed(here: World, home: Home, to: str, text: bytes, *, reserve: bool = False) -> Sealed:
    """In memory alone: not in the outbox yet."""
    here.ensure(home, to)
    with home.sessions.sending_chains([to], reserve=reserve) as sending_chains:
        raw = seal(
            home.party.identity,
            [here.homes[to].party.bundle],
            pack([Message(text)]),
            1,
            envelope_id=IDS.next(),
            sealed_at=now_ms(),
            sending_chains=sending_chains,
        ).raw
    return raw, tuple(step for sending_chain in sending_chains for step in sending_chain.steps)


def write(home: Home, *batch: Sealed) -> list[bytes]:
    """As the post does; what is in the outbox now."""
    moved = home.outbox.write(
        [
            OutboxEntry(
                raw,
                layouts.split(raw).prefix.envelope_id,
                0,
                1,
                "",
                "",
                ("CA-RC",),
                0,
                0,
                0,
                bytes(32),
                b"",
                steps=turned,
            )
            for raw, turned in batch
        ]
    )
    left = []
    for raw, turned in batch:
        if any(step.session_id in moved for step in turned):
            home.sessions.rolled_back(turned)
        else:
            home.sessions.committed(turned)
            left.append(raw)
    return left


def number(raw: bytes) -> int:
    return session.parse(stanza(raw)).header.number


def first_of(here: World) -> tuple[Home, Home]:
    """A lab and a center that have heard each other."""
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"to"))
    here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"fro"))
    return lab, center


def test_no_number_twice_after_another_process_came_first(tmp_path: Path) -> None:
    """What was sealed on top of a step that was not taken must not leave beside what was sealed
    after it.
    """
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    other = lab.beside()
    mine = sealed(here, lab, "CA-RC", b"mine")
    on_top = sealed(here, lab, "CA-RC", b"on top")
    theirs = sealed(here, other, "CA-RC", b"theirs")
    left = write(other, theirs)
    left += write(lab, mine)
    after = sealed(here, lab, "CA-RC", b"after")
    left += write(lab, on_top, after)
    for text in (b"again", b"and again"):
        left += write(lab, sealed(here, lab, "CA-RC", text, reserve=True))
    numbers = [number(raw) for raw in left]
    assert len(set(numbers)) == len(numbers) >= 3
    for raw in left:
        here.open(center, "FL-LAB", raw)


def test_no_number_twice_after_a_full_disk(tmp_path: Path) -> None:
    here, _ = world(tmp_path)
    lab, _ = first_of(here)
    one, two = (sealed(here, lab, "CA-RC", text) for text in (b"1", b"2"))
    lab.sessions.rolled_back(one[1])  # its write failed while the second was sealed
    three, four = (sealed(here, lab, "CA-RC", text) for text in (b"3", b"4"))
    numbers = [number(raw) for raw in write(lab, two, three, four)]
    assert len(set(numbers)) == len(numbers)


def test_a_session_that_another_process_turns_meanwhile_is_not_retired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what is heard and the look at what is said the other hears, and speaks
    in the new turn.
    """
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    other = lab.beside()
    here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"0"))
    answer = here.seal(center, "FL-LAB", b"turns")
    read = lab.sessions.chains.read

    def meanwhile(db: Any, session_id: bytes) -> Any:
        monkeypatch.setattr(lab.sessions.chains, "read", read)
        here.open(other, "CA-RC", answer)
        here.seal(other, "CA-RC", b"1")
        return read(db, session_id)

    monkeypatch.setattr(lab.sessions.chains, "read", meanwhile)
    raw = here.seal(lab, "CA-RC", b"2")
    assert session.parse(stanza(raw)).session_id == session.parse(stanza(answer)).session_id
    assert number(raw) == 1


@pytest.mark.parametrize("reserve", [False, True])
def test_what_is_said_and_not_kept_yet_does_not_end_a_session(
    tmp_path: Path, reserve: bool
) -> None:
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    other = lab.beside()
    here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"0"))
    early = sealed(here, lab, "CA-RC", b"early")
    here.open(other, "CA-RC", here.seal(center, "FL-LAB", b"turns"))
    left = write(other, sealed(here, other, "CA-RC", b"theirs"))
    late = sealed(here, lab, "CA-RC", b"late", reserve=reserve)
    left += write(lab, early) + write(lab, late)
    assert late[0] in left or not reserve
    spoken = {session.parse(stanza(raw)).session_id for raw in [*left, late[0]]}
    assert len(spoken) == 1
    for raw in left:
        here.open(center, "FL-LAB", raw)


def beside_each_other(path: Path) -> tuple[World, Home, Home, Home]:
    """The world, a lab, a center it has begun a session with, and another process of that
    center.
    """
    here, _ = world(path)
    lab, center = first_of(here)
    return here, lab, center, center.beside()


def heard(home: Home, raw: bytes, bundle: KeyBundle) -> Any:
    """What a recording has to write after this."""
    home.sessions.decrypt(parse_envelope(raw), bundle)
    batch = home.sessions.take_received()
    assert batch is not None
    return batch


def none_opens_again(home: Home, bundle: KeyBundle, *raws: bytes) -> None:
    """After a crash, and without what is held for a second delivery: each message key is gone."""
    home.crash()
    with home.sessions.receiving._transaction():
        home.sessions._db.execute("DELETE FROM held")
    for raw in raws:
        with pytest.raises(KeyMissing):
            home.sessions.decrypt(parse_envelope(raw), bundle)


def test_a_busy_reader_follows_what_another_process_heard(tmp_path: Path) -> None:
    """It always has something that is not recorded yet; the other turns the root, and the peer
    goes on from there.
    """
    here, lab, center, other = beside_each_other(tmp_path)
    bundle = lab.party.bundle
    one, two, three = (here.seal(lab, "CA-RC", text) for text in (b"1", b"2", b"3"))
    batch = heard(center, one, bundle)
    center.sessions.decrypt(parse_envelope(two), bundle)  # while the first is written
    here.open(other, "FL-LAB", three)
    record(center, batch)
    here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"back"))
    four = here.seal(lab, "CA-RC", b"4")
    here.open(other, "FL-LAB", four)
    here.open(lab, "CA-RC", here.seal(other, "FL-LAB", b"back"))
    five = here.seal(lab, "CA-RC", b"5")
    assert center.sessions.decrypt(parse_envelope(five), bundle)[0].content == b"5"
    batch = center.sessions.take_received()
    assert batch is not None
    record(center, batch)
    none_opens_again(center, bundle, one, two, three, four, five)
    assert here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"6")) == b"6"


def record(home: Home, batch: Any, *, told: bool = True) -> None:
    with home.sessions.receiving._transaction():
        home.sessions.receiving.write(home.sessions._db, batch)
    if told:
        home.sessions.recorded(batch)


def test_what_was_heard_again_is_not_written_over(tmp_path: Path) -> None:
    """A batch is written on top of what another process heard; before anybody is told, the next
    one is written.
    """
    here, lab, center, other = beside_each_other(tmp_path)
    bundle = lab.party.bundle
    one, two, theirs = (here.seal(lab, "CA-RC", text) for text in (b"1", b"2", b"theirs"))
    batch = heard(center, one, bundle)
    here.open(other, "FL-LAB", theirs)
    record(center, batch, told=False)
    here.open(center, "FL-LAB", two)  # a program of the same process
    center.sessions.recorded(batch)
    none_opens_again(center, bundle, one, two, theirs)


def test_sessions_outlast_a_clock_that_was_set_back(tmp_path: Path) -> None:
    """As many as are kept are there, all used later than now: the one begun now is not the
    oldest.
    """
    here, now = world(
        tmp_path, numbers=SessionSettings(one_time_prekeys=20, sessions_per_peer=2, rotation_s=1)
    )
    lab, center = here.homes["FL-LAB"], here.homes["CA-RC"]
    now[0] = 1_000_000_000
    for _ in range(3):
        now[0] += 10_000
        here.open(center, "FL-LAB", here.seal(lab, "CA-RC", b"x"))
    now[0] = 1_000_000_000
    for home in (lab, center):
        with home.sessions.receiving._transaction():
            home.sessions._db.execute("UPDATE sessions SET retired = 1")
    sent = [here.seal(lab, "CA-RC", text) for text in (b"1", b"2")]
    assert len({session.parse(stanza(raw)).session_id for raw in sent}) == 1
    assert [here.open(center, "FL-LAB", raw) for raw in sent] == [b"1", b"2"]
    assert here.open(lab, "CA-RC", here.seal(center, "FL-LAB", b"3")) == b"3"


def test_an_outbox_ahead_of_the_inbox_is_not_spoken_from(tmp_path: Path) -> None:
    """The inbox alone was set back to where a chain had not begun: its first keys would be made
    again.
    """
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    backup = lab.sessions._db.execute("SELECT * FROM sessions").fetchall()
    for text in (b"1", b"2"):
        here.seal(lab, "CA-RC", text)
        here.open(lab, "CA-RC", here.seal(center, "FL-LAB", text))
        here.open(center, "FL-LAB", here.seal(lab, "CA-RC", text + b" on"))
    with lab.sessions.receiving._transaction():
        lab.sessions._db.executemany(
            "INSERT OR REPLACE INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", backup
        )
    raw = here.seal(lab, "CA-RC", b"after")  # World.seal says if a number is used again
    assert here.open(center, "FL-LAB", raw) == b"after"


def test_the_first_key_of_a_chain_goes_though_a_crash_came_between(tmp_path: Path) -> None:
    here, _ = world(tmp_path)
    lab, _ = first_of(here)
    raw, turned = sealed(here, lab, "CA-RC", b"1")
    lab.outbox.write(steps=turned)
    starts = "SELECT count(*) FROM sessions WHERE start IS NOT NULL"
    assert lab.sessions._db.execute(starts).fetchone() == (1,)
    lab.crash()
    assert number(here.seal(lab, "CA-RC", b"2")) == number(raw) + 1
    assert lab.sessions._db.execute(starts).fetchone() == (0,)


def test_errors_of_the_disk_are_ours_and_end_no_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    answer = here.seal(center, "FL-LAB", b"x")

    class Broken:
        def execute(self, *_: Any) -> Any:
            raise sqlite3.OperationalError("disk I/O error")

    for owner, name in ((lab.sessions, "_outbox"), (lab.sessions.receiving, "_db")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Broken())
            with pytest.raises(StoreError, match="disk I/O error"):
                sealed(here, lab, "CA-RC", b"1")
            if name == "_db":
                with pytest.raises(StoreError, match="disk I/O error"):
                    lab.sessions.decrypt(parse_envelope(answer), center.party.bundle)
    assert (
        session.parse(stanza(here.seal(lab, "CA-RC", b"2"))).session_id
        == session.parse(stanza(answer)).session_id
    )
    assert here.open(lab, "CA-RC", answer) == b"x"


def test_keys_that_were_used_are_not_left_in_the_inbox(tmp_path: Path) -> None:
    """The keys of many missing messages fill pages of their own; what those pages held does not
    stay in the file.
    """
    here, _ = world(tmp_path)
    lab, center = first_of(here)
    sent = [here.seal(lab, "CA-RC", b"%d" % i) for i in range(300)]
    inbox = Inbox(tmp_path / "CA-RC", sessions=center.sessions)
    before = take(inbox, here, center, sent[-1:])
    assert len(before) > 299 * 36
    assert len(take(inbox, here, center, sent[:-1])) < 1000
    inbox.close()
    center.end()
    # the log is gone with the last who had it open
    (file,) = (tmp_path / "CA-RC").glob("inbox.sqlite3*")
    whole = file.read_bytes()
    assert not [at for at in range(0, len(before) - 64, 64) if before[at : at + 64] in whole]
    center.start()


def take(inbox: Inbox, here: World, center: Home, raws: list[bytes]) -> bytes:
    """Records envelopes, as a receiver does; the session's row, as it is on the disk."""
    new = []
    for raw in raws:
        messages = center.sessions.decrypt(parse_envelope(raw), here.homes["FL-LAB"].party.bundle)
        new.append(
            Received(
                "FL-LAB", layouts.split(raw).prefix.envelope_id, 0, "box.CA-RC", 1, 1, messages
            )
        )
    heard = center.sessions.take_received()
    assert heard is not None
    inbox.record(new, heard)
    center.sessions.recorded(heard)
    db = center.sessions._db
    return bytes(
        db.execute("SELECT state FROM sessions ORDER BY used_at DESC LIMIT 1").fetchone()[0]
    )
