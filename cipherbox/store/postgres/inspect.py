"""Inspect PostgreSQL without changing it, also while an HQ writes to it."""

from __future__ import annotations

import time
from typing import NamedTuple

from cipherbox.store.postgres import lease, schema
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.target import Target


class Inspection(NamedTuple):
    where: str
    version: str
    schema: int | None  # its version; None: it contains no HQ
    holder: str  # the HQ with the lease; empty: none
    ms: float  # duration of one round trip
    clock_s: float  # how far its clock is ahead of this one


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
    finally:
        connection.close()
    name = holder.name if holder is not None and holder.alive else ""
    return Inspection(
        f"{connection.host}:{connection.port}",
        str(version),
        version_found,
        name,
        ms,
        float(at) - time.time(),
    )
