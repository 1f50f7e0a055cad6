"""PostgreSQL as the source and the target of a copy; see `cipherbox.store.copying`.

The source is one read-only transaction of the isolation level REPEATABLE READ: a snapshot, while HQ
continues to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from struct import Struct
from typing import Any

from cipherbox.store.copying import OWN_SETTINGS, TABLES, Row, batches, columns
from cipherbox.store.postgres import commit, schema
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.copy_binary import EPOCH_MS, micros, row_of, stream, text
from cipherbox.store.postgres.driver import PostgresConnection, quoted
from cipherbox.store.postgres.target import Target
from cipherbox.store.spool import Place, SpoolSnapshot

_INT = {"8": Struct(">q"), "4": Struct(">i"), "2": Struct(">h")}
_WAITING = (
    "SELECT d.queue_no, d.seq, d.number, d.accepted_at, d.state, d.attempts, d.delivered_at, "
    "CAST(NULL AS timestamptz), d.client, d.bytes, d.fan, d.expires_at, d.sender, d.envelope_id "
    "FROM entries d"
)
_DONE = (
    "SELECT d.queue_no, d.seq, d.number, d.accepted_at, CAST(2 AS smallint), d.attempts, "
    "d.delivered_at, d.acknowledged_at, d.client, e.bytes, e.fan, e.expires_at, e.sender, "
    "e.envelope_id FROM deliveries d JOIN envelopes e ON e.accepted_at = d.accepted_at AND "
    "e.number = d.number"
)
_BODIES = (
    "SELECT d.number, d.pending, d.stored_hash, d.data, d.bytes, d.log_entry, d.spool, d.at FROM "
    "bodies d"
)
_ENVELOPES = f"SELECT {', '.join('d.' + name for name, _ in columns('envelopes'))} FROM envelopes d"
# Large tables are read page by page, each beginning after the keys of the last row: (query, [(key,
# its column)]).
_PAGES: dict[str, list[tuple[str, list[tuple[str, int]]]]] = {
    "envelopes": [(_ENVELOPES, [("d.accepted_at", 10), ("d.number", 0)])],
    "entries": [
        (_WAITING, [("d.queue_no", 0), ("d.seq", 1)]),
        (_DONE, [("d.accepted_at", 3), ("d.number", 2), ("d.queue_no", 0), ("d.seq", 1)]),
    ],
    "old_log": [
        ("SELECT d.entry, d.at, d.head, d.signature, d.body FROM old_log d", [("d.entry", 0)])
    ],
    "log": [
        (
            "SELECT d.entry, d.at, d.record, d.nodes, d.incarnation, d.body FROM log d",
            [("d.entry", 0)],
        )
    ],
    "bodies": [(_BODIES, [("d.number", 0)])],
}
_PAGE_ROWS = {"bodies": 8, "log": 200, "old_log": 200}
_TIME = "TIMESTAMPTZ '2000-01-01 00:00:00+00' + {} * INTERVAL '1 microsecond'"
_DELIVERIES = (
    "deliveries (queue_no, seq, number, accepted_at, attempts, delivered_at, acknowledged_at, "
    "client)"
)
_OF_DELIVERY = (
    "queue_no",
    "seq",
    "number",
    "accepted_at",
    "attempts",
    "delivered_at",
    "acknowledged_at",
    "client",
)


class PostgresSource:
    """A snapshot of a PostgreSQL store."""

    def __init__(self, target: Target, directory: Path, *, still: bool = False) -> None:
        """Open a snapshot; HQ's ``directory`` holds the spool, which may contain large bodies.
        ``still``: nobody writes the store.
        """
        self._spool = SpoolSnapshot(directory, still=still)
        self._connection: PostgresConnection = Connector(target).writable()
        try:
            schema.prepare(self._connection, target, create=False, upgrade=False)
            self._connection.script(
                "RESET enable_seqscan; RESET enable_hashjoin; RESET enable_mergejoin"
            )
            self._connection.script(
                "SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0"
            )
            self._spool.take(self._begin, self._undo)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> list[str]:
        self._connection.script("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        named = self._connection.copy_out(
            "SELECT DISTINCT spool FROM bodies WHERE spool IS NOT NULL"
        )
        return [name.decode() for (name,) in named if name is not None]

    def _undo(self) -> None:
        self._connection.script("ROLLBACK")

    def rows(self, table: str) -> Iterator[list[Row]]:
        kinds = [kind for _, kind in columns(table)]
        if table == "bodies":
            kinds += ["t", "8"]
        found: Iterator[Row] = (
            tuple(_decoded(kind, field) for kind, field in zip(kinds, fields, strict=True))
            for fields in self._fetch(table)
        )
        if table == "settings":
            found = (row for row in found if row[0] not in OWN_SETTINGS)
        if table == "bodies":
            yield from batches(self._whole(found), lambda row: len(row[3] or b""))
        else:
            yield from batches(
                found, lambda row: len(row[-1]) if table in ("log", "old_log") else 0
            )

    def _fetch(self, table: str) -> Iterator[list[bytes | None]]:
        if table not in _PAGES:
            names = ", ".join(quoted(name) for name, _ in columns(table))
            yield from self._connection.copy_out(f"SELECT {names} FROM {table}")
            return
        most = _PAGE_ROWS.get(table, 10_000)
        for query, keys in _PAGES[table]:
            names, where = ", ".join(name for name, _ in keys), ""
            while True:
                rows = list(
                    self._connection.copy_out(f"{query}{where} ORDER BY {names} LIMIT {most}")
                )
                yield from rows
                if len(rows) < most:
                    break
                last = [_literal(name, rows[-1][at]) for name, at in keys]
                where = f" WHERE ({names}) > ({', '.join(last)})"

    def _whole(self, rows: Iterator[Row]) -> Iterator[Row]:
        for number, pending, stored_hash, data, size, log_entry, name, at in rows:
            raw = self._spool.read(Place(name, at), size) if name is not None else data
            yield number, pending, stored_hash, raw, size, log_entry

    def close(self) -> None:
        self._connection.close()
        self._spool.close()


def _literal(name: str, field: bytes | None) -> str:
    number = str(int.from_bytes(field or b"", "big", signed=True))
    return _TIME.format(number) if name.endswith("_at") else number


def _decoded(kind: str, field: bytes | None) -> Any:
    if kind == "T":
        return 0 if field is None else int.from_bytes(field, "big", signed=True) // 1000 + EPOCH_MS
    if field is None:
        return None
    if kind in _INT:
        return int.from_bytes(field, "big", signed=True)
    return field.decode() if kind == "t" else field


def _encoded(kind: str, value: Any) -> bytes | None:
    if kind == "T":
        return _INT["8"].pack(micros(value)) if value else None
    if kind in _INT:
        return _INT[kind].pack(value)
    return text(value) if kind == "t" else bytes(value)


def fill(connection: PostgresConnection, table: str, rows: Sequence[Row]) -> None:
    """Insert rows in the open transaction; all bodies go into the database."""
    names = [name for name, _ in columns(table)]
    kinds = dict(columns(table))
    if table == "entries":
        at = {name: n for n, name in enumerate(names)}
        done = [row for row in rows if row[at["state"]] == commit.ACKED]
        _copy(
            connection,
            _DELIVERIES,
            [[_encoded(kinds[n], row[at[n]]) for n in _OF_DELIVERY] for row in done],
        )
        rows = [row for row in rows if row[at["state"]] != commit.ACKED]
        names.remove("acknowledged_at")
        rows = [
            tuple(value for n, value in enumerate(row) if n != at["acknowledged_at"])
            for row in rows
        ]
    if table == "envelopes":
        connection.run(commit.RAISE_LAST_NUMBER, (max(row[0] for row in rows),))
    into = f"{table} ({', '.join(map(quoted, names))})"
    _copy(
        connection,
        into,
        [[_encoded(kinds[n], v) for n, v in zip(names, row, strict=True)] for row in rows],
    )


def empty(connection: PostgresConnection) -> None:
    """Delete everything but the database's own settings, in the open transaction."""
    names = [*(name for name in TABLES if name != "settings"), "deliveries"]
    connection.script(f"TRUNCATE {', '.join(names)}")
    own = ", ".join("?" * len(OWN_SETTINGS))
    connection.run(f"DELETE FROM settings WHERE name NOT IN ({own})", OWN_SETTINGS)


def months_of(table: str, rows: Sequence[Row]) -> set[int]:
    """Return the months that need partitions before these rows are inserted."""
    if table != "envelopes":
        return set()
    at = [name for name, _ in columns(table)].index("accepted_at")
    return {schema.month_of(row[at]) for row in rows}


def _copy(
    connection: PostgresConnection, into: str, rows: Sequence[Sequence[bytes | None]]
) -> None:
    if rows:
        connection.copy_in(into, stream([row_of(row) for row in rows]))
