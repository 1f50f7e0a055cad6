"""Routing: find the queues of an envelope, such that every recipient gets it through exactly one.

An envelope goes only into queues whose readers are all among its recipients: no reader gets what it
cannot open.  Targets are cached until rights or bindings change.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from cipherbox.broker.model import Incoming, Routed
from cipherbox.broker.queues import Queue
from cipherbox.broker.rights import MAILBOX
from cipherbox.broker.state import BrokerState, Targets
from cipherbox.errors import (
    AmbiguousRoute,
    Forbidden,
    NoRoute,
    NotFound,
    RecipientRefuses,
    RecipientRevoked,
    RouteChanged,
    UnknownRecipient,
    names_detail,
)

MAILBOX_KEYS = {"": "", ".bulk": ".bulk", ".sys": ".sys"}
Route = tuple[tuple[str, tuple[str, ...]], ...]  # (queue, readers), sorted by name
# cached targets, and the most recipients of each: together they bound the memory
_CACHED_TARGETS = 4096
CACHED_RECIPIENTS = 16


@attrs.define
class RouteDetail(Exception):
    """The route in the detail of a route-changed error; the session encodes it."""

    routed: Routed


def find_targets(state: BrokerState, connection: int, item: Incoming) -> Targets:
    queues, unrouted = _choose(state, connection, item)
    kept = [queue for queue in queues if state.rights.accepts(queue, item.sender)]
    refused = len(kept) < len(queues)
    if refused:
        queues, unrouted = _without_refusing(item, queues, kept, unrouted)
    targets = (tuple(queues), tuple(q.name for q in queues), unrouted)
    if not unrouted and not refused and len(item.recipients) <= CACHED_RECIPIENTS:
        if len(state.targets) >= _CACHED_TARGETS:
            state.targets.clear()
        state.targets[(item.sender, item.exchange, item.routing_key, item.recipients)] = targets
    return targets


def _choose(
    state: BrokerState, connection: int, item: Incoming
) -> tuple[list[Queue], tuple[str, ...]]:
    if not item.exchange and item.routing_key in MAILBOX_KEYS:
        return _mailboxes(state, item)
    route = resolve(state, connection, item.sender, item.exchange, item.routing_key)
    recipients = set(item.recipients)
    chosen: list[Queue] = []
    covered: dict[str, str] = {}
    for name, readers in route:
        if not recipients.issuperset(readers):
            raise route_changed(state, route)
        twice = [r for r in readers if r in covered]
        if len(twice) == len(readers):
            continue
        if twice:
            raise AmbiguousRoute(
                f"{twice[0]} would receive the envelope through both {covered[twice[0]]} and {name}"
            )
        covered.update(dict.fromkeys(readers, name))
        chosen.append(state.queues[name])
    unrouted = tuple(sorted(recipients.difference(covered)))
    if unrouted and not item.partial:
        raise route_changed(state, route)
    return chosen, unrouted


def _mailboxes(state: BrokerState, item: Incoming) -> tuple[list[Queue], tuple[str, ...]]:
    suffix = MAILBOX_KEYS[item.routing_key]
    found, unrouted = [], []
    revoked = [client for client in item.recipients if state.rights.revoked(client)]
    if revoked:
        what = f"recipients with a revoked certificate: {', '.join(revoked)}"
        raise RecipientRevoked(what, names_detail(revoked))
    for client in item.recipients:
        queue = state.queues.get(f"{MAILBOX}{client}{suffix}")
        if queue is None:
            unrouted.append(client)
        else:
            found.append(queue)
    if unrouted and (not item.partial or not found):
        raise UnknownRecipient(
            f"HQ has no mailbox for {', '.join(unrouted)}", names_detail(unrouted)
        )
    return found, tuple(unrouted)


def _without_refusing(
    item: Incoming, queues: list[Queue], kept: list[Queue], unrouted: tuple[str, ...]
) -> tuple[list[Queue], tuple[str, ...]]:
    """Return the queues and the unrouted recipients if only ``kept`` of the queues have a reader
    that accepts mail from the sender.

    Raise RecipientRefuses, naming those that do not, unless the publish is partial and reaches
    others.  A sender to a route cannot leave out a reader, so one reader's lists must not keep the
    envelope from the others: there the inboxes decide.
    """
    routed = bool(item.exchange) or item.routing_key not in MAILBOX_KEYS
    if kept and routed and not item.partial:
        return queues, unrouted
    covered = {reader for queue in kept for reader in queue.all_readers}
    refusing = sorted(set(item.recipients).difference(covered, unrouted))
    if not item.partial or not kept:
        verb = "takes" if len(refusing) == 1 else "take"
        raise RecipientRefuses(
            f"{', '.join(refusing)} {verb} no mail from {item.sender}",
            names_detail(refusing),
        )
    return kept, tuple(sorted({*unrouted, *refusing}))


def resolve(
    state: BrokerState, connection: int, client: str, exchange: str, routing_key: str
) -> Route:
    """Return the queues of a route with their readers, leaving out queues without readers.

    Raise NotFound for an unknown exchange, Forbidden without the right to publish, NoRoute if no
    queue has a reader.
    """
    rights = state.rights
    names: tuple[str, ...]
    if exchange:
        found = state.exchanges.get(exchange)
        if found is None:
            raise NotFound(f"no exchange {exchange!r}", remedy="see: cipherbox exchange list")
        if not rights.may_publish(client, connection, exchange):
            raise Forbidden(
                f"{client} may not publish to exchange {exchange!r}",
                remedy=f"an admin can grant it: cipherbox grant {client} publish {exchange}",
            )
        names = found.route(routing_key)
    else:
        queue = state.queues.get(routing_key)
        mine = queue is not None and (queue.is_reader(client) or queue.name.startswith(MAILBOX))
        if queue is None or not (mine or rights.may_publish(client, connection, routing_key)):
            raise NotFound(
                f"no queue {routing_key!r} that you may publish to",
                remedy="see: cipherbox queue list",
            )
        names = (routing_key,)
    route = tuple((n, r) for n in names if (r := rights.readers(state.queues[n])))
    if not route:
        route_name = (
            f"exchange {exchange!r} with key {routing_key!r}"
            if exchange
            else f"queue {routing_key!r}"
        )
        raise NoRoute(f"no queue with a reader is bound to {route_name}")
    return route


def route_changed(state: BrokerState, route: Route) -> RouteChanged:
    readers = sorted({r for _, rs in route for r in rs})
    error = RouteChanged(
        f"the readers of this route are {', '.join(readers)}; the envelope was sealed for others"
    )
    error.__cause__ = RouteDetail(Routed(0, state.bindings_version, route))
    return error


def unreached(item: Incoming, queues: Iterable[Queue]) -> tuple[str, ...]:
    covered = {reader for queue in queues for reader in queue.all_readers}
    return tuple(sorted(set(item.recipients) - covered))
