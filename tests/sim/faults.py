"""The faults of the simulation, when they are played, and the table that shows which of them met
which state.

A state is what the world is doing: the same crash is another test when HQ is starting, when a
confirm is on its way, or when a delivery is.  Left to chance some pairs of fault and state would
take thousands of seeds, so a seed aims: it has four pairs, waits for the state of each or brings
it about, and plays the fault then.  Seeds in a row share out all pairs, 26 seeds each.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import trio

from cipherbox.errors import CipherBoxError
from tests.sim.world import CLIENTS, HQ_NODE, LEAVER, NODES, RECEIVERS, SENDERS, World

TABLE = "CIPHERBOX_SIM_TABLE"  # a directory: each process adds a file of its counts to it
DAY_S = 86_400.0
# HQ follows up to an hour, there and back, and doubts the days
STEPS_S = (-3600.0, -3500.0, -60.0, 0.0, 60.0, 3500.0, 3600.0, -399 * DAY_S, 399 * DAY_S)
KINDS = (
    "cut",
    "hole",
    "kill",
    "power",
    "midway",
    "two",
    "recovery",
    "before",
    "after",
    "crash",
    "full",
    "io",
    "clock",
    "rotate",
    "revoke",
)
OF_A_NODE = ("kill", "power", "midway", "recovery", "full", "io", "clock")
STATES = (
    "HQ down",
    "client down",
    "unconfirmed",
    "undelivered",
    "unacknowledged",
    "receipts due",
    "quiet",
)


def state_of(world: World) -> str:
    """What the world is doing now."""
    if world.hq is None:
        return "HQ down"
    if len(world.clients) < len(CLIENTS) - world.revoked:
        return "client down"
    boxes = [world.clients[name].outbox().outbox for name in SENDERS if name in world.clients]
    if any(box.waiting(0, 1 << 62, 1) for box in boxes):
        return "unconfirmed"
    every = world.hq.engine.broker.state.queues
    queues = [every[f"box.{name}{box}"] for name in RECEIVERS for box in ("", ".bulk")]
    if any(queue.unacknowledged for queue in queues):
        return "unacknowledged"
    if any(queue.depth for queue in queues):
        return "undelivered"
    return "receipts due" if any(box.unsigned(1) for box in boxes) else "quiet"


# Without HQ there is no connection that could be cut, and nobody to revoke a client.
IMPOSSIBLE = {("cut", "HQ down"), ("hole", "HQ down"), ("revoke", "HQ down")}
PAIRS = [(kind, state) for kind in KINDS for state in STATES if (kind, state) not in IMPOSSIBLE]
AIMS = 4  # of one seed
ROUND = -(-len(PAIRS) // AIMS)  # seeds in a row that aim at each pair once
PATIENCE_S = 5.0  # for a state: until all is signed for takes seconds
UNDER_WAY = ("unconfirmed", "undelivered", "unacknowledged")
# states that are over soon
LOOK_S = {"undelivered": 0.03, "unacknowledged": 0.03, "receipts due": 0.05}
WITHOUT_S = 10.0  # a seed without faults
LONG = 20  # every twentieth seed takes its time, so that timers of seconds end between its faults
Met = Counter[tuple[str, str]]


def aims(seed: int) -> list[tuple[str, str]]:
    """Return the pairs that a seed aims at; none for a negative one, which has no faults."""
    if seed < 0:
        return []
    lap, place = divmod(seed, ROUND)
    pairs = random.Random(lap).sample(PAIRS, len(PAIRS))
    return pairs[place * AIMS : (place + 1) * AIMS]


async def storm(world: World, seed: int, met: Met) -> None:
    """Play all faults of a seed, and a few that nobody aimed."""
    chance = world.chance
    pause_s = 0.7 if seed % LONG else 6.0
    if seed < 0:
        await trio.sleep(WITHOUT_S)
    async with trio.open_nursery() as nursery:
        for kind, state in aims(seed):
            await trio.sleep(chance.uniform(0.0, pause_s))
            if chance.random() < 0.3:
                play(world, chance.choice(KINDS), met, nursery)
            await _reach(world, state)
            play(world, kind, met, nursery)
            world.resting = False


async def _reach(world: World, state: str) -> None:
    """Wait for a state, or bring it about."""
    chance = world.chance
    if state == "HQ down":
        world.crash(HQ_NODE, power=chance.random() < 0.5)
    elif state == "client down":
        world.crash(chance.choice((*CLIENTS, *RECEIVERS)), power=chance.random() < 0.5)
    world.resting = state == "quiet"
    with trio.move_on_after(PATIENCE_S):
        while (now := state_of(world)) != state:
            if state == "receipts due" and now in UNDER_WAY:
                world.resting = True  # nothing new hides it
            elif state == "undelivered" and now == "unacknowledged":
                for stream in [*world.streams]:
                    await trio.aclose_forcefully(stream)
            await trio.sleep(chance.uniform(0.0, LOOK_S.get(state, 0.15)))


def play(world: World, kind: str, met: Met, nursery: trio.Nursery) -> None:
    """Play one fault; what takes its time continues in ``nursery``."""
    chance, state = world.chance, state_of(world)
    name = chance.choice((HQ_NODE, chance.choice(RECEIVERS), chance.choice(CLIENTS)))
    if kind == "cut":
        for stream in chance.sample(world.streams, min(len(world.streams), 2)):
            nursery.start_soon(trio.aclose_forcefully, stream)
    elif kind == "hole" and world.streams:
        chance.choice(world.streams).swallowing = True
    elif kind in ("kill", "power"):
        world.crash(name, power=kind == "power")
    elif kind == "midway":
        if world.target is not None and name == HQ_NODE:
            name = chance.choice(CLIENTS)  # PostgreSQL's commit would not be undone
        world.stop_midway(name, chance.randint(0, 40))
    elif kind == "two":
        for one in chance.sample(NODES, 2):
            world.crash(one, power=chance.random() < 0.5)
    elif kind == "recovery":
        world.recoveries[name] = chance.randint(1, 3)
        world.crash(name, power=chance.random() < 0.5)
    elif kind in ("before", "after", "crash"):
        world.store_fault = kind
    elif kind == "full":
        nursery.start_soon(_fill, world, name, chance.uniform(0.5, 5.0))
    elif kind == "io":
        world.disk(name).fail(chance.randint(0, 30), chance.choice((1, 1, 5)))
    elif kind == "clock":
        world.clock_offset_s[name] = chance.choice(STEPS_S)
    elif kind == "rotate":
        world.rotations.add(chance.choice((*SENDERS, *RECEIVERS)))
    elif kind == "revoke" and world.hq is not None and not world.revoked:
        world.revoked = True
        nursery.start_soon(_revoke, world)
    else:
        return  # there is nothing that it could do
    if kind in OF_A_NODE and name == LEAVER and world.revoked:
        return  # nobody is there
    met[kind, state] += 1


async def _fill(world: World, name: str, seconds: float) -> None:
    world.disk(name).full = True
    await trio.sleep(seconds)
    world.disk(name).full = False


async def _revoke(world: World) -> None:
    """Revoke a sender that has left; what it sent before is still to arrive."""
    world.crash(LEAVER, power=False)
    await trio.sleep(2.0)  # HQ has taken or lost what was on its way
    if world.hq is not None:
        with trio.move_on_after(5.0), suppress(CipherBoxError):
            await world.hq.enrolments.revoke(LEAVER, "for a test")


def calm(world: World) -> None:
    """End every fault."""
    world.calmed.set()
    world.store_fault = ""
    world.clock_offset_s = dict.fromkeys(NODES, 0.0)
    world.recoveries.clear()
    for name in NODES:
        disk = world.disk(name)
        disk.full, disk.fails_after, disk.stops_after = False, -1, -1


def line_of(met: Met) -> str:
    """Return the counts of one seed as a line for `table`."""
    return json.dumps([[*pair, count] for pair, count in met.items()])


def write_down(met: Met) -> None:
    """Add the counts of one seed to this process's file."""
    if TABLE in os.environ:
        with (Path(os.environ[TABLE]) / f"{os.getpid()}.jsonl").open("a") as file:
            file.write(line_of(met) + "\n")


def table(lines: Iterable[str]) -> str:
    """The faults by state, over all seeds."""
    met: Met = Counter()
    seeds = 0
    for line in lines:
        seeds += 1
        for kind, state, count in json.loads(line):
            met[kind, state] += count
    head = f"{'':10}" + "".join(f"{state:>16}" for state in STATES)
    rows = [f"{kind:10}" + "".join(f"{met[kind, state]:>16}" for state in STATES) for kind in KINDS]
    never = [f"{kind} / {state}" for kind, state in PAIRS if not met[kind, state]]
    last = f"never met: {', '.join(never)}" if never else "every fault met every state"
    last += f"; impossible: {', '.join(f'{kind} / {state}' for kind, state in sorted(IMPOSSIBLE))}"
    return "\n".join([f"{seeds} seeds, {met.total()} faults", head, *rows, last])


def main() -> None:
    """Print the table of the files in the directory that the environment names."""
    directory = Path(os.environ[TABLE])
    print(table(line for file in sorted(directory.glob("*.jsonl")) for line in file.open()))


if __name__ == "__main__":
    main()
