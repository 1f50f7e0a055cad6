"""Maintenance on HQ's own machine while HQ is offline.

Administration needs an admin's certificate.  If the last admin's key is lost, or no admin can
connect since HQ's clock was confirmed by mistake, there is one way back, for a user who can read
HQ's directory and its service key: HQ is started under the directory's lock without listening,
performs one action, and stops.  The action goes through the engine and thus into the signed log: it
cannot be used silently.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from cipherbox.broker import model as m
from cipherbox.concurrency import unwrapped
from cipherbox.config.settings import ServerConfig
from cipherbox.errors import Conflict, InvalidRequest, StoreLeased, StoreLocked
from cipherbox.portable import lock_file
from cipherbox.server.ca.credentials import check_answered
from cipherbox.server.ca.organization import own_request, own_row, put_by_hand
from cipherbox.server.ca.signed_responses import for_hq, read_signed
from cipherbox.server.hq import HQ
from cipherbox.server.operations.check import LOCK, require_places
from cipherbox.server.operations.open_store import check_whole, open_store


@asynccontextmanager
async def closed(config: ServerConfig) -> AsyncIterator[HQ]:
    """Run HQ without listening; raise StoreLocked or StoreLeased if it is already running."""
    require_places(config)
    check_answered(config)
    with lock_file(config.directory / LOCK, f"HQ's directory {config.directory}"):
        store = open_store(config)
        try:
            check_whole(store)
            hq = HQ(config, store)
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(hq.engine.run)
                    yield hq
                    await hq.engine.idle()
                    nursery.cancel_scope.cancel()
        finally:
            store.close()


async def admin_token(
    config: ServerConfig, client_id: str, valid_s: int, replaces: bool = False
) -> str:
    """Make a token for an admin, without an admin; raise Conflict for an existing client, unless
    its home is replaced.
    """
    async with closed(config) as hq:
        known = hq.engine.broker.state.rights.clients.get(client_id)
        if known is not None and not known.revoked_at and not replaces:
            raise Conflict(
                f"{client_id!r} is enrolled, and its lost key would stay valid",
                remedy=(
                    "pass --replace, or choose another name and revoke this one after joining: "
                    f"cipherbox revoke {client_id}"
                ),
            )
        token = await hq.enrolments.token(
            client_id, m.ADMIN, approve=False, valid_s=valid_s, replaces=replaces
        )
        await hq.engine.call(lambda n: m.EnrolHere(0, "", n, client_id, m.ADMIN))
        return token  # not before: the log must name every token


async def confirm_clock(config: ServerConfig) -> int:
    """Confirm that this machine's clock is right, as `clock confirm` does, and return its time."""
    async with closed(config) as hq:
        return await hq.confirm_clock("")


async def export(config: ServerConfig) -> bytes:
    """Export requests as `CaExchange.export`, with HQ's own even if not due; only that one while HQ
    is running.
    """
    try:
        async with closed(config) as hq:
            return await hq.ca_exchange.export(own_row(config))
    except (StoreLocked, StoreLeased):
        return own_request(config)


async def take(config: ServerConfig, document: bytes) -> int:
    """Import a CA's answer as `CaExchange.take`, for an HQ that cannot be reached: all of it, or
    only HQ's own part while it is running.
    """
    put = put_by_hand(config, document)
    try:
        if config.ca.offline:
            async with closed(config) as hq:
                return put + await hq.ca_exchange.take(document)
    except (StoreLocked, StoreLeased):
        pass
    if not put and any(not for_hq(leaf) for leaf in read_signed(document).leaves):
        raise InvalidRequest(
            "this file has nothing new for HQ itself",
            remedy="import clients' certificates into the running HQ: cipherbox ca import FILE",
        )
    return put
