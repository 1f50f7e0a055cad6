"""The inbox: which envelopes this home has recorded, and the readable file of their messages, in
one step.

A batch is recorded so: what is a file is written beside and synced; then in one transaction the ids
are inserted, the lines kept under the local key and appended to the JSONL file, the file synced,
its new length recorded, and all committed.  Only then is anything acknowledged.  After a crash in
between, the file may be longer than the recorded length: opening cuts it back, HQ delivers again,
and no line is there twice or missing.  The database is the truth; the file follows it.  Files get
their names and their lines afterwards (`arriving`).

What identifies an envelope is (sender, envelope id), never the id alone; one row per envelope, not
per message.  The highest id of each sender is kept beside, since ids rise: only lower ones need a
lookup.  Rows are dropped when they are older than HQ could still deliver; ids from before that
*watermark* are refused as too old, never taken by mistake.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from cipherbox import clock
from cipherbox.client.inbox.content_types import Recording, recording_of
from cipherbox.client.inbox.encrypted_lines import EncryptedLines
from cipherbox.client.inbox.file_check import Check
from cipherbox.client.inbox.handler_contents import Contents
from cipherbox.client.inbox.incoming_files import Arrived, IncomingFiles
from cipherbox.client.inbox.lines import MessageLines, Received, lines_of
from cipherbox.client.inbox.lines_file import At, LinesFile
from cipherbox.client.inbox.schema import DATABASE, LINES, OLDEST, STEPS
from cipherbox.client.inbox.transfers import HELD, MOST, Transfers
from cipherbox.client.local_database import open_database
from cipherbox.client.receiving.faults import Fault, fault_of
from cipherbox.client.sessions.receiving_chains import ReceivedSteps
from cipherbox.envelope.ids import id_time_ms
from cipherbox.errors import StoreError
from cipherbox.limits import LIMITS
from cipherbox.portable import private_dir

if TYPE_CHECKING:
    from cipherbox.client.home import Home
    from cipherbox.client.sessions.sessions import Sessions
    from cipherbox.sealing.local_secret_box import SecretBox

_DAY_MS = 24 * 3600 * 1000


@attrs.frozen
class Storing:
    """How an inbox keeps what it receives.

    ``incoming``: where files get their names.  ``box`` opens what is kept; None: nothing is kept
    to be shown again.  ``plain``: lines and files are readable on the disk, as they are without a
    password.  ``rotate``: (bytes, days).
    """

    incoming: Path
    box: SecretBox | None = None
    plain: bool = True
    keep_days: int = 400
    partial_days: int = 14
    rotate: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, home: Home, incoming: Path | None = None) -> Storing:
        """As the home's settings and its password say."""
        said = home.config.inbox
        return cls(
            incoming or home.incoming,
            home.secret_box.content_box,
            home.hides is None,
            said.keep_days,
            said.partial_days,
            (said.rotate_bytes, said.rotate_days),
        )


class Inbox:
    """The inbox of one home; the caller holds the home's lock.  Methods block on the disk.

    ``on_cut`` is told how many bytes of an interrupted step were cut off the lines, ``say`` what
    else a person should know.
    """

    def __init__(
        self,
        home: Path,
        on_cut: Callable[[int], None] | None = None,
        storing: Storing | None = None,
        *,
        keep_contents: bool = False,
        sessions: Sessions | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._sessions = sessions
        self._storing = storing = storing or Storing(home / "incoming")
        self._unsure = False
        self._watermark = 0
        self._highest: dict[str, bytes] = {}
        self._file: LinesFile | None = None
        # of the last batch: messages that are files
        self.file_counts: dict[tuple[str, bytes], int] = {}
        try:
            private_dir(home / "data")
            self._db = open_database(home / DATABASE, STEPS, OLDEST)
            # sessions and contents outgrow their pages
            self._db.execute("PRAGMA secure_delete = ON")
            state = dict(self._db.execute("SELECT name, value FROM state"))
            self._prepare(state["watermark"])
            if storing.plain:
                at = At(state["length"], state["inode"], state["begun"])
                self._file = LinesFile(home / LINES, at, say, storing.rotate)
                self._record_at(self._file.at)
            box = storing.box
            self._kept = EncryptedLines(self._db, box) if box is not None else None
            self._contents = Contents(self._db, box) if keep_contents else None
            self._transfers = Transfers(self._db, self._contents, self._kept)
            self._arriving = IncomingFiles(
                home, storing.incoming, self._transfers, box, not storing.plain, say, self._step
            )
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the inbox in {home} cannot be opened: {error}") from None
        if self._file is not None and self._file.cut and on_cut is not None:
            on_cut(self._file.cut)

    @property
    def watermark(self) -> int:
        """Envelope ids of an earlier time (ms since 1970) are too old to be taken."""
        return self._watermark

    def too_old(self, envelope_id: bytes) -> bool:
        """Whether this inbox no longer knows if it had that envelope."""
        return id_time_ms(envelope_id) < self._watermark

    def surely_new(self, sender: str, envelope_id: bytes) -> bool:
        """Whether the envelope cannot be recorded, since no later one of that sender is; the
        database is not asked.
        """
        return envelope_id > self._highest.get(sender, b"")

    def knows(self, sender: str, envelope_id: bytes) -> bool:
        """Whether the envelope is recorded."""
        return self.commitment(sender, envelope_id) is not None

    def commitment(self, sender: str, envelope_id: bytes) -> bytes | None:
        """The commitment to the plaintext under which an envelope is recorded; empty: none was
        known; None: unknown.
        """
        if self.surely_new(sender, envelope_id):
            return None
        found = self._db.execute(
            "SELECT commitment FROM envelopes WHERE sender = ? AND envelope_id = ?",
            (sender, envelope_id),
        ).fetchone()
        return bytes(found[0]) if found is not None else None

    def record(self, batch: Sequence[Received], heard: ReceivedSteps | None = None) -> list[bytes]:
        """Records envelopes that `knows` says are new; returns the lines of each.  StoreError:
        nothing is recorded.

        ``heard``: what opening them has changed in sessions.  Files get their lines from
        `complete`.
        """
        with self._failing(recording=True):
            kinds = [(one, recording_of(one)) for one in batch]
            made = [(one, lines_of(one)) for one, kind in kinds if kind is Recording.LINES]
            taken = self._arriving.take([one for one, kind in kinds if kind is Recording.FILE])
            beside = self._arriving.hidden.write_messages(
                [(one, lines.files) for one, lines in made]
            )

            def work(_: sqlite3.Connection) -> None:
                self._insert(batch)
                self._arriving.record(taken)
                self._keep(made)
                for (one, _lines), files in zip(made, beside, strict=True):
                    if files:
                        self._transfers.add(
                            files, self._transfers.number(one.sender, one.envelope_id)
                        )
                if heard is not None and self._sessions is not None:
                    self._sessions.receiving.write(self._db, heard)

            lines = [one.data for _, one in made if one.data]
            self.file_counts = {
                (o.sender, o.envelope_id): len(found.files) for o, found in made if found.files
            }
            self._step(work, lines)
            for received in batch:
                if received.envelope_id > self._highest.get(received.sender, b""):
                    self._highest[received.sender] = received.envelope_id
            for files in beside:
                self._arriving.touch(files)
        return lines

    def _keep(self, made: Sequence[tuple[Received, MessageLines]]) -> None:
        """To be shown later; and for a handler, which decides what the receipt says."""
        now = clock.now_ms()
        for one, lines in made:
            if self._kept is not None and lines.data:
                self._kept.write(
                    one.sender, one.envelope_id, now, lines.data, lines.types, one.suite
                )
            if self._contents is not None:
                number = self._transfers.number(one.sender, one.envelope_id)
                self._contents.keep(number, one, frozenset(lines.files))
                self._db.execute(
                    "UPDATE envelopes SET receipt = ? WHERE number = ?", (HELD, number)
                )

    def ready(self) -> list[Check]:
        """Files of which everything came: each `Check` is to be run to its end, then `complete`
        is called.
        """
        with self._failing():
            return self._arriving.ready()

    def complete(self, checks: Sequence[Check]) -> list[Arrived]:
        """Gives their names to files that were checked; those that have them now."""
        with self._failing():
            return self._arriving.settle(checks)

    @property
    def waits(self) -> bool:
        """Whether a file could not be stored and is to be tried again: call `ready` later."""
        return self._arriving.waits

    def tidy(self) -> None:
        """Drops what is older than the settings say: kept lines, files that came in part."""
        now = clock.now_ms()
        with self._failing():
            if self._kept is not None:
                self._kept.forget(now - self._storing.keep_days * _DAY_MS)
            self._arriving.give_up(now - self._storing.partial_days * _DAY_MS)

    @contextmanager
    def _failing(self, recording: bool = False) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            if recording and fault_of(error) is Fault.SENDER:
                raise
            raise StoreError(
                f"the inbox cannot record messages: {error}; nothing was acknowledged"
            ) from None

    def _step(self, work: Callable[[sqlite3.Connection], None], lines: Sequence[bytes]) -> None:
        """One transaction: what ``work`` writes and the lines, all or nothing."""
        if self._unsure:
            raise StoreError(
                "the inbox must be opened again: the end of its last step is not known"
            )
        file = self._file
        if file is not None and lines and file.look():
            # before a line is there that only the end of this step would record
            self._record_at(file.at)
        self._db.execute("BEGIN IMMEDIATE")
        ending = False
        try:
            work(self._db)
            if file is not None and lines:
                self._record_at(file.append(lines))
            ending = True
            self._commit()
        except BaseException:
            self._undo(ending)
            raise
        if file is not None:
            file.committed()

    def _record_at(self, at: At) -> None:
        values = [(at.length, "length"), (at.inode, "inode"), (at.begun, "begun")]
        self._db.executemany("UPDATE state SET value = ? WHERE name = ?", values)

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
        if self._file is not None:
            self._file.close()

    # -- inside ------------------------------------------------------------------------------------

    def _prepare(self, watermark: int) -> None:
        db = self._db
        self._watermark = watermark
        self._highest = dict(db.execute("SELECT sender, highest FROM senders"))
        now = clock.now_ms()
        if (
            self._watermark + LIMITS.watermark_ms < now
            and db.execute("SELECT 1 FROM envelopes LIMIT 1").fetchone()
        ):
            self.forget(now - LIMITS.watermark_ms)

    def _insert(self, batch: Sequence[Received]) -> None:
        now = clock.now_ms()
        self._db.executemany(
            "INSERT INTO envelopes (sender, envelope_id, generation, messages, queue, "
            "accepted_at, received_at, envelope_hash, commitment, suite, log_entry) VALUES (?, "
            "?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    r.sender,
                    r.envelope_id,
                    r.generation,
                    len(r.messages),
                    r.queue,
                    min(r.accepted_at, MOST),
                    now,
                    r.envelope_hash,
                    r.commitment,
                    r.suite,
                    min(r.log_entry, MOST),
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

    def _commit(self) -> None:
        self._db.execute("COMMIT")

    def _undo(self, ending: bool) -> None:
        """Takes a failed step back.  One that failed at its very end may have reached the disk:
        then the lines stay as they are until the database is asked, by whoever opens the inbox
        next.
        """
        self._unsure = ending
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        if not ending and self._file is not None:
            self._file.undo()
