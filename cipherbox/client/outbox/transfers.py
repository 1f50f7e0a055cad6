"""The outbox's files under way: a reference to each file, and which of its parts HQ has.

A row of `transfers` keeps what the file was when it was taken: where, how large, when last changed;
a row of `parts` the hash of each part HQ confirmed and the envelope it went in.  The bytes stay in
the file.  So a crash costs the parts that were in flight, which are read, sealed and sent again
under fresh ids; the recipient takes each part once.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import attrs
import orjson

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.outbox.origins import FolderFile, insert_file
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.rows import COPIES
from cipherbox.client.publishing.parts import DIRECTORY, NAMES_OF_ENTRIES
from cipherbox.errors import FileChanged, FileError, FileUnreadable
from cipherbox.limits import LIMITS
from cipherbox.portable import O_BINARY, int64, sync_directory
from cipherbox.sealing.encrypted_file import ClearFile, EncryptedFile, RandomAccessFile
from cipherbox.sealing.local_secret_box import SecretBox

SENDING, SENT, STOPPED = range(3)  # SENT: the manifest is in the outbox, which has it from here on
COPY, LOCKED_COPY = 1, 2
_STEP = 4 * 1024 * 1024
_COLUMNS = (
    "number, id, file, path, size, modified_ns, part_bytes, recipients, content_type, compress, "
    "copied, state, reason, manifest, made_at, done_bytes, stanza, entries"
)


class SourceEntry(NamedTuple):
    """A file of a directory as it was taken; size -1: an empty directory."""

    path: str
    size: int
    modified_ns: int


@frozen
class Transfer:
    """One file in transfer; ``path`` is what the recipient sees, ``made_at`` ms since 1970."""

    number: int
    id: bytes
    file: str
    path: tuple[str, ...]
    size: int  # bytes
    modified_ns: int
    part_bytes: int
    recipients: tuple[str, ...]
    content_type: str
    compress: bool
    copied: int  # COPY, or LOCKED_COPY: encrypted under the home's key
    state: int = SENDING
    reason: str = ""
    manifest: bytes | None = None  # envelope id
    made_at: int = 0
    done_bytes: int = 0
    stanza: int = 0  # the type the sender chose; 0: each recipient's preferred one
    entries: tuple[SourceEntry, ...] = attrs.field(default=(), repr=False)  # of a directory

    @property
    def parts(self) -> int:
        """Return the number of parts; an empty file has none."""
        return -(-self.size // self.part_bytes)


def check_path(file: Path, path: Sequence[str]) -> None:
    """Raise FileError if recipients would refuse this path."""
    try:
        "".join([str(file), *path]).encode()
    except UnicodeEncodeError:
        name = os.fsencode(file).decode("utf-8", "backslashreplace")
        raise FileError(
            "a name that is not UTF-8 cannot be sent", remedy=f"rename it: {name}"
        ) from None
    if len(path) > LIMITS.path_names + 1:
        raise FileError(
            f"{file} lies {len(path) - 1} directories deep; {LIMITS.path_names} can be sent: "
            "pack them into one file"
        )


def check_file(file: Path) -> os.stat_result:
    """What the system says of a file; FileError if it is none that can be sent, FileUnreadable
    if not now.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise FileUnreadable(f"{file} cannot be read: {error.strerror}") from None
    if not os.access(file, os.R_OK):
        raise FileUnreadable(f"{file} cannot be read: {os.strerror(errno.EACCES)}")
    if not file.is_file():
        raise FileError(f"{file} is no regular file")
    return stat


class Upload:
    """A file that arrives as a stream: written to the outbox's copies as it comes, encrypted where
    this home encrypts them.

    It becomes a transfer when it is whole (`Transfers.begin_upload`).  Until then nothing names it:
    a crash leaves a file that the outbox removes after a day, like every copy that is not named.
    """

    def __init__(self, outbox: Outbox) -> None:
        self.id = os.urandom(16)
        self.size = 0
        copies = outbox.directory / COPIES
        self._path = copies / self.id.hex()
        with translated(self._path):
            copies.mkdir(mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_BINARY
            self._stored = copy_at(os.open(self._path, flags, 0o600), self.id, outbox.hides)
        self._open = True

    def write(self, data: bytes) -> None:
        """Append; raise StoreError if the disk is full or fails."""
        with translated(self._path):
            self._stored.write(data, self.size)
        self.size += len(data)

    def finish(self) -> Path:
        """Make it durable under its name, and return where it is: there is no other copy of it."""
        self._stored.sync(self.size)
        self._close()
        for directory in (self._path.parent, self._path.parent.parent):
            sync_directory(directory)
        return self._path

    def discard(self) -> None:
        """Delete it: it is not sent."""
        self._close()
        self._path.unlink(missing_ok=True)

    def _close(self) -> None:
        if self._open:
            self._open = False
            self._stored.close()


class Transfers:
    """See the module; uses the outbox's database, so calls come one at a time with the outbox's
    own.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._db, self._path = outbox.database
        self._copies = outbox.directory / COPIES
        self._hides = outbox.hides

    def begin(
        self,
        file: Path,
        path: Sequence[str],
        recipients: Sequence[str],
        content_type: str,
        *,
        compress: bool,
        copy: bool,
        stanza: int = 0,
        claim: FolderFile | None = None,
    ) -> Transfer:
        """Begin the transfer of a file; raise FileError if it cannot be sent, FileChanged if it
        changes while it is copied.

        ``claim``: the file of the agent's folder, recorded in the same transaction.
        """
        file = file.absolute()
        stat = check_file(file)
        check_path(file, path)
        part_bytes = _part_bytes(file, stat.st_size)
        transfer_id = os.urandom(16)
        kept = file
        if copy:
            with translated(self._path):
                self._copies.mkdir(mode=0o700, exist_ok=True)
                kept = self._copies / transfer_id.hex()
                size = _copied([file], kept, transfer_id, self._hides)
            if (check_file(file).st_mtime_ns, size) != (stat.st_mtime_ns, stat.st_size):
                kept.unlink()
                raise FileChanged(f"{file} changed while it was copied")
        return self._insert(
            Transfer(
                0,
                transfer_id,
                str(kept),
                tuple(path),
                stat.st_size,
                int64(kept.stat().st_mtime_ns),
                part_bytes,
                tuple(recipients),
                content_type,
                compress,
                self._copy_kind(copy),
                stanza=stanza,
            ),
            claim,
        )

    def begin_upload(
        self,
        upload: Upload,
        path: Sequence[str],
        recipients: Sequence[str],
        content_type: str,
    ) -> Transfer:
        """Begin the transfer of what was uploaded; raise FileError if it cannot be sent."""
        check_path(Path(*path), path)
        part_bytes = _part_bytes(Path(path[-1]), upload.size)
        with translated(self._path):
            kept = upload.finish()
        return self._insert(
            Transfer(
                0,
                upload.id,
                str(kept),
                tuple(path),
                upload.size,
                int64(kept.stat().st_mtime_ns),
                part_bytes,
                tuple(recipients),
                content_type,
                False,
                self._copy_kind(True),
            )
        )

    def begin_directory(
        self,
        folder: Path,
        recipients: Sequence[str],
        *,
        compress: bool,
        copy: bool,
        stanza: int = 0,
    ) -> Transfer:
        """Begin the transfer of a directory as a unit; raise what `begin` raises."""
        folder = folder.resolve()
        entries = entries_of(folder)
        size = sum(max(one.size, 0) for one in entries)
        part_bytes = _part_bytes(folder, size)
        transfer_id = os.urandom(16)
        kept, modified_ns = folder, 0
        if copy:
            with translated(self._path):
                self._copies.mkdir(mode=0o700, exist_ok=True)
                kept = self._copies / transfer_id.hex()
                files = [folder / one.path for one in entries if one.size > 0]
                copied = _copied(files, kept, transfer_id, self._hides)
                modified_ns = int64(kept.stat().st_mtime_ns)
            if copied != size or entries_of(folder) != entries:
                kept.unlink()
                raise FileChanged(f"{folder} changed while it was copied")
        return self._insert(
            Transfer(
                0,
                transfer_id,
                str(kept),
                (folder.name,),
                size,
                modified_ns,
                part_bytes,
                tuple(recipients),
                DIRECTORY,
                compress,
                self._copy_kind(copy),
                stanza=stanza,
                entries=entries,
            )
        )

    def _insert(self, one: Transfer, claim: FolderFile | None = None) -> Transfer:
        """Record a transfer that begins, and return it with its number."""
        entries = orjson.dumps([tuple(e) for e in one.entries]).decode() if one.entries else ""
        with transaction(self._db, self._path):
            now = clock.now_ms()
            number = self._db.execute(
                "INSERT INTO transfers (id, file, path, size, modified_ns, part_bytes, "
                "recipients, content_type, compress, copied, made_at, stanza, entries) VALUES "
                "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    one.id,
                    one.file,
                    orjson.dumps(one.path).decode(),
                    one.size,
                    one.modified_ns,
                    one.part_bytes,
                    orjson.dumps(one.recipients).decode(),
                    one.content_type,
                    one.compress,
                    one.copied,
                    now,
                    one.stanza,
                    entries,
                ),
            ).lastrowid
            if claim is not None:
                insert_file(self._db, claim, now, transfer=number)
        return attrs.evolve(one, number=number or 0, made_at=now)

    def _copy_kind(self, copy: bool) -> int:
        return (COPY if self._hides is None else LOCKED_COPY) if copy else 0

    def find(self, number: int) -> Transfer | None:
        rows = self._rows("WHERE number = ?", (number,))
        return rows[0] if rows else None

    def of_file(self, file: str, size: int, modified_ns: int) -> Transfer | None:
        """Return the newest transfer of exactly this file that was not stopped."""
        rows = self._rows(
            "WHERE file = ? AND size = ? AND modified_ns = ? AND state < 2 ORDER BY number DESC "
            "LIMIT 1",
            (file, size, modified_ns),
        )
        return rows[0] if rows else None

    def unfinished(self) -> list[Transfer]:
        """Return transfers with parts to send, oldest first."""
        return self._rows("WHERE state = 0 ORDER BY number", ())

    def all(self, most: int) -> list[Transfer]:
        """Return the newest transfers, the oldest of them first."""
        return self._rows("ORDER BY number DESC LIMIT ?", (most,))[::-1]

    def hashes(self, number: int) -> dict[int, bytes]:
        """Return the SHA-256 of each part that HQ has."""
        with translated(self._path):
            return dict(
                self._db.execute(
                    "SELECT part, hash FROM parts WHERE transfer = ?", (number,)
                ).fetchall()
            )

    def confirmed(self, number: int, parts: Sequence[tuple[int, bytes, bytes, int]]) -> None:
        """Record the parts that HQ has: (part, hash, envelope id, bytes)."""
        with transaction(self._db, self._path):
            self._db.executemany(
                "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?)",
                [(number, part, digest, envelope_id) for part, digest, envelope_id, _ in parts],
            )
            self._db.execute(
                "UPDATE transfers SET done_bytes = done_bytes + ? WHERE number = ?",
                (sum(size for *_, size in parts), number),
            )

    def lost(self, envelope_id: bytes) -> int | None:
        """Let a part that a recipient could not open be sent again; return its transfer's number,
        or None if it is no part.
        """
        with transaction(self._db, self._path):
            row = self._db.execute(
                "SELECT transfer, part FROM parts WHERE envelope_id = ?", (envelope_id,)
            ).fetchone()
            if row is None:
                return None
            self._db.execute("DELETE FROM parts WHERE transfer = ? AND part = ?", row)
            self._db.execute(
                "UPDATE transfers SET state = 0, reason = '' WHERE number = ? AND state = 1",
                (row[0],),
            )
            return int(row[0])

    def finish(
        self, transfer: Transfer, state: int, *, manifest: bytes | None = None, reason: str = ""
    ) -> None:
        """Record SENT with the manifest's envelope, or STOPPED with the reason."""
        with transaction(self._db, self._path):
            self._db.execute(
                "UPDATE transfers SET state = ?, manifest = coalesce(?, manifest), reason = ? "
                "WHERE number = ?",
                (state, manifest, reason, transfer.number),
            )

    def leave_out(self, transfer: Transfer) -> None:
        """Record that it has fewer recipients."""
        names = orjson.dumps(list(transfer.recipients)).decode()
        with transaction(self._db, self._path):
            self._db.execute(
                "UPDATE transfers SET recipients = ? WHERE number = ?", (names, transfer.number)
            )

    def _rows(self, where: str, values: Sequence[object]) -> list[Transfer]:
        with translated(self._path):
            found = self._db.execute(f"SELECT {_COLUMNS} FROM transfers {where}", values).fetchall()
        return [_transfer(row) for row in found]


def entries_of(folder: Path) -> tuple[SourceEntry, ...]:
    """Everything in a directory, in order; links are followed to files only.  FileError for what
    cannot be sent.
    """
    found: list[SourceEntry] = []
    for where, names, files in os.walk(folder):
        names.sort()
        here = Path(where)
        for name in sorted(files):
            stat = check_file(here / name)
            path = (here / name).relative_to(folder)
            check_path(here / name, (folder.name, *path.parts))
            found.append(SourceEntry(path.as_posix(), stat.st_size, int64(stat.st_mtime_ns)))
        if not names and not files and here != folder:
            check_path(here, (folder.name, *here.relative_to(folder).parts))
            found.append(SourceEntry(here.relative_to(folder).as_posix(), -1, 0))
        if len(found) > LIMITS.entries:
            raise FileError(
                f"{folder} holds more than {LIMITS.entries} files", remedy="pack them into one file"
            )
    if sum(one.path.count("/") + 1 for one in found) > NAMES_OF_ENTRIES:
        raise FileError(
            f"{folder} holds too many directories inside each other",
            remedy="pack them into one file",
        )
    if not any(one.size >= 0 for one in found):
        raise FileError(f"there is no file in {folder}")
    return tuple(found)


def _part_bytes(file: Path, size: int) -> int:
    part_bytes = LIMITS.part_bytes
    while size > part_bytes * LIMITS.parts and part_bytes < LIMITS.part_bytes_most:
        part_bytes *= 2
    if size > part_bytes * LIMITS.parts:
        raise FileError(f"{file} has {size} bytes; at most {part_bytes * LIMITS.parts} can be sent")
    return part_bytes


def _copied(files: Sequence[Path], kept: Path, transfer_id: bytes, hides: SecretBox | None) -> int:
    """Copy files one after another, durably; return the number of bytes."""
    stored = copy_at(os.open(kept, os.O_RDWR | os.O_CREAT | O_BINARY, 0o600), transfer_id, hides)
    size = 0
    try:
        for file in files:
            with file.open("rb") as source:
                while data := source.read(_STEP):
                    stored.write(data, size)
                    size += len(data)
        stored.sync(size)
    finally:
        stored.close()
    return size


def copy_at(fd: int, transfer_id: bytes, hides: SecretBox | None) -> RandomAccessFile:
    """Return a file's copy for reading and writing; it owns the descriptor."""
    return ClearFile(fd) if hides is None else EncryptedFile(fd, hides, b"copy" + transfer_id)


def _transfer(row: Sequence[object]) -> Transfer:
    fields = list(row)
    for at in (3, 7):
        fields[at] = tuple(orjson.loads(str(fields[at])))
    fields[9] = bool(fields[9])
    fields[17] = (
        tuple(SourceEntry(*one) for one in orjson.loads(str(fields[17]))) if fields[17] else ()
    )
    return Transfer(*fields)  # type: ignore[arg-type]
