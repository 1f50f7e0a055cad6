"""Receive files: write arriving data to hidden files, verify it there, and give complete files
their names.

A file arrives as a message that names it, or as parts and a manifest. Its bytes are written to a
hidden file and synced before the transaction that records it; small files of a batch share one,
since other messages wait for the disk meanwhile. A completely recorded file is verified, by the
hashes of what was written (`arriving_hashes`) or of what is read back (`file_check`), and copied to
a hidden file of its own if it has none; then its name is chosen and recorded, the file gets it, and
the transfer is completed: its line is written, a handler gets it, and a receipt becomes due for the
envelope. After a crash in between, it resumes from what is recorded. An error of one file is
reported and retried, and delays no other file.

A file that does not match its manifest is refused, and the receipt says so. A sender's file name
only ever names something below that sender's own directory (`places`).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import attrs
import orjson

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.file_names import split_name
from cipherbox.client.inbox.arriving_hashes import ArrivingHashes
from cipherbox.client.inbox.file_check import Check, sync_all
from cipherbox.client.inbox.hidden import (
    KEPT,
    PARTIAL,
    SHARED,
    Beside,
    Hidden,
    as_message,
    message_transfer,
    shared_of,
)
from cipherbox.client.inbox.lines import Received, file_line, line_id, timestamp
from cipherbox.client.inbox.places import (
    free_place,
    is_about_the_name,
    keep,
    key,
    move,
    safe_place,
    sweep,
)
from cipherbox.client.inbox.transfers import CHECKING, NAMING, OPEN, Row, Step, Transfers, in_turn
from cipherbox.client.inbox.unpacking import hidden_of, move_directory
from cipherbox.client.publishing.parts import MANIFEST, Manifest, read_manifest, read_part
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.errors import MalformedEnvelope
from cipherbox.sealing.body import apart
from cipherbox.sealing.encrypted_file import RandomAccessFile, sync_and_close
from cipherbox.sealing.local_secret_box import SecretBox

OPEN_FILES = 32  # files whose parts are being written
HASHED_FILES = 256  # files that are hashed as they arrive
CHECK_BYTES = 64 * 1024 * 1024  # files checked before the first of them gets its name
# complete files of one sender in memory; more are read from the database later
MOST_TOUCHED = 8192
CHECK_FILES = 128  # and their number: other messages are recorded in between
AGAIN_MS, AGAIN_MOST_MS = 1000, 300_000  # back-off after an error of one file
_IMPOSSIBLE = frozenset([errno.EFBIG, errno.EINVAL, errno.EOVERFLOW])
Key = tuple[str, bytes]  # sender, transfer


class Taken(NamedTuple):
    """What one envelope of a file brought: a part that is stored, a manifest, or neither if it was
    malformed.
    """

    received: Received
    transfer: bytes = b""
    part: int = -1
    manifest: bytes | None = None


@frozen
class Arrived:
    """A file that got its name: ``file`` is its path, or empty when it is stored under the local
    key.

    ``whole``: it arrived as a message.
    """

    sender: str
    filename: str
    file: str
    size: int
    line: bytes
    whole: bool


class IncomingFiles:
    """The files of one inbox. Methods block on the disk and raise OSError.

    Complete files get their names in ``incoming``; if ``locked``, they are stored under the local
    key in ``home`` instead. ``say`` reports errors of a file to the user.
    """

    def __init__(
        self,
        home: Path,
        incoming: Path,
        transfers: Transfers,
        box: SecretBox | None,
        locked: bool,
        say: Callable[[str], None],
        step: Step,
    ) -> None:
        self._home, self._incoming = home, incoming.absolute()
        self.hidden = Hidden(home, self._incoming, box, locked)
        self._transfers = transfers
        self._say, self._step = say, step
        self._hashes: dict[Key, ArrivingHashes] = {}  # the latest file last
        self._touched: dict[str, dict[bytes, None]] = {}
        self._more = True  # the database may have other complete files
        # after an error: not before this time (`clock.elapsed_s`), and the pause in ms
        self._later: dict[Key, tuple[float, int]] = {}

    # -- recording ---------------------------------------------------------------------------------

    def take(self, batch: Sequence[Received]) -> list[Taken]:
        """Write and sync the parts of a batch, with one expanded part in memory at a time."""
        taken: list[Taken] = []
        files: dict[Key, RandomAccessFile | None] = {}
        try:
            for received in batch:
                taken.append(self._take(received, files))
                if len(files) >= OPEN_FILES:
                    sync_and_close(files)
            sync_and_close(files)
        finally:
            for stored in files.values():
                if stored is not None:
                    stored.close()
        return taken

    def _take(self, received: Received, files: dict[Key, RandomAccessFile | None]) -> Taken:
        message, content = apart(received.messages, 0)
        if message.content_type == MANIFEST:
            return Taken(received, manifest=bytes(content))
        try:
            part = read_part(message, content)
        except MalformedEnvelope:
            return Taken(received)
        name = received.sender, part.transfer
        if name not in files:
            row = self._transfers.find(*name)
            # otherwise it is being checked, has its name, or was refused
            writable = row is None or row.state == OPEN
            files[name] = self.hidden.open(row or self.hidden.new(*name)) if writable else None
        stored = files[name]
        if stored is not None:
            hashes = self._hashes.pop(name, None)
            if hashes is None or hashes.stamp != stored.stamp():
                hashes = ArrivingHashes(part.part_bytes)
            try:
                stored.write(part.data, part.number * part.part_bytes)
            except OSError as error:
                if error.errno in _IMPOSSIBLE:  # beyond the maximum file size here
                    return Taken(received)
                raise
            if hashes.add(part) and hashes.count:
                hashes.stamp = stored.stamp()
                self._hashes[name] = hashes
                if len(self._hashes) > HASHED_FILES:
                    del self._hashes[next(iter(self._hashes))]
        return Taken(received, part.transfer, part.number)

    def record(self, taken: Sequence[Taken]) -> None:
        """Record parts and manifests within the inbox's transaction, after the envelopes' rows."""
        for one in taken:
            sender, transfers = one.received.sender, self._transfers
            if one.part >= 0:
                transfers.part(self.hidden.new(sender, one.transfer), one.part)
                self._touch(sender, one.transfer)
                continue
            number = transfers.number(sender, one.received.envelope_id)
            try:
                manifest = read_manifest(one.manifest or b"")
            except MalformedEnvelope:
                transfers.malformed(number)
                continue
            row = attrs.evolve(
                self.hidden.new(sender, manifest.transfer), sent_at=one.received.sealed_at
            )
            transfers.manifest(row, number, one.manifest or b"", manifest)
            self._touch(sender, manifest.transfer)

    def touch(self, files: Beside) -> None:
        """Mark files as complete, so that `ready` checks them."""
        for index in files.indexes:
            self._touch(files.received.sender, message_transfer(files.received.envelope_id, index))

    def _touch(self, sender: str, transfer: bytes) -> None:
        own = self._touched.setdefault(sender, {})
        if len(own) < MOST_TOUCHED:
            own[transfer] = None
        else:
            self._more = True

    def _untouch(self, sender: str, transfer: bytes) -> None:
        own = self._touched.get(sender, {})
        own.pop(transfer, None)
        if not own:
            self._touched.pop(sender, None)

    def _look(self) -> None:
        """Load complete files from the database."""
        found = self._transfers.pending(MOST_TOUCHED)
        self._more = len(found) == MOST_TOUCHED
        for name in found:
            self._touch(*name)

    # -- completing --------------------------------------------------------------------------------

    def ready(self) -> list[Check]:
        """Return checks of complete files, a limited number, taking turns among senders."""
        checks = self._ready()
        if not checks and self._more:
            self._look()
            checks = self._ready()
        return checks

    def _ready(self) -> list[Check]:
        now, size = clock.elapsed_s(), 0
        checks: list[Check] = []
        whole: list[Row] = []
        for name in in_turn(self._touched):
            if self._later.get(name, (0, 0))[0] > now:
                continue
            if size >= CHECK_BYTES or len(checks) >= CHECK_FILES:
                break
            row = self._transfers.find(*name)
            try:
                if row is None or row.state not in (OPEN, CHECKING, NAMING) or not row.whole:
                    self._untouch(*name)
                    continue
                checks.append(self._check(row))
            except Exception as error:
                self._failed(name, error)
                continue
            if row.state == OPEN:
                whole.append(row)
            size += checks[-1].manifest.size
        self._transfers.check(whole)  # from here on, no part of them is written
        return checks

    @property
    def waits(self) -> bool:
        """Whether a file will be retried later."""
        return any(transfer in self._touched.get(sender, {}) for sender, transfer in self._later)

    def _check(self, row: Row) -> Check:
        manifest = read_manifest(row.manifest)
        path = self.hidden.place(row)
        stored = self.hidden.place(shared_of(row)) if row.shared else path
        if row.state == NAMING or (manifest.hashes and not stored.exists()):
            check = Check(row.sender, row.transfer, manifest, partial(self.hidden.open, row))
            check.reason = (
                ""
                if row.state == NAMING
                else "its parts are missing on this machine; send it again"
            )
            check.close()
            return check
        if row.shared:
            return Check(
                row.sender,
                row.transfer,
                manifest,
                partial(self.hidden.open, shared_of(row)),
                synced=True,
                at=row.at,
                copy=partial(self.hidden.open, row),
            )
        hidden = hidden_of(path) if manifest.entries and not row.locked else None
        return Check(
            row.sender,
            row.transfer,
            manifest,
            partial(self.hidden.open, row),
            hidden,
            synced=as_message(row),
            hashes=self._hashes.pop(row.name, None),
        )

    def settle(self, checks: Sequence[Check]) -> list[Arrived]:
        """Give checked files their names, and refuse invalid ones."""
        sync_all(checks)
        good: list[Row] = []
        manifests = {(check.sender, check.transfer): check.manifest for check in checks}
        taken = {key(Path(row.file)) for row in self._transfers.named()}
        for check in checks:
            row = self._transfers.find(check.sender, check.transfer)
            if row is None or row.state not in (CHECKING, NAMING):
                continue
            try:
                if check.trouble is not None:
                    raise check.trouble
                if row.state != NAMING and not check.reason:
                    row = attrs.evolve(
                        row, sha256=check.sha256, file=self._name(row, check.manifest, taken)
                    )
                    taken.add(key(Path(row.file)))
            except Exception as error:
                self._failed(row.name, error)
                continue
            if check.reason:
                self._refuse(row, check.reason)
            else:
                good.append(row)
        self._transfers.name(good)
        placed: list[Row] = []
        moved: dict[Path, Path] = {}  # name -> hidden name
        for row in good:
            hidden = self.hidden.place(row)
            try:
                there = not row.locked and hidden.exists()
                placed.append(self._place(row, manifests[row.name], taken))
                if there:
                    moved[Path(placed[-1].file)] = hidden
            except Exception as error:
                self._failed(row.name, error)
        failed = keep(moved)
        kept = [row for row in placed if self._is_kept(row, failed.get(Path(row.file)))]
        return self._finish([(row, manifests[row.name]) for row in kept])

    def _is_kept(self, row: Row, error: OSError | None) -> bool:
        name = row.sender, row.transfer
        if error is not None:
            self._retry_later(name, error)
            return False
        self._later.pop(name, None)
        self._untouch(*name)
        return True

    def give_up(self, before_ms: int) -> int:
        """Refuse incomplete files without progress since that time, and return their number."""
        old = self._transfers.stale(before_ms)
        for row in old:
            self._refuse(row, "timed out: the rest of it did not arrive")
        for folder in (self._incoming / PARTIAL, self._home / KEPT):
            sweep(folder, before_ms, self._knows)
        return len(old)

    def _knows(self, sender: str, name: bytes) -> bool:
        if sender == SHARED:
            return self._transfers.shares(name.hex())
        return self._transfers.find(sender, name) is not None

    def _failed(self, name: Key, error: Exception) -> None:
        """Handle an error of one file: retry disk errors, refuse files at their sender's fault,
        raise others.
        """
        row = self._transfers.find(*name)
        if isinstance(error, OSError):
            self._retry_later(name, error)
        elif fault_of(error) is not Fault.SENDER:
            raise error
        elif row is not None:
            self._refuse(row, str(refusal(error)))

    def _retry_later(self, name: Key, error: OSError) -> None:
        pause = min(self._later.get(name, (0, AGAIN_MS // 2))[1] * 2, AGAIN_MOST_MS)
        self._later[name] = clock.elapsed_s() + pause / 1000, pause
        where = f" ({error.filename})" if error.filename else ""
        self._say(
            f"a file from {name[0]} cannot be stored: {error.strerror or error}{where}; "
            f"retrying in {pause / 1000:g} s"
        )

    def _place(self, row: Row, manifest: Manifest, taken: set[str]) -> Row:
        """Move a file to its name, and return the row with that name."""
        if row.locked:
            return row
        hidden = hidden_of(self.hidden.place(row)) if manifest.entries else self.hidden.place(row)
        for _ in range(1000):
            path = Path(row.file)
            if hidden.exists():
                with suppress(OSError, OverflowError, ValueError):
                    os.utime(hidden, (manifest.modified_at / 1000, manifest.modified_at / 1000))
            try:
                # Without a hidden file, it got its name before a crash.
                if not hidden.exists() or (move_directory if manifest.entries else move)(
                    hidden, path
                ):
                    return row
                again = self._name(row, manifest, taken)
            except OSError as error:
                plain = (
                    self._incoming / row.sender / (row.transfer.hex() + split_name(path.name)[1])
                )
                if not is_about_the_name(error) or path == plain:
                    raise
                again = str(plain)
            row = attrs.evolve(row, file=again)
            taken.add(key(Path(again)))
            self._transfers.name([row])
        raise OSError(errno.EEXIST, os.strerror(errno.EEXIST), row.file)

    def _name(self, row: Row, manifest: Manifest, taken: set[str]) -> str:
        if row.locked:
            return ""
        return str(free_place(self._incoming, safe_place(row.sender, manifest.path), taken))

    def _finish(self, rows: Sequence[tuple[Row, Manifest]]) -> list[Arrived]:
        if not rows:
            return []
        now = clock.now_ms()
        found = [
            _arrived(row, manifest, self._transfers.envelope_id(row), now) for row, manifest in rows
        ]

        def work(_: sqlite3.Connection) -> None:
            self._transfers.done(
                [(*row, one.line) for row, one in zip(rows, found, strict=True)], now
            )

        self._step(work, [one.line for one in found])
        self._drop_shared([row for row, _ in rows])
        return found

    def _refuse(self, row: Row, reason: str) -> None:
        self._hashes.pop(row.name, None)
        self._step(lambda _: self._transfers.refuse(row, reason), [])
        self._untouch(*row.name)
        with suppress(OSError):
            self.hidden.place(row).unlink(missing_ok=True)
        self._drop_shared([row])

    def _drop_shared(self, rows: Sequence[Row]) -> None:
        """Delete shared hidden files once their last file is complete."""
        for shared in {shared_of(row) for row in rows if row.shared}:
            if not self._transfers.shares(shared.transfer.hex()):
                with suppress(OSError):
                    self.hidden.place(shared).unlink(missing_ok=True)


def _arrived(row: Row, manifest: Manifest, envelope_id: bytes, now_ms: int) -> Arrived:
    """Return a complete file with the line that names it."""
    filename = "/".join(manifest.path)
    where = {"kept": f"{row.sender}/{row.transfer.hex()}"} if row.locked else {"file": row.file}
    content = {
        **where,
        "filename": filename,
        "size": manifest.size,
        "sha256": row.sha256.hex(),
        "content_type": manifest.content_type,
        "modified_at": timestamp(manifest.modified_at),
        "received_at": timestamp(now_ms),
    }
    if manifest.entries:
        content["files"] = [
            {"name": one.path, "size": one.size} for one in manifest.entries if one.size >= 0
        ]
    headers = orjson.loads(row.headers) if row.headers else None
    line = file_line(row.sender, line_id(envelope_id, row.message), row.sent_at, content, headers)
    return Arrived(row.sender, filename, row.file, manifest.size, line, as_message(row))
