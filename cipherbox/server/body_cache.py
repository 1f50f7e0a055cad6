"""A bounded cache of envelopes' bodies between commit and delivery, in front of the store.

Consumers that keep up cost no read: bodies that are delivered when they are committed stay in
memory until they are sent, others while the cache has an eighth to spare for these.  All others are
read back just before they are sent, so a slow consumer's backlog is a list of numbers.  Evicting
old bodies for new ones would not help a lagging consumer, which needs the oldest next.  The store
checks each body against its hash; a damaged one becomes a dead letter and is never delivered.
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
_new = tuple.__new__  # takes a third of the time of a NamedTuple's own constructor
TRIES, _PAUSE_S = 3, 1.0
DAMAGED = "damaged on HQ's disk"
_SPARE = 8  # this part of the cache is for bodies that are on their way


class BodyCache:
    """Bodies and their entries in HQ's log by envelope number, at most ``size_bytes`` in total; the
    oldest are evicted first.

    ``read`` reads bodies in the store's thread; ``lost(queue, seqs, reason)`` is called for those
    that cannot be delivered.
    """

    def __init__(
        self,
        size_bytes: int,
        read: Callable[[list[int]], Awaitable[list[Body | None]]],
        lost: Callable[[str, list[int], str], None],
    ) -> None:
        self._most, self._room = size_bytes, size_bytes - size_bytes // _SPARE
        self._read = read
        self._lost = lost
        self._held: dict[int, Body] = {}
        self._size = 0

    @property
    def size(self) -> int:
        """The bytes in the cache."""
        return self._size

    def put(
        self, number: int, log_entry: int, body: bytes | memoryview, *, on_its_way: bool
    ) -> None:
        """Cache a body if there is room; ``on_its_way``: it is already being delivered."""
        if number in self._held:
            self.drop(number)
        size = len(body)
        if size > self._most or (not on_its_way and self._size + size > self._room):
            return
        self._held[number] = _new(Body, (log_entry, body))
        self._size += size
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
        """Return the entries with their bodies if all are cached, else None; never wait."""
        held = self._held
        try:
            return [
                (seq, attempts, accepted_at, *held[number])
                for seq, number, _, attempts, _, _, _, accepted_at, _ in entries
            ]
        except KeyError:
            return None

    async def items(self, queue: str, entries: Sequence[Entry]) -> list[DeliveredItem]:
        """Return the entries with their bodies, without lost ones; raise StoreUnavailable if the
        store remains unavailable.
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
                "HQ cannot read the envelopes in this queue at present; they stay in it"
            ) from None
