"""The engine's counters, updated once per batch after its commit."""

from __future__ import annotations

import time
from collections.abc import Sequence

from cipherbox.broker import model as m
from cipherbox.broker.model import AnyCommand, Effects, Entry
from cipherbox.ops.metrics import Counts

# Kinds of requests that have a histogram of their own; other requests are `manage`.
_KINDS: dict[type, str] = {
    m.Publish: "publish",
    m.Fetch: "fetch",
    m.Ack: "ack",
    m.Nack: "nack",
    m.Consume: "consume",
    m.Resolve: "resolve",
}


def count_batch(counts: Counts, effects: Effects) -> None:
    """Count a committed batch."""
    changes = effects.changes
    if changes.envelopes:
        counts.published_envelopes += len(changes.envelopes)
        counts.published_messages += sum(e.incoming.count for e in changes.envelopes)
        counts.published_bytes += sum(e.incoming.size for e in changes.envelopes)
    for run in effects.deliveries:
        count_delivered(counts, run.entries)
    counts.acked_envelopes += sum(mark.last - mark.first + 1 for mark in changes.acked)
    counts.dead_lettered_envelopes += len(changes.dead)
    for one in changes.closed_dead_letters:
        counts.settled[one.how] += 1


def count_delivered(counts: Counts, entries: Sequence[Entry]) -> None:
    """Count entries delivered to one client."""
    counts.delivered_envelopes += len(entries)
    if entries and (entries[0].attempts > 1 or entries[-1].attempts > 1):
        counts.redelivered_envelopes += sum(entry.attempts > 1 for entry in entries)


def count_requests(counts: Counts, batch: Sequence[AnyCommand], times: Sequence[float]) -> None:
    """Observe the latency of a batch; ``times``: when its commands were queued (`perf_counter`)."""
    now = time.perf_counter()
    for command, queued_at in zip(batch, times, strict=True):
        if getattr(command, "connection", 0):
            kind = _KINDS.get(type(command), "manage" if isinstance(command, m.Command) else "")
            if kind:
                counts.requests[kind].observe(now - queued_at)
