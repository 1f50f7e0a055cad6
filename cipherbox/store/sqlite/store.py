"""The SQLite store: the port's rules over one connection, the spool, and a reserve on the disk.

The order of a commit: room is checked, large bodies go to the spool and are synced, then one transaction writes the
rows, then the files that it dropped are deleted.  The reserve is a file that occupies space; when the disk is full it
is given up, so that acks and deletes still commit, and made again when there is room.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox.broker.model import Changes, Facts, Incoming, Snapshot, Wanted
from cipherbox.errors import DiskFull, Fenced, StoreUnavailable
from cipherbox.limits import LIMITS, Limits
from cipherbox.store.files import Files
from cipherbox.store.port import TraceReport
from cipherbox.store.spool import Spool
from cipherbox.store.sqlite import commit, database, queries
from cipherbox.store.sqlite.commit import QueueNumbers
from cipherbox.store.sqlite.registry import Registry

DATABASE, SPOOL, RESERVE = "cipherbox.sqlite3", "spool", "reserve"
_OVERHEAD = 4096  # bytes of rows and pages that an envelope costs beside its own, at most


class SqliteStore(Registry):
    """See the port for what each method promises."""

    def __init__(self, directory: Path, *, create: bool, files: Files, limits: Limits) -> None:
        self._directory = directory
        self._files = files
        self._limits = limits
        self._reserve = directory / RESERVE
        self.db = database.connect(directory / DATABASE, create=create)
        with database.translated():
            self._spool = Spool(directory / SPOOL, files)
            named = {row[0] for row in self.db.execute("SELECT spool FROM bodies WHERE spool IS NOT NULL")}
            self._spool.sweep(named)
            self._numbers = QueueNumbers(self.db)
        self._make_reserve()
        self.epoch = int(self.get_setting("epoch") or b"0") + 1
        self.put_setting("epoch", str(self.epoch).encode())

    def load(self, head: int) -> Snapshot:
        with database.translated():
            self._numbers = QueueNumbers(self.db)
            return queries.load(self.db, head)

    def facts(self, wanted: Wanted, page: int) -> Facts:
        with database.translated():
            return queries.facts(self.db, self._numbers, wanted, page)

    def read_bodies(self, numbers: Sequence[int]) -> list[bytes | None]:
        with database.translated():
            return queries.read_bodies(self.db, self._spool, numbers)

    def trace(self, sender: str, envelope_id: bytes) -> TraceReport | None:
        with database.translated():
            return queries.trace(self.db, sender, envelope_id)

    def free_bytes(self) -> int:
        return self._files.free_bytes(self._directory)

    def room(self, size_bytes: int) -> bool:
        """Twice the bytes: they go through the log and into the database.  Without a reserve there is no room."""
        if not self._reserve.exists():
            self._make_reserve()
        return self._reserve.exists() and self.free_bytes() >= 2 * size_bytes + self._limits.disk_reserve_bytes // 8

    def commit(self, changes: Changes, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced
        if changes.envelopes or changes.replaced:
            self._check_room(changes)
            self._commit(changes)
            return
        try:
            self._commit(changes)
        except DiskFull:
            self._files.delete(self._reserve)
            self._commit(changes)

    def _check_room(self, changes: Changes) -> None:
        need = sum(e.incoming.size + _OVERHEAD for e in changes.envelopes)
        need += sum(i.size + _OVERHEAD for _, i in changes.replaced)
        if not self.room(need):
            raise DiskFull("the disk is full; nothing new is taken until there is room")

    def _make_reserve(self) -> None:
        """Only with room to spare: a reserve that takes the last bytes would cause what it guards against."""
        size = self._limits.disk_reserve_bytes
        if self._reserve.exists() and self._reserve.stat().st_size == size:
            return
        if self.free_bytes() > 2 * size:
            try:
                self._files.allocate(self._reserve, size)
            except OSError:
                with suppress(OSError):
                    self._files.delete(self._reserve)

    def _commit(self, changes: Changes) -> None:
        large: list[tuple[int, Incoming]] = [(e.number, e.incoming) for e in changes.envelopes]
        large = [(n, i) for n, i in large + changes.replaced if i.size >= self._limits.spool_from_bytes]
        try:
            names = self._spool.write((n, i.generation, i.body) for n, i in large)  # type: ignore[misc]
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"the disk of the spool is full: {error.strerror}") from error
            raise StoreUnavailable(f"the spool cannot be written: {error.strerror}") from error
        spooled = {(n, i.generation): name for (n, i), name in zip(large, names, strict=True)}
        try:
            with database.transaction(self.db):
                self._check_epoch()
                dropped = commit.write(self.db, changes, self._numbers, spooled)
        except BaseException:
            with database.translated():
                self._numbers = QueueNumbers(self.db)
            raise
        self._spool.delete(dropped)

    def _check_epoch(self) -> None:
        row = self.db.execute("SELECT value FROM settings WHERE name = 'epoch'").fetchone()
        if row is None or int(row[0]) != self.epoch:
            raise Fenced

    def close(self) -> None:
        self.db.close()


def open_store(
    directory: Path, *, create: bool = False, files: Files | None = None, limits: Limits = LIMITS
) -> SqliteStore:
    """Opens the store in HQ's data directory; ``create`` makes it.  The caller holds the directory's lock."""
    return SqliteStore(directory, create=create, files=files or Files(), limits=limits)
