"""A look at PostgreSQL from outside, also while an HQ writes there; nothing is changed."""

from __future__ import annotations

import time
from typing import NamedTuple

from cipherbox.store.postgres import lease, schema
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.target import Target


class Inspection(NamedTuple):
    where: str
    version: str
    schema: int | None  # its version; None: there is no HQ in it
    holder: str  # the HQ that writes now; empty: none
    ms: float  # one question and its answer
    clock_s: float  # how far its clock is ahead of this one


def look_at(target: Target) -> Inspection:
    """StoreError or StoreUnavailable says why nobody can be asked."""
    connection = Connector(target).writable()
    try:
        began = time.monotonic()
        version, at = connection.script(
            "SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())"
        )[0]
        ms = (time.monotonic() - began) * 1000
        there = schema.version_of(connection, target.schema) or None
        known = there is not None and there <= len(schema.scripts())
        holder = lease.look(connection) if known else None
    finally:
        connection.close()
    name = holder.name if holder is not None and holder.alive else ""
    return Inspection(
        f"{connection.host}:{connection.port}",
        str(version),
        there,
        name,
        ms,
        float(at) - time.time(),
    )
