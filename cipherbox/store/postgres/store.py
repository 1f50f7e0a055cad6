"""The PostgreSQL store: one writing session, a pool of reading ones, and the lease.

A commit is one transaction that begins with the fence (`lease`).  If its COMMIT gets no answer, the
store reconnects and checks whether it took effect: the caller gets the actual outcome, or
`StoreUnavailable` if the server cannot be queried.  A warning in answer to a COMMIT counts as no
answer: it means that no standby has confirmed it.

If the primary has fewer commits than were confirmed to this process (a lagging standby was
promoted), the store begins a new incarnation, and clients resend what may be missing.
"""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from cipherbox import clock
from cipherbox.broker.model import Changes, Cutoffs, Facts, Incoming, RequiredFacts, Snapshot
from cipherbox.errors import Busy, CipherBoxError, Fenced, StoreError, StoreLeased, StoreUnavailable
from cipherbox.limits import LIMITS, Limits
from cipherbox.portable import private_dir, write_private
from cipherbox.store.copying import Row
from cipherbox.store.files import Files
from cipherbox.store.port import INCARNATION, Acceptance, Body, Standby, TraceReport
from cipherbox.store.postgres import commit, copying, lease, queries, retention, schema
from cipherbox.store.postgres.commit import QueueNumbers
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.pool import ReaderPool
from cipherbox.store.postgres.target import Target
from cipherbox.store.registry import Registry, upsert
from cipherbox.store.spool import NAME, Place, Spool
from cipherbox.store.waiting import WaitingSession

SPOOL, SPOOL_ID = "spool", "spool_id"
ANSWER_S = 8.0  # to find out the outcome of a commit without an answer
_PAUSE_S = 0.2
MONTHS_S = 3600.0  # period of creating partitions ahead
_SKIP_S = 600.0  # pause of retention after it did not get its locks
T = TypeVar("T")


class PostgresStore(Registry):
    """The port's methods, on PostgreSQL."""

    def __init__(
        self,
        target: Target,
        directory: Path,
        *,
        create: bool = False,
        upgrade: bool = False,
        force: bool = False,
        files: Files | None = None,
        limits: Limits = LIMITS,
        waiting: WaitingSession | None = None,
    ) -> None:
        """Open the store; raise StoreLeased while another HQ has the lease, unless ``force``: then
        ``waiting`` keeps the session, named as a standby's.
        """
        self._connector = Connector(target)
        self.target = target
        self.readers = max(1, target.pool_size - 1)
        self._name = f"{socket.gethostname()}/{os.getpid()}/{secrets.token_hex(4)}"
        self._pool = ReaderPool(self._connect)
        self._spool_from = limits.spool_from_bytes
        self._months_at, self._months = 0.0, set[int]()
        self.synced_s = 0.0
        self._skip_until = 0.0
        self._lost_commits = False  # the server is behind what was read from it: load first
        self._pause = threading.Event()  # never set: waits out a pause
        self._numbers: QueueNumbers | None = None
        self._inside: PostgresConnection | None = None  # the session of the open transaction
        self.epoch = self._commits = 0
        self._connection: PostgresConnection | None = self._connector.writable()
        try:
            if upgrade:
                _refuse_if_in_use(self._connection, target)
            schema.prepare(self._connection, target, create=create, upgrade=upgrade)
            try:
                self.epoch, self._commits = lease.take(
                    self._connection, self._name, 0, force=force, waiting=waiting
                )
            except StoreUnavailable as error:
                if lease.stand_by(self._connection, self._name, waiting):
                    self._connection = None
                raise StoreLeased(str(error)) from None
            self._spool = self._open_spool(directory, files or Files())
            self._keep_months(self._connection)
        except BaseException:
            if self._connection is not None:
                lease.give_up(self._connection, self.epoch)
            raise

    def _queue_numbers(self, connection: PostgresConnection) -> QueueNumbers:
        if self._numbers is None:
            self._numbers = QueueNumbers(connection)
        return self._numbers

    def _open_spool(self, directory: Path, files: Files) -> Spool | None:
        """Return the spool that belongs to this database, if it has or will have bodies there."""
        named = {
            name
            for (name,) in self._rows("SELECT DISTINCT spool FROM bodies WHERE spool IS NOT NULL")
        }
        if self.target.bodies != "spool" and not named:
            return None
        known, mark = self.get_setting(SPOOL_ID), directory / SPOOL / "id"
        here = mark.read_bytes() if mark.exists() else None
        if named and known != here:
            raise StoreError(
                "large bodies of this database are in the spool of another machine, not in "
                f"{directory / SPOOL}",
                remedy="run HQ there, or copy that directory here",
            )
        private_dir(directory)
        spool = Spool(directory / SPOOL, files, self.epoch)
        if here is None or known != here:
            here = secrets.token_hex(16).encode()
            write_private(mark, here)
            self.put_setting(SPOOL_ID, here)
        spool.sweep(named)
        return spool

    # -- sessions ----------------------------------------------------------------------------------

    def _writer(self) -> PostgresConnection:
        """Return the writing session; open a new one if it broke."""
        if self._connection is None or self._connection.broken:
            if self._connection is not None:
                self._connection.close()
            connection = self._connect()
            try:
                self._resume(connection)
            except BaseException:
                connection.close()
                raise
            self._pool.close()
            self._connection = connection
        return self._connection

    def _connect(self) -> PostgresConnection:
        """Open another session at the primary; treat misconfiguration as transient: it was right
        before, so somebody is changing it.
        """
        try:
            return self._connector.writable()
        except StoreError as error:
            raise StoreUnavailable(str(error)) from error

    def _resume(self, connection: PostgresConnection) -> None:
        """Continue the lease in a new session; begin a new incarnation if commits are lost."""
        found = lease.current(connection)
        if found.epoch > self.epoch or (found.epoch == self.epoch and found.name != self._name):
            raise Fenced
        # A server with an older epoch has lost even the opening of this store.
        commits = (
            lease.resume(connection, self._name, self.epoch) if found.epoch == self.epoch else -1
        )
        if commits < self._commits:
            self.epoch, self._commits = lease.take(connection, self._name, self.epoch, force=True)
            connection.run(
                upsert("settings", ("name", "value")), (INCARNATION, secrets.token_bytes(16))
            )
            self._lost_commits = True
        else:
            self._commits = commits

    def _read(self, work: Callable[[PostgresConnection], T]) -> T:
        """Read over the writing session, which sees its own commits; retry once over a new one if
        it broke.
        """
        connection = self._writer()
        try:
            return work(connection)
        except StoreUnavailable:
            if not connection.broken:
                raise
        return work(self._writer())

    # -- reads -------------------------------------------------------------------------------------

    def load(self, head: int) -> Snapshot:
        def work(connection: PostgresConnection) -> Snapshot:
            # a commit, so that what is loaded is as durable as what is confirmed
            lease.renew(connection, self.epoch)
            self._numbers = None
            snapshot = queries.load(connection, head)
            self._lost_commits = False
            return snapshot

        return self._read(work)

    def facts(self, wanted: RequiredFacts, page: int) -> Facts:
        return self._read(
            lambda connection: queries.facts(
                connection, self._queue_numbers(connection), wanted, page
            )
        )

    def read_bodies(self, numbers: Sequence[int]) -> list[Body | None]:
        with self._pool.reader() as connection:
            return queries.read_bodies(connection, self._from_spool, numbers)

    def _from_spool(self, place: Place, size: int) -> bytes | None:
        good = (
            self._spool is not None and NAME.fullmatch(place.name) and place.at >= 0 and size >= 0
        )
        return self._spool.read(place, size) if good else None  # type: ignore[union-attr]

    def trace(self, sender: str, envelope_id: bytes) -> TraceReport | None:
        return self._read(lambda connection: queries.trace(connection, sender, envelope_id))

    def dead_letters(
        self, queue: str, after: str, most: int, include_closed: bool
    ) -> tuple[list[dict[str, object]], str]:
        return self._read(
            lambda connection: queries.dead_letters(connection, queue, after, most, include_closed)
        )

    def acceptance(self, sender: str, envelope_id: bytes) -> Acceptance | None:
        query = (
            "SELECT generation, CAST(extract(epoch FROM accepted_at) * 1000 AS bigint), "
            "envelope_hash, log_entry FROM envelopes WHERE envelope_id = CAST(? AS uuid) AND "
            "sender = ?"
        )
        rows = self._rows(query, (envelope_id.hex(), sender))
        return Acceptance(rows[0][0], rows[0][1], bytes(rows[0][2]), rows[0][3]) if rows else None

    def retention_due(self, cutoffs: Cutoffs) -> Cutoffs | None:
        if time.monotonic() < self._skip_until:
            return None
        return cutoffs.narrowed(self._read(lambda c: retention.oldest(c, cutoffs)))

    def free_bytes(self) -> int:
        return LIMITS.disk_resume_bytes * 1024  # only the server knows; it reports a full disk

    def room(self, size_bytes: int) -> bool:
        return True

    # -- writes ------------------------------------------------------------------------------------

    def commit(self, changes: Changes, epoch: int) -> None:
        if epoch != self.epoch:
            raise Fenced
        self._check_incarnation()
        places = self._to_spool(changes)
        try:
            dropped = self._write_once(
                lambda connection: commit.write(
                    connection, changes, self._queue_numbers(connection), places
                )
            )
        except BaseException:
            self._numbers = None  # some may not exist
            raise
        if dropped and self._spool is not None:
            self._spool.delete(dropped)
        if changes.retention is not None:
            self._delay_retention(changes.retention)

    def _delay_retention(self, cutoffs: Cutoffs) -> None:
        """Pause retention if it left months that other programs are reading; ignore errors, since
        the commit is done.
        """
        with suppress(Busy):
            if self._read(lambda connection: retention.old_months(connection, cutoffs.metadata)):
                self._skip_until = time.monotonic() + _SKIP_S

    def _check_incarnation(self) -> None:
        if self._lost_commits:
            raise StoreUnavailable(
                "PostgreSQL lost commits that it had confirmed; HQ reloads its state"
            )

    def _to_spool(self, changes: Changes) -> dict[tuple[int, int], Place]:
        if self._spool is None or self.target.bodies != "spool":
            return {}
        large: list[tuple[int, Incoming]] = [
            (e.number, e.incoming) for e in changes.envelopes
        ] + changes.replaced
        large = [(number, i) for number, i in large if i.size >= self._spool_from]
        try:
            places = self._spool.write([i.body for _, i in large])  # type: ignore[misc]
        except OSError as error:
            raise StoreUnavailable(f"the spool is not available: {error.strerror}") from error
        return {
            (number, i.generation): place for (number, i), place in zip(large, places, strict=True)
        }

    def _write_once(self, work: Callable[[PostgresConnection], T]) -> T:
        """Run one transaction; return its result once it is known to be committed."""
        connection, number = self._begin()
        if self._lost_commits:
            self._roll_back(connection)
            self._check_incarnation()
        self._inside = connection
        try:
            result = work(connection)
        except BaseException:
            self._roll_back(connection)
            raise
        finally:
            self._inside = None
        began = time.perf_counter()
        try:
            connection.end_transaction("COMMIT")
        except StoreUnavailable:
            if not connection.broken:
                raise  # the server refused it
            connection.close()
            if not self._took_effect(number):
                raise
        finally:
            self.synced_s += time.perf_counter() - began
        self._commits = number
        return result

    def _begin(self) -> tuple[PostgresConnection, int]:
        """Begin a transaction; retry once if the session broke since its last use."""
        connection = self._writer()
        try:
            return connection, lease.begin(connection, self.epoch)
        except StoreUnavailable:
            if not connection.broken:
                raise
        connection = self._writer()
        return connection, lease.begin(connection, self.epoch)

    def _roll_back(self, connection: PostgresConnection) -> None:
        if not connection.broken:
            with suppress(CipherBoxError):
                connection.script("ROLLBACK")
                return
        connection.close()

    def _took_effect(self, number: int) -> bool:
        """Return whether a COMMIT without an answer took effect; raise StoreUnavailable if that
        could not be found out in time.
        """
        deadline = time.monotonic() + ANSWER_S
        epoch = self.epoch
        while True:
            try:
                self._writer()
                return self._commits >= number and self.epoch == epoch
            except Busy:
                if time.monotonic() > deadline:
                    raise
            self._pause.wait(_PAUSE_S)

    def _write(self, work: Callable[[], T]) -> T:
        return self._write_once(lambda _: work())

    def _rows(self, statement: str, values: Sequence[Any] = ()) -> list[Any]:
        if self._inside is not None:
            return self._inside.run(statement, values)
        return self._read(lambda connection: connection.run(statement, values))

    def fill(self, table: str, rows: Sequence[Row]) -> None:
        """Insert rows of a copy, as a `copying.Sink`."""
        for month in sorted(copying.months_of(table, rows) - self._months):
            schema.make_month(self._writer(), month)
            self._months.add(month)
        self._write_once(lambda connection: copying.fill(connection, table, rows))

    def empty(self) -> None:
        self._numbers = None
        self._write_once(copying.empty)

    def renew(self) -> None:
        connection = self._writer()
        lease.renew(connection, self.epoch)
        if time.monotonic() > self._months_at:
            with suppress(StoreError, Busy):
                self._keep_months(connection)

    def database_ms(self) -> int:
        return self._read(lease.server_ms)

    def standbys(self) -> list[Standby]:
        return self._read(lease.standbys)

    def _keep_months(self, connection: PostgresConnection) -> None:
        self._months_at = time.monotonic() + MONTHS_S
        schema.keep_months(connection, clock.now_ms())

    def close(self) -> None:
        self._pool.close()
        if self._connection is not None:
            lease.give_up(self._connection, self.epoch)


def _refuse_if_in_use(connection: PostgresConnection, target: Target) -> None:
    """Raise StoreLeased if an HQ runs on this database."""
    if schema.version_of(connection, target.schema) and lease.current(connection).alive:
        raise StoreLeased(
            "another HQ is running on this database", remedy="stop it before the upgrade"
        )
