"""One connection: a nursery with a reader and a writer; HQ's clock calls `tick`.

The reader turns frames into commands and stops reading while the client has more unconfirmed
publishes than its window, more questions open or more answers unread than it may, the engine has no
room, or HQ holds too much for all its publishers together: backpressure reaches the sender through
TCP, nothing is dropped.  The writer is `Outgoing`.  `end` is the one way out: it stops the reader,
lets what is queued and a last word go out within a short deadline, and closes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import trio

from cipherbox import __version__, pki
from cipherbox.broker import model as m
from cipherbox.broker.model import Answer, AnyCommand, Confirmed, Entry, Failed, FetchedEntries
from cipherbox.concurrency import Signal, first_of
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
from cipherbox.net.connecting import fill
from cipherbox.ops.logs import get_logger
from cipherbox.server.connection.incoming import IncomingFrame
from cipherbox.server.connection.outgoing import Outgoing
from cipherbox.server.connection.peer import STORE_AWAY, STORE_BACK, Proof
from cipherbox.server.connection.unauthenticated import group_of
from cipherbox.server.requests import answers as encode
from cipherbox.server.requests.dispatch import CALLS, COMMANDS, incoming
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import SendBatch, WireConnection, negotiate

if TYPE_CHECKING:
    from cipherbox.net.tls import TlsStream
    from cipherbox.net.websocket import WebSocketStream
    from cipherbox.server.hq import HQ

    Stream = TlsStream | WebSocketStream

log = get_logger(__name__)
LAST_WORD_S = 2.0  # for what is queued and the reason, when a connection ends
AWAY_PAUSE_MS = 1000  # what GOING_AWAY asks clients to wait
_UNREAD_BYTES = 4 * 1024 * 1024  # of answers; above it nothing more is read from this peer


class Session:
    """See the module; also the engine's `Peer`."""

    def __init__(
        self, hq: HQ, stream: Stream, remote: str, log_key: bytes, known: Callable[[], None]
    ) -> None:
        self.hq = hq
        self._known = known  # called when the peer has said who it is
        self.client = self.serial = ""  # who, and by which certificate
        self._log_key = log_key
        self.role = "anonymous"
        self.remote, self.address = remote, group_of(remote.rpartition(":")[0])
        self.connected_at = hq.clock_ms()
        # `asked_at`: when its newest request came, ms since 1970
        self.connection = self.asked_at = 0
        self._stream = stream
        self._limits = hq.config.limits
        self._beat_s = self._limits.heartbeat_s
        self._wire = WireConnection("server", self._limits)
        self._account = hq.memory.account("")  # what HQ holds for this client
        self._out = Outgoing(
            stream,
            hq.engine.bodies,
            self._limits,
            self._account,
            given_back=self._give_back,
            drained=self._wake,
            cut=self._cut,
            counts=hq.engine.counts,
        )
        self._coming = IncomingFrame(
            self._wire, self._limits, self._account, self._cut, lambda news: self.tell(news, 0)
        )
        self._most_out = self._limits.credit_bytes + self._limits.publish_window_bytes
        self._last_correlation = 0
        self._unconfirmed: dict[int, int] = {}  # correlation -> bytes of SENDs
        self._unconfirmed_bytes = 0
        self._publishes = False  # this client has published
        self._asked = 0  # other requests without an answer
        self._returning = False  # some answers are to our own NACKs, of correlation 0
        self._changed = Signal()
        self._began = self._heard_at = trio.current_time()
        # `_waiting`: for the peer to say something
        self._quiet = self._told_away = self._waiting = False
        # all of it; what listens to the peer
        self._scope, self._reader = trio.CancelScope(), trio.CancelScope()
        self._receiving = trio.CancelScope()
        self._ended: CipherBoxError | None = None

    # -- life --------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the connection ends; errors of this peer end here."""
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
            self._account.add(-self._unconfirmed_bytes)
            self._unconfirmed_bytes = 0
            self.hq.leave(self)
            with trio.move_on_after(LAST_WORD_S) as scope:
                scope.shield = True
                await self._stream.aclose()
            self.log(
                "WireConnection closed", **({"reason": str(self._ended)} if self._ended else {})
            )

    async def _write(self, nursery: trio.Nursery) -> None:
        try:
            await self._out.run(nursery)
        except NetworkError:
            raise
        except CipherBoxError as error:
            # an envelope that cannot be sent or read; the line itself is good
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
        """Ends this connection for a reason the peer is told, unless the line itself is the
        reason.
        """
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

    def quiet(self) -> None:
        """Takes nothing more from the peer; what was taken is still answered."""
        self._quiet = True
        self._receiving.cancel()

    async def _open(self) -> bool:
        """HELLO, who this is, WELCOME; False when the peer closed before."""
        with trio.move_on_after(self._limits.client_hello_s) as scope:
            while not (events := self._wire.events()):
                data = await self._stream.receive_some()
                if not data:
                    self._wire.receive_eof()
                    return False
                self._wire.receive_data(data)
        if scope.cancelled_caught:
            raise HandshakeTimeout
        hello: frames.Hello = events[0]
        version = negotiate(hello)
        certificate = self._stream.peer_certificate()
        if certificate is not None:
            self.client, self.role = self.hq.admit(certificate)
            self.serial = pki.serial(certificate)
        if not self.hq.enter(self):
            raise TooManyConnections
        self._known()
        self._account = self._out.account = self._coming.account = self.hq.memory.account(
            self.client
        )
        limits = self._limits
        self._beat_s = min(limits.heartbeat_s, hello.heartbeat_s or limits.heartbeat_s)
        self._out.frame_bytes = max(hello.frame_bytes, limits.first_frame_bytes)
        welcome = frames.Welcome(
            version,
            limits.frame_bytes,
            limits.envelope_bytes,
            self._beat_s,
            limits.publish_window,
            limits.publish_window_bytes,
            limits.credit_envelopes,
            limits.credit_bytes,
            self.connection,
            self.hq.clock_ms(),
            self.hq.engine.broker.state.watermark,
            self.client,
            self.role,
            f"cipherbox {__version__}",
            self._log_key,
            self.hq.engine.history,
            frames.PREKEYS,
            self.hq.engine.log_head(),
            self.hq.engine.broker.state.rights.contacts_of(self.client).digest,
        )
        self._put(self._wire.send(welcome))
        self.log("Client connected", software=hello.software[:80], remote=self.remote)
        return True

    # -- in ----------------------------------------------------------------------------------------

    async def _read(self) -> None:
        wire, counts = self._wire, self.hq.engine.counts
        while not self._quiet:
            if events := wire.events():
                self._coming.whole()
            for event in events:
                counts.frames_received += len(event.items) if type(event) is SendBatch else 1
                await self._event(event, await self.hq.budgets.charge(self, event))
                while self._full():
                    await self._changed.wait()
            await self._coming.count(publishes=self._publishes)
            size = await self._receive()
            if size is None:
                break
            if not size:
                wire.receive_eof()
                return
            counts.received_bytes += size
        await trio.sleep_forever()

    def _cut(self, why: str) -> None:
        """A frame of this connection, in or out, is too slow."""
        self.end(SlowFrame(why))

    async def _receive(self) -> int | None:
        """How many bytes came, 0 at the end; None when `quiet` was asked for meanwhile."""
        self._heard_at = trio.current_time()
        self._waiting = True
        with trio.CancelScope() as self._receiving:
            if self._quiet:
                return None
            self._coming.wait()
            size = await fill(self._stream, self._wire)
            self._waiting = False
            self._coming.pause()
            return size
        return None

    def _full(self) -> bool:
        limits = self._limits
        return (
            len(self._unconfirmed) > limits.publish_window
            or self._unconfirmed_bytes > limits.publish_window_bytes
            or self._asked > limits.requests_in_flight
            or self._out.size > _UNREAD_BYTES
        )

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
            await self.hq.engine.submit(
                m.Credit(self.connection, event.tag, event.envelopes, event.size)
            )
            return
        self._next_correlation(event.correlation)
        self.asked_at = self.hq.clock_ms()
        try:
            if refusal is not None:
                raise refusal
            make = COMMANDS.get(type(event))
            if make is not None:
                await self.ask(make(self.connection, self.client, event))
                return
            began = time.perf_counter()
            answer = await CALLS[type(event)](self, event)
            if answer is not None:
                self.hq.engine.counts.requests["directory"].observe(time.perf_counter() - began)
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

    def _next_correlation(self, correlation: int) -> None:
        if correlation <= self._last_correlation:
            raise ProtocolError(
                f"correlation ids rise by one; {correlation} came after {self._last_correlation}"
            )
        self._last_correlation = correlation

    async def _publish(self, batch: SendBatch) -> None:
        items, failed, size = [], [], 0
        self.asked_at = self.hq.clock_ms()
        for item in batch.items:
            self._next_correlation(item[0])
            try:
                items.append(incoming(item, self.client, self._limits.envelope_bytes))
            except CipherBoxError as error:
                failed.append(Failed(item[0], error))
                continue
            self._unconfirmed[item[0]] = len(item[3])
            size += len(item[3])
        self._unconfirmed_bytes += size
        self._publishes = True
        self._account.add(size)
        if failed:
            self._put(b"".join(encode.encode(failed)))
        if items:
            await self.hq.engine.submit(m.Publish(self.connection, self.client, items), size)

    async def ask(self, command: AnyCommand) -> None:
        """Hands a request to the engine; its answer comes through `answer` or `fetched`."""
        self._asked += 1
        await self.hq.engine.submit(command)

    def need_admin(self) -> None:
        if not self.hq.is_admin(self.client):
            raise Forbidden("only an admin may do that")

    # -- out: the engine's Peer --------------------------------------------------------------------

    def answer(self, answers: Sequence[Answer], proof: Proof | None = None) -> None:
        if self._returning:
            answers = [a for a in answers if a.correlation]
        unconfirmed, before = self._unconfirmed, self._unconfirmed_bytes
        for answer in answers:
            if type(answer) is Confirmed or answer.correlation in unconfirmed:
                self._unconfirmed_bytes -= unconfirmed.pop(answer.correlation, 0)
            else:
                self._asked -= 1
        self._account.add(self._unconfirmed_bytes - before)
        self._changed.notify()
        for data in encode.encode(answers, proof):
            self._put(data)
        if log.isEnabledFor(logging.DEBUG):
            self._log_answers(answers)

    def hand(self, tag: int, queue: str, entries: list[Entry]) -> None:
        self._out.push(tag, queue, entries)

    def fetched(self, answer: FetchedEntries) -> None:
        self._asked -= 1
        self._changed.notify()
        self._out.fetched(answer)

    def _give_back(self, queue: str, entries: Sequence[Entry]) -> None:
        """What a FETCH took and its answer has no room for returns to the queue."""
        self._returning = True
        for entry in entries:
            self.hq.engine.post(
                m.Nack(self.connection, self.client, 0, queue, entry.seq, True, 0, "")
            )

    def _put(self, data: bytes) -> None:
        self._out.put(data)
        if self._out.size > self._most_out:
            self._ended = self._ended or TimedOut("this client asks and does not read the answers")
            self._scope.cancel()

    def tell(self, news: str, crl_number: int) -> None:
        """A word from HQ that nobody asked for."""
        if self._ended is None and self.client:
            self._put(codec.encode(frames.Ping(0, news, crl_number)))

    def _wake(self) -> None:
        self._changed.notify()

    def tick(self, now: float) -> None:
        """Called twice a second: deadlines, and a sign of life when there was none."""
        limits, beat = self._limits, self._beat_s
        if self._ended is not None:
            return
        if self.role == "anonymous" and now - self._began >= limits.anonymous_s:
            self.end(
                HandshakeTimeout(
                    f"without a certificate a connection ends after {limits.anonymous_s:g} s"
                )
            )
        elif self._waiting and now - self._heard_at > 2 * beat:
            self.end(IdleTimeout())
        elif self._coming.slow(beat):
            self._cut(
                f"this frame comes too slowly: less than {limits.slowest_bytes_per_s} bytes a "
                "second"
            )
        elif self._out.slow():
            self._cut(
                f"this client reads too slowly: less than {limits.slowest_bytes_per_s} bytes a "
                "second"
            )
        elif self.role != "anonymous" and self.hq.engine.store_away(now) is not self._told_away:
            self._told_away = not self._told_away
            self.tell(STORE_AWAY if self._told_away else STORE_BACK, 0)
        elif now - self._out.spoke_at >= beat / 2 and self._out.empty:
            self._put(codec.encode(frames.Ping(0)))

    # -- logs --------------------------------------------------------------------------------------

    def log(self, message: str, **more: object) -> None:
        """One INFO line with client and connection."""
        log.info(
            message, extra={"client": self.client or "-", "connection": self.connection, **more}
        )

    def _log_answers(self, found: Sequence[Answer]) -> None:
        extra = {"client": self.client, "connection": self.connection}
        for answer in found:
            if isinstance(answer, Failed):
                log.debug(
                    "Refused: %s", answer.error, extra={**extra, "correlation": answer.correlation}
                )
