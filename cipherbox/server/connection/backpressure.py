"""Back-pressure: memory HQ holds for its peers, by client, with a high and a low water mark.

Each peer is bounded by its windows, but all of them together would not be.  So what HQ holds of
envelopes is counted as it comes: taken and not yet committed, half received, read back and not yet
sent.  What is only announced does not count.  Three rules keep one client from the others.

1. Share.  A client that holds more than its share waits alone: of its frames that are coming in,
   only the oldest is read on, and nothing more is read back for it.  So one client never closes the
   mark.
2. Mark.  Above the high mark nothing new is begun: publishers are not read, and nothing large is
   read back.  It begins again below the low mark, not just below the high one, or it would go on
   and off with every envelope.  What was begun goes on, so what is held is on its way out.
3. Slowest first.  While the mark is closed, the large frame that moves slowest, in or out, is cut:
   after a grace, then one each second; at once where even twice the high mark is passed.  Its
   client connects and sends again.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cipherbox.concurrency import Signal
from cipherbox.limits import Limits
from cipherbox.ops.logs import get_logger

log = get_logger(__name__)
LARGE = 256 * 1024  # bytes of a frame that is worth cutting
GRACE_S, CUT_EACH_S = 2.0, 1.0
_BEGUN_S = 0.5
# at least so far above the high mark nothing is cut without the grace
_SPARE_BYTES = 64 * 1024 * 1024


class Transfer:
    """A frame on its way in or out: how much of it has moved, and how fast.

    Its time is the time in which HQ waited for the peer (`wait`, `pause`); while HQ itself does not
    read or send, nothing is late.
    """

    __slots__ = (
        "_checked",
        "_since",
        "_waited",
        "_window",
        "cut",
        "held",
        "leaving",
        "moved",
        "size",
    )

    def __init__(self, size: int, cut: Callable[[str], None]) -> None:
        self.size = size
        self.cut = cut  # ends the connection, and says why
        self.moved = self.held = 0
        self.leaving = 0  # what it held when it was cut
        self._waited = 0.0
        self._since: float | None = None  # when HQ began to wait for the peer
        self._checked = 0.0  # value of `waited` when the window began,
        self._window = 0  # and of `moved`

    def wait(self) -> None:
        """From now on it is the peer that is waited for."""
        self._since = trio.current_time()

    def pause(self) -> None:
        """The peer did something, or HQ is at something else."""
        self._waited, self._since = self.waited, None

    @property
    def waited(self) -> float:
        """Seconds in which HQ waited for the peer."""
        return self._waited + (trio.current_time() - self._since if self._since is not None else 0)

    def late(self, window_s: float, least_per_s: int) -> bool:
        """Whether a large frame moved less than it must in a window of time."""
        waited = self.waited
        if self.size < LARGE or waited - self._checked < window_s:
            return False
        slow = self.moved - self._window < window_s * least_per_s
        self._checked, self._window = waited, self.moved
        return slow

    @property
    def rate(self) -> float:
        """Bytes a second of waiting for the peer; one that has just begun is not slow yet."""
        return (self.moved + LARGE) / max(self.waited, _BEGUN_S)


class Account:
    """What is held for one client."""

    __slots__ = ("_freed", "coming", "held", "memory")

    def __init__(self, memory: BackPressure) -> None:
        self.memory = memory
        self.held = 0
        self.coming: dict[Transfer, None] = {}  # frames that are coming in, oldest first
        self._freed = Signal()

    def add(self, size: int) -> None:
        """``size`` bytes more are held; fewer when it is negative."""
        self.held += size
        self.memory.add(size)
        if size < 0:
            self.wake()

    def wake(self) -> None:
        """Those who wait for room look again."""
        self._freed.notify()

    async def freed(self) -> None:
        """Waits until something of it went, or another frame is the oldest."""
        await self._freed.wait()

    async def room(self) -> None:
        """Waits until this client may hold more."""
        while self.memory.closed or self.full:
            await (self.memory.open() if self.memory.closed else self.freed())

    @property
    def full(self) -> bool:
        return self.held > self.memory.share

    def first(self, transfer: Transfer) -> bool:
        """Whether this frame is the one that is read on whatever this client holds."""
        return next(iter(self.coming), None) is transfer


class BackPressure:
    """See the module."""

    def __init__(self, limits: Limits) -> None:
        self.held = 0
        self.closed = False
        self.cuts = 0
        self.share = limits.memory_per_client_bytes
        self._high, self._low = limits.memory_high_bytes, limits.memory_low_bytes
        self._ceiling = self._high + max(self._high, _SPARE_BYTES)
        self._leaving = 0  # of `held`, what goes with frames that were cut
        self._accounts: dict[str, Account] = {}
        self._moving: dict[Transfer, None] = {}  # every large frame on its way in or out
        self._opened = Signal()
        self._cut_at = 0.0

    def account(self, client: str) -> Account:
        """The account of a client; one without a name has one for each connection."""
        return self._accounts.setdefault(client, Account(self)) if client else Account(self)

    def forget(self, client: str) -> None:
        """The last connection of a client is gone."""
        self._accounts.pop(client, None)

    def shares(self) -> dict[str, int]:
        """Bytes held, by client."""
        return {client: one.held for client, one in self._accounts.items() if one.held}

    def add(self, size: int) -> None:
        """``size`` bytes more are held, for nobody in particular; fewer when it is negative."""
        self.held += size
        if not self.closed and self.held > self._high:
            self.closed = True
            self._cut_at = trio.current_time() + GRACE_S
            log.warning("Memory is short: publishers wait", extra={"held_bytes": self.held})
        elif self.closed and self.held <= self._low:
            self.closed = False
            self._opened.notify()
            log.warning("Memory is free again: publishers go on", extra={"held_bytes": self.held})
        if size > 0 and self.held - self._leaving > self._ceiling:
            self._cut_slowest()

    async def open(self) -> None:
        """Waits while it is closed."""
        while self.closed:
            await self._opened.wait()

    def began(self, transfer: Transfer) -> None:
        """A frame begins to move, or its size is known now."""
        if transfer.size >= LARGE and not transfer.leaving:
            self._moving[transfer] = None

    def ended(self, transfer: Transfer) -> None:
        """It has arrived, or its connection is gone."""
        self._moving.pop(transfer, None)
        self._leaving -= transfer.leaving

    def tick(self, now: float) -> None:
        """Called twice a second: cuts the slowest large frame while the mark is closed."""
        if self.closed and now >= self._cut_at:
            self._cut_at = now + CUT_EACH_S
            self._cut_slowest()

    def _cut_slowest(self) -> None:
        held = [t for t in self._moving if t.held]
        if not held:
            return
        slowest = min(held, key=lambda t: t.rate)
        del self._moving[slowest]
        slowest.leaving = slowest.held
        self._leaving += slowest.held
        self.cuts += 1
        slowest.cut(
            "HQ is short of memory, and this frame moved slowest of all; connect again and send "
            "it again"
        )
