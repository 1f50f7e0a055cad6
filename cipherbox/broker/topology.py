"""Exchanges, queues, bindings, grants and clients: declare, delete, show.

Names stay as they were declared; declaring the same again is no error, declaring another under a
name is a Conflict.  What is deleted takes its bindings and grants with it, so that a later thing of
that name starts with neither.  A new queue begins above the numbers of every deleted one: no
(queue, seq) is ever used twice, so that an old ack repeated late cannot meet a new envelope.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cipherbox.broker import model as m
from cipherbox.broker.clients import owned_queues, set_contacts
from cipherbox.broker.consume import bury, disconnect, end_consumer, end_reader, want_page
from cipherbox.broker.dead_letters import overflow
from cipherbox.broker.exchanges import Exchange
from cipherbox.broker.model import (
    ADMIN,
    CLIENT,
    EVERYBODY,
    KEEP,
    ClientRow,
    Counters,
    Done,
    ExchangeType,
    QueueRow,
)
from cipherbox.broker.queues import Purging, Queue
from cipherbox.broker.rights import MAILBOX, RIGHTS, no_queue
from cipherbox.broker.usage import QUEUES
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import (
    CipherBoxError,
    Conflict,
    Forbidden,
    InvalidRequest,
    LimitReached,
    NotFound,
    Revoked,
)
from cipherbox.limits import check_client_id, check_name

if TYPE_CHECKING:
    from cipherbox.broker.broker import Broker

SUFFIXES = ("", ".bulk", ".sys")
T = TypeVar("T")


def _put(row: T, added: list[T], dropped: list[T]) -> None:
    """Notes what exists from now on; what this batch dropped before is simply kept."""
    if row in dropped:
        dropped.remove(row)
    else:
        added.append(row)


def _drop(row: T, added: list[T], dropped: list[T]) -> None:
    """Notes what ends; what this batch added before was never there."""
    if row in added:
        added.remove(row)
    else:
        dropped.append(row)


def _admin(broker: Broker, c: m.Command) -> bool:
    return broker.rights.is_admin(c.client, c.connection)


def _need_admin(broker: Broker, c: m.Command) -> None:
    if not _admin(broker, c):
        raise Forbidden("only an admin may do that")


def declare_exchange(broker: Broker, c: m.DeclareExchange) -> Done:
    check_name(c.name, "exchange name")
    if c.type not in tuple(ExchangeType):
        raise InvalidRequest(f"there is no exchange type {c.type}; 0 is direct, 1 fanout, 2 topic")
    found = broker.exchanges.get(c.name)
    if found is not None:
        if found.kind != c.type:
            raise Conflict(
                f"exchange {c.name!r} exists already and is of type {found.kind.name.lower()}, not "
                f"{ExchangeType(c.type).name.lower()}; a type never changes"
            )
        return Done(c.correlation, 0)
    if not (_admin(broker, c) or broker.rights.granted(c.client, "declare", "")):
        raise Forbidden(
            f"{c.client} may not declare exchanges; an admin permits it: "
            f"cipherbox grant {c.client} declare"
        )
    if len(broker.exchanges) >= broker.limits.exchanges:
        raise InvalidRequest(f"there are {broker.limits.exchanges} exchanges already")
    broker.exchanges[c.name] = Exchange(c.name, ExchangeType(c.type))
    changes = broker.effects.changes
    changes.exchanges.append((c.name, int(c.type)))
    if c.name in changes.dropped_exchanges:
        changes.dropped_exchanges.remove(c.name)
    own = (c.client, "bind", c.name)
    if not _admin(broker, c) and own not in broker.rights.grants:
        broker.rights.grants.add(own)
        _put(own, changes.grants, changes.dropped_grants)
        broker.rights_changed()
    return Done(c.correlation, 1)


def _exchange(broker: Broker, name: str) -> Exchange:
    found = broker.exchanges.get(name)
    if found is None:
        raise NotFound(f"there is no exchange {name!r}; see: cipherbox exchange list")
    return found


def delete_exchange(broker: Broker, c: m.DeleteExchange) -> Done:
    found = _exchange(broker, c.name)
    _need_admin(broker, c)
    for queue, key in sorted(found.bindings):
        _unbind(broker, found, queue, key)
    changes = broker.effects.changes
    changes.exchanges = [e for e in changes.exchanges if e[0] != c.name]
    changes.dropped_exchanges.append(c.name)
    del broker.exchanges[c.name]
    _drop_grants(broker, c.name)
    broker.bindings_changed()
    return Done(c.correlation, 1)


def _drop_grants(broker: Broker, name: str) -> None:
    """The grants on something deleted end with it, unless an exchange or queue of the same name
    stays.
    """
    if name in broker.exchanges or name in broker.queues:
        return
    changes = broker.effects.changes
    for row in sorted(g for g in broker.rights.grants if g[2] == name):
        broker.rights.grants.discard(row)
        _drop(row, changes.grants, changes.dropped_grants)


def declare_queue(broker: Broker, c: m.DeclareQueue) -> Done:
    check_name(c.name, "queue name")
    if c.name.startswith(MAILBOX):
        raise InvalidRequest(
            f"queue names beginning with {MAILBOX!r} are mailboxes, made at enrolment"
        )
    admin = _admin(broker, c)
    owner = c.owner if c.connection == 0 else c.owner or c.client
    for client in {owner, *c.readers} - {""}:
        if client not in broker.rights.clients:
            raise NotFound(f"there is no client {client!r}; see who is enrolled: cipherbox clients")
    if owner != c.client and not admin:
        raise Forbidden("only an admin names another owner")
    found = broker.queues.get(c.name)
    if found is not None:
        if not (admin or c.client == found.owner):
            raise Conflict(
                f"a queue {c.name!r} exists already, and is not yours; choose another name"
            )
        if found.owner != owner:
            raise Conflict(
                f"queue {c.name!r} exists already with the owner {found.owner or 'HQ'}, not "
                f"{owner or 'HQ'}"
            )
        if more := sorted(set(c.readers) - {owner} - found.readers):
            raise Conflict(
                f"queue {c.name!r} exists already, and {', '.join(more)} does not read it; an "
                f"admin permits it: cipherbox grant {more[0]} read {c.name}"
            )
        return Done(c.correlation, int(_limit(broker, found, c)))
    owned = owned_queues(broker, owner)
    if not admin and owned >= (most := broker.totals.most(owner, QUEUES)):
        raise LimitReached(f"{owner} has {owned} queues of its own; at most {most}")
    if len(broker.queues) >= broker.limits.queues:
        raise InvalidRequest(f"there are {broker.limits.queues} queues already")
    if set(c.readers) - {owner} and not admin:
        raise Forbidden("only an admin lets others read a queue")
    _add_queue(broker, c.name, owner, tuple(sorted(set(c.readers) - {owner})))
    _limit(broker, broker.queues[c.name], c)
    return Done(c.correlation, 1)


def _limit(broker: Broker, queue: Queue, c: m.DeclareQueue) -> bool:
    """Sets a queue's limits; whether they are others now."""
    ttl_ms = queue.ttl_ms if c.ttl_s == KEEP else c.ttl_s * 1000
    length = queue.max_length if c.max_length == KEEP else c.max_length
    if (ttl_ms, length) == (queue.ttl_ms, queue.max_length):
        return False
    queue.ttl_ms, queue.max_length = ttl_ms, length
    queue.look_again()
    broker.effects.changes.queues.append(row_of(queue))
    if length:
        overflow(broker, queue)
    return True


def row_of(queue: Queue) -> QueueRow:
    """What the store keeps of a queue."""
    readers = tuple(sorted(queue.readers))
    return QueueRow(queue.name, queue.owner, readers, queue.ttl_ms // 1000, queue.max_length)


def _add_queue(broker: Broker, name: str, owner: str, readers: tuple[str, ...]) -> None:
    first = broker.first_seq
    queue = broker.queues[name] = Queue(
        name, owner, readers, broker.totals, Counters(name, 0, 0, first, first)
    )
    for client in queue.all_readers:
        broker.reads.setdefault(client, set()).add(name)
    changes = broker.effects.changes
    changes.queues.append(QueueRow(name, owner, readers))
    if name in changes.dropped_queues:
        changes.dropped_queues.remove(name)
    broker.touched.add(queue)


def _own_queue(broker: Broker, c: m.Command, name: str) -> Queue:
    queue = broker.queues.get(name)
    if queue is None or not (_admin(broker, c) or queue.owner == c.client):
        raise no_queue(name)
    return queue


def delete_queue(broker: Broker, c: m.DeleteQueue) -> Done:
    queue = _own_queue(broker, c, c.name)
    if c.name.startswith(MAILBOX):
        raise InvalidRequest("a mailbox stays as long as HQ knows its client")
    if queue.depth:
        raise Conflict(
            f"{queue.depth} envelopes wait in {c.name!r}; nothing unacknowledged is deleted"
        )
    dead = sum(used.envelopes for used in queue.used.values())
    # or whoever declares, fills and deletes queues fills the disk uncounted
    if dead and not _admin(broker, c):
        raise Conflict(
            f"{dead} dead letters of {c.name!r} are kept; redrive them first, or an admin drops "
            "them"
        )
    for exchange, key in sorted(queue.bindings):
        _unbind(broker, broker.exchanges[exchange], c.name, key)
    for consumer in list(queue.consumers):
        end_consumer(broker, consumer)
    for client in queue.all_readers:
        broker.reads[client].discard(c.name)
    del broker.queues[c.name]
    _drop_grants(broker, c.name)
    broker.leave(queue)
    broker.effects.changes.dropped_queues.append(c.name)
    broker.bindings_changed()
    return Done(c.correlation, 1)


def bind(broker: Broker, c: m.Bind) -> Done:
    exchange = _exchange(broker, c.exchange)
    queue = _own_queue(broker, c, c.queue)
    if c.routing_key or exchange.kind is not ExchangeType.FANOUT:
        check_name(c.routing_key, "routing key")
    if not (_admin(broker, c) or broker.rights.granted(c.client, "bind", c.exchange)):
        raise Forbidden(
            f"{c.client} may not bind queues to exchange {c.exchange!r}; an admin permits it: "
            f"cipherbox grant {c.client} bind {c.exchange}"
        )
    if (c.exchange, c.routing_key) in queue.bindings:
        return Done(c.correlation, 0)
    if len(queue.bindings) >= broker.limits.bindings_per_queue:
        raise InvalidRequest(f"a queue has at most {broker.limits.bindings_per_queue} bindings")
    exchange.bind(queue.name, c.routing_key)
    queue.bindings.add((c.exchange, c.routing_key))
    changes = broker.effects.changes
    _put((c.exchange, c.queue, c.routing_key), changes.bindings, changes.dropped_bindings)
    broker.bindings_changed()
    return Done(c.correlation, 1)


def unbind(broker: Broker, c: m.Unbind) -> Done:
    exchange = _exchange(broker, c.exchange)
    queue = _own_queue(broker, c, c.queue)
    if (queue.name, c.routing_key) not in exchange.bindings:
        raise NotFound(f"{c.queue!r} is not bound to {c.exchange!r} with key {c.routing_key!r}")
    _unbind(broker, exchange, queue.name, c.routing_key)
    broker.bindings_changed()
    return Done(c.correlation, 1)


def _unbind(broker: Broker, exchange: Exchange, queue: str, routing_key: str) -> None:
    exchange.unbind(queue, routing_key)
    broker.queues[queue].bindings.discard((exchange.name, routing_key))
    changes = broker.effects.changes
    _drop((exchange.name, queue, routing_key), changes.bindings, changes.dropped_bindings)


def purge(broker: Broker, c: m.Purge) -> None:
    """All that waits now becomes dead letters, page by page, also what is out.  Answered when
    the last page is done.
    """
    _need_admin(broker, c)
    queue = broker.queues.get(c.queue)
    if queue is None:
        raise no_queue(c.queue)
    queue.give_back([o.entry for o in queue.out.values()])
    queue.out.clear()
    queue.purges.append(Purging(c.connection, c.correlation, c.client, queue.next - 1, 0))
    purge_on(broker, queue)
    broker.eager.add(queue)


def purge_on(broker: Broker, queue: Queue) -> None:
    """Goes on with purges as far as the queue is in memory."""
    going, queue.purges = queue.purges, []
    for purging in going:
        done = purging.done
        while queue.ready and queue.ready[0].seq <= purging.up_to:
            bury(
                broker,
                queue,
                queue.ready.popleft(),
                f"purged by {purging.client or 'HQ'}",
                purging.client,
            )
            done += 1
        if queue.loaded_to >= purging.up_to:
            answers = broker.effects.answers.setdefault(purging.connection, [])
            answers.append(Done(purging.correlation, done))
        else:
            queue.purges.append(purging._replace(done=done))
    want_page(broker, queue)


def grant(broker: Broker, c: m.Grant) -> Done:
    _need_admin(broker, c)
    if c.right not in RIGHTS:
        raise InvalidRequest(
            f"there is no right {c.right!r}; there are {', '.join(sorted(RIGHTS))}"
        )
    if c.target != EVERYBODY and c.target not in broker.rights.clients:
        raise NotFound(f"there is no client {c.target!r}; see who is enrolled: cipherbox clients")
    if c.right == "read":
        return _grant_read(broker, c)
    if c.right in ("declare", "admin") and (c.resource or c.target == EVERYBODY):
        raise InvalidRequest(
            f"the right {c.right!r} is given to one client and names no exchange or queue"
        )
    known = c.resource in broker.exchanges or c.resource in broker.queues
    if c.right in ("publish", "bind") and c.give and not known:
        raise NotFound(f"there is no exchange or queue {c.resource!r}")
    row = (c.target, c.right, c.resource)
    changes = broker.effects.changes
    if c.give == (row in broker.rights.grants):
        return Done(c.correlation, 0)
    if c.give:
        broker.rights.grants.add(row)
        _put(row, changes.grants, changes.dropped_grants)
    else:
        broker.rights.grants.discard(row)
        _drop(row, changes.grants, changes.dropped_grants)
    broker.rights_changed()
    return Done(c.correlation, 1)


def _grant_read(broker: Broker, c: m.Grant) -> Done:
    queue = broker.queues.get(c.resource)
    if queue is None:
        raise no_queue(c.resource)
    if c.target == EVERYBODY or c.resource.startswith(MAILBOX):
        raise InvalidRequest(
            "readers are named one by one, and a mailbox is read by its client alone"
        )
    if c.give == (c.target in queue.readers):
        return Done(c.correlation, 0)
    if c.give:
        queue.readers.add(c.target)
        broker.reads.setdefault(c.target, set()).add(queue.name)
    else:
        queue.readers.discard(c.target)
        if not queue.is_reader(c.target):
            broker.reads[c.target].discard(queue.name)
            end_reader(broker, queue, c.target)
    broker.effects.changes.queues.append(row_of(queue))
    broker.bindings_changed()
    return Done(c.correlation, 1)


def add_client(broker: Broker, c: m.AddClient) -> Done:
    _need_admin(broker, c)
    check_client_id(c.target)
    twin = broker.rights.twin(c.target)
    if twin is not None and twin != c.target:
        raise Conflict(f"a client {twin!r} exists; ids differ in more than upper and lower case")
    if c.role not in (CLIENT, ADMIN):
        raise InvalidRequest(f"a role is {CLIENT} or {ADMIN}, not {c.role!r}")
    found = broker.rights.clients.get(c.target)
    if found is not None and not found.revoked_at and found.role != c.role:
        raise Conflict(
            f"{c.target} is enrolled already with the role {found.role}, not {c.role}; revoke it "
            "first"
        )
    if found is None or found.revoked_at:
        row = ClientRow(c.target, c.role, found.added_at if found else broker.now)
        broker.rights.add(row)
        broker.effects.changes.clients.append(row)
        broker.bindings_changed()
    if c.role == CLIENT:
        for suffix in SUFFIXES:
            name = f"{MAILBOX}{c.target}{suffix}"
            if name not in broker.queues:
                _add_queue(broker, name, c.target, ())
    return Done(c.correlation, 0 if found else 1)


def note(broker: Broker, c: m.Note) -> Done:
    _need_admin(broker, c)
    broker.effects.changes.notes.append(m.NewNote(c.correlation, c.kind, c.payload))
    return Done(c.correlation, 1)


def revoke_client(broker: Broker, c: m.RevokeClient) -> Done:
    _need_admin(broker, c)
    found = broker.rights.clients.get(c.target)
    if found is None:
        raise NotFound(f"there is no client {c.target!r}; see who is enrolled: cipherbox clients")
    if not found.revoked_at:
        row = ClientRow(found.name, found.role, found.added_at, broker.now, c.reason)
        broker.rights.add(row)
        broker.effects.changes.clients.append(row)
        broker.bindings_changed()
        set_contacts(broker, c.target, ContactLists())  # nothing is taken for it any more
    end_connections(
        broker, c.target, Revoked(f"the certificate of {c.target} was revoked: {c.reason}")
    )
    return Done(c.correlation, 1)


def end_connections(broker: Broker, target: str, why: CipherBoxError) -> None:
    """Every connection of a client ends."""
    for connection in sorted(n for n, client in broker.client_of.items() if client == target):
        disconnect(broker, connection)
        broker.effects.closed[connection] = why
