"""Inspect PostgreSQL without changing it, also while an HQ writes to it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from cipherbox import clock
from cipherbox.store.port import TIMES, Standby
from cipherbox.store.postgres import lease, schema
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.target import Target


class Inspection(NamedTuple):
    where: str
    version: str
    schema: int | None  # its version; None: it contains no HQ
    holder: str  # the HQ with the lease; empty: none
    ms: float  # duration of one round trip
    clock_s: float  # how far its clock is ahead of this one
    newest_at: int = 0  # of the signed log, ms since 1970; 0: it has no entry
    times: dict[str, bytes] = {}  # noqa: RUF012  # the settings about time: `port.TIMES`
    standbys: Sequence[Standby] = ()  # which wait for the lease


def inspect_store(target: Target) -> Inspection:
    """Return what was found; raise StoreError or StoreUnavailable if the server cannot be
    queried.
    """
    connection = Connector(target).writable()
    try:
        began = time.monotonic()
        version, at = connection.script(
            "SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())"
        )[0]
        ms = (time.monotonic() - began) * 1000
        version_found = schema.version_of(connection, target.schema) or None
        known = version_found is not None and version_found <= len(schema.scripts())
        holder = lease.current(connection) if known else None
        standbys = lease.standbys(connection) if known else []
        newest_at, times = _times(connection) if version_found == len(schema.scripts()) else (0, {})
    finally:
        connection.close()
    name = holder.name if holder is not None and holder.alive else ""
    return Inspection(
        f"{connection.host}:{connection.port}",
        str(version),
        version_found,
        name,
        ms,
        float(at) - clock.now_s(),
        newest_at,
        times,
        standbys,
    )


def _times(connection: PostgresConnection) -> tuple[int, dict[str, bytes]]:
    rows = connection.run("SELECT at FROM log ORDER BY entry DESC LIMIT 1", ())
    marks = ", ".join("?" * len(TIMES))
    query = f"SELECT name, value FROM settings WHERE name IN ({marks})"  # marks only
    found = connection.run(query, TIMES)
    return rows[0][0] if rows else 0, {str(name): bytes(value) for name, value in found}
