"""Random histories of HQ's clocks: whatever they showed, the right time must not stay in doubt.

A history plays steps of the clocks of two machines and of the database's server, restarts, reboots,
takeovers, log entries and hours that pass.  Reading a clock takes time, as it does on a busy
machine: the two that the guard compares are never of the same instant.  In the end all clocks are
right, and so they are after a restart, a reboot and a takeover.

One history cannot be told from a right one and is not played: a clock that is wrong after a reboot
by a time that the records allow, and shows it for an hour without a step (page `clocks`).
"""

from __future__ import annotations

import random

import attrs
import pytest

from cipherbox.config.settings import ClockSettings
from cipherbox.server.clock_guard import ClockGuard, Mark, Recorded
from tests import soak

HOUR, DAY = 3600.0, 86_400.0
AT_S = 1_800_000_000.0
UP_TO_AN_HOUR = (HOUR, -HOUR, HOUR - 5, 5 - HOUR, HOUR + 9, 3000.0, -3000.0, 1500.0, -1500.0)
ANY = (*UP_TO_AN_HOUR, 2 * HOUR, -2 * HOUR, 3 * DAY, -3 * DAY, 399 * DAY, -399 * DAY)


class World:
    """What is there besides HQ's program: the time, and what is recorded."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.at_s = AT_S + self.chance.random()  # the right time
        self.mark: Mark | None = None
        self.log_at = 0
        self.database_off_s = 0.0

    def read_a_clock(self) -> None:
        often = self.chance.random() < 0.95
        self.at_s += self.chance.expovariate(1 / 0.0003 if often else 1 / 0.005)


@attrs.define
class Machine:
    """A machine's clocks."""

    world: World
    name: str
    off_s: float = 0.0
    boots: int = 0
    booted_s: float = AT_S - 10 * DAY

    def wall_ms(self) -> int:
        shown = int((self.world.at_s + self.off_s) * 1000)
        self.world.read_a_clock()
        return shown

    def elapsed_s(self) -> float:
        return self.world.at_s - self.booted_s

    def reboot(self, off_s: float) -> None:
        self.boots += 1
        self.booted_s = self.world.at_s + off_s
        self.world.at_s += off_s + self.world.chance.uniform(2, 60)


class History:
    """A history by `seed`: HQ on one machine; with a ``database`` on either of two."""

    def __init__(self, seed: int, steps: tuple[float, ...], *, database: bool) -> None:
        self.world, self.steps, self.database = World(seed), steps, database
        names = "AB" if database else "A"
        self.machines = [Machine(self.world, name) for name in names]
        self.here = self.machines[0]
        self.start()

    def start(self) -> None:
        world, here = self.world, self.here
        shown = int((world.at_s + world.database_off_s) * 1000) if self.database else 0
        self.guard = ClockGuard(
            ClockSettings,
            Recorded(world.mark, world.log_at, shown),
            here.wall_ms,
            here.elapsed_s,
            f"{here.name}{here.boots}",
        )
        self.record()

    def record(self) -> None:
        """As HQ does at a start, and once an hour."""
        self.marked_s = self.world.at_s
        self.world.mark = self.guard.mark(self.world.log_at) or self.world.mark

    def look(self) -> None:
        """As HQ does every other second."""
        world = self.world
        if self.guard.doubt and self.database:
            self.guard.consult(int((world.at_s + world.database_off_s) * 1000))
        now = self.guard.now_ms()
        if self.guard.unrecorded:
            self.record()
        if not self.guard.doubt and world.chance.random() < 0.5:
            world.log_at = max(world.log_at, now)

    def pass_by(self, seconds: float) -> None:
        end_s = self.world.at_s + seconds
        while self.world.at_s < end_s:
            self.world.at_s = min(end_s, self.marked_s + HOUR)
            self.look()
            if self.world.at_s >= self.marked_s + HOUR:
                self.record()
        for _ in range(3):
            self.look()

    def step(self) -> None:
        chance, world = self.world.chance, self.world
        if self.database and chance.random() < 0.2:
            world.database_off_s = 0.0 if world.database_off_s else chance.choice(self.steps)
            return
        machine = chance.choice(self.machines)
        machine.off_s = 0.0 if machine.off_s else chance.choice(self.steps)

    def stop(self) -> None:
        """Restart, reboot or take over."""
        chance = self.world.chance
        what = chance.choice(("restart", "reboot", "takeover"))
        if what == "reboot":
            self.here.reboot(chance.choice((30.0, 30.0, 3 * HOUR, 2 * DAY)))
        elif what == "takeover" and self.database:
            self.here = next(one for one in self.machines if one is not self.here)
        self.start()

    def play(self) -> None:
        chance = self.world.chance
        for _ in range(chance.randint(3, 12)):
            chance.choice((self.step, self.step, self.stop, self.wait))()
            self.pass_by(1)

    def wait(self) -> None:
        """For seconds, or for hours with a clock that is right or wrong by an hour at most: nothing
        tells a wrong one from a right one that is as far from the newest record.
        """
        long = all(abs(one.off_s) <= HOUR + 9 for one in self.machines)
        self.pass_by(self.world.chance.choice((5, 60, 1200, 5 * HOUR) if long else (5, 60, 1200)))

    def set_right(self) -> None:
        for machine in self.machines:
            machine.off_s = 0.0
        self.world.database_off_s = 0.0
        self.pass_by(10)


@soak.more
@pytest.mark.parametrize("database", [False, True])
@pytest.mark.parametrize("steps", [UP_TO_AN_HOUR, ANY])
def test_the_right_time_does_not_stay_in_doubt(steps: tuple[float, ...], database: bool) -> None:
    failed = []
    for seed in range(soak.of(10_000) // 10):
        history = History(seed, steps, database=database)
        history.play()
        history.set_right()
        doubted = [bool(history.guard.doubt)]
        for then in ("restart", "reboot", "takeover"):
            if then == "reboot":
                history.here.reboot(30.0)
            elif then == "takeover" and database:
                history.here = next(one for one in history.machines if one is not history.here)
            history.start()
            history.pass_by(1)
            doubted.append(bool(history.guard.doubt))
        if any(doubted):
            failed.append((seed, doubted))
    assert not failed
