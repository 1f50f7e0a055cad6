"""The frame that is coming in on one connection: its bytes are counted as they come, and its
pace is judged.
"""

from __future__ import annotations

from collections.abc import Callable

from cipherbox.limits import Limits
from cipherbox.server.connection.backpressure import LARGE, Account, Transfer
from cipherbox.server.connection.peer import MEMORY_FREE, MEMORY_SHORT
from cipherbox.wire.connection import WireConnection


class IncomingFrame:
    """See the module.  ``cut`` ends the connection for a reason, ``tell`` sends the peer a word."""

    def __init__(
        self,
        wire: WireConnection,
        limits: Limits,
        account: Account,
        cut: Callable[[str], None],
        tell: Callable[[str], None],
    ) -> None:
        self.account = account  # what HQ holds for this client
        self._wire, self._limits, self._cut, self._tell = wire, limits, cut, tell
        self._frame: Transfer | None = None

    async def count(self, *, publishes: bool) -> None:
        """Counts what has come, and waits while this client may send nothing more; ``publishes``:
        it has published.

        A large frame that has begun is read on when the mark closes; above the client's share only
        its oldest one is.
        """
        account, memory, frame = self.account, self.account.memory, self._frame
        begun = frame is not None and frame.size >= LARGE
        come, size = self._wire.coming
        if come:
            if frame is None:
                frame = self._frame = Transfer(size, self._cut)
                account.coming[frame] = None
            frame.size = size
            memory.began(frame)
            account.add(come - frame.held)
            frame.held = frame.moved = come
        if not (publishes or size >= LARGE):
            return
        if memory.closed and not begun:
            self._tell(MEMORY_SHORT)
            await memory.open()
            self._tell(MEMORY_FREE)
        while account.full and not (frame is not None and account.first(frame)):
            await account.freed()

    def whole(self) -> None:
        """The frame has come, or nothing more comes of it."""
        frame, self._frame = self._frame, None
        if frame is not None:
            del self.account.coming[frame]
            self.account.add(-frame.held)
            self.account.memory.ended(frame)
            self.account.wake()  # another frame may be the oldest now

    def wait(self) -> None:
        """HQ waits for the peer from now on,"""
        if self._frame is not None:
            self._frame.wait()

    def pause(self) -> None:
        """until now."""
        if self._frame is not None:
            self._frame.pause()

    def slow(self, beat_s: float) -> bool:
        """Whether the frame comes too slowly: a large one in each while, a small one in all."""
        frame, limits = self._frame, self._limits
        if frame is None:
            return False
        if frame.late(limits.progress_s, limits.slowest_bytes_per_s):
            return True
        return frame.waited > 2 * beat_s + frame.size / limits.slowest_bytes_per_s
