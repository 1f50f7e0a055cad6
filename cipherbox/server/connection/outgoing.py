"""The send queue of one peer, and the task that sends it, in order.

Answers are queued as bytes, deliveries as numbers: their envelopes are taken from memory or read
from the store when it is their turn, and the next frame's while one is sent.  So a peer that reads
slowly costs HQ two frames, which count in its client's share of the memory.  The connection of a
peer that accepts nothing for a whole timeout is closed (`stuck`), and so is that of one that
accepts a large frame too slowly (`slow`); no other peer waits for it.  The session asks for both
twice a second: a timeout around each send would cost a fortieth of HQ's time where messages come
alone.

A small frame that nothing is queued before is sent at once, without the task: a turn of the event
loop costs as much as the frame.  What the network does not take then, the task sends.

A queued delivery has used its consumer's credit, by the size that the envelope had then.  Before
its turn comes, the envelope may be acknowledged over another connection or by an ACK repeated on
this one, and its bytes are gone; a new generation may replace it by one of another size; or its
bytes prove damaged.  The peer returns the credit of what it receives, so the rest is returned here:
otherwise a consumer whose whole credit was queued would wait for ever.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol

import trio

from cipherbox.broker.model import Entry, FetchedEntries
from cipherbox.concurrency import Flag
from cipherbox.errors import CipherBoxError, FrameTooLarge
from cipherbox.limits import Limits
from cipherbox.ops.metrics import Counts
from cipherbox.server.body_cache import BodyCache
from cipherbox.server.connection.backpressure import LARGE, Account, Transfer
from cipherbox.server.requests import answers
from cipherbox.wire import codec

_JOIN_BYTES = 256 * 1024  # small frames are joined up to this
_SLICE_BYTES = 64 * 1024  # sent per call: small enough to see whether a large frame moves
# a peer that accepts a slice within this time gets larger ones: each call costs HQ 60 us
_FAST_S = 0.05
_FRAME_BYTES = 64  # of a frame's other fields
# Sent at once at most: one TLS record.  What the network does not take of it counts in no account.
_NOW_BYTES = 16 * 1024


class Sink(Protocol):
    """The stream that bytes are sent to."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...


class QueuedDelivery:
    """Entries for one consumer, cut into DELIVER frames as they are sent."""

    __slots__ = ("at", "entries", "queue", "tag")

    def __init__(self, tag: int, queue: str, entries: list[Entry]) -> None:
        self.tag = tag
        self.queue = queue
        self.entries = entries
        self.at = 0

    def cut(self, most: int, *, keep: bool = False) -> list[Entry]:
        """Return the next entries that fit into a frame, at least one; ``keep`` does not
        advance.
        """
        end, size = self.at, 0
        while end < len(self.entries):
            size += self.entries[end][2] + codec.DELIVERED_BYTES
            if size > most and end > self.at:
                break
            end += 1
        start = self.at
        self.at = start if keep else end
        return self.entries[start:end]


class ReadAhead:
    """The envelopes of the next frame, being read from the store."""

    __slots__ = ("done", "entries", "error", "items", "size")

    def __init__(self, entries: list[Entry]) -> None:
        self.entries = entries
        self.size = sum(entry.size for entry in entries)
        self.items: list[codec.DeliveredItem] = []
        self.error: CipherBoxError | None = None
        self.done = trio.Event()

    async def read(self, bodies: BodyCache, queue: str) -> None:
        try:
            self.items = await bodies.items(queue, self.entries)
        except CipherBoxError as error:
            self.error = error
        self.done.set()


class SendQueue:
    """The send queue of one peer.

    ``requeue(queue, entries)`` gets what did not fit into a FETCHED; ``unused(tag, envelopes,
    bytes)`` the credit that deliveries to a consumer have used and that the peer will not return,
    the bytes negative if it will return more; ``drained`` is called after each send.
    """

    def __init__(
        self,
        sink: Sink,
        bodies: BodyCache,
        limits: Limits,
        account: Account,
        *,
        requeue: Callable[[str, Sequence[Entry]], None],
        unused: Callable[[int, int, int], None],
        drained: Callable[[], None],
        cut: Callable[[str], None],
        counts: Counts | None = None,
    ) -> None:
        self._counts = counts or Counts()
        self.size = 0  # bytes of queued answers
        self.spoke_at = trio.current_time()
        self.frame_bytes = limits.frame_bytes  # the most the peer accepts, from HELLO
        self._sink = sink
        # TLS has it; WebSocket does not, since its messages are another task's
        self._send_now: Callable[[bytes], bool] | None = getattr(sink, "send_now", None)
        self._idle = False  # `run` waits for something to send
        self._bodies = bodies
        self.account = account  # memory held for this client
        self._limits = limits
        self._cut = cut
        self._sending: Transfer | None = None  # the frame that is being sent
        self._deadline_s = 2.0 * limits.heartbeat_s
        self._deliver_bytes = limits.deliver_frame_bytes
        self._requeue = requeue
        self._unused = unused
        self._drained = drained
        self._queue: deque[bytes | QueuedDelivery | FetchedEntries] = deque()
        self._ready = Flag()
        self._last = False
        self._ahead: ReadAhead | None = None
        self._slice = _SLICE_BYTES  # of the next send

    @property
    def empty(self) -> bool:
        return not self._queue

    def put(self, data: bytes) -> None:
        """Send encoded frames, or queue them."""
        if len(data) <= _NOW_BYTES and self._may_send_now():
            self._sent_now(data)
            return
        self._queue.append(data)
        self.size += len(data)
        self._ready.set()

    def push(self, tag: int, queue: str, entries: list[Entry]) -> None:
        """Send entries to a consumer, or queue them."""
        if self._last:
            return
        size = sum([entry[2] + codec.DELIVERED_BYTES for entry in entries])
        if size <= min(_NOW_BYTES, self._most()) and self._may_send_now():
            items = self._bodies.held(entries)
            if items:
                self._return_unused(tag, entries, items)
                self._sent_now(b"".join(codec.encode_deliver(tag, items)))
                return
        self._queue.append(QueuedDelivery(tag, queue, entries))
        self._ready.set()

    def _may_send_now(self) -> bool:
        """Return whether nothing is queued or being sent."""
        return self._idle and not self._queue and not self._last and self._send_now is not None

    def _sent_now(self, data: bytes) -> None:
        assert self._send_now is not None
        if self._send_now(data):
            self._counts.frames_sent += 1
        else:
            self._queue.append(b"")  # `run` sends the rest
            self._ready.set()
        self._counts.sent_bytes += len(data)
        self.spoke_at = trio.current_time()

    def fetched(self, answer: FetchedEntries) -> None:
        """Queue the answer to a FETCH."""
        if not self._last:
            self._queue.append(answer)
            self._ready.set()

    def finish(self, word: bytes) -> None:
        """Send the queued answers and ``word``, then let `run` return; drop queued deliveries."""
        self._last = True
        self._queue = deque(item for item in self._queue if isinstance(item, bytes))
        self.put(word)

    async def run(self, nursery: trio.Nursery) -> None:
        """Send until `finish`.  Read-ahead runs in ``nursery``."""
        while True:
            self._ready.clear()
            while self._queue:
                await self._some(nursery)
            if self._last:
                return
            self._idle = True
            await self._ready.wait()
            self._idle = False

    async def _some(self, nursery: trio.Nursery) -> None:
        """Send what can be joined.  The queue may change at every await."""
        going: list[list[codec.Octets]] = []
        size = 0
        while self._queue and size < _JOIN_BYTES:
            head = self._queue[0]
            if isinstance(head, bytes):
                self._queue.popleft()
                self.size -= len(head)
                frame: list[codec.Octets] = [head]
            else:
                queue, entries = self._next_entries(head)
                used = sum([entry[2] for entry in entries])
                if self._ahead is None and used >= LARGE:
                    if going:
                        await self._send(going)
                        going, size = [], 0
                    await self.account.room()
                items = self._bodies.held(entries)
                if items is None or self._too_large(entries):
                    if going:
                        await self._send(going)
                        going, size = [], 0
                    self._check(queue, entries)
                    items = await self._read(queue, entries)
                self._drop_ahead()
                self._read_ahead(nursery)
                if isinstance(head, QueuedDelivery):
                    self._return_unused(head.tag, entries, items)
                frame = self._frame(head, items)
            going.append(frame)
            size += sum(map(len, frame))
        if going:
            await self._send(going)

    def _return_unused(
        self, tag: int, entries: list[Entry], items: list[codec.DeliveredItem]
    ) -> None:
        """Return the credit of what is not sent."""
        envelopes = len(entries) - len(items)
        left = sum([entry[2] for entry in entries]) - sum([len(item[4]) for item in items])
        if envelopes or left:
            self._unused(tag, envelopes, left)

    async def _read(self, queue: str, entries: list[Entry]) -> list[codec.DeliveredItem]:
        ahead, self._ahead = self._ahead, None
        if ahead is not None and ahead.entries == entries:
            try:
                await ahead.done.wait()
            finally:
                self.account.add(-ahead.size)
            if ahead.error is not None:
                raise ahead.error
            return ahead.items
        if ahead is not None:
            self.account.add(-ahead.size)
        size = sum(entry.size for entry in entries)
        self.account.add(size)
        try:
            return await self._bodies.items(queue, entries)
        finally:
            self.account.add(-size)

    def _read_ahead(self, nursery: trio.Nursery) -> None:
        head = self._queue[0] if self._queue else None
        if isinstance(head, QueuedDelivery) and not (
            self.account.full or self.account.memory.closed
        ):
            entries = head.cut(self._most(), keep=True)
            if self._bodies.held(entries) is None and not self._too_large(entries):
                self._drop_ahead()
                self._ahead = ReadAhead(entries)
                self.account.add(self._ahead.size)
                nursery.start_soon(self._ahead.read, self._bodies, head.queue)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self.account.add(-self._ahead.size)
            self._ahead = None

    def close(self) -> None:
        """Release the read-ahead of an ended connection."""
        self._drop_ahead()

    def slow(self) -> bool:
        """Return whether the peer accepts a large frame too slowly."""
        sending, limits = self._sending, self._limits
        return sending is not None and sending.late(limits.progress_s, limits.slowest_bytes_per_s)

    def stuck(self) -> bool:
        """Return whether the peer has accepted nothing for a whole timeout."""
        return self._sending is not None and self._sending.waits_s > self._deadline_s

    def _most(self) -> int:
        return min(self._deliver_bytes, self.frame_bytes - _FRAME_BYTES)

    def _next_entries(self, head: QueuedDelivery | FetchedEntries) -> tuple[str, list[Entry]]:
        """Take the entries of the next frame from the queue."""
        if isinstance(head, QueuedDelivery):
            entries = head.cut(self._most())
            if head.at == len(head.entries):
                self._queue.popleft()
        else:
            run = QueuedDelivery(0, head.queue, head.entries)
            entries = run.cut(self.frame_bytes - _FRAME_BYTES)
            if run.at < len(head.entries):
                self._requeue(head.queue, head.entries[run.at :])
            self._queue.popleft()
        return head.queue, entries

    def _too_large(self, entries: list[Entry]) -> bool:
        return (
            len(entries) == 1
            and entries[0].size + codec.DELIVERED_BYTES + _FRAME_BYTES > self.frame_bytes
        )

    def _check(self, queue: str, entries: list[Entry]) -> None:
        if self._too_large(entries):
            raise FrameTooLarge(
                f"an envelope of {entries[0].size} bytes waits in {queue}, but this client accepts "
                f"frames of at most {self.frame_bytes}"
            )

    def _frame(
        self, head: QueuedDelivery | FetchedEntries, items: list[codec.DeliveredItem]
    ) -> list[codec.Octets]:
        if isinstance(head, FetchedEntries):
            return [answers.fetched(head, items)]
        return codec.encode_deliver(head.tag, items) if items else []

    async def _send(self, frames: list[list[codec.Octets]]) -> None:
        """Send frames, each in its pieces."""
        data = codec.Pieces([*chain.from_iterable(frames)])
        total = data.size
        memory, going = self.account.memory, Transfer(total, self._cut)
        going.held = total
        self._sending = going
        self.account.add(total)
        memory.began(going)
        try:
            while True:
                before = going.waited
                going.wait()
                await self._sink.send_all(data.take(self._slice))
                going.pause()
                going.moved = total - data.size
                fast = going.waited - before < _FAST_S
                self._slice = min(2 * self._slice, _JOIN_BYTES) if fast else _SLICE_BYTES
                if not data.size:
                    break
        finally:
            self._sending = None
            memory.ended(going)
            self.account.add(-total)
        self._counts.frames_sent += len(frames)
        self._counts.sent_bytes += total
        self.spoke_at = trio.current_time()
        self._drained()
