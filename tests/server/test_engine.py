"""The engine's rules, with a store that can be held and made to fail."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import trio

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.errors import (
    CipherBoxError,
    DiskFull,
    Fenced,
    GoingAway,
    NotFound,
    Revoked,
    StoreUnavailable,
)
from cipherbox.server import engine as engine_module
from cipherbox.server.body_cache import DAMAGED
from cipherbox.store import reserve
from tests.server.inline import SMALL, Noted, world
from tests.store.suite import AT


@pytest.fixture(autouse=True)
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is asked before each commit."""
    monkeypatch.setattr(reserve, "FRESH_S", 0.0)


def correlations(peer: Noted, kind: type) -> list[int]:
    return [a.correlation for a in peer.answers if type(a) is kind]


def seqs(peer: Noted) -> list[int]:
    return [e.seq for _, _, entries in peer.handed for e in entries]


async def test_nothing_leaves_before_the_commit_and_the_next_batch_gathers(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await b.until(lambda: bool(b.answers))
        w.runner.held = trio.Event()
        await w.publish(a, 1)
        with trio.fail_after(60):
            await w.runner.reached.wait()
        for index in (2, 3, 4):
            await w.publish(a, index)
        await trio.testing.wait_all_tasks_blocked()
        assert a.answers == []
        assert b.handed == []
        w.runner.calls.clear()
        w.runner.held.set()
        w.runner.held = None
        await a.until(lambda: len(a.answers) == 4)
        assert correlations(a, m.Confirmed) == [1, 2, 3, 4]
        assert seqs(b) == [1, 2, 3, 4]
        assert w.runner.calls.count("commit") == 1  # the three that gathered went in one


@pytest.mark.parametrize(
    "error", [StoreUnavailable("the disk does not answer"), RuntimeError("a mistake of HQ's own")]
)
async def test_a_failed_commit_refuses_the_batch_closes_and_reloads(
    tmp_path: Path, error: Exception
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, 1)
        await a.until(lambda: len(a.answers) == 1)
        before = w.engine.broker
        w.runner.fail["commit"] = [error]
        await w.publish(a, 2)
        await a.until(lambda: bool(a.ended))
        (failed,) = [x for x in a.answers if isinstance(x, m.Failed)]
        assert failed.correlation == 2
        assert failed.error.retryable
        assert [type(e) for e in (*a.ended, *b.ended)] == [GoingAway, GoingAway]
        assert seqs(b) == [1]
        # the core is the store's again: what was confirmed is there, what failed may come again as
        # new
        a, b = w.peer("A"), w.peer("B")
        await w.publish(a, 1, 2)
        await a.until(lambda: len(a.answers) == 2)
        assert w.engine.broker is not before
        assert [x.duplicate for x in a.answers if isinstance(x, m.Confirmed)] == [True, False]
        await w.consume(b)
        await b.until(lambda: bool(b.handed))
        assert seqs(b) == [1, 2]


async def test_what_waited_from_before_a_failure_is_not_taken_by_the_new_core(
    tmp_path: Path,
) -> None:
    """A consumer registered for a dead connection would swallow deliveries for ever."""
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        w.runner.held = trio.Event()
        w.runner.fail["commit"] = [StoreUnavailable()]
        await w.publish(a, 1)
        with trio.fail_after(60):
            await w.runner.reached.wait()
        await w.consume(b)  # gathers behind the batch that fails
        w.runner.held.set()
        w.runner.held = None
        await b.until(lambda: bool(b.ended))
        await w.consume(b)  # and this one comes from a reader that has not noticed yet
        a, again = w.peer("A"), w.peer("B")
        await w.consume(again)
        await w.publish(a, 1)
        await again.until(lambda: bool(again.handed))
        assert seqs(again) == [1]
        assert w.engine.broker.state.consumers.keys() == {(again.connection, 1)}


async def test_connections_that_come_while_the_core_is_loaded_are_known_to_the_new_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        w.runner.fail["commit"] = [StoreUnavailable()]
        w.runner.fail["load"] = [StoreUnavailable(), StoreUnavailable()]
        await w.publish(a, 1)
        await a.until(lambda: bool(a.ended))
        early = w.peer("B")
        await w.engine.submit(m.Resolve(early.connection, "B", 1, "", "box.B"))
        await early.until(lambda: bool(early.answers))
        assert w.engine.broker.state.client_of == {early.connection: "B"}
        assert trio.current_time() >= 2 * engine_module.RECOVER_PAUSE_S


async def test_a_call_of_hq_itself_is_answered_also_when_its_commit_fails(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        w.runner.fail["commit"] = [StoreUnavailable("away")]
        with trio.fail_after(60), pytest.raises(StoreUnavailable, match="away"):
            await w.engine.call(lambda n: m.AddClient(0, "", n, "D", "client"))
        with trio.fail_after(60):
            await w.engine.call(lambda n: m.AddClient(0, "", n, "D", "client"))
        with pytest.raises(NotFound):
            await w.engine.call(lambda n: m.RevokeClient(0, "", n, "NOBODY", ""))


@pytest.mark.parametrize("call", ["_read_facts", "commit"])
async def test_a_store_that_is_lost_for_good_ends_the_engine(tmp_path: Path, call: str) -> None:
    async def lose_it() -> None:
        async with world(tmp_path) as w:
            a = w.peer("A")
            await w.publish(a, 2)
            await a.until(lambda: bool(a.answers))
            w.runner.fail[call] = [Fenced()]
            await w.publish(a, 1)  # an id below the highest: the store is asked whether it knows it
            await trio.sleep(10)

    with pytest.raises(BaseExceptionGroup) as found:
        await lose_it()
    assert found.group_contains(Fenced)


async def test_a_full_disk_refuses_publishes_alone(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, 1)
        await b.until(lambda: bool(b.handed))
        core = w.engine.broker
        w.store._files.free_bytes = lambda path: 0  # type: ignore[method-assign]
        await w.publish(a, 2)
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, 1)]))
        await b.until(lambda: bool(correlations(b, m.Acked)))
        await a.until(lambda: len(a.answers) == 2)
        failed = a.answers[1]
        assert isinstance(failed, m.Failed)
        assert isinstance(failed.error, DiskFull)
        assert a.ended == b.ended == []
        assert w.engine.broker is core


async def test_a_commit_that_finds_the_disk_full_is_followed_by_a_pause_for_publishes(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        w.runner.fail["commit"] = [DiskFull()]
        await w.publish(a, 1)
        await a.until(lambda: bool(a.ended))
        await w.engine.idle()
        a, b = w.peer("A"), w.peer("B")
        core = w.engine.broker
        await w.publish(a, 1)
        await a.until(lambda: bool(a.answers))
        assert isinstance(a.answers[0], m.Failed)
        await w.consume(b)  # everything else goes on
        await b.until(lambda: bool(b.answers))
        assert w.engine.broker is core
        await trio.sleep(engine_module.FULL_PAUSE_S)
        await w.publish(a, 1)
        await a.until(lambda: bool(correlations(a, m.Confirmed)))


async def test_a_commit_takes_so_many_bytes_and_no_more(tmp_path: Path) -> None:
    async with world(tmp_path, attrs.evolve(SMALL, batch_commit_bytes=1000)) as w:
        a = w.peer("A")
        w.runner.held = trio.Event()
        await w.publish(a, 1)
        with trio.fail_after(60):
            await w.runner.reached.wait()
        for index in (2, 3, 4, 5):
            await w.publish(a, index, body=b"x" * 600)
        w.runner.calls.clear()
        w.runner.held.set()
        w.runner.held = None
        await a.until(lambda: len(a.answers) == 5)
        assert w.runner.calls.count("commit") == 2  # two each: the second passes the bound


async def test_submit_waits_while_there_is_no_room(tmp_path: Path) -> None:
    limits = attrs.evolve(SMALL, engine_commands=3, engine_bytes=1000)
    async with world(tmp_path, limits) as w:
        a = w.peer("A")
        w.runner.held = trio.Event()
        await w.publish(a, 1)
        with trio.fail_after(60):
            await w.runner.reached.wait()
        done: list[int] = []

        async def pour(first: int, body: bytes) -> None:
            for index in range(first, first + 5):
                await w.publish(a, index, body=body)
                done.append(index)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour, 2, b"x" * 900)
            await trio.testing.wait_all_tasks_blocked()
            assert len(done) == 2  # the second passed the bytes
            w.runner.held.set()
            w.runner.held = None
            await a.until(lambda: len(a.answers) == 6)
        assert correlations(a, m.Confirmed) == [1, 2, 3, 4, 5, 6]


async def test_idle_comes_also_after_batches_that_followed_each_other(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        w.runner.held = trio.Event()
        await w.publish(a, 1)
        with trio.fail_after(60):
            await w.runner.reached.wait()
        idle = trio.Event()

        async def wait() -> None:
            await w.engine.idle()
            idle.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            await w.publish(a, 2)
            assert not idle.is_set()
            w.runner.held.set()
            w.runner.held = None
            with trio.fail_after(60):
                await idle.wait()
        assert correlations(a, m.Confirmed) == [1, 2]


async def test_sweeps_come_under_load_too(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        swept: list[float] = []
        handle = Broker.handle

        def watch(
            broker: Broker, commands: list[m.AnyCommand], facts: m.Facts, now: int
        ) -> m.Effects:
            swept.extend(trio.current_time() for c in commands if isinstance(c, m.Sweep))
            return handle(broker, commands, facts, now)

        w.engine.broker.handle = lambda c, f, n: watch(w.engine.broker, c, f, n)  # type: ignore[method-assign,assignment]
        for index in range(1, 40):
            await w.publish(a, index)
            await trio.sleep(0.1)
        assert len(swept) >= 3


async def test_a_disk_that_was_full_needs_some_room_before_publishes_are_taken_again(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        refused = []
        for index, free in enumerate((1 << 30, 0, 8 << 20, 64 << 20, 1 << 30, 64 << 20), 1):
            w.store._files.free_bytes = lambda path, free=free: free  # type: ignore[method-assign, misc]
            await w.publish(a, index)
            await a.until(lambda index=index: len(a.answers) == index)  # type: ignore[misc]
            refused.append(isinstance(a.answers[-1], m.Failed))
        assert refused == [False, True, True, True, False, False]


async def test_revoked_connections_are_ended_with_the_reason(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.engine.call(lambda n: m.RevokeClient(0, "", n, "A", "stolen"))
        assert [type(e) for e in a.ended] == [Revoked]
        assert b.ended == []


async def test_bodies_are_bounded_and_read_back(tmp_path: Path) -> None:
    limits = attrs.evolve(SMALL, body_cache_bytes=3100)
    async with world(tmp_path, limits) as w:
        a, b = w.peer("A"), w.peer("B")
        for index in range(1, 6):
            await w.publish(a, index, body=bytes([index]) * 1000)
        await a.until(lambda: len(a.answers) == 5)
        # nobody consumes: an eighth of the room is for what is handed
        assert w.engine.bodies.size == 2000
        await w.consume(b)
        await b.until(lambda: bool(b.handed))
        ((_, queue, entries),) = b.handed
        assert w.engine.bodies.held(entries) is None
        # the oldest, which a consumer wants first
        assert w.engine.bodies.held(entries[:2]) is not None
        items = await w.engine.bodies.items(queue, entries)
        assert [(seq, body[0], len(body)) for seq, _, _, _, body in items] == [
            (i, i, 1000) for i in range(1, 6)
        ]
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, 5)]))
        await b.until(lambda: bool(correlations(b, m.Acked)))
        assert w.engine.bodies.size == 0
        for index in range(6, 10):
            await w.publish(a, index, body=bytes([index]) * 1000)
        await b.until(lambda: sum(len(entries) for _, _, entries in b.handed) == 9)
        assert w.engine.bodies.size == 3000  # handed at once: all the room, and the newest stay


async def test_a_body_that_cannot_be_read_back_is_tried_again_then_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.publish(a, 1)
        await w.consume(b)
        await b.until(lambda: bool(b.handed))
        ((_, queue, entries),) = b.handed
        w.engine.bodies.clear()
        w.runner.fail["read_bodies"] = [StoreUnavailable()] * 2
        assert [item[4] for item in await w.engine.bodies.items(queue, entries)] == [b"body"]
        w.runner.fail["read_bodies"] = [StoreUnavailable()] * 3
        with pytest.raises(CipherBoxError):
            await w.engine.bodies.items(queue, entries)


async def test_a_damaged_body_becomes_a_dead_letter_but_not_one_that_was_acknowledged_meanwhile(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as w:
        a, b, other = w.peer("A"), w.peer("B"), w.peer("B")
        await w.publish(a, 1, 2)
        await w.consume(b)
        await b.until(lambda: bool(b.handed))
        ((_, queue, entries),) = b.handed
        await w.engine.submit(m.Ack(other.connection, "B", 1, "box.B", [(1, 1)]))
        await other.until(lambda: bool(other.answers))
        w.engine.bodies.clear()
        w.store.db.execute("UPDATE bodies SET data = x'00'")
        assert await w.engine.bodies.items(queue, entries) == []
        await w.engine.idle()
        report = w.store.trace("A", entries[1].envelope_id)
        assert report is not None
        assert [(t.state, t.reason) for t in report.traces] == [(m.EntryState.DEAD, DAMAGED)]
        report = w.store.trace("A", entries[0].envelope_id)
        assert report is not None
        assert report.traces[0].state == m.EntryState.ACKNOWLEDGED
        assert report.accepted_at == AT + 1
