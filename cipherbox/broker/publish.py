"""Publish envelopes: check each and put it into its queues.

The checks in order: a known id (confirm the duplicate, replace by a higher generation, or refuse),
its time, the right to publish, the route, every recipient in exactly one queue, the quota.  A
publish is all or nothing.  An envelope goes only into queues whose readers are all among its
recipients: no reader gets what it cannot open.

This is a hot path, and most of what a client sends at once goes from the same sender to the same
recipients.  Such a *run* is routed once, within the room that its quotas leave, and is counted and
enqueued once, when it ends.  Tuples are made by `tuple.__new__`, which takes half the time of the
named constructor.
"""

from __future__ import annotations

from cipherbox.broker.enqueue import check_quota, enqueue, quota_left
from cipherbox.broker.generations import republish
from cipherbox.broker.model import (
    Confirmed,
    Facts,
    Failed,
    Incoming,
    NewEnvelope,
    Publish,
)
from cipherbox.broker.routes import find_targets
from cipherbox.broker.state import AcceptedRun, BrokerState
from cipherbox.errors import CipherBoxError, ClockSkew, InvalidRequest, TooOld

_new = tuple.__new__


def publish(state: BrokerState, command: Publish, facts: Facts) -> None:
    """Publish all SENDs of one socket read."""
    answers = state.effects.answers.setdefault(command.connection, [])
    refusal = state.refusal_of(command.connection, command.client)
    if refusal is not None:
        answers.extend(Failed(item.correlation, refusal) for item in command.items)
        return
    now, highest, earliest, latest = state.now, state.highest, state.earliest, state.latest
    run: _Run | None = None
    for item in command.items:
        correlation, partial, _, sender, envelope_id = item[:5]
        exchange, key, readers, _, expires_at, size = item[9:15]
        route = (sender, exchange, key, readers, partial)
        newest = envelope_id > highest.get(sender, b"")
        if run is not None and not (newest and run.takes(route, size)):
            run.end()
            run = None
        try:
            if not newest and _known(state, command.connection, item, facts):
                continue
            if envelope_id < earliest:
                raise TooOld
            if envelope_id >= latest:
                raise ClockSkew
            if expires_at and expires_at <= now:
                raise InvalidRequest("the envelope has expired")
            if run is None:
                run = _Run(state, command.connection, item)
        except CipherBoxError as error:
            answers.append(Failed(correlation, error))
            continue
        run.items.append(item)
        run.room -= size
        run.left -= 1
        if newest:
            highest[sender] = envelope_id
        answers.append(_new(Confirmed, (correlation, False, run.names, run.unrouted, now)))
    if run is not None:
        run.end()


def _known(state: BrokerState, connection: int, item: Incoming, facts: Facts) -> bool:
    """Publish an envelope again if its id is known; return whether it is."""
    known = state.known_now(item.sender, item.envelope_id) or facts.known.get(
        (item.sender, item.envelope_id)
    )
    if known is None:
        return False
    effects = state.effects
    answer = republish(state, item, known)
    effects.answers[connection].append(answer)
    effects.confirmed.setdefault(connection, []).append(item)
    if answer.duplicate:
        effects.changes.noted += 1  # the confirm of a duplicate needs a proof, too
    else:
        effects.accepted.setdefault(connection, []).append(item)
    return True


class _Run:
    """New envelopes of one Publish, one after the other, of one sender for the same queues.

    ``room`` and ``left`` are the bytes and envelopes that every quota certainly has left.
    """

    __slots__ = (
        "_connection",
        "_queues",
        "_state",
        "items",
        "left",
        "names",
        "room",
        "route",
        "unrouted",
    )

    def __init__(self, state: BrokerState, connection: int, item: Incoming) -> None:
        """Route the first envelope; raise why it cannot be accepted."""
        _, partial, _, sender, _, _, _, _, _, exchange, key, recipients, _, _, size, _, _ = item
        targets = state.targets.get((sender, exchange, key, recipients))
        if targets is None:
            targets = find_targets(state, connection, item)
        self._state, self._connection = state, connection
        self.route = (sender, exchange, key, recipients, partial)
        self._queues, self.names, self.unrouted = targets
        copies = len(self._queues)
        for queue in self._queues:
            check_quota(state, queue, sender, size)
        state.totals.check(sender, size * copies, copies)
        room, left = state.totals.left(sender)
        self.room = min([quota_left(state, queue, sender) for queue in self._queues])
        self.room, self.left = min(self.room, room // copies), left // copies
        self.items: list[Incoming] = []

    def takes(self, route: tuple[object, ...], size: int) -> bool:
        """Return whether an envelope of this route and size certainly belongs to the run."""
        return route == self.route and size <= self.room and self.left > 0

    def end(self) -> None:
        """Count and enqueue the envelopes."""
        state, items, effects = self._state, self.items, self._state.effects
        number, sender = state.next_number, self.route[0]
        state.next_number += len(items)
        numbered = [*enumerate(items, number)]
        now, copies = state.now, len(self._queues)
        effects.changes.envelopes += [
            _new(NewEnvelope, (number, now, copies, item)) for number, item in numbered
        ]
        seqs = tuple([enqueue(state, queue, copies, numbered, now) for queue in self._queues])
        state.runs.append(AcceptedRun(numbered, self.names, seqs))
        effects.changes.highest[sender] = state.highest[sender]
        effects.accepted.setdefault(self._connection, []).extend(items)
        effects.confirmed.setdefault(self._connection, []).extend(items)
