"""Serve the page with Hypercorn on trio: one listener on loopback, a bounded number of connections.

Hypercorn's own `serve` accepts any number of connections; here a task counts them.  A connection
without a request ends after `IDLE_S`, one with half a request too.

Hypercorn shields what it sends from cancellation: a browser that reads nothing, such as one that
was suspended in a download, would keep its connection for ever, and the program from ending.  So a
send has `SEND_S`, and a connection is closed when its task is cancelled.
"""

from __future__ import annotations

from typing import Any, cast

import trio
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState
from hypercorn.utils import wrap_app
from starlette.types import ASGIApp

CONNECTIONS = 64
IDLE_S = 5.0
SEND_S = 300.0  # for a piece of at most 1 MiB; a person may pause a download
HEADER_BYTES = 16 * 1024


class _Connection:
    """The part of a stream that Hypercorn uses, with bounded sends."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream, self.socket = stream, stream.socket
        self.receive_some, self.send_eof = stream.receive_some, stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(SEND_S):
            await self._stream.send_all(data)
            return
        await trio.aclose_forcefully(self._stream)
        raise trio.BrokenResourceError("the browser reads nothing")


async def _close_at_end(stream: trio.SocketStream) -> None:
    try:
        await trio.sleep_forever()
    finally:
        await trio.aclose_forcefully(stream)


async def serve(app: ASGIApp, listener: trio.SocketListener) -> None:
    """Answer requests until cancelled."""
    config = Config()
    config.errorlog = config.accesslog = None  # neither address nor text belongs in a log
    config.include_server_header = False
    config.keep_alive_timeout = IDLE_S
    config.h11_max_incomplete_size = HEADER_BYTES
    # Starlette and Hypercorn type the same interface differently
    wrapped, context = wrap_app(cast(Any, app), 0, "asgi"), WorkerContext(None)
    count = 0

    async def answer(stream: trio.SocketStream) -> None:
        nonlocal count
        if count >= CONNECTIONS:
            await trio.aclose_forcefully(stream)
            return
        count += 1
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_close_at_end, stream)
                connection = cast(Any, _Connection(stream))
                await TCPServer(wrapped, config, context, ConnectionState({}), connection)
                nursery.cancel_scope.cancel()
        finally:
            count -= 1

    await trio.serve_listeners(answer, [listener])


async def listen(host: str, port: int) -> tuple[trio.SocketListener, int]:
    """Return a listener on loopback and its port; port 0: the system chooses."""
    (listener,) = await trio.open_tcp_listeners(port, host=host)
    return listener, int(listener.socket.getsockname()[1])
