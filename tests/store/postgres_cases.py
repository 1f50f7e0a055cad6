"""Small helpers of the tests of PostgreSQL's faults."""

from __future__ import annotations

from cipherbox.store.postgres.store import PostgresStore
from tests.store.suite import bodies_of


def bodies(store: PostgresStore, *numbers: int) -> list[bytes | None]:
    return bodies_of(store, numbers)


def store_pid(store: PostgresStore) -> int:
    assert store._connection is not None
    found: int = store._connection._db.run("SELECT pg_backend_pid()")[0][0]
    return found
