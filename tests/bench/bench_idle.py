"""HQ at rest, what an idle connection costs, and how 1,000 clients come back after a restart.

`python -m tests.bench.bench_idle [clients]`.  HQ is a process of its own; the clients are TLS
connections of one process with certificates of their own, made and recorded without enrolment.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import trio

from cipherbox import pki
from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import Facts
from cipherbox.config.settings import load_server_config
from cipherbox.harness.stage import free_port
from cipherbox.net.connecting import connect
from cipherbox.net.tls import client_context
from cipherbox.portable import process_usage
from cipherbox.server.hq import HQ
from cipherbox.server.operations.setup import init_hq
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import WireConnection

MANY = 1000


def rss(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def make(directory: Path, address: str, names: list[str]) -> tuple[object, dict[str, object]]:
    """An HQ that knows the clients; root certificate, and a TLS context for each."""
    init_hq(
        directory,
        address=address,
        name="DC-HQ",
        listen=address,
        admin_home=directory.parent / "admin",
    )
    config = load_server_config(directory)
    store = open_store(config.directory)
    hq = HQ(config, store)
    assert hq.trust.authority is not None
    broker = Broker(store.load(10))
    effects = broker.handle(
        [m.AddClient(0, "", n, name, "client") for n, name in enumerate(names, 1)], Facts(), 1
    )
    store.commit(effects.changes, store.epoch)
    contexts: dict[str, object] = {}
    key = pki.new_key()
    for name in names:
        certificate = pki.issue_client(hq.trust.authority, key.public_key(), name)
        store.put_certificate(hq.trust.record(certificate))
        contexts[name] = client_context(
            hq.trust.root, [certificate, hq.trust.authority.certificate], key
        )
    store.close()
    return hq.trust.root, contexts


def serve(directory: Path) -> tuple[subprocess.Popen[bytes], float]:
    began = time.perf_counter()
    with (directory.parent / "hq.log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "cipherbox", "serve", str(directory)],
            stdout=subprocess.PIPE,
            stderr=log,
        )
    assert process.stdout is not None
    process.stdout.readline()
    return process, time.perf_counter() - began


class Idle:
    """A connection that answers heartbeats and comes back when it is cut."""

    gate: trio.Event | None = None  # nobody comes back before it is set

    def __init__(self, address: str, context: object) -> None:
        self._address, self._context = address, context
        self.up = trio.Event()
        self.back_at = 0.0

    async def run(self, nursery: trio.Nursery) -> None:
        pause = 0.1
        while True:
            if Idle.gate is not None:
                await Idle.gate.wait()
            try:
                stream = await connect(self._address, self._context, nursery)  # type: ignore[arg-type]
                wire = WireConnection("client")
                await stream.send_all(
                    wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 0, "idle"))
                )
                while True:
                    data = await stream.receive_some()
                    if not data:
                        break
                    wire.receive_data(data)
                    for event in wire.events():
                        if isinstance(event, frames.Welcome):
                            self.back_at = time.perf_counter()
                            self.up.set()
                            pause = 0.1
                        elif isinstance(event, frames.Ping):
                            await stream.send_all(codec.encode(frames.Pong(event.correlation)))
                await trio.aclose_forcefully(stream)
            except Exception:  # HQ is away: that is what is measured
                pass
            await trio.sleep(pause)
            pause = min(pause * 2, 2.0)


async def measure(
    directory: Path, address: str, contexts: dict[str, object], signals: Signals
) -> None:
    process, ready = serve(directory)
    try:
        await trio.sleep(1)
        at_rest = rss(process.pid)
        print(f"ready after {ready:.2f} s; at rest {at_rest / 1e6:.1f} MB")
        async with trio.open_nursery() as nursery:
            idle = [Idle(address, context) for context in contexts.values()]
            began = time.perf_counter()
            for one in idle:
                nursery.start_soon(one.run, nursery)
            for one in idle:
                await one.up.wait()
            print(f"{len(idle)} connections opened in {time.perf_counter() - began:.1f} s")
            await trio.sleep(2)
            each = (rss(process.pid) - at_rest) / len(idle)
            print(f"each idle connection {each / 1000:.1f} KB; HQ {rss(process.pid) / 1e6:.1f} MB")

            gate = Idle.gate = trio.Event()
            for one in idle:
                one.up = trio.Event()
            process.terminate()
            await trio.to_thread.run_sync(process.wait)
            process, ready = serve(directory)
            before = process_usage(process.pid)
            signals.begin.set()
            await trio.to_thread.run_sync(signals.up.wait, 10)
            gate.set()
            began = time.perf_counter()
            for one in idle:
                await one.up.wait()
            signals.stop.set()
            steady = await trio.to_thread.run_sync(signals.took.get)
            print(
                f"restart: ready after {ready:.2f} s; all {len(idle)} back "
                f"{time.perf_counter() - began:.1f} s later"
            )
            steady.sort()
            if steady:
                print(
                    "meanwhile a PING by one who is on: p50 "
                    f"{steady[len(steady) // 2] * 1e3:.1f} ms, p99 "
                    f"{steady[int(len(steady) * 0.99)] * 1e3:.1f} ms of {len(steady)}"
                )
            usage = process_usage(process.pid)
            if usage and before:
                each = (usage[0] - before[0]) / (len(idle) + 1) * 1000
                print(
                    f"HQ: {before[0]:.2f} s of CPU until ready, then {each:.2f} ms for each client "
                    f"that is back; peak {usage[1] / 1e6:.0f} MB"
                )
            nursery.cancel_scope.cancel()
    finally:
        process.terminate()
        process.wait()


class Signals:
    """Between this process and the one who is on."""

    def __init__(self) -> None:
        self.begin, self.up, self.stop = (multiprocessing.Event() for _ in range(3))
        self.took: multiprocessing.Queue[list[float]] = multiprocessing.Queue()


def _one_who_is_on(address: str, context: object, signals: Signals) -> None:
    signals.begin.wait()
    trio.run(_steady, address, context, signals)


async def _steady(address: str, context: object, signals: Signals) -> None:
    """A client of another process that asks HQ fifty times a second."""
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        stream = await connect(address, context, nursery)  # type: ignore[arg-type]
        wire = WireConnection("client")
        await stream.send_all(wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 0, "steady")))
        number = 0
        while not signals.stop.is_set():
            asked = time.perf_counter()
            number += 1
            if number > 1:
                await stream.send_all(codec.encode(frames.Ping(number)))
            events: list[Any] = []
            while not any(isinstance(e, frames.Pong | frames.Welcome) for e in events):
                wire.receive_data(await stream.receive_some())
                events = wire.events()
            if number == 1:
                signals.up.set()
            else:
                times.append(time.perf_counter() - asked)
            await trio.sleep(0.02)
        await trio.aclose_forcefully(stream)
    signals.took.put(times)


def main() -> None:
    names = [f"C-{n}" for n in range(int(sys.argv[1]) if len(sys.argv) > 1 else MANY)]
    with tempfile.TemporaryDirectory() as place:
        directory, address = Path(place) / "hq", f"127.0.0.1:{free_port()}"
        _, contexts = make(directory, address, names)
        signals = Signals()
        on = multiprocessing.Process(
            target=_one_who_is_on, args=(address, contexts[names[0]], signals), daemon=True
        )
        on.start()
        trio.run(measure, directory, address, contexts, signals)
        on.join(5)


if __name__ == "__main__":
    multiprocessing.set_start_method("fork")  # TLS contexts cannot be handed over otherwise
    main()
