"""HQ's end of a connection for tests of the client's line: real frames, scripted answers, no
network, no TLS.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from cipherbox import clock
from cipherbox.errors import CipherBoxError, NetworkError
from cipherbox.wire import frames
from cipherbox.wire.connection import SendBatch, WireConnection

Script = Callable[["Session", Any], Awaitable[None]]


def no_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Session:
    """One accepted connection."""

    def __init__(self, hq: FakeHq, stream: trio.abc.Stream) -> None:
        self.hq, self.stream = hq, stream
        self.wire = WireConnection("server")
        self._turn = trio.Lock()

    async def send(self, frame: object) -> None:
        await self.send_bytes(self.wire.send(frame))

    async def send_bytes(self, data: bytes) -> None:
        async with self._turn:
            await self.stream.send_all(data)

    async def confirm(self, correlations: list[int], outcome: int = 0) -> None:
        ranges = [frames.ConfirmRange(c, 1, outcome, 0) for c in correlations]
        await self.send(frames.Confirm(1000, 0, b"", [frames.Place(["q"], [])], ranges))

    async def cut(self) -> None:
        await trio.aclose_forcefully(self.stream)


class FakeHq:
    """Put its `connect` in place of transport.connect.  ``script`` is called with every event
    after WELCOME.
    """

    def __init__(
        self, script: Script | None = None, *, heartbeat_s: int = 30, window: int = 1024
    ) -> None:
        self.script = script or self.ignore
        self.heartbeat_s, self.window = heartbeat_s, window
        self.sessions: list[Session] = []
        self.refusals: list[CipherBoxError] = []  # raised by the next connects
        self.seen: list[Any] = []

    async def ignore(self, session: Session, event: Any) -> None:
        """Says nothing."""

    async def connect(
        self, address: str, context: Any, nursery: trio.Nursery, *, timeout_s: float, line: Any
    ) -> trio.abc.Stream:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop(0)
        ours, theirs = trio.testing.memory_stream_pair()
        nursery.start_soon(self._serve, Session(self, theirs))
        return ours

    def welcome(self) -> frames.Welcome:
        return frames.Welcome(
            1,
            17 << 20,
            16 << 20,
            self.heartbeat_s,
            self.window,
            32 << 20,
            4096,
            32 << 20,
            1,
            clock.now_ms(),
            0,
            "FL-LAB",
            "client",
            "fake",
        )

    async def _serve(self, session: Session) -> None:
        try:
            while data := await session.stream.receive_some():
                session.wire.receive_data(bytes(data))
                while events := session.wire.events():
                    for event in events:
                        if isinstance(event, frames.Hello):
                            await session.send(self.welcome())
                            self.sessions.append(session)
                            continue
                        self.seen.append(event)
                        await self.script(session, event)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(session.stream)

    def sent(self) -> list[tuple[int, int, int, bytes]]:
        """Every SEND that came."""
        return [item for event in self.seen if isinstance(event, SendBatch) for item in event.items]


UNREACHABLE = NetworkError("HQ cannot be reached")
