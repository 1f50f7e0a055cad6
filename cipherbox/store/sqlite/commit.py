"""Writes one commit's changes inside an open transaction; returns the spool files it drops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import orjson

from cipherbox.broker.model import Changes, EntryState, Incoming
from cipherbox.store.sqlite.database import Connection, insert_many

_WAITING, _DELIVERED, _ACKED, _DEAD = (int(s) for s in EntryState)
T = TypeVar("T")
_IDS = 500  # numbers in one IN (…)


class QueueNumbers:
    """Names of living queues and the numbers their rows use; a name declared again gets a new number."""

    def __init__(self, db: Connection) -> None:
        self.of: dict[str, int] = dict(db.execute("SELECT name, queue_no FROM queues WHERE dropped = 0").fetchall())
        self._next: int = db.execute("SELECT coalesce(max(queue_no), 0) + 1 FROM queues").fetchone()[0]

    def add(self, name: str) -> int:
        self.of[name] = self._next
        self._next += 1
        return self.of[name]


def write(db: Connection, changes: Changes, numbers: QueueNumbers, spooled: dict[tuple[int, int], str]) -> list[str]:
    """``spooled`` maps (number, generation) to the spool file that holds that body."""
    _topology(db, changes, numbers)
    dropped = _envelopes(db, changes, numbers, spooled)
    _marks(db, changes, numbers)
    dropped += _drop_bodies(db, changes)
    db.executemany(
        "UPDATE queues SET depth = ?, bytes = ?, first = ?, next = ? WHERE queue_no = ?",
        [(c.depth, c.size, c.first, c.next, numbers.of[c.queue]) for c in changes.counters if c.queue in numbers.of],
    )
    db.executemany("INSERT OR REPLACE INTO senders VALUES (?, ?)", changes.highest.items())
    usage = [(sender, queue, size) for (sender, queue), size in changes.usage.items() if size]
    db.executemany("INSERT OR REPLACE INTO usage VALUES (?, ?, ?)", usage)
    db.executemany(
        "DELETE FROM usage WHERE sender = ? AND queue = ?", [key for key, size in changes.usage.items() if not size]
    )
    for name in changes.dropped_queues:  # last: marks of this same commit may name them
        if name in numbers.of:
            db.execute("UPDATE queues SET dropped = 1 WHERE queue_no = ?", (numbers.of.pop(name),))
    if changes.bindings_version is not None:
        value = str(changes.bindings_version).encode()
        db.execute("INSERT OR REPLACE INTO settings VALUES ('bindings_version', ?)", (value,))
    return dropped


def _topology(db: Connection, changes: Changes, numbers: QueueNumbers) -> None:
    for c in changes.clients:
        row = (c.name, c.role, c.added_at, c.revoked_at, c.reason)
        db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?, ?)", row)
    db.executemany("INSERT OR REPLACE INTO exchanges VALUES (?, ?)", changes.exchanges)
    for q in changes.queues:
        readers = orjson.dumps(q.readers).decode()
        if q.name in numbers.of:
            row_q = (q.owner, readers, numbers.of[q.name])
            db.execute("UPDATE queues SET owner = ?, readers = ? WHERE queue_no = ?", row_q)
        else:
            new = (numbers.add(q.name), q.name, q.owner, readers)
            db.execute("INSERT INTO queues (queue_no, name, owner, readers) VALUES (?, ?, ?, ?)", new)
    db.executemany("INSERT OR REPLACE INTO bindings VALUES (?, ?, ?)", changes.bindings)
    db.executemany("INSERT OR REPLACE INTO grants VALUES (?, ?, ?)", changes.grants)
    db.executemany("DELETE FROM grants WHERE client = ? AND right = ? AND resource = ?", changes.dropped_grants)
    gone = changes.dropped_bindings
    db.executemany("DELETE FROM bindings WHERE exchange = ? AND queue = ? AND routing_key = ?", gone)
    db.executemany("DELETE FROM exchanges WHERE name = ?", [(name,) for name in changes.dropped_exchanges])


def _envelopes(
    db: Connection, changes: Changes, numbers: QueueNumbers, spooled: dict[tuple[int, int], str]
) -> list[str]:
    rows, bodies = [], []
    for number, accepted_at, fan, i in changes.envelopes:
        rows.append((number, i.sender, i.envelope_id, i.generation, i.count, i.envelope_hash, i.exchange, i.routing_key,
                     i.sealed_at, i.expires_at, accepted_at, fan, fan, i.size))  # fmt: skip
        bodies.append(_body(number, i, spooled))
    insert_many(db, "INSERT INTO envelopes", rows)
    insert_many(db, "INSERT INTO bodies", bodies)
    insert_many(
        db,
        "INSERT INTO entries",
        [
            (numbers.of[queue], seq, number, _DELIVERED if at else _WAITING, 1 if at else 0, at, 0, client)
            for queue, seq, number, at, client in changes.entries
        ],
    )
    dropped = []
    for number, i in changes.replaced:
        old = db.execute("SELECT spool FROM bodies WHERE number = ?", (number,)).fetchone()
        if old and old[0]:
            dropped.append(old[0])
        db.execute(
            "UPDATE envelopes SET generation = ?, envelope_hash = ?, sealed_at = ?, expires_at = ?, bytes = ? "
            "WHERE number = ?",
            (i.generation, i.envelope_hash, i.sealed_at, i.expires_at, i.size, number),
        )
        db.execute("INSERT OR REPLACE INTO bodies VALUES (?, ?, ?, ?)", _body(number, i, spooled))
    return dropped


def _body(number: int, i: Incoming, spooled: dict[tuple[int, int], str]) -> tuple[int, bytes, object, str | None]:
    name = spooled.get((number, i.generation))
    return number, i.stored_hash, None if name else i.body, name


def _marks(db: Connection, changes: Changes, numbers: QueueNumbers) -> None:
    db.executemany(
        f"UPDATE entries SET state = {_DELIVERED}, attempts = attempts + 1, delivered_at = ?, client = ? "
        f"WHERE queue_no = ? AND seq BETWEEN ? AND ? AND state < {_ACKED}",
        [(m.at, m.client, numbers.of[m.queue], m.first, m.last) for m in changes.delivered],
    )
    db.executemany(
        f"UPDATE entries SET state = {_ACKED}, acknowledged_at = ?1, client = ?2, "
        "delivered_at = CASE delivered_at WHEN 0 THEN ?1 ELSE delivered_at END "
        f"WHERE queue_no = ?3 AND seq BETWEEN ?4 AND ?5 AND state < {_ACKED}",
        [(m.at, m.client, numbers.of[m.queue], m.first, m.last) for m in changes.acked],
    )
    for d in changes.dead:
        queue_no = numbers.of[d.queue]
        db.execute(f"UPDATE entries SET state = {_DEAD} WHERE queue_no = ? AND seq = ?", (queue_no, d.seq))
        row = (queue_no, d.seq, d.number, d.at, d.reason, d.by)
        db.execute("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?, ?, ?)", row)


def _drop_bodies(db: Connection, changes: Changes) -> list[str]:
    finished = list(changes.finished)
    if changes.released:
        counts = [(times, number) for number, times in Counter(changes.released).items()]
        db.executemany("UPDATE envelopes SET pending = pending - ? WHERE number = ?", counts)
        numbers = [number for _, number in counts]
        finished += _each(db, numbers, "SELECT number FROM envelopes WHERE pending <= 0 AND number IN", int)
    dropped = _each(db, finished, "SELECT spool FROM bodies WHERE spool IS NOT NULL AND number IN", str)
    finished.sort()
    at = 0
    while at < len(finished):  # runs of numbers are one DELETE each
        end = at
        while end + 1 < len(finished) and finished[end + 1] == finished[end] + 1:
            end += 1
        db.execute("DELETE FROM bodies WHERE number BETWEEN ? AND ?", (finished[at], finished[end]))
        at = end + 1
    return dropped


def _each(db: Connection, numbers: list[int], query: str, kind: Callable[..., T]) -> list[T]:
    found: list[T] = []
    for at in range(0, len(numbers), _IDS):
        part = numbers[at : at + _IDS]
        marks = ",".join("?" * len(part))
        found += [kind(row[0]) for row in db.execute(f"{query} ({marks})", part)]
    return found
