"""The core alone: what publish, hand out and ack of a one-queue envelope cost together, without a
store.

`python -m tests.bench.bench_core`
"""

from __future__ import annotations

import gc
import time

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import ExchangeType, Facts, Incoming, Snapshot
from cipherbox.limits import LIMITS

ENVELOPES, SIZE, ROUNDS = 20_000, 1435, 5
NOW = 1_800_000_000_000
ADD = [m.AddClient(0, "", i, name, "client") for i, name in enumerate("AB")]


def incoming(number: int, exchange: str, key: str) -> Incoming:
    envelope_id = (NOW << 80 | 7 << 76 | 2 << 62 | number << 16).to_bytes(16, "big")
    return Incoming(
        number,
        False,
        0,
        "A",
        envelope_id,
        0,
        1,
        number.to_bytes(32, "big"),
        bytes(32),
        exchange,
        key,
        ("B",),
        NOW,
        0,
        SIZE,
        b"",
    )


def measure(batch: int, exchange: str, key: str, *, waiting: int = 0) -> float:
    """Microseconds for one envelope; ``waiting``: acks lag behind by so many."""
    broker = Broker(Snapshot(), LIMITS)
    broker.connect(1, "A")
    broker.connect(2, "B")
    broker.handle(
        [
            *ADD,
            m.DeclareExchange(0, "", 3, "e", ExchangeType.TOPIC),
            m.Bind(0, "", 4, "e", "box.B", "a.*"),
            m.Grant(0, "", 5, "*", "publish", "e", True),
            m.Consume(2, "B", 1, 1, "box.B", 4096, 1 << 30),
        ],
        Facts(),
        NOW,
    )
    numbers = range(1, ENVELOPES + 1)
    batches = [
        [incoming(n, exchange, key) for n in numbers[at : at + batch]]
        for at in range(0, ENVELOPES, batch)
    ]
    held: list[int] = []
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    for items in batches:
        commands: list[m.AnyCommand] = [m.Publish(1, "A", items)]
        if len(held) > waiting:
            done = held[: len(held) - waiting]
            held = held[len(held) - waiting :]
            commands.append(m.Ack(2, "B", 1, "box.B", [(done[0], len(done))]))
            commands.append(m.Credit(2, 1, len(done), len(done) * SIZE))
        broker.required_facts(commands)
        effects = broker.handle(commands, Facts(), NOW)
        for handed in effects.deliveries:
            held += [entry[0] for entry in handed.entries]
    spent = time.perf_counter() - start
    assert broker.state.queues["box.B"].depth == len(held)
    return spent / ENVELOPES * 1e6


def main(rounds: int = ROUNDS) -> None:
    for title, exchange, key in (("to a mailbox", "", ""), ("by a topic", "e", "a.b")):
        for batch, waiting in ((1, 0), (10, 0), (200, 0), (200, 2000), (2000, 0)):
            best = min(measure(batch, exchange, key, waiting=waiting) for _ in range(rounds))
            print(
                f"{title}, batches of {batch}, {waiting} held: {best:.2f} us for publish, hand "
                "out and ack"
            )


if __name__ == "__main__":
    main()
