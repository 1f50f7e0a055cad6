"""Publish envelopes: check each and put it into its queues.

The checks in order: a known id (confirm the duplicate, replace by a higher generation, or refuse),
its time, the right to publish, the route, every recipient in exactly one queue, the quota.  A
publish is all or nothing.  An envelope goes only into queues whose readers are all among its
recipients: no reader gets what it cannot open.

This is a hot path: targets are cached until rights or bindings change, and tuples are made by
`tuple.__new__`, which takes half the time of the named constructor.
"""

from __future__ import annotations

from cipherbox.broker.enqueue import check_quota, enqueue
from cipherbox.broker.generations import republish
from cipherbox.broker.model import (
    Confirmed,
    Facts,
    Failed,
    Incoming,
    KnownEnvelope,
    NewEnvelope,
    Publish,
)
from cipherbox.broker.routes import find_targets
from cipherbox.broker.state import BrokerState
from cipherbox.errors import CipherBoxError, ClockSkew, InvalidRequest, TooOld

_new = tuple.__new__


def publish(state: BrokerState, command: Publish, facts: Facts) -> None:
    """Publish all SENDs of one socket read."""
    answers = state.effects.answers.setdefault(command.connection, [])
    refusal = state.refusal_of(command.connection, command.client)
    if refusal is not None:
        answers.extend(Failed(item.correlation, refusal) for item in command.items)
        return
    fresh = state.fresh
    highest = state.highest
    accepted = state.effects.accepted.setdefault(command.connection, [])
    confirmed = state.effects.confirmed.setdefault(command.connection, [])
    for item in command.items:
        sender = item[3]
        top = highest.get(sender)
        try:
            if top is not None and item[4] <= top:
                known = fresh.get((sender, item[4])) or facts.known.get((sender, item[4]))
                if known is not None:
                    answer = republish(state, item, known)
                    answers.append(answer)
                    confirmed.append(item)
                    if answer.duplicate:
                        # the confirm of a duplicate needs a proof, too
                        state.effects.changes.noted += 1
                    else:
                        accepted.append(item)
                    continue
            answers.append(_accept(state, command.connection, item, top))
            accepted.append(item)
            confirmed.append(item)
        except CipherBoxError as error:
            answers.append(Failed(item.correlation, error))


def _accept(state: BrokerState, connection: int, item: Incoming, top: bytes | None) -> Confirmed:
    (
        correlation,
        _,
        _,
        sender,
        envelope_id,
        generation,
        _,
        envelope_hash,
        _,
        exchange,
        key,
        recipients,
        _,
        expires_at,
        size,
        _,
        commitment,
    ) = item
    now = state.now
    if envelope_id < state.earliest:
        raise TooOld
    if envelope_id >= state.latest:
        raise ClockSkew
    if expires_at and expires_at <= now:
        raise InvalidRequest("the envelope has expired")
    targets = state.targets.get((sender, exchange, key, recipients))
    if targets is None:
        targets = find_targets(state, connection, item)
    queues, names, unrouted = targets
    for queue in queues:
        check_quota(state, queue, sender, size)
    state.totals.check(sender, size * len(queues), len(queues))
    number = state.next_number
    state.next_number = number + 1
    changes = state.effects.changes
    references = len(queues)
    changes.envelopes.append(_new(NewEnvelope, (number, now, references, item)))
    places = tuple(
        [(queue.name, enqueue(state, queue, number, references, item, now)) for queue in queues]
    )
    if top is None or envelope_id > top:
        state.highest[sender] = changes.highest[sender] = envelope_id
    state.fresh[(sender, envelope_id)] = _new(
        KnownEnvelope,
        (number, generation, envelope_hash, now, names, places, size, (), commitment, ()),
    )
    return _new(Confirmed, (correlation, False, names, unrouted, now))
