"""The inbox: record received envelopes and append their messages to the readable file, atomically.

A batch is recorded thus: files are written to hidden files and synced; then in one transaction the
ids are inserted, the lines are stored encrypted and appended to the JSONL file, the file is synced,
its new length recorded, and all committed. Only then is anything acknowledged. After a crash in
between, the file may be longer than the recorded length: opening truncates it, HQ redelivers, and
no line is duplicated or missing. The database is authoritative; the file follows it. Files get
their names and lines afterwards (`incoming_files`).

An envelope is identified by (sender, envelope id), never by the id alone; there is one row for each
envelope, not for each message. Each sender's highest id is stored too: ids increase, so only lower
ones need a lookup. Rows are deleted once they are older than HQ could still deliver; ids below that
*watermark* are refused as too old, never accepted by mistake.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.hq_time import deletion_ms, stamp_ms
from cipherbox.client.inbox.content_types import Recording, recording_of
from cipherbox.client.inbox.encrypted_lines import EncryptedLines
from cipherbox.client.inbox.file_check import Check
from cipherbox.client.inbox.handler_contents import Contents
from cipherbox.client.inbox.incoming_files import Arrived, IncomingFiles
from cipherbox.client.inbox.lines import MessageLines, Received, lines_of
from cipherbox.client.inbox.lines_file import At, LinesFile
from cipherbox.client.inbox.schema import LINES, open_inbox
from cipherbox.client.inbox.transfers import MOST, RECEIPT_HELD, Transfers
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


@frozen
class InboxStorage:
    """How an inbox stores what it receives.

    ``incoming`` is the directory for complete files. ``box`` encrypts what is stored; None: nothing
    is stored to be shown later. ``plain``: lines and files are in clear on disk, as without a
    password. ``rotate`` is (bytes, days).
    """

    incoming: Path
    box: SecretBox | None = None
    plain: bool = True
    keep_days: int = 400
    partial_days: int = 14
    rotate: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, home: Home, incoming: Path | None = None) -> InboxStorage:
        """Return the storage that the home's settings and password determine."""
        settings = home.config.inbox
        return cls(
            incoming or home.incoming,
            home.secret_box.content_box,
            home.hides is None,
            settings.keep_days,
            settings.partial_days,
            (settings.rotate_bytes, settings.rotate_days),
        )


class Inbox:
    """The inbox of one home; the caller holds the home's lock. Methods block on the disk.

    ``on_cut`` is called with the number of bytes of an interrupted step that were truncated;
    ``say`` reports anything else to the user.
    """

    def __init__(
        self,
        home: Path,
        on_cut: Callable[[int], None] | None = None,
        storage: InboxStorage | None = None,
        *,
        keep_contents: bool = False,
        sessions: Sessions | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._sessions, self._home = sessions, home
        self._storage = storage = storage or InboxStorage(home / "incoming")
        self._unknown_state = False
        self._watermark = 0
        self._highest: dict[str, bytes] = {}
        self._file: LinesFile | None = None
        self._recorded: At | None = None  # as it is in the database; None: unknown
        # messages of the last batch that are files
        self.file_counts: dict[tuple[str, bytes], int] = {}
        try:
            private_dir(home / "data")
            self._db = open_inbox(home, say)
            # sessions and contents have overflow pages
            self._db.execute("PRAGMA secure_delete = ON")
            state = dict(self._db.execute("SELECT name, value FROM state"))
            self._prepare(state["watermark"], say)
            if storage.plain:
                at = At(state["length"], state["inode"], state["begun"])
                self._file = LinesFile(home / LINES, at, say, storage.rotate)
                self._record_at(self._file.at)
            box = storage.box
            self._stored_lines = EncryptedLines(self._db, box) if box is not None else None
            self._contents = Contents(self._db, box) if keep_contents else None
            self._transfers = Transfers(self._db, self._contents, self._stored_lines)
            self._arriving = IncomingFiles(
                home, storage.incoming, self._transfers, box, not storage.plain, say, self._step
            )
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"the inbox in {home} cannot be opened: {error}") from None
        if self._file is not None and self._file.cut and on_cut is not None:
            on_cut(self._file.cut)

    @property
    def watermark(self) -> int:
        """Envelope ids from before this time (ms since 1970) are too old to be accepted."""
        return self._watermark

    def too_old(self, envelope_id: bytes) -> bool:
        """Return whether the inbox can no longer tell if it has recorded this envelope."""
        return id_time_ms(envelope_id) < self._watermark

    def surely_new(self, sender: str, envelope_id: bytes) -> bool:
        """Return whether the envelope is certainly new, since the sender's highest id is lower;
        this does not query the database.
        """
        return envelope_id > self._highest.get(sender, b"")

    def knows(self, sender: str, envelope_id: bytes) -> bool:
        """Return whether the envelope is recorded."""
        return self.commitment(sender, envelope_id) is not None

    def commitment(self, sender: str, envelope_id: bytes) -> bytes | None:
        """Return the plaintext commitment of a recorded envelope (empty if it had none), or None if
        it is not recorded.
        """
        if self.surely_new(sender, envelope_id):
            return None
        found = self._db.execute(
            "SELECT commitment FROM envelopes WHERE sender = ? AND envelope_id = ?",
            (sender, envelope_id),
        ).fetchone()
        return bytes(found[0]) if found is not None else None

    def record(self, batch: Sequence[Received], steps: ReceivedSteps | None = None) -> list[bytes]:
        """Record envelopes that `knows` reports as new, and return the lines of each. On StoreError
        nothing is recorded.

        ``steps`` has the session steps of opening them. Files get their lines from `complete`.
        """
        with self._failing(recording=True):
            kinds = [(one, recording_of(one)) for one in batch]
            made = [(one, lines_of(one)) for one, kind in kinds if kind is Recording.LINES]
            taken = self._arriving.take([one for one, kind in kinds if kind is Recording.FILE])
            in_files = [(one, lines.files) for one, lines in made if lines.files]
            beside = self._arriving.hidden.write_messages(in_files) if in_files else []

            def work(_: sqlite3.Connection) -> None:
                self._insert(batch)
                self._arriving.record(taken)
                self._keep(made)
                for (one, _indexes), files in zip(in_files, beside, strict=True):
                    number = self._transfers.number(one.sender, one.envelope_id)
                    self._transfers.add(files, number)
                if steps is not None and self._sessions is not None:
                    self._sessions.receiving.write(self._db, steps)

            lines = [one.data for _, one in made if one.data]
            self.file_counts = {
                (one.sender, one.envelope_id): len(indexes) for one, indexes in in_files
            }
            self._step(work, lines)
            for received in batch:
                if received.envelope_id > self._highest.get(received.sender, b""):
                    self._highest[received.sender] = received.envelope_id
            for files in beside:
                self._arriving.touch(files)
        return lines

    def _keep(self, made: Sequence[tuple[Received, MessageLines]]) -> None:
        """Store lines to be shown later, and contents for a handler, which determines the
        receipt.
        """
        now = clock.now_ms()
        for one, lines in made:
            if self._stored_lines is not None and lines.data:
                self._stored_lines.write(
                    one.sender, one.envelope_id, now, lines.data, lines.types, one.suite
                )
            if self._contents is not None:
                number = self._transfers.number(one.sender, one.envelope_id)
                self._contents.keep(number, one, frozenset(lines.files))
                self._db.execute(
                    "UPDATE envelopes SET receipt = ? WHERE number = ?", (RECEIPT_HELD, number)
                )

    def ready(self) -> list[Check]:
        """Return checks of files of which everything has arrived; run each to its end, then call
        `complete`.
        """
        with self._failing():
            return self._arriving.ready()

    def complete(self, checks: Sequence[Check]) -> list[Arrived]:
        """Give checked files their names, and return those that have them now."""
        with self._failing():
            return self._arriving.settle(checks)

    @property
    def waits(self) -> bool:
        """Whether a file could not be stored and will be retried: call `ready` later."""
        return self._arriving.waits

    def tidy(self) -> None:
        """Delete stored lines and incomplete files that are older than the settings allow."""
        now = deletion_ms(self._home)
        with self._failing():
            if self._stored_lines is not None:
                self._stored_lines.forget(now - self._storage.keep_days * _DAY_MS)
            self._arriving.give_up(now - self._storage.partial_days * _DAY_MS)

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
        """Run one transaction: what ``work`` writes and the lines, all or nothing."""
        if self._unknown_state:
            raise StoreError(
                "the inbox must be reopened: its last transaction may or may not be committed"
            )
        file = self._file
        if file is not None and lines and file.look():
            # before a line is written that only the end of this step would record
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
        before = self._recorded or (None, None, None)
        changed = [
            (new, name) for name, new, old in zip(At._fields, at, before, strict=True) if new != old
        ]
        self._db.executemany("UPDATE state SET value = ? WHERE name = ?", changed)
        self._recorded = at

    def forget(self, before_ms: int) -> int:
        """Delete rows of ids from before that time, raise the watermark to it, and return their
        number.
        """
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
        """Close database and file."""
        with suppress(sqlite3.Error):
            self._db.close()
        if self._file is not None:
            self._file.close()

    # -- internals ---------------------------------------------------------------------------------

    def _prepare(self, watermark: int, say: Callable[[str], None]) -> None:
        db = self._db
        self._watermark = watermark
        # A version before 0.6 moved it by this machine's clock alone, which may have been ahead:
        # since then every envelope would be too old.
        highest = stamp_ms(self._home) - LIMITS.watermark_ms
        if watermark > max(0, highest) + LIMITS.clock_ahead_ms:
            self._watermark = max(0, highest)
            db.execute("UPDATE state SET value = ? WHERE name = 'watermark'", (self._watermark,))
            say("the inbox forgot ids by a wrong clock; it takes new envelopes again")
        self._highest = dict(db.execute("SELECT sender, highest FROM senders"))
        now = deletion_ms(self._home)
        if (
            self._watermark + LIMITS.watermark_ms < now
            and db.execute("SELECT 1 FROM envelopes LIMIT 1").fetchone()
        ):
            self.forget(now - LIMITS.watermark_ms)

    def _insert(self, batch: Sequence[Received]) -> None:
        now = clock.now_ms()
        self._db.executemany(
            "INSERT INTO envelopes (sender, envelope_id, generation, messages, queue, "
            "accepted_at, received_at, envelope_hash, commitment, suite, log_entry, prompt) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
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
                    r.prompt_receipt,
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
        """Roll back a failed step. A failed COMMIT may have reached the disk: then the lines stay
        until the inbox is reopened, which consults the database.
        """
        self._unknown_state = ending
        self._recorded = None
        with suppress(sqlite3.Error):
            self._db.execute("ROLLBACK")
        if not ending and self._file is not None:
            self._file.undo()
