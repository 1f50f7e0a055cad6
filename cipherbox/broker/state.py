"""The broker's state between batches, and the changes of the current batch.

The other modules of this package implement the commands: each takes this state and changes it.
`Broker` composes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cipherbox.broker.exchanges import Exchange
from cipherbox.broker.model import Effects, ExchangeType, Incoming, KnownEnvelope, Snapshot
from cipherbox.broker.queues import Consumer, Queue
from cipherbox.broker.rights import Rights
from cipherbox.broker.usage import NONE, Totals
from cipherbox.errors import Revoked
from cipherbox.limits import LIMITS, Limits

# queues, their names, unrouted recipients
Targets = tuple[tuple[Queue, ...], tuple[str, ...], tuple[str, ...]]


class AcceptedRun(NamedTuple):
    """Envelopes accepted for the same queues, one after the other."""

    numbered: Sequence[tuple[int, Incoming]]
    names: tuple[str, ...]  # the queues
    seqs: tuple[int, ...]  # of the first envelope in each


class BrokerState:
    """The broker's state; ``snapshot`` is what the store loaded."""

    def __init__(self, snapshot: Snapshot, limits: Limits = LIMITS) -> None:
        self.limits = limits
        self.next_number = snapshot.next_number
        self.first_seq = snapshot.first_seq
        self.bindings_version = snapshot.bindings_version
        self.watermark = snapshot.watermark
        self.rights = Rights(snapshot.clients, snapshot.grants, snapshot.contacts)
        self.exchanges = {
            name: Exchange(name, ExchangeType(kind)) for name, kind in snapshot.exchanges
        }
        counters = {c.queue: c for c in snapshot.counters}
        self.totals = Totals(limits, snapshot.client_limits)
        self.queues = {
            q.name: Queue(q.name, q.owner, q.readers, self.totals, counters[q.name])
            for q in snapshot.queues
        }
        for row in snapshot.queues:
            self.queues[row.name].ttl_ms, self.queues[row.name].max_length = (
                row.ttl_s * 1000,
                row.max_length,
            )
        for exchange, name, key in snapshot.bindings:
            self.exchanges[exchange].bind(name, key)
            self.queues[name].bindings.add((exchange, key))
        for name, head in snapshot.heads.items():
            self.queues[name].load(head, len(head) < limits.head_entries)
        for (sender, name), (size, envelopes) in snapshot.usage.items():
            if name in self.queues:
                self.queues[name].add_used(sender, size, envelopes)
                self.queues[name].end_batch()
        self.highest = dict(snapshot.highest)
        self.reads: dict[str, set[str]] = {}  # client -> the queues it reads
        for queue in self.queues.values():
            for client in queue.all_readers:
                self.reads.setdefault(client, set()).add(queue.name)
        self.consumers: dict[tuple[int, int], Consumer] = {}
        self.tags: dict[int, set[int]] = {}  # connection -> tags of its consumers
        self.fetchers: dict[int, set[str]] = {}  # connection -> queues it fetched from
        self.client_of: dict[int, str] = {}
        self.connections_of: Counter[str] = Counter()
        # cached routes of recent envelopes
        self.targets: dict[tuple[str, str, str, tuple[str, ...]], Targets] = {}
        self.begin(0)

    def begin(self, now: int) -> None:
        """Begin a batch with no effects."""
        self.now = now
        self.earliest = self.watermark.to_bytes(6, "big")  # lower ids are too old
        # ids from here on are too new
        self.latest = (now + self.limits.clock_ahead_ms + 1).to_bytes(6, "big")
        self.effects = Effects()
        # accepted in this batch; `runs` that are not in `fresh` yet
        self.fresh: dict[tuple[str, bytes], KnownEnvelope] = {}
        self.runs: list[AcceptedRun] = []
        self.gone: set[tuple[str, int]] = set()  # removed from the tail in this batch
        self.resized: dict[tuple[str, int], int] = {}  # replaced in the tail in this batch
        self.touched: set[Queue] = set()  # their counters changed
        self.dispatchable: set[Queue] = set()  # may have something to deliver

    def known_now(self, sender: str, envelope_id: bytes) -> KnownEnvelope | None:
        """Return what is known of an envelope that this batch accepted.

        Only an id that is not its sender's newest can be known: most batches never ask.
        """
        for numbered, names, seqs in self.runs:
            for place, (number, i) in enumerate(numbered):
                waiting = tuple((name, seq + place) for name, seq in zip(names, seqs, strict=True))
                self.fresh[(i.sender, i.envelope_id)] = KnownEnvelope(
                    number,
                    i.generation,
                    i.envelope_hash,
                    self.now,
                    names,
                    waiting,
                    i.size,
                    commitment=i.commitment,
                )
        self.runs.clear()
        return self.fresh.get((sender, envelope_id))

    def connect(self, connection: int, client: str) -> None:
        """Add a connection of this client."""
        self.client_of[connection] = client
        self.connections_of[client] += 1

    def refusal_of(self, connection: int, client: str) -> Revoked | None:
        """Return the error for all requests of a revoked client; None for other clients."""
        if connection and self.rights.revoked(client):
            return Revoked(f"the certificate of {client} was revoked")
        return None

    def rights_changed(self) -> None:
        """Drop cached routes after a change of rights."""
        self.targets.clear()

    def bindings_changed(self) -> None:
        """Drop cached routes and begin a new version of the bindings."""
        self.targets.clear()
        self.bindings_version += 1
        self.effects.changes.bindings_version = self.bindings_version

    def remove_queue(self, queue: Queue) -> None:
        """Record this batch's changes of a deleted queue, and never reuse its sequence numbers."""
        self.first_seq = max(self.first_seq, queue.next)
        self.record(queue)
        for sender, used in queue.used.items():
            self.totals.add(sender, -used.size, -used.envelopes)
        self.touched.discard(queue)
        self.dispatchable.discard(queue)

    def record(self, queue: Queue) -> None:
        """Add this batch's changes of a queue to the effects."""
        changes = self.effects.changes
        if queue.fresh:
            changes.entries += queue.new_entries(self.now)
        for sender in sorted(queue.senders):
            changes.usage[(sender, queue.name)] = queue.used.get(sender, NONE)
        changes.counters.append(queue.counters())
        queue.end_batch()
