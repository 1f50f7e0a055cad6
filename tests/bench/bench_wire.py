"""Framing: SENDs in, as a socket gives them, and DELIVERs out: `python -m
tests.bench.bench_wire`.
"""

from __future__ import annotations

import time

from cipherbox.wire import codec
from tests.wire.test_frames import opened

SIZE, COUNT, READ = 1435, 180, 65_536


def main() -> None:
    server = opened("server")
    data = b"".join(codec.encode_sends([(i, 0, 0, bytes(SIZE)) for i in range(COUNT)]))
    start, seen = time.perf_counter(), 0
    while time.perf_counter() - start < 1:
        for at in range(0, len(data), READ):
            server.receive_data(data[at : at + READ])
            seen += sum(len(event.items) for event in server.events())
    print(f"SEND of {SIZE} bytes in: {(time.perf_counter() - start) / seen * 1e6:.2f} us each")
    entries = [(i, 1, 1, 1, bytes(SIZE)) for i in range(COUNT)]
    start, made = time.perf_counter(), 0
    while time.perf_counter() - start < 1:
        b"".join(codec.encode_deliver(1, entries))
        made += COUNT
    print(f"DELIVER of {SIZE} bytes out: {(time.perf_counter() - start) / made * 1e6:.2f} us each")


if __name__ == "__main__":
    main()
