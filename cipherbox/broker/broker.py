"""The Broker: one batch of commands in, its effects out.

Rules:

1. Deterministic and pure: `handle(commands, facts, now)` depends on nothing else, and sets are
   sorted before they are iterated wherever the order is visible.
2. An invalid request is answered with Failed; `handle` raises only on a bug of its own, and must
   then be discarded.
3. Memory runs ahead of the store only within one batch: after a failed commit this object must not
   be used any more.
4. A connection must be announced with `connect` before its first command.
5. `changes` hold the difference between the end of the batch and its beginning: what one batch both
   removes and adds is in neither list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import attrs

from cipherbox.broker import clients, consume, listing, publish, routes, topology
from cipherbox.broker import dead_letters as dead
from cipherbox.broker import model as m
from cipherbox.broker.model import (
    Answer,
    Effects,
    Facts,
    Failed,
    RequiredFacts,
    Routed,
    Snapshot,
)
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.errors import CipherBoxError, InvalidRequest, Replaced
from cipherbox.limits import LIMITS, Limits

_name = attrgetter("name")


def _resolve(state: BrokerState, c: m.Resolve) -> Routed:
    route = routes.resolve(state, c.connection, c.client, c.exchange, c.routing_key)
    return Routed(c.correlation, state.bindings_version, route)


def _retain(state: BrokerState, c: m.Retain, facts: Facts) -> m.Done:
    """Delete old records, and raise the watermark with them: an id without a record must never be
    accepted as new.
    """
    changes = state.effects.changes
    for name, sender, size in facts.retired:
        queue = state.queues.get(name)
        if queue is not None:
            queue.add_used(sender, -size, -1)
            state.touched.add(queue)
    changes.retention = c.cutoffs
    if c.cutoffs.metadata > state.watermark:
        state.watermark = changes.watermark = c.cutoffs.metadata
    state.effects.acts.append(m.Act("", "Retain", c.cutoffs._asdict()))
    return m.Done(c.correlation, 1)


def _note(state: BrokerState, c: m.Command) -> m.Done:
    """Record an act in the signed log that changes nothing here."""
    state.effects.changes.noted += 1
    state.effects.acts.append(m.Act(c.client, type(c).__name__, _detail(c)))
    return m.Done(c.correlation, 1)


def _set_watermark(state: BrokerState, c: m.SetWatermark) -> m.Done:
    """Set the watermark back that a wrong clock moved. Ids since then whose records are deleted may
    be accepted once more; their recipients drop them as duplicates.
    """
    state.watermark = state.effects.changes.watermark = max(1, c.watermark)  # 0: unchanged
    return _note(state, c)


def _replace_client(state: BrokerState, c: m.ReplaceClient) -> m.Done:
    why = Replaced(f"another home was enrolled as {c.target}, in place of this one")
    topology.end_connections(state, c.target, why)
    return _note(state, c)


HANDLERS: dict[type, Callable[[Any, Any], Answer | None]] = {
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
    m.ConfirmClock: _note,
    m.SetWatermark: _set_watermark,
    m.EnrolHere: _note,
    m.Enrol: _note,
    m.KeysAnew: _note,
    m.KickClient: _note,
    m.ReplaceClient: _replace_client,
}

# Commands that get a line in the signed log if they changed something.
ACTS = frozenset(
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
    """The broker core, as in the module's text; ``snapshot`` is what the store loaded."""

    def __init__(self, snapshot: Snapshot, limits: Limits = LIMITS) -> None:
        self.state = BrokerState(snapshot, limits)

    def connect(self, connection: int, client: str) -> None:
        """Announce a connection of this client."""
        self.state.connect(connection, client)

    def required_facts(self, commands: Sequence[m.AnyCommand]) -> RequiredFacts:
        """Return what these commands need from the store; nothing for most batches."""
        wanted = RequiredFacts()
        for c in commands:
            if type(c) is m.Publish:
                for item in c.items:
                    top = self.state.highest.get(item[3])
                    if top is not None and item[4] <= top:
                        wanted.known.append((item[3], item[4]))
            elif type(c) is m.Ack or type(c) is m.Nack or type(c) is m.Fetch:
                queue = self.state.queues.get(c.queue)
                if queue is not None and queue.tail and queue.is_reader(c.client):
                    self._required_of(wanted, queue, c)
            elif type(c) is m.Retain:
                wanted.retired = c.cutoffs.dead_letters
            elif type(c) is m.RedriveOrDiscard:
                wanted.dead += [
                    (c.queue, first, min(count, self.state.limits.ack_entries))
                    for first, count in c.ranges
                ]
        return wanted

    def _required_of(
        self, wanted: RequiredFacts, queue: Queue, c: m.Ack | m.Nack | m.Fetch
    ) -> None:
        """Add what a command needs of a queue's tail."""
        if isinstance(c, m.Fetch):
            page = (queue.name, queue.loaded_to)
            few = len(queue.ready) < min(c.envelopes, self.state.limits.page_entries // 2)
            if few and not queue.paging and page not in wanted.pages:
                wanted.pages.append(page)
            return
        try:
            runs = consume.runs_of(
                self.state, queue, c.ranges if isinstance(c, m.Ack) else [(c.seq, 1)]
            )
        except InvalidRequest:
            return
        for first, last in runs:
            first = max(first, queue.loaded_to + 1)
            if first <= last:
                wanted.entries.append((queue.name, first, last - first + 1))

    def handle(self, commands: Sequence[m.AnyCommand], facts: Facts, now: int) -> Effects:
        """Execute one batch; its effects may leave only after ``effects.changes`` is committed."""
        self.state.begin(now)
        for name, entries in facts.pages.items():
            queue = self.state.queues.get(name)
            if queue is not None:
                queue.add_page(entries, self.state.limits.page_entries)
                topology.continue_purges(self.state, queue)
                self.state.dispatchable.add(queue)
        for c in commands:
            self._handle(c, facts)
        busy = self.state.dispatchable | self.state.touched
        for queue in sorted(busy, key=_name) if len(busy) > 1 else busy:
            if queue.consumers and (queue.ready or queue.tail):
                consume.dispatch(self.state, queue)
        for queue in sorted(self.state.touched, key=_name):
            self.state.record(queue)
        return self.state.effects

    def _handle(self, c: m.AnyCommand, facts: Facts) -> None:
        kind = type(c)
        if kind is m.Publish:
            publish.publish(self.state, c, facts)  # type: ignore[arg-type]
        elif kind is m.Credit:
            consume.credit(self.state, c)  # type: ignore[arg-type]
        elif kind is m.Disconnect:
            consume.disconnect(self.state, c.connection)  # type: ignore[union-attr]
            client = self.state.client_of.pop(c.connection, None)  # type: ignore[union-attr]
            if client is not None:
                self.state.connections_of[client] -= 1
                if not self.state.connections_of[client]:
                    del self.state.connections_of[client]
        elif kind is m.LostBodies:
            consume.lost(self.state, c)  # type: ignore[arg-type]
        elif kind is m.Sweep:
            consume.sweep(self.state)
        elif isinstance(c, m.Command):
            self._answer(c, facts)

    def _change_counts(self) -> tuple[int, ...]:
        """Return numbers that differ after a command that changed rights or topology."""
        c = self.state.effects.changes
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

    def _answer(self, c: m.Command, facts: Facts) -> None:
        answers = self.state.effects.answers.setdefault(c.connection, [])
        refusal = self.state.refusal_of(c.connection, c.client)
        if refusal is not None:
            answers.append(Failed(c.correlation, refusal))
            return
        try:
            if isinstance(c, m.Ack):
                answers.append(consume.ack(self.state, c, facts))
            elif isinstance(c, m.Nack):
                answers.append(consume.nack(self.state, c, facts))
            elif isinstance(c, m.Retain):
                answers.append(_retain(self.state, c, facts))
            elif isinstance(c, m.RedriveOrDiscard):
                done = dead.redrive_or_discard(self.state, c, facts)
                answers.append(done)
                if done.count:
                    self.state.effects.acts.append(m.Act(c.client, "SettleDead", _detail(c)))
            else:
                before = self._change_counts()
                answer = HANDLERS[type(c)](self.state, c)
                if answer is not None:
                    answers.append(answer)
                if type(c) in ACTS and self._change_counts() != before:
                    self.state.effects.acts.append(m.Act(c.client, type(c).__name__, _detail(c)))
        except CipherBoxError as error:
            answers.append(Failed(c.correlation, error))
