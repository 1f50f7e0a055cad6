"""Seeds of the simulation: whatever happens, what was promised arrives once, in order, unchanged
and signed for, the log is whole, and everything settles soon after the last fault.

`make soak` plays 10,000; CIPHERBOX_SEEDS=START:COUNT chooses others, and one alone is replayed by
its number.
"""

from __future__ import annotations

import os
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from cipherbox import pki
from cipherbox.broker.broker import Broker
from cipherbox.cli.prove import checker
from cipherbox.client.home import IDENTITY
from cipherbox.client.inbox.schema import DATABASE as INBOX
from cipherbox.client.inbox.schema import LINES
from cipherbox.client.outbox import sender as post_module
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.sealing import key_file
from cipherbox.store.sqlite.store import DATABASE
from tests import postgres, soak
from tests.broker.world import durable
from tests.server.hq import running
from tests.sim import disk, faults
from tests.sim.world import CLIENTS, HQ_NODE, LOCAL_KEY, RECEIVERS, Template, World, virtual

FIRST, COUNT = (
    int(part)
    for part in os.environ.get("CIPHERBOX_SEEDS", "0:10000" if soak.ON else "0:100").split(":")
)
UNNEEDED = """
SELECT number FROM bodies b WHERE NOT EXISTS (
    SELECT 1 FROM entries e WHERE e.number = b.number AND e.state <> 2  -- not acknowledged
)"""
KNOWN = "SELECT sender, envelope_id, generation, envelope_hash FROM envelopes"
STORED = "SELECT sender, envelope_id FROM lines"
SETTLE_S = 300.0  # of virtual time, after the last fault
pytestmark = pytest.mark.skipif(bool(disk.why_not()), reason=disk.why_not() or "-")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return make_template(tmp_path_factory.mktemp("template"))


def make_template(path: Path) -> Template:
    """Enrol all clients at a new HQ in this directory."""
    people: dict[str, Any] = {}
    (path / "new").mkdir(parents=True)

    async def make() -> None:
        async with running(path / "new" / HQ_NODE) as here:
            for name in CLIENTS:
                people[name] = await here.person(name, days=3650)
                await here.hq.directory.register(name, people[name].identity.bundle.raw)

    trio.run(make)
    for name in CLIENTS:
        (path / "new" / name).mkdir()
        key_file.save(path / "new" / name / IDENTITY, people[name].identity, local_key=LOCAL_KEY)
    for name in ("reserve", "lock"):
        (path / "new" / HQ_NODE / name).unlink(missing_ok=True)
    ca = path / "new" / HQ_NODE / "ca"
    root = tuple(pki.load_pem((ca / n).read_bytes(), n)[0] for n in ("root.crt", "issuing.crt"))
    new = Template(path / "new", people, root)  # type: ignore[arg-type]
    (path / "lived").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        new.lived = live(World(path / "lived", new, 0), patch)
    return new


def live(world: World, monkeypatch: pytest.MonkeyPatch) -> Template:
    """Let everybody write to everybody, and return what the nodes have then."""
    until_s = 0.0

    async def play() -> None:
        nonlocal until_s
        async with trio.open_nursery() as nursery:
            world.start(nursery)
            await trio.sleep(2.0)
            faults.calm(world)
            while world.unsettled():
                await trio.sleep(0.1)
            until_s = trio.current_time()
            nursery.cancel_scope.cancel()

    with virtual(world, 0, monkeypatch) as clock:
        trio.run(play, clock=clock)
    return attrs.evolve(world.template, path=world.path, log=world.log, until_s=until_s, lived=None)


@soak.more
@pytest.mark.parametrize("seed", range(FIRST, FIRST + COUNT))
def test_what_is_promised_arrives_once(
    seed: int, template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    play_seed(World(tmp_path, template, seed), seed, monkeypatch)


@soak.more
@pytest.mark.parametrize("seed", range(FIRST, FIRST + max(1, COUNT // (20 if soak.ON else 100))))
def test_the_same_at_postgresql(
    seed: int,
    template: Template,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    postgresql: postgres.Server,
) -> None:
    target = postgres.target(postgresql, postgres.schema())
    play_seed(World(tmp_path, template, seed, target), seed, monkeypatch)


def play_seed(world: World, seed: int, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    monkeypatch.setattr(post_module, "LOOK_S", 1.0)
    met: Counter[tuple[str, str]] = Counter()

    async def play() -> None:
        async with trio.open_nursery() as nursery:
            world.revoked = not any(kind == "revoke" for kind, _ in faults.aims(seed))
            world.start(nursery)
            await faults.storm(world, seed, met)
            faults.calm(world)
            with trio.move_on_after(SETTLE_S) as scope:
                while world.unsettled():
                    await trio.sleep(1.0)
            assert not scope.cancelled_caught, f"it does not settle: {world.unsettled()}"
            await trio.sleep(1.0)
            await check_core(world)
            check(world)
            nursery.cancel_scope.cancel()

    with virtual(world, seed, monkeypatch) as clock:
        trio.run(play, clock=clock)
    faults.write_down(met)
    return met


async def check_core(world: World) -> None:
    """HQ's memory is what it would load from its store, and counts who is connected."""
    assert world.hq is not None
    engine, limits = world.hq.engine, world.hq.config.limits
    for pause_s in (0.5, 1.0, 2.0, 0.0):  # a client may be asking for something just now
        snapshot = world.hq.store.load(limits.head_entries)
        differences = different(durable(engine.broker), durable(Broker(snapshot, limits)))
        state = engine.broker.state
        if state.connections_of != Counter(state.client_of.values()):
            differences.append("connections")
        if not differences:
            break
        await trio.sleep(pause_s)
    assert not differences, f"HQ's memory is not what its store has: {differences}"
    if world.target is None:
        with closing(sqlite3.connect(world.path / HQ_NODE / DATABASE)) as db:
            assert not db.execute(UNNEEDED).fetchall(), "bodies are left that nobody waits for"


def check_stored_lines(home: Path) -> None:
    """What can be shown later is what the file of received lines has."""
    with closing(sqlite3.connect(home / INBOX)) as db:
        stored = {(sender, raw.hex()[:28]) for sender, raw in db.execute(STORED)}
    lines = [orjson.loads(line) for line in (home / LINES).read_bytes().splitlines()]
    found = {(line["sender_id"], line["message_id"].replace("-", "")[:28]) for line in lines}
    assert stored == found, f"{home.name}: the stored lines are not those of the file"


def different(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Return the keys whose values differ."""
    return [key for key, value in here.items() if value != there[key]]


def check_metadata(world: World, accepted: list[dict[str, Any]]) -> None:
    """HQ's metadata has the newest generation of each envelope that its log has."""
    if world.target is None:
        with closing(sqlite3.connect(world.path / HQ_NODE / DATABASE)) as db:
            rows = {
                (sender, envelope_id.hex()): (generation, digest.hex())
                for sender, envelope_id, generation, digest in db.execute(KNOWN)
            }
        newest = {
            (row["sender"], row["envelope"]): (row["generation"], row["sha256"])
            for row in sorted(accepted, key=lambda row: row["generation"])
        }
        assert rows == newest, "HQ's metadata is of other envelopes than its log"


def check(world: World) -> None:
    report = world.report()
    check_metadata(world, report["hq"]["accepted"])
    for name in RECEIVERS:
        check_stored_lines(world.path / name)
    found = checker.check(report)
    assert not found.problems, found.problems
    assert found.counts["confirmed"]
    assert world.hq is not None
    edge = tree.RightEdge()
    for row in world.hq.store.log(0, 1_000_000, 1 << 40):
        log.verify_entry(row.record, row.body, edge.size + 1)
        assert b"".join(edge.append(tree.leaf_hash(row.record))) == row.nodes
    evidence = [*world.path.glob("*/log-evidence-*")]
    assert not evidence, evidence


def test_a_seed_gives_the_same_run_again(
    template: Template, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    for turn in ("a", "b"):
        path = tmp_path / turn
        path.mkdir()
        with monkeypatch.context() as patch:
            world = World(path, template, 7)
            met = play_seed(world, 7, patch)
        lines = [
            line.rpartition(b'"content"')[2]
            for name in RECEIVERS
            for line in (path / name / "data" / "received_messages.jsonl").read_bytes().splitlines()
            if b'"file"' not in line  # its path, and when it came
        ]
        seen.append((lines, world.log, met))
    assert seen[0] == seen[1]
