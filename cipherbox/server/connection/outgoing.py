"""What waits to be sent to one peer, in order, and the task that sends it.

Answers wait as bytes.  Deliveries wait as numbers: their envelopes are taken from memory or read
from the store when their turn has come, and the next frame's while one is sent, so a peer that
reads slowly costs HQ two frames, which count in its client's share of the memory.  A peer that
takes nothing for a whole deadline is cut, and so is one that takes a large frame too slowly
(`slow`); nobody else waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from cipherbox.broker.model import Entry, FetchedEntries
from cipherbox.concurrency import Flag
from cipherbox.errors import CipherBoxError, FrameTooLarge, TimedOut
from cipherbox.limits import Limits
from cipherbox.ops.metrics import Counts
from cipherbox.server.body_cache import BodyCache
from cipherbox.server.connection.backpressure import LARGE, Account, Transfer
from cipherbox.server.requests import answers
from cipherbox.wire import codec

_JOIN_BYTES = 256 * 1024  # small frames are joined up to this
_SLICE_BYTES = 64 * 1024  # sent at once: fine enough to see whether a large frame moves
# a peer that took a slice within this time gets larger ones: each costs HQ some 60 us
_FAST_S = 0.05
_FRAME_BYTES = 64  # and its other fields


class Sink(Protocol):
    """Where bytes go."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None: ...


class Pushed:
    """Entries handed to one consumer, cut into DELIVER frames as they go out."""

    __slots__ = ("at", "entries", "queue", "tag")

    def __init__(self, tag: int, queue: str, entries: list[Entry]) -> None:
        self.tag = tag
        self.queue = queue
        self.entries = entries
        self.at = 0

    def cut(self, most: int, *, keep: bool = False) -> list[Entry]:
        """The next entries that fit into a frame; at least one.  ``keep``: they stay the next."""
        end, size = self.at, 0
        while end < len(self.entries):
            size += self.entries[end].size + codec.DELIVERED_BYTES
            if size > most and end > self.at:
                break
            end += 1
        start = self.at
        self.at = start if keep else end
        return self.entries[start:end]


class Ahead:
    """A frame's envelopes, being read from the store."""

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


class Outgoing:
    """See the module.

    ``requeue(queue, entries)`` takes what did not fit into a FETCHED, ``drained`` is called
    after each send.
    """

    def __init__(
        self,
        sink: Sink,
        bodies: BodyCache,
        limits: Limits,
        account: Account,
        *,
        requeue: Callable[[str, Sequence[Entry]], None],
        drained: Callable[[], None],
        cut: Callable[[str], None],
        counts: Counts | None = None,
    ) -> None:
        self._counts = counts or Counts()
        self.size = 0  # bytes of answers that wait
        self.spoke_at = trio.current_time()
        self.frame_bytes = limits.frame_bytes  # what the peer takes, once HELLO has said it
        self._sink = sink
        self._bodies = bodies
        self.account = account  # what is held for this client
        self._limits = limits
        self._cut = cut
        self._going: Transfer | None = None  # the frame that is being sent
        self._deadline_s = 2.0 * limits.heartbeat_s
        self._deliver_bytes = limits.deliver_frame_bytes
        self._requeue = requeue
        self._drained = drained
        self._queue: deque[bytes | Pushed | FetchedEntries] = deque()
        self._ready = Flag()
        self._last = False
        self._ahead: Ahead | None = None

    @property
    def empty(self) -> bool:
        return not self._queue

    def put(self, data: bytes) -> None:
        """Encoded frames."""
        self._queue.append(data)
        self.size += len(data)
        self._ready.set()

    def push(self, tag: int, queue: str, entries: list[Entry]) -> None:
        """Entries for a consumer."""
        if not self._last:
            self._queue.append(Pushed(tag, queue, entries))
            self._ready.set()

    def fetched(self, answer: FetchedEntries) -> None:
        """The answer to a FETCH."""
        if not self._last:
            self._queue.append(answer)
            self._ready.set()

    def finish(self, word: bytes) -> None:
        """The answers that wait, then ``word``, and then `run` returns; deliveries stay behind."""
        self._last = True
        self._queue = deque(item for item in self._queue if isinstance(item, bytes))
        self.put(word)

    async def run(self, nursery: trio.Nursery) -> None:
        """Sends until `finish`; TimedOut when the peer takes nothing.  ``nursery`` is where it
        reads ahead.
        """
        while True:
            self._ready.clear()
            while self._queue:
                await self._some(nursery)
            if self._last:
                return
            await self._ready.wait()

    async def _some(self, nursery: trio.Nursery) -> None:
        """Sends what joins well.  The queue is looked at anew after every await."""
        pieces: list[bytes] = []
        size = 0
        while self._queue and size < _JOIN_BYTES:
            head = self._queue[0]
            if isinstance(head, bytes):
                self._queue.popleft()
                self.size -= len(head)
                piece = head
            else:
                queue, entries = self._next_entries(head)
                if self._ahead is None and sum(entry.size for entry in entries) >= LARGE:
                    if pieces:
                        await self._send(pieces)
                        pieces, size = [], 0
                    await self.account.room()
                items = self._bodies.held(entries)
                if items is None or self._too_large(entries):
                    if pieces:
                        await self._send(pieces)
                        pieces, size = [], 0
                    self._check(queue, entries)
                    items = await self._read(queue, entries)
                self._drop_ahead()
                self._read_ahead(nursery)
                piece = self._frame(head, items)
            pieces.append(piece)
            size += len(piece)
        if size:
            await self._send(pieces)

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
        if isinstance(head, Pushed) and not (self.account.full or self.account.memory.closed):
            entries = head.cut(self._most(), keep=True)
            if self._bodies.held(entries) is None and not self._too_large(entries):
                self._drop_ahead()
                self._ahead = Ahead(entries)
                self.account.add(self._ahead.size)
                nursery.start_soon(self._ahead.read, self._bodies, head.queue)

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self.account.add(-self._ahead.size)
            self._ahead = None

    def close(self) -> None:
        """Nothing is sent any more."""
        self._drop_ahead()

    def slow(self) -> bool:
        """Whether the peer takes a large frame too slowly."""
        going, limits = self._going, self._limits
        return going is not None and going.late(limits.progress_s, limits.slowest_bytes_per_s)

    def _most(self) -> int:
        return min(self._deliver_bytes, self.frame_bytes - _FRAME_BYTES)

    def _next_entries(self, head: Pushed | FetchedEntries) -> tuple[str, list[Entry]]:
        """Takes from the queue what goes into the next frame."""
        if isinstance(head, Pushed):
            entries = head.cut(self._most())
            if head.at == len(head.entries):
                self._queue.popleft()
        else:
            run = Pushed(0, head.queue, head.entries)
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
                f"an envelope of {entries[0].size} bytes waits in {queue}; this client takes "
                f"frames of at most {self.frame_bytes}"
            )

    def _frame(self, head: Pushed | FetchedEntries, items: list[codec.DeliveredItem]) -> bytes:
        if isinstance(head, FetchedEntries):
            return answers.fetched(head, items)
        return codec.encode_deliver(head.tag, items) if items else b""

    async def _send(self, pieces: list[bytes]) -> None:
        data = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        memory, going = self.account.memory, Transfer(len(data), self._cut)
        going.held = len(data)
        self._going = going
        self.account.add(len(data))
        memory.began(going)
        try:
            size = _SLICE_BYTES
            while going.moved < len(data):
                before = going.waited
                going.wait()
                with trio.move_on_after(self._deadline_s) as scope:
                    await self._sink.send_all(data[going.moved : going.moved + size])
                if scope.cancelled_caught:
                    raise TimedOut("this client does not read what it is sent")
                going.pause()
                going.moved = min(going.moved + size, len(data))
                size = (
                    min(2 * size, _JOIN_BYTES) if going.waited - before < _FAST_S else _SLICE_BYTES
                )
        finally:
            self._going = None
            memory.ended(going)
            self.account.add(-len(data))
        self._counts.frames_sent += len(pieces)
        self._counts.sent_bytes += len(data)
        self.spoke_at = trio.current_time()
        self._drained()
