"""One connection to HQ, from HELLO to its end.

Three tasks share it.  The reader receives frames and dispatches them; the writer sends what is
queued, joined; the beat sends heartbeats and notices when HQ's are missing.  Whatever ends the
connection ends it once, with one error that says why, and every pending request gets that error.

A small frame that comes alone is sent at once, without the writer: a turn of the event loop costs
as much as the frame.  What the network does not take then, the writer sends.

Rules.  Correlation ids rise by one over all requests of a connection, SENDs among them.  When
writing fails, the reader gets a moment to find out why: HQ's last word (an ERROR, a TLS alert about
the certificate) is in what it sent before.  Nothing here waits for a consumer: credit bounds what
HQ may push.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from cipherbox import __version__, pki
from cipherbox.concurrency import Flag, background
from cipherbox.config.proxies import LineSettings
from cipherbox.envelope.labels import label
from cipherbox.errors import (
    CipherBoxError,
    CredentialsError,
    FrameTooLarge,
    GoingAway,
    NetworkError,
    TimedOut,
    TooLarge,
    from_wire,
)
from cipherbox.limits import LIMITS
from cipherbox.net import connecting as transport
from cipherbox.wire import frames
from cipherbox.wire.codec import DeliveredItem, Octets, Pieces, SendItem
from cipherbox.wire.connection import Deliveries, WireConnection

LAST_WORD_S = 1.0
CLOSE_S = 2.0
JOIN_BYTES = 256 * 1024  # sent per call
NOW_BYTES = 16 * 1024  # sent at once at most: one TLS record
_ALONE_S = 0.001  # since the last frame; what follows sooner is joined
Done = Callable[[Any, "CipherBoxError | None"], None]


class Handler(Protocol):
    """Callbacks for unsolicited frames."""

    def deliveries(
        self, connection: Connection, tag: int, entries: list[DeliveredItem]
    ) -> None: ...

    def confirmed(self, frame: frames.Confirm) -> None: ...

    def refused(self, correlation: int, error: CipherBoxError) -> bool: ...

    def beat(self, connection: Connection) -> None: ...

    def news(self, text: str) -> None: ...

    def revocations(self, number: int) -> None: ...


class Connection:
    """See the module; made by `open_connection`."""

    welcome: frames.Welcome
    certificate: x509.Certificate | None = None  # HQ's, as this connection showed it
    # the key of HQ's signed log, certified by this connection's certificate; empty: HQ has no log
    log_key = b""

    def __init__(self, stream: trio.abc.Stream, handler: Handler | None, beat_s: float) -> None:
        self.error: CipherBoxError | None = None
        self.closed = trio.Event()
        self.heard_at = self.spoke_at = self.moved_at = trio.current_time()
        self.away_s = 0.0  # the pause HQ asked for when it said it is going
        self._stream = stream
        self._handler = handler
        self._wire = WireConnection("client")
        # TLS has it; WebSocket does not, since its messages are another task's
        self._send_now: Callable[[bytes], bool] | None = getattr(stream, "send_now", None)
        self._out: list[Octets] = []
        self._more = Flag()
        self._idle = False  # the writer waits for something to send
        self._pending: dict[int, Done] = {}
        self._correlation = 0
        self._welcomed = trio.Event()
        self._scope = trio.CancelScope()
        self._beat_s = beat_s
        self._away: GoingAway | None = None

    # -- asking ------------------------------------------------------------------------------------

    def next_correlation(self) -> int:
        """Return the id of the next request on this connection."""
        self._correlation += 1
        return self._correlation

    def post(self, kind: Callable[..., Any], done: Done, **fields: Any) -> int:
        """Send a request; ``done(answer, error)`` is called once, with one of the two."""
        if self.error is not None:
            raise self.error.copy()
        correlation = self.next_correlation()
        try:
            data = self._wire.send(kind(correlation=correlation, **fields))
        except FrameTooLarge as error:
            self._correlation -= 1
            raise TooLarge(str(error)) from None
        self._pending[correlation] = done
        self._put(data)
        return correlation

    async def ask(self, kind: Callable[..., Any], timeout_s: float, **fields: Any) -> Any:
        """Send a request and return its answer; raise HQ's refusal, or TimedOut."""
        box: list[tuple[Any, CipherBoxError | None]] = []
        ready = trio.Event()

        def done(answer: Any, error: CipherBoxError | None) -> None:
            box.append((answer, error))
            ready.set()

        correlation = self.post(kind, done, **fields)
        asked_at = trio.current_time()
        with trio.move_on_after(timeout_s):
            await ready.wait()
        if not box:
            self._pending.pop(correlation, None)
            error = TimedOut(f"HQ did not answer within {timeout_s:g} s")
            if self.heard_at < asked_at:
                self.end(error)
            raise error
        answer, refusal = box[0]
        if refusal is not None:
            raise refusal
        return answer

    def send_envelopes(self, items: list[SendItem]) -> None:
        """Send SENDs; their outcome is reported to the handler."""
        if self.error is None:
            for piece in self._wire.send_batch(items):
                self._put(piece)

    def credit(self, tag: int, envelopes: int, size: int) -> None:
        """Add credit to a consumer."""
        if self.error is None:
            self._put(self._wire.send(frames.Credit(tag, envelopes, size)))

    def end(self, error: CipherBoxError) -> None:
        """End the connection; the first reason counts."""
        if self.error is None:
            self.error = (
                self._away if self._away is not None and isinstance(error, NetworkError) else error
            )
        self._scope.cancel()

    def _put(self, data: Octets) -> None:
        """Send it if it is small and comes alone, or queue it for the writer."""
        if self._idle and not self._out and self._send_now is not None and len(data) <= NOW_BYTES:
            now = trio.current_time()
            if now - self.spoke_at > _ALONE_S:
                self.spoke_at = now
                if self._send_now(bytes(data)):
                    return
                data = b""  # the writer sends the rest
        self._out.append(data)
        self._more.set()

    # -- the tasks ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run the connection to its end; the reason is then in `error`."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for work in (self._read, self._write, self._beat):
                        nursery.start_soon(self._guard, work)
        finally:
            if self.error is None:
                self.error = NetworkError("the connection was closed")
            waiting, self._pending = self._pending, {}
            for done in waiting.values():
                done(None, self.error)
            self.closed.set()
            self._welcomed.set()
            with trio.move_on_after(CLOSE_S, shield=True):
                try:
                    await self._stream.aclose()
                except (trio.BrokenResourceError, CipherBoxError, OSError):
                    pass

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except CipherBoxError as error:
            failure: CipherBoxError = error
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            failure = NetworkError(
                f"the connection to HQ was cut ({error or type(error).__name__})"
            )
        else:
            return
        if work == self._write:
            await trio.sleep(LAST_WORD_S)
        self.end(failure)

    async def _read(self) -> None:
        wire = self._wire
        while await transport.fill(self._stream, wire):
            self.heard_at = trio.current_time()
            while events := wire.events():
                for event in events:
                    self._dispatch(event)
        raise NetworkError("HQ closed the connection")

    async def _write(self) -> None:
        self._put_hello()
        while True:
            self._idle = True
            await self._more.wait()
            self._idle = False
            self._more.clear()
            while self._out:
                pieces, self._out = Pieces(self._out), []
                total = pieces.size
                while True:  # slices show the progress of a large frame
                    first = pieces.size == total
                    await self._stream.send_all(pieces.take(JOIN_BYTES))
                    self.spoke_at = trio.current_time()
                    if not first:
                        self.moved_at = self.spoke_at
                    if not pieces.size:
                        break

    async def _beat(self) -> None:
        await self._welcomed.wait()
        heartbeat = max(1, self.welcome.heartbeat_s)
        pause = min(heartbeat / 3, self._beat_s)
        while True:
            await trio.sleep(pause)
            now = trio.current_time()
            if now - self.heard_at > 2 * heartbeat:
                raise NetworkError(f"nothing was heard from HQ for {2 * heartbeat} s")
            if now - self.spoke_at >= heartbeat / 3:
                self._put(self._wire.send(frames.Ping(self.next_correlation())))
            if self._handler is not None:
                self._handler.beat(self)

    # -- what comes --------------------------------------------------------------------------------

    def _put_hello(self) -> None:
        hello = frames.Hello(
            frames.MAGIC,
            frames.VERSION,
            frames.VERSION,
            LIMITS.frame_bytes,
            0,
            f"cipherbox-python {__version__}",
        )
        self._put(self._wire.send(hello))

    def _dispatch(self, event: Any) -> None:
        if isinstance(event, Deliveries):
            if self._handler is not None:
                self._handler.deliveries(self, event.tag, event.entries)
        elif isinstance(event, frames.Confirm):
            if self._handler is not None:
                self._handler.confirmed(event)
        elif isinstance(event, frames.Error):
            self._error(event)
        elif isinstance(event, frames.Ping):
            self._put(self._wire.send(frames.Pong(event.correlation)))
            if event.news and self._handler is not None:
                self._handler.news(event.news)
            if event.crl_number and self._handler is not None:
                self._handler.revocations(event.crl_number)
        elif isinstance(event, frames.GoingAway):
            self.away_s = event.pause_ms / 1000
            self._away = GoingAway(event.message or "HQ is stopping")
        elif isinstance(event, frames.Welcome):
            self.welcome = event
            self._welcomed.set()
        else:
            done = self._pending.pop(event.correlation, None)
            if done is not None:
                done(event, None)

    def _error(self, frame: frames.Error) -> None:
        error = from_wire(frame.code, frame.message, frame.detail)
        if frame.correlation == 0:
            raise error
        done = self._pending.pop(frame.correlation, None)
        if done is not None:
            done(None, error)
        elif self._handler is not None:
            self._handler.refused(frame.correlation, error)
        if error.closes:
            raise error


@asynccontextmanager
async def open_connection(
    address: str,
    context: Any,
    *,
    timeout_s: float,
    handler: Handler | None = None,
    line: LineSettings | None = None,
) -> AsyncIterator[Connection]:
    """Connect, and yield the open connection while the block runs.

    Raise NetworkError or CredentialsError if there is none.

    ``address`` is one or more of host:port and wss://host:port/, separated by commas; they are
    tried in turn, through the proxy that ``line`` or the environment names.
    """
    async with background() as nursery:
        stream = await transport.connect(
            address, context, nursery, timeout_s=timeout_s, line=line or LineSettings()
        )
        connection = Connection(stream, handler, timeout_s / 2)
        nursery.start_soon(connection.run)
        try:
            with trio.move_on_after(timeout_s):
                await connection._welcomed.wait()
            if connection.error is not None:
                raise connection.error.copy()
            if not hasattr(connection, "welcome"):
                raise TimedOut(f"HQ did not answer the opening within {timeout_s:g} s")
            connection.certificate = getattr(stream, "peer_certificate", lambda: None)()
            connection.log_key = known_log_key(connection.welcome.log_key, connection.certificate)
            yield connection
        finally:
            connection.end(NetworkError("this client closed the connection"))
            with trio.move_on_after(CLOSE_S, shield=True):
                await connection.closed.wait()


def known_log_key(stated: bytes, certificate: x509.Certificate | None) -> bytes:
    """Return HQ's log key (32 bytes), certified by HQ's certificate; b"" if HQ states none.

    Raise CredentialsError if another key signed it.
    """
    if not stated or certificate is None:
        return b""
    try:
        pki.verify_signature(certificate, stated[32:], label("log-key") + stated[:32])
    except InvalidSignature:
        raise CredentialsError("HQ's log key is not certified by HQ's certificate") from None
    return stated[:32]
