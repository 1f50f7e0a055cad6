"""A running HQ whose own disk fails, whose clients misbehave, and which stops and starts."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    DiskFull,
    StoreError,
    StoreLocked,
    StoreUnavailable,
)
from cipherbox.limits import LIMITS
from cipherbox.server import app
from cipherbox.server.app import serve
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries
from tests.server.hq import BIG, PATIENCE_S, codec_name, consumed, prepare, running, two
from tests.store.test_sqlite import Faulty


async def test_a_failed_commit_is_told_and_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    files = Faulty()
    async with running(tmp_path / "hq", files=files) as r:
        lab, _ = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        kept, failed = me.seal(you, text="k" * 100_000), me.seal(you, text="f" * 100_000)
        assert isinstance(await lab.publish(kept.raw), frames.Confirm)
        files.fail = ("write_synced", errno.EIO)
        told = await lab.publish(failed.raw)
        assert codec_name(told) == "store-unavailable"
        assert told.retryable
        assert codec_name(await lab.next()) == "going-away"
        files.fail = None
        lab, rc = await r.client("FL-LAB"), await r.client("CA-RC")
        assert (await lab.publish(kept.raw)).ranges[0].outcome == 1
        assert (await lab.publish(failed.raw)).ranges[0].outcome == 0
        answer = await rc.ask(frames.Fetch, "box.CA-RC", 10, BIG)
        assert [e.envelope for e in answer.entries] == [kept.raw, failed.raw]


async def test_a_full_disk_refuses_publishes_keeps_connections_and_takes_acks(
    tmp_path: Path,
) -> None:
    files = Faulty()
    async with running(tmp_path / "hq", files=files) as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        assert isinstance(await lab.publish(me.seal(you).raw), frames.Confirm)
        await consumed(rc, "box.CA-RC")
        await rc.next()
        files.free = 0
        with trio.fail_after(PATIENCE_S):  # HQ asks for the free space again within a second
            while isinstance(told := await lab.publish((late := me.seal(you)).raw), frames.Confirm):
                await trio.sleep(0.05)
        assert (codec_name(told), told.retryable) == ("disk-full", True)
        acked = await rc.ask(frames.Ack, "box.CA-RC", [frames.Range(1, 1)])
        if isinstance(acked, frames.GoingAway):  # the question was older than its commit, by chance
            lab, rc = await two(r)
            await consumed(rc, "box.CA-RC")
            await rc.next()
            acked = await rc.ask(frames.Ack, "box.CA-RC", [frames.Range(1, 1)])
        assert acked.count == 1
        files.free = 1 << 40
        with trio.fail_after(PATIENCE_S):
            while not isinstance(told := await lab.publish(late.raw), frames.Confirm):
                assert codec_name(told) == "disk-full"
                await trio.sleep(0.05)


async def test_a_damaged_body_becomes_a_dead_letter_and_the_rest_is_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        bad, good = me.seal(you, text="b" * 100_000), me.seal(you)
        await lab.publish(bad.raw)
        await lab.publish(good.raw)
        (spooled,) = (tmp_path / "hq" / "spool").iterdir()
        spooled.write_bytes(spooled.read_bytes()[:-1] + b"!")
        r.hq.engine.bodies.clear()
        await consumed(rc, "box.CA-RC")
        assert [e[4] for e in (await rc.next()).entries] == [good.raw]
        report = await lab.ask(frames.Status, "", bad.envelope_id)
        while report.traces[0].state != 3:
            report = await lab.ask(frames.Status, "", bad.envelope_id)
        assert "damaged" in report.traces[0].reason
    (line,) = [one for one in caplog.records if one.levelno >= logging.ERROR]
    said = vars(line)
    assert (said["queue"], said["seqs"], said["reason"]) == (
        "box.CA-RC",
        [1],
        "damaged on HQ's disk",
    )
    assert "become dead letters" in line.getMessage()


async def test_a_client_that_does_not_read_holds_nobody_up(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, heartbeat_s=3)) as r:
        lab, slow = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        ny = await r.client("NY-RC")
        await slow.send(frames.Consume(1, 1, "box.CA-RC", 1000, BIG))
        await consumed(ny, "box.NY-RC")
        for i in range(12):
            await lab.publish(me.seal(you, text="s" * 2_000_000).raw)
            await ny.ask(frames.Ping)  # or HQ cuts it for its silence, where this takes long
            if i % 4 == 3:
                await lab.publish(me.seal(r.people["NY-RC"]).raw)
                assert isinstance(await ny.next(), Deliveries)
                await ny.ask(frames.Ack, "box.NY-RC", [frames.Range(i // 4 + 1, 1)])
        with trio.fail_after(60):
            while "CA-RC" in {s.client for s in r.hq.connections}:
                await lab.ask(frames.Ping)
                await trio.sleep(0.2)
        again = await r.client("CA-RC")
        answer = await again.ask(frames.Fetch, "box.CA-RC", 100, 1)
        assert answer.entries[0].seq == 1


async def test_a_publisher_that_ignores_its_window_is_held_back_not_dropped(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, publish_window=4, publish_window_bytes=20_000, engine_commands=2)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab, rc = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        sealed = [me.seal(you, text="p" * 3000) for _ in range(40)]

        async def pour() -> None:
            for i, s in enumerate(sealed):
                await lab.stream.send_all(b"".join(codec.encode_sends([(i + 1, 0, 0, s.raw)])))

        confirmed = 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            while confirmed < 40:
                confirmed += sum(c.count for c in (await lab.next()).ranges)
        answer = await rc.ask(frames.Fetch, "box.CA-RC", 100, BIG)
        assert [e.envelope for e in answer.entries] == [s.raw for s in sealed]


# -- start and stop --------------------------------------------------------------------------------


async def test_a_stop_tells_clients_and_loses_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, _ = await two(r)
        me, you = r.people["FL-LAB"], r.people["CA-RC"]
        sealed = me.seal(you)
        await lab.stream.send_all(b"".join(codec.encode_sends([(1, 0, 0, sealed.raw)])))
        assert isinstance(await lab.next(), frames.Confirm)
        r.scope.cancel()
        assert codec_name(await lab.next()) == "going-away"
        with trio.fail_after(PATIENCE_S):
            await r.stopped.wait()


async def test_one_directory_is_served_once(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve, config)
        with pytest.raises(StoreLocked, match=f"process {os.getpid()}"):
            await serve(config)
        nursery.cancel_scope.cancel()


async def test_a_client_has_a_bounded_number_of_connections(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, connections_per_client=2)) as r:
        kept = [await r.client("FL-LAB") for _ in range(2)]
        third = await r.dial(r.people["FL-LAB"], hello=False)
        await third.stream.send_all(
            third.wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 30, ""))
        )
        assert codec_name(await third.next()) == "too-many-connections"
        assert isinstance(await kept[0].ask(frames.List, "queues", "", ""), frames.Listing)


async def test_many_garbage_and_silent_connections_do_not_keep_others_out(tmp_path: Path) -> None:
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, handshakes_at_once=8, client_hello_s=1.0)
    ) as r:
        host, port = r.address.rsplit(":", 1)
        silent = [await trio.open_tcp_stream(host, int(port)) for _ in range(50)]
        for _ in range(100):
            stream = await trio.open_tcp_stream(host, int(port))
            await stream.send_all(b"\x16\x03\x01garbage")
            await trio.aclose_forcefully(stream)
        with trio.fail_after(PATIENCE_S):
            lab = await r.client("FL-LAB")
        assert isinstance(await lab.ask(frames.List, "queues", "", ""), frames.Listing)
        for stream in silent:
            await trio.aclose_forcefully(stream)


async def test_another_key_for_the_database_is_refused_at_start(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        file = r.hq.config.encryption.database_key_file
    right = file.read_bytes()
    file.write_bytes(bytes(32))
    with pytest.raises(ConfigError, match="restore the file from your backup"):
        async with running(tmp_path / "hq"):
            pass
    file.write_bytes(right)
    async with running(tmp_path / "hq"):
        pass


@pytest.mark.parametrize(
    "error", [DiskFull("no space left"), StoreUnavailable("it does not answer")]
)
async def test_a_store_that_cannot_be_opened_now_is_said_or_waited_for(
    monkeypatch: pytest.MonkeyPatch, error: CipherBoxError
) -> None:
    """SQLite's disk is this machine's, and somebody must look; a database server comes back by
    itself.
    """
    monkeypatch.setattr(app, "STANDBY_S", 0.01)
    opened: Any = object()
    said: list[str] = []

    def attempt() -> Any:
        tries.append(1)
        if len(tries) < 3:
            raise error
        return opened

    tries: list[int] = []
    with pytest.raises(
        StoreError, match=f"{error}; look for the reason: cipherbox doctor DIRECTORY"
    ):
        await app._open(attempt, said.append, patient=False)
    assert said == []
    assert await app._open(attempt, said.append, patient=True) is opened
    assert said == [str(error)]
