"""Reads: the snapshot at start, the facts of a batch, bodies, and traces."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

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
from cipherbox.store.rows import LOADED, MOST, TRACED, Row, as_known, dead_page, decoding
from cipherbox.store.spool import NAME, Place, Spool
from cipherbox.store.sqlite import retention
from cipherbox.store.sqlite.commit import OPEN_DEAD, QueueNumbers
from cipherbox.store.sqlite.database import Connection

_COLUMNS = (
    "d.seq, d.number, e.bytes, d.attempts, e.fan, e.sender, e.envelope_id, e.accepted_at, "
    "e.expires_at "
)
_ENTRY = (
    f"SELECT {_COLUMNS} FROM entries d CROSS JOIN envelopes e ON e.number = d.number "
    "WHERE d.queue_no = ? AND d.state < 2 "
)
_DEAD_ENTRY = (
    f"SELECT {_COLUMNS} FROM entries d CROSS JOIN envelopes e ON e.number = d.number "
    f"WHERE d.queue_no = ? AND {OPEN_DEAD}"
)
_DEAD_ROWS = (
    "SELECT q.name, d.seq, e.sender, e.envelope_id, e.messages, e.bytes, e.exchange, "
    "e.routing_key, e.accepted_at, d.attempts, d.client, d.delivered_at, x.reason, x.by, x.at, "
    "x.settled, x.settled_by, x.settled_at, d.queue_no FROM dead_letters x JOIN entries d ON "
    "d.queue_no = x.queue_no AND d.seq = x.seq JOIN envelopes e ON e.number = x.number JOIN "
    "queues q ON q.queue_no = x.queue_no "
)
# What `retention.drop_dead_letters` deletes: the queue, the sender and the bytes.
_RETIRED = (
    f"SELECT q.name, e.sender, e.bytes FROM ({retention.OLD_DEAD}) x JOIN envelopes e ON "
    "e.number = x.number JOIN queues q ON q.queue_no = x.queue_no WHERE q.dropped = 0 AND NOT "
    "EXISTS (SELECT 1 FROM entries y WHERE y.number = x.number AND y.queue_no = x.queue_no AND "
    "y.seq > x.seq)"
)
_KEPT = (
    "SELECT DISTINCT q.name FROM entries d JOIN dead_letters x ON x.queue_no = d.queue_no AND "
    "x.seq = d.seq JOIN queues q ON q.queue_no = d.queue_no WHERE d.number = ? AND x.settled = ''"
)
BY_ID = (
    f"SELECT {_COLUMNS} FROM envelopes e CROSS JOIN entries d ON d.number = e.number "
    "WHERE e.envelope_id = ? AND e.sender = ? AND d.queue_no = ? AND d.state < 2"
)


@decoding(LOADED)
def load(db: Connection, head: int) -> Snapshot:
    """Load a snapshot: stored counters, and only the head of each queue."""
    snapshot = Snapshot()
    snapshot.next_number = db.execute(
        "SELECT coalesce(max(number), 0) + 1 FROM envelopes"
    ).fetchone()[0]
    snapshot.first_seq = db.execute(
        "SELECT coalesce(max(next), 1) FROM queues WHERE dropped = 1"
    ).fetchone()[0]
    version = db.execute("SELECT value FROM settings WHERE name = 'bindings_version'").fetchone()
    snapshot.bindings_version = int(version[0]) if version else 1
    watermark = db.execute("SELECT value FROM settings WHERE name = 'watermark'").fetchone()
    snapshot.watermark = int(watermark[0]) if watermark else 0
    snapshot.clients = [
        ClientRow(*row) for row in db.execute("SELECT * FROM clients ORDER BY name")
    ]
    snapshot.exchanges = db.execute("SELECT name, type FROM exchanges ORDER BY name").fetchall()
    snapshot.bindings = db.execute("SELECT exchange, queue, routing_key FROM bindings").fetchall()
    snapshot.grants = db.execute("SELECT client, right, resource FROM grants").fetchall()
    snapshot.highest = dict(db.execute("SELECT sender, highest FROM senders").fetchall())
    usage = db.execute("SELECT sender, queue, bytes, envelopes FROM usage")
    snapshot.usage = {(sender, queue): (size, count) for sender, queue, size, count in usage}
    limits = db.execute("SELECT client, what, most FROM client_limits")
    snapshot.client_limits = {(client, what): most for client, what, most in limits}
    contacts = db.execute("SELECT client, allowed, blocked FROM contacts")
    snapshot.contacts = {
        name: ContactLists(*(tuple(orjson.loads(part)) for part in parts))
        for name, *parts in contacts
    }
    rows = db.execute(
        "SELECT queue_no, name, owner, readers, depth, bytes, first, next, ttl_s, max_length "
        "FROM queues WHERE dropped = 0 ORDER BY name"
    ).fetchall()
    for queue_no, name, owner, readers, depth, size, first, following, ttl_s, max_length in rows:
        snapshot.queues.append(
            QueueRow(name, owner, tuple(orjson.loads(readers)), ttl_s, max_length)
        )
        snapshot.counters.append(Counters(name, depth, size, first, following))
        if depth:
            found = db.execute(
                _ENTRY + "AND d.seq >= ? ORDER BY d.seq LIMIT ?", (queue_no, first, head)
            )
            snapshot.heads[name] = [Entry(*row) for row in found]
    return snapshot


def facts(db: Connection, numbers: QueueNumbers, wanted: RequiredFacts, page: int) -> Facts:
    """Implement the port's method of this name."""
    found = Facts()
    for sender, envelope_id in wanted.known:
        known = _known(db, sender, envelope_id)
        if known is not None:
            found.known[(sender, envelope_id)] = known
    for queue, first, count in wanted.entries:
        if queue in numbers.of and first <= MOST:
            span = (numbers.of[queue], first, min(first + count - 1, MOST))
            rows = db.execute(_ENTRY + "AND d.seq BETWEEN ? AND ?", span)
            found.entries.setdefault(queue, {}).update({row[0]: Entry(*row) for row in rows})
    for queue, sender, envelope_id in wanted.envelopes:
        if queue in numbers.of:
            rows = db.execute(BY_ID, (envelope_id, sender, numbers.of[queue]))
            found.entries.setdefault(queue, {}).update({row[0]: Entry(*row) for row in rows})
    for queue, first, count in wanted.dead:
        if queue in numbers.of and first <= MOST:
            span = (numbers.of[queue], first, min(first + count - 1, MOST))
            rows = db.execute(_DEAD_ENTRY + "AND d.seq BETWEEN ? AND ?", span)
            found.dead.setdefault(queue, {}).update({row[0]: Entry(*row) for row in rows})
    if wanted.retired:
        found.retired = db.execute(_RETIRED, (wanted.retired, retention.MOST)).fetchall()
    for queue, after in wanted.pages:
        if queue in numbers.of:
            rows = db.execute(
                _ENTRY + "AND d.seq > ? ORDER BY d.seq LIMIT ?", (numbers.of[queue], after, page)
            )
            found.pages[queue] = [Entry(*row) for row in rows]
    return found


def _known(db: Connection, sender: str, envelope_id: bytes) -> KnownEnvelope | None:
    row = db.execute(
        "SELECT number, generation, envelope_hash, accepted_at, bytes, commitment FROM envelopes "
        "WHERE envelope_id = ? AND sender = ?",
        (envelope_id, sender),
    ).fetchone()
    if row is None:
        return None
    entries = db.execute(
        "SELECT q.name, d.seq, d.state FROM entries d JOIN queues q ON q.queue_no = d.queue_no "
        "WHERE d.number = ? ORDER BY q.name, d.seq",
        (row[0],),
    ).fetchall()
    number, generation, envelope_hash, accepted_at, size, commitment = row
    kept = lambda: [name for (name,) in db.execute(_KEPT, (number,))]  # noqa: E731
    return as_known(number, generation, envelope_hash, accepted_at, size, commitment, entries, kept)


def read_bodies(db: Connection, spool: Spool, numbers: Sequence[int]) -> list[Body | None]:
    """Return bodies in the order asked; None for one that is missing or does not match its hash.

    A damaged row may hold values of any type: the casts make bytes of them, and the hash decides.
    """
    found: dict[int, Body] = {}
    for at in range(0, len(numbers), 500):
        part = numbers[at : at + 500]
        marks = ",".join("?" * len(part))
        query = (
            "SELECT number, CAST(stored_hash AS BLOB), CAST(data AS BLOB), CAST(spool AS BLOB), "
            f"at, bytes, log_entry FROM bodies WHERE number IN ({marks})"
        )
        for number, stored_hash, data, name, offset, size, log_entry in db.execute(query, part):
            body = data if name is None else _spooled(spool, name, offset, size)
            if (
                body is not None
                and stored_hash is not None
                and hashlib.sha256(body).digest() == stored_hash
            ):
                found[number] = Body(max(0, log_entry) if isinstance(log_entry, int) else 0, body)
    return [found.get(number) for number in numbers]


def _spooled(spool: Spool, name: bytes, at: object, size: object) -> bytes | None:
    text = name.decode("ascii", "replace")
    if (
        not NAME.fullmatch(text)
        or not isinstance(at, int)
        or not isinstance(size, int)
        or at < 0
        or size < 0
    ):
        return None
    return spool.read(Place(text, at), size)


@decoding(TRACED)
def trace(db: Connection, sender: str, envelope_id: bytes) -> TraceReport | None:
    """Return where an envelope is, queue by queue."""
    row = db.execute(
        "SELECT number, accepted_at, messages FROM envelopes WHERE envelope_id = ? AND sender = ?",
        (envelope_id, sender),
    ).fetchone()
    if row is None:
        return None
    found = db.execute(
        "SELECT q.name, d.client, d.state, d.attempts, d.delivered_at, d.acknowledged_at, "
        "coalesce(x.reason, ''), q.owner, q.readers FROM entries d JOIN queues q ON q.queue_no = "
        "d.queue_no LEFT JOIN dead_letters x ON x.queue_no = d.queue_no AND x.seq = d.seq WHERE "
        "d.number = ? ORDER BY q.name, d.seq",
        (row[0],),
    )
    traces = []
    for name, client, state, attempts, delivered, acked, reason, owner, readers in found:
        everyone = tuple(sorted({owner, *orjson.loads(readers)} - {""}))
        traces.append(
            TraceRow(name, client, EntryState(state), attempts, delivered, acked, reason, everyone)
        )
    return TraceReport(sender, row[1], traces, row[2])


def dead_letters(
    db: Connection, queue: str, after: str, most: int, include_closed: bool
) -> tuple[list[dict[str, object]], str]:
    """Implement the port's method of this name."""

    def run(query: str, values: Sequence[object]) -> list[Row]:
        return db.execute(query, values).fetchall()

    return dead_page(run, _DEAD_ROWS, OPEN_DEAD, queue, after, most, include_closed)
