"""The SQLite store: one connection, the spool, and the reserve.  Bodies are read over a second
connection, which sees the last commit and never waits for one.

A commit checks for room, writes large bodies to the spool and syncs them, writes the rows in one
transaction, then frees the files of deleted bodies.  A failed commit deletes its spool files,
unless its COMMIT failed: it may have taken effect, so the next start decides about the files.

Every write checks in its transaction that the epoch is still this store's.  A write without new
envelopes that finds the disk full releases the reserve and is retried once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cipherbox.broker.model import Changes, Cutoffs, Facts, Incoming, RequiredFacts, Snapshot
from cipherbox.errors import CipherBoxError, DiskFull, Fenced, StoreUnavailable
from cipherbox.limits import LIMITS, Limits
from cipherbox.store.copying import Row
from cipherbox.store.files import Files
from cipherbox.store.port import Acceptance, Body, Standby, TraceReport
from cipherbox.store.registry import Registry
from cipherbox.store.reserve import PLENTY_BYTES, Reserve
from cipherbox.store.rows import number_of
from cipherbox.store.spool import Spool
from cipherbox.store.sqlite import commit, copying, database, queries, retention
from cipherbox.store.sqlite.commit import QueueNumbers

DATABASE, SPOOL, RESERVE = "cipherbox.sqlite3", "spool", "reserve"
_WORTH_SHRINKING = 4 * 1024 * 1024  # bytes of empty pages
_ROW_BYTES = 4096  # most that an envelope's rows take besides its own bytes
T = TypeVar("T")


class SqliteStore(Registry):
    """The port's methods, on SQLite."""

    readers = 1
    synced_s = 0.0

    def __init__(
        self, directory: Path, *, create: bool, files: Files, limits: Limits, name: str = DATABASE
    ) -> None:
        self._files = files
        self._spool_from = limits.spool_from_bytes
        self._reserve = Reserve(
            directory / RESERVE,
            limits.disk_reserve_bytes,
            files,
            resume=limits.disk_resume_bytes,
        )
        with database.translated():
            if self._reserve.low():
                self._reserve.release()  # opening needs some space
        self.db = database.connect(directory / name, create=create, files=files)
        try:
            self.epoch = 0
            self.epoch = self._write(self._next_epoch)
            with database.translated():
                self._spool = Spool(directory / SPOOL, files, self.epoch)
                named = self.db.execute(
                    "SELECT DISTINCT spool FROM bodies WHERE spool IS NOT NULL"
                ).fetchall()
                self._spool.sweep({name for (name,) in named})
                self._numbers = QueueNumbers(self.db)
                self._reserve.make()
            self._bodies_db = database.connect_reader(directory / name)
        except BaseException:
            self.db.close()
            raise

    def load(self, head: int) -> Snapshot:
        with database.translated():
            database.roll_back(self.db)
            self._numbers = QueueNumbers(self.db)
            return queries.load(self.db, head)

    def facts(self, wanted: RequiredFacts, page: int) -> Facts:
        with database.translated():
            return queries.facts(self.db, self._numbers, wanted, page)

    def read_bodies(self, numbers: Sequence[int]) -> list[Body | None]:
        with database.translated():
            return queries.read_bodies(self._bodies_db, self._spool, numbers)

    def trace(self, sender: str, envelope_id: bytes) -> TraceReport | None:
        with database.translated():
            return queries.trace(self.db, sender, envelope_id)

    def acceptance(self, sender: str, envelope_id: bytes) -> Acceptance | None:
        columns = "generation, accepted_at, envelope_hash, log_entry"
        query = f"SELECT {columns} FROM envelopes WHERE envelope_id = ? AND sender = ?"
        rows = self._rows(query, (envelope_id, sender))
        return Acceptance(*rows[0]) if rows else None

    def retention_due(self, cutoffs: Cutoffs) -> Cutoffs | None:
        with database.translated():
            return cutoffs.narrowed(retention.oldest(self.db, cutoffs))

    def dead_letters(
        self, queue: str, after: str, most: int, include_closed: bool
    ) -> tuple[list[dict[str, object]], str]:
        with database.translated():
            return queries.dead_letters(self.db, queue, after, most, include_closed)

    def free_bytes(self) -> int:
        with database.translated():
            return self._reserve.free_bytes()

    def room(self, size_bytes: int) -> bool:
        with database.translated():
            spare = database.spare_bytes(self.db)
            if not self._reserve.room(size_bytes, spare):
                self._spool.drop_spares()
            while not self._reserve.room(size_bytes, spare):
                before, spare = spare, self._shrunk(spare)
                if spare >= before:
                    self._reserve.refuse()
                    return False
            return True

    def _shrunk(self, spare_bytes: int) -> int:
        """Return empty pages to a full disk; return the size of those that remain."""
        if spare_bytes < _WORTH_SHRINKING:
            return spare_bytes
        with suppress(DiskFull):
            database.shrink(self.db)
        return database.spare_bytes(self.db)

    def commit(self, changes: Changes, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced
        try:
            if changes.envelopes or changes.replaced:
                self._commit_new(changes)
            else:
                dropped = self._write(lambda: commit.write(self.db, changes, self._numbers, {}))
                self._free(dropped)
        except BaseException:
            self._reserve.forget()
            # if this fails, too, `load` does it
            with suppress(CipherBoxError), database.translated():
                self._numbers = QueueNumbers(self.db)
            raise

    def _commit_new(self, changes: Changes) -> None:
        sizes = [e[3].size for e in changes.envelopes] + [i.size for _, i in changes.replaced]
        need = sum(sizes) + len(sizes) * _ROW_BYTES
        with database.translated():
            plenty = self._reserve.plenty(need)
        if not plenty and not self.room(need):
            raise DiskFull("HQ's disk is full; no new envelopes are accepted until it has room")
        self._reserve.spend(need)
        large: list[tuple[int, Incoming]] = []
        if max(sizes) >= self._spool_from:
            large = [(e.number, e.incoming) for e in changes.envelopes] + changes.replaced
            large = [(number, i) for number, i in large if i.size >= self._spool_from]
        began = time.perf_counter()
        with database.translated():
            places = self._spool.write([i.body for _, i in large])  # type: ignore[misc]
        if large:
            self.synced_s += time.perf_counter() - began
        spooled = {
            (number, i.generation): place for (number, i), place in zip(large, places, strict=True)
        }
        progress = None
        try:
            with database.transaction(self.db) as progress:
                self._check_epoch()
                dropped = commit.write(self.db, changes, self._numbers, spooled)
        except BaseException as error:
            if progress is None or not progress.ending or isinstance(error, DiskFull):
                self._spool.delete({place.name for place in places})
            raise
        self.synced_s += progress.sync_s
        self._free(dropped)

    def _free(self, files: list[str]) -> None:
        """Free spool files; they are spares only while the disk has plenty of space."""
        self._spool.free(files)
        with suppress(OSError):  # the commit is done
            if files and self._reserve.free_bytes() < PLENTY_BYTES:
                self._spool.drop_spares()

    def _write(self, work: Callable[[], T]) -> T:
        try:
            return self._write_once(work)
        except (DiskFull, StoreUnavailable) as error:
            with database.translated():
                if not isinstance(error, DiskFull) and not self._reserve.low():
                    raise
                self._reserve.release()
                self._numbers = QueueNumbers(self.db)
        return self._write_once(work)

    def _write_once(self, work: Callable[[], T]) -> T:
        with database.transaction(self.db) as progress:
            self._check_epoch()
            done = work()
        self.synced_s += progress.sync_s
        return done

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        with database.translated():
            return self.db.execute(statement, values).fetchall()

    def _stored_epoch(self) -> int:
        row = self.db.execute("SELECT value FROM settings WHERE name = 'epoch'").fetchone()
        return number_of("epoch", row[0] if row else None)

    def _check_epoch(self) -> None:
        if self.epoch and self._stored_epoch() != self.epoch:
            raise Fenced

    def _next_epoch(self) -> int:
        epoch = self._stored_epoch() + 1
        self.db.execute(
            "INSERT OR REPLACE INTO settings VALUES ('epoch', ?)", (str(epoch).encode(),)
        )
        return epoch

    def fill(self, table: str, rows: Sequence[Row]) -> None:
        """Insert rows of a copy, as a `copying.Sink`."""
        self._write(lambda: copying.fill(self.db, table, rows, self._spool, self._spool_from))

    def empty(self) -> None:
        self._write(lambda: copying.empty(self.db))
        self._numbers = QueueNumbers(self.db)
        with database.translated():
            self._spool.sweep(set())

    def renew(self) -> None:
        """Delete spares that were not used; the data directory's lock needs no renewal."""
        self._spool.drop_spares(time.monotonic())

    def database_ms(self) -> int:
        """Return 0: this machine's clock is the only one."""
        return 0

    def standbys(self) -> list[Standby]:
        """Return no HQ: the data directory's lock lets none wait."""
        return []

    def close(self) -> None:
        self._spool.drop_spares()
        self._bodies_db.close()
        self.db.close()


def open_store(
    directory: Path,
    *,
    create: bool = False,
    files: Files | None = None,
    limits: Limits = LIMITS,
    kind: type[SqliteStore] = SqliteStore,
    name: str = DATABASE,
) -> SqliteStore:
    """Open or ``create`` the store in ``directory``; the caller holds the data directory's lock."""
    return kind(directory, create=create, files=files or Files(), limits=limits, name=name)
