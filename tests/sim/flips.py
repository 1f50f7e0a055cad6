"""Bits that flip on the simulated disks: nothing false is delivered, and hardly anything is lost
without a word.

`python -m tests.sim.flips FIRST:COUNT` prints what became of each flip.

A node stops and starts again, and one bit of one of its files has changed: of a database, its
write-ahead log, a body, received lines, keys or settings.  No file system here has checksums, and
SQLite's pages have none either, so the rules are weaker than those of `test_sim`.

1. A receiver never has anything that its sender did not write, nor anything twice, unless the bit
   is in its own file of received lines or a received file, which are the application's.
2. If what was promised did not arrive, or the world does not settle, somebody said so: a program
   ended with an error, a client told its user, HQ logged an error or keeps a dead letter, or an
   envelope is parked.  This is counted, since a bit of a number in a page cannot be noticed.
3. No program ends with an exception that is not an error of ours.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import shutil
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.cli.prove import checker, history
from cipherbox.client.events import EventKind
from cipherbox.client.outbox import sender as post_module
from cipherbox.client.outbox.rows import PARKED
from cipherbox.errors import CipherBoxError
from tests.sim import faults
from tests.sim.world import HQ_NODE, RECEIVERS, SENDERS, Template, World, virtual

SETTLE_S = 45.0  # of virtual time
LINES = "received_messages.jsonl"
FALSE = ("changed", "unexpected", "duplicated")
_TROUBLE = re.compile("damaged|interrupted|cannot|not |waits|refused|shortened")
Outcome = tuple[str, str]  # one of OUTCOMES, and why
OUTCOMES = ("whole", "own file", "said", "silent", "false", "raised")


class Said(logging.Handler):
    """What HQ logs as an error, and with what the programs of nodes end."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(f"HQ: {record.getMessage()}")

    def event(self, name: str, event: Any) -> None:
        """Note what a client tells its user about trouble, but for the connection's."""
        if event.kind is not EventKind.RECONNECTING and _TROUBLE.search(event):
            self.texts.append(f"{name}: {event}")


def play_flip(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Outcome]:
    """Flip one bit; return the file, and what became of it."""
    monkeypatch.setattr(post_module, "LOOK_S", 1.0)
    said, chance = Said(), random.Random(seed)
    result: list[Outcome] = []
    world.ended = lambda name, error: said.texts.append(f"{name}: {error}")
    world.revoked = True  # nobody leaves
    state = faults.STATES[seed % len(faults.STATES)]

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            world.start(nursery)
            await trio.sleep(chance.uniform(0.5, 4.0))
            await faults._reach(world, state)
            said.texts.clear()
            up = [name for name in (HQ_NODE, HQ_NODE, *SENDERS, *RECEIVERS) if world.is_up(name)]
            world.crash(chance.choice(up or [HQ_NODE]), power=False, flip=True)
            world.resting = False
            await trio.sleep(chance.uniform(1.0, 4.0))
            faults.calm(world)
            with trio.move_on_after(SETTLE_S):
                while world.unsettled():
                    await trio.sleep(1.0)
            result.append(outcome(world, said.texts))
            nursery.cancel_scope.cancel()

    logger = logging.getLogger("cipherbox")
    world.on_event = said.event
    logger.addHandler(said)
    try:
        with virtual(world, seed, monkeypatch) as clock:
            trio.run(play, clock=clock)
    finally:
        logger.removeHandler(said)
    return world.flipped, result[0]


def outcome(world: World, said: list[str]) -> Outcome:
    """Compare what was put, promised and received."""
    unsettled = world.unsettled()
    problems: list[tuple[str, str]] = []
    dead: list[Any] = []
    if world.hq is not None:
        with suppress(CipherBoxError):
            dead, _ = world.hq.store.dead_letters("", "", 1000, False)
    parked = [
        f"{name}: parked: {row.reason}"
        for name in SENDERS
        if name in world.clients
        for row in world.clients[name].outbox().outbox.newest(1 << 40)
        if row.state == PARKED
    ]
    received = {}
    for name in RECEIVERS:
        try:
            received[name] = history.receiver_lines(world.path / name)
        except (ValueError, KeyError) as error:
            said.append(f"{name}: {error}")
            received[name] = {"lines": []}
    report = {
        "format": checker.FORMAT,
        "version": checker.VERSION,
        "limits": {"memory_bytes": 0, "files": 0},
        "standstill": [],
        "processes": {},
        "senders": {
            name: {"log": rows, "outbox": [], "transfers": []} for name, rows in world.log.items()
        },
        "receivers": received,
        "hq": None,
    }
    problems = checker.check(report).problems
    said += [f"dead letter: {row}" for row in dead] + parked
    false = [text for rule, text in problems if rule in FALSE]
    if any(part in world.flipped for part in (LINES, "/incoming/")) and not unsettled:
        return "own file", ""
    if false:
        return "false", "; ".join(false)
    wrong = "; ".join([*([unsettled] if unsettled else []), *(text for _, text in problems)])
    if not wrong:
        return "whole", ""
    own = [text for text in said if text.startswith(world.flipped.partition("/")[0])]
    return ("said", f"{[*said, *own][-1]} ({wrong})") if said else ("silent", wrong)


def main() -> int:
    """Play flips, print each that was not harmless, and the counts by kind of file."""
    from tests.sim.test_sim import make_template

    options = argparse.ArgumentParser(description="Flipped bits in the simulation.")
    options.add_argument("seeds", help="FIRST:COUNT")
    first, count = map(int, options.parse_args().seeds.split(":"))
    logging.getLogger().addHandler(logging.NullHandler())
    table: Counter[tuple[str, str]] = Counter()
    with tempfile.TemporaryDirectory() as place:
        template: Template = make_template(Path(place) / "template")
        for seed in range(first, first + count):
            path = Path(place) / str(seed)
            path.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                try:
                    world = World(path, template, seed)
                    file, (what, why) = play_flip(world, seed, patch)
                except Exception as error:
                    while isinstance(error, BaseExceptionGroup):
                        error = error.exceptions[0]
                    file, what, why = world.flipped, "raised", f"{type(error).__name__}: {error}"
            shutil.rmtree(path)
            table[kind_of(file), what] += 1
            if what not in ("whole", "own file"):
                print(f"seed {seed}: {what}: {file}: {why[:400]}", flush=True)
    print(f"{'':32}" + "".join(f"{what:>10}" for what in OUTCOMES))
    for kind in sorted({kind for kind, _ in table}):
        print(f"{kind:32}" + "".join(f"{table[kind, what]:10}" for what in OUTCOMES))
    return any(table[key] for key in table if key[1] in ("false", "raised"))


def kind_of(file: str) -> str:
    """Return the kind of file that "node/path" names."""
    node, _, path = file.partition("/")
    name = path.rpartition("/")[2]
    end = "body" if "spool/" in path or len(name) >= 32 else name
    return f"{'HQ' if node == HQ_NODE else 'client'} {end}"


if __name__ == "__main__":
    sys.exit(main())
