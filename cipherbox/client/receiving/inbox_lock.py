"""The lock of a home's inbox: one receiver at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import trio

from cipherbox.client.home import LOCK
from cipherbox.concurrency import Backoff, only, retry
from cipherbox.errors import StoreLocked
from cipherbox.portable import lock_file

PATIENCE_S, LOOK_S = 2.0, 0.01


class InboxLock:
    """The lock of one home; reentrant within one object."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._is_held = False

    @asynccontextmanager
    async def held_soon(self) -> AsyncIterator[None]:
        """Hold the lock, after a brief wait while another program does: a conversation takes it
        for a moment at a time.  StoreLocked if it is not released.
        """
        with ExitStack() as stack:

            async def attempt() -> None:
                stack.enter_context(self.held())

            with trio.move_on_after(PATIENCE_S):
                await retry(attempt, Backoff(LOOK_S, LOOK_S), transient=only(StoreLocked))
            with self.held():
                yield

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the lock; StoreLocked if another receiver uses this home."""
        if self._is_held:
            yield
            return
        with lock_file(self._home / LOCK, f"the inbox in {self._home}"):
            self._is_held = True
            try:
                yield
            finally:
                self._is_held = False
