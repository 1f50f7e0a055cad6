"""Seeds of the simulation: whatever happens, what was confirmed arrives once, and the log is whole.

`make soak` plays 2,000; CIPHERBOX_SEEDS=START:COUNT chooses others, and one alone is replayed by
its number.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cipherbox.client.outbox import sender as post_module
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from tests import postgres, soak
from tests.server.hq import running
from tests.sim.world import RECEIVERS, SENDERS, Template, World, virtual

FIRST, COUNT = (
    int(part)
    for part in os.environ.get("CIPHERBOX_SEEDS", "0:2000" if soak.ON else "0:10").split(":")
)
FAULTS_S, SETTLE_S = 30.0, 3600.0


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    path = tmp_path_factory.mktemp("template")
    people: dict[str, Any] = {}

    async def make() -> None:
        async with running(path / "hq") as here:
            for name in (*SENDERS, *RECEIVERS):
                people[name] = await here.person(name, days=3650)
                await here.hq.directory.register(name, people[name].identity.bundle.raw)

    trio.run(make)
    for name in ("reserve", "lock"):
        (path / "hq" / name).unlink(missing_ok=True)
    return Template(path / "hq", people)


@soak.more
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_what_is_confirmed_arrives_once(
    seed: int, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_seed(World(tmp_path, template, seed), seed, monkeypatch)


@soak.more
@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, COUNT // 20)))
def test_the_same_at_postgresql(
    seed: int,
    template: Template,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    postgresql: postgres.Server,
) -> None:
    target = postgres.target(postgresql, postgres.schema())
    play_seed(World(tmp_path, template, seed, target), seed, monkeypatch)


def play_seed(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(post_module, "LOOK_S", 1.0)

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.serve)
            for name in SENDERS:
                nursery.start_soon(world.live, name, world.send)
            for name in RECEIVERS:
                nursery.start_soon(world.live, name, world.receive)
            while trio.current_time() < FAULTS_S:
                await trio.sleep(world.chance.uniform(0.1, 6.0))
                await world.fault()
            world.calm, world.disk_full, world.store_fault, world.clock_offset_ms = (
                True,
                False,
                "",
                0,
            )
            world.inbox_fault = ""
            with trio.move_on_after(SETTLE_S) as scope:
                while not world.settled():
                    await trio.sleep(1.0)
            assert not scope.cancelled_caught, "it does not settle"
            await trio.sleep(1.0)
            check(world)
            nursery.cancel_scope.cancel()

    with virtual(world, seed, monkeypatch):
        trio.run(play, clock=trio.testing.MockClock(autojump_threshold=0))


def check(world: World) -> None:
    assert world.confirmed
    for name in RECEIVERS:
        got = Counter(line["content"] for line in world.lines(name))
        twice = [content[:20] for content, count in got.items() if count > 1]
        assert not twice, f"{name} has {twice} more than once"
        unknown = [content[:20] for content in got if name not in world.put.get(content, ())]
        assert not unknown, f"{name} has {unknown}, which nobody sent it"
        lost = [
            content[:20]
            for content, to in world.confirmed.items()
            if name in to and content not in got
        ]
        dead = (
            world.hq.store.dead_letters("", "", 100, True)[0]
            if lost and world.hq is not None
            else []
        )
        assert not lost, f"{name} never got {lost}, which HQ had confirmed; dead letters: {dead}"
    assert world.hq is not None
    edge = tree.RightEdge()
    for row in world.hq.store.log(0, 1_000_000, 1 << 40):
        log.verify_entry(row.record, row.body, edge.size + 1)
        assert b"".join(edge.append(tree.leaf_hash(row.record))) == row.nodes


def test_a_seed_gives_the_same_run_again(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for turn in ("a", "b"):
        path = tmp_path / turn
        path.mkdir()
        with monkeypatch.context() as patch:
            test_what_is_confirmed_arrives_once(7, template, path, patch)
        lines = [
            line.rpartition(b'"content"')[2]
            for name in RECEIVERS
            for line in (path / name / "data" / "received_messages.jsonl").read_bytes().splitlines()
        ]
        seen.append(lines)
    assert seen[0] == seen[1]
