"""A look at PostgreSQL from outside, also while an HQ writes there; nothing is changed."""

from __future__ import annotations

import time
from typing import NamedTuple

from cipherbox.store.postgres import lease
from cipherbox.store.postgres.connect import Connector
from cipherbox.store.postgres.target import Target


class Looked(NamedTuple):
    where: str
    version: str
    schema: bool | None  # None: there is no HQ in it
    holder: str  # the HQ that writes now; empty: none
    ms: float  # one question and its answer
    clock_s: float  # how far its clock is ahead of this one


def look_at(target: Target) -> Looked:
    """StoreError or StoreUnavailable says why nobody can be asked."""
    link = Connector(target).writable()
    try:
        began = time.monotonic()
        version, at = link.script("SELECT current_setting('server_version'), extract(epoch FROM clock_timestamp())")[0]
        ms = (time.monotonic() - began) * 1000
        there = link.run("SELECT 1 FROM information_schema.tables WHERE table_schema = ? AND table_name = 'writer'",
                         (target.schema,))  # fmt: skip
        holder = lease.look(link) if there else None
    finally:
        link.close()
    name = holder.name if holder is not None and holder.alive else ""
    return Looked(
        f"{link.host}:{link.port}", str(version), True if there else None, name, ms, float(at) - time.time()
    )
