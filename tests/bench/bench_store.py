"""The store alone: batches of envelopes committed together with the acks of the batch before,
durably.

`python -m tests.bench.bench_store [directory]`; the directory says which disk is measured.  CPU is
this process's, wall time holds the waits for the disk as well.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cipherbox.broker.model import (
    Changes,
    Counters,
    Incoming,
    NewEntry,
    NewEnvelope,
    QueueRow,
    SeqRun,
)
from cipherbox.limits import LIMITS
from cipherbox.store.sqlite.store import SqliteStore, open_store

AT, QUEUE = 1_800_000_000_000, "box.B"
BATCH = 200


def changes(count: int, batch: int, body: bytes) -> Iterator[Changes]:
    """Batches of new envelopes with the acks of the batch before, as the core makes them for one
    busy queue.
    """
    digest = hashlib.sha256(body).digest()
    for first in range(1, count + 1, batch):
        made = Changes()
        for n in range(first, first + batch):
            envelope_id = ((AT + n) << 80 | 7 << 76 | 2 << 62 | n << 16).to_bytes(16, "big")
            item = Incoming(
                n,
                False,
                0,
                "FL-LAB",
                envelope_id,
                0,
                1,
                digest,
                digest,
                "",
                "",
                ("B",),
                AT,
                0,
                len(body),
                body,
                digest,
            )
            made.envelopes.append(NewEnvelope(n, AT, 1, item))
            made.entries.append(NewEntry(QUEUE, n, n, AT, "B"))
        if first > 1:
            made.acked.append(SeqRun(QUEUE, first - batch, first - 1, AT, "B"))
            made.finished.extend(range(first - batch, first))
        made.counters.append(Counters(QUEUE, batch, batch * len(body), first, first + batch))
        made.highest["FL-LAB"] = envelope_id
        made.usage["FL-LAB", QUEUE] = (batch * len(body), batch)
        yield made


def run(store: SqliteStore, count: int, batch: int, size: int) -> tuple[float, float]:
    """Seconds of wall time and of CPU."""
    store.commit(Changes(queues=[QueueRow(QUEUE, "B", ())]), store.epoch)
    wall = cpu = 0.0
    for made in changes(count, batch, os.urandom(size)):
        started, used = time.perf_counter(), time.process_time()
        store.commit(made, store.epoch)
        wall += time.perf_counter() - started
        cpu += time.process_time() - used
    return wall, cpu


WORKS = ((40_000, BATCH, 1435), (40_000, BATCH, 300), (400, 20, 1 << 20))


def main(works: Sequence[tuple[int, int, int]] = WORKS) -> None:
    where = sys.argv[1] if len(sys.argv) > 1 else None
    for count, batch, size in works:
        with tempfile.TemporaryDirectory(dir=where) as directory:
            store = open_store(Path(directory), create=True)
            wall, cpu = run(store, count, batch, size)
            each = 1e6 / count
            print(
                f"{count} envelopes of {size} bytes in batches of {batch}: {count / wall:,.0f} "
                f"envelopes/s ({count * size / wall / 1e6:,.0f} MB/s), {wall * each:.1f} us "
                f"each, of them CPU {cpu * each:.1f} us"
            )
            if size < LIMITS.spool_from_bytes:
                started = time.perf_counter()
                store.load(LIMITS.head_entries)
                loaded = time.perf_counter() - started
                started = time.perf_counter()
                bodies = store.read_bodies(range(count - batch + 1, count + 1))
                read = (time.perf_counter() - started) / len(bodies)
                print(f"    load {loaded * 1e3:.1f} ms, read back {read * 1e6:.1f} us each")
            store.close()


if __name__ == "__main__":
    main()
