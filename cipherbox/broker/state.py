"""What HQ holds in memory between batches, and what one batch has done so far.

The modules beside this one hold the commands; each takes the state and changes it.  `Broker` puts
them together.
"""

from __future__ import annotations

from collections import Counter

from cipherbox.broker.exchanges import Exchange
from cipherbox.broker.model import Effects, ExchangeType, Known, Snapshot
from cipherbox.broker.queues import Consumer, Queue
from cipherbox.broker.rights import Rights
from cipherbox.broker.usage import NONE, Totals
from cipherbox.errors import Revoked
from cipherbox.limits import LIMITS, Limits

# queues, their names, recipients left out
Targets = tuple[tuple[Queue, ...], tuple[str, ...], tuple[str, ...]]


class BrokerState:
    """See the module.  ``snapshot`` is what the store loaded."""

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
            q.name: Queue(q.name, q.owner, q.readers, self.totals, counters.get(q.name))
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
        # where the last envelopes went
        self.targets: dict[tuple[str, str, str, tuple[str, ...]], Targets] = {}
        self.begin(0)

    def begin(self, now: int) -> None:
        """Begin a batch: forget what the last one did."""
        self.now = now
        self.earliest = self.watermark.to_bytes(6, "big")  # ids below it are too old,
        # from it on too new
        self.latest = (now + self.limits.clock_ahead_ms + 1).to_bytes(6, "big")
        self.effects = Effects()
        self.fresh: dict[tuple[str, bytes], Known] = {}  # accepted in this batch
        self.gone: set[tuple[str, int]] = set()  # taken from the tail in this batch
        self.resized: dict[tuple[str, int], int] = {}  # replaced in the tail in this batch
        self.touched: set[Queue] = set()  # counters changed
        self.eager: set[Queue] = set()  # may have something to hand out

    def connect(self, connection: int, client: str) -> None:
        """A connection of this client begins."""
        self.client_of[connection] = client
        self.connections_of[client] += 1

    def cut_off(self, connection: int, client: str) -> Revoked | None:
        """The refusal of everything a revoked client still asks."""
        if connection and self.rights.revoked(client):
            return Revoked(f"the certificate of {client} was revoked")
        return None

    def rights_changed(self) -> None:
        """Who may publish where is different."""
        self.targets.clear()

    def bindings_changed(self) -> None:
        """Routes may lead elsewhere now."""
        self.targets.clear()
        self.bindings_version += 1
        self.effects.changes.bindings_version = self.bindings_version

    def leave(self, queue: Queue) -> None:
        """A queue is deleted: what it did in this batch is noted now, and its numbers are not
        used again.
        """
        self.first_seq = max(self.first_seq, queue.next)
        self.record(queue)
        for sender, used in queue.used.items():
            self.totals.add(sender, -used.size, -used.envelopes)
        self.touched.discard(queue)
        self.eager.discard(queue)

    def record(self, queue: Queue) -> None:
        """Put what this batch did to a queue into the changes."""
        changes = self.effects.changes
        if queue.fresh:
            changes.entries += queue.new_entries(self.now)
        for sender in sorted(queue.senders):
            changes.usage[(sender, queue.name)] = queue.used.get(sender, NONE)
        changes.counters.append(queue.counters())
        queue.end_batch()
