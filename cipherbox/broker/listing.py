"""Lists of exchanges, queues, bindings, clients and grants, in pages sorted by name.

A client's lists leave out what it may not see.  Only the rows of the requested page are made: lists
may be long, and the one task that owns the core makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import nsmallest

from cipherbox.broker import model as m
from cipherbox.broker.clients import owned_queues
from cipherbox.broker.model import EVERYBODY, ListedRows
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.errors import InvalidRequest, NotFound

# the name first; names have no control characters, so a joined key sorts like the tuple
Key = tuple[str, ...]
Row = dict[str, object]
Lister = tuple[
    Callable[[BrokerState, str, bool], Iterator[Key]], Callable[[BrokerState, Key, bool], Row]
]
_SEPARATOR = "\x00"


def listing(state: BrokerState, c: m.List) -> ListedRows:
    """Return one page of rows; raise NotFound if a name is given that the client may not see."""
    lister = _LISTERS.get(c.what)
    if lister is None:
        raise InvalidRequest(
            f"unknown list {c.what!r}: must be one of {', '.join(sorted(_LISTERS))}"
        )
    keys, row = lister
    admin = state.rights.is_admin(c.client, c.connection)
    seen = (key for key in keys(state, c.client, admin) if not c.name or key[0] == c.name)
    most = state.limits.names_per_frame
    if c.after:
        seen = (key for key in seen if _SEPARATOR.join(key) > c.after)
    page = nsmallest(most + 1, seen)
    if c.name and not page and not c.after:
        raise NotFound(f"no {c.name!r} among the {c.what} that you may see")
    after = _SEPARATOR.join(page[most - 1]) if len(page) > most else ""
    return ListedRows(c.correlation, [row(state, key, admin) for key in page[:most]], after)


def _exchanges(state: BrokerState, client: str, admin: bool) -> Iterator[Key]:
    granted = state.rights.granted
    for name in state.exchanges:
        if admin or granted(client, "publish", name) or granted(client, "bind", name):
            yield (name,)


def _exchange(state: BrokerState, key: Key, admin: bool) -> Row:
    exchange = state.exchanges[key[0]]
    return {
        "name": exchange.name,
        "type": exchange.kind.name.lower(),
        "bindings": len(exchange.bindings),
    }


def _queues(state: BrokerState, client: str, admin: bool) -> Iterator[Key]:
    for name in state.queues if admin else state.reads.get(client, ()):
        yield (name,)


def _queue(state: BrokerState, key: Key, admin: bool) -> Row:
    q = state.queues[key[0]]
    return {
        "name": q.name,
        "owner": q.owner,
        "readers": sorted(q.readers),
        "waiting": q.depth - len(q.unacknowledged),
        "unacknowledged": len(q.unacknowledged),
        "bytes": q.size,
        "consumers": len(q.consumers),
        "oldest_at": oldest(q),
        "ttl_s": q.ttl_ms // 1000,
        "max_length": q.max_length,
    }


def oldest(queue: Queue) -> int:
    """Return when the oldest unacknowledged envelope was accepted, in ms; 0 if there is none."""
    heads = [out.entry.accepted_at for out in queue.unacknowledged.values()]
    if queue.ready:
        heads.append(queue.ready[0].accepted_at)
    return min(heads, default=0)


def _bindings(state: BrokerState, client: str, admin: bool) -> Iterator[Key]:
    for name in state.queues if admin else state.reads.get(client, ()):
        for exchange, routing_key in state.queues[name].bindings:
            yield (exchange, name, routing_key)


def _binding(state: BrokerState, key: Key, admin: bool) -> Row:
    exchange, queue, routing_key = key
    return {"name": exchange, "exchange": exchange, "queue": queue, "routing_key": routing_key}


def _clients(state: BrokerState, client: str, admin: bool) -> Iterator[Key]:
    for name, row in state.rights.clients.items():
        if admin or not row.revoked_at:
            yield (name,)


def _client(state: BrokerState, key: Key, admin: bool) -> Row:
    c = state.rights.clients[key[0]]
    if not admin:
        return {"name": c.name}
    return {
        "name": c.name,
        "role": c.role,
        "added_at": c.added_at,
        "revoked_at": c.revoked_at,
        "reason": c.reason,
        "connected": c.name in state.connections_of,
        "bytes": state.totals.of(c.name).size,
        "envelopes": state.totals.of(c.name).envelopes,
        "queues": owned_queues(state, c.name),
    }


def _grants(state: BrokerState, client: str, admin: bool) -> Iterator[Key]:
    for row in state.rights.grants:
        if admin or row[0] in (client, EVERYBODY):
            yield row


def _grant(state: BrokerState, key: Key, admin: bool) -> Row:
    return {"name": key[0], "right": key[1], "resource": key[2]}


_LISTERS: dict[str, Lister] = {
    "exchanges": (_exchanges, _exchange),
    "queues": (_queues, _queue),
    "bindings": (_bindings, _binding),
    "clients": (_clients, _client),
    "grants": (_grants, _grant),
}
