"""An envelope whose id HQ knows: a duplicate, or a new generation that replaces the old bytes.

A new generation replaces the old one wherever nobody has acknowledged it yet, also where it became
a dead letter; there it is enqueued again.  Like a publish it is all or nothing: every check comes
before the first change.
"""

from __future__ import annotations

from typing import NamedTuple

from cipherbox.broker.enqueue import check_quota, enqueue
from cipherbox.broker.model import Confirmed, Incoming, KnownEnvelope
from cipherbox.broker.queues import Queue
from cipherbox.broker.routes import route_changed, unreached
from cipherbox.broker.state import BrokerState
from cipherbox.errors import CommitmentChanged, IdReused


class _Places(NamedTuple):
    """Where a new generation replaces the old one."""

    waiting: list[tuple[Queue, int]]  # by (queue, seq)
    revived: list[Queue]  # of dead letters that are enqueued again, for the queue's readers
    left: list[Queue]  # of dead letters that remain dead letters


def republish(state: BrokerState, item: Incoming, known: KnownEnvelope) -> Confirmed:
    """Confirm a duplicate, or replace an envelope by its next generation.

    Raise IdReused for other bytes without a higher generation, or CommitmentChanged, RouteChanged
    or QuotaExceeded.
    """
    here = [state.queues[name] for name in known.queues if name in state.queues]
    unrouted = unreached(item, here) if item.partial else ()
    duplicate = Confirmed(item.correlation, True, known.queues, unrouted, known.accepted_at)
    if item.envelope_hash == known.envelope_hash:
        return duplicate
    if item.generation <= known.generation:
        raise IdReused
    if known.commitment and item.commitment != known.commitment:
        raise CommitmentChanged
    places = _places(state, item, known)
    # acknowledged everywhere: nothing is left to replace
    if not places.waiting and not places.revived:
        return duplicate
    if not item.partial and unreached(item, here):
        readers = state.rights.readers
        raise route_changed(state, tuple((q.name, readers(q)) for q in here))
    kept = [q for q in places.revived if _kept(state, q, known)]
    _check_room(state, item, known, places, kept)
    _replace_everywhere(state, item, known, places, kept)
    return duplicate._replace(duplicate=False)


def _places(state: BrokerState, item: Incoming, known: KnownEnvelope) -> _Places:
    """Return where the new generation goes; raise RouteChanged if a reader is not a recipient."""
    waiting, dead = _unacknowledged(state, known)
    rights = state.rights
    recipients = set(item.recipients)
    if not all(recipients.issuperset(rights.readers(queue)) for queue, _ in waiting):
        raise route_changed(state, tuple((q.name, rights.readers(q)) for q, _ in waiting))
    revived = [
        q
        for q in dead
        if (readers := rights.readers(q))
        and recipients.issuperset(readers)
        and rights.accepts(q, item.sender)
    ]
    return _Places(waiting, revived, [q for q in dead if q not in revived])


def _check_room(
    state: BrokerState, item: Incoming, known: KnownEnvelope, places: _Places, kept: list[Queue]
) -> None:
    """Raise QuotaExceeded if the new bytes do not fit; ``kept``: revived, with the old bytes."""
    grown = [*(q for q, _ in places.waiting), *kept]
    dropped = [q for q in places.revived if q not in kept]
    for queue in grown:
        check_quota(state, queue, item.sender, item.size - known.size)
    for queue in dropped:
        check_quota(state, queue, item.sender, item.size)
    more = (item.size - known.size) * len(grown) + item.size * len(dropped)
    state.totals.check(item.sender, more, len(dropped))


def _replace_everywhere(
    state: BrokerState, item: Incoming, known: KnownEnvelope, places: _Places, kept: list[Queue]
) -> None:
    for queue in kept:
        queue.add_used(item.sender, -known.size, -1)
    for queue in places.left:
        # it remains a dead letter, with other bytes
        if _kept(state, queue, known):
            queue.add_used(item.sender, item.size - known.size, 0)
            state.touched.add(queue)
    for queue, seq in places.waiting:
        _replace(state, queue, seq, item, known)
    waiting = [(q.name, seq) for q, seq in places.waiting]
    count = len(known.queues)
    waiting += [
        (q.name, enqueue(state, q, count, [(known.number, item)], known.accepted_at))
        for q in places.revived
    ]
    state.effects.changes.replaced.append((known.number, item))
    state.fresh[(item.sender, item.envelope_id)] = known._replace(
        generation=item.generation,
        envelope_hash=item.envelope_hash,
        size=item.size,
        waiting=tuple(waiting),
        dead=tuple(q.name for q in places.left),
        commitment=item.commitment,
        kept=tuple(q.name for q in places.left if _kept(state, q, known)),
    )


def _unacknowledged(
    state: BrokerState, known: KnownEnvelope
) -> tuple[list[tuple[Queue, int]], list[Queue]]:
    """Return where it waits and where it is a dead letter, by the facts and by what happened since
    in this batch.
    """
    waiting = []
    dead = []
    entries = list(known.waiting)
    for name in known.dead:
        queue = state.queues.get(name)
        if queue is None:
            continue
        redriven = queue.fresh_seq(known.number)
        if redriven is None:
            dead.append(queue)
        else:
            entries.append((name, redriven))
    for name, seq in entries:
        queue = state.queues.get(name)
        if queue is None:
            continue
        in_tail = seq > queue.loaded_to and (name, seq) not in state.gone
        if in_tail or queue.find(seq) is not None:
            waiting.append((queue, seq))
        elif any(d.queue == name and d.seq == seq for d in state.effects.changes.dead):
            dead.append(queue)
    return waiting, dead


def _kept(state: BrokerState, queue: Queue, known: KnownEnvelope) -> bool:
    """Return whether a dead letter's bytes are still here: nobody has discarded it."""
    changes = state.effects.changes
    place = (queue.name, known.number)
    # what died in this batch is no fact yet, so no command of this batch can have discarded it
    if any((one.queue, one.number) == place for one in changes.dead):
        return True
    closed = any((one.queue, one.number) == place for one in changes.closed_dead_letters)
    return queue.name in known.kept and not closed


def _replace(
    state: BrokerState, queue: Queue, seq: int, item: Incoming, known: KnownEnvelope
) -> None:
    """Replace an entry by its next generation; where the old one was delivered, redeliver."""
    changed = item.size - known.size
    queue.size += changed
    queue.add_used(item.sender, changed, 0)
    state.touched.add(queue)
    entry = queue.take(seq)
    if entry is None:
        state.resized[(queue.name, seq)] = item.size
    else:
        queue.requeue([entry._replace(size=item.size, expires_at=item.expires_at)])
