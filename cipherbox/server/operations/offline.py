"""HQ with its doors closed: what may be done on HQ's own machine while it does not serve.

Every administrative act is a frame with an admin's certificate.  When the last admin's key is lost
nobody can send one, so there is one way back, for who can read HQ's directory and its service key:
HQ is put together as ever, under the directory's lock, listens nowhere, does one thing, and ends.
What was done goes through the engine, so the signed log has it: this way in cannot be used
silently.
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
    """HQ, listening nowhere.  StoreLocked or StoreLeased while it is served."""
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
    """A token for an admin, without an admin.  Conflict for a client that is there, unless its
    home is replaced.
    """
    async with closed(config) as hq:
        known = hq.engine.broker.state.rights.clients.get(client_id)
        if known is not None and not known.revoked_at and not replaces:
            raise Conflict(
                f"{client_id!r} is there, and its lost key would stay good",
                remedy=(
                    "say --replace, or choose another name and revoke this one when you have "
                    f"joined: cipherbox revoke {client_id}"
                ),
            )
        token = await hq.enrolments.token(
            client_id, m.ADMIN, approve=False, valid_s=valid_s, replaces=replaces
        )
        await hq.engine.call(lambda n: m.EnrolHere(0, "", n, client_id, m.ADMIN))
        return token  # said only now: nobody has a token that the log does not name


async def export(config: ServerConfig) -> bytes:
    """As `CaExchange.export`, with HQ's own request whether it is due or not; that alone while HQ
    is served.
    """
    try:
        async with closed(config) as hq:
            return await hq.ca_exchange.export(own_row(config))
    except (StoreLocked, StoreLeased):
        return own_request(config)


async def take(config: ServerConfig, document: bytes) -> int:
    """As `CaExchange.take`, for an HQ that cannot be reached: all of it, or what is for HQ itself
    while it is served.
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
            "this file holds nothing new for HQ itself; clients' certificates are taken under way: "
            "cipherbox ca import FILE"
        )
    return put
