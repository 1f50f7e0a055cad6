"""HQ without a network: what the steps of one envelope cost, in CPU time, by the size of a batch.

`python -m tests.bench.bench_hq [directory]`; the directory says which disk is measured.  Envelopes
are sealed beforehand, published in SEND frames, committed durably with the acknowledgements of the
batch before, confirmed, and delivered.  What is missing are TLS and trio's tasks.
"""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import nacl.signing

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import AnyCommand, Effects, Facts
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import TEXT, pack_contents
from cipherbox.sealing.seal import seal
from cipherbox.server.requests import answers
from cipherbox.server.requests.dispatch import incoming
from cipherbox.server.transparency_log import TransparencyLog
from cipherbox.store.sqlite.store import SqliteStore, open_store
from cipherbox.wire import codec
from tests.parties import now_ms, party
from tests.wire.test_frames import opened

ENVELOPES = 7200
CONSUMER = m.Consume(2, "B", 1, 1, "box.B", LIMITS.credit_envelopes, LIMITS.credit_bytes)


class Steps:
    """The CPU time of each step; `end` ends one and begins the next."""

    def __init__(self) -> None:
        self.spent: Counter[str] = Counter()
        self._at = time.thread_time_ns()

    def begin(self) -> None:
        self._at = time.thread_time_ns()

    def end(self, step: str) -> None:
        now = time.thread_time_ns()
        self.spent[step] += now - self._at
        self._at = time.thread_time_ns()


def sealed(count: int, now: int) -> list[bytes]:
    """Return envelopes of a text of 100 bytes from A to B."""
    sender, recipient = party("A"), party("B")
    ids, plain = EnvelopeIds(lambda: now), pack_contents([bytes(100)], TEXT)
    return [
        bytes(
            seal(
                sender.identity,
                [recipient.bundle],
                plain,
                1,
                envelope_id=ids.next(),
                sealed_at=now,
            ).raw
        )
        for _ in range(count)
    ]


def measure(store: SqliteStore, envelopes: list[bytes], batch: int, now: int) -> Steps:
    """Pass all envelopes through HQ in batches of this size."""
    broker = Broker(store.load(LIMITS.head_entries))
    log = TransparencyLog(nacl.signing.SigningKey.generate())
    wire, steps = opened("server"), Steps()
    broker.connect(1, "A")
    broker.connect(2, "B")

    def commit(effects: Effects) -> dict[int, list[bytes]]:
        effects.changes.log, proofs = log.entry(effects, now)
        steps.end("log")
        store.commit(effects.changes, store.epoch)
        log.committed()
        steps.end("commit")
        return proofs.confirms

    add: list[AnyCommand] = [m.AddClient(0, "", n, name, "client") for n, name in enumerate("AB")]
    commit(broker.handle([*add, CONSUMER], Facts(), now))
    sends = [(number, 0, 0, raw) for number, raw in enumerate(envelopes, 1)]
    arriving = [
        b"".join(codec.encode_sends(sends[at : at + batch])) for at in range(0, len(sends), batch)
    ]
    gc.collect()
    gc.freeze()
    steps.spent.clear()
    delivered: list[m.Entry] = []
    for data in arriving:
        steps.begin()
        wire.receive_data(data)
        (event,) = wire.events()
        steps.end("frames")
        items = [incoming(item, "A", LIMITS.envelope_bytes) for item in event.items]
        steps.end("prefix, hashes")
        commands: list[AnyCommand] = [m.Publish(1, "A", items)]
        if delivered:
            size = sum(entry.size for entry in delivered)
            commands.append(m.Ack(2, "B", 1, "box.B", [(delivered[0].seq, len(delivered))]))
            commands.append(m.Credit(2, 1, len(delivered), size))
        broker.required_facts(commands)
        effects = broker.handle(commands, Facts(), now)
        steps.end("core")
        proofs = commit(effects)
        answers.encode(effects.answers[1], (1, proofs[1]))
        steps.end("confirms")
        delivered = [entry for run in effects.deliveries for entry in run.entries]
        bodies = {number: one.body for number, _, _, one in effects.changes.envelopes}
        codec.encode_deliver(1, [(e.seq, 1, now, 1, bodies[e.number]) for e in delivered])  # type: ignore[misc]
        steps.end("deliveries")
    assert broker.state.queues["box.B"].depth == len(delivered) == batch
    return steps


def main(count: int = ENVELOPES) -> None:
    now = now_ms()
    envelopes = sealed(count, now)
    for batch in (1, 10, 100, 900):
        # fewer of the small ones, whose commits take a sync each
        some = envelopes[: min(count, 400 * batch) // batch * batch]
        if not some:
            continue
        with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as place:
            store = open_store(Path(place), create=True)
            spent = measure(store, some, batch, now).spent
            store.close()
        each = {step: ns / len(some) / 1000 for step, ns in spent.items()}
        text = ", ".join(f"{step} {us:.1f}" for step, us in each.items())
        print(f"batches of {batch}: {sum(each.values()):.1f} us each ({text})")


if __name__ == "__main__":
    main()
