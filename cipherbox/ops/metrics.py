"""What HQ counts and measures, in one table: name, kind, labels, help.

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
    """How often a value lay below each bound; cheap enough for the engine's loop."""

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
    # Who is here.
    "cipherbox_build_info": Metric(GAUGE, "Always 1; the version that runs.", ("version",)),
    "cipherbox_ready": Metric(GAUGE, "1 while HQ takes everything, as /readyz says; else 0."),
    "cipherbox_draining": Metric(
        GAUGE, "1 while HQ takes nothing new and lets what waits go out; else 0."
    ),
    "cipherbox_connected_clients": Metric(GAUGE, "Clients with at least one connection."),
    "cipherbox_connections": Metric(GAUGE, "Connections now, by role of the client.", ("role",)),
    "cipherbox_connections_opened_total": Metric(
        COUNTER, "Connections that HQ took up since its start."
    ),
    "cipherbox_handshakes_failed_total": Metric(
        COUNTER, "Connections that did not get through TLS and HELLO."
    ),
    "cipherbox_greeting_connections": Metric(GAUGE, "Connections that have not said HELLO yet."),
    "cipherbox_turned_away_total": Metric(
        COUNTER,
        "Connections closed before HELLO because their address, or HQ, had too many of them.",
    ),
    "cipherbox_kicked_connections_total": Metric(COUNTER, "Connections that an admin cut."),
    # The wire.
    "cipherbox_frames_received_total": Metric(COUNTER, "Frames that clients sent."),
    "cipherbox_frames_sent_total": Metric(COUNTER, "Frames sent to clients."),
    "cipherbox_received_bytes_total": Metric(COUNTER, "Bytes of frames received, without TLS."),
    "cipherbox_sent_bytes_total": Metric(COUNTER, "Bytes of frames sent, without TLS."),
    "cipherbox_request_duration_seconds": Metric(
        HISTOGRAM,
        "From the moment a request was read to its answer: for a publish, until it was on stable "
        "storage.",
        ("request",),
    ),
    "cipherbox_throttled_requests_total": Metric(
        COUNTER, "Requests refused because their client had spent its budget of them."
    ),
    # Messages.  HQ counts deliveries and acks by envelope: what an envelope holds is not its
    # business there.
    "cipherbox_published_messages_total": Metric(COUNTER, "Messages stored and confirmed."),
    "cipherbox_published_envelopes_total": Metric(
        COUNTER, "Envelopes stored and confirmed; one holds many messages."
    ),
    "cipherbox_published_bytes_total": Metric(
        COUNTER, "Bytes of the envelopes stored and confirmed."
    ),
    "cipherbox_delivered_envelopes_total": Metric(
        COUNTER, "Envelopes handed to consumers, redeliveries included."
    ),
    "cipherbox_redelivered_envelopes_total": Metric(
        COUNTER, "Envelopes handed out again after a first delivery."
    ),
    "cipherbox_acked_envelopes_total": Metric(
        COUNTER, "Envelopes acknowledged by their recipients."
    ),
    "cipherbox_dead_lettered_envelopes_total": Metric(
        COUNTER, "Envelopes given up on: kept as dead letters."
    ),
    "cipherbox_settled_dead_letters_total": Metric(
        COUNTER, "Dead letters that were put back or dropped.", ("how",)
    ),
    # Queues.
    "cipherbox_queues": Metric(GAUGE, "Queues there are."),
    "cipherbox_queue_depth_envelopes": Metric(
        GAUGE,
        "Envelopes in a queue, waiting or not acknowledged; of the deepest that are not empty.",
        ("queue",),
    ),
    "cipherbox_queue_oldest_age_seconds": Metric(
        GAUGE, "How long the oldest envelope of that queue has been here.", ("queue",)
    ),
    "cipherbox_queue_consumers": Metric(GAUGE, "Consumers of that queue.", ("queue",)),
    "cipherbox_waiting_envelopes": Metric(GAUGE, "Envelopes that wait, in all queues together."),
    "cipherbox_unacknowledged_envelopes": Metric(
        GAUGE, "Envelopes delivered and not acknowledged, in all queues."
    ),
    "cipherbox_queued_bytes": Metric(GAUGE, "Bytes of envelopes in all queues."),
    "cipherbox_oldest_age_seconds": Metric(
        GAUGE, "How long the oldest envelope of all queues has been here."
    ),
    "cipherbox_receipts_outstanding_envelopes": Metric(
        GAUGE,
        "Receipts, in envelopes, that their senders have not taken yet. Which message has none "
        "HQ cannot see.",
    ),
    # What clients have here, as senders: waiting, delivered or kept as dead letters, in each queue
    # for itself.
    "cipherbox_client_bytes": Metric(
        GAUGE, "Bytes a client has at HQ; of the clients with the most.", ("client",)
    ),
    "cipherbox_client_envelopes": Metric(GAUGE, "Envelopes that client has at HQ.", ("client",)),
    # The store.
    "cipherbox_store_up": Metric(GAUGE, "1 while the store answers; 0 while HQ waits for it."),
    "cipherbox_commit_duration_seconds": Metric(
        HISTOGRAM, "One commit of the store, a batch of many requests."
    ),
    "cipherbox_sync_duration_seconds": Metric(
        HISTOGRAM,
        "The part of a commit that waits for stable storage: the database's COMMIT and the "
        "spool's files.",
    ),
    "cipherbox_store_failures_total": Metric(
        COUNTER, "Times the store failed and HQ loaded its state again."
    ),
    "cipherbox_disk_free_bytes": Metric(
        GAUGE, "Bytes HQ may still write where its data directory is."
    ),
    # HQ itself.
    "cipherbox_engine_commands": Metric(GAUGE, "Requests that wait for the engine."),
    "cipherbox_held_bytes": Metric(
        GAUGE, "Bytes of envelopes held in memory for all clients (memory_high_bytes)."
    ),
    "cipherbox_memory_short": Metric(
        GAUGE, "1 while publishers wait because HQ is short of memory; else 0."
    ),
    "cipherbox_cut_frames_total": Metric(
        COUNTER,
        "Large frames whose connections were cut because memory was short and they moved slowest.",
    ),
    "cipherbox_held_most_bytes": Metric(
        GAUGE, "Bytes of that held for the client with the most of them."
    ),
    "cipherbox_body_cache_bytes": Metric(
        GAUGE, "Bytes of envelopes kept in memory for consumers that keep up."
    ),
    "cipherbox_certificate_remaining_days": Metric(
        GAUGE,
        "Days until it ends: server, issuing, root, crl (the revocation list), or lists (the "
        "first of an organization's); negative: it has ended.",
        ("certificate",),
    ),
    "process_resident_memory_bytes": Metric(GAUGE, "Memory of HQ's process."),
    "process_cpu_seconds_total": Metric(COUNTER, "CPU time of HQ's process."),
    "process_open_fds": Metric(GAUGE, "File handles that HQ's process has open."),
    "process_max_fds": Metric(GAUGE, "File handles that it may have open."),
    "process_start_time_seconds": Metric(GAUGE, "When HQ was started, in seconds since 1970."),
}

REQUESTS = ("publish", "fetch", "ack", "nack", "consume", "resolve", "manage", "directory")
_REQUEST_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_COMMIT_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class Counts:
    """What is added to while HQ runs: the counters of the table, by their names without
    `cipherbox_` and `_total`.
    """

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
        """All of them as samples."""
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
