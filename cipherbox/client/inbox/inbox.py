"""The inbox: which envelopes this home has recorded, and the readable file of their messages, in one step.

A batch is recorded so: contents that are not text are written to files and synced; then in one transaction the ids are
inserted, the lines appended to the JSONL file, the file synced, its new length recorded, and all committed.  Only then
is anything acknowledged.  After a crash in between, the file may be longer than the recorded length: opening cuts it
back, HQ delivers again, and no line is there twice or missing.  The database is the truth; the file follows it.

What identifies an envelope is (sender, envelope id), never the id alone; one row per envelope, not per message.  The
highest id of each sender is kept beside, since ids rise: only lower ones need a lookup.  Rows are dropped when they are
older than HQ could still deliver; ids from before that *watermark* are refused as too old, never taken by mistake.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cipherbox.client.inbox.arriving import HELD, INCOMING, Arriving, is_file, transfer_of
from cipherbox.client.inbox.arriving import STEP as ARRIVING
from cipherbox.client.inbox.lines import Received, lines_of
from cipherbox.client.localdb import open_database
from cipherbox.client.pipe.frames import is_frame
from cipherbox.client.sessions.hearing import STEP as HEARING
from cipherbox.client.sessions.hearing import Heard
from cipherbox.envelope.ids import id_time_ms
from cipherbox.errors import StoreError
from cipherbox.limits import LIMITS
from cipherbox.portable import O_BINARY, private_dir, safe_name, write_private
from cipherbox.sealing.body import Message, pack

if TYPE_CHECKING:
    from cipherbox.client.sessions.sessions import Sessions

DATABASE, LINES, FILES = "inbox.sqlite3", "data/received_messages.jsonl", "data/files"
_LARGE = 64 * 1024
OLDEST = 4  # what 0.5.0 wrote
STEPS = (
    """
CREATE TABLE envelopes (
  number INTEGER PRIMARY KEY,
  sender TEXT NOT NULL,
  envelope_id BLOB NOT NULL,
  generation INTEGER NOT NULL,
  messages INTEGER NOT NULL,
  queue TEXT NOT NULL,
  accepted_at INTEGER NOT NULL,
  received_at INTEGER NOT NULL
);
CREATE UNIQUE INDEX envelopes_by_id ON envelopes (sender, envelope_id);
CREATE TABLE senders (sender TEXT PRIMARY KEY, highest BLOB NOT NULL);
CREATE TABLE state (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
INSERT INTO state VALUES ('length', 0), ('watermark', 0);
""",
    # What the recipient's receipts say.  receipt: 0 given up, NULL owed; what came before version 2 owes none.
    """
ALTER TABLE envelopes ADD COLUMN envelope_hash BLOB;
ALTER TABLE envelopes ADD COLUMN receipt INTEGER;
UPDATE envelopes SET receipt = 0;
CREATE INDEX envelopes_owed ON envelopes (number) WHERE receipt IS NULL;
CREATE TABLE refusals (
  sender TEXT NOT NULL, envelope_id BLOB NOT NULL, generation INTEGER NOT NULL, outcome INTEGER NOT NULL,
  envelope_hash BLOB NOT NULL, accepted_at INTEGER NOT NULL, reason TEXT NOT NULL, refused_at INTEGER NOT NULL,
  receipt INTEGER, PRIMARY KEY (sender, envelope_id, generation, outcome)
) WITHOUT ROWID;
CREATE TABLE receipts (receipt INTEGER PRIMARY KEY, signed_at INTEGER NOT NULL, root BLOB NOT NULL);
"""
    + ARRIVING,
    HEARING,
    # length -1: no inbox has looked at the lines yet; sessions may have made this database.
    """
UPDATE state SET value = -1 WHERE name = 'length' AND value = 0 AND NOT EXISTS (SELECT 1 FROM senders);
""",
    "ALTER TABLE envelopes ADD COLUMN commitment BLOB NOT NULL DEFAULT x'';\n",
)
_NOT_YET = -1


class Inbox:
    """The inbox of one home; the caller holds the home's lock.  Methods block on the disk."""

    def __init__(
        self, home: Path, on_cut: Callable[[int], None] | None = None, incoming: Path | None = None,
        *, keep_contents: bool = False, sessions: Sessions | None = None,
    ) -> None:  # fmt: skip
        self._sessions = sessions
        self._home = home
        self._keep_contents = keep_contents
        self._unsure = False
        self._length = self._added = self._watermark = 0
        self._highest: dict[str, bytes] = {}
        try:
            private_dir(home / "data")
            self._db = open_database(home / DATABASE, STEPS, OLDEST)
            self._db.execute("PRAGMA secure_delete = ON")  # sessions and contents outgrow their pages
            self._prepare()
            self._file = open(home / LINES, "r+b", buffering=0, opener=_private)  # noqa: SIM115
            cut = self._cut_back()
            self._arriving = Arriving(incoming or home / INCOMING, home / "data", self._db, self._step)
            self.arrived = self._arriving.resume()  # files that got their names; the receiver says so
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the inbox in {home} cannot be opened: {error}") from None
        if cut and on_cut is not None:
            on_cut(cut)

    @property
    def watermark(self) -> int:
        """Envelope ids of an earlier time (ms since 1970) are too old to be taken."""
        return self._watermark

    def too_old(self, envelope_id: bytes) -> bool:
        """Whether this inbox no longer knows if it had that envelope."""
        return id_time_ms(envelope_id) < self._watermark

    def surely_new(self, sender: str, envelope_id: bytes) -> bool:
        """Whether the envelope cannot be recorded, since no later one of that sender is; the database is not asked."""
        return envelope_id > self._highest.get(sender, b"")

    def knows(self, sender: str, envelope_id: bytes) -> bool:
        """Whether the envelope is recorded."""
        return self.commitment(sender, envelope_id) is not None

    def commitment(self, sender: str, envelope_id: bytes) -> bytes | None:
        """The commitment to the plaintext under which an envelope is recorded; empty: none was known; None: unknown."""
        if self.surely_new(sender, envelope_id):
            return None
        found = self._db.execute(
            "SELECT commitment FROM envelopes WHERE sender = ? AND envelope_id = ?", (sender, envelope_id)
        ).fetchone()
        return bytes(found[0]) if found is not None else None

    def record(self, batch: Sequence[Received], heard: Heard | None = None) -> list[bytes]:
        """Records envelopes that `knows` says are new; returns the lines of each.  StoreError: nothing is recorded.

        ``heard``: what opening them has changed in sessions.
        """
        with self._failing():
            messages = [received for received in batch if not is_file(received) and not is_frame(received)]
            kept = messages if self._keep_contents else []
            lines = [] if kept else [lines_of(received, self._beside) for received in messages]
            taken = self._arriving.take([received for received in batch if is_file(received)])

            def work(_: sqlite3.Connection) -> None:
                self._insert(batch)
                self._arriving.record(self._db, taken)
                self._keep(kept)
                if heard is not None and self._sessions is not None:
                    self._sessions.hearing.write(self._db, heard)

            self._step(work, lines)
            for received in batch:
                if received.envelope_id > self._highest.get(received.sender, b""):
                    self._highest[received.sender] = received.envelope_id
            self.arrived += self._arriving.complete([key for one in taken if (key := transfer_of(one)) is not None])
        return lines

    def _keep(self, batch: Sequence[Received]) -> None:
        """The contents stay here for a handler, which decides what the receipt says."""
        for r in batch:
            (number,) = self._db.execute(
                "SELECT number FROM envelopes WHERE sender = ? AND envelope_id = ?", (r.sender, r.envelope_id)
            ).fetchone()
            row = (number, r.sealed_at, pack(list(r.messages)), bytes(len(r.messages)))
            self._db.execute("INSERT INTO contents VALUES (?, ?, ?, ?)", row)
            self._db.execute("UPDATE envelopes SET receipt = ? WHERE number = ?", (HELD, number))

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the inbox cannot record messages: {error}; nothing was acknowledged") from None

    def _step(self, work: Callable[[sqlite3.Connection], None], lines: Sequence[bytes]) -> None:
        """One transaction: what ``work`` writes and the lines, all or nothing."""
        if self._unsure:
            raise StoreError("the inbox must be opened again: the end of its last step is not known")
        self._db.execute("BEGIN IMMEDIATE")
        ending = False
        try:
            work(self._db)
            self._append(lines)
            if self._added:
                self._db.execute("UPDATE state SET value = ? WHERE name = 'length'", (self._length + self._added,))
            ending = True
            self._commit()
        except BaseException:
            self._undo(ending)
            raise
        self._length += self._added

    def forget(self, before_ms: int) -> int:
        """Drops rows of ids from before that time and raises the watermark to it; how many."""
        if before_ms <= self._watermark:
            return 0
        least = before_ms.to_bytes(6, "big")
        self._db.execute("BEGIN IMMEDIATE")
        dropped = self._db.execute("DELETE FROM envelopes WHERE envelope_id < ?", (least,)).rowcount
        self._db.execute("UPDATE state SET value = ? WHERE name = 'watermark'", (before_ms,))
        self._db.execute("COMMIT")
        self._watermark = before_ms
        return dropped

    def close(self) -> None:
        """Closes both files."""
        with suppress(sqlite3.Error):
            self._db.close()
        with suppress(OSError):
            self._file.close()

    # -- inside -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        db = self._db
        state = dict(db.execute("SELECT name, value FROM state"))
        self._length, self._watermark = state["length"], state["watermark"]
        self._highest = dict(db.execute("SELECT sender, highest FROM senders"))
        now = int(time.time() * 1000)
        if self._watermark + LIMITS.watermark_ms < now and db.execute("SELECT 1 FROM envelopes LIMIT 1").fetchone():
            self.forget(now - LIMITS.watermark_ms)

    def _cut_back(self) -> int:
        """Makes the JSONL file as long as recorded; how many bytes were beyond it.

        When the file was emptied or moved away, or the database was and is a new one, it goes on from what is there.
        """
        size = self._file.seek(0, os.SEEK_END)
        if size < self._length or self._length == _NOT_YET:
            self._length = size
            self._file.seek(max(0, size - 1))
            if self._file.read(1) not in (b"", b"\n"):
                self._file.write(b"\n")
                self._length += 1
            self._db.execute("UPDATE state SET value = ? WHERE name = 'length'", (self._length,))
            return 0
        if size > self._length:
            self._file.truncate(self._length)
            os.fsync(self._file.fileno())
        return size - self._length

    def _insert(self, batch: Sequence[Received]) -> None:
        now = int(time.time() * 1000)
        self._db.executemany(
            "INSERT INTO envelopes (sender, envelope_id, generation, messages, queue, accepted_at, received_at,"
            " envelope_hash, commitment) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    r.sender, r.envelope_id, r.generation, len(r.messages), r.queue, r.accepted_at, now,
                    r.envelope_hash, r.commitment,
                )
                for r in batch
            ],
        )
        highest: dict[str, bytes] = {}
        for r in batch:
            if r.envelope_id > highest.get(r.sender, b""):
                highest[r.sender] = r.envelope_id
        self._db.executemany(
            "INSERT INTO senders VALUES (?, ?)"
            " ON CONFLICT (sender) DO UPDATE SET highest = MAX(highest, excluded.highest)",
            highest.items(),
        )

    def _append(self, lines: Sequence[bytes]) -> None:
        self._added = sum(map(len, lines))
        if not self._added:
            return
        self._file.seek(self._length)
        for data in _joined(lines):
            view = memoryview(data)
            while view:
                view = view[self._file.write(view) :]
        os.fsync(self._file.fileno())

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _undo(self, ending: bool) -> None:
        """Takes a failed step back.  One that failed at its very end may have reached the disk: then the lines stay as
        they are until the database is asked, by whoever opens the inbox next."""
        self._unsure = ending
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        if not ending:
            with suppress(OSError):
                self._file.truncate(self._length)

    def _beside(self, sender: str, name: str, message: Message) -> dict[str, Any]:
        # In a directory of the sender: ids are the sender's choice, and one must not replace another's file.
        directory = private_dir(self._home / FILES / sender)
        wished = message.headers.get("filename", "")
        file = f"{name}-{safe_name(wished)}" if wished else name
        write_private(directory / file, message.content)
        return {
            "file": f"files/{sender}/{file}",
            "size": len(message.content),
            "sha256": hashlib.sha256(message.content).hexdigest(),
            "content_type": message.content_type,
        }


def counted(one: Received) -> int:
    """How many messages this will be; a file counts when it is whole."""
    return 0 if is_file(one) or is_frame(one) else len(one.messages)


def _joined(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Many small pieces as few; large ones as they are, since joining would copy them."""
    small: list[bytes] = []
    for data in lines:
        if len(data) < _LARGE:
            small.append(data)
            continue
        yield b"".join(small)
        small.clear()
        yield data
    yield b"".join(small)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | O_BINARY, 0o600)
