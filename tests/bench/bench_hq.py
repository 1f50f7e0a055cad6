"""HQ's core and store without a network: batches of envelopes published, handed out and
acknowledged, durably.

`python -m tests.bench.bench_hq [directory]`; the directory says which disk is measured.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import Facts
from cipherbox.limits import LIMITS
from cipherbox.store.sqlite.store import open_store
from tests.store.suite import incoming

ENVELOPES, BATCH, SIZE = 20_000, 200, 1435


def main() -> None:
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as directory:
        store = open_store(Path(directory), create=True)
        broker = Broker(store.load(LIMITS.head_entries))
        broker.connect(1, "A")
        broker.connect(2, "B")

        def run(commands: list[m.AnyCommand]) -> tuple[m.Effects, float, float]:
            start = time.perf_counter()
            broker.wanted(commands)
            effects = broker.handle(commands, Facts(), 1_800_000_000_001)
            middle = time.perf_counter()
            store.commit(effects.changes, store.epoch)
            return effects, middle - start, time.perf_counter() - middle

        run([m.AddClient(0, "", i, name, "client") for i, name in enumerate("AB")])
        run([m.Consume(2, "B", 1, 1, "box.B", LIMITS.credit_envelopes, 1 << 30)])
        batches = [
            [incoming(i, bytes(SIZE)) for i in range(at + 1, at + BATCH + 1)]
            for at in range(0, ENVELOPES, BATCH)
        ]
        core = commit = 0.0
        held: list[int] = []
        for items in batches:
            commands: list[m.AnyCommand] = [m.Publish(1, "A", items)]
            if held:
                commands.append(m.Ack(2, "B", 1, "box.B", [(held[0], len(held))]))
                commands.append(m.Credit(2, 1, len(held), len(held) * SIZE))
            effects, thought, wrote = run(commands)
            held = [e.seq for h in effects.deliveries for e in h.entries]
            core += thought
            commit += wrote
        each = 1e6 / ENVELOPES
        print(
            f"{ENVELOPES} envelopes of {SIZE} bytes in batches of {BATCH}: core "
            f"{core * each:.1f} us, commit {commit * each:.1f} us each; "
            f"{ENVELOPES / (core + commit):,.0f} envelopes/s"
        )
        store.close()


if __name__ == "__main__":
    main()
