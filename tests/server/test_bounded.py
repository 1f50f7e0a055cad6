"""HQ's memory stays bounded, and the service up, whatever many peers do at once.  Over real
sockets.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.limits import LIMITS
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries
from tests import soak
from tests.server.hq import BIG, PATIENCE_S, Raw, codec_name, running
from tests.server.test_connections import held, opened

MIB = 1 << 20


async def test_a_watermark_closes_above_the_high_mark_and_opens_below_the_low() -> None:
    mark = BackPressure(attrs.evolve(LIMITS, memory_high_bytes=100, memory_low_bytes=60))
    seen = []
    for size in (100, 1, -30, 20, -31, 40, 1, -100):
        mark.add(size)
        seen.append((mark.held, mark.closed))
    assert seen == [
        (100, False),
        (101, True),
        (71, True),
        (91, True),
        (60, False),
        (100, False),
        (101, True),
        (1, False),
    ]


async def test_publishers_wait_while_memory_is_short_and_nothing_is_lost(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, memory_high_bytes=3 * MIB, memory_low_bytes=MIB)
    size, each, many = 600_000, 12, 4
    async with running(tmp_path / "hq", limits=limits) as r:
        center = await r.person("CA-RC")
        labs = [await r.client(f"LAB-{n}") for n in range(many)]
        memory, most = r.hq.memory, 0
        done: list[str] = []

        async def publish(lab: Raw, name: str) -> None:
            for n in range(each):
                raw = r.people[name].seal(center, text="x" * size).raw
                await lab.stream.send_all(codec.encode(frames.Send(n + 1, 0, 0, raw)))
            while len([d for d in done if d == name]) < each:
                answer = await lab.next()
                assert isinstance(answer, frames.Confirm), answer
                done.extend([name] * sum(run.count for run in answer.ranges))

        async def watch() -> None:
            nonlocal most
            while len(done) < each * many:
                most = max(most, memory.held)
                await trio.sleep(0.001)

        with trio.fail_after(4 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                with held(r) as reached:
                    for n, lab in enumerate(labs):
                        nursery.start_soon(publish, lab, f"LAB-{n}")
                    nursery.start_soon(watch)
                    await reached.wait()
                    for _ in range(int(PATIENCE_S * 1000)):
                        if memory.closed:
                            break
                        await trio.sleep(0.001)
        # Above the high mark each may end what it had begun: one envelope, and what one read had
        # brought.
        assert 3 * MIB < most < 3 * MIB + many * (size + 2 * MIB)
        await r.released()
        assert not memory.closed
        assert "HQ is low on memory; publishers wait" in {text for lab in labs for text in lab.told}
        assert r.hq.engine.broker.state.queues["box.CA-RC"].depth == each * many


async def test_a_publisher_that_ignores_its_window_is_held_by_tcp(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, publish_window=20)
    async with running(tmp_path / "hq", limits=limits) as r:
        center = await r.person("CA-RC")
        lab = await r.client("FL-LAB")
        (session,) = (s for s in r.hq.connections if s.client == "FL-LAB")
        raw = [r.people["FL-LAB"].seal(center, text="x" * 100_000).raw for _ in range(150)]
        most = 0

        async def send() -> None:
            for n, envelope in enumerate(raw):
                await lab.stream.send_all(codec.encode(frames.Send(n + 1, 0, 0, envelope)))

        confirmed = 0
        with trio.fail_after(4 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                with held(r) as reached:
                    nursery.start_soon(send)
                    await reached.wait()
                    for _ in range(50):
                        most = max(most, len(session._in_flight.unconfirmed))
                        await trio.sleep(0.005)
                while confirmed < len(raw):
                    answer = await lab.next()
                    assert isinstance(answer, frames.Confirm), answer
                    confirmed += sum(run.count for run in answer.ranges)
        assert most <= 20 + 1 + 2 * MIB // 100_000  # the window, and what one read had brought


async def test_a_consumer_that_never_acknowledges_gets_its_credit_and_no_more(
    tmp_path: Path,
) -> None:
    limits = attrs.evolve(LIMITS, body_cache_bytes=200_000, head_entries=100, page_entries=50)
    async with running(tmp_path / "hq", limits=limits) as r:
        center = await r.client("CA-RC")
        await center.ask(frames.Consume, 1, "box.CA-RC", 10, BIG)
        lab = await r.client("FL-LAB")
        for n in range(400):
            raw = r.people["FL-LAB"].seal(r.people["CA-RC"], text=str(n)).raw
            lab.correlation += 1
            await lab.stream.send_all(codec.encode(frames.Send(lab.correlation, 0, 0, raw)))
        confirmed = 0
        while confirmed < 400:
            confirmed += sum(run.count for run in (await lab.next()).ranges)
        got: list[Any] = []
        while len(got) < 10:
            answer = await center.next()
            got += answer.entries if isinstance(answer, Deliveries) else []
        await center.send(frames.Ping(center.correlation + 1))
        assert isinstance(await center.next(), frames.Pong)  # nothing more came before it
        queue = r.hq.engine.broker.state.queues["box.CA-RC"]
        assert queue.depth == 400
        assert len(queue.ready) <= 100
        assert r.hq.engine.bodies.size <= 200_000
        assert isinstance(
            await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw), frames.Confirm
        )


async def test_a_consumer_that_does_not_read_is_cut_and_holds_up_nobody(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        await r.person("STUCK")
        lab = await r.client("FL-LAB")
        for _ in range(24):
            raw = r.people["FL-LAB"].seal(r.people["STUCK"], text="x" * MIB).raw
            assert isinstance(await lab.publish(raw), frames.Confirm)
        stuck, _ = await opened(r, "STUCK")
        (session,) = (s for s in r.hq.connections if s.client == "STUCK")
        session._out._deadline_s = 0.5
        await stuck.send(frames.Consume(1, 1, "box.STUCK", 1000, BIG))
        center = await r.client("CA-RC")
        await center.ask(frames.Consume, 1, "box.CA-RC", 10, BIG)
        with trio.fail_after(PATIENCE_S):
            while session in r.hq.connections:
                assert isinstance(
                    await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw),
                    frames.Confirm,
                )
                answer = await center.next()
                while not isinstance(answer, Deliveries):
                    answer = await center.next()
                await center.ask(
                    frames.Ack,
                    "box.CA-RC",
                    [frames.Range(answer.entries[0][0], len(answer.entries))],
                )
                await center.send(frames.Credit(1, len(answer.entries), BIG))
                assert r.hq.memory.held < 8 * MIB
        assert r.hq.engine.broker.state.queues["box.STUCK"].depth == 24
        await r.released()


async def test_garbage_and_silence_in_numbers(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, client_hello_s=1.0)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab = await r.client("FL-LAB")
        await r.person("CA-RC")
        host, _, port = r.address.rpartition(":")

        async def garbage(n: int) -> None:
            stream = await trio.open_tcp_stream(host, int(port))
            async with stream:
                with trio.move_on_after(PATIENCE_S):
                    with suppress(trio.BrokenResourceError):
                        await stream.send_all(os.urandom(1 + n % 600))
                        while await stream.receive_some(4096):
                            pass

        async def silence() -> None:
            async with await trio.open_tcp_stream(host, int(port)) as stream:
                with trio.fail_after(PATIENCE_S):
                    with suppress(trio.BrokenResourceError):
                        while await stream.receive_some(4096):
                            pass

        async with trio.open_nursery() as nursery:
            for n in range(200):
                nursery.start_soon(garbage, n)
            for _ in range(50):
                nursery.start_soon(silence)
            for _ in range(20):
                assert isinstance(
                    await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw),
                    frames.Confirm,
                )
        assert len(r.hq.connections) == 1


@soak.more
async def test_many_clients_declare_the_same_queue_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        count = 100 if soak.ON else 25
        raws = [await r.client(f"C-{n}") for n in range(count)]
        for n in range(count):
            r.hq.engine.broker.state.rights.grants.add((f"C-{n}", "declare", ""))
        answers: list[Any] = []

        async def declare(raw: Raw) -> None:
            answers.append(await raw.ask(frames.DeclareQueue, "shared", "", []))

        async with trio.open_nursery() as nursery:
            for raw in raws:
                nursery.start_soon(declare, raw)
        made = [a for a in answers if isinstance(a, frames.Ok)]
        assert len(made) == 1
        assert {codec_name(a) for a in answers if isinstance(a, frames.Error)} == {"conflict"}
        assert "shared" in r.hq.engine.broker.state.queues
        again = [
            await (await r.client("C-0")).ask(frames.DeclareQueue, "own", "", []) for _ in range(3)
        ]
        assert [a.count for a in again] == [1, 0, 0]


NAMES = [
    ("n" * 127, ""),
    ("ä" * 63, ""),
    ("n" * 128, "invalid-request"),
    ("ä" * 64, "invalid-request"),
    ("", "invalid-request"),
    ("a\x00b", "invalid-request"),
    ("a\nb", "invalid-request"),
    ("a\u202eb", "invalid-request"),
    (" ", ""),
]


@pytest.mark.parametrize(("name", "refusal"), NAMES)
async def test_names_at_their_limits(tmp_path: Path, name: str, refusal: str) -> None:
    async with running(tmp_path / "hq") as r:
        await r.person("BOSS", role="admin")
        boss = await r.client("BOSS")

        async def said(kind: Any, *fields: Any) -> str:
            answer = await boss.ask(kind, *fields)
            return codec_name(answer) if isinstance(answer, frames.Error) else ""

        await said(frames.DeclareExchange, "there", 0)
        await said(frames.DeclareQueue, "there", "", [])
        assert await said(frames.DeclareExchange, name, 2) == refusal
        assert await said(frames.DeclareQueue, name, "", []) == refusal
        assert await said(frames.Bind, "there", "there", name) == refusal
        if refusal:
            assert await said(frames.DeleteQueue, name) in ("not-found", "invalid-request")
            assert await said(frames.Consume, 1, name, 1, 1) in ("not-found", "invalid-request")
        assert await said(frames.Ping) == ""


async def test_a_clock_that_jumps(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        center = await r.client("CA-RC")
        lab = await r.client("FL-LAB")
        await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG)
        clock, day = r.hq.engine.clock_ms, 24 * 3600 * 1000
        got = []
        for shift in (0, -3600 * 1000, -day, day // 2, 0):
            r.hq.engine.clock_ms = lambda shift=shift: clock() + shift  # type: ignore[misc]
            answer = await lab.publish(
                r.people["FL-LAB"].seal(r.people["CA-RC"], expires_at=clock() + 2 * day).raw
            )
            assert isinstance(answer, frames.Confirm), (shift, codec_name(answer))
            delivery = await center.next()
            got += [e[0] for e in delivery.entries]
            acked = await center.ask(frames.Ack, "box.CA-RC", [frames.Range(got[-1], 1)])
            assert acked.count == 1
        assert got == sorted(got)
        assert r.hq.engine.broker.state.queues["box.CA-RC"].depth == 0


async def test_a_large_envelope_that_comes_too_slowly_ends_its_connection(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, slowest_bytes_per_s=1 << 30)
    async with running(tmp_path / "hq", limits=limits) as r:
        await r.person("CA-RC")
        lab, _ = await opened(r, "FL-LAB", heartbeat_s=1)
        whole = codec.encode(
            frames.Send(1, 0, 0, r.people["FL-LAB"].seal(r.people["CA-RC"], text="x" * MIB).raw)
        )

        async def trickle() -> None:
            with suppress(trio.BrokenResourceError):  # HQ cuts it, at whichever byte
                await lab.stream.send_all(whole[: MIB // 2])
                for at in range(MIB // 2, len(whole), 10):
                    await lab.stream.send_all(whole[at : at + 10])
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            for _ in range(int(PATIENCE_S * 20)):
                if "FL-LAB" not in {s.client for s in r.hq.connections}:
                    break
                await trio.sleep(0.05)
            else:
                raise AssertionError("it was not cut")
            nursery.cancel_scope.cancel()
        await r.released()
