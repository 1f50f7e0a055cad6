"""Parse addresses, connect to one, and read a stream into frames.  WebSocket and proxy code is
loaded on first use.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

import trio

from cipherbox.config.proxies import LineSettings, Way, way_to
from cipherbox.errors import CipherBoxError, CredentialsError, NetworkError, TimedOut
from cipherbox.limits import LIMITS
from cipherbox.net.tls import TlsStream
from cipherbox.portable import why_unreachable

if TYPE_CHECKING:
    from cipherbox.net.websocket import WebSocketStream


_DIRECT = Way(None, "")


class Receiving(Protocol):
    """A stream to receive from."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...


class Framing(Protocol):
    """A decoder of bytes into frames: `wire.connection.WireConnection`."""

    @property
    def missing(self) -> int: ...

    def wanted(self) -> memoryview | None: ...

    def filled(self, size: int) -> None: ...

    def receive_data(self, data: bytes) -> None: ...


async def fill(stream: Receiving, framing: Framing) -> int:
    """Receive once from ``stream`` into ``framing``, a large frame without a copy; return the
    number of bytes, 0 at the end.
    """
    if isinstance(stream, TlsStream):
        stream.expect(framing.missing)
        # an exported view prevents its buffer from growing, so it is not kept
        if (room := framing.wanted()) is not None:
            size = await stream.receive_into(room)
            framing.filled(size)
            return size
    data = await stream.receive_some()
    if data:
        framing.receive_data(bytes(data))
    return len(data)


async def connect(
    addresses: str,
    context: ssl.SSLContext,
    nursery: trio.Nursery,
    *,
    timeout_s: float = LIMITS.client_hello_s,
    line: LineSettings | None = None,
) -> TlsStream | WebSocketStream:
    """Return a stream to the first address that answers. ``addresses`` is "host:port", or
    "wss://host:port/" for WebSocket, separated by commas.

    ``nursery`` runs the WebSocket's background task. ``line`` selects the proxy; None connects
    directly, whatever the environment specifies. If no address answers, raise the last one's error.
    """
    failure: CipherBoxError = NetworkError("no address of HQ is configured")
    for address in [a.strip() for a in addresses.split(",") if a.strip()]:
        through = ""
        try:
            host, port, _ = parse_address(address)
            way = way_to(host, port, line) if line is not None else _DIRECT
            through = f" through the proxy {way.proxy}" if way.proxy is not None else ""
            with trio.fail_after(timeout_s):
                return await _connect_one(address, context, nursery, way)
        except trio.TooSlowError:
            failure = TimedOut(f"{address} did not answer within {timeout_s:g} s{through}")
        except CredentialsError:
            raise
        except CipherBoxError as error:
            failure = error
    raise failure


async def _open(address: str, way: Way) -> trio.SocketStream:
    """Return a TCP stream to an address, directly or through the proxy."""
    host, port, _ = parse_address(address)
    if way.proxy is not None:
        from cipherbox.net.proxy import connect_through

        return await connect_through(way.proxy, host, port)
    try:
        return await trio.open_tcp_stream(host, port)
    except OSError as error:
        why = why_unreachable(error)
        raise NetworkError(
            f"{address} cannot be reached: {why}; is HQ running, is the address right?"
        ) from error


async def _connect_one(
    address: str, context: ssl.SSLContext, nursery: trio.Nursery, way: Way
) -> TlsStream | WebSocketStream:
    host, _, websocket = parse_address(address)
    below = await _open(address, way)
    stream = TlsStream(below, context, server_side=False, peer=address)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    if not websocket:
        return stream
    from cipherbox.net.websocket import open_websocket

    try:
        return await open_websocket(nursery, stream, host)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise


def parse_address(address: str) -> tuple[str, int, bool]:
    """Parse "host:port", "[::1]:port" or "wss://host:port/" to (host, port, whether WebSocket)."""
    websocket = address.startswith("wss://")
    parts = urlsplit(address if websocket else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or port is None or (not websocket and parts.path):
        raise NetworkError(f"{address!r} is no address: host:port, or wss://host:port/")
    return host, port, websocket
