"""Administration of a running HQ, other than its topology: metrics, alerts, connections, reload,
drain.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson

from cipherbox.broker import model as m
from cipherbox.broker.clients import owned_queues
from cipherbox.broker.usage import BUNDLES, BYTES, CERTIFICATES, ENVELOPES, PREKEYS, QUEUES
from cipherbox.errors import GoingAway, InvalidRequest, NotFound
from cipherbox.ops.metrics import METRICS, Histogram, Sample
from cipherbox.server.operations.alerts import alerts
from cipherbox.server.operations.gauges import samples
from cipherbox.server.requests.inventory import inventory
from cipherbox.server.requests.services import Handler, Requester, Services
from cipherbox.wire import frames as f

Rows = list[dict[str, object]]
_REASON_CHARS = 200
_DAY_MS = 86_400_000


def _row(sample: Sample) -> dict[str, object]:
    metric, value = METRICS[sample.name], sample.value
    row: dict[str, object] = {
        "name": sample.name,
        "labels": dict(zip(metric.labels, sample.labels, strict=True)),
    }
    if isinstance(value, Histogram):
        return {**row, "count": value.count, "sum": value.total}
    return {**row, "value": value}


async def _connections(hq: Services) -> Rows:
    return hq.connections.rows()


async def _pending(hq: Services) -> Rows:
    return await hq.enrolments.pending()


async def _metrics(hq: Services) -> Rows:
    return [_row(sample) for sample in samples(hq)]


async def _alerts(hq: Services) -> Rows:
    return [one._asdict() for one in alerts(hq)]


async def _certificates(hq: Services) -> Rows:
    return await inventory(hq)


async def _totals(hq: Services) -> Rows:
    """Return each client's usage and limits."""
    rights, totals = hq.engine.broker.state.rights, hq.engine.broker.state.totals
    kept = await hq.engine.in_store(hq.store.counts)
    found: Rows = []
    for name in sorted(rights.clients):
        used, (bundles, prekeys) = totals.of(name), kept.get(name, (0, 0))
        has = {
            BYTES: used.size,
            ENVELOPES: used.envelopes,
            QUEUES: owned_queues(hq.engine.broker.state, name),
            BUNDLES: bundles,
            CERTIFICATES: hq.trust.valid_count(name),
            PREKEYS: prekeys,
        }
        row: dict[str, object] = {"name": name}
        for what, count in has.items():
            row |= {what: count, f"{what}_most": totals.limit_of(name, what)}
        found.append(row)
    return found


async def _clock(hq: Services) -> Rows:
    """Return what HQ's clock shows, the time that HQ uses, and why the two differ."""
    row: dict[str, object] = {
        "name": "clock",
        "shows": hq.clock.wall_ms(),
        "used": hq.clock.now_ms(),
        "newest_entry": hq.audit.last_at,
        "watermark": hq.engine.broker.state.watermark,
    }
    return [{**row, "doubt": hq.clock.doubt.what, "remedy": hq.clock.doubt.remedy}]


# Lists that are not the broker's.
LISTS: dict[str, Callable[[Services], Awaitable[Rows]]] = {
    "connections": _connections,
    "pending": _pending,
    "metrics": _metrics,
    "alerts": _alerts,
    "certificates": _certificates,
    "totals": _totals,
    "clock": _clock,
}


async def _kick(hq: Services, s: Requester, x: f.Kick) -> object:
    s.need_admin()
    found = [
        o for o in hq.connections if o.client == x.client_id and x.connection in (0, o.connection)
    ]
    if not found:
        which = (
            f"no connection {x.connection} of {x.client_id}"
            if x.connection
            else f"no connection of {x.client_id}"
        )
        raise NotFound(which, remedy="see: cipherbox clients list --connected")
    reason = x.reason[:_REASON_CHARS] or "an admin closed this connection"
    await hq.engine.call(lambda n: m.KickClient(0, s.client, n, x.client_id, len(found), reason))
    for session in found:
        session.log("Connection closed by an admin", by=s.client, reason=reason)
        session.end(GoingAway(reason))
    hq.engine.counts.kicked_connections += len(found)
    return f.Ok(x.correlation, len(found))


async def _reload(hq: Services, s: Requester, x: f.Reload) -> object:
    s.need_admin()
    s.log("Reload requested")
    found = hq.reload()
    return f.Listing(x.correlation, "", orjson.dumps([one._asdict() for one in found], default=str))


async def _drain(hq: Services, s: Requester, x: f.Drain) -> object:
    s.need_admin()
    if not x.begin:
        hq.drain.undo(s.client)
        return f.Ok(x.correlation, 0)
    return f.Ok(x.correlation, hq.drain.begin(x.most_s, s.client))


async def _confirm_clock(hq: Services, s: Requester, x: f.ConfirmClock) -> object:
    s.need_admin()
    await hq.confirm_clock(s.client)
    s.log("The clock was confirmed by an admin")
    return f.Ok(x.correlation, 1)


async def _set_watermark(hq: Services, s: Requester, x: f.SetWatermark) -> object:
    s.need_admin()
    hq.clock.require()
    now, before = hq.clock.now_ms(), hq.engine.broker.state.watermark
    days = hq.config.retention.metadata_days
    wanted = x.watermark or (now - days * _DAY_MS if days else 1)
    if wanted > now:
        raise InvalidRequest("the time is in the future", remedy="name one that has passed")
    await hq.engine.call(lambda n: m.SetWatermark(0, s.client, n, wanted, before))
    s.log("The watermark was set by an admin", was=before, now=wanted)
    return f.Ok(x.correlation, 1)


CALLS: dict[type, Handler] = {
    f.ConfirmClock: _confirm_clock,
    f.SetWatermark: _set_watermark,
    f.Kick: _kick,
    f.Reload: _reload,
    f.Drain: _drain,
}
