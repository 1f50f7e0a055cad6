"""The bytes of envelopes between commit and delivery: a bounded cache, and the store behind it.

Consumers that keep up cost no read: what was delivered when it was committed stays in memory
until it is gone, and what was not stays while there is plenty of room. Everything else is read
back just before it is sent, so what waits for a slow consumer is a list of numbers and not its
bytes. Making room for the new by dropping the old would serve nobody who lags: such a consumer
wants the oldest next. The store checks each body against its hash; one that is damaged becomes a
dead letter and is never delivered.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from cipherbox.broker.model import Entry
from cipherbox.concurrency import Backoff, only, retry
from cipherbox.errors import Busy, StoreUnavailable
from cipherbox.ops.logs import get_logger
from cipherbox.store.port import Body
from cipherbox.wire.codec import DeliveredItem

log = get_logger(__name__)
TRIES, _PAUSE_S = 3, 1.0
DAMAGED = "damaged on HQ's disk"


class BodyCache:
    """Envelope number -> its bytes and its place in HQ's log, at most ``size_bytes`` together; the
    oldest go first.

    ``read`` brings bodies from the store in its thread; ``lost(queue, seqs, reason)`` is told what
    cannot be delivered.
    """

    def __init__(
        self,
        size_bytes: int,
        read: Callable[[list[int]], Awaitable[list[Body | None]]],
        lost: Callable[[str, list[int], str], None],
    ) -> None:
        self._most = size_bytes
        self._read = read
        self._lost = lost
        self._held: dict[int, Body] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """Bytes held now."""
        return self._size

    def put(self, number: int, log_entry: int, body: bytes, *, on_its_way: bool) -> None:
        """Keep a body if there is room; ``on_its_way``: it is being delivered already."""
        self.drop(number)
        if self._size + len(body) > self._most // 2 and (not on_its_way or len(body) > self._most):
            return
        self._held[number] = Body(log_entry, body)
        self._size += len(body)
        while self._size > self._most:
            self._size -= len(self._held.pop(next(iter(self._held))).data)

    def drop(self, number: int) -> None:
        body = self._held.pop(number, None)
        if body is not None:
            self._size -= len(body.data)

    def clear(self) -> None:
        self._held.clear()
        self._size = 0

    def held(self, entries: Sequence[Entry]) -> list[DeliveredItem] | None:
        """The entries with their bytes if all are at hand; never waits."""
        held = self._held
        try:
            return [(e.seq, e.attempts, e.accepted_at, *held[e.number]) for e in entries]
        except KeyError:
            return None

    async def items(self, queue: str, entries: Sequence[Entry]) -> list[DeliveredItem]:
        """The entries with their bytes, without those that are lost; StoreUnavailable when the
        store stays away.
        """
        found: dict[int, Body | None] = {e.number: self._held.get(e.number) for e in entries}
        missing = [number for number, body in found.items() if body is None]
        if missing:
            found.update(zip(missing, await self._read_back(missing), strict=True))
        items: list[DeliveredItem] = []
        lost: list[int] = []
        for entry in entries:
            body = found[entry.number]
            if body is None:
                lost.append(entry.seq)
            else:
                items.append((entry.seq, entry.attempts, entry.accepted_at, *body))
        if lost:
            self._lost(queue, lost, DAMAGED)
        return items

    async def _read_back(self, numbers: list[int]) -> list[Body | None]:
        async def read() -> list[Body | None]:
            try:
                return await self._read(numbers)
            except Busy as error:
                log.error("Envelopes cannot be read back", extra={"error": str(error)})
                raise

        try:
            return await retry(read, Backoff(_PAUSE_S, _PAUSE_S), tries=TRIES, transient=only(Busy))
        except Busy:
            raise StoreUnavailable(
                "HQ cannot read the envelopes it holds for you now; they stay in the queue"
            ) from None
