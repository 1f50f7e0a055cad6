"""Inspect a home's inbox while other programs use it: received, refused and waiting messages."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cipherbox.classes import frozen
from cipherbox.client.file_names import safe_name
from cipherbox.client.home import Home
from cipherbox.client.inbox.decrypted_files import write_out, write_out_directory
from cipherbox.client.inbox.encrypted_lines import Entry, Shelf
from cipherbox.client.inbox.handler_contents import NOT_WHOLE, PARKED, WAITING
from cipherbox.client.inbox.places import free_name, open_exclusive
from cipherbox.client.inbox.schema import DATABASE, open_inbox
from cipherbox.client.local_database import translated, version_of
from cipherbox.envelope.ids import message_id, split_message_id
from cipherbox.envelope.outcomes import outcome_code
from cipherbox.errors import FileError
from cipherbox.portable import write_private

# Except envelopes that were refused at first and recorded later, for example once their sender's
# keys were compared.
_STANDS = (
    "NOT EXISTS (SELECT 1 FROM envelopes e WHERE e.sender = r.sender AND e.envelope_id = "
    "r.envelope_id AND e.received_at >= r.refused_at)"
)


@frozen
class RefusedEntry:
    """An envelope or file that was refused; ``at`` is ms since 1970."""

    message_id: str
    sender_id: str
    at: int
    outcome: str
    reason: str


@frozen
class ParkedEntry:
    """A message that waits for a person, because its handler failed permanently."""

    message_id: str
    sender_id: str
    attempts: int
    reason: str


class InboxInspection:
    """One inspection, with a database connection of its own. Methods block on the disk and raise
    StoreError.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self._path = home.path / DATABASE
        self._db = open_inbox(home.path)
        self.shelf = Shelf(self._db, self._path, home.secret_box.content_box)

    def close(self) -> None:
        self._db.close()

    def version(self) -> tuple[int, int]:
        """Return a mark that changes whenever something is recorded, in whichever process."""
        with translated(self._path):
            return version_of(self._db)

    def receipt_at(self, sender: str, wanted: uuid.UUID) -> int | None:
        """Return when the receipt for a message was signed, in ms since 1970; 0 if none will be,
        None if it is pending.
        """
        envelope_id, _ = split_message_id(wanted)
        with translated(self._path):
            row = self._db.execute(
                "SELECT receipt FROM envelopes WHERE sender = ? AND envelope_id = ?",
                (sender, envelope_id),
            ).fetchone()
        return row[0] if row is not None else 0

    def refused(self, most: int) -> list[RefusedEntry]:
        """Return the newest refusals, oldest first."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT envelope_id, sender, refused_at, outcome, reason FROM refusals r WHERE "
                f"{_STANDS} UNION ALL SELECT e.envelope_id, t.sender, e.received_at, e.outcome, "
                "t.reason FROM transfers t JOIN envelopes e ON e.number = t.envelope WHERE "
                "t.state = 3 ORDER BY 3 DESC LIMIT ?",
                (most,),
            ).fetchall()
        return [
            RefusedEntry(str(message_id(envelope_id, 0)), sender, at, outcome_code(outcome), reason)
            for envelope_id, sender, at, outcome, reason in reversed(rows)
        ]

    def parked(self) -> list[ParkedEntry]:
        """Return parked messages, oldest first."""
        with translated(self._path):
            rows = self._db.execute(
                "SELECT e.envelope_id, f.message, e.sender, f.attempts, f.reason, c.states FROM "
                "failures f JOIN envelopes e ON e.number = f.number JOIN contents c ON c.number "
                "= f.number ORDER BY f.number, f.message"
            ).fetchall()
        return [
            ParkedEntry(str(message_id(envelope_id, index)), sender, attempts, reason)
            for envelope_id, index, sender, attempts, reason, states in rows
            if states[index] == PARKED
        ]

    def counts(self) -> dict[str, int]:
        """Return counts of envelopes and files: received, refused, waiting for handlers,
        incomplete.
        """
        with translated(self._path):
            states = [row[0] for row in self._db.execute("SELECT states FROM contents")]
            (envelopes,) = self._db.execute("SELECT count(*) FROM envelopes").fetchone()
            (refused,) = self._db.execute(
                f"SELECT count(*) FROM refusals r WHERE {_STANDS}"
            ).fetchone()
            (files,) = self._db.execute("SELECT count(*) FROM transfers WHERE state = 3").fetchone()
            (coming,) = self._db.execute(
                "SELECT count(*) FROM transfers WHERE state IN (0, 1, 4)"
            ).fetchone()
            (owed,) = self._db.execute(
                "SELECT count(*) FROM envelopes WHERE receipt IS NULL"
            ).fetchone()
        waiting = sum(state.count(WAITING) + state.count(NOT_WHOLE) for state in states)
        return {
            "received_envelopes": envelopes,
            "refused": refused + files,
            "files_under_way": coming,
            "for_handlers": waiting,
            "parked": sum(state.count(PARKED) for state in states),
            "receipts_owed": owed,
        }

    def newest_at(self) -> int:
        """Return when the newest envelope was received, in ms since 1970, or 0."""
        with translated(self._path):
            (newest,) = self._db.execute(
                "SELECT coalesce(max(received_at), 0) FROM envelopes"
            ).fetchone()
        return int(newest)

    def save(self, entry: Entry, target: Path) -> Path:
        """Write a message's text or a file to a new file, in a directory or under the given name;
        return its path.
        """
        name = safe_name(entry.filename) if entry.filename else f"{entry.message_id}.txt"
        path = free_name(target, name) if target.is_dir() else target
        files = entry.document["content"].get("files") if entry.text is None else None
        if entry.kept and files:
            write_out_directory(
                self._home.path, self._home.secret_box.content_box, entry.kept, files, path
            )
            return path
        if files:
            shutil.copytree(entry.file, path)
            return path
        if entry.kept:
            write_out(
                self._home.path, self._home.secret_box.content_box, entry.kept, entry.size, path
            )
            return path
        if path.exists():
            raise FileError(f"{path} exists already")
        if not entry.file:
            write_private(path, (entry.text or "").encode())
            return path
        try:
            with open(entry.file, "rb") as source, open(open_exclusive(path), "wb") as target_file:
                shutil.copyfileobj(source, target_file, 1 << 20)
        except OSError as error:
            raise FileError(f"cannot copy {entry.file}: {error.strerror}") from None
        return path


@contextmanager
def looking(home: Home) -> Iterator[InboxInspection]:
    """Provide an inspection of a home's inbox."""
    look = InboxInspection(home)
    try:
        yield look
    finally:
        look.close()


def find(look: InboxInspection, wanted: uuid.UUID, sender: str = "") -> Entry | None:
    """Return the message or file with this id, or None."""
    return next((one for one in look.shelf.find(wanted) if sender in ("", one.sender_id)), None)
