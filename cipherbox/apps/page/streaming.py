"""Answers that are sent while they are made, and end as soon as the browser has gone.

Starlette's own are asynchronous generators, which nobody closes when the browser goes: trio must
not leave their end to the garbage collector.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

Put = Callable[[bytes], Awaitable[None]]


class Streamed(Response):
    """``make`` is called with the function that sends a piece."""

    def __init__(
        self, make: Callable[[Put], Awaitable[None]], kind: str, headers: Mapping[str, str] = {}
    ) -> None:
        super().__init__(headers=dict(headers), media_type=kind)
        del self.headers["content-length"]
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def put(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_gone, receive, nursery.cancel_scope)
            await self._make(put)
            await send({"type": "http.response.body", "body": b""})
            nursery.cancel_scope.cancel()


async def _until_gone(receive: Receive, scope: trio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def from_thread(first: bytes, rest: Iterator[bytes]) -> Callable[[Put], Awaitable[None]]:
    """Return what sends these pieces, each of them made in a thread."""

    async def make(put: Put) -> None:
        piece: bytes | None = first
        while piece is not None:
            if piece:
                await put(piece)
            piece = await trio.to_thread.run_sync(next, rest, None)

    return make
