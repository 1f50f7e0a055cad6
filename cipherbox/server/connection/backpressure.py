"""Back-pressure: memory HQ holds for its peers, by client, with a high and a low water mark.

Windows bound each peer, but not all of them together.  So HQ counts the bytes of envelopes it
holds: partly received, received and not yet committed, read back and not yet sent.  What is only
announced does not count.  Three rules keep one client from affecting the others:

1. Share.  A client that holds more than its share waits alone: of its incoming frames only the
   oldest is read, and nothing more is read back for it.  So one client never causes back-pressure
   for all.
2. High and low water mark.  Above the high mark nothing new is begun: publishers are not read, and
   nothing large is read back.  It resumes below the low mark, not below the high one, which would
   toggle with every envelope.  What was begun continues, so memory is released.
3. Slowest first.  Under back-pressure the connection of the slowest large frame, in or out, is
   closed: after a grace period, then one each second; immediately above twice the high mark.  Its
   client reconnects and resends.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cipherbox.concurrency import Signal
from cipherbox.limits import Limits
from cipherbox.ops.logs import get_logger

log = get_logger(__name__)
LARGE = 256 * 1024  # bytes; only larger frames are timed
GRACE_S, CUT_EACH_S = 2.0, 1.0
_BEGUN_S = 0.5
# the margin above the high mark within which the grace period applies, at least
_SPARE_BYTES = 64 * 1024 * 1024


class Transfer:
    """A frame being received or sent: how much of it has moved, and how fast.

    Only time in which HQ waits for the peer counts (`wait`, `pause`); while HQ itself does not read
    or send, no frame is late.
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
        self.cut = cut  # closes the connection, with a reason
        self.moved = self.held = 0
        self.leaving = 0  # bytes it held when its connection was closed
        self._waited = 0.0
        self._since: float | None = None  # when HQ began to wait for the peer
        self._checked = 0.0  # value of `waited` when the window began,
        self._window = 0  # and of `moved`

    def wait(self) -> None:
        """Start counting: HQ waits for the peer."""
        self._since = trio.current_time()

    def pause(self) -> None:
        """Stop counting: the peer acted, or HQ does something else."""
        self._waited, self._since = self.waited, None

    @property
    def waits_s(self) -> float:
        """How long HQ has been waiting for the peer; 0 if it does something else."""
        return trio.current_time() - self._since if self._since is not None else 0.0

    @property
    def waited(self) -> float:
        """The time in which HQ waited for the peer, in seconds."""
        return self._waited + self.waits_s

    def late(self, window_s: float, least_per_s: int) -> bool:
        """Return whether a large frame moved too little in the current window of time."""
        waited = self.waited
        if self.size < LARGE or waited - self._checked < window_s:
            return False
        slow = self.moved - self._window < window_s * least_per_s
        self._checked, self._window = waited, self.moved
        return slow

    @property
    def rate(self) -> float:
        """Bytes per second of waiting for the peer; a frame that has just begun is not slow."""
        return (self.moved + LARGE) / max(self.waited, _BEGUN_S)


class Account:
    """The memory held for one client."""

    __slots__ = ("_freed", "coming", "held", "memory")

    def __init__(self, memory: BackPressure) -> None:
        self.memory = memory
        self.held = 0
        self.coming: dict[Transfer, None] = {}  # frames that are coming in, oldest first
        self._freed = Signal()

    def add(self, size: int) -> None:
        """Add to the bytes held; a negative size subtracts."""
        self.held += size
        self.memory.add(size)
        if size < 0:
            self.wake()

    def wake(self) -> None:
        """Wake the tasks that wait for room."""
        self._freed.notify()

    async def freed(self) -> None:
        """Wait until some of it is released, or another frame is the oldest."""
        await self._freed.wait()

    async def room(self) -> None:
        """Wait until this client may hold more."""
        while self.memory.closed or self.full:
            await (self.memory.open() if self.memory.closed else self.freed())

    @property
    def full(self) -> bool:
        return self.held > self.memory.share

    def first(self, transfer: Transfer) -> bool:
        """Return whether this is the oldest frame, which is read even above the share."""
        return next(iter(self.coming), None) is transfer


class BackPressure:
    """The memory held for all clients."""

    def __init__(self, limits: Limits) -> None:
        self.held = 0
        self.closed = False
        self.cuts = 0
        self.share = limits.memory_per_client_bytes
        self._high, self._low = limits.memory_high_bytes, limits.memory_low_bytes
        self._ceiling = self._high + max(self._high, _SPARE_BYTES)
        self._leaving = 0  # part of `held` of connections being closed
        self._accounts: dict[str, Account] = {}
        self._moving: dict[Transfer, None] = {}  # all large frames being received or sent
        self._opened = Signal()
        self._cut_at = 0.0

    def account(self, client: str) -> Account:
        """Return the account of a client; each connection without a client has its own."""
        return self._accounts.setdefault(client, Account(self)) if client else Account(self)

    def forget(self, client: str) -> None:
        """Drop the account of a client whose last connection ended."""
        self._accounts.pop(client, None)

    def shares(self) -> dict[str, int]:
        """Return the bytes held, by client."""
        return {client: one.held for client, one in self._accounts.items() if one.held}

    def add(self, size: int) -> None:
        """Add to the total of bytes held; a negative size subtracts."""
        self.held += size
        if not self.closed and self.held > self._high:
            self.closed = True
            self._cut_at = trio.current_time() + GRACE_S
            log.warning("Memory is low: publishers wait", extra={"held_bytes": self.held})
        elif self.closed and self.held <= self._low:
            self.closed = False
            self._opened.notify()
            log.warning("Memory is available: publishers resume", extra={"held_bytes": self.held})
        if size > 0 and self.held - self._leaving > self._ceiling:
            self._cut_slowest()

    async def open(self) -> None:
        """Waits while it is closed."""
        while self.closed:
            await self._opened.wait()

    def began(self, transfer: Transfer) -> None:
        """Register a frame that begins to move, or whose size is now known."""
        if transfer.size >= LARGE and not transfer.leaving:
            self._moving[transfer] = None

    def ended(self, transfer: Transfer) -> None:
        """Forget a frame that has moved, or whose connection ended."""
        self._moving.pop(transfer, None)
        self._leaving -= transfer.leaving

    def tick(self, now: float) -> None:
        """Close the slowest connection under back-pressure; called twice a second."""
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
            "HQ is low on memory, and this frame was the slowest of all; reconnect and resend"
        )
