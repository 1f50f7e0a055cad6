"""The metrics port of a real HQ, and what it says when HQ is not well."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse

from cipherbox.config.settings import MetricsSettings
from cipherbox.errors import ConfigError, StoreLeased, StoreUnavailable
from cipherbox.ops.metrics import COUNTER, HISTOGRAM, METRICS
from cipherbox.server import app
from cipherbox.server.app import serve
from cipherbox.server.operations.monitor import STUCK_S, Monitor
from cipherbox.store.port import Standby
from cipherbox.wire import frames
from tests.server.hq import BIG, Running, prepare, running


@asynccontextmanager
async def port(monitor: Monitor) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(monitor.serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def ask(number: int, raw: bytes) -> bytes:
    with trio.fail_after(60):
        stream = await trio.open_tcp_stream("127.0.0.1", number)
        async with stream:
            found = b""
            with suppress(
                trio.BrokenResourceError
            ):  # of a request that is too long, it reads a part
                await stream.send_all(raw)
                while data := await stream.receive_some():
                    found += data
            return found


async def get(number: int, path: str, *headers: str, method: str = "GET") -> tuple[int, str]:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]
    head, _, body = (await ask(number, "\r\n".join(lines).encode())).partition(b"\r\n\r\n")
    return int(head.split()[1]), body.decode()


async def traffic(r: Running) -> None:
    """Three envelopes: one acknowledged, one delivered twice, one waiting."""
    lab, center = await r.client("FL-LAB"), await r.client("CA-RC")
    for _ in range(3):
        await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
    first = await center.ask(frames.Fetch, "box.CA-RC", 2, BIG)
    assert len(first.entries) == 2
    await center.ask(frames.Ack, "box.CA-RC", [frames.Range(1, 1)])
    await center.ask(frames.Resend, "box.CA-RC", "", bytes(16))
    await center.ask(frames.Fetch, "box.CA-RC", 1, BIG)


TRAFFIC = {  # what `traffic` leaves behind
    ("published_messages_total", ""): 3,
    ("published_envelopes_total", ""): 3,
    ("delivered_envelopes_total", ""): 3,
    ("redelivered_envelopes_total", ""): 1,
    ("acked_envelopes_total", ""): 1,
    ("dead_lettered_envelopes_total", ""): 0,
    ("queue_depth_envelopes", "box.CA-RC"): 2,
    ("waiting_envelopes", ""): 1,
    ("unacknowledged_envelopes", ""): 1,
    ("connected_clients", ""): 2,
    ("connections", "client"): 2,
    ("request_duration_seconds_count", "publish"): 3,
    ("request_duration_seconds_count", "ack"): 1,
    ("frames_received_total", ""): 7,
    ("ready", ""): 1,
}


def values(text: str) -> dict[tuple[str, str], float]:
    return {
        (s.name, ",".join(v for k, v in sorted(s.labels.items()))): s.value
        for f in parse(text)
        for s in f.samples
    }


async def test_every_metric_of_the_table_is_served_with_kind_and_help(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "hq") as r:
        await traffic(r)
        waits = Standby("hq2/4711", "10.0.0.2")
        monkeypatch.setattr(r.hq.store, "standbys", lambda: [waits])
        r.hq.standbys.look([waits])
        monitor = Monitor()
        monitor.hq = r.hq
        async with port(monitor) as number:
            status, text = await get(number, "/metrics")
            _, opened = await get(
                number, "/metrics", "Accept: application/openmetrics-text; version=1.0.0"
            )
    assert status == 200
    families = {f.name + ("_total" if f.type == COUNTER else ""): f for f in parse(text)}
    assert set(families) == set(METRICS)
    for name, metric in METRICS.items():
        assert (families[name].type, families[name].documentation) == (metric.kind, metric.help)
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == set(metric.labels)
    assert {f.name for f in parse_open(opened)} == {f.name for f in parse(text)}
    found = values(text)
    assert {(name, label): found[f"cipherbox_{name}", label] for name, label in TRAFFIC} == TRAFFIC
    assert found["cipherbox_standbys", ""] == 1
    assert found["cipherbox_standby_waiting_seconds", "10.0.0.2,hq2/4711"] >= 0
    assert found["cipherbox_commit_duration_seconds_count", ""] >= 3
    commit, sync = (found[f"cipherbox_{n}_duration_seconds_sum", ""] for n in ("commit", "sync"))
    assert 0 < sync < commit
    assert 390 < found["cipherbox_certificate_remaining_days", "server"] < 400


async def test_what_goes_wrong_and_what_an_admin_does_is_counted(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, center = await r.client("FL-LAB"), await r.client("CA-RC")
        admin = await r.dial(await r.person("BOSS", role="admin"))
        sent = [r.people["FL-LAB"].seal(r.people["CA-RC"]).raw for _ in range(2)]
        for seq, drop in ((1, True), (2, False)):
            await lab.publish(sent[seq - 1])
            await center.ask(frames.Fetch, "box.CA-RC", 1, BIG)
            await center.ask(frames.Nack, "box.CA-RC", seq, False, 4, "not readable")
            await admin.ask(frames.SettleDead, "box.CA-RC", [frames.Range(seq, 1)], drop)
        opened = r.hq.engine.counts.connections_opened
        host, _, number = r.address.rpartition(":")
        async with await trio.open_tcp_stream(host, int(number)) as stranger:
            await stranger.send_all(b"GET / HTTP/1.1\r\n\r\n")
            with trio.fail_after(60):
                while not r.hq.engine.counts.handshakes_failed:
                    await trio.sleep(0.01)
        monitor = Monitor()
        monitor.hq = r.hq
        async with port(monitor) as at:
            found = values((await get(at, "/metrics"))[1])
    assert opened == found["cipherbox_connections_opened_total", ""] == 3
    assert found["cipherbox_handshakes_failed_total", ""] == 1
    assert found["cipherbox_dead_lettered_envelopes_total", ""] == 2
    assert found["cipherbox_settled_dead_letters_total", "dropped"] == 1
    assert found["cipherbox_settled_dead_letters_total", "redriven"] == 1
    assert (
        found["cipherbox_frames_sent_total", ""] >= found["cipherbox_frames_received_total", ""] > 0
    )
    assert found["cipherbox_published_bytes_total", ""] == 2 * len(sent[0])
    assert (
        found["cipherbox_received_bytes_total", ""] > found["cipherbox_published_bytes_total", ""]
    )
    assert found["cipherbox_sent_bytes_total", ""] > found["cipherbox_published_bytes_total", ""]
    assert found["cipherbox_queued_bytes", ""] * 2 == found["cipherbox_published_bytes_total", ""]
    assert found["cipherbox_disk_free_bytes", ""] > 0
    assert found["cipherbox_store_failures_total", ""] == 0


def test_names_are_those_of_the_field() -> None:
    units = ("_seconds", "_bytes", "_days", "_envelopes", "_messages", "_total", "_info")
    plain = {
        "cipherbox_ready",
        "cipherbox_clock_doubted",
        "cipherbox_draining",
        "cipherbox_store_up",
        "cipherbox_memory_short",
    }
    things = ("_clients", "_connections", "_queues", "_consumers", "_commands", "_fds", "_standbys")
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(cipherbox|process)_[a-z_]+", name)
        assert (metric.kind == COUNTER) == name.endswith("_total")
        assert name in plain or name.endswith((*units, *things)), name
        assert metric.help.endswith((".", ")."))
        assert metric.kind != HISTOGRAM or name.endswith("_seconds")


async def test_only_the_deepest_queues_have_figures_of_their_own(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        r.hq.live.now = attrs.evolve(r.hq.config, metrics=MetricsSettings(queues=2))
        lab = await r.client("FL-LAB")
        for count, name in ((1, "A"), (3, "B"), (2, "C")):
            person = await r.person(name)
            for _ in range(count):
                await lab.publish(r.people["FL-LAB"].seal(person).raw)
        monitor = Monitor()
        monitor.hq = r.hq
        rows = [s for s in monitor.samples() if s.name == "cipherbox_queue_depth_envelopes"]
        assert [(s.labels, s.value) for s in rows] == [(("box.B",), 3), (("box.C",), 2)]


async def test_what_is_no_request_harms_nobody(tmp_path: Path) -> None:
    async with port(Monitor()) as number:
        assert (await get(number, "/"))[0] == 404
        assert (await get(number, "/metrics", method="POST"))[0] == 405
        assert await get(number, "/healthz", method="HEAD") == (200, "")
        assert b" 400 " in await ask(number, b"nonsense\r\n\r\n")
        assert await ask(number, b"GET /" + b"x" * 20_000) == b""
        silent = [await trio.open_tcp_stream("127.0.0.1", number) for _ in range(10)]
        assert (await get(number, "/healthz?x=1"))[0] == 200
        for stream in silent:
            await stream.aclose()


async def test_ready_means_ready(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        monitor = Monitor()
        async with port(monitor) as number:
            assert (await get(number, "/readyz"))[0] == 503
            assert (await get(number, "/healthz"))[0] == 200
            assert "cipherbox_ready 0.0" in (await get(number, "/metrics"))[1]
            monitor.hq = r.hq
            assert await get(number, "/readyz") == (200, "ready\n")
            r.hq.engine.outage = "the disk is gone"
            status, text = await get(number, "/readyz")
            assert (status, "the disk is gone" in text) == (503, True)
            assert (await get(number, "/healthz"))[0] == 200  # starting again would not help
            r.hq.engine.outage = ""
            r.hq.drain.begin(100, "admin")
            status, text = await get(number, "/readyz")
            assert (status, "draining" in text) == (503, True)
            r.hq.drain.undo("admin")
            assert (await get(number, "/readyz"))[0] == 200
            r.hq.engine.turned_at -= STUCK_S + 10
            status, text = await get(number, "/healthz")
            assert (status, "stuck" in text) == (503, True)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (StoreLeased("hq-2"), "hq-2"),
        (StoreUnavailable("no database answers"), "no database answers"),
    ],
)
async def test_the_port_is_open_while_hq_waits_for_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str
) -> None:
    config = prepare(tmp_path / "hq")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    number = listener.socket.getsockname()[1]
    await listener.aclose()
    config = attrs.evolve(
        config,
        metrics=MetricsSettings(listen=f"127.0.0.1:{number}"),
        database=attrs.evolve(config.database, kind="postgresql"),
    )
    away = [True]
    from cipherbox.server.operations.open_store import open_store

    def opened(_: Any, **more: Any) -> Any:
        if away[0]:
            raise error
        return open_store(
            attrs.evolve(config, database=attrs.evolve(config.database, kind="sqlite")), **more
        )

    monkeypatch.setattr(app, "open_store", opened)
    monkeypatch.setattr(app, "STANDBY_S", 0.05)
    told = trio.Event()
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[app.Served]) -> None:
            await serve(config, waiting=lambda _: told.set(), task_status=task_status)

        async def look() -> None:
            with trio.fail_after(60):
                await told.wait()
            status, text = await get(number, "/readyz")
            assert (status, says in text) == (503, True)
            assert (await get(number, "/healthz"))[0] == 200
            away[0] = False

        nursery.start_soon(look)
        await nursery.start(run)
        assert (await get(number, "/readyz"))[0] == 200
        nursery.cancel_scope.cancel()


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        taken = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"cannot listen on {taken}: Address already in use"):
            await serve(attrs.evolve(config, metrics=MetricsSettings(listen=taken)))
