"""Statements in HQ's signed log besides commits: revocations and attested restores, stored with
their proofs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import orjson

from cipherbox.envelope import transparency_log as format
from cipherbox.store.port import Store

if TYPE_CHECKING:
    from cipherbox.server.engine import Engine

# and a serial number: a setting with the payload's length, the payload and the proof
REVOKED = "log-revoked/"
LENGTH = 4


async def note(
    engine: Engine, store: Store, kind: int, payload: bytes, names: Sequence[str]
) -> None:
    proof = await engine.note(kind, payload)
    value = len(payload).to_bytes(LENGTH, "big") + payload + proof
    for name in names:
        await engine.in_store(store.put_setting, name, value)


async def note_revocation(
    engine: Engine, store: Store, client: str, serials: Sequence[str]
) -> None:
    """Log a revocation before any list with it is published: its position in the log decides which
    envelopes precede it.
    """
    fresh = [
        s for s in serials if await engine.in_store(store.get_setting, REVOKED + s.lower()) is None
    ]
    if fresh:
        payload = orjson.dumps({"client": client, "serials": fresh})
        await note(engine, store, format.REVOKED, payload, [REVOKED + s.lower() for s in fresh])
