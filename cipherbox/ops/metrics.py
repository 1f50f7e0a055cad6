"""HQ's metrics in one table: name, kind, labels, help.

The metrics port, `cipherbox top` and the manual page `metrics` all come from this table.  Names are
those of the field:  `cipherbox_` first, the base unit at the end, `_total` for what only rises.
`process_...` are the names every exporter has for its own process.  Values are plain numbers, added
to once for each batch; `prometheus` writes them out.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

COUNTER, GAUGE, HISTOGRAM = "counter", "gauge", "histogram"


class Metric(NamedTuple):
    """One row of the table."""

    kind: str
    help: str
    labels: tuple[str, ...] = ()


class Histogram:
    """A histogram: how often a value was below each bound; cheap enough for the engine's loop."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self.counts)


class Sample(NamedTuple):
    """A value of one metric, with its labels in the table's order."""

    name: str
    value: float | Histogram
    labels: tuple[str, ...] = ()


METRICS: dict[str, Metric] = {
    # Readiness and connections.
    "cipherbox_build_info": Metric(
        GAUGE, "Always 1; the label is the running version.", ("version",)
    ),
    "cipherbox_ready": Metric(
        GAUGE, "1 while HQ accepts everything, as /readyz reports; otherwise 0."
    ),
    "cipherbox_draining": Metric(
        GAUGE, "1 while HQ accepts no new publishes and delivers waiting envelopes; otherwise 0."
    ),
    "cipherbox_clock_doubted": Metric(
        GAUGE, "1 while HQ's clock is in doubt and publishes are refused; otherwise 0."
    ),
    "cipherbox_connected_clients": Metric(GAUGE, "Clients with at least one connection."),
    "cipherbox_connections": Metric(
        GAUGE, "Current connections, by role of the client.", ("role",)
    ),
    "cipherbox_connections_opened_total": Metric(COUNTER, "Connections opened since HQ started."),
    "cipherbox_handshakes_failed_total": Metric(
        COUNTER, "Connections that failed during TLS or HELLO."
    ),
    "cipherbox_greeting_connections": Metric(GAUGE, "Connections that have not sent HELLO yet."),
    "cipherbox_turned_away_total": Metric(
        COUNTER,
        "Connections closed before HELLO because their address, or HQ, had too many.",
    ),
    "cipherbox_kicked_connections_total": Metric(COUNTER, "Connections closed by an admin."),
    # The wire.
    "cipherbox_frames_received_total": Metric(COUNTER, "Frames received from clients."),
    "cipherbox_frames_sent_total": Metric(COUNTER, "Frames sent to clients."),
    "cipherbox_received_bytes_total": Metric(COUNTER, "Bytes of frames received, without TLS."),
    "cipherbox_sent_bytes_total": Metric(COUNTER, "Bytes of frames sent, without TLS."),
    "cipherbox_request_duration_seconds": Metric(
        HISTOGRAM,
        "Time from reading a request to its response; for a publish, until it is on "
        "stable storage.",
        ("request",),
    ),
    "cipherbox_throttled_requests_total": Metric(
        COUNTER, "Requests refused because their client had used up its budget."
    ),
    # Messages.  HQ counts deliveries and acks by envelope, not by message.
    "cipherbox_published_messages_total": Metric(COUNTER, "Messages stored and confirmed."),
    "cipherbox_published_envelopes_total": Metric(
        COUNTER, "Envelopes stored and confirmed; an envelope contains many messages."
    ),
    "cipherbox_published_bytes_total": Metric(
        COUNTER, "Bytes of the envelopes stored and confirmed."
    ),
    "cipherbox_delivered_envelopes_total": Metric(
        COUNTER, "Envelopes delivered to consumers, including redeliveries."
    ),
    "cipherbox_redelivered_envelopes_total": Metric(
        COUNTER, "Envelopes delivered again after their first delivery."
    ),
    "cipherbox_acked_envelopes_total": Metric(
        COUNTER, "Envelopes acknowledged by their recipients."
    ),
    "cipherbox_dead_lettered_envelopes_total": Metric(
        COUNTER, "Envelopes that became dead letters."
    ),
    "cipherbox_settled_dead_letters_total": Metric(
        COUNTER, "Dead letters redriven or discarded.", ("how",)
    ),
    # Queues.
    "cipherbox_queues": Metric(GAUGE, "Number of queues."),
    "cipherbox_queue_depth_envelopes": Metric(
        GAUGE,
        "Envelopes in a queue, waiting or unacknowledged, for the deepest non-empty queues.",
        ("queue",),
    ),
    "cipherbox_queue_oldest_age_seconds": Metric(
        GAUGE, "Age of the oldest envelope in that queue.", ("queue",)
    ),
    "cipherbox_queue_consumers": Metric(GAUGE, "Consumers of that queue.", ("queue",)),
    "cipherbox_waiting_envelopes": Metric(GAUGE, "Envelopes waiting, in all queues."),
    "cipherbox_unacknowledged_envelopes": Metric(
        GAUGE, "Envelopes delivered and unacknowledged, in all queues."
    ),
    "cipherbox_queued_bytes": Metric(GAUGE, "Bytes of envelopes in all queues."),
    "cipherbox_oldest_age_seconds": Metric(GAUGE, "Age of the oldest envelope in all queues."),
    "cipherbox_receipts_outstanding_envelopes": Metric(
        GAUGE,
        "Envelopes with receipts that senders have not fetched yet. HQ cannot see which"
        " messages have no receipt.",
    ),
    # What clients have sent: waiting, delivered or kept as dead letters, in each queue separately.
    "cipherbox_client_bytes": Metric(
        GAUGE, "Bytes that a client has at HQ, for the clients with the most.", ("client",)
    ),
    "cipherbox_client_envelopes": Metric(GAUGE, "Envelopes that client has at HQ.", ("client",)),
    # The store.
    "cipherbox_store_up": Metric(GAUGE, "1 while the store responds; 0 while HQ waits for it."),
    "cipherbox_commit_duration_seconds": Metric(
        HISTOGRAM, "Duration of a commit of the store, a batch of many requests."
    ),
    "cipherbox_sync_duration_seconds": Metric(
        HISTOGRAM,
        "The part of a commit spent waiting for stable storage: the database's COMMIT "
        "and the spool's files.",
    ),
    "cipherbox_store_failures_total": Metric(
        COUNTER, "Store failures after which HQ reloaded its state."
    ),
    "cipherbox_disk_free_bytes": Metric(
        GAUGE, "Free bytes on the file system of HQ's data directory."
    ),
    "cipherbox_standbys": Metric(
        GAUGE, "HQs that wait to take over this one's database (PostgreSQL)."
    ),
    "cipherbox_standby_waiting_seconds": Metric(
        GAUGE, "How long this HQ has seen that standby wait.", ("standby", "address")
    ),
    # HQ itself.
    "cipherbox_engine_commands": Metric(GAUGE, "Requests waiting for the engine."),
    "cipherbox_held_bytes": Metric(
        GAUGE, "Bytes of envelopes held in memory for all clients (memory_high_bytes)."
    ),
    "cipherbox_memory_short": Metric(
        GAUGE,
        "1 while publishers wait because HQ's memory is above its high water mark; otherwise 0.",
    ),
    "cipherbox_cut_frames_total": Metric(
        COUNTER,
        "Large frames whose connections were closed because memory was short and they "
        "were slowest.",
    ),
    "cipherbox_held_most_bytes": Metric(
        GAUGE, "Of these, the bytes held for the client with the most."
    ),
    "cipherbox_body_cache_bytes": Metric(
        GAUGE, "Bytes of envelopes kept in memory for consumers that keep up."
    ),
    "cipherbox_certificate_remaining_days": Metric(
        GAUGE,
        "Days until expiry: server, issuing, root, crl (the revocation list), or lists "
        "(an organization's first to expire); negative if expired.",
        ("certificate",),
    ),
    "process_resident_memory_bytes": Metric(GAUGE, "Resident memory of HQ's process."),
    "process_cpu_seconds_total": Metric(COUNTER, "CPU time of HQ's process."),
    "process_open_fds": Metric(GAUGE, "Open file descriptors of HQ's process."),
    "process_max_fds": Metric(GAUGE, "Maximum number of open file descriptors of HQ's process."),
    "process_start_time_seconds": Metric(
        GAUGE, "Start time of HQ's process, in seconds since 1970."
    ),
}

REQUESTS = ("publish", "fetch", "ack", "nack", "consume", "resolve", "manage", "directory")
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Counts:
    """The counters of the table, by their names without `cipherbox_` and `_total`."""

    def __init__(self) -> None:
        self.connections_opened = self.handshakes_failed = self.kicked_connections = 0
        self.frames_received = self.frames_sent = self.received_bytes = self.sent_bytes = 0
        self.published_messages = self.published_envelopes = self.published_bytes = 0
        self.delivered_envelopes = self.redelivered_envelopes = self.acked_envelopes = 0
        self.dead_lettered_envelopes = self.store_failures = 0
        self.settled = {"redriven": 0, "dropped": 0}
        self.requests = {name: Histogram(_REQUEST_S) for name in REQUESTS}
        self.commit = Histogram(_COMMIT_S)
        self.sync = Histogram(_COMMIT_S)

    def samples(self) -> list[Sample]:
        """Return all counters as samples."""
        found = [
            Sample(f"cipherbox_{name}_total", n)
            for name, n in vars(self).items()
            if isinstance(n, int)
        ]
        found += [
            Sample("cipherbox_settled_dead_letters_total", n, (how,))
            for how, n in self.settled.items()
        ]
        found += [
            Sample("cipherbox_request_duration_seconds", h, (name,))
            for name, h in self.requests.items()
        ]
        found.append(Sample("cipherbox_commit_duration_seconds", self.commit))
        found.append(Sample("cipherbox_sync_duration_seconds", self.sync))
        return found
