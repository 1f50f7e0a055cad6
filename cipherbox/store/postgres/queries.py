"""Reads: the snapshot at start, the facts of a batch, bodies, and traces."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import orjson

from cipherbox.broker.model import (
    ClientRow,
    Counters,
    Entry,
    EntryState,
    Facts,
    KnownEnvelope,
    QueueRow,
    RequiredFacts,
    Snapshot,
)
from cipherbox.contact_lists import ContactLists
from cipherbox.store.port import Body, TraceReport, TraceRow
from cipherbox.store.postgres import retention
from cipherbox.store.postgres.commit import OPEN_DEAD, QueueNumbers
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.rows import LOADED, MOST, TRACED, as_known, dead_page, decoding
from cipherbox.store.spool import Place

_ENTRY = (
    "SELECT d.seq, d.number, d.bytes, d.attempts, d.fan, d.sender, d.envelope_id, "
    "ms_of(d.accepted_at), d.expires_at FROM entries d WHERE d.queue_no = ? "
)
_WAITS = "AND d.state < 2 "
_KEPT = (
    "SELECT DISTINCT q.name FROM dead_letters x JOIN queues q ON q.queue_no = x.queue_no "
    "WHERE x.number = ? AND x.settled = ''"
)
# What `retention.drop_dead_letters` deletes: the queue, the sender and the bytes.
_RETIRED = (
    f"SELECT q.name, d.sender, d.bytes FROM ({retention.OLD_DEAD}) x JOIN entries d ON "
    "d.queue_no = x.queue_no AND d.seq = x.seq JOIN queues q ON q.queue_no = x.queue_no WHERE "
    "q.dropped = 0 AND NOT EXISTS (SELECT 1 FROM entries y WHERE y.number = d.number AND "
    "y.queue_no = d.queue_no AND y.seq > d.seq) AND NOT EXISTS (SELECT 1 FROM deliveries y "
    "WHERE y.accepted_at = d.accepted_at AND y.number = d.number AND y.queue_no = d.queue_no "
    "AND y.seq > d.seq)"
)
_KNOWN = (
    "SELECT e.sender, e.envelope_id, e.number, e.generation, e.envelope_hash, "
    "ms_of(e.accepted_at), e.bytes, e.commitment FROM unnest(CAST(? AS text[]), CAST(? AS "
    "uuid[])) AS w (sender, envelope_id) JOIN envelopes e ON e.envelope_id = w.envelope_id AND "
    "e.sender = w.sender"
)
_PLACES = (
    "SELECT w.number, q.name, d.seq, d.state, d.client, d.attempts, "
    "coalesce(ms_of(d.delivered_at), 0), coalesce(ms_of(d.acknowledged_at), 0), q.owner, "
    "q.readers, d.queue_no FROM unnest(CAST(? AS bigint[]), CAST(? AS bigint[])) AS w (number, "
    "at) CROSS JOIN LATERAL (SELECT x.queue_no, x.seq, x.state, x.client, x.attempts, "
    "x.delivered_at, NULL AS acknowledged_at FROM entries x WHERE x.number = w.number UNION ALL "
    "SELECT y.queue_no, y.seq, 2, y.client, y.attempts, y.delivered_at, y.acknowledged_at FROM "
    "deliveries y WHERE y.accepted_at = to_timestamp(w.at / 1000.0) AND y.number = w.number) d "
    "JOIN queues q ON q.queue_no = d.queue_no ORDER BY q.name, d.seq"
)
_DEAD_ROWS = (
    "SELECT q.name, d.seq, d.sender, d.envelope_id, e.messages, e.bytes, e.exchange, "
    "e.routing_key, ms_of(e.accepted_at), d.attempts, d.client, coalesce(ms_of(d.delivered_at), "
    "0), x.reason, x.by, x.at, x.settled, x.settled_by, x.settled_at, d.queue_no FROM "
    "dead_letters x JOIN entries d ON d.queue_no = x.queue_no AND d.seq = x.seq JOIN envelopes e "
    "ON e.accepted_at = d.accepted_at AND e.number = d.number JOIN queues q ON q.queue_no = "
    "x.queue_no "
)
Spooled = Callable[[Place, int], bytes | None]


def _entries(rows: Iterable[Sequence[Any]]) -> list[Entry]:
    return [Entry._make((*row[:6], row[6].bytes, *row[7:])) for row in rows]


@decoding(LOADED)
def load(connection: PostgresConnection, head: int) -> Snapshot:
    """Load a snapshot: stored counters, and only the head of each queue."""
    snapshot = Snapshot()
    snapshot.next_number = connection.script("SELECT last_number + 1 FROM writer")[0][0]
    snapshot.first_seq = connection.script(
        "SELECT coalesce(max(next), 1) FROM queues WHERE dropped = 1"
    )[0][0]
    settings = {
        name: bytes(value) for name, value in connection.script("SELECT name, value FROM settings")
    }
    snapshot.bindings_version = int(settings.get("bindings_version", b"1"))
    snapshot.watermark = int(settings.get("watermark", b"0"))
    snapshot.clients = [
        ClientRow(*row) for row in connection.script("SELECT * FROM clients ORDER BY name")
    ]
    snapshot.exchanges = [
        (name, kind)
        for name, kind in connection.script("SELECT name, type FROM exchanges ORDER BY name")
    ]
    snapshot.bindings = [
        (e, q, k)
        for e, q, k in connection.script("SELECT exchange, queue, routing_key FROM bindings")
    ]
    snapshot.grants = [
        (c, r, x) for c, r, x in connection.script('SELECT client, "right", resource FROM grants')
    ]
    snapshot.highest = {
        sender: bytes(highest)
        for sender, highest in connection.script("SELECT sender, highest FROM senders")
    }
    usage = connection.script("SELECT sender, queue, bytes, envelopes FROM usage")
    snapshot.usage = {(sender, queue): (size, count) for sender, queue, size, count in usage}
    limits = connection.script("SELECT client, what, most FROM client_limits")
    snapshot.client_limits = {(client, what): most for client, what, most in limits}
    contacts = connection.script("SELECT client, allowed, blocked FROM contacts")
    snapshot.contacts = {
        name: ContactLists(*(tuple(orjson.loads(part)) for part in parts))
        for name, *parts in contacts
    }
    rows = connection.script(
        "SELECT queue_no, name, owner, readers, depth, bytes, first, next, ttl_s, max_length "
        "FROM queues WHERE dropped = 0 ORDER BY name"
    )
    for queue_no, name, owner, readers, depth, size, first, following, ttl_s, max_length in rows:
        snapshot.queues.append(
            QueueRow(name, owner, tuple(orjson.loads(readers)), ttl_s, max_length)
        )
        snapshot.counters.append(Counters(name, depth, size, first, following))
        if depth:
            found = connection.run(
                _ENTRY + _WAITS + "AND d.seq >= ? ORDER BY d.seq LIMIT ?", (queue_no, first, head)
            )
            snapshot.heads[name] = _entries(found)
    return snapshot


def facts(
    connection: PostgresConnection, numbers: QueueNumbers, wanted: RequiredFacts, page: int
) -> Facts:
    """Implement the port's method of this name."""
    found = Facts()
    if wanted.known:
        found.known = _known(connection, wanted.known)
    for what, spans, into in (
        (_WAITS, wanted.entries, found.entries),
        (f"AND {OPEN_DEAD}", wanted.dead, found.dead),
    ):
        for queue, first, count in spans:
            if queue in numbers.of and first <= MOST:
                span = (numbers.of[queue], first, min(first + count - 1, MOST))
                rows = _entries(connection.run(_ENTRY + what + "AND d.seq BETWEEN ? AND ?", span))
                into.setdefault(queue, {}).update({entry.seq: entry for entry in rows})
    for queue, sender, envelope_id in wanted.envelopes:
        if queue in numbers.of:
            found_numbers = [k.number for k in _known(connection, [(sender, envelope_id)]).values()]
            rows = _entries(
                connection.run(
                    _ENTRY + _WAITS + "AND d.number = ANY(CAST(? AS bigint[]))",
                    (numbers.of[queue], found_numbers),
                )
            )
            found.entries.setdefault(queue, {}).update({entry.seq: entry for entry in rows})
    if wanted.retired:
        found.retired = [
            (q, s, size)
            for q, s, size in connection.run(_RETIRED, (wanted.retired, retention.MOST))
        ]
    for queue, after in wanted.pages:
        if queue in numbers.of:
            rows = _entries(
                connection.run(
                    _ENTRY + _WAITS + "AND d.seq > ? ORDER BY d.seq LIMIT ?",
                    (numbers.of[queue], after, page),
                )
            )
            found.pages[queue] = rows
    return found


def _known(
    connection: PostgresConnection, wanted: Sequence[tuple[str, bytes]]
) -> dict[tuple[str, bytes], KnownEnvelope]:
    rows = connection.run(
        _KNOWN, ([sender for sender, _ in wanted], [str(UUID(bytes=i)) for _, i in wanted])
    )
    if not rows:
        return {}
    places: dict[int, list[tuple[str, int, int]]] = defaultdict(list)
    for number, name, seq, state, *_ in connection.run(
        _PLACES, ([r[2] for r in rows], [r[5] for r in rows])
    ):
        places[number].append((name, seq, state))
    found = {}
    for (
        sender,
        envelope_id,
        number,
        generation,
        envelope_hash,
        accepted_at,
        size,
        commitment,
    ) in rows:
        found[(sender, envelope_id.bytes)] = as_known(
            number,
            generation,
            bytes(envelope_hash),
            accepted_at,
            size,
            bytes(commitment),
            places[number],
            partial(_kept, connection, number),
        )
    return found


def _kept(connection: PostgresConnection, number: int) -> list[str]:
    return [name for (name,) in connection.run(_KEPT, (number,))]


def read_bodies(
    connection: PostgresConnection, spooled: Spooled, numbers: Sequence[int]
) -> list[Body | None]:
    """Return bodies in the order asked; None for one that is missing or does not match its hash."""
    found: dict[int, Body] = {}
    wanted = ",".join(str(int(number)) for number in numbers)
    if not wanted:
        return []
    rows = connection.copy_out(
        "SELECT number, stored_hash, data, spool, at, bytes, log_entry FROM bodies WHERE number "
        f"IN ({wanted})"
    )
    for number, stored_hash, data, name, at, size, log_entry in rows:
        if name is not None:
            place = Place(
                name.decode("utf-8", "replace"), int.from_bytes(at or b"", "big", signed=True)
            )
            data = spooled(place, int.from_bytes(size or b"", "big", signed=True))
        if data is not None and hashlib.sha256(data).digest() == stored_hash:
            found[int.from_bytes(number or b"", "big")] = Body(
                int.from_bytes(log_entry or b"", "big"), data
            )
    return [found.get(number) for number in numbers]


@decoding(TRACED)
def trace(connection: PostgresConnection, sender: str, envelope_id: bytes) -> TraceReport | None:
    """Return where an envelope is, queue by queue."""
    known = connection.run(
        "SELECT number, ms_of(accepted_at), messages FROM envelopes WHERE envelope_id = CAST(? "
        "AS uuid) AND sender = ?",
        (envelope_id.hex(), sender),
    )
    if not known:
        return None
    ((number, accepted_at, messages),) = known
    reasons = {
        (r[0], r[1]): r[2]
        for r in connection.run(
            "SELECT queue_no, seq, reason FROM dead_letters WHERE number = ?", (number,)
        )
    }
    traces = []
    for row in connection.run(_PLACES, ([number], [accepted_at])):
        _, name, seq, state, client, attempts, delivered, acked, owner, readers, queue_no = row
        everyone = tuple(sorted({owner, *orjson.loads(readers)} - {""}))
        reason = reasons.get((queue_no, seq), "")
        traces.append(
            TraceRow(name, client, EntryState(state), attempts, delivered, acked, reason, everyone)
        )
    return TraceReport(sender, accepted_at, traces, messages)


def dead_letters(
    connection: PostgresConnection, queue: str, after: str, most: int, include_closed: bool
) -> tuple[list[dict[str, object]], str]:
    """Implement the port's method of this name."""
    return dead_page(connection.run, _DEAD_ROWS, OPEN_DEAD, queue, after, most, include_closed)
