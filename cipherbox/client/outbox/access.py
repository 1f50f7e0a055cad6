"""The outbox from trio: its methods block on the disk, so they run in a thread, in order."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from cipherbox.client.outbox.outbox import Outbox
from cipherbox.concurrency import OneThread

T = TypeVar("T")
P = ParamSpec("P")


class OutboxAccess:
    """See the module."""

    def __init__(self, outbox: Outbox) -> None:
        self.outbox = outbox
        self._thread = OneThread()

    async def store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what one of the outbox's methods returns."""
        return await self._thread.run(partial(call, *args, **kwargs))

    async def close(self) -> None:
        """Close the outbox, after the call that runs."""
        await self._thread.run(self.outbox.close)
