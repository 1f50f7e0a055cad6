"""Copying a store: its contents as rows that do not depend on the database, for copies, backups and
restores.

A table is a name and its columns with their types: `8`, `4` and `2` are integers of that many
bytes, `t` is text, `b` bytes, `u` an id of 16 bytes, `T` a time in ms since 1970 (0: none).  Rows
are tuples in the order of the columns.  A row of `entries` includes columns that a database may
keep in another table; bodies come last, one row each.

Copies are compared by the number of rows and the digest of each table: the sum of the rows'
SHA-256, so the order does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import orjson

from cipherbox.errors import Damaged

Row = tuple[Any, ...]
OnProgress = Callable[[str, int], None]

TABLES: dict[str, str] = {
    "settings": "name:t value:b",
    "clients": "name:t role:t added_at:8 revoked_at:8 reason:t",
    "exchanges": "name:t type:2",
    "queues": (
        "queue_no:4 name:t owner:t readers:t depth:8 bytes:8 first:8 next:8 dropped:2 ttl_s:8 "
        "max_length:8"
    ),
    "bindings": "exchange:t queue:t routing_key:t",
    "grants": "client:t right:t resource:t",
    "envelopes": (
        "number:8 sender:t envelope_id:u generation:8 messages:4 envelope_hash:b exchange:t "
        "routing_key:t sealed_at:8 expires_at:8 accepted_at:T fan:4 bytes:8 commitment:b "
        "log_entry:8"
    ),
    "entries": (
        "queue_no:4 seq:8 number:8 accepted_at:T state:2 attempts:4 delivered_at:T "
        "acknowledged_at:T client:t bytes:8 fan:4 expires_at:8 sender:t envelope_id:u"
    ),
    "dead_letters": (
        "queue_no:4 seq:8 number:8 accepted_at:T at:8 reason:t by:t settled:t settled_at:8 "
        "settled_by:t"
    ),
    "senders": "sender:t highest:b",
    "usage": "sender:t queue:t bytes:8 envelopes:8",
    "client_limits": "client:t what:t most:8",
    "contacts": "client:t allowed:t blocked:t",
    "bundles": "client:t sequence:8 bundle_hash:b ciphertext:t nonce:t tag:t added_at:8 ends_at:8",
    "prekey_offers": "client:t signed:b",
    "prekeys": "client:t number:8 once:b",
    "enrolments": (
        "secret_hash:b client:t role:t approve:2 created_at:8 expires_at:8 state:t csr:b "
        "number:t chain:b replaces:2"
    ),
    "certificates": "serial:t client:t issued_at:8 expires_at:8 revoked_at:8 der:b",
    "old_log": "entry:8 at:8 head:b signature:b body:b",
    "log": "entry:8 at:8 record:b nodes:b incarnation:b body:b",
    "bodies": "number:8 pending:4 stored_hash:b data:b bytes:8 log_entry:8",
}
OWN_SETTINGS = ("epoch", "spool_id", "copying")  # of one database, not of its contents
COPYING = "copying"  # a setting that exists while a copy into this store is in progress
BATCH = 1000
BATCH_BYTES = 8 * 1024 * 1024


def columns(table: str) -> list[tuple[str, str]]:
    """Return the name and type of a table's columns."""
    return [
        (name, kind) for name, _, kind in (part.partition(":") for part in TABLES[table].split())
    ]


class Sum(NamedTuple):
    """The number of rows of a table, and their digest."""

    rows: int
    digest: str  # hexadecimal


class Source(Protocol):
    """A snapshot of a database: later changes are not visible in it."""

    # in batches; envelopes, entries and log in order
    def rows(self, table: str) -> Iterator[list[Row]]: ...

    def close(self) -> None: ...


class Sink(Protocol):
    """An empty store."""

    def fill(self, table: str, rows: Sequence[Row]) -> None: ...  # all or nothing


class _Adder:
    def __init__(self) -> None:
        self.rows, self._sum = 0, 0

    def add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            digest = hashlib.sha256()
            for value in row:
                raw = (
                    bytes(value)
                    if isinstance(value, bytes | bytearray | memoryview)
                    else orjson.dumps(value)
                )
                digest.update(len(raw).to_bytes(8, "big"))
                digest.update(raw)
            self._sum += int.from_bytes(digest.digest(), "big")
        self.rows += len(rows)

    @property
    def sum(self) -> Sum:
        return Sum(self.rows, (self._sum % (1 << 256)).to_bytes(32, "big").hex())


class NullSink:
    """A sink that discards all rows, for reading a source."""

    def fill(self, table: str, rows: Sequence[Row]) -> None:
        pass


def copy(
    source: Source, sink: Sink, on_progress: OnProgress = lambda _, __: None
) -> dict[str, Sum]:
    """Copy all tables and return their sums; raise Damaged if a body does not match its hash.

    ``on_progress(table, rows)`` is called after each batch.
    """
    sums = {}
    for table in TABLES:
        adder = _Adder()
        for rows in source.rows(table):
            if table == "bodies":
                _check_bodies(rows)
            adder.add(rows)
            sink.fill(table, rows)
            on_progress(table, adder.rows)
        sums[table] = adder.sum
    return sums


def sums_of(source: Source, on_progress: OnProgress = lambda _, __: None) -> dict[str, Sum]:
    """Return the sums of a store, verifying it as a copy does."""
    return copy(source, NullSink(), on_progress)


def _check_bodies(rows: Sequence[Row]) -> None:
    for number, _, stored_hash, data, *_ in rows:
        if data is None or hashlib.sha256(data).digest() != stored_hash:
            raise Damaged(f"the body of envelope number {number} is missing or damaged")


def batches(rows: Iterator[Row], weight: Callable[[Row], int] = lambda _: 0) -> Iterator[list[Row]]:
    """Yield rows in batches of at most `BATCH` rows and about `BATCH_BYTES`."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += weight(row)
        if len(batch) >= BATCH or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
