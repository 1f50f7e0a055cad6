"""A TCP proxy in front of HQ that cuts or freezes connections."""

from __future__ import annotations

import trio

from cipherbox.concurrency import Flag


class FaultProxy:
    """Forwards TCP to HQ; may cut all connections, or let nothing through for a while."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._open: set[trio.SocketStream] = set()
        self._thawed = Flag(is_set=True)

    async def serve(self, port: int, *, task_status: trio.TaskStatus[object]) -> None:
        await trio.serve_tcp(self._pass, port, host="127.0.0.1", task_status=task_status)

    def freeze(self) -> None:
        self._thawed.clear()

    def thaw(self) -> None:
        self._thawed.set()

    async def cut(self) -> None:
        for stream in list(self._open):
            await trio.aclose_forcefully(stream)

    async def _pass(self, client: trio.SocketStream) -> None:
        self._open.add(client)
        try:
            hq = await trio.open_tcp_stream("127.0.0.1", self._target)
            async with hq, trio.open_nursery() as nursery:
                nursery.start_soon(self._pump, client, hq, nursery.cancel_scope)
                nursery.start_soon(self._pump, hq, client, nursery.cancel_scope)
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._open.discard(client)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(client)

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, scope: trio.CancelScope
    ) -> None:
        try:
            while data := await source.receive_some(65536):
                await self._thawed.wait()
                await target.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()
