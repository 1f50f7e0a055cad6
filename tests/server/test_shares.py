"""Memory of HQ under a hostile client: what is announced, trickled, or not read keeps nobody
else from publishing.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.errors import NetworkError
from cipherbox.limits import LIMITS
from cipherbox.server.connection.backpressure import LARGE, BackPressure, Transfer
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries
from tests.server.hq import BIG, PATIENCE_S, Raw, Running, codec_name, running
from tests.server.test_connections import opened

MIB = 1 << 20


def announced(size: int = 16 * MIB) -> bytes:
    """The first 13 bytes of a SEND of ``size`` bytes."""
    return (size + 9).to_bytes(4, "big") + b"\x02" + (1).to_bytes(4, "big") + bytes(4)


async def publishes(r: Running, lab: Raw) -> None:
    """An honest client's message arrives: `Raw.next` waits for ten seconds."""
    answer = await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
    assert isinstance(answer, frames.Confirm), answer


async def pour(raw: Raw, data: bytes) -> None:
    """Send until HQ cuts the connection, which it may do at any byte: how far it comes depends on
    the machine.
    """
    with suppress(NetworkError):
        await raw.stream.send_all(data)


async def gone(r: Running, name: str) -> None:
    with trio.fail_after(PATIENCE_S):
        while name in {s.client for s in r.hq.connections}:
            await trio.sleep(0.02)


async def test_221_bytes_stop_nobody(tmp_path: Path) -> None:
    """17 connections of one client that each announce 16 MiB and say no more: nothing is held,
    everybody publishes.
    """
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        await r.person("CA-RC")
        evil = [await r.client("EVIL") for _ in range(17)]
        for raw in evil:
            await raw.stream.send_all(announced())
        for _ in range(5):
            await publishes(r, lab)
        assert r.hq.memory.held < 64 * 1024  # and what is on its way out
        assert not r.hq.memory.closed


async def test_what_trickles_in_is_cut_within_seconds_and_what_flows_is_not(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, progress_s=1.0, slowest_bytes_per_s=100_000)
    async with running(tmp_path / "hq", limits=limits) as r:
        await r.person("CA-RC")
        evil, lab, silent = (
            await r.client("EVIL"),
            await r.client("FL-LAB"),
            await r.client("SILENT"),
        )
        whole = codec.encode(
            frames.Send(1, 0, 0, r.people["FL-LAB"].seal(r.people["CA-RC"], text="x" * 2 * MIB).raw)
        )
        for raw in (evil, silent):
            await raw.stream.send_all(announced())

        async def trickle(raw: Raw, data: bytes, step: int) -> None:
            with suppress(NetworkError):
                for at in range(0, len(data), step):
                    await raw.stream.send_all(data[at : at + step])
                    await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle, evil, bytes(100_000), 100)
            await trickle(lab, whole, 100_000)  # slow, but ten times what is demanded
            assert isinstance(await lab.next(), frames.Confirm)
            await gone(r, "EVIL")
            nursery.cancel_scope.cancel()
        assert codec_name(await silent.next()) == "slow-frame"
        await r.released()


async def test_one_client_fills_its_share_and_no_more(tmp_path: Path) -> None:
    """Ten connections that send as fast as they can and never end a frame hold the share and one
    frame.
    """
    limits = attrs.evolve(LIMITS, memory_per_client_bytes=4 * MIB)
    async with running(tmp_path / "hq", limits=limits) as r:
        await r.person("CA-RC")
        evil = [await r.client("EVIL") for _ in range(10)]
        lab = await r.client("FL-LAB")
        async with trio.open_nursery() as nursery:
            for raw in evil:
                nursery.start_soon(pour, raw, announced() + bytes(15 * MIB))
            with trio.fail_after(PATIENCE_S):
                while r.hq.memory.held < 4 * MIB:
                    await trio.sleep(0.01)
            for _ in range(10):
                await publishes(r, lab)
                await trio.sleep(0.05)
            shares = r.hq.memory.shares()
            # and of each connection what one read brought
            assert shares["EVIL"] <= (4 + 16) * MIB + 10 * 2 * MIB
            assert not r.hq.memory.closed
            nursery.cancel_scope.cancel()


async def test_a_client_above_its_share_ends_its_frames_one_by_one(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, memory_per_client_bytes=MIB)
    async with running(tmp_path / "hq", limits=limits) as r:
        await r.person("CA-RC")
        raws = [await r.client("FL-LAB") for _ in range(5)]
        sealed = [
            r.people["FL-LAB"].seal(r.people["CA-RC"], text=str(n) * 3 * MIB).raw for n in range(5)
        ]
        answers: list[Any] = []

        async def send(raw: Raw, envelope: bytes) -> None:
            answers.append(await raw.publish(envelope))

        with trio.fail_after(2 * PATIENCE_S):
            async with trio.open_nursery() as nursery:
                for raw, envelope in zip(raws, sealed, strict=True):
                    nursery.start_soon(send, raw, envelope)
        assert [type(a) for a in answers] == [frames.Confirm] * 5
        await r.released()


async def test_when_the_mark_closes_the_slowest_frame_is_cut_first(tmp_path: Path) -> None:
    """Many clients together close it: whoever moves slowest goes, and publishers go on within
    seconds.
    """
    limits = attrs.evolve(
        LIMITS, memory_high_bytes=3 * MIB, memory_low_bytes=MIB, memory_per_client_bytes=2 * MIB
    )
    async with running(tmp_path / "hq", limits=limits) as r:
        await r.person("CA-RC")
        lab = await r.client("FL-LAB")
        await publishes(r, lab)  # it is a publisher, so it waits
        evil = [await r.client(f"EVIL-{n}") for n in range(4)]
        for n, raw in enumerate(evil):
            await pour(raw, announced() + bytes(MIB - n * LARGE // 4))
        with trio.fail_after(PATIENCE_S):
            while not r.hq.memory.closed:
                await trio.sleep(0.01)
        for _ in range(2):  # what one read has brought is taken; then it waits
            await publishes(r, lab)
        assert r.hq.memory.cuts >= 1
        left = {s.client for s in r.hq.connections}
        assert "FL-LAB" in left


def transfer(size: int, *, moved: int, waited: float, gone: list[str], name: str) -> Transfer:
    one = Transfer(size, lambda why: gone.append(name))
    one.held = one.moved = moved
    one._waited = waited
    return one


async def test_twice_above_the_mark_the_slowest_goes_at_once_and_only_as_many_as_needed(
    autojump_clock: Any,
) -> None:
    high = 64 * MIB
    memory = BackPressure(attrs.evolve(LIMITS, memory_high_bytes=high, memory_low_bytes=high // 2))
    gone: list[str] = []
    for n in range(8):
        memory.began(transfer(16 * MIB, moved=16 * MIB, waited=1.0 + n, gone=gone, name=f"C{n}"))
        memory.add(16 * MIB)
    assert gone == []  # twice the mark exactly
    memory.add(1)
    assert gone == ["C7"]
    memory.add(15 * MIB)  # what was cut is on its way out, and counts as gone
    assert gone == ["C7"]
    memory.add(2 * MIB)
    assert gone == ["C7", "C6"]
    memory.tick(trio.current_time() + 1)
    assert len(gone) == 2  # the grace
    memory.tick(trio.current_time() + 2.5)
    assert gone == ["C7", "C6", "C5"]
    memory.tick(trio.current_time() + 3)
    assert len(gone) == 3  # one each second


async def test_whoever_reads_a_large_envelope_too_slowly_is_cut_and_others_get_theirs(
    tmp_path: Path,
) -> None:
    limits = attrs.evolve(LIMITS, progress_s=1.0, slowest_bytes_per_s=4 * MIB, body_cache_bytes=MIB)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab = await r.client("FL-LAB")
        slow, center = await opened(r, "SLOW"), await r.client("CA-RC")
        big = r.people["FL-LAB"].seal(r.people["SLOW"], text="x" * 14 * MIB).raw
        assert isinstance(await lab.publish(big), frames.Confirm)
        await slow[0].send(frames.Consume(1, 1, "box.SLOW", 10, BIG))
        await center.ask(frames.Consume, 1, "box.CA-RC", 10, BIG)
        await gone(r, "SLOW")
        await publishes(r, lab)
        assert isinstance(await center.next(), Deliveries)
        await r.released()
        assert r.hq.engine.broker.state.queues["box.SLOW"].depth == 1  # it waits for a better line


@pytest.mark.parametrize("cache", [MIB, 64 * MIB])
async def test_a_client_that_reads_slowly_on_many_connections_holds_its_share_and_no_more(
    tmp_path: Path, cache: int
) -> None:
    """Whether its envelopes are read back from the store or are still in memory."""
    limits = attrs.evolve(LIMITS, memory_per_client_bytes=8 * MIB, body_cache_bytes=cache)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab = await r.client("FL-LAB")
        await r.person("SLOW")
        for _ in range(8):
            big = r.people["FL-LAB"].seal(r.people["SLOW"], text="x" * 7 * MIB).raw
            assert isinstance(await lab.publish(big), frames.Confirm)
        for _ in range(8):
            raw = await r.client("SLOW")
            await raw.send(frames.Consume(1, 1, "box.SLOW", 1, BIG))
        await r.person("CA-RC")
        with trio.fail_after(PATIENCE_S):
            while r.hq.memory.shares().get("SLOW", 0) < 8 * MIB:
                await trio.sleep(0.01)
        for _ in range(10):
            await publishes(r, lab)
            await trio.sleep(0.02)
        # the share, and the frame that went above it
        assert r.hq.memory.shares()["SLOW"] <= 16 * MIB
        assert not r.hq.memory.closed
