"""Store calls in worker threads: one at a time, and reads of bodies beside them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from cipherbox.concurrency import OneThread
from cipherbox.store.port import Body, Store

T = TypeVar("T")
Runner = Callable[..., Awaitable[object]]


class StoreThreads:
    """Runs store calls in threads, or through ``runner`` (tests run them inline)."""

    def __init__(self, store: Store, runner: Runner | None) -> None:
        self._store, self._runner = store, runner
        self._one = OneThread()
        self._reading = trio.CapacityLimiter(store.readers)

    async def run(self, call: Callable[..., T], *args: object) -> T:
        """Run one of the store's methods; cancelling the caller does not abandon it."""
        if self._runner is not None:
            return await self._runner(call, *args)  # type: ignore[return-value]
        return await self._one.run(call, *args)

    async def read_bodies(self, numbers: list[int]) -> list[Body | None]:
        """Read bodies, also while a commit runs."""
        read = self._store.read_bodies
        if self._runner is not None:
            return await self._runner(read, numbers)  # type: ignore[return-value]
        return await trio.to_thread.run_sync(read, numbers, limiter=self._reading)
