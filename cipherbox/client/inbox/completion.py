"""Complete files in the background: verify complete ones without holding the inbox, and name
them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from cipherbox.client.inbox.file_check import Check
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.incoming_files import Arrived
from cipherbox.concurrency import Flag, OneThread

TIDY_S = 3600.0  # between deletions of expired data
AGAIN_S = 1.0  # between retries of files that could not be stored
STEP_S = 0.1  # of checking, in one call of a thread
R = TypeVar("R")


class Completion:
    """The completion of files of one open inbox. ``arrived`` is called with files that have their
    names.
    """

    def __init__(self, inbox: Inbox, arrived: Callable[[list[Arrived]], None]) -> None:
        self._inbox, self._arrived = inbox, arrived
        self._thread = OneThread()  # serialises calls of the inbox
        self._recorded = Flag()
        self.busy = False

    async def on_disk(self, call: Callable[..., R], *arguments: object) -> R:
        """Call one of the inbox's methods in a thread, one at a time."""
        return await self._thread.run(call, *arguments)

    def notify(self) -> None:
        """Look for complete files: something was recorded."""
        self._recorded.set()

    async def run(self) -> None:
        """Complete files until cancelled; raise StoreError if the inbox fails."""
        tidied = float("-inf")
        while True:
            self._recorded.clear()
            if trio.current_time() - tidied >= TIDY_S:
                await self.on_disk(self._inbox.tidy)
                tidied = trio.current_time()
            await self.complete()
            with trio.move_on_after(AGAIN_S if self._inbox.waits else TIDY_S):
                await self._recorded.wait()

    async def complete(self) -> None:
        """Complete everything that can be completed now."""
        self.busy = True
        try:
            while checks := await self.on_disk(self._inbox.ready):
                self._arrived(await self._checked(checks))
        finally:
            self.busy = False

    async def _checked(self, checks: list[Check]) -> list[Arrived]:
        try:
            while left := [check for check in checks if not check.done]:
                await trio.to_thread.run_sync(_step, left)
            return await self.on_disk(self._inbox.complete, checks)
        finally:
            for check in checks:
                check.close()


def _step(checks: list[Check]) -> None:
    """Check for a short time: many small files, or a piece of a large one."""
    end = time.monotonic() + STEP_S
    for check in checks:
        while not check.done:
            check.step()
            if time.monotonic() > end:
                return
