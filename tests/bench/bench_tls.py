"""The TLS stream: frames from one end to the other, both ends in this process, as CPU time for both
together.

`python -m tests.bench.bench_tls`
"""

from __future__ import annotations

import time

import trio

from cipherbox.net.connecting import fill
from cipherbox.wire import codec
from tests.transport.test_transport import tls_pair
from tests.wire.test_frames import opened

SECONDS = 2.0


async def measure(size: int) -> tuple[float, float]:
    """(CPU microseconds a frame, frames a second of wall time) for SENDs of ``size`` bytes."""
    a, b = await tls_pair()
    wire = opened("server")
    joined = max(1, 256 * 1024 // size)
    data = b"".join(codec.encode_sends([(i + 1, 0, 0, bytes(size)) for i in range(joined)]))
    seen = 0
    cpu, wall = time.process_time(), time.perf_counter()

    async def send() -> None:
        while time.perf_counter() - wall < SECONDS:
            await a.send_all(data)
        await a.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(send)
        while await fill(b, wire):
            for event in wire.events():
                seen += len(event.items)
    return (time.process_time() - cpu) / seen * 1e6, seen / (time.perf_counter() - wall)


def main() -> None:
    for size in (1435, 64 * 1024, 1024 * 1024):
        cpu, rate = trio.run(measure, size)
        print(
            f"SEND of {size:>7} bytes: {cpu:8.1f} us of CPU, {rate:9,.0f}/s, "
            f"{rate * size / 1e6:7,.0f} MB/s"
        )


if __name__ == "__main__":
    main()
