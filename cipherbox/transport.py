"""The byte streams both ends use: TLS over TCP, and WebSocket inside the same TLS; addresses, and connecting to one."""

from __future__ import annotations

import ssl
from typing import Protocol
from urllib.parse import urlsplit

import trio
import trio_websocket
from cryptography import x509

from cipherbox.errors import CipherBoxError, CredentialsError, NetworkError, TimedOut
from cipherbox.limits import LIMITS
from cipherbox.tls import CHUNK, CLOSE_S, Cut, TlsStream

WEBSOCKET_PATH = "/cipherbox"


class Framing(Protocol):
    """What turns bytes into frames: `wire.Connection`."""

    def wanted(self) -> memoryview | None: ...

    def filled(self, size: int) -> None: ...

    def receive_data(self, data: bytes) -> None: ...


async def fill(stream: trio.abc.ReceiveStream, framing: Framing) -> int:
    """One receive from ``stream`` into ``framing``, a large frame without a detour; how many bytes, 0 at the end."""
    room = framing.wanted()
    if room is not None and isinstance(stream, TlsStream):
        size = await stream.receive_into(room)
        framing.filled(size)
        return size
    data = await stream.receive_some()
    if data:
        framing.receive_data(bytes(data))
    return len(data)


# -- WebSocket ----------------------------------------------------------------------------------------------------


class WebSocketStream(trio.abc.Stream):
    """The same bytes in binary WebSocket messages; where a message ends means nothing."""

    def __init__(self, connection: trio_websocket.WebSocketConnection, below: TlsStream) -> None:
        self._connection = connection
        self._below = below
        self._left = b""
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
        if not self._left:
            try:
                message = await self._connection.get_message()
            except trio_websocket.ConnectionClosed:
                return b""
            if not isinstance(message, bytes):
                raise NetworkError(f"{self.peer} sent text; CipherBox speaks binary messages")
            self._left = message
        size = max_bytes or len(self._left)
        data, self._left = self._left[:size], self._left[size:]
        return data

    async def aclose(self) -> None:
        with trio.move_on_after(CLOSE_S) as scope:
            scope.shield = True
            await self._connection.aclose()
        await self._below.aclose()


async def accept_websocket(nursery: trio.Nursery, below: TlsStream) -> WebSocketStream:
    """HQ's side of the WebSocket opening; NetworkError if it is none."""
    try:
        request = await trio_websocket.wrap_server_stream(nursery, below)
        if request.path != WEBSOCKET_PATH:
            await request.reject(404)
            raise NetworkError(f"a WebSocket client asked for {request.path!r}")
        connection = await request.accept()
    except (trio_websocket.HandshakeError, trio.BrokenResourceError) as error:
        raise NetworkError("no WebSocket connection could be opened") from error
    return WebSocketStream(connection, below)


Connected = TlsStream | WebSocketStream


async def connect(
    addresses: str, context: ssl.SSLContext, nursery: trio.Nursery, *, timeout_s: float = LIMITS.client_hello_s
) -> Connected:
    """Connects to the first address that answers: "host:port", several with commas, "wss://host:port/" for WebSocket.

    ``nursery`` carries the WebSocket's background task.  The last address's error is raised when none answers.
    """
    failure: CipherBoxError = NetworkError("there is no address of HQ")
    for address in [a.strip() for a in addresses.split(",") if a.strip()]:
        try:
            with trio.fail_after(timeout_s):
                return await _connect_one(address, context, nursery)
        except trio.TooSlowError:
            failure = TimedOut(f"{address} did not answer within {timeout_s:g} s")
        except CredentialsError:
            raise
        except CipherBoxError as error:
            failure = error
    raise failure


async def _connect_one(address: str, context: ssl.SSLContext, nursery: trio.Nursery) -> Connected:
    host, port, websocket = parse_address(address)
    try:
        below = await trio.open_tcp_stream(host, port)
    except OSError as error:
        detail = error.strerror or "no connection"
        raise NetworkError(f"{address} cannot be reached: {detail}; is HQ running, is the address right?") from error
    stream = TlsStream(below, context, server_side=False, peer=address)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    if not websocket:
        return stream
    try:
        connection = await trio_websocket.wrap_client_stream(
            nursery, stream, host, WEBSOCKET_PATH  # type: ignore[arg-type]  # any trio Stream will do
        )
        return WebSocketStream(connection, stream)
    except (trio_websocket.HandshakeError, trio.BrokenResourceError) as error:
        await trio.aclose_forcefully(stream)
        raise NetworkError(f"{address} does not answer as CipherBox's WebSocket") from error
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def parse_address(address: str) -> tuple[str, int, bool]:
    """(host, port, whether WebSocket) of "host:port", "[::1]:port" or "wss://host:port/"."""
    websocket = address.startswith("wss://")
    parts = urlsplit(address if websocket else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or (not websocket and parts.path):
        raise NetworkError(f"{address!r} is no address: host:port, or wss://host:port/")
    return host, port, websocket
