"""One envelope's way into queues.

In this order: known already? (confirm again, replace by a higher generation, or refuse) - its time
- the right to publish - the route - every recipient in exactly one queue - the quota.  A publish is
all or nothing.  An envelope goes only into queues whose readers are all among its recipients;
anything else would hand somebody what they cannot open.

This is a hot path: where an envelope goes is remembered until rights or bindings change, and tuples
are made by `tuple.__new__`, which costs half of the named constructor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from cipherbox.broker.dead_letters import overflow
from cipherbox.broker.model import (
    Confirmed,
    Entry,
    Facts,
    Failed,
    Incoming,
    Known,
    NewEnvelope,
    Publish,
    Routed,
)
from cipherbox.broker.queues import Queue
from cipherbox.broker.rights import MAILBOX
from cipherbox.broker.usage import NONE
from cipherbox.errors import (
    AmbiguousRoute,
    CipherBoxError,
    ClockSkew,
    CommitmentChanged,
    Forbidden,
    IdReused,
    InvalidRequest,
    NoRoute,
    NotFound,
    QuotaExceeded,
    RecipientRefuses,
    RecipientRevoked,
    RouteChanged,
    TooOld,
    UnknownRecipient,
    names_detail,
)

if TYPE_CHECKING:
    from cipherbox.broker.broker import Broker

MAILBOX_KEYS = {"": "", ".bulk": ".bulk", ".sys": ".sys"}
Route = tuple[tuple[str, tuple[str, ...]], ...]  # (queue, readers), sorted by name
# queues, their names, recipients left out
Targets = tuple[tuple[Queue, ...], tuple[str, ...], tuple[str, ...]]
_new = tuple.__new__
# targets, and at most so many recipients in each, so that their memory is bounded
_REMEMBERED = 4096
_REMEMBERED_RECIPIENTS = 16


@attrs.define
class RouteDetail(Exception):
    """The answer a route-changed refusal carries; the session encodes it."""

    routed: Routed


def publish(broker: Broker, command: Publish, facts: Facts) -> None:
    """All SENDs of one socket read."""
    answers = broker.effects.answers.setdefault(command.connection, [])
    refusal = broker.cut_off(command.connection, command.client)
    if refusal is not None:
        answers.extend(Failed(item.correlation, refusal) for item in command.items)
        return
    fresh = broker.fresh
    highest = broker.highest
    accepted = broker.effects.accepted.setdefault(command.connection, [])
    confirmed = broker.effects.confirmed.setdefault(command.connection, [])
    for item in command.items:
        sender = item[3]
        top = highest.get(sender)
        try:
            if top is not None and item[4] <= top:
                known = fresh.get((sender, item[4])) or facts.known.get((sender, item[4]))
                if known is not None:
                    answer = _again(broker, item, known)
                    answers.append(answer)
                    confirmed.append(item)
                    if answer.again:
                        # a confirm is proven, whatever it confirms
                        broker.effects.changes.noted += 1
                    else:
                        accepted.append(item)
                    continue
            answers.append(_accept(broker, command.connection, item, top))
            accepted.append(item)
            confirmed.append(item)
        except CipherBoxError as error:
            answers.append(Failed(item.correlation, error))


def _again(broker: Broker, item: Incoming, known: Known) -> Confirmed:
    """An id that HQ knows: confirmed again, or its next generation wherever nobody acknowledged
    it yet.
    """
    here = [broker.queues[name] for name in known.queues if name in broker.queues]
    missing = _left_out(item, here) if item.partial else ()
    if item.envelope_hash == known.envelope_hash:
        return Confirmed(item.correlation, True, known.queues, missing, known.accepted_at)
    if item.generation <= known.generation:
        raise IdReused
    if known.commitment and item.commitment != known.commitment:
        raise CommitmentChanged
    waiting, dead = _unacknowledged(broker, known)
    rights = broker.rights
    recipients = set(item.recipients)
    if not all(recipients.issuperset(rights.readers(queue)) for queue, _ in waiting):
        raise _changed(broker, tuple((q.name, rights.readers(q)) for q, _ in waiting))
    everywhere = dead
    dead = [
        q
        for q in dead
        if (readers := rights.readers(q))
        and recipients.issuperset(readers)
        and rights.takes(q, item.sender)
    ]
    # acknowledged everywhere: there is nothing that the new bytes could replace
    if not waiting and not dead:
        return Confirmed(item.correlation, True, known.queues, missing, known.accepted_at)
    if not item.partial and _left_out(item, here):
        raise _changed(broker, tuple((q.name, rights.readers(q)) for q in here))
    kept = [q for q in dead if _kept(broker, q, known)]
    fresh = [q for q in dead if q not in kept]  # somebody dropped it there
    grown = [*(q for q, _ in waiting), *kept]
    for queue, more in [
        *((q, item.size - known.size) for q in grown),
        *((q, item.size) for q in fresh),
    ]:
        _check_quota(broker, queue, item.sender, more)
    more = (item.size - known.size) * len(grown) + item.size * len(fresh)
    broker.totals.check(item.sender, more, len(fresh))
    for queue in kept:
        queue.add_used(item.sender, -known.size, -1)
    for queue in everywhere:
        # it stays a dead letter, of other bytes now
        if queue not in dead and _kept(broker, queue, known):
            queue.add_used(item.sender, item.size - known.size, 0)
            broker.touched.add(queue)
    for queue, seq in waiting:
        _replace(broker, queue, seq, item, known)
    places = [(q.name, seq) for q, seq in waiting]
    fan = len(known.queues)
    places += [
        (q.name, _enter(broker, q, known.number, fan, item, known.accepted_at)) for q in dead
    ]
    broker.effects.changes.replaced.append((known.number, item))
    broker.fresh[(item.sender, item.envelope_id)] = known._replace(
        generation=item.generation,
        envelope_hash=item.envelope_hash,
        size=item.size,
        waiting=tuple(places),
        dead=tuple(name for name in known.dead if name not in [q.name for q in dead]),
        commitment=item.commitment,
        kept=tuple(name for name in known.kept if name not in [q.name for q in dead]),
    )
    return Confirmed(item.correlation, False, known.queues, missing, known.accepted_at)


def _unacknowledged(broker: Broker, known: Known) -> tuple[list[tuple[Queue, int]], list[Queue]]:
    """Where it waits, and where it is a dead letter, by the facts and by what happened since in
    this batch.
    """
    waiting = []
    dead = [broker.queues[name] for name in known.dead if name in broker.queues]
    for name, seq in known.waiting:
        queue = broker.queues.get(name)
        if queue is None:
            continue
        lies_in_tail = seq > queue.loaded_to and (name, seq) not in broker.gone
        if lies_in_tail or queue.find(seq) is not None:
            waiting.append((queue, seq))
        elif any(d.queue == name and d.seq == seq for d in broker.effects.changes.dead):
            dead.append(queue)
    return waiting, dead


def _kept(broker: Broker, queue: Queue, known: Known) -> bool:
    """Whether a dead letter's bytes are still here: nobody dropped it."""
    changes = broker.effects.changes
    if any(s.queue == queue.name and s.number == known.number for s in changes.settled):
        return False
    return queue.name in known.kept or any(
        d.queue == queue.name and d.number == known.number for d in changes.dead
    )


def _check_quota(broker: Broker, queue: Queue, sender: str, more: int) -> None:
    quota = broker.limits.quota_bytes
    used = queue.used.get(sender, NONE).size
    if used + more > quota:
        raise QuotaExceeded(
            f"{used} bytes of {sender} are in {queue.name} already; at most {quota} may be"
        )


def _left_out(item: Incoming, queues: Iterable[Queue]) -> tuple[str, ...]:
    covered = {reader for queue in queues for reader in queue.all_readers}
    return tuple(sorted(set(item.recipients) - covered))


def _replace(broker: Broker, queue: Queue, seq: int, item: Incoming, known: Known) -> None:
    """The next generation takes the entry's place; who holds the old one gets the new one as a
    redelivery.
    """
    changed = item.size - known.size
    queue.size += changed
    queue.add_used(item.sender, changed, 0)
    broker.touched.add(queue)
    entry = queue.take(seq)
    if entry is None:
        broker.resized[(queue.name, seq)] = item.size
    else:
        queue.give_back([entry._replace(size=item.size, expires_at=item.expires_at)])


def _accept(broker: Broker, connection: int, item: Incoming, top: bytes | None) -> Confirmed:
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
    now = broker.now
    if envelope_id < broker.earliest:
        raise TooOld
    if envelope_id >= broker.latest:
        raise ClockSkew
    if expires_at and expires_at <= now:
        raise InvalidRequest("the envelope has expired already")
    targets = broker.targets.get((sender, exchange, key, recipients))
    if targets is None:
        targets = _targets(broker, connection, item)
    queues, names, missing = targets
    for queue in queues:
        _check_quota(broker, queue, sender, size)
    broker.totals.check(sender, size * len(queues), len(queues))
    number = broker.next_number
    broker.next_number = number + 1
    changes = broker.effects.changes
    fan = len(queues)
    changes.envelopes.append(_new(NewEnvelope, (number, now, fan, item)))
    places = tuple(
        [(queue.name, _enter(broker, queue, number, fan, item, now)) for queue in queues]
    )
    if top is None or envelope_id > top:
        broker.highest[sender] = changes.highest[sender] = envelope_id
    broker.fresh[(sender, envelope_id)] = _new(
        Known, (number, generation, envelope_hash, now, names, places, size, (), commitment, ())
    )
    return _new(Confirmed, (correlation, False, names, missing, now))


def _enter(
    broker: Broker, queue: Queue, number: int, fan: int, item: Incoming, accepted_at: int
) -> int:
    """A new entry at the end of a queue; its seq."""
    seq = queue.next
    sender, size = item[3], item[14]
    queue.append(
        _new(Entry, (seq, number, size, 0, fan, sender, item[4], accepted_at, item[13])),
        broker.limits.head_entries,
    )
    queue.add_used(sender, size, 1)
    broker.touched.add(queue)
    if queue.max_length:
        overflow(broker, queue)
    return seq


def _targets(broker: Broker, connection: int, item: Incoming) -> Targets:
    queues, missing = _choose(broker, connection, item)
    kept = [queue for queue in queues if broker.rights.takes(queue, item.sender)]
    refused = len(kept) < len(queues)
    if refused:
        queues, missing = _without_refusing(item, queues, kept, missing)
    targets = (tuple(queues), tuple(q.name for q in queues), missing)
    if not missing and not refused and len(item.recipients) <= _REMEMBERED_RECIPIENTS:
        if len(broker.targets) >= _REMEMBERED:
            broker.targets.clear()
        broker.targets[(item.sender, item.exchange, item.routing_key, item.recipients)] = targets
    return targets


def _choose(broker: Broker, connection: int, item: Incoming) -> tuple[list[Queue], tuple[str, ...]]:
    if not item.exchange and item.routing_key in MAILBOX_KEYS:
        return _mailboxes(broker, item)
    route = resolve(broker, connection, item.sender, item.exchange, item.routing_key)
    recipients = set(item.recipients)
    chosen: list[Queue] = []
    covered: dict[str, str] = {}
    for name, readers in route:
        if not recipients.issuperset(readers):
            raise _changed(broker, route)
        twice = [r for r in readers if r in covered]
        if len(twice) == len(readers):
            continue
        if twice:
            raise AmbiguousRoute(
                f"{twice[0]} would get the envelope in {covered[twice[0]]} and in {name}"
            )
        covered.update(dict.fromkeys(readers, name))
        chosen.append(broker.queues[name])
    missing = tuple(sorted(recipients.difference(covered)))
    if missing and not item.partial:
        raise _changed(broker, route)
    return chosen, missing


def _changed(broker: Broker, route: Route) -> RouteChanged:
    readers = sorted({r for _, rs in route for r in rs})
    error = RouteChanged(
        f"this route is read by {', '.join(readers)}; the envelope was sealed for others"
    )
    error.__cause__ = RouteDetail(Routed(0, broker.bindings_version, route))
    return error


def _mailboxes(broker: Broker, item: Incoming) -> tuple[list[Queue], tuple[str, ...]]:
    suffix = MAILBOX_KEYS[item.routing_key]
    found, missing = [], []
    revoked = [client for client in item.recipients if broker.rights.revoked(client)]
    if revoked:
        what = f"the certificate of {', '.join(revoked)} was revoked; nothing is taken for it"
        raise RecipientRevoked(what, names_detail(revoked))
    for client in item.recipients:
        queue = broker.queues.get(f"{MAILBOX}{client}{suffix}")
        if queue is None:
            missing.append(client)
        else:
            found.append(queue)
    if missing and (not item.partial or not found):
        raise UnknownRecipient(f"HQ has no mailbox for {', '.join(missing)}", names_detail(missing))
    return found, tuple(missing)


def _without_refusing(
    item: Incoming, queues: list[Queue], kept: list[Queue], missing: tuple[str, ...]
) -> tuple[list[Queue], tuple[str, ...]]:
    """Where an envelope goes when only ``kept`` of its queues have a reader who takes mail from its
    sender.

    It is refused, naming who takes none, unless it is partial and somebody else gets it.  Whoever
    publishes to a route cannot leave a reader out, so there one reader's lists keep the envelope
    from nobody else: inboxes decide.
    """
    routed = bool(item.exchange) or item.routing_key not in MAILBOX_KEYS
    if kept and routed and not item.partial:
        return queues, missing
    covered = {reader for queue in kept for reader in queue.all_readers}
    refusing = sorted(set(item.recipients).difference(covered, missing))
    if not item.partial or not kept:
        verb = "takes" if len(refusing) == 1 else "take"
        raise RecipientRefuses(
            f"{', '.join(refusing)} {verb} no mail from {item.sender}", names_detail(refusing)
        )
    return kept, tuple(sorted({*missing, *refusing}))


def resolve(broker: Broker, connection: int, client: str, exchange: str, routing_key: str) -> Route:
    """Who reads what is published here: (queue, readers), queues without a reader left out.

    NotFound for an unknown exchange, Forbidden without the right to publish, NoRoute when nobody
    reads it.
    """
    rights = broker.rights
    names: tuple[str, ...]
    if exchange:
        found = broker.exchanges.get(exchange)
        if found is None:
            raise NotFound(f"there is no exchange {exchange!r}; see: cipherbox exchange list")
        if not rights.may_publish(client, connection, exchange):
            raise Forbidden(
                f"{client} may not publish to exchange {exchange!r}; an admin permits it: "
                f"cipherbox grant {client} publish {exchange}"
            )
        names = found.route(routing_key)
    else:
        queue = broker.queues.get(routing_key)
        mine = queue is not None and (queue.is_reader(client) or queue.name.startswith(MAILBOX))
        if queue is None or not (mine or rights.may_publish(client, connection, routing_key)):
            raise NotFound(
                f"there is no queue {routing_key!r} that you may publish to; see: cipherbox "
                "queue list"
            )
        names = (routing_key,)
    route = tuple((n, r) for n in names if (r := rights.readers(broker.queues[n])))
    if not route:
        where = (
            f"exchange {exchange!r} with key {routing_key!r}"
            if exchange
            else f"queue {routing_key!r}"
        )
        raise NoRoute(f"nobody reads what is published to {where}")
    return route
