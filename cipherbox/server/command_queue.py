"""Commands that wait for the engine's next batch, bounded in number and bytes."""

from __future__ import annotations

import time
from collections import deque
from typing import NamedTuple

import trio

from cipherbox.broker.model import AnyCommand, Sweep
from cipherbox.concurrency import Flag, Signal
from cipherbox.limits import Limits

SWEEP_S = 1.0


class Batch(NamedTuple):
    """Commands that are committed together, and when each was queued (`time.perf_counter`)."""

    commands: list[AnyCommand]
    queued_at: list[float]


class CommandQueue:
    """The commands of the next batch."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queue: deque[tuple[AnyCommand, int, float]] = deque()  # command, bytes, queued at
        self._bytes = 0
        self._sweeps = False  # a sweep is queued
        self._work, self._room = Flag(), Signal()

    def __len__(self) -> int:
        return len(self._queue)

    def put(self, command: AnyCommand, size: int = 0) -> None:
        """Append a command."""
        self._queue.append((command, size, time.perf_counter()))
        self._bytes += size
        self._work.set()

    async def room(self) -> None:
        """Wait until the queue has room for a command."""
        while (
            len(self._queue) >= self._limits.engine_commands
            or self._bytes > self._limits.engine_bytes
        ):
            await self._room.wait()

    async def work(self) -> None:
        """Wait for the next command."""
        self._work.clear()
        await self._work.wait()

    async def keep_sweeping(self) -> None:
        """Append a sweep once a second, until cancelled.  A deadline for each wait of the engine
        would cost more.
        """
        while True:
            if not self._sweeps:
                self._sweeps = True
                self.put(Sweep())
            await trio.sleep(SWEEP_S)

    def take(self) -> Batch:
        """Return the next batch."""
        batch = Batch([], [])
        size = 0
        while self._queue and size <= self._limits.batch_commit_bytes:
            command, cost, queued_at = self._queue.popleft()
            if type(command) is Sweep:
                self._sweeps = False
            batch.commands.append(command)
            batch.queued_at.append(queued_at)
            size += cost
        self._bytes -= size
        self._room.notify()
        return batch

    def drop_requests(self) -> None:
        """Drop the commands of connections; keep HQ's own (connection 0)."""
        self._queue = deque(one for one in self._queue if getattr(one[0], "connection", 0) == 0)
        self._bytes = sum(size for _, size, _ in self._queue)
        self._room.notify()
