"""Windows, deadlines and ends of connections, over real sockets."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.limits import LIMITS
from cipherbox.net.tls import client_context
from cipherbox.server.connection import session as session_module
from cipherbox.wire import codec, frames
from tests.server.hq import BIG, PATIENCE_S, Raw, Running, codec_name, consumed, running


def hello(frame_bytes: int = 1 << 25, heartbeat_s: int = 30) -> frames.Hello:
    return frames.Hello(frames.MAGIC, 2, 2, frame_bytes, heartbeat_s, "raw test")


@contextmanager
def held(r: Running) -> Iterator[trio.Event]:
    """Commits wait in the store's thread while the block runs; the event says that one does."""
    go_on, reached, commit = threading.Event(), trio.Event(), r.hq.store.commit
    token = trio.lowlevel.current_trio_token()

    def slow(*args: Any) -> None:
        token.run_sync_soon(reached.set)
        go_on.wait(PATIENCE_S)
        commit(*args)

    r.hq.store.commit = slow  # type: ignore[method-assign]
    try:
        yield reached
    finally:
        go_on.set()


async def opened(r: Running, name: str, **options: Any) -> tuple[Raw, frames.Welcome]:
    raw = await r.client(name, hello=False)
    await raw.stream.send_all(raw.wire.send(hello(**options)))
    return raw, await raw.next()


async def test_a_client_may_ask_for_a_shorter_heartbeat(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, welcome = await opened(r, "FL-LAB", heartbeat_s=1)
        assert welcome.heartbeat_s == 1
        assert codec_name(await lab.next()) == "idle-timeout"
        _, welcome = await opened(r, "FL-LAB", heartbeat_s=3600)
        assert welcome.heartbeat_s == LIMITS.heartbeat_s
        _, welcome = await opened(r, "FL-LAB", heartbeat_s=0)
        assert welcome.heartbeat_s == LIMITS.heartbeat_s


async def test_correlation_ids_must_rise(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        assert isinstance(await lab.ask(frames.List, "queues", "", ""), frames.Listing)
        await lab.send(frames.List(1, "queues", "", ""))
        told = await lab.next()
        assert (codec_name(told), told.correlation) == ("protocol", 0)
        lab = await r.client("FL-LAB")
        raw = r.people["FL-LAB"].seal(r.people["FL-LAB"]).raw
        await lab.stream.send_all(b"".join(codec.encode_sends([(5, 0, 0, raw), (5, 0, 0, raw)])))
        assert codec_name(await lab.next()) == "protocol"


async def test_a_publisher_that_hq_holds_back_is_not_cut_for_silence(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, heartbeat_s=1, publish_window=2)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab, rc = await r.client("FL-LAB"), await r.client("CA-RC")
        sealed = [r.people["FL-LAB"].seal(r.people["CA-RC"]).raw for _ in range(5)]
        with held(r):
            await lab.stream.send_all(
                b"".join(codec.encode_sends([(i + 1, 0, 0, raw) for i, raw in enumerate(sealed)]))
            )
            await trio.sleep(2.8)  # more than two heartbeats, in which HQ reads nothing from it
        confirmed = 0
        while confirmed < 5:
            event = await lab.next()
            assert isinstance(event, frames.Confirm)
            confirmed += sum(run.count for run in event.ranges)
        del rc


async def test_a_stop_under_load_answers_what_was_taken_and_is_soon_over(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        me = r.people["FL-LAB"]
        confirmed: set[int] = set()
        envelopes: dict[int, bytes] = {}
        away = trio.Event()

        async def pour() -> None:
            number = 0
            try:
                while True:
                    number += 1
                    sealed = me.seal(me)
                    envelopes[number] = sealed.envelope_id
                    await lab.stream.send_all(
                        b"".join(codec.encode_sends([(number, 0, 0, sealed.raw)]))
                    )
            except trio.BrokenResourceError:
                pass

        async def read() -> None:
            while True:
                event = await lab.next()
                if isinstance(event, frames.GoingAway):
                    away.set()
                    return
                confirmed.update(
                    n for run in event.ranges for n in range(run.first, run.first + run.count)
                )
                if len(confirmed) > 20:
                    r.scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            nursery.start_soon(read)
            with trio.fail_after(PATIENCE_S):
                await r.stopped.wait()
                await away.wait()
            nursery.cancel_scope.cancel()
        stored = {
            bytes(row[0]) for row in r.hq.store.db.execute("SELECT envelope_id FROM envelopes")
        }
        assert stored == {envelopes[n] for n in confirmed}


async def test_what_arrives_as_reading_stops_is_answered_and_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        await r.client("CA-RC")
        (session,) = (s for s in r.hq.connections if s.client == "FL-LAB")
        fill = session_module.fill

        async def stopping(stream: Any, framing: Any) -> int:
            size = await fill(stream, framing)
            if size > 400:  # an envelope, no heartbeat
                session.stop_reading()  # after the bytes came in, and before they were parsed
            return size

        charge = r.hq.budgets.charge

        async def charging(spender: Any, event: Any) -> Any:
            await trio.lowlevel.checkpoint()  # where a cancellation would be delivered
            return await charge(spender, event)

        monkeypatch.setattr(session_module, "fill", stopping)
        monkeypatch.setattr(r.hq.budgets, "charge", charging)
        seal = r.people["FL-LAB"].seal
        for _ in range(2):  # the first is read by the call that waits already
            answer = await lab.publish(seal(r.people["CA-RC"]).raw)
            assert isinstance(answer, frames.Confirm)
        with trio.move_on_after(0.3) as scope:
            await lab.publish(seal(r.people["CA-RC"]).raw)
        assert scope.cancelled_caught
        assert r.hq.engine.broker.state.queues["box.CA-RC"].depth == 2


async def test_who_is_back_before_hq_notices_gets_what_the_dead_connection_has_first(
    tmp_path: Path,
) -> None:
    async def seqs(raw: Raw, count: int) -> list[int]:
        got: list[int] = []
        while len(got) < count:
            got += [entry[0] for entry in (await raw.next()).entries]
        return got

    async with running(tmp_path / "hq") as r:
        lab, dead = await r.client("FL-LAB"), await r.client("CA-RC")
        await consumed(dead, "box.CA-RC")
        seal, center = r.people["FL-LAB"].seal, r.people["CA-RC"]
        await lab.publish(seal(center).raw)
        assert await seqs(dead, 1) == [1]
        back = await r.client("CA-RC")
        await consumed(back, "box.CA-RC")
        await lab.publish(seal(center).raw)
        assert await seqs(back, 2) == [1, 2]
        await dead.send(frames.Ping(1))
        assert isinstance(await dead.next(), frames.Pong)  # nothing came before it
        await back.stream.aclose()  # it was alive: it is served again
        assert await seqs(dead, 2) == [1, 2]


async def test_those_without_a_certificate_cannot_take_every_place(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, connections=8)) as r:
        nobodies = [await r.dial() for _ in range(2)]
        third = await r.dial(hello=False)
        await third.stream.send_all(third.wire.send(hello()))
        assert codec_name(await third.next()) == "too-many-connections"
        lab = await r.client("FL-LAB")
        assert isinstance(await lab.ask(frames.List, "queues", "", ""), frames.Listing)
        assert isinstance(await nobodies[0].ask(frames.GetRoot), frames.Root)


async def test_a_client_that_asks_and_does_not_read_is_held_back_then_cut(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, heartbeat_s=1)) as r:
        greedy = await r.client("FL-LAB")
        most = 0

        async def ask() -> None:
            number = 0
            try:
                while True:
                    asked = [
                        frames.Status(number + i, "X" * 200, bytes(16)) for i in range(1, 2000)
                    ]
                    number += 2000
                    await greedy.stream.send_all(b"".join(map(codec.encode, asked)))
            except trio.BrokenResourceError:
                pass

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            with trio.fail_after(3 * PATIENCE_S):
                while found := [s for s in r.hq.connections if s.client == "FL-LAB"]:
                    most = max(most, found[0]._out.size)
                    await trio.sleep(0.02)
            nursery.cancel_scope.cancel()
        assert 0 < most < 2 * 4 * 1024 * 1024
        assert isinstance(
            await (await r.client("CA-RC")).ask(frames.List, "queues", "", ""), frames.Listing
        )


async def test_requests_in_flight_have_a_bound_and_all_are_answered(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, requests_in_flight=4)) as r:
        lab, rc = await r.client("FL-LAB"), await r.client("CA-RC")
        with held(r) as reached:
            sealed = r.people["CA-RC"].seal(r.people["FL-LAB"])
            await rc.stream.send_all(b"".join(codec.encode_sends([(1, 0, 0, sealed.raw)])))
            with trio.fail_after(PATIENCE_S):
                await reached.wait()
            await lab.stream.send_all(
                b"".join(codec.encode(frames.List(i, "queues", "", "")) for i in range(1, 101))
            )
            (session,) = [s for s in r.hq.connections if s.client == "FL-LAB"]
            for _ in range(500):
                if session._in_flight.requests >= 5:
                    break
                await trio.sleep(0.02)
            await trio.sleep(0.1)
            assert session._in_flight.requests == 5  # one too many stops the reader
        assert [(await lab.next()).correlation for _ in range(100)] == list(range(1, 101))


async def test_what_a_fetch_has_no_room_for_comes_with_the_next(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        rc, _ = await opened(r, "CA-RC", frame_bytes=150_000)
        sent = [r.people["FL-LAB"].seal(r.people["CA-RC"], text=c * 100_000).raw for c in "abc"]
        for raw in sent:
            await lab.publish(raw)
        for seq, raw in enumerate(sent, 1):
            answer = await rc.ask(frames.Fetch, "box.CA-RC", 10, BIG)
            assert [(e.seq, e.envelope) for e in answer.entries] == [(seq, raw)]
            assert (await rc.ask(frames.Ack, "box.CA-RC", [frames.Range(seq, 1)])).count == 1
        big = r.people["FL-LAB"].seal(r.people["CA-RC"], text="d" * 200_000)
        await lab.publish(big.raw)
        await rc.ask(frames.Consume, 1, "box.CA-RC", 10, BIG)
        assert codec_name(await rc.next()) == "frame-too-large"


async def test_a_silent_websocket_is_a_peers_fault_and_not_hqs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "cipherbox")
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, client_hello_s=0.5)) as r:
        lab = await r.person("FL-LAB")
        port = int(r.websocket.rstrip("/").rpartition(":")[2])
        silent = await r.open(client_context(r.root, lab.chain, lab.key), f"127.0.0.1:{port}")
        with trio.fail_after(PATIENCE_S):
            assert await silent.stream.receive_some() == b""
    assert "the WebSocket handshake took too long" in [
        x.__dict__.get("reason") for x in caplog.records
    ]
    assert "Internal error" not in caplog.text


async def test_a_refused_handshake_is_logged_as_an_error_with_its_reason(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path / "hq") as r:
        host, port = r.address.rsplit(":", 1)
        stream = await trio.open_tcp_stream(host, int(port))
        await stream.send_all(b"GET / HTTP/1.1\r\n\r\n")
        with trio.fail_after(PATIENCE_S):
            while await stream.receive_some():
                pass
        await stream.aclose()
    (record,) = [x for x in caplog.records if x.getMessage() == "TLS handshake failed"]
    assert record.levelno == logging.ERROR
    assert "plain HTTP" in record.__dict__["reason"]
