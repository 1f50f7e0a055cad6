"""The inbox: one step or none, also when the machine dies in the middle."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from cipherbox.client.inbox.inbox import Inbox, InboxStorage
from cipherbox.client.inbox.incoming_files import Arrived
from cipherbox.client.inbox.lines import Received, lines_of, timestamp
from cipherbox.client.inbox.schema import DATABASE, STEPS, open_inbox
from cipherbox.client.local_database import open_database
from cipherbox.client.publishing.parts import part_message
from cipherbox.client.sessions.superseded import retire_sessions
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.errors import SchemaTooNew, StoreError
from cipherbox.portable import WINDOWS
from cipherbox.sealing.body import Message
from tests.client.parties import now_ms

IDS = EnvelopeIds(now_ms)


class Died(BaseException):
    """The machine died here."""


class Dying(Inbox):
    """Dies between the append and the commit: nothing after it runs, as after a power cut."""

    def _commit(self) -> None:
        raise Died

    def _undo(self, ending: bool) -> None:
        pass


def received(
    *contents: bytes, sender: str = "FL-LAB", envelope_id: bytes | None = None, **more: Any
) -> Received:
    messages = [
        Message(c, more.get("kind", "text/plain"), more.get("headers", {})) for c in contents
    ]
    return Received(
        sender, envelope_id or IDS.next(), 0, "box.CA-RC", 1, 1_759_906_980_123, messages
    )


def lines(home: Path) -> list[Any]:
    return [
        orjson.loads(x)
        for x in (home / "data" / "received_messages.jsonl").read_bytes().splitlines()
    ]


def test_a_batch_is_recorded_and_known(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    batch = [received(b"one", b"two"), received(b"three", sender="PA-LAB")]
    made = inbox.record(batch)
    assert [orjson.loads(x)["content"] for x in b"".join(made).splitlines()] == [
        "one",
        "two",
        "three",
    ]
    assert lines(tmp_path)[1]["message_id"][-4:] == "0001"
    assert lines(tmp_path)[0]["sent_timestamp"] == "2025-10-08T07:03:00.123Z"
    assert all(inbox.knows(r.sender, r.envelope_id) for r in batch)
    assert not inbox.knows("PA-LAB", batch[0].envelope_id)  # never the id alone
    assert not inbox.knows("FL-LAB", IDS.next())
    inbox.close()
    again = Inbox(tmp_path)
    assert all(again.knows(r.sender, r.envelope_id) for r in batch)
    older = received(
        b"late", envelope_id=batch[0].envelope_id[:5] + b"\x00" + batch[0].envelope_id[6:]
    )
    assert not again.knows("FL-LAB", older.envelope_id)
    again.record([older])
    assert again.knows("FL-LAB", older.envelope_id)
    again.close()
    if not WINDOWS:
        for name in ("inbox.sqlite3", "data/received_messages.jsonl"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform != "linux", reason="which file a descriptor is, /proc tells")
@pytest.mark.parametrize("before", [False, True])
def test_every_new_name_on_the_way_to_a_file_is_synced_before_it_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    """What a power cut leaves of a directory is what was synced of it. ``before``: a process was
    killed when it had created the first directory, and not synced its name.
    """
    synced: set[Path] = set()
    fsync = os.fsync

    def watched(fd: int) -> None:
        fsync(fd)
        synced.add(Path(os.readlink(f"/proc/self/fd/{fd}")))

    monkeypatch.setattr(os, "fsync", watched)
    if before:
        (tmp_path / "incoming").mkdir()
    inbox = Inbox(tmp_path)
    small, large = b"small", b"L" * 300_000
    file = {"kind": "application/octet-stream"}
    part = part_message(bytes(16), 0, 1 << 20, b"P" * 1000, compress=False)
    batches = [
        [received(large, headers={"filename": "one.bin"}, **file)],
        [received(small, small, headers={"filename": "two.bin"}, **file)],
        [Received("FL-LAB", IDS.next(), 0, "box.CA-RC", 1, 0, [part])],
    ]
    for batch in batches:
        inbox.record(batch)
        there = {tmp_path / "incoming", *(tmp_path / "incoming").rglob("*")}
        assert any(path.is_file() for path in there)
        assert {path.parent for path in there} <= synced
    inbox.close()


def test_death_between_append_and_commit_is_cut_back(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([received(b"kept")])
    inbox.close()
    dying = Dying(tmp_path)
    lost = received(b"appended, not committed")
    with pytest.raises(Died):
        dying.record([lost])
    assert len(lines(tmp_path)) == 2
    dying.close()
    cut: list[int] = []
    after = Inbox(tmp_path, cut.append)
    assert cut == [len(dying_line(lost))]
    assert [line["content"] for line in lines(tmp_path)] == ["kept"]
    assert not after.knows(lost.sender, lost.envelope_id)
    after.record([lost])  # it is delivered again
    after.close()
    assert [line["content"] for line in lines(tmp_path)] == ["kept", "appended, not committed"]
    quiet: list[int] = []
    Inbox(tmp_path, quiet.append).close()
    assert quiet == []


def dying_line(one: Received) -> bytes:
    raw = one.envelope_id.hex()
    name = f"{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}"
    line = {
        "message_id": name,
        "sender_id": one.sender,
        "sent_timestamp": "2025-10-08T07:03:00.123Z",
        "content": one.messages[0].content.decode(),
    }
    return orjson.dumps(line) + b"\n"


def test_half_a_line_is_cut_back(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([received(b"whole")])
    inbox.close()
    with (tmp_path / "data" / "received_messages.jsonl").open("ab") as file:
        file.write(b'{"message_id": "01')
    Inbox(tmp_path).close()
    assert [line["content"] for line in lines(tmp_path)] == ["whole"]


def test_an_error_records_nothing_and_the_inbox_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path)
    first = received(b"one")
    inbox.record([first])

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    again = received(b"two")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="nothing was acknowledged"):
            inbox.record([again])
    assert not inbox.knows(again.sender, again.envelope_id)
    assert len(lines(tmp_path)) == 1
    with pytest.raises(sqlite3.IntegrityError):
        # its id is there already: the constraint holds, and only this envelope is at fault
        inbox.record([first])
    inbox.record([again])
    inbox.close()
    assert [line["content"] for line in lines(tmp_path)] == ["one", "two"]


def test_a_file_that_was_moved_away_begins_anew(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([received(b"archived")])
    inbox.close()
    file = tmp_path / "data" / "received_messages.jsonl"
    file.rename(tmp_path / "october.jsonl")
    inbox = Inbox(tmp_path)
    inbox.record([received(b"new")])
    inbox.close()
    assert [line["content"] for line in lines(tmp_path)] == ["new"]


@pytest.mark.parametrize("how", ["moved", "removed", "replaced", "emptied", "appended to"])
def test_lines_go_to_what_the_path_names_whatever_becomes_of_it_meanwhile(
    tmp_path: Path, how: str
) -> None:
    said: list[str] = []
    inbox = Inbox(tmp_path, say=said.append)
    inbox.record([received(b"before")])
    file, moved = tmp_path / "data" / "received_messages.jsonl", tmp_path / "october.jsonl"
    before = file.read_bytes()
    if how == "moved":
        file.rename(moved)
    elif how == "removed":
        file.unlink()
    elif how == "replaced":
        file.rename(moved)
        file.write_bytes(b'{"mine": 1}')
    elif how == "emptied":
        file.write_bytes(b"")
    else:
        with file.open("ab") as other:
            other.write(b'{"mine": 1}')
    for number in range(2):
        inbox.record([received(b"after %d" % number)])
    inbox.close()
    cut: list[int] = []
    Inbox(tmp_path, cut.append).close()
    assert cut == []
    found = [line.get("content", "mine") for line in lines(tmp_path)]
    expected = {"replaced": ["mine"], "appended to": ["before", "mine"]}.get(how, [])
    assert found == [*expected, "after 0", "after 1"]
    assert len(said) == (how != "appended to")
    if moved.exists():
        assert moved.read_bytes() == before


def test_a_new_file_has_no_line_of_a_step_that_was_interrupted(tmp_path: Path) -> None:
    Inbox(tmp_path).close()
    dying = Dying(tmp_path)
    (tmp_path / "data" / "received_messages.jsonl").unlink()
    lost = received(b"appended, not committed")
    with pytest.raises(Died):
        dying.record([lost])
    dying.close()
    after = Inbox(tmp_path)
    after.record([lost])
    after.close()
    assert [line["content"] for line in lines(tmp_path)] == ["appended, not committed"]


def test_lines_are_rotated_by_size(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "incoming", rotate=(100, 0)))
    for number in range(3):
        inbox.record([received(b"%d" % number * 60)])
    inbox.close()
    rotated = list((tmp_path / "data").glob("received_messages-*.jsonl"))
    assert len(rotated) == 2
    assert len(lines(tmp_path)) == 1


@pytest.mark.parametrize("sessions_first", [False, True])
def test_a_database_that_was_lost_takes_no_lines_along(
    tmp_path: Path, sessions_first: bool
) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([received(b"one")])
    inbox.close()
    lines = tmp_path / "data/received_messages.jsonl"
    lines.write_bytes(lines.read_bytes()[:-1])  # and its last line lost its end
    before = lines.read_bytes()
    for file in tmp_path.glob("inbox.sqlite3*"):
        file.unlink()
    if sessions_first:
        open_database(tmp_path / DATABASE, STEPS).close()
    cut: list[int] = []
    inbox = Inbox(tmp_path, cut.append)
    inbox.record([received(b"two")])
    inbox.close()
    assert cut == []
    assert lines.read_bytes().startswith(before + b"\n")
    assert [orjson.loads(line)["content"] for line in lines.read_bytes().splitlines()] == [
        "one",
        "two",
    ]


def completed(inbox: Inbox) -> list[Arrived]:
    """Files that can get their names do."""
    found: list[Arrived] = []
    while checks := inbox.ready():
        for check in checks:
            while not check.done:
                check.step()
        found += inbox.complete(checks)
    return found


def test_one_sender_cannot_replace_anothers_file(tmp_path: Path) -> None:
    same = IDS.next()
    inbox = Inbox(tmp_path)
    for sender in ("FL-LAB", "PA-LAB"):
        content = sender.encode() + b"\xff"
        inbox.record(
            [
                received(
                    content,
                    sender=sender,
                    envelope_id=same,
                    kind="image/png",
                    headers={"filename": "a.png"},
                )
            ]
        )
        assert len(completed(inbox)) == 1
    inbox.close()
    for line in lines(tmp_path):
        found = Path(line["content"]["file"]).read_bytes()
        assert found == line["sender_id"].encode() + b"\xff"
        assert line["content"]["sha256"] == hashlib.sha256(found).hexdigest()


def test_old_ids_are_dropped_and_then_refused(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    old = EnvelopeIds(lambda: 1_000_000).next()
    inbox.record([received(b"old", envelope_id=old), received(b"new")])
    assert not inbox.too_old(old)
    assert inbox.forget(2_000_000) == 1
    assert inbox.too_old(old)
    assert not inbox.too_old(IDS.next())
    inbox.close()
    again = Inbox(tmp_path)
    assert again.too_old(old)
    assert 2_000_000 <= again.watermark < now_ms()
    again.close()


def test_a_newer_inbox_is_refused(tmp_path: Path) -> None:
    Inbox(tmp_path).close()
    db = sqlite3.connect(tmp_path / "inbox.sqlite3")
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNew):
        Inbox(tmp_path)


@pytest.mark.parametrize(
    ("kind", "content", "text"),
    [
        ("text/plain; charset=utf-8", "grün".encode(), "grün"),
        ("text/csv", b"a,b", "a,b"),
        ("application/fhir+json", b"{}", "{}"),
        ("application/hl7-v2", b"MSH|^~\\&\r", "MSH|^~\\&\r"),
        ("APPLICATION/JSON", b"[]", "[]"),
        ("text/plain", b"\xff", None),
        ("application/octet-stream", b"text all the same", None),
        ("application/pdf", b"%PDF", None),
    ],
)
def test_what_is_text(kind: str, content: bytes, text: str | None) -> None:
    found = lines_of(Received("FL-LAB", bytes(16), 0, "box.CA-RC", 1, 1, [Message(content, kind)]))
    assert [orjson.loads(line)["content"] for line in found.data.splitlines()] == (
        [] if text is None else [text]
    )
    assert found.files == ([0] if text is None else [])


def test_any_time_a_sender_claims_can_be_written() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00.000Z"
    assert timestamp(2**63) == f"{2**63} ms"


def nobody(home: Path) -> None:
    pass


def another_command(home: Path) -> None:
    open_inbox(home).close()


@pytest.mark.parametrize("first", [nobody, another_command, retire_sessions])
@pytest.mark.parametrize("damaged", [False, True])
def test_lines_of_commits_that_the_disk_damaged_are_kept(
    tmp_path: Path, damaged: bool, first: Callable[[Path], None]
) -> None:
    """SQLite drops every commit from a damaged frame on; all three had been acknowledged.  The
    ``first`` to open the database leaves no sign of that in it.
    """
    inbox = Inbox(tmp_path)
    inbox.record([received(b"one")])
    path, log = tmp_path / DATABASE, tmp_path / f"{DATABASE}-wal"
    before = log.stat().st_size
    inbox.record([received(b"two")])
    inbox.record([received(b"three")])
    database, content = path.read_bytes(), bytearray(log.read_bytes())
    inbox.close()
    content[before + 2000] ^= damaged << 3
    path.write_bytes(database)  # as a kill leaves it
    log.write_bytes(content)
    first(tmp_path)
    said: list[str] = []
    Inbox(tmp_path, say=said.append).close()
    kept = [*(tmp_path / "data").glob("received_messages-unrecorded-*.jsonl")]
    written = [line["content"] for line in lines(tmp_path)]
    if not damaged:
        assert (written, kept, said) == (["one", "two", "three"], [], [])
        return
    assert written == ["one"]
    found = [orjson.loads(line)["content"] for line in kept[0].read_bytes().splitlines()]
    assert found == ["two", "three"]
    assert len(kept) == 1
    assert kept[0].name in said[-1]
    if first is nobody:
        assert "lost its last 2 changes" in said[0]
