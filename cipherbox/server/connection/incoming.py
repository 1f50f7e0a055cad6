"""The frame being received on one connection: its bytes are counted as they arrive, and its rate is
checked.
"""

from __future__ import annotations

from collections.abc import Callable

from cipherbox.limits import Limits
from cipherbox.server.connection.backpressure import LARGE, Account, Transfer
from cipherbox.server.connection.peer import MEMORY_FREE, MEMORY_SHORT
from cipherbox.wire.connection import WireConnection


class IncomingFrame:
    """An incoming frame; ``cut`` closes the connection, ``notify`` sends the peer news."""

    def __init__(
        self,
        wire: WireConnection,
        limits: Limits,
        account: Account,
        cut: Callable[[str], None],
        notify: Callable[[str], None],
    ) -> None:
        self.account = account  # memory held for this client
        self._wire, self._limits, self._cut, self._notify = wire, limits, cut, notify
        self._frame: Transfer | None = None

    async def count(self, *, publishes: bool) -> None:
        """Count what has arrived, and wait while this client may not send more; ``publishes``: it
        has published.

        A large frame that has begun is still read above the high mark; above the client's share
        only its oldest one is.
        """
        account, memory, frame = self.account, self.account.memory, self._frame
        begun = frame is not None and frame.size >= LARGE
        arrived, size = self._wire.coming
        if arrived:
            if frame is None:
                frame = self._frame = Transfer(size, self._cut)
                account.coming[frame] = None
            frame.size = size
            memory.began(frame)
            account.add(arrived - frame.held)
            frame.held = frame.moved = arrived
        if not (publishes or size >= LARGE):
            return
        if memory.closed and not begun:
            self._notify(MEMORY_SHORT)
            await memory.open()
            self._notify(MEMORY_FREE)
        while account.full and not (frame is not None and account.first(frame)):
            await account.freed()

    def whole(self) -> None:
        """Release a frame that is complete or will never be."""
        frame, self._frame = self._frame, None
        if frame is not None:
            del self.account.coming[frame]
            self.account.add(-frame.held)
            self.account.memory.ended(frame)
            self.account.wake()  # another frame may now be the oldest

    def wait(self) -> None:
        """Start counting the time in which HQ waits for the peer."""
        if self._frame is not None:
            self._frame.wait()

    def pause(self) -> None:
        """Stop counting it."""
        if self._frame is not None:
            self._frame.pause()

    def slow(self, beat_s: float) -> bool:
        """Return whether the frame is too slow: a large one by window, a small one in total."""
        frame, limits = self._frame, self._limits
        if frame is None:
            return False
        if frame.late(limits.progress_s, limits.slowest_bytes_per_s):
            return True
        return frame.waited > 2 * beat_s + frame.size / limits.slowest_bytes_per_s
