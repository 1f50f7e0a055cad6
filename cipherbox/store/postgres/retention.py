"""Retention: delete what is old, in the commit's own transaction.

Records of envelopes are deleted by whole months: dropping a partition costs the same for ten rows
and for ten million.  So a record is kept up to a month longer than necessary.  Envelopes that still
wait move to the partition `other` first, and are deleted from there once they do not.  Dead letters
and entries of the signed log are deleted one by one, at most `MOST` in a commit.
"""

from __future__ import annotations

from cipherbox import clock
from cipherbox.broker.model import DISCARDED, Changes, Cutoffs
from cipherbox.errors import StoreUnavailable
from cipherbox.store import log_table as logtable
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.schema import PARTITIONED, ends_at_ms, month_of, months, name_of
from cipherbox.store.registry import upsert

MOST = 5000
BY = "retention"
LOCK_MS = 1500  # longer than PostgreSQL waits before it calls off its own vacuuming
OLD_DEAD = (
    "SELECT queue_no, seq, number FROM dead_letters WHERE settled = '' AND at < ? ORDER BY "
    "queue_no, seq LIMIT ?"
)
# Envelopes that must be kept: those that wait, and open dead letters.
_OPEN = (
    "SELECT d.number FROM entries d WHERE d.accepted_at < to_timestamp(CAST(? AS bigint) / "
    "1000.0) AND (d.state < 3 OR EXISTS (SELECT 1 FROM dead_letters x WHERE x.queue_no = "
    "d.queue_no AND x.seq = d.seq AND x.settled = ''))"
)
_OLD_OTHER = (
    "SELECT e.number FROM envelopes_other e WHERE e.accepted_at < to_timestamp(CAST(? AS "
    f"bigint) / 1000.0) AND e.number NOT IN ({_OPEN}) LIMIT ?"
)


def drop_dead_letters(connection: PostgresConnection, changes: Changes, cutoffs: Cutoffs) -> None:
    """Discard old dead letters, and delete their bodies with the others of this commit."""
    if not cutoffs.dead_letters:
        return
    rows = connection.run(
        "SELECT x.queue_no, x.seq, d.number, d.fan, EXISTS (SELECT 1 FROM entries y WHERE "
        "y.number = d.number AND y.queue_no = d.queue_no AND y.seq > d.seq) OR EXISTS (SELECT 1 "
        "FROM deliveries y WHERE y.accepted_at = d.accepted_at AND y.number = d.number AND "
        f"y.queue_no = d.queue_no AND y.seq > d.seq) FROM ({OLD_DEAD}) x JOIN entries d ON "
        "d.queue_no = x.queue_no AND d.seq = x.seq",
        (cutoffs.dead_letters, MOST),
    )
    for queue_no, seq, number, references, superseded in rows:
        connection.run(
            "UPDATE dead_letters SET settled = ?, settled_at = ?, settled_by = ? WHERE queue_no "
            "= ? AND seq = ?",
            (DISCARDED, cutoffs.dead_letters, BY, queue_no, seq),
        )
        # otherwise a later generation or a redriven entry needs the body
        if not superseded:
            (changes.finished if references == 1 else changes.released).append(number)


def drop_records(connection: PostgresConnection, cutoffs: Cutoffs) -> None:
    """Delete metadata and log entries older than their retention."""
    if cutoffs.metadata:
        old = old_months(connection, cutoffs.metadata)
        if old and _locked(connection):
            for month in old:
                _drop_month(connection, month)
        rows = connection.run(_OLD_OTHER, (cutoffs.metadata, cutoffs.metadata, MOST))
        if rows:
            numbers = [number for (number,) in rows]
            for table in ("dead_letters", "entries", "deliveries_other", "envelopes_other"):
                connection.run(
                    f"DELETE FROM {table} WHERE number = ANY(CAST(? AS bigint[]))", (numbers,)
                )
    if cutoffs.log:
        first = str(logtable.drop_old(connection.run, cutoffs.log, MOST)).encode()
        connection.run(upsert("settings", ("name", "value")), (logtable.FIRST, first))


def old_months(connection: PostgresConnection, cutoff: int) -> list[int]:
    """Return the months before the cutoff, never this one or later ones, which get new rows."""
    now = month_of(clock.now_ms())
    return [month for month in months(connection) if ends_at_ms(month) <= cutoff and month < now]


def _locked(connection: PostgresConnection) -> bool:
    """Lock the tables to drop partitions; return False if another program's query blocks that: it
    must not block HQ.
    """
    connection.script("SAVEPOINT months")
    try:
        connection.script(
            f"SET LOCAL lock_timeout = {LOCK_MS}; LOCK TABLE {', '.join(PARTITIONED)}"
        )
    except StoreUnavailable:
        if connection.broken:
            raise
        connection.script("ROLLBACK TO SAVEPOINT months")
        return False
    return True


def _drop_month(connection: PostgresConnection, month: int) -> None:
    end = ends_at_ms(month)
    numbers = sorted({number for (number,) in connection.run(_OPEN, (end,))})
    for table in PARTITIONED:
        part = name_of(table, month)
        connection.script(f"ALTER TABLE {table} DETACH PARTITION {part}")
        if numbers:
            connection.script(
                f"INSERT INTO {table} SELECT * FROM {part} WHERE number = "
                f"ANY('{{{','.join(map(str, numbers))}}}')"
            )
        connection.script(f"DROP TABLE {part}")
    for table in ("dead_letters", "entries"):
        connection.run(
            f"DELETE FROM {table} WHERE accepted_at < to_timestamp(CAST(? AS bigint) / 1000.0) "
            "AND number <> ALL(CAST(? AS bigint[]))",
            (end, numbers),
        )


def oldest(connection: PostgresConnection, cutoffs: Cutoffs) -> Cutoffs:
    """Return the time of the oldest record of each kind that would be deleted; 0: none.

    A month is deleted as a whole, so its records are as old as its end.
    """
    found, dead = [], 0
    if cutoffs.metadata:
        found = [ends_at_ms(month) for month in old_months(connection, cutoffs.metadata)[:1]]
        rows = connection.run(
            "SELECT CAST(extract(epoch FROM accepted_at) * 1000 AS bigint) FROM envelopes_other "
            f"WHERE number IN ({_OLD_OTHER}) LIMIT 1",
            (cutoffs.metadata, cutoffs.metadata, 1),
        )
        found += [at for (at,) in rows]
    if cutoffs.dead_letters:
        query = "SELECT coalesce(min(at), 0) FROM dead_letters WHERE settled = '' AND at < ?"
        ((dead,),) = connection.run(query, (cutoffs.dead_letters,))
    log = logtable.oldest(connection.run, cutoffs.log) if cutoffs.log else 0
    return Cutoffs(min(found, default=0), dead, log)
