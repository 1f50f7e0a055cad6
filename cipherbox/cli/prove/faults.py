"""The faults of a trial: each is one function, which ends when the fault is over.

Which one comes next, whom it meets and how long it takes come from the seed.
"""

from __future__ import annotations

import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from cipherbox import portable
from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.database import FAILOVER, SESSIONS
from cipherbox.cli.prove.database import KILL as DATABASE_KILL
from cipherbox.harness.disk import why_no_disk
from cipherbox.harness.fault_proxy import FROM_HQ, TO_HQ
from cipherbox.harness.stage import kill

_DOWN_S = (0.0, 0.6)  # between a kill and the restart
_STOPPED_S = (0.3, 4.0)  # the longest is above a client's timeouts, and below a database lease
_LINK_S = (0.2, 3.0)  # of a partition or a slow link
_FULL_S = (0.5, 3.0)
_DAY_S = 86_400.0
# HQ doubts 399 days, and follows up to an hour, also within the first hour of a client's keys
_STEPS_S = (-399 * _DAY_S, 399 * _DAY_S, -3600.0, 3600.0, -3000.0)
_STEPPED_S = (0.5, 4.0)
_SLOW_S = (0.002, 0.05)  # for 2 KiB
_MOST_TIMES = 3  # kills of one recovery

KILL, KILL_TWO, RECOVERY = "kill", "kill two", "kill in recovery"
PAUSE, CUT, PARTITION, SLOW = "pause", "cut", "partition", "slow link"
CLOCK = "clock"
POWER, FULL = "power cut", "full disk"
KINDS = (
    KILL,
    KILL_TWO,
    RECOVERY,
    PAUSE,
    CUT,
    PARTITION,
    SLOW,
    CLOCK,
    POWER,
    FULL,
    SESSIONS,
    DATABASE_KILL,
    FAILOVER,
)
ON_DISKS = (POWER, FULL)
ON_DATABASE = (SESSIONS, DATABASE_KILL, FAILOVER)


def skipped(wanted: tuple[str, ...], of_database: list[str]) -> dict[str, str]:
    """Return which of the wanted kinds of fault cannot be played here, and why."""
    without_disk = why_no_disk()
    reasons = {kind: without_disk for kind in ON_DISKS if without_disk}
    reasons |= {kind: "needs --database" for kind in ON_DATABASE if kind not in of_database}
    if portable.WINDOWS:
        reasons[PAUSE] = "needs SIGSTOP"
    return {kind: why for kind, why in reasons.items() if kind in wanted}


class Faults:
    """The faults; ``timeline`` has those that were played."""

    def __init__(self, cast: Cast, chance: random.Random, kinds: list[str], began: float) -> None:
        self._cast, self.chance, self._kinds, self._began = cast, chance, kinds, began
        self.timeline: list[dict[str, Any]] = []
        self._play: dict[str, Callable[[], Awaitable[list[str]]]] = {
            KILL: partial(self._kill, 1),
            KILL_TWO: partial(self._kill, 2),
            RECOVERY: self._kill_in_recovery,
            PAUSE: self._pause,
            CUT: self._cut,
            PARTITION: self._partition,
            SLOW: self._slow,
            CLOCK: self._step_clock,
            POWER: self._power_cut,
            FULL: self._full_disk,
            **{kind: partial(self._database, kind) for kind in ON_DATABASE},
        }

    async def one(self) -> dict[str, Any]:
        """Play the next fault and return its line of the timeline."""
        kind = self.chance.choice(self._kinds)
        at = time.monotonic() - self._began
        line: dict[str, Any] = {"at": round(at, 2), "until": None, "kind": kind, "on": []}
        self.timeline.append(line)  # also if it does not end
        line["on"] = await self._play[kind]()
        line["until"] = round(time.monotonic() - self._began, 2)
        return line

    def _victims(self, count: int, among: list[str] | None = None) -> list[str]:
        """Draw different ones; HQ as often as all clients together."""
        names = [*self._cast.names] if among is None else among
        hqs = [name for name in names if name in self._cast.hqs]
        drawn: list[str] = []
        while len(drawn) < min(count, len(names)):
            name = self.chance.choice(hqs if hqs and self.chance.random() < 0.4 else names)
            if name not in drawn:
                drawn.append(name)
        return drawn

    async def _wait(self, between: tuple[float, float]) -> None:
        await trio.sleep(self.chance.uniform(*between))

    async def _kill(self, count: int) -> list[str]:
        victims = self._victims(count)
        for name in victims:
            await kill(self._cast.processes[name])
        await self._wait(_DOWN_S)
        for name in victims:
            await self._cast.start(name)
        return victims

    async def _kill_in_recovery(self) -> list[str]:
        (name,) = self._victims(1)
        await kill(self._cast.processes[name])
        for _ in range(self.chance.randint(1, _MOST_TIMES)):
            await self._cast.start_briefly(name, self.chance.uniform(0.2, 1.2) * self._cast.start_s)
        await self._cast.start(name)
        return [name]

    async def _pause(self) -> list[str]:
        victims = self._victims(self.chance.randint(1, 2))
        pids = [self._cast.processes[name].pid for name in victims]
        for pid in pids:
            portable.stop_process(pid)
        try:
            await self._wait(_STOPPED_S)
        finally:
            for pid in pids:
                portable.continue_process(pid)
        return victims

    async def _cut(self) -> list[str]:
        share = self.chance.choice((0.3, 1.0))
        for proxy in self._cast.proxies:
            await proxy.cut(lambda: self.chance.random() < share)
        return []

    async def _partition(self) -> list[str]:
        directions = self.chance.choice(((), (TO_HQ,), (FROM_HQ,)))
        heals = self.chance.random() < 0.5
        for proxy in self._cast.proxies:
            proxy.freeze(*directions)
        try:
            await self._wait(_LINK_S)
            if not heals:
                for proxy in self._cast.proxies:
                    await proxy.cut()
        finally:
            for proxy in self._cast.proxies:
                proxy.thaw()
        return list(directions)

    async def _slow(self) -> list[str]:
        delay_s = self.chance.uniform(*_SLOW_S)
        for proxy in self._cast.proxies:
            proxy.slow_s = delay_s
        try:
            await self._wait(_LINK_S)
        finally:
            for proxy in self._cast.proxies:
                proxy.slow_s = 0.0
        return []

    async def _step_clock(self) -> list[str]:
        (name,) = self._victims(1, self._cast.hqs)
        step_s = self.chance.choice(_STEPS_S)
        file = self._cast.clock_file(name)
        portable.write_atomic(file, str(step_s).encode())
        try:
            await self._wait(_STEPPED_S)
            if self.chance.random() < 0.5:  # it starts with that clock, and knows nobody yet
                await kill(self._cast.processes[name])
                await self._cast.start(name)
                await self._wait(_STEPPED_S)
        finally:
            portable.write_atomic(file, b"0")
        days = abs(step_s) >= _DAY_S
        return [name, f"{step_s / _DAY_S:+g} days" if days else f"{step_s / 60:+g} minutes"]

    # -- disks -------------------------------------------------------------------------------------

    async def _power_cut(self) -> list[str]:
        victims = self._victims(self.chance.randint(1, 2), [*self._cast.disks])
        for name in victims:  # no process lives to see its disk without power
            portable.stop_process(self._cast.processes[name].pid)
        for name in victims:
            self._cast.disks[name].cut()
        for name in victims:
            await kill(self._cast.processes[name])
        await self._wait(_DOWN_S)
        for name in victims:
            await trio.to_thread.run_sync(self._cast.disks[name].remount)
            await self._cast.start(name)
        return victims

    async def _full_disk(self) -> list[str]:
        (name,) = self._victims(1, [*self._cast.disks])
        disk = self._cast.disks[name]
        await trio.to_thread.run_sync(disk.fill)
        try:
            await self._wait(_FULL_S)
        finally:
            disk.free()
        if name not in self._cast.hqs:
            self._cast.filled[name] = True
        return [name]

    async def _database(self, kind: str) -> list[str]:
        database = self._cast.database
        assert database is not None
        down_s = self.chance.uniform(*_DOWN_S)
        await trio.to_thread.run_sync(database.fault, kind, down_s)
        return []
