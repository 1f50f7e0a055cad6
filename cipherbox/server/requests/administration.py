"""What an admin asks of a running HQ beside its topology: figures, alerts, connections, reload,
drain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import orjson

from cipherbox.broker.clients import owned_queues
from cipherbox.broker.usage import BUNDLES, BYTES, CERTIFICATES, ENVELOPES, PREKEYS, QUEUES
from cipherbox.errors import GoingAway, NotFound
from cipherbox.ops.metrics import METRICS, Histogram, Sample
from cipherbox.server.operations.alerts import alerts
from cipherbox.server.operations.gauges import samples
from cipherbox.server.requests.inventory import inventory
from cipherbox.wire import frames as f

if TYPE_CHECKING:
    from cipherbox.server.connection.session import Session

Rows = list[dict[str, object]]
_REASON_CHARS = 200


def _row(sample: Sample) -> dict[str, object]:
    metric, value = METRICS[sample.name], sample.value
    row: dict[str, object] = {
        "name": sample.name,
        "labels": dict(zip(metric.labels, sample.labels, strict=True)),
    }
    if isinstance(value, Histogram):
        return {**row, "count": value.count, "sum": value.total}
    return {**row, "value": value}


async def _connections(s: Session) -> Rows:
    return s.hq.connections()


async def _pending(s: Session) -> Rows:
    return await s.hq.enrolments.pending()


async def _metrics(s: Session) -> Rows:
    return [_row(sample) for sample in samples(s.hq)]


async def _alerts(s: Session) -> Rows:
    return [one._asdict() for one in alerts(s.hq)]


async def _certificates(s: Session) -> Rows:
    return await inventory(s.hq)


async def _totals(s: Session) -> Rows:
    """What each client has at HQ, and how much it may have."""
    rights, totals = s.hq.engine.broker.state.rights, s.hq.engine.broker.state.totals
    kept = await s.hq.engine.in_store(s.hq.store.counts)
    found: Rows = []
    for name in sorted(rights.clients):
        used, (bundles, prekeys) = totals.of(name), kept.get(name, (0, 0))
        has = {
            BYTES: used.size,
            ENVELOPES: used.envelopes,
            QUEUES: owned_queues(s.hq.engine.broker.state, name),
            BUNDLES: bundles,
            CERTIFICATES: s.hq.trust.good_count(name),
            PREKEYS: prekeys,
        }
        row: dict[str, object] = {"name": name}
        for what, count in has.items():
            row |= {what: count, f"{what}_most": totals.most(name, what)}
        found.append(row)
    return found


# Lists that are not the core's.
LISTS: dict[str, Callable[[Session], Awaitable[Rows]]] = {
    "connections": _connections,
    "pending": _pending,
    "metrics": _metrics,
    "alerts": _alerts,
    "certificates": _certificates,
    "totals": _totals,
}


async def _kick(s: Session, x: f.Kick) -> object:
    s.need_admin()
    found = [
        o for o in s.hq.sessions if o.client == x.client_id and x.connection in (0, o.connection)
    ]
    if not found:
        which = (
            f"no connection {x.connection} of {x.client_id}"
            if x.connection
            else f"no connection of {x.client_id}"
        )
        raise NotFound(f"there is {which}; see who is there: cipherbox clients list --connected")
    reason = x.reason[:_REASON_CHARS] or "an admin cut this connection"
    for session in found:
        session.log("Connection cut by an admin", by=s.client, reason=reason)
        session.end(GoingAway(reason))
    s.hq.engine.counts.kicked_connections += len(found)
    return f.Ok(x.correlation, len(found))


async def _reload(s: Session, x: f.Reload) -> object:
    s.need_admin()
    s.log("Reload asked for")
    found = s.hq.reload()
    return f.Listing(x.correlation, "", orjson.dumps([one._asdict() for one in found], default=str))


async def _drain(s: Session, x: f.Drain) -> object:
    s.need_admin()
    if not x.begin:
        s.hq.drain.undo(s.client)
        return f.Ok(x.correlation, 0)
    return f.Ok(x.correlation, s.hq.drain.begin(x.most_s, s.client))


CALLS: dict[type, Callable[[Session, Any], Awaitable[object | None]]] = {
    f.Kick: _kick,
    f.Reload: _reload,
    f.Drain: _drain,
}
