"""The lock of a home's inbox: one receiver at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from cipherbox.client.home import LOCK
from cipherbox.concurrency import Backoff, only, retry
from cipherbox.errors import StoreLocked
from cipherbox.portable import lock_file

PATIENCE_S, LOOK_S = 0.5, 0.025


class InboxLock:
    """The lock of one home; reentrant within one object."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._is_held = False

    async def wait_until_free(self) -> None:
        """Wait briefly while another program holds the lock: a conversation does so for a moment
        at a time.
        """

        async def attempt() -> None:
            with self.held():
                pass

        with trio.move_on_after(PATIENCE_S):
            await retry(attempt, Backoff(LOOK_S, LOOK_S), transient=only(StoreLocked))

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
