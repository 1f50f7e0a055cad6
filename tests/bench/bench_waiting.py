"""A queue with a million envelopes waiting: HQ's memory, how soon it is ready again, and a consumer
that takes some.

`python -m tests.bench.bench_waiting [envelopes]`.  The database is filled through core and store;
HQ is a process.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import trio

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import Facts, Incoming
from cipherbox.harness.stage import free_port
from cipherbox.limits import LIMITS
from cipherbox.net.connecting import connect
from cipherbox.portable import process_usage
from cipherbox.store.sqlite.store import open_store
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries, WireConnection
from tests.bench.bench_idle import make, rss, serve
from tests.store.suite import incoming

MANY, BATCH, SIZE, TAKEN = 1_000_000, 2000, 1435, 50_000
AT = 1_800_000_000_000


def fill(directory: Path, many: int) -> None:
    """Publishes from FL-LAB to CA-RC's mailbox, as HQ would."""
    store = open_store(directory)
    broker = Broker(store.load(LIMITS.head_entries))
    broker.connect(1, "FL-LAB")
    for first in range(1, many + 1, BATCH):
        items: list[Incoming] = [
            incoming(n, bytes(SIZE), ("CA-RC",))._replace(sender="FL-LAB")
            for n in range(first, first + BATCH)
        ]
        commands: list[m.AnyCommand] = [m.Publish(1, "FL-LAB", items)]
        broker.wanted(commands)
        store.commit(broker.handle(commands, Facts(), AT).changes, store.epoch)
    store.close()


async def measure(address: str, context: object, pid: int, ready: float) -> None:
    await trio.sleep(2)
    print(f"ready after {ready:.2f} s; HQ {rss(pid) / 1e6:.1f} MB")
    async with trio.open_nursery() as nursery:
        stream = await connect(address, context, nursery)  # type: ignore[arg-type]
        wire = WireConnection("client")
        await stream.send_all(wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 24, 0, "taker")))
        began, last, taken, number = time.perf_counter(), 0, 0, 1
        consuming = False
        while taken < TAKEN:
            wire.receive_data(await stream.receive_some())
            for event in wire.events():
                if isinstance(event, frames.Welcome) and not consuming:
                    consuming = True
                    await stream.send_all(
                        codec.encode(frames.Consume(number, 1, "box.CA-RC", 4096, 1 << 24))
                    )
                elif isinstance(event, Deliveries):
                    seqs = [seq for seq, _, _, _ in event.entries]
                    assert seqs == list(range(last + 1, last + 1 + len(seqs))), "out of order"
                    last = seqs[-1]
                    taken += len(seqs)
                    number += 1
                    await stream.send_all(
                        codec.encode(
                            frames.Ack(number, "box.CA-RC", [frames.Range(seqs[0], len(seqs))])
                        )
                        + codec.encode(frames.Credit(1, len(seqs), 1 << 24))
                    )
        print(
            f"{taken:,} taken in order at {taken / (time.perf_counter() - began):,.0f}/s; HQ "
            f"{rss(pid) / 1e6:.1f} MB"
        )
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()


def main() -> None:
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    with tempfile.TemporaryDirectory() as place:
        directory, address = Path(place) / "hq", f"127.0.0.1:{free_port()}"
        _, contexts = make(directory, address, ["FL-LAB", "CA-RC"])
        began = time.perf_counter()
        fill(directory, many)
        size = sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())
        print(
            f"{many:,} envelopes wait after {time.perf_counter() - began:.0f} s; "
            f"{size / 1e9:.2f} GB on disk"
        )
        process, ready = serve(directory)
        try:
            trio.run(measure, address, contexts["CA-RC"], process.pid, ready)
            usage = process_usage(process.pid)
            if usage:
                print(f"peak {usage[1] / 1e6:.1f} MB")
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()
