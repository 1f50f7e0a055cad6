"""A bidirectional pipe between two clients: bytes arrive in order, each exactly once.

One end calls (`Pipe.call`), the other waits for one named client (`Pipe.listen`); then frames (see
`frames`) carry the bytes.  Frames are numbered, so redelivery and reordering by HQ change nothing.
At most `WINDOW` bytes are sent and not yet written out at the other end: a stalled reader stalls
the writer, and neither end nor HQ holds more.  Each end sends a frame at least four times in the
shorter ``idle_s``; an end that receives nothing for its own ``idle_s``, while it was connected to
HQ, gives up.

The home's lock is held, so that no other receiver takes the frames.  Other messages that arrive
meanwhile enter the inbox.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

from cipherbox.apps.pipe.frames import Frame, Kind
from cipherbox.apps.pipe.mail import receive_frames
from cipherbox.classes import define
from cipherbox.client.outbox.rows import PARKED, WAITING, Row
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Signal, background
from cipherbox.errors import (
    CipherBoxError,
    PeerGone,
    ProtocolError,
    Queued,
    Refused,
)
from cipherbox.portable import escape_text

if TYPE_CHECKING:
    from cipherbox.client.client import Client

CHUNK = 256 * 1024  # bytes of one frame at most
WINDOW, WINDOW_FRAMES = 4 * 1024 * 1024, 256  # under way and not yet written out at the other end
IDLE_S, WITHIN_S = 60.0, 60.0
KEEP_MS = 24 * 3600 * 1000  # HQ delivers no frame that is older
_CLOSE_S = 3.0
_LOOK_S = 5.0  # between checks of the oldest frame's state
_TICK_S = 0.25


class Ends(Protocol):
    """The two ends of a pipe on this machine."""

    async def read(self, most: int) -> bytes: ...  # b"" at the end of the input

    async def write(self, data: bytes) -> None: ...  # returns when all is written

    async def close(self) -> None: ...  # nothing more will be written


@define(eq=False)
class _Sent:
    """A frame in flight; ``number`` 0: it is not numbered."""

    number: int
    size: int
    envelope_id: bytes = b""


class Pipe:
    """See the module.  One object is one pipe; ``idle_s`` 0: never give up."""

    def __init__(self, client: Client, peer: str, ends: Ends, *, idle_s: float = IDLE_S) -> None:
        self.client, self.peer = client, peer
        self.sent = self.received = 0  # bytes
        self._ends, self._idle_s = ends, idle_s
        self._heartbeat_s = (idle_s or IDLE_S) / 4
        self._pipe = b""
        self._opening = b""  # envelope id of the OPEN that is answered
        self._calling = self._open = self._ended = self._peer_aborted = self._closing = False
        self._both_call = False
        self._opened = trio.Event()
        self._finished = trio.Event()
        self._failure: Exception | None = None
        self._changed = Signal()
        self._post_lock = trio.Lock()
        self._nursery: trio.Nursery | None = None
        # from here to there
        self._unsent = bytearray()
        self._input_over = self._end_sent = False
        self._number = 0
        self._in_flight: deque[_Sent] = deque()
        self._in_flight_bytes = 0
        self._done: list[_Sent] = []  # written out at the other end, and still in the outbox
        self._last = _Sent(0, 0)
        # from there to here
        self._unwritten: dict[int, Frame] = {}
        self._unwritten_bytes = 0
        self._written = self._reported = 0
        self._unreported_bytes = 0
        self._peer_ended = False
        self._received_at = self._posted_at = trio.current_time()

    async def call(self, within_s: float = WITHIN_S) -> None:
        """Call the other end, and carry bytes until both inputs have ended and all is written out.

        Raise PeerGone if it does not answer within ``within_s``, falls silent, or aborts.
        """
        self._calling, self._pipe = True, os.urandom(16)

        async def begin() -> None:
            await self._post(Kind.OPEN, self._idle_text(), keep_ms=int(within_s * 1000))
            with trio.move_on_after(within_s):
                await self._opened.wait()
                await self._post(Kind.ALIVE)
                return
            both = (
                "; it called here as well: one of the two ends needs --listen"
                if self._both_call
                else ""
            )
            here = self.client.client_id
            there = f"there it takes: cipherbox pipe {here} --listen"
            raise PeerGone(f"{self.peer} did not answer within {within_s:g} s{both}; {there}")

        await self._run(begin)

    async def listen(self, within_s: float = float("inf")) -> None:
        """Wait until the other end calls, then carry bytes as `call` does."""

        async def begin() -> None:
            with trio.move_on_after(within_s):
                await self._opened.wait()
                return
            raise PeerGone(f"{self.peer} did not call within {within_s:g} s")

        await self._run(begin)

    # -- the tasks ---------------------------------------------------------------------------------

    async def _run(self, begin: Callable[[], Awaitable[None]]) -> None:
        client = self.client
        receiver = Receiver(client)
        async with receiver.locked_soon():
            await client.bundles([self.peer])  # an unknown peer is reported immediately
            async with client.consume_unopened(envelopes=64, size=2 * WINDOW) as consumer:
                mail = (client, consumer, receiver, self.peer, self._receive)
                async with background() as nursery:
                    self._nursery = nursery
                    nursery.start_soon(self._guarded, receive_frames, *mail)
                    nursery.start_soon(self._guarded, self._carry, begin, nursery)
                    try:
                        await self._finished.wait()
                    finally:
                        with trio.move_on_after(_CLOSE_S, shield=True):
                            # a frame on its way to the outbox is there, and will be dropped
                            async with self._post_lock:
                                self._closing = True
                        nursery.cancel_scope.cancel()
                        with (
                            trio.move_on_after(_CLOSE_S, shield=True),
                            suppress(CipherBoxError),
                        ):
                            await self._drop([sent for sent in self._in_flight if sent.envelope_id])
                            await self._send_break()
                            await self._delete_finished()
        if self._failure is not None:
            raise self._failure

    async def _carry(self, begin: Callable[[], Awaitable[None]], nursery: trio.Nursery) -> None:
        await begin()
        self._open = True
        self._received_at = trio.current_time()
        nursery.start_soon(self._guarded, self._watch)
        async with trio.open_nursery() as both:
            # may still wait for input when all else is over
            nursery.start_soon(self._guarded, self._read)
            both.start_soon(self._send)
            both.start_soon(self._write)
        while self._in_flight:
            await self._changed.wait()
        await self._last_confirmed()
        self._ended = True
        self._finished.set()

    async def _guarded(self, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
        try:
            await work(*arguments)
        except* (CipherBoxError, OSError) as group:
            error: BaseException = group
            while isinstance(error, BaseExceptionGroup):
                error = error.exceptions[0]
            assert isinstance(error, Exception)
            self._fail(error)

    def _fail(self, error: Exception) -> None:
        if not self._finished.is_set():
            self._failure = error
            self._finished.set()

    async def _read(self) -> None:
        while data := await self._ends.read(CHUNK):
            self._unsent += data
            self._wake()
            while len(self._unsent) >= CHUNK:
                await self._changed.wait()
        self._input_over = True
        self._wake()

    async def _send(self) -> None:
        while not self._end_sent:
            full = self._in_flight_bytes >= WINDOW or len(self._in_flight) >= WINDOW_FRAMES
            if full or not (self._unsent or self._input_over):
                await self._changed.wait()
                continue
            data = bytes(self._unsent[:CHUNK])
            del self._unsent[: len(data)]
            self._wake()
            self._end_sent = not data
            await self._post(Kind.DATA if data else Kind.END, data)
            self.sent += len(data)

    async def _write(self) -> None:
        """Write out received frames in order; report it often enough that the other end need not
        wait.
        """
        while not self._peer_ended:
            frame = self._unwritten.get(self._written + 1)
            if frame is None:
                await self._changed.wait()
                continue
            if frame.kind == Kind.END:
                await self._ends.close()
                self._peer_ended = True
            else:
                await self._ends.write(frame.data)
            del self._unwritten[frame.number]
            self._written = frame.number
            size = len(frame.data)
            self._unwritten_bytes -= size
            self._unreported_bytes += size
            self.received += size
            many = (
                self._unreported_bytes >= WINDOW // 4
                or self._written - self._reported >= WINDOW_FRAMES // 4
            )
            if many or self._peer_ended:
                await self._post(Kind.ALIVE)

    async def _watch(self) -> None:
        """Send heartbeats, and notice when the other end sends none."""
        looked_at = 0.0
        tick_s = min(_TICK_S, self._heartbeat_s / 2)
        while True:
            await trio.sleep(tick_s)
            now = trio.current_time()
            if self.client.connection.current is None:
                self._received_at = now
            elif self._idle_s and now - self._received_at > self._idle_s:
                gone = "its program, its machine or its line is gone"
                raise PeerGone(f"nothing came from {self.peer} for {self._idle_s:g} s: {gone}")
            if now - self._posted_at >= self._heartbeat_s:
                await self._post(Kind.ALIVE)
            await self._delete_finished()
            if self._in_flight and now - looked_at > _LOOK_S:
                looked_at = now
                row = await self._row(self._in_flight[0])
                if row is not None and row.state == PARKED:
                    raise Refused(f"HQ refused what was sent: {row.reason}")

    # -- frames ------------------------------------------------------------------------------------

    async def _post(
        self, kind: Kind, data: bytes = b"", *, keep_ms: int = KEEP_MS, wait: bool = False
    ) -> None:
        async with self._post_lock:
            if self._closing and kind != Kind.BREAK:
                return
            number = 0
            if kind in (Kind.DATA, Kind.END):
                self._number += 1
                number = self._number
            self._reported, self._unreported_bytes = self._written, 0
            self._posted_at = trio.current_time()
            frame = Frame(kind, self._pipe, number, self._reported, data)
            sent = self._last = _Sent(number, len(data))
            if number:  # recorded first: the answer may be faster than this machine's disk
                self._in_flight.append(sent)
                self._in_flight_bytes += sent.size
            else:
                self._done.append(sent)
            confirmation = await self.client.publish(
                frame.message(),
                to=[self.peer],
                expires_at=self.client.hq_clock.now_ms() + keep_ms,
                wait=wait,
            )
            sent.envelope_id = confirmation.envelope_id

    async def _delete_finished(self) -> None:
        """Delete finished frames from the outbox: as files they may be large, as rows many."""
        over = self._ended  # HQ has the last frame, so earlier ones are no longer needed
        gone = [
            s
            for s in self._done
            if s.envelope_id and (s.number or over or not await self._is_waiting(s))
        ]
        await self._drop(gone)
        self._done = [sent for sent in self._done if sent not in gone]

    async def _drop(self, sent: Sequence[_Sent]) -> None:
        if sent:
            outbox_sender = self.client.outbox()
            await outbox_sender.store(outbox_sender.outbox.drop, [one.envelope_id for one in sent])

    def _receive(self, frame: Frame, envelope_id: bytes) -> bool:
        """Take a frame; return whether to acknowledge it: not an OPEN for the next listener."""
        if frame.kind == Kind.OPEN:
            return self._receive_open(frame, envelope_id)
        if frame.pipe != self._pipe:
            return True  # of a pipe that ended
        self._received_at = trio.current_time()
        self._acknowledged(frame.written)
        if frame.kind == Kind.BREAK:
            if not self._calling and not self._opened.is_set():
                self._pipe = b""  # the caller gave up: wait for the next call
                return True
            reason = escape_text(frame.data[:500].decode("utf-8", "replace"))
            self._peer_aborted = True
            self._fail(PeerGone(f"{self.peer} broke off: {reason}"))
            return True
        if frame.kind == Kind.ACCEPT:
            self._set_heartbeat(frame)
        if not self._calling or frame.kind == Kind.ACCEPT:
            self._opened.set()
        if frame.number > self._written and frame.number not in self._unwritten:
            self._unwritten[frame.number] = frame
            self._unwritten_bytes += len(frame.data)
            if self._unwritten_bytes > WINDOW + CHUNK or len(self._unwritten) > WINDOW_FRAMES:
                self._fail(ProtocolError(f"{self.peer} sends more than was agreed"))
        self._wake()
        return True

    def _receive_open(self, frame: Frame, envelope_id: bytes) -> bool:
        if self._calling:
            self._both_call = True
            return True
        if self._opened.is_set():
            if frame.pipe != self._pipe and envelope_id > self._opening:
                self._fail(PeerGone(f"{self.peer} began another pipe; its end of this one is gone"))
                return False
            return True
        if envelope_id > self._opening:  # the newest counts: earlier calls were given up
            self._pipe, self._opening = frame.pipe, envelope_id
            self._set_heartbeat(frame)
            assert self._nursery is not None
            self._nursery.start_soon(self._guarded, self._post, Kind.ACCEPT, self._idle_text())
        return True

    def _set_heartbeat(self, frame: Frame) -> None:
        with suppress(ValueError):
            theirs = float(frame.data[:32])
            shorter = min(s for s in (theirs, self._idle_s, IDLE_S * 4) if s > 0)
            self._heartbeat_s = max(shorter / 4, 0.1)

    def _acknowledged(self, number: int) -> None:
        while self._in_flight and self._in_flight[0].number <= number:
            sent = self._in_flight.popleft()
            self._in_flight_bytes -= sent.size
            self._done.append(sent)

    def _idle_text(self) -> bytes:
        return f"{self._idle_s:g}".encode()

    async def _row(self, sent: _Sent) -> Row | None:
        outbox_sender = self.client.outbox()
        row = await outbox_sender.store(outbox_sender.outbox.find, sent.envelope_id)
        return row if isinstance(row, Row) else None

    async def _is_waiting(self, sent: _Sent) -> bool:
        row = await self._row(sent)
        return row is not None and row.state == WAITING

    async def _last_confirmed(self) -> None:
        """Wait until HQ has confirmed this end's last frame: the other end waits for it."""
        connection = self.client.connection
        end = trio.current_time() + connection.tries * connection.timeout_s
        while await self._is_waiting(self._last):
            if trio.current_time() > end:
                text = f"all is written out, but HQ has not confirmed the last word to {self.peer}"
                raise Queued(f"{text}; it waits in the outbox")
            await trio.sleep(_TICK_S / 5)

    async def _send_break(self) -> None:
        """Send the other end the reason for the abort, if that is possible quickly."""
        answered = self._open or (not self._calling and self._pipe != b"")
        stopped = self._failure is None and self._pipe != b""
        if self._ended or self._peer_aborted or not (answered or stopped):
            return
        reason = "it was stopped" if self._failure is None else str(self._failure)
        await self._post(Kind.BREAK, reason.encode()[:500], wait=True)

    def _wake(self) -> None:
        self._changed.notify()
