"""The Broker: one batch of commands in, its effects out.

Rules.
1. Deterministic and pure: `handle(commands, facts, now)` depends on nothing else, and sets are
   never iterated unsorted where the order could show.
2. A bad request is answered with Failed; `handle` raises only when the core itself is wrong; then
   it is thrown away.
3. Memory runs ahead of the store only within one batch: after a failed commit this object must not
   be used again.
4. A connection must have been introduced with `connect` before its commands come.
5. `changes` say what is different at the end of the batch: what was taken away and made again in it
   is in neither list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import attrs

from cipherbox.broker import clients, consume, listing, publish, topology
from cipherbox.broker import dead_letters as dead
from cipherbox.broker import model as m
from cipherbox.broker.exchanges import Exchange
from cipherbox.broker.model import (
    Answer,
    Effects,
    ExchangeType,
    Facts,
    Failed,
    Known,
    Routed,
    Snapshot,
    Wanted,
)
from cipherbox.broker.publish import Targets
from cipherbox.broker.queues import Consumer, Queue
from cipherbox.broker.rights import Rights
from cipherbox.broker.usage import NONE, Totals
from cipherbox.errors import CipherBoxError, InvalidRequest, Replaced, Revoked
from cipherbox.limits import LIMITS, Limits

_name = attrgetter("name")


def _resolve(broker: Broker, c: m.Resolve) -> Routed:
    route = publish.resolve(broker, c.connection, c.client, c.exchange, c.routing_key)
    return Routed(c.correlation, broker.bindings_version, route)


def _retain(broker: Broker, c: m.Retain, facts: Facts) -> m.Done:
    """What the record no longer holds must never be taken for new: so the watermark rises with
    it.
    """
    changes = broker.effects.changes
    for name, sender, size in facts.retired:
        queue = broker.queues.get(name)
        if queue is not None:
            queue.add_used(sender, -size, -1)
            broker.touched.add(queue)
    changes.retention = c.cutoffs
    if c.cutoffs.metadata > broker.watermark:
        broker.watermark = changes.watermark = c.cutoffs.metadata
    broker.effects.acts.append(m.Act("", "Retain", c.cutoffs._asdict()))
    return m.Done(c.correlation, 1)


def _note(broker: Broker, c: m.Command) -> m.Done:
    """What changes nothing here, and is in the signed log all the same."""
    broker.effects.changes.noted += 1
    broker.effects.acts.append(m.Act(c.client, type(c).__name__, _detail(c)))
    return m.Done(c.correlation, 1)


def _replace_client(broker: Broker, c: m.ReplaceClient) -> m.Done:
    why = Replaced(f"another home was enrolled as {c.target}, in place of this one")
    topology.end_connections(broker, c.target, why)
    return _note(broker, c)


_HANDLERS: dict[type, Callable[[Any, Any], Answer | None]] = {
    m.Consume: consume.consume,
    m.Cancel: consume.cancel,
    m.Fetch: consume.fetch,
    m.Resend: consume.resend,
    m.Resolve: _resolve,
    m.DeclareExchange: topology.declare_exchange,
    m.DeleteExchange: topology.delete_exchange,
    m.DeclareQueue: topology.declare_queue,
    m.DeleteQueue: topology.delete_queue,
    m.Bind: topology.bind,
    m.Unbind: topology.unbind,
    m.Purge: topology.purge,
    m.Grant: topology.grant,
    m.AddClient: topology.add_client,
    m.RevokeClient: topology.revoke_client,
    m.Note: topology.note,
    m.List: listing.listing,
    m.LimitClient: clients.limit_client,
    m.TellContacts: clients.tell_contacts,
    m.EnrolHere: _note,
    m.Enrol: _note,
    m.KeysAnew: _note,
    m.ReplaceClient: _replace_client,
}

# What the signed log has a line for, when it changed something.
_ACTS = frozenset(
    [
        m.DeclareExchange,
        m.DeleteExchange,
        m.DeclareQueue,
        m.DeleteQueue,
        m.Bind,
        m.Unbind,
        m.Purge,
        m.Grant,
        m.AddClient,
        m.RevokeClient,
        m.LimitClient,
    ]
)


def _detail(c: m.Command) -> dict[str, object]:
    hidden = ("connection", "client", "correlation")
    return {name: value for name, value in attrs.asdict(c).items() if name not in hidden}


class Broker:
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
        self._begin(0)

    def _begin(self, now: int) -> None:
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
        self._note(queue)
        for sender, used in queue.used.items():
            self.totals.add(sender, -used.size, -used.envelopes)
        self.touched.discard(queue)
        self.eager.discard(queue)

    def wanted(self, commands: Sequence[m.AnyCommand]) -> Wanted:
        """What these commands need from the store; empty for most batches."""
        wanted = Wanted()
        for c in commands:
            if type(c) is m.Publish:
                for item in c.items:
                    top = self.highest.get(item[3])
                    if top is not None and item[4] <= top:
                        wanted.known.append((item[3], item[4]))
            elif type(c) is m.Ack or type(c) is m.Nack or type(c) is m.Fetch:
                queue = self.queues.get(c.queue)
                if queue is not None and queue.tail and queue.is_reader(c.client):
                    self._wanted_of(wanted, queue, c)
            elif type(c) is m.Retain:
                wanted.retired = c.cutoffs.dead_letters
            elif type(c) is m.SettleDead:
                wanted.dead += [
                    (c.queue, first, min(count, self.limits.ack_entries))
                    for first, count in c.ranges
                ]
        return wanted

    def _wanted_of(self, wanted: Wanted, queue: Queue, c: m.Ack | m.Nack | m.Fetch) -> None:
        """What a command needs of a queue's tail."""
        if isinstance(c, m.Fetch):
            page = (queue.name, queue.loaded_to)
            few = len(queue.ready) < min(c.envelopes, self.limits.page_entries // 2)
            if few and not queue.paging and page not in wanted.pages:
                wanted.pages.append(page)
            return
        try:
            runs = consume.runs_of(self, queue, c.ranges if isinstance(c, m.Ack) else [(c.seq, 1)])
        except InvalidRequest:
            return
        for first, last in runs:
            first = max(first, queue.loaded_to + 1)
            if first <= last:
                wanted.entries.append((queue.name, first, last - first + 1))

    def handle(self, commands: Sequence[m.AnyCommand], facts: Facts, now: int) -> Effects:
        """One batch.  The effects may leave only after ``effects.changes`` is committed."""
        self._begin(now)
        for name, entries in facts.pages.items():
            queue = self.queues.get(name)
            if queue is not None:
                queue.page(entries, self.limits.page_entries)
                topology.purge_on(self, queue)
                self.eager.add(queue)
        for c in commands:
            self._one(c, facts)
        busy = self.eager | self.touched
        for queue in sorted(busy, key=_name) if len(busy) > 1 else busy:
            if queue.consumers and (queue.ready or queue.tail):
                consume.dispatch(self, queue)
        for queue in sorted(self.touched, key=_name):
            self._note(queue)
        return self.effects

    def _note(self, queue: Queue) -> None:
        changes = self.effects.changes
        if queue.fresh:
            changes.entries += queue.new_entries(self.now)
        for sender in sorted(queue.senders):
            changes.usage[(sender, queue.name)] = queue.used.get(sender, NONE)
        changes.counters.append(queue.counters())
        queue.end_batch()

    def _one(self, c: m.AnyCommand, facts: Facts) -> None:
        kind = type(c)
        if kind is m.Publish:
            publish.publish(self, c, facts)  # type: ignore[arg-type]
        elif kind is m.Credit:
            consume.credit(self, c)  # type: ignore[arg-type]
        elif kind is m.Disconnect:
            consume.disconnect(self, c.connection)  # type: ignore[union-attr]
            client = self.client_of.pop(c.connection, None)  # type: ignore[union-attr]
            if client is not None:
                self.connections_of[client] -= 1
                if not self.connections_of[client]:
                    del self.connections_of[client]
        elif kind is m.Lost:
            consume.lost(self, c)  # type: ignore[arg-type]
        elif kind is m.Sweep:
            consume.sweep(self)
        elif isinstance(c, m.Command):
            self._ask(c, facts)

    def _shape(self) -> tuple[int, ...]:
        """Differs after a command that changed who may do what, or what there is."""
        c = self.effects.changes
        return (
            len(c.clients),
            len(c.exchanges),
            len(c.dropped_exchanges),
            len(c.queues),
            len(c.dropped_queues),
            len(c.bindings),
            len(c.dropped_bindings),
            len(c.grants),
            len(c.dropped_grants),
            len(c.dead),
            len(c.client_limits),
        )

    def _ask(self, c: m.Command, facts: Facts) -> None:
        answers = self.effects.answers.setdefault(c.connection, [])
        refusal = self.cut_off(c.connection, c.client)
        if refusal is not None:
            answers.append(Failed(c.correlation, refusal))
            return
        try:
            if isinstance(c, m.Ack):
                answers.append(consume.ack(self, c, facts))
            elif isinstance(c, m.Nack):
                answers.append(consume.nack(self, c, facts))
            elif isinstance(c, m.Retain):
                answers.append(_retain(self, c, facts))
            elif isinstance(c, m.SettleDead):
                done = dead.settle(self, c, facts)
                answers.append(done)
                if done.count:
                    self.effects.acts.append(m.Act(c.client, "SettleDead", _detail(c)))
            else:
                before = self._shape()
                answer = _HANDLERS[type(c)](self, c)
                if answer is not None:
                    answers.append(answer)
                if type(c) in _ACTS and self._shape() != before:
                    self.effects.acts.append(m.Act(c.client, type(c).__name__, _detail(c)))
        except CipherBoxError as error:
            answers.append(Failed(c.correlation, error))
