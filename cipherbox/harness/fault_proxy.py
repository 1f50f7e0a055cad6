"""A TCP proxy in front of HQ: it cuts connections, lets nothing through, or is slow."""

from __future__ import annotations

from collections.abc import Callable

import trio

from cipherbox.concurrency import Flag

TO_HQ, FROM_HQ = "to HQ", "from HQ"
_PIECE = 65536
_SLOW_PIECE = 2048  # bytes at a time on a slow link


class FaultProxy:
    """Forwards TCP to HQ.  ``slow_s`` delays each piece of 2 KiB in both directions."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[trio.SocketStream] = set()
        self._flowing = {TO_HQ: Flag(is_set=True), FROM_HQ: Flag(is_set=True)}
        self.slow_s = 0.0

    async def serve(self, port: int, *, task_status: trio.TaskStatus[object]) -> None:
        await trio.serve_tcp(self._pass, port, host="127.0.0.1", task_status=task_status)

    def freeze(self, *directions: str) -> None:
        """Let nothing through in these directions; without any, in both."""
        for direction in directions or (TO_HQ, FROM_HQ):
            self._flowing[direction].clear()

    def thaw(self) -> None:
        for flag in self._flowing.values():
            flag.set()

    async def cut(self, chosen: Callable[[], bool] = lambda: True) -> None:
        """Cut the connections for which ``chosen`` says so."""
        for stream in [one for one in list(self._open) if chosen()]:
            await trio.aclose_forcefully(stream)

    async def _pass(self, client: trio.SocketStream) -> None:
        self._open.add(client)
        try:
            hq = await trio.open_tcp_stream("127.0.0.1", self._target)
            async with hq, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, hq, TO_HQ, nursery.cancel_scope)
                nursery.start_soon(self._pump, hq, client, FROM_HQ, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._open.discard(client)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)

    async def _pump(
        self,
        source: trio.SocketStream,
        target: trio.SocketStream,
        direction: str,
        scope: trio.CancelScope,
    ) -> None:
        try:
            while data := await source.receive_some(_SLOW_PIECE if self.slow_s else _PIECE):
                if self.slow_s:
                    await trio.sleep(self.slow_s)
                await self._flowing[direction].wait()
                await target.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
