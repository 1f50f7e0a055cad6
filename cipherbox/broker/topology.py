"""Exchanges, queues, bindings, grants and clients: declare, delete, grant, revoke.

Declaring is idempotent; declaring something different under an existing name is a Conflict.
Deleting an exchange or a queue deletes its bindings and grants, so that a later one of that name
starts with neither.  The sequence numbers of a new queue begin above those of all deleted queues:
no (queue, seq) is ever reused, so a late retry of an old ack cannot hit a new envelope.
"""

from __future__ import annotations

from typing import TypeVar

from cipherbox.broker import model as m
from cipherbox.broker.clients import owned_queues, set_contacts
from cipherbox.broker.consume import disconnect, end_consumer, end_reader, want_page
from cipherbox.broker.dead_letters import dead_letter, overflow
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
from cipherbox.broker.queues import PurgeInProgress, Queue
from cipherbox.broker.rights import MAILBOX, RIGHTS, no_queue
from cipherbox.broker.state import BrokerState
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

SUFFIXES = ("", ".bulk", ".sys")
T = TypeVar("T")


def _put(row: T, added: list[T], dropped: list[T]) -> None:
    """Record an addition; if this batch dropped the row before, keep it instead."""
    if row in dropped:
        dropped.remove(row)
    else:
        added.append(row)


def _drop(row: T, added: list[T], dropped: list[T]) -> None:
    """Record a removal; if this batch added the row before, forget both."""
    if row in added:
        added.remove(row)
    else:
        dropped.append(row)


def _admin(state: BrokerState, c: m.Command) -> bool:
    return state.rights.is_admin(c.client, c.connection)


def _need_admin(state: BrokerState, c: m.Command) -> None:
    if not _admin(state, c):
        raise Forbidden("only an admin may do this")


def declare_exchange(state: BrokerState, c: m.DeclareExchange) -> Done:
    check_name(c.name, "exchange name")
    if c.type not in tuple(ExchangeType):
        raise InvalidRequest(f"unknown exchange type {c.type}: 0 is direct, 1 fanout, 2 topic")
    found = state.exchanges.get(c.name)
    if found is not None:
        if found.kind != c.type:
            raise Conflict(
                f"exchange {c.name!r} already exists with the type {found.kind.name.lower()}, not "
                f"{ExchangeType(c.type).name.lower()}; a type cannot be changed"
            )
        return Done(c.correlation, 0)
    if not (_admin(state, c) or state.rights.granted(c.client, "declare", "")):
        raise Forbidden(
            f"{c.client} may not declare exchanges",
            remedy=f"an admin can grant it: cipherbox grant {c.client} declare",
        )
    if len(state.exchanges) >= state.limits.exchanges:
        raise InvalidRequest(f"HQ has {state.limits.exchanges} exchanges, the most allowed")
    state.exchanges[c.name] = Exchange(c.name, ExchangeType(c.type))
    changes = state.effects.changes
    changes.exchanges.append((c.name, int(c.type)))
    if c.name in changes.dropped_exchanges:
        changes.dropped_exchanges.remove(c.name)
    own = (c.client, "bind", c.name)
    if not _admin(state, c) and own not in state.rights.grants:
        state.rights.grants.add(own)
        _put(own, changes.grants, changes.dropped_grants)
        state.rights_changed()
    return Done(c.correlation, 1)


def _exchange(state: BrokerState, name: str) -> Exchange:
    found = state.exchanges.get(name)
    if found is None:
        raise NotFound(f"no exchange {name!r}", remedy="see: cipherbox exchange list")
    return found


def delete_exchange(state: BrokerState, c: m.DeleteExchange) -> Done:
    found = _exchange(state, c.name)
    _need_admin(state, c)
    for queue, key in sorted(found.bindings):
        _unbind(state, found, queue, key)
    changes = state.effects.changes
    changes.exchanges = [e for e in changes.exchanges if e[0] != c.name]
    changes.dropped_exchanges.append(c.name)
    del state.exchanges[c.name]
    _drop_grants(state, c.name)
    state.bindings_changed()
    return Done(c.correlation, 1)


def _drop_grants(state: BrokerState, name: str) -> None:
    """Delete the grants on a deleted object, unless an exchange or queue of that name remains."""
    if name in state.exchanges or name in state.queues:
        return
    changes = state.effects.changes
    for row in sorted(g for g in state.rights.grants if g[2] == name):
        state.rights.grants.discard(row)
        _drop(row, changes.grants, changes.dropped_grants)


def declare_queue(state: BrokerState, c: m.DeclareQueue) -> Done:
    check_name(c.name, "queue name")
    if c.name.startswith(MAILBOX):
        raise InvalidRequest(f"queue names beginning with {MAILBOX!r} are reserved for mailboxes")
    admin = _admin(state, c)
    owner = c.owner if c.connection == 0 else c.owner or c.client
    for client in {owner, *c.readers} - {""}:
        if client not in state.rights.clients:
            raise NotFound(f"no client {client!r}", remedy="see: cipherbox clients list")
    if owner != c.client and not admin:
        raise Forbidden("only an admin may name another owner")
    found = state.queues.get(c.name)
    if found is not None:
        if not (admin or c.client == found.owner):
            raise Conflict(
                f"a queue {c.name!r} already exists and is not yours", remedy="choose another name"
            )
        if found.owner != owner:
            raise Conflict(
                f"queue {c.name!r} already exists with the owner {found.owner or 'HQ'}, not "
                f"{owner or 'HQ'}"
            )
        if more := sorted(set(c.readers) - {owner} - found.readers):
            raise Conflict(
                f"queue {c.name!r} already exists without the reader {', '.join(more)}",
                remedy=f"an admin can grant it: cipherbox grant {more[0]} read {c.name}",
            )
        return Done(c.correlation, int(_limit(state, found, c)))
    owned = owned_queues(state, owner)
    if not admin and owned >= (most := state.totals.limit_of(owner, QUEUES)):
        raise LimitReached(f"{owner} owns {owned} queues, of at most {most}")
    if len(state.queues) >= state.limits.queues:
        raise InvalidRequest(f"HQ has {state.limits.queues} queues, the most allowed")
    if set(c.readers) - {owner} and not admin:
        raise Forbidden("only an admin may name other readers of a queue")
    _add_queue(state, c.name, owner, tuple(sorted(set(c.readers) - {owner})))
    _limit(state, state.queues[c.name], c)
    return Done(c.correlation, 1)


def _limit(state: BrokerState, queue: Queue, c: m.DeclareQueue) -> bool:
    """Set a queue's limits; return whether they changed."""
    ttl_ms = queue.ttl_ms if c.ttl_s == KEEP else c.ttl_s * 1000
    length = queue.max_length if c.max_length == KEEP else c.max_length
    if (ttl_ms, length) == (queue.ttl_ms, queue.max_length):
        return False
    queue.ttl_ms, queue.max_length = ttl_ms, length
    queue.limits_changed()
    state.effects.changes.queues.append(row_of(queue))
    if length:
        overflow(state, queue)
    return True


def row_of(queue: Queue) -> QueueRow:
    """Return a queue's row for the store."""
    readers = tuple(sorted(queue.readers))
    return QueueRow(queue.name, queue.owner, readers, queue.ttl_ms // 1000, queue.max_length)


def _add_queue(state: BrokerState, name: str, owner: str, readers: tuple[str, ...]) -> None:
    first = state.first_seq
    queue = state.queues[name] = Queue(
        name, owner, readers, state.totals, Counters(name, 0, 0, first, first)
    )
    for client in queue.all_readers:
        state.reads.setdefault(client, set()).add(name)
    changes = state.effects.changes
    changes.queues.append(QueueRow(name, owner, readers))
    if name in changes.dropped_queues:
        changes.dropped_queues.remove(name)
    state.touched.add(queue)


def _own_queue(state: BrokerState, c: m.Command, name: str) -> Queue:
    queue = state.queues.get(name)
    if queue is None or not (_admin(state, c) or queue.owner == c.client):
        raise no_queue(name)
    return queue


def delete_queue(state: BrokerState, c: m.DeleteQueue) -> Done:
    queue = _own_queue(state, c, c.name)
    if c.name.startswith(MAILBOX):
        raise InvalidRequest("a mailbox cannot be deleted while HQ knows its client")
    if queue.depth:
        raise Conflict(
            f"queue {c.name!r} has {queue.depth} unacknowledged envelopes and cannot be deleted"
        )
    dead = sum(used.envelopes for used in queue.used.values())
    # otherwise a client could fill the disk by declaring, filling and deleting queues
    if dead and not _admin(state, c):
        raise Conflict(
            f"queue {c.name!r} has {dead} dead letters",
            remedy="redrive them first, or let an admin discard them",
        )
    for exchange, key in sorted(queue.bindings):
        _unbind(state, state.exchanges[exchange], c.name, key)
    for consumer in list(queue.consumers):
        end_consumer(state, consumer)
    for client in queue.all_readers:
        state.reads[client].discard(c.name)
    del state.queues[c.name]
    _drop_grants(state, c.name)
    state.remove_queue(queue)
    state.effects.changes.dropped_queues.append(c.name)
    state.bindings_changed()
    return Done(c.correlation, 1)


def bind(state: BrokerState, c: m.Bind) -> Done:
    exchange = _exchange(state, c.exchange)
    queue = _own_queue(state, c, c.queue)
    if c.routing_key or exchange.kind is not ExchangeType.FANOUT:
        check_name(c.routing_key, "routing key")
    if not (_admin(state, c) or state.rights.granted(c.client, "bind", c.exchange)):
        raise Forbidden(
            f"{c.client} may not bind queues to exchange {c.exchange!r}",
            remedy=f"an admin can grant it: cipherbox grant {c.client} bind {c.exchange}",
        )
    if (c.exchange, c.routing_key) in queue.bindings:
        return Done(c.correlation, 0)
    if len(queue.bindings) >= state.limits.bindings_per_queue:
        raise InvalidRequest(
            f"queue {queue.name!r} has {state.limits.bindings_per_queue} bindings, the most allowed"
        )
    exchange.bind(queue.name, c.routing_key)
    queue.bindings.add((c.exchange, c.routing_key))
    changes = state.effects.changes
    _put((c.exchange, c.queue, c.routing_key), changes.bindings, changes.dropped_bindings)
    state.bindings_changed()
    return Done(c.correlation, 1)


def unbind(state: BrokerState, c: m.Unbind) -> Done:
    exchange = _exchange(state, c.exchange)
    queue = _own_queue(state, c, c.queue)
    if (queue.name, c.routing_key) not in exchange.bindings:
        raise NotFound(f"{c.queue!r} is not bound to {c.exchange!r} with key {c.routing_key!r}")
    _unbind(state, exchange, queue.name, c.routing_key)
    state.bindings_changed()
    return Done(c.correlation, 1)


def _unbind(state: BrokerState, exchange: Exchange, queue: str, routing_key: str) -> None:
    exchange.unbind(queue, routing_key)
    state.queues[queue].bindings.discard((exchange.name, routing_key))
    changes = state.effects.changes
    _drop((exchange.name, queue, routing_key), changes.bindings, changes.dropped_bindings)


def purge(state: BrokerState, c: m.Purge) -> None:
    """Dead-letter everything in a queue, delivered or not, page by page, and answer at the end."""
    _need_admin(state, c)
    queue = state.queues.get(c.queue)
    if queue is None:
        raise no_queue(c.queue)
    queue.requeue([o.entry for o in queue.unacknowledged.values()])
    queue.unacknowledged.clear()
    queue.purges.append(PurgeInProgress(c.connection, c.correlation, c.client, queue.next - 1, 0))
    continue_purges(state, queue)
    state.dispatchable.add(queue)


def continue_purges(state: BrokerState, queue: Queue) -> None:
    """Continue purges as far as the queue is in memory."""
    pending, queue.purges = queue.purges, []
    for purging in pending:
        done = purging.done
        while queue.ready and queue.ready[0].seq <= purging.up_to:
            dead_letter(
                state,
                queue,
                queue.ready.popleft(),
                f"purged by {purging.client or 'HQ'}",
                purging.client,
            )
            done += 1
        if queue.loaded_to >= purging.up_to:
            answers = state.effects.answers.setdefault(purging.connection, [])
            answers.append(Done(purging.correlation, done))
        else:
            queue.purges.append(purging._replace(done=done))
    want_page(state, queue)


def grant(state: BrokerState, c: m.Grant) -> Done:
    _need_admin(state, c)
    if c.right not in RIGHTS:
        raise InvalidRequest(
            f"unknown right {c.right!r}: must be one of {', '.join(sorted(RIGHTS))}"
        )
    if c.target != EVERYBODY and c.target not in state.rights.clients:
        raise NotFound(f"no client {c.target!r}", remedy="see: cipherbox clients list")
    if c.right == "read":
        return _grant_read(state, c)
    if c.right in ("declare", "admin") and (c.resource or c.target == EVERYBODY):
        raise InvalidRequest(
            f"the right {c.right!r} is granted to a single client, without an exchange or queue"
        )
    known = c.resource in state.exchanges or c.resource in state.queues
    if c.right in ("publish", "bind") and c.give and not known:
        raise NotFound(f"no exchange or queue {c.resource!r}")
    row = (c.target, c.right, c.resource)
    changes = state.effects.changes
    if c.give == (row in state.rights.grants):
        return Done(c.correlation, 0)
    if c.give:
        state.rights.grants.add(row)
        _put(row, changes.grants, changes.dropped_grants)
    else:
        state.rights.grants.discard(row)
        _drop(row, changes.grants, changes.dropped_grants)
    state.rights_changed()
    return Done(c.correlation, 1)


def _grant_read(state: BrokerState, c: m.Grant) -> Done:
    queue = state.queues.get(c.resource)
    if queue is None:
        raise no_queue(c.resource)
    if c.target == EVERYBODY or c.resource.startswith(MAILBOX):
        raise InvalidRequest(
            "the right to read is granted to a single client, and not for mailboxes"
        )
    if c.give == (c.target in queue.readers):
        return Done(c.correlation, 0)
    if c.give:
        queue.readers.add(c.target)
        state.reads.setdefault(c.target, set()).add(queue.name)
    else:
        queue.readers.discard(c.target)
        if not queue.is_reader(c.target):
            state.reads[c.target].discard(queue.name)
            end_reader(state, queue, c.target)
    state.effects.changes.queues.append(row_of(queue))
    state.bindings_changed()
    return Done(c.correlation, 1)


def add_client(state: BrokerState, c: m.AddClient) -> Done:
    _need_admin(state, c)
    check_client_id(c.target)
    twin = state.rights.case_twin(c.target)
    if twin is not None and twin != c.target:
        raise Conflict(f"a client {twin!r} exists, and ids must differ in more than case")
    if c.role not in (CLIENT, ADMIN):
        raise InvalidRequest(f"invalid role {c.role!r}: must be {CLIENT} or {ADMIN}")
    found = state.rights.clients.get(c.target)
    if found is not None and not found.revoked_at and found.role != c.role:
        raise Conflict(
            f"{c.target} is already enrolled with the role {found.role}, not {c.role}",
            remedy="revoke it first",
        )
    if found is None or found.revoked_at:
        row = ClientRow(c.target, c.role, found.added_at if found else state.now)
        state.rights.add(row)
        state.effects.changes.clients.append(row)
        state.bindings_changed()
    if c.role == CLIENT:
        for suffix in SUFFIXES:
            name = f"{MAILBOX}{c.target}{suffix}"
            if name not in state.queues:
                _add_queue(state, name, c.target, ())
    return Done(c.correlation, 0 if found else 1)


def note(state: BrokerState, c: m.Note) -> Done:
    _need_admin(state, c)
    state.effects.changes.notes.append(m.NewNote(c.correlation, c.kind, c.payload))
    return Done(c.correlation, 1)


def revoke_client(state: BrokerState, c: m.RevokeClient) -> Done:
    _need_admin(state, c)
    found = state.rights.clients.get(c.target)
    if found is None:
        raise NotFound(f"no client {c.target!r}", remedy="see: cipherbox clients list")
    if not found.revoked_at:
        row = ClientRow(found.name, found.role, found.added_at, state.now, c.reason)
        state.rights.add(row)
        state.effects.changes.clients.append(row)
        state.bindings_changed()
        set_contacts(state, c.target, ContactLists())  # it accepts no mail any more
    end_connections(
        state, c.target, Revoked(f"the certificate of {c.target} was revoked: {c.reason}")
    )
    return Done(c.correlation, 1)


def end_connections(state: BrokerState, target: str, why: CipherBoxError) -> None:
    """Close all connections of a client."""
    for connection in sorted(n for n, client in state.client_of.items() if client == target):
        disconnect(state, connection)
        state.effects.closed[connection] = why
