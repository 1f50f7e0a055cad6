"""Listeners: TCP, then TLS with a deadline and bounded concurrency, then (WebSocket and) a session.

Until its HELLO a connection is unauthenticated, and the number of those is bounded by address.
Before its first byte it costs only a socket: no TLS state, and no slot among the handshakes.  The
log key is the one of the certificate a connection began with: HQ may renew its certificate before
the connection is open.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import trio

from cipherbox.concurrency import Backoff
from cipherbox.config.settings import ServerConfig
from cipherbox.config.toml_file import parse_origins
from cipherbox.errors import CipherBoxError, ConfigError, HandshakeTimeout
from cipherbox.net.tls import Cut, TlsStream
from cipherbox.ops.logs import get_logger
from cipherbox.server.connection.session import Session, Stream
from cipherbox.server.connection.unauthenticated import Place, UnauthenticatedConnections, group_of
from cipherbox.server.engine import Engine
from cipherbox.server.operations.port_check import why_not

log = get_logger(__name__)
# a connection, the peer's address, HQ's log key
Handle = Callable[[TlsStream, str, bytes, Place], Awaitable[None]]
_SLOT_S = 0.5  # a handshake on a good network takes a tenth of it
_ACCEPT_PAUSE_S = 0.1  # after the system ran out of file handles


def given_listeners(
    sockets: list[socket.socket], addresses: list[tuple[str, int]]
) -> list[trio.SocketListener]:
    """Return the listeners that systemd passed; they take precedence over the settings."""
    found = [trio.SocketListener(trio.socket.from_stdlib_socket(given)) for given in sockets]
    ports = {address_of(listener)[1] for listener in found}
    if addresses and ports != {port for _, port in addresses}:
        log.warning(
            "systemd listens on other ports than the settings; update its units: cipherbox install",
            extra={"systemd": sorted(ports), "settings": sorted(port for _, port in addresses)},
        )
    return found


async def open_listeners(addresses: list[tuple[str, int]]) -> list[trio.SocketListener]:
    """Bind sockets; raise ConfigError, naming the address, if one is in use or not local."""
    found: list[trio.SocketListener] = []
    for host, port in addresses:
        try:
            found += await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            for listener in found:
                await listener.aclose()
            raise ConfigError(why_not(host, port, error)) from None
    return found


def address_of(listener: trio.SocketListener) -> tuple[str, int]:
    """Return a listener's host and port."""
    host, port = listener.socket.getsockname()[:2]
    return str(host), int(port)


class Host(Protocol):
    """What the acceptor needs of HQ; the credentials may change while it runs."""

    @property
    def config(self) -> ServerConfig: ...

    @property
    def context(self) -> ssl.SSLContext: ...

    @property
    def log_key(self) -> bytes: ...

    @property
    def engine(self) -> Engine: ...

    @property
    def unauthenticated(self) -> UnauthenticatedConnections: ...

    def session(
        self, stream: Stream, remote: str, log_key: bytes, authenticated: Callable[[], None]
    ) -> Session: ...


class ConnectionAcceptor:
    """Accepts connections, performs TLS, and runs their sessions in ``handlers``."""

    def __init__(self, hq: Host, handlers: trio.Nursery) -> None:
        self._hq = hq
        self._handlers = handlers
        self._slots = trio.CapacityLimiter(hq.config.limits.handshakes_at_once)
        self._turn = trio.CapacityLimiter(hq.config.limits.handshake_steps)
        self._unauthenticated = hq.unauthenticated

    async def serve(self, listener: trio.SocketListener, websocket: bool) -> None:
        """Accept connections until cancelled."""
        handle = self._websocket if websocket else self._tls
        backoff = Backoff(_ACCEPT_PAUSE_S, _ACCEPT_PAUSE_S)
        while True:
            try:
                stream = await listener.accept()
            except OSError as error:
                log.error("A connection could not be accepted", extra={"error": str(error)})
                await backoff.wait()
                continue
            remote = _remote(stream)
            place = self._unauthenticated.enter(group_of(remote.rpartition(":")[0]))
            if place is None:
                stream.socket.close()
                continue
            self._handlers.start_soon(self._guard, handle, stream, remote, place)

    async def _guard(
        self, handle: Handle, stream: trio.SocketStream, remote: str, place: Place
    ) -> None:
        """Handle one connection, such that its errors affect no other."""
        try:
            with place.scope:
                opened = await self._handshake(stream, remote, place)
                if opened is not None:
                    tls, log_key = opened
                    await handle(tls, remote, log_key, place)
        except* (
            CipherBoxError,
            OSError,
            trio.BrokenResourceError,
            trio.ClosedResourceError,
        ) as group:
            log.info(
                "A connection ended early",
                extra={"remote": remote, "reason": str(group.exceptions[0])},
            )
        except* Exception:
            log.exception("Internal error in a connection", extra={"remote": remote})
        finally:
            self._unauthenticated.leave(place)
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(stream)

    async def _handshake(
        self, stream: trio.SocketStream, remote: str, place: Place
    ) -> tuple[TlsStream, bytes] | None:
        with trio.move_on_after(self._hq.config.limits.client_hello_s):
            try:
                await trio.lowlevel.wait_readable(stream.socket)
                place.silent = False
                slot = trio.Event()
                await self._slots.acquire_on_behalf_of(slot)
                self._handlers.start_soon(self._lose_slot, slot)
                try:
                    log_key = self._hq.log_key
                    tls = TlsStream(stream, self._hq.context, server_side=True, peer=remote)
                    await tls.do_handshake(self._turn)
                finally:
                    slot.set()
            except CipherBoxError as error:
                if isinstance(error, Cut) and not isinstance(error.__cause__, ssl.SSLError):
                    log.info(
                        "A connection ended before TLS was established",
                        extra={"remote": remote, "reason": str(error)},
                    )
                    # a port check, or a client that gave up
                    return None
                self._hq.engine.counts.handshakes_failed += 1
                log.error("TLS handshake failed", extra={"remote": remote, "reason": str(error)})
                return None
            return tls, log_key
        self._hq.engine.counts.handshakes_failed += 1
        log.error("TLS handshake failed", extra={"remote": remote, "reason": "timed out"})
        return None

    async def _lose_slot(self, slot: trio.Event) -> None:
        """Release the slot when the handshake is done or takes long, so that nobody
        blocks others.
        """
        with trio.move_on_after(_SLOT_S):
            await slot.wait()
        self._slots.release_on_behalf_of(slot)

    async def _tls(self, tls: TlsStream, remote: str, log_key: bytes, place: Place) -> None:
        await self._hq.session(
            tls, remote, log_key, partial(self._unauthenticated.leave, place)
        ).run()

    async def _websocket(self, tls: TlsStream, remote: str, log_key: bytes, place: Place) -> None:
        from cipherbox.net.websocket import accept_websocket

        origins = parse_origins(self._hq.config.server.websocket_origins)
        async with trio.open_nursery() as nursery:
            with trio.move_on_after(self._hq.config.limits.client_hello_s) as opening:
                stream = await accept_websocket(nursery, tls, origins)
            if opening.cancelled_caught:
                raise HandshakeTimeout("the WebSocket handshake took too long")
            await self._hq.session(
                stream, remote, log_key, partial(self._unauthenticated.leave, place)
            ).run()
            nursery.cancel_scope.cancel()


def _remote(stream: trio.SocketStream) -> str:
    """Return host:port of the peer; "?" if it has disconnected."""
    with suppress(OSError):
        host, port = stream.socket.getpeername()[:2]
        return f"{host}:{port}"
    return "?"
