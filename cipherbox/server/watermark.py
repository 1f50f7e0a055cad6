"""How much HQ holds for its peers, and when that is too much.

Each peer is bounded by its windows, but all of them together would not be.  So what HQ holds of envelopes (taken and
not yet committed, half received, read back and not yet sent) is counted, and above the high mark nothing new is begun:
publishers are not read, and nothing is read ahead.  It begins again below the low mark, not just below the high one, or
it would go on and off with every envelope.

What was begun goes on: a publisher in the middle of a large envelope is read to its end.  So what is held is always on
its way out, and the mark is passed again without anybody's help.
"""

from __future__ import annotations

import trio

from cipherbox.ops.logs import get_logger

log = get_logger(__name__)


class Watermark:
    """An account of bytes with two marks."""

    def __init__(self, high: int, low: int) -> None:
        self.held = 0
        self.closed = False
        self._high, self._low = high, low
        self._opened = trio.Event()

    def add(self, size: int) -> None:
        """``size`` bytes more are held; fewer when it is negative."""
        self.held += size
        if not self.closed and self.held > self._high:
            self.closed = True
            log.warning("Memory is short: publishers wait", extra={"held_bytes": self.held})
        elif self.closed and self.held <= self._low:
            self.closed = False
            log.warning("Memory is free again: publishers go on", extra={"held_bytes": self.held})
            self._opened.set()
            self._opened = trio.Event()

    async def open(self) -> None:
        """Waits while it is closed."""
        while self.closed:
            await self._opened.wait()
