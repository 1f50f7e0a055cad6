"""Files on their way in: parts written to their places, whole files given their names.

A part is written into a hidden file at its offset and synced before the transaction that records it, so what is
recorded is on the disk.  When the manifest and all its parts are recorded and agree, the name is chosen and recorded,
then the file gets it, then the transfer is done: after a crash in between, `resume` goes on from what is recorded.

The manifest's envelope owes its receipt only then.  A file that cannot become what its manifest says is refused, and
the receipt says so.  What the sender calls a file only ever names something below the sender's own directory.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cipherbox.client.inbox.lines import Received, file_line
from cipherbox.client.parts import MANIFEST, PART, Manifest, Part, read_manifest, read_part
from cipherbox.envelope.kinds import Outcome
from cipherbox.errors import MalformedEnvelope
from cipherbox.portable import O_BINARY, private_dir, safe_name, sync_directory, write_at
from cipherbox.sealing.body import Message

INCOMING, PARTIAL = "data/incoming", ".partial"
OPEN, NAMING, DONE, REFUSED = range(4)
HELD = -1  # the receipt of a manifest whose file is not whole yet
KINDS = frozenset({PART, MANIFEST})
STEP = """
CREATE TABLE transfers (
  sender TEXT NOT NULL, id BLOB NOT NULL, state INTEGER NOT NULL DEFAULT 0, manifest BLOB, envelope INTEGER,
  file TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (sender, id)
) WITHOUT ROWID;
CREATE TABLE parts (
  sender TEXT NOT NULL, id BLOB NOT NULL, part INTEGER NOT NULL, part_bytes INTEGER NOT NULL, hash BLOB NOT NULL,
  PRIMARY KEY (sender, id, part)
) WITHOUT ROWID;
ALTER TABLE envelopes ADD COLUMN outcome INTEGER NOT NULL DEFAULT 0;
ALTER TABLE envelopes ADD COLUMN outcomes BLOB;
CREATE TABLE contents (
  number INTEGER PRIMARY KEY, sealed_at INTEGER NOT NULL, plain BLOB NOT NULL, states BLOB NOT NULL
);
CREATE TABLE failures (
  number INTEGER NOT NULL, message INTEGER NOT NULL, attempts INTEGER NOT NULL, next_at INTEGER NOT NULL,
  reason TEXT NOT NULL, PRIMARY KEY (number, message)
) WITHOUT ROWID;
"""
Step = Callable[[Callable[[sqlite3.Connection], None], Sequence[bytes]], None]


class Taken(NamedTuple):
    """What one envelope of a file brought: a part with its hash, a manifest, or neither (it was malformed)."""

    received: Received
    part: Part | None
    digest: bytes
    manifest: bytes | None


class Arrived(NamedTuple):
    """A file that got its name; ``file`` is relative to ``data`` when it lies there."""

    sender: str
    manifest: Manifest
    file: str


class Arriving:
    """Files of one inbox.  ``step(work, lines)`` is the inbox's transaction; methods block on the disk: OSError."""

    def __init__(self, incoming: Path, data: Path, db: sqlite3.Connection, step: Step) -> None:
        self._incoming, self._data, self._db, self._step = incoming.absolute(), data.absolute(), db, step

    def take(self, batch: Sequence[Received]) -> list[Taken]:
        """Writes the parts of a batch to their places, and syncs them."""
        taken: list[Taken] = []
        files: dict[Path, int] = {}
        try:
            for received in batch:
                message = received.messages[0]
                if message.content_type == MANIFEST:
                    taken.append(Taken(received, None, b"", message.content))
                    continue
                try:
                    part = read_part(message)
                except MalformedEnvelope:
                    taken.append(Taken(received, None, b"", None))
                    continue
                if not self._over(received.sender, part.transfer):
                    fd = self._opened(files, received.sender, part.transfer)
                    write_at(fd, part.data, part.number * part.part_bytes)
                taken.append(Taken(received, part, hashlib.sha256(part.data).digest(), None))
            for fd in files.values():
                os.fsync(fd)
        finally:
            for fd in files.values():
                os.close(fd)
        return taken

    def record(self, db: sqlite3.Connection, taken: Sequence[Taken]) -> None:
        """Inside the inbox's transaction, after its rows of the envelopes."""
        for one in taken:
            sender, received = one.received.sender, one.received
            if one.part is not None:
                part = one.part
                db.execute("INSERT OR IGNORE INTO transfers (sender, id) VALUES (?, ?)", (sender, part.transfer))
                db.execute(
                    "INSERT OR REPLACE INTO parts SELECT sender, id, ?, ?, ? FROM transfers"
                    " WHERE sender = ? AND id = ? AND state = 0",
                    (part.number, part.part_bytes, one.digest, sender, part.transfer),
                )
                continue
            number = db.execute(
                "SELECT number FROM envelopes WHERE sender = ? AND envelope_id = ?", (sender, received.envelope_id)
            ).fetchone()[0]
            try:
                manifest = read_manifest(one.manifest or b"")
            except MalformedEnvelope:
                db.execute("UPDATE envelopes SET outcome = ? WHERE number = ?", (Outcome.MALFORMED, number))
                continue
            db.execute("INSERT OR IGNORE INTO transfers (sender, id) VALUES (?, ?)", (sender, manifest.transfer))
            changed = db.execute(
                "UPDATE transfers SET manifest = ?, envelope = ?, state = 0 WHERE sender = ? AND id = ? AND state <> 2",
                (one.manifest, number, sender, manifest.transfer),
            ).rowcount
            if changed:
                db.execute("UPDATE envelopes SET receipt = ? WHERE number = ?", (HELD, number))

    def complete(self, keys: Sequence[tuple[str, bytes]]) -> list[Arrived]:
        """Gives their names to those of these transfers that are whole."""
        found = []
        for sender, transfer in dict.fromkeys(keys):
            row = self._db.execute(
                "SELECT state, manifest, envelope, file FROM transfers WHERE sender = ? AND id = ?", (sender, transfer)
            ).fetchone()
            if row is None or row[1] is None or row[0] in (DONE, REFUSED):
                continue
            arrived = self._complete(sender, transfer, row[0], read_manifest(row[1]), row[2], row[3])
            if arrived is not None:
                found.append(arrived)
        return found

    def resume(self) -> list[Arrived]:
        """Goes on with what a crash interrupted: transfers that have all they need."""
        rows = self._db.execute("SELECT sender, id FROM transfers WHERE manifest IS NOT NULL AND state IN (0, 1)")
        return self.complete(rows.fetchall())

    # -- inside -------------------------------------------------------------------------------------------------

    def _complete(
        self, sender: str, transfer: bytes, state: int, manifest: Manifest, envelope: int, file: str
    ) -> Arrived | None:
        partial = self._partial(sender, transfer)
        if state == OPEN:
            rows = self._db.execute(
                "SELECT part, part_bytes, hash FROM parts WHERE sender = ? AND id = ? ORDER BY part", (sender, transfer)
            ).fetchall()
            if len(rows) < len(manifest.hashes):
                return None
            wrong = [
                part for part, part_bytes, digest in rows
                if part >= len(manifest.hashes) or digest != manifest.hashes[part] or part_bytes != manifest.part_bytes
            ]  # fmt: skip
            if wrong:
                self._refuse(sender, transfer, envelope, f"part {wrong[0]} is not what the manifest says")
                return None
            file = self._name(sender, manifest.path)
            self._set(sender, transfer, NAMING, file)
        path = self._data / file  # which is `file` itself when that is absolute
        if partial.exists() or not manifest.hashes:
            private_dir(path.parent)
            private_dir(partial.parent)
            fd = os.open(partial, os.O_RDWR | os.O_CREAT | O_BINARY, 0o600)
            try:
                os.ftruncate(fd, manifest.size)
                os.fsync(fd)
            finally:
                os.close(fd)
            with suppress(OSError, OverflowError):
                os.utime(partial, (manifest.modified_at / 1000, manifest.modified_at / 1000))
            os.replace(partial, path)
            sync_directory(path.parent)
        self._finish(sender, transfer, envelope, manifest, file)
        return Arrived(sender, manifest, file)

    def _finish(self, sender: str, transfer: bytes, envelope: int, manifest: Manifest, file: str) -> None:
        row = self._db.execute(
            "SELECT envelope_id, accepted_at FROM envelopes WHERE number = ?", (envelope,)
        ).fetchone()
        content = {
            "file": file,
            "size": manifest.size,
            "sha256_of_parts": manifest.digest,
            "content_type": manifest.content_type,
        }

        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE transfers SET state = ?, file = ? WHERE sender = ? AND id = ?",
                       (DONE, file, sender, transfer))  # fmt: skip
            db.execute("UPDATE envelopes SET receipt = NULL WHERE number = ?", (envelope,))
            db.execute("DELETE FROM parts WHERE sender = ? AND id = ?", (sender, transfer))

        self._step(work, [file_line(sender, row[0], row[1], content)])

    def _refuse(self, sender: str, transfer: bytes, envelope: int, reason: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE transfers SET state = ?, reason = ? WHERE sender = ? AND id = ?",
                       (REFUSED, reason, sender, transfer))  # fmt: skip
            db.execute("UPDATE envelopes SET receipt = NULL, outcome = ? WHERE number = ?", (Outcome.OTHER, envelope))
            db.execute("DELETE FROM parts WHERE sender = ? AND id = ?", (sender, transfer))

        self._step(work, [])
        self._partial(sender, transfer).unlink(missing_ok=True)

    def _set(self, sender: str, transfer: bytes, state: int, file: str) -> None:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE transfers SET state = ?, file = ? WHERE sender = ? AND id = ?",
                       (state, file, sender, transfer))  # fmt: skip

        self._step(work, [])

    def _name(self, sender: str, names: Sequence[str]) -> str:
        """A free name below the sender's directory, relative to ``data`` when it lies there."""
        safe = [safe_name(name) for name in names]
        folder = Path(self._incoming, sender, *safe[:-1])
        if folder.is_relative_to(self._data):
            folder = folder.relative_to(self._data)
        stem, suffix = Path(safe[-1]).stem, Path(safe[-1]).suffix
        taken = {row[0] for row in self._db.execute("SELECT file FROM transfers WHERE state = ?", (NAMING,))}
        number = 1
        while True:
            name = safe[-1] if number == 1 else f"{stem} ({number}){suffix}"
            file = str(folder / name)
            if file not in taken and not os.path.lexists(self._data / file):
                return file
            number += 1

    def _over(self, sender: str, transfer: bytes) -> bool:
        """Whether this file has its name already, or was refused."""
        row = self._db.execute(
            "SELECT state FROM transfers WHERE sender = ? AND id = ?", (sender, transfer)
        ).fetchone()
        return row is not None and row[0] != OPEN

    def _partial(self, sender: str, transfer: bytes) -> Path:
        return self._incoming / PARTIAL / sender / transfer.hex()

    def _opened(self, files: dict[Path, int], sender: str, transfer: bytes) -> int:
        path = self._partial(sender, transfer)
        if path not in files:
            private_dir(path.parent)
            files[path] = os.open(path, os.O_WRONLY | os.O_CREAT | O_BINARY, 0o600)
        return files[path]


def is_file(received: Received) -> bool:
    """Whether an envelope belongs to a file: one part or one manifest."""
    messages: Sequence[Message] = received.messages
    return len(messages) == 1 and received.queue.endswith(".bulk") and messages[0].content_type in KINDS


def transfer_of(taken: Taken) -> tuple[str, bytes] | None:
    """Sender and transfer of what came, if it can be read."""
    if taken.part is not None:
        return taken.received.sender, taken.part.transfer
    try:
        return taken.received.sender, read_manifest(taken.manifest or b"").transfer
    except MalformedEnvelope:
        return None

