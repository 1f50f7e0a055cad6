"""The same bytes in binary WebSocket messages, inside the same TLS, for browsers and for networks
that allow nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio_websocket
from cryptography import x509

from cipherbox.errors import NetworkError
from cipherbox.net.tls import CHUNK, CLOSE_S, Cut, TlsStream

PATH = "/cipherbox"


class WebSocketStream(trio.abc.Stream):
    """A stream over binary WebSocket messages, whose boundaries have no meaning."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, below: TlsStream) -> None:
        self._connection = connection
        self._below = below
        self._unread = b""
        self.peer = below.peer

    def peer_certificate(self) -> x509.Certificate | None:
        return self._below.peer_certificate()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        try:
            while view:
                await self._connection.send_message(bytes(view[:CHUNK]))
                view = view[CHUNK:]
        except trio_websocket.ConnectionClosed as error:
            raise Cut(f"the connection with {self.peer} was cut") from error

    async def wait_send_all_might_not_block(self) -> None:
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if not self._unread:
            try:
                message = await self._connection.get_message()
            except trio_websocket.ConnectionClosed:
                return b""
            if not isinstance(message, bytes):
                raise NetworkError(
                    f"{self.peer} sent a text message; CipherBox uses binary messages"
                )
            self._unread = message
        size = max_bytes or len(self._unread)
        data, self._unread = self._unread[:size], self._unread[size:]
        return data

    async def aclose(self) -> None:
        with trio.move_on_after(CLOSE_S) as scope:
            scope.shield = True
            await self._connection.aclose()
        await self._below.aclose()


class _Opening:
    """A nursery for trio-websocket's reading task: if that task ends during the opening handshake,
    the handshake is cancelled.

    Its parser raises its own errors for invalid headers, and reports no error at the end of the
    stream.
    """

    def __init__(self, nursery: trio.Nursery, below: TlsStream) -> None:
        self._nursery, self._below = nursery, below
        self.scope = trio.CancelScope()

    def start_soon(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        self._nursery.start_soon(self._run, task, *arguments)

    async def _run(self, task: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        try:
            await task(*arguments)
        except Exception:  # of any kind: what the other end sent is not WebSocket
            await trio.aclose_forcefully(self._below)
        finally:
            self.scope.cancel()


async def accept_websocket(
    nursery: trio.Nursery, below: TlsStream, origins: frozenset[str] = frozenset()
) -> WebSocketStream:
    """Perform HQ's side of the opening handshake; raise NetworkError if it fails.

    A browser names the page that connects (Origin), and would present its user's certificate for
    any page; only pages of ``origins`` are accepted. Other programs send no Origin.
    """
    opening = _Opening(nursery, below)
    with opening.scope:
        try:
            request = await trio_websocket.wrap_server_stream(opening, below)  # type: ignore[arg-type]
            named = [
                bytes(value).decode("latin-1").lower()
                for name, value in request.headers
                if name == b"origin"
            ]
            if not origins.issuperset(named):
                await request.reject(403)
                raise NetworkError(
                    f"a web page of {named[0][:80]!r} may not connect ([server] websocket_origins)"
                )
            if request.path != PATH:
                await request.reject(404)
                raise NetworkError(f"a WebSocket client asked for {request.path!r}")
            return WebSocketStream(await request.accept(), below)
        except (trio_websocket.HandshakeError, trio.BrokenResourceError) as error:
            raise NetworkError("no WebSocket connection could be opened") from error
    raise NetworkError(
        "no WebSocket connection could be opened: what the other end sent ended, or is none"
    )


async def open_websocket(nursery: trio.Nursery, below: TlsStream, host: str) -> WebSocketStream:
    """Perform a client's side of the opening handshake; raise NetworkError if it fails."""
    opening, refusal = (
        _Opening(nursery, below),
        f"{below.peer} does not answer as CipherBox's WebSocket",
    )
    with opening.scope:
        try:
            connection = await trio_websocket.wrap_client_stream(
                opening,  # type: ignore[arg-type]  # a nursery's `start_soon` is all it needs
                below,  # type: ignore[arg-type]  # any trio Stream will do
                host,
                PATH,
            )
        except (trio_websocket.HandshakeError, trio.BrokenResourceError) as error:
            raise NetworkError(refusal) from error
        return WebSocketStream(connection, below)
    raise NetworkError(refusal)
