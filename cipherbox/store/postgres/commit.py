"""Write the changes of one commit in an open transaction.

Rules:

1. New rows are sent by binary COPY, one for each table; changes of rows as arrays, one statement
   for each kind of change.  So a commit takes about ten round trips, whatever its size.
2. New rows come first, then marks, then deletions; all changes to a queue precede its deletion.
3. An acknowledged entry moves from `entries` to `deliveries`: the table of waiting entries stays
   small, and the other one is append-only.
4. A number chosen by a client that exceeds the database's integers is stored as the largest of
   them, which is as good as never.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from cipherbox.broker.model import Changes, EntryState, Incoming
from cipherbox.store.postgres import retention
from cipherbox.store.postgres.copy_binary import NULL, micros, row_of, sized, stream, text
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.registry import upsert
from cipherbox.store.spool import Place

_WAITING, _DELIVERED, ACKED, _DEAD = (int(s) for s in EntryState)
_MOST = (1 << 63) - 1
Spooled = Mapping[tuple[int, int], Place]  # (number, generation) -> where that body is

ENVELOPES = (
    "envelopes (number, sender, envelope_id, generation, messages, envelope_hash, exchange, "
    "routing_key, sealed_at, expires_at, accepted_at, fan, bytes, commitment, log_entry)"
)
# A dead letter that was neither redriven nor discarded and has no later generation.
OPEN_DEAD = (
    "d.state = 3 AND EXISTS (SELECT 1 FROM dead_letters x WHERE x.queue_no = d.queue_no AND "
    "x.seq = d.seq AND x.settled = '') AND NOT EXISTS (SELECT 1 FROM entries y WHERE y.number = "
    "d.number AND y.queue_no = d.queue_no AND y.seq > d.seq) AND NOT EXISTS (SELECT 1 FROM "
    "deliveries y WHERE y.accepted_at = d.accepted_at AND y.number = d.number AND y.queue_no = "
    "d.queue_no AND y.seq > d.seq) "
)
BODIES = "bodies (number, pending, stored_hash, data, spool, at, bytes, log_entry)"
ENTRIES = (
    "entries (queue_no, seq, number, accepted_at, state, attempts, delivered_at, client, bytes, "
    "fan, expires_at, sender, envelope_id)"
)
RAISE_LAST_NUMBER = "UPDATE writer SET last_number = greatest(last_number, CAST(? AS bigint))"
LOG = "log (entry, at, record, body, nodes, incarnation)"
_NUMBER = struct.Struct(">hiq")  # count of fields, then the first field
_INT4, _INT8, _INT2 = struct.Struct(">i"), struct.Struct(">q"), struct.Struct(">h")
_ENTRY_HEAD = struct.Struct(">hiiiqiqiqihii")  # queue_no, seq, number, accepted_at, state, attempts
_ENTRY_TAIL = struct.Struct(">iqiiiq")  # bytes, fan, expires_at
_FIELD = struct.Struct(">i")
_INTEGER, _LONG = struct.Struct(">ii"), struct.Struct(">iq")  # with their lengths


@lru_cache(4096)
def _name(value: str) -> bytes:
    """Return a name as a field with its length, cached: the same few recur."""
    raw = text(value)
    return _FIELD.pack(len(raw)) + raw


class QueueNumbers:
    """The names of existing queues and the numbers in their rows; a name that is declared again
    gets a new number.
    """

    def __init__(self, connection: PostgresConnection) -> None:
        rows = connection.run("SELECT name, queue_no FROM queues WHERE dropped = 0")
        self.of: dict[str, int] = {row[0]: row[1] for row in rows}
        self._next: int = connection.run("SELECT coalesce(max(queue_no), 0) + 1 FROM queues")[0][0]

    def add(self, name: str) -> int:
        self.of[name] = self._next
        self._next += 1
        return self.of[name]


def write(
    connection: PostgresConnection, changes: Changes, numbers: QueueNumbers, spooled: Spooled
) -> list[str]:
    """Write a commit and return the spool files it frees; ``spooled``: its bodies in the spool."""
    if changes.retention is not None:
        retention.drop_dead_letters(connection, changes, changes.retention)
    _topology(connection, changes, numbers)
    _envelopes(connection, changes, numbers, spooled)
    dropped = _replaced(connection, changes, spooled)
    _marks(connection, changes, numbers)
    dropped |= _drop_bodies(connection, changes)
    _counters(connection, changes, numbers)
    for name in changes.dropped_queues:
        if name in numbers.of:
            connection.run(
                "UPDATE queues SET dropped = 1 WHERE queue_no = ?", (numbers.of.pop(name),)
            )
        connection.run("DELETE FROM usage WHERE queue = ?", (name,))
    if changes.retention is not None:
        retention.drop_records(connection, changes.retention)
    for setting, value in (
        ("bindings_version", changes.bindings_version),
        ("watermark", changes.watermark),
    ):
        if value:
            connection.run(upsert("settings", ("name", "value")), (setting, str(value).encode()))
    if changes.log is not None:
        index, at, *fields = changes.log
        connection.copy_in(LOG, stream([row_of([_INT8.pack(index), _INT8.pack(at), *fields])]))
    return _unnamed(connection, dropped)


def _unnamed(connection: PostgresConnection, files: set[str]) -> list[str]:
    if not files:
        return []
    still = connection.run(
        "SELECT DISTINCT spool FROM bodies WHERE spool = ANY(CAST(? AS text[]))", (sorted(files),)
    )
    return sorted(files - {name for (name,) in still})


def _topology(connection: PostgresConnection, changes: Changes, numbers: QueueNumbers) -> None:
    for c in changes.clients:
        names = ("name", "role", "added_at", "revoked_at", "reason")
        connection.run(
            upsert("clients", names), (c.name, c.role, c.added_at, c.revoked_at, _clean(c.reason))
        )
    for name, kind in changes.exchanges:
        connection.run(upsert("exchanges", ("name", "type")), (name, int(kind)))
    for q in changes.queues:
        values = (q.owner, orjson.dumps(q.readers).decode(), q.ttl_s, q.max_length)
        if q.name in numbers.of:
            connection.run(
                "UPDATE queues SET owner = ?, readers = ?, ttl_s = ?, max_length = ? WHERE "
                "queue_no = ?",
                (*values, numbers.of[q.name]),
            )
        else:
            connection.run(
                "INSERT INTO queues (name, owner, readers, ttl_s, max_length, queue_no) VALUES "
                "(?, ?, ?, ?, ?, ?)",
                (q.name, *values, numbers.add(q.name)),
            )
    for binding in changes.bindings:
        connection.run(upsert("bindings", ("exchange", "queue", "routing_key"), 3), binding)
    for (client, what), most in changes.client_limits.items():
        if most >= 0:
            row = (client, what, min(most, _MOST))
            connection.run(upsert("client_limits", ("client", "what", "most"), 2), row)
        else:
            connection.run(
                "DELETE FROM client_limits WHERE client = ? AND what = ?", (client, what)
            )
    for client, lists in changes.contacts.items():
        if lists:
            parts = [orjson.dumps(part).decode() for part in (lists.allowed, lists.blocked)]
            connection.run(upsert("contacts", ("client", "allowed", "blocked")), (client, *parts))
        else:
            connection.run("DELETE FROM contacts WHERE client = ?", (client,))
    for grant in changes.grants:
        connection.run(upsert("grants", ("client", '"right"', "resource"), 3), grant)
    for grant in changes.dropped_grants:
        connection.run(
            'DELETE FROM grants WHERE client = ? AND "right" = ? AND resource = ?', grant
        )
    for binding in changes.dropped_bindings:
        connection.run(
            "DELETE FROM bindings WHERE exchange = ? AND queue = ? AND routing_key = ?", binding
        )
    for name in changes.dropped_exchanges:
        connection.run("DELETE FROM exchanges WHERE name = ?", (name,))


def _clean(value: str) -> str:
    return value.replace("\0", "\ufffd")


# -- new rows --------------------------------------------------------------------------------------


def envelope_row(
    number: int, accepted_at: int, references: int, i: Incoming, log_entry: int = 0
) -> bytes:
    """Return a row of `ENVELOPES`."""
    return b"".join(
        (
            _NUMBER.pack(15, 8, number),
            _name(i.sender),
            _FIELD.pack(16),
            i.envelope_id,
            struct.pack(">iqii", 8, i.generation, 4, i[6]),
            _FIELD.pack(len(i.envelope_hash)),
            i.envelope_hash,
            _name(i.exchange),
            _name(i.routing_key),
            struct.pack(
                ">iqiqiqiiiq",
                8,
                min(i.sealed_at, _MOST),
                8,
                min(i.expires_at, _MOST),
                8,
                micros(accepted_at),
                4,
                references,
                8,
                i.size,
            ),
            _FIELD.pack(len(i.commitment)),
            i.commitment,
            _LONG.pack(8, log_entry),
        )
    )


def body_row(
    number: int, pending: int, i: Incoming, place: Place | None, log_entry: int
) -> tuple[bytes, bytes, bytes]:
    """Return a row of `BODIES` in three parts, so that the body is not copied."""
    head = _NUMBER.pack(8, 8, number) + _INTEGER.pack(4, pending) + sized(i.stored_hash)
    tail = _LONG.pack(8, i.size) + _LONG.pack(8, log_entry)
    if place is None:
        raw: bytes = i.body  # type: ignore[assignment]
        return head + _FIELD.pack(len(raw)), raw, NULL + NULL + tail
    return head + NULL, sized(place.name.encode()), _LONG.pack(8, place.at) + tail


def _envelopes(
    connection: PostgresConnection, changes: Changes, numbers: QueueNumbers, spooled: Spooled
) -> None:
    rows: list[bytes] = []
    bodies: list[bytes] = []
    fresh: dict[int, tuple[int, int, Incoming]] = {}
    log_entry = _log_entry(changes)
    for number, accepted_at, references, incoming in changes.envelopes:
        fresh[number] = (micros(accepted_at), references, incoming)
        rows.append(envelope_row(number, accepted_at, references, incoming, log_entry))
        place = spooled.get((number, incoming.generation)) if spooled else None
        bodies += body_row(number, references, incoming, place, log_entry)
    if rows:
        connection.copy_in(ENVELOPES, stream(rows))
        connection.copy_in(BODIES, stream(bodies))
        connection.run(RAISE_LAST_NUMBER, (max(fresh),))
    entries: list[bytes] = []
    known_envelopes = []
    for entry in changes.entries:
        known = fresh.get(entry.number)
        if known is None:
            known_envelopes.append(entry)
        else:
            entries.append(_entry_row(numbers.of[entry.queue], entry, known))
    if entries:
        connection.copy_in(ENTRIES, stream(entries))
    # redriven dead letters, and next generations
    for queue, seq, number, at, client in known_envelopes:
        connection.run(
            "INSERT INTO entries SELECT ?, ?, number, accepted_at, ?, ?, to_timestamp(CAST(? AS "
            "bigint) / 1000.0), ?, bytes, fan, expires_at, sender, envelope_id FROM entries "
            "WHERE number = ? ORDER BY queue_no, seq LIMIT 1",
            (
                numbers.of[queue],
                seq,
                _DELIVERED if at else _WAITING,
                int(bool(at)),
                at or None,
                client if at else "",
                number,
            ),
        )


def _entry_row(queue_no: int, entry: Any, known: tuple[int, int, Incoming]) -> bytes:
    _, seq, number, at, client = entry
    accepted, references, i = known
    head = _ENTRY_HEAD.pack(
        13,
        4,
        queue_no,
        8,
        seq,
        8,
        number,
        8,
        accepted,
        2,
        _DELIVERED if at else _WAITING,
        4,
        int(bool(at)),
    )
    delivered = struct.pack(">iq", 8, micros(at)) if at else b"\xff\xff\xff\xff"
    tail = struct.pack(">iqiiiq", 8, i.size, 4, references, 8, min(i.expires_at, _MOST))
    return b"".join(
        (
            head,
            delivered,
            _name(client if at else ""),
            tail,
            _name(i.sender),
            _FIELD.pack(16),
            i.envelope_id,
        )
    )


def _log_entry(changes: Changes) -> int:
    return changes.log.index if changes.log is not None else 0


def _replaced(connection: PostgresConnection, changes: Changes, spooled: Spooled) -> set[str]:
    dropped = set()
    log_entry = _log_entry(changes)
    for number, i in changes.replaced:
        old = connection.run("DELETE FROM bodies WHERE number = ? RETURNING spool", (number,))
        if old and old[0][0]:
            dropped.add(old[0][0])
        expires_at = min(i.expires_at, _MOST)
        connection.run(
            "UPDATE envelopes SET generation = ?, envelope_hash = ?, sealed_at = ?, expires_at = "
            "?, bytes = ?, messages = ?, commitment = ?, log_entry = ? WHERE envelope_id = "
            "CAST(? AS uuid) AND number = ?",
            (
                i.generation,
                i.envelope_hash,
                min(i.sealed_at, _MOST),
                expires_at,
                i.size,
                i[6],
                i.commitment,
                log_entry,
                i.envelope_id.hex(),
                number,
            ),
        )
        connection.run(
            "UPDATE entries SET bytes = ?, expires_at = ? WHERE number = ?",
            (i.size, expires_at, number),
        )
        connection.copy_in(
            BODIES,
            stream(body_row(number, 0, i, spooled.get((number, i.generation)), log_entry)),
        )
    return dropped


_RECOUNT = (
    "UPDATE bodies b SET pending = (SELECT count(*) FROM entries d WHERE d.number = b.number AND "
    f"(d.state < {ACKED} OR {OPEN_DEAD})) WHERE b.number = ? RETURNING b.pending"
)


# -- changes of rows -------------------------------------------------------------------------------


def _columns(rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)]


_AT = "to_timestamp(m.at / 1000.0)"
_MARKS = (
    "unnest(CAST(? AS integer[]), CAST(? AS bigint[]), CAST(? AS bigint[]), CAST(? AS bigint[]), "
    "CAST(? AS text[])) AS m (queue_no, first, last, at, client)"
)
_DELIVER = (
    f"UPDATE entries e SET state = {_DELIVERED}, attempts = attempts + 1, delivered_at = {_AT}, "
    f"client = m.client FROM {_MARKS} WHERE e.queue_no = m.queue_no AND e.seq BETWEEN m.first "
    f"AND m.last AND e.state < {ACKED}"
)
_ACKNOWLEDGE = (
    f"WITH gone AS (DELETE FROM entries e USING {_MARKS} WHERE e.queue_no = m.queue_no AND e.seq "
    f"BETWEEN m.first AND m.last AND e.state < {ACKED} RETURNING e.accepted_at, e.number, "
    f"e.queue_no, e.seq, e.attempts, coalesce(e.delivered_at, {_AT}), {_AT}, m.client) INSERT "
    "INTO deliveries SELECT * FROM gone"
)


def _marks(connection: PostgresConnection, changes: Changes, numbers: QueueNumbers) -> None:
    for statement, marks in ((_DELIVER, changes.delivered), (_ACKNOWLEDGE, changes.acked)):
        if marks:
            connection.run(
                statement,
                _columns((numbers.of[m.queue], m.first, m.last, m.at, m.client) for m in marks),
            )
    for d in changes.dead:
        queue_no = numbers.of[d.queue]
        connection.run(
            f"UPDATE entries SET state = {_DEAD} WHERE queue_no = ? AND seq = ?", (queue_no, d.seq)
        )
        connection.run(
            "INSERT INTO dead_letters (queue_no, seq, number, accepted_at, at, reason, by) "
            "SELECT queue_no, seq, number, accepted_at, ?, ?, ? FROM entries WHERE queue_no = ? "
            "AND seq = ? ON CONFLICT (queue_no, seq) DO UPDATE SET at = excluded.at, reason = "
            "excluded.reason, by = excluded.by, settled = '', settled_at = 0, settled_by = ''",
            (d.at, _clean(d.reason), d.by, queue_no, d.seq),
        )
    for s in changes.closed_dead_letters:
        connection.run(
            "UPDATE dead_letters SET settled = ?, settled_at = ?, settled_by = ? WHERE queue_no "
            "= ? AND seq = ?",
            (s.how, s.at, s.by, numbers.of[s.queue], s.seq),
        )


_COUNT = (
    "UPDATE queues q SET depth = c.depth, bytes = c.bytes, first = c.first, next = c.next FROM "
    "unnest(CAST(? AS integer[]), CAST(? AS bigint[]), CAST(? AS bigint[]), CAST(? AS bigint[]), "
    "CAST(? AS bigint[])) AS c (queue_no, depth, bytes, first, next) WHERE q.queue_no = "
    "c.queue_no"
)
_HIGHEST = (
    "INSERT INTO senders SELECT sender, decode(highest, 'hex') FROM unnest(CAST(? AS text[]), "
    "CAST(? AS text[])) AS s (sender, highest) ON CONFLICT (sender) DO UPDATE SET highest = "
    "excluded.highest"
)
_USE = (
    "INSERT INTO usage SELECT * FROM unnest(CAST(? AS text[]), CAST(? AS text[]), CAST(? AS "
    "bigint[]), CAST(? AS bigint[])) AS u (sender, queue, bytes, envelopes) ON CONFLICT (sender, "
    "queue) DO UPDATE SET bytes = excluded.bytes, envelopes = excluded.envelopes"
)
_USE_NO_MORE = (
    "DELETE FROM usage u USING unnest(CAST(? AS text[]), CAST(? AS text[])) AS g (sender, queue) "
    "WHERE u.sender = g.sender AND u.queue = g.queue"
)


def _counters(connection: PostgresConnection, changes: Changes, numbers: QueueNumbers) -> None:
    counters = [c for c in changes.counters if c.queue in numbers.of]
    if counters:
        connection.run(
            _COUNT,
            _columns((numbers.of[c.queue], c.depth, c.size, c.first, c.next) for c in counters),
        )
    if changes.highest:
        connection.run(
            _HIGHEST,
            _columns((sender, highest.hex()) for sender, highest in changes.highest.items()),
        )
    used = [(*key, *used) for key, used in changes.usage.items() if used[1]]
    if used:
        connection.run(_USE, _columns(used))
    unused = [key for key, used in changes.usage.items() if not used[1]]
    if unused:
        connection.run(_USE_NO_MORE, _columns(unused))


def _drop_bodies(connection: PostgresConnection, changes: Changes) -> set[str]:
    replaced = {number for number, _ in changes.replaced}
    finished = [number for number in changes.finished if number not in replaced]
    released = Counter(number for number in changes.released if number not in replaced)
    if released:
        rows = connection.run(
            "UPDATE bodies b SET pending = b.pending - r.times FROM unnest(CAST(? AS bigint[]), "
            "CAST(? AS integer[])) AS r (number, times) WHERE b.number = r.number RETURNING "
            "b.number, b.pending",
            _columns(released.items()),
        )
        finished += [number for number, pending in rows if pending <= 0]
    # counted anew: there may be more copies, since a discarded one is enqueued again
    finished += [n for n in replaced if connection.run(_RECOUNT, (n,))[0][0] == 0]
    if not finished:
        return set()
    first, last = _columns(_runs(sorted(finished)))
    rows = connection.run(
        "WITH gone AS (DELETE FROM bodies b USING unnest(CAST(? AS bigint[]), CAST(? AS "
        "bigint[])) AS r (first, last) WHERE b.number BETWEEN r.first AND r.last RETURNING "
        "b.spool) SELECT spool FROM gone WHERE spool IS NOT NULL",
        (first, last),
    )
    return {spool for (spool,) in rows}


def _runs(numbers: list[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as runs (first, last)."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and number <= runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
