"""One connection: a nursery with a reader and a writer; HQ's clock calls `tick`.

The reader turns frames into commands.  It stops reading while the client exceeds its publish
window, its limit of open requests or of unread answers, while the engine's queue is full, or while
HQ is low on memory: back-pressure reaches the sender through TCP, and nothing is dropped.  The
writer is `SendQueue`.  Only `end` closes a connection: it stops the reader, sends what is queued
and the reason within a short timeout, and closes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

import attrs
import trio
from cryptography import x509

from cipherbox import __version__, pki
from cipherbox.broker import model as m
from cipherbox.broker.model import Answer, AnyCommand, Entry, Failed, FetchedEntries
from cipherbox.concurrency import first_of
from cipherbox.errors import (
    CipherBoxError,
    Forbidden,
    GoingAway,
    HandshakeTimeout,
    IdleTimeout,
    InvalidRequest,
    NetworkError,
    ProtocolError,
    SlowFrame,
    Throttled,
    TimedOut,
    TooManyConnections,
)
from cipherbox.limits import Limits
from cipherbox.net.connecting import fill
from cipherbox.ops.logs import get_logger
from cipherbox.server.connection.admission import Admission
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.budget import Budgets
from cipherbox.server.connection.in_flight import InFlight
from cipherbox.server.connection.incoming import IncomingFrame
from cipherbox.server.connection.outgoing import SendQueue
from cipherbox.server.connection.peer import STORE_AVAILABLE, STORE_UNAVAILABLE, Proof
from cipherbox.server.connection.registry import ConnectionRegistry
from cipherbox.server.connection.sender_keys import SenderKeys
from cipherbox.server.connection.unauthenticated import group_of
from cipherbox.server.engine import Engine
from cipherbox.server.requests import answers as encode
from cipherbox.server.requests.dispatch import Requests, incoming
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import SendBatch, WireConnection, negotiate

log = get_logger(__name__)
LAST_WORD_S = 2.0  # to send what is queued and the reason, when a connection ends
AWAY_PAUSE_MS = 1000  # what GOING_AWAY asks clients to wait
_UNREAD_BYTES = 4 * 1024 * 1024  # of queued answers; above it this peer is not read


class Stream(Protocol):
    """TLS, or WebSocket over TLS."""

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...

    async def aclose(self) -> None: ...

    def peer_certificate(self) -> x509.Certificate | None: ...


@attrs.frozen(eq=False)
class Shared:
    """The parts of HQ that all connections use."""

    engine: Engine
    limits: Limits
    clock_ms: Callable[[], int]
    memory: BackPressure
    budgets: Budgets
    admission: Admission
    connections: ConnectionRegistry[Session]
    requests: Requests
    ends_at: Callable[[str, bytes], Awaitable[int]]  # of a client's key bundle


class Session:
    """One connection, also as the engine's `Peer`."""

    def __init__(
        self,
        shared: Shared,
        stream: Stream,
        remote: str,
        log_key: bytes,
        authenticated: Callable[[], None],
    ) -> None:
        self._shared = shared
        self._engine = shared.engine
        self._authenticated = authenticated  # called when the peer is authenticated
        self.client = self.serial = ""  # the client, and its certificate's serial number
        self._log_key = log_key
        self._sender_keys = SenderKeys(shared.ends_at, shared.limits.bundles_per_client)
        self.role = "anonymous"
        self.remote, self.address = remote, group_of(remote.rpartition(":")[0])
        self.connected_at = shared.clock_ms()
        # `asked_at`: when its newest request arrived, ms since 1970
        self.connection = self.asked_at = 0
        self._stream = stream
        self._limits = shared.limits
        self._beat_s = self._limits.heartbeat_s
        self._wire = WireConnection("server", self._limits)
        self._account = shared.memory.account("")  # memory held for this client
        self._in_flight = InFlight(self._limits, self._account)
        self._out = SendQueue(
            stream,
            shared.engine.bodies,
            self._limits,
            self._account,
            requeue=self._requeue,
            unused=self._add_credit,
            drained=self._in_flight.changed.notify,
            cut=self._cut,
            counts=shared.engine.counts,
        )
        self._coming = IncomingFrame(
            self._wire, self._limits, self._account, self._cut, lambda news: self.notify(news, 0)
        )
        self._most_out = self._limits.credit_bytes + self._limits.publish_window_bytes
        self._returning = False  # some answers are to HQ's own NACKs, with correlation 0
        self._began = self._heard_at = trio.current_time()
        # `_waiting`: for the peer to send something
        self._stopped_reading = self._outage_notified = self._waiting = False
        # the whole session; its reader
        self._scope, self._reader = trio.CancelScope(), trio.CancelScope()
        self._receiving = trio.CancelScope()
        self._ended: CipherBoxError | None = None

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until the connection ends; handle all errors of this peer."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._write, nursery)
                    nursery.start_soon(self._listen)
        except* CipherBoxError as group:
            self._ended = self._ended or first_of(group)
        finally:
            self._coming.whole()
            self._out.close()
            self._in_flight.close()
            self._shared.connections.leave(self)
            with trio.move_on_after(LAST_WORD_S) as scope:
                scope.shield = True
                await self._stream.aclose()
            self.log("Connection closed", **({"reason": str(self._ended)} if self._ended else {}))

    async def _write(self, nursery: trio.Nursery) -> None:
        try:
            await self._out.run(nursery)
        except NetworkError:
            raise
        except CipherBoxError as error:
            # an envelope that cannot be sent or read; the connection itself works
            self.end(error)
            await self._out.run(nursery)
        self._scope.cancel()

    async def _listen(self) -> None:
        try:
            with self._reader:
                if not await self._open():
                    self._scope.cancel()
                    return
                await self._read()
                self._scope.cancel()
        except CipherBoxError as error:
            self.end(error)

    def end(self, error: CipherBoxError) -> None:
        """End this connection and send the peer the reason, unless the network is the reason."""
        if self._ended is not None:
            return
        self._ended = error
        word = b""
        if isinstance(error, GoingAway):
            word = codec.encode(frames.GoingAway(AWAY_PAUSE_MS, str(error)))
        elif not isinstance(error, NetworkError):
            word = codec.encode(encode.error_frame(0, error))
        self._finish(word)

    def _finish(self, word: bytes) -> None:
        self._out.finish(word)
        self._reader.cancel()
        self._scope.deadline = min(self._scope.deadline, trio.current_time() + LAST_WORD_S)

    def stop_reading(self) -> None:
        """Read nothing more from the peer; what was read is still answered."""
        self._stopped_reading = True
        if self._waiting:
            self._receiving.cancel()

    async def _open(self) -> bool:
        """Read HELLO, authenticate, send WELCOME; return False if the peer disconnected before."""
        with trio.move_on_after(self._limits.client_hello_s) as scope:
            while not (events := self._wire.events()):
                data = await self._stream.receive_some()
                if not data:
                    self._wire.receive_eof()
                    return False
                self._wire.receive_data(bytes(data))
        if scope.cancelled_caught:
            raise HandshakeTimeout
        hello: frames.Hello = events[0]
        version = negotiate(hello)
        certificate = self._stream.peer_certificate()
        if certificate is not None:
            self.client, self.role = self._shared.admission.admit(certificate)
            self.serial = pki.serial(certificate)
        if not self._shared.connections.enter(self):
            raise TooManyConnections
        self._authenticated()
        self._account = self._shared.memory.account(self.client)
        self._out.account = self._coming.account = self._in_flight.account = self._account
        limits = self._limits
        self._beat_s = min(limits.heartbeat_s, hello.heartbeat_s or limits.heartbeat_s)
        self._out.frame_bytes = max(hello.frame_bytes, limits.first_frame_bytes)
        self._put(
            self._wire.send(_welcome(self, self._shared, version, self._beat_s, self._log_key))
        )
        self.log("Client connected", software=hello.software[:80], remote=self.remote)
        return True

    # -- in ----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        """Read until the peer's end.  `stop_reading` cancels only a wait for the peer: what came in
        before that took effect is handled outside of its scope.
        """
        await self._handle()
        with self._receiving:
            while not self._stopped_reading:
                self._heard_at = trio.current_time()
                self._waiting = True
                self._coming.wait()
                size = await fill(self._stream, self._wire)
                self._waiting = False
                self._coming.pause()
                if not size:
                    self._wire.receive_eof()
                    return
                self._engine.counts.received_bytes += size
                if not self._stopped_reading:
                    await self._handle()
        await self._handle()
        await trio.sleep_forever()

    async def _handle(self) -> None:
        """Handle the complete frames, and wait until the peer may send more."""
        wire, counts = self._wire, self._engine.counts
        if events := wire.events():
            self._coming.whole()
        for event in events:
            counts.frames_received += len(event.items) if type(event) is SendBatch else 1
            await self._event(event, await self._shared.budgets.charge(self, event))
            while self._in_flight.full or self._out.size > _UNREAD_BYTES:
                await self._in_flight.changed.wait()
        await self._coming.count(publishes=self._in_flight.published)

    def _cut(self, why: str) -> None:
        """Close the connection: one of its frames, in or out, is too slow."""
        self.end(SlowFrame(why))

    async def _event(self, event: Any, refusal: Throttled | None) -> None:
        if type(event) is SendBatch:
            await self._publish(event)
            return
        if isinstance(event, frames.Ping):
            self._put(codec.encode(frames.Pong(event.correlation)))
            return
        if isinstance(event, frames.Pong | frames.Error):
            return
        if isinstance(event, frames.Credit):
            await self._engine.submit(
                m.Credit(self.connection, event.tag, event.envelopes, event.size)
            )
            return
        self._in_flight.next_correlation(event.correlation)
        self.asked_at = self._shared.clock_ms()
        try:
            if refusal is not None:
                raise refusal
            requests = self._shared.requests
            command = requests.command(self.connection, self.client, event)
            if command is not None:
                await self.ask(command)
                return
            began = time.perf_counter()
            answer = await requests.answer(self, event)
            if answer is not None:
                self._engine.counts.requests["directory"].observe(time.perf_counter() - began)
        except CipherBoxError as error:
            if isinstance(error, ProtocolError | NetworkError):
                raise
            self._refuse(event.correlation, error)
            return
        if answer is not None:
            data = codec.encode(answer)
            if len(data) > self._out.frame_bytes:
                data = codec.encode(
                    encode.error_frame(event.correlation, InvalidRequest("the answer is too large"))
                )
            self._put(data)

    def _refuse(self, correlation: int, error: CipherBoxError) -> None:
        if type(error) in encode.STORES:
            log.warning(
                "The store failed a request",
                extra={"client": self.client or "-", "error": str(error)},
            )
        self._put(codec.encode(encode.error_frame(correlation, error)))
        if error.closes or (self.role == "anonymous" and isinstance(error, Throttled)):
            self._ended = self._ended or error
            self._finish(b"")

    async def _publish(self, batch: SendBatch) -> None:
        items, taken, failed = [], [], []
        self.asked_at = now = self._shared.clock_ms()
        keys, client, most = self._sender_keys, self.client, self._limits.envelope_bytes
        for item in batch.items:
            correlation, _, _, raw = item
            self._in_flight.next_correlation(correlation)
            try:
                one = incoming(item, client, most)
                if not keys.valid(raw, now):
                    await keys.check(raw, client, now)
                items.append(one)
                taken.append(item)
            except CipherBoxError as error:
                failed.append(Failed(correlation, error))
        size = self._in_flight.publish(taken)
        if failed:
            self._put(b"".join(encode.encode(failed)))
        if items:
            await self._engine.submit(m.Publish(self.connection, self.client, items), size)

    async def ask(self, command: AnyCommand) -> None:
        """Submit a request to the engine, which answers through `answer` or `fetched`."""
        self._in_flight.requests += 1
        await self._engine.submit(command)

    def need_admin(self) -> None:
        if not self._shared.admission.is_admin(self.client):
            raise Forbidden("only an admin may do this")

    # -- out: the engine's Peer --------------------------------------------------------------------

    @property
    def lags(self) -> bool:
        return not self._out.empty

    def answer(self, answers: Sequence[Answer], proof: Proof | None = None) -> None:
        if self._returning and not (answers := [a for a in answers if a.correlation]):
            return
        self._in_flight.answered(answers)
        self._put(b"".join(encode.encode(answers, proof)))
        if log.isEnabledFor(logging.DEBUG):
            _log_refusals(self.client, self.connection, answers)

    def deliver(self, tag: int, queue: str, entries: list[Entry]) -> None:
        self._out.push(tag, queue, entries)

    def fetched(self, answer: FetchedEntries) -> None:
        self._in_flight.fetched()
        self._out.fetched(answer)

    def _requeue(self, queue: str, entries: Sequence[Entry]) -> None:
        """Requeue entries that a FETCH took and that do not fit into its answer."""
        self._returning = True
        for entry in entries:
            self._engine.post(
                m.Nack(self.connection, self.client, 0, queue, entry.seq, True, 0, "")
            )

    def _add_credit(self, tag: int, envelopes: int, size: int) -> None:
        """Return credit to a consumer for what was not sent to it."""
        self._engine.post(m.Credit(self.connection, tag, envelopes, size))

    def _put(self, data: bytes) -> None:
        self._out.put(data)
        if self._out.size > self._most_out:
            self._ended = self._ended or TimedOut("this client does not read its answers")
            self._scope.cancel()

    def notify(self, news: str, crl_number: int) -> None:
        """Send news to the peer."""
        if self._ended is None and self.client:
            self._put(codec.encode(frames.Ping(0, news, crl_number)))

    def tick(self, now: float) -> None:
        """Check deadlines and send heartbeats; called twice a second."""
        limits, beat, least = self._limits, self._beat_s, self._limits.slowest_bytes_per_s
        if self._ended is not None:
            return
        if self.role == "anonymous" and now - self._began >= limits.anonymous_s:
            self.end(
                HandshakeTimeout(
                    f"a connection without a certificate ends after {limits.anonymous_s:g} s"
                )
            )
        elif self._waiting and now - self._heard_at > 2 * beat:
            self.end(IdleTimeout())
        elif self._coming.slow(beat):
            self._cut(f"this frame arrives too slowly, below {least} bytes a second")
        elif self._out.stuck():
            self.end(TimedOut("this client does not read what HQ sends"))
        elif self._out.slow():
            self._cut(f"this client reads too slowly: below {least} bytes per second")
        elif (
            self.role != "anonymous" and self._engine.store_silent(now) is not self._outage_notified
        ):
            self._outage_notified = not self._outage_notified
            self.notify(STORE_UNAVAILABLE if self._outage_notified else STORE_AVAILABLE, 0)
        elif now - self._out.spoke_at >= beat / 2 and self._out.empty:
            self._put(codec.encode(frames.Ping(0)))

    # -- logs --------------------------------------------------------------------------------------

    def log(self, message: str, **more: object) -> None:
        """Log one INFO line with client and connection."""
        log.info(
            message, extra={"client": self.client or "-", "connection": self.connection, **more}
        )


def _welcome(
    session: Session, shared: Shared, version: int, heartbeat_s: int, log_key: bytes
) -> frames.Welcome:
    limits, engine = shared.limits, shared.engine
    state = engine.broker.state
    return frames.Welcome(
        version,
        limits.frame_bytes,
        limits.envelope_bytes,
        heartbeat_s,
        limits.publish_window,
        limits.publish_window_bytes,
        limits.credit_envelopes,
        limits.credit_bytes,
        session.connection,
        shared.clock_ms(),
        state.watermark,
        session.client,
        session.role,
        f"cipherbox {__version__}",
        log_key,
        engine.incarnation,
        frames.PREKEYS,
        engine.log_head(),
        state.rights.contacts_of(session.client).digest,
    )


def _log_refusals(client: str, connection: int, answers: Sequence[Answer]) -> None:
    extra = {"client": client, "connection": connection}
    for answer in answers:
        if isinstance(answer, Failed):
            log.debug(
                "Refused: %s", answer.error, extra={**extra, "correlation": answer.correlation}
            )
