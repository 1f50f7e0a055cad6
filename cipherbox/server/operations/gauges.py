"""The current state of HQ as samples of the metrics in `ops.metrics`, read a few times a minute."""

from __future__ import annotations

import functools
import os
from collections import Counter
from heapq import nlargest

import cipherbox
from cipherbox import clock
from cipherbox.broker.listing import oldest
from cipherbox.ops.metrics import Sample
from cipherbox.portable import free_bytes, memory_bytes, open_files
from cipherbox.server.operations.status import HqStatus

_RECEIPTS = ".sys"  # suffix of the mailboxes for receipts
ROLES = ("client", "admin", "anonymous")
_DAY_S = 86_400.0


def samples(hq: HqStatus) -> list[Sample]:
    """Return the samples of all metrics."""
    return [
        *hq.engine.counts.samples(),
        *_people(hq),
        *_queues(hq),
        *_totals(hq),
        *_store(hq),
        *_itself(hq),
        *process_samples(),
    ]


def _people(hq: HqStatus) -> list[Sample]:
    roles = Counter(s.role for s in hq.connections)
    clients = {s.client for s in hq.connections if s.client}
    found = [Sample("cipherbox_connections", roles[role], (role,)) for role in ROLES]
    return [
        *found,
        Sample("cipherbox_connected_clients", len(clients)),
        Sample("cipherbox_greeting_connections", len(hq.unauthenticated)),
        Sample("cipherbox_turned_away_total", hq.unauthenticated.turned_away),
    ]


def _queues(hq: HqStatus) -> list[Sample]:
    queues, now = hq.engine.broker.state.queues, hq.clock_ms()
    full = [q for q in queues.values() if q.depth]
    depth, delivered = sum(q.depth for q in full), sum(len(q.unacknowledged) for q in full)
    ages = {q.name: max(0, now - (oldest(q) or now)) / 1000 for q in full}
    found = [
        Sample("cipherbox_queues", len(queues)),
        Sample("cipherbox_waiting_envelopes", depth - delivered),
        Sample("cipherbox_unacknowledged_envelopes", delivered),
        Sample("cipherbox_queued_bytes", sum(q.size for q in full)),
        Sample("cipherbox_oldest_age_seconds", max(ages.values(), default=0.0)),
        Sample(
            "cipherbox_receipts_outstanding_envelopes",
            sum(q.depth for q in full if q.name.startswith("box.") and q.name.endswith(_RECEIPTS)),
        ),
    ]
    for queue in nlargest(hq.config.metrics.queues, full, key=lambda q: (q.depth, q.name)):
        label = (queue.name,)
        found.append(Sample("cipherbox_queue_depth_envelopes", queue.depth, label))
        found.append(Sample("cipherbox_queue_oldest_age_seconds", ages[queue.name], label))
        found.append(Sample("cipherbox_queue_consumers", len(queue.consumers), label))
    return found


def _totals(hq: HqStatus) -> list[Sample]:
    found: list[Sample] = []
    for client, used in hq.engine.broker.state.totals.largest(hq.config.metrics.clients):
        found.append(Sample("cipherbox_client_bytes", used.size, (client,)))
        found.append(Sample("cipherbox_client_envelopes", used.envelopes, (client,)))
    return found


def _store(hq: HqStatus) -> list[Sample]:
    standbys = hq.standbys.rows()
    return [
        Sample("cipherbox_store_up", int(not hq.engine.outage)),
        Sample("cipherbox_disk_free_bytes", free_bytes(hq.config.directory)),
        Sample("cipherbox_standbys", len(standbys)),
        *(
            Sample("cipherbox_standby_waiting_seconds", round(one.seconds, 1), one[:2])
            for one in standbys
        ),
    ]


def _itself(hq: HqStatus) -> list[Sample]:
    found = [
        Sample("cipherbox_build_info", 1, (cipherbox.__version__,)),
        Sample("cipherbox_ready", int(not hq.unready())),
        Sample("cipherbox_draining", int(hq.engine.draining)),
        Sample("cipherbox_clock_doubted", int(bool(hq.trust.clock.doubt))),
        Sample("cipherbox_engine_commands", hq.engine.waiting),
        Sample("cipherbox_held_bytes", hq.memory.held),
        Sample("cipherbox_memory_short", int(hq.memory.closed)),
        Sample("cipherbox_cut_frames_total", hq.memory.cuts),
        Sample("cipherbox_throttled_requests_total", hq.budgets.throttled),
        Sample("cipherbox_held_most_bytes", max(hq.memory.shares().values(), default=0)),
        Sample("cipherbox_body_cache_bytes", hq.engine.bodies.size),
    ]
    for name, left_s in certificates(hq).items():
        found.append(
            Sample("cipherbox_certificate_remaining_days", round(left_s / _DAY_S, 3), (name,))
        )
    return found


def certificates(hq: HqStatus) -> dict[str, float]:
    """Return the seconds until HQ's certificates, its revocation list, and the first of an
    organization's lists expire.
    """
    trust, now = hq.trust, hq.trust.clock.now()
    ends = {
        "server": trust.server.not_valid_after_utc,
        "issuing": min(c.not_valid_after_utc for c in trust.material.chain),
        "root": trust.root.not_valid_after_utc,
    }
    if trust.crl_ends is not None:
        ends["crl"] = trust.crl_ends
    if hq.lists.ends is not None:
        ends["lists"] = hq.lists.ends
    return {name: (end - now).total_seconds() for name, end in ends.items()}


@functools.cache
def started_at() -> float:
    """Return when this was first called, the start of this process, in seconds since 1970."""
    return clock.now_s()


def process_samples() -> list[Sample]:
    """Return the samples of this process that the system provides."""
    cpu = os.times()
    found = [
        Sample("process_cpu_seconds_total", round(cpu.user + cpu.system, 3)),
        Sample("process_start_time_seconds", round(started_at(), 3)),
    ]
    if memory := memory_bytes():
        found.append(Sample("process_resident_memory_bytes", memory))
    if files := open_files():
        found += [Sample("process_open_fds", files[0]), Sample("process_max_fds", files[1])]
    return found
