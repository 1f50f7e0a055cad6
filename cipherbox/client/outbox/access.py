"""The outbox from trio: its methods block on the disk, so they run in a thread, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

import trio

from cipherbox.client.outbox.outbox import Outbox

in_thread = trio.to_thread.run_sync
T = TypeVar("T")
P = ParamSpec("P")


class OutboxAccess:
    """See the module."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._turn = trio.Lock()

    async def store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what one of the outbox's methods returns."""
        async with self._turn:
            return await in_thread(partial(call, *args, **kwargs))

    async def close(self) -> None:
        """Close the outbox, after the call that runs."""
        async with self._turn:
            self.outbox.close()
