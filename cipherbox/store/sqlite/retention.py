"""Retention: delete what is old, a bounded number in each commit and in its transaction.

Only what nobody waits for is deleted: records of envelopes that are acknowledged in all queues or
whose dead letters are closed, dead letters older than their retention, entries of the signed log.
Each commit deletes at most `MOST` of a kind; HQ repeats it until nothing is left.
"""

from __future__ import annotations

from cipherbox.broker.model import DISCARDED, Changes, Cutoffs
from cipherbox.store import log_table as logtable
from cipherbox.store.sqlite.database import Connection

MOST = 5000
BY = "retention"
OLD_DEAD = (
    "SELECT queue_no, seq, number FROM dead_letters WHERE settled = '' AND at < ? ORDER BY "
    "queue_no, seq LIMIT ?"
)
_FINISHED = (
    "SELECT e.number FROM envelopes e WHERE e.accepted_at < ? AND NOT EXISTS (SELECT 1 FROM "
    "bodies b WHERE b.number = e.number) AND NOT EXISTS (SELECT 1 FROM entries d WHERE d.number "
    "= e.number AND d.state < 2) ORDER BY e.number LIMIT ?"
)


def drop_dead_letters(db: Connection, changes: Changes, cutoffs: Cutoffs) -> None:
    """Discard old dead letters, before this commit deletes bodies: theirs with them."""
    if not cutoffs.dead_letters:
        return
    rows = db.execute(
        f"SELECT x.queue_no, x.seq, e.number, e.fan FROM ({OLD_DEAD}) x JOIN envelopes e ON "
        "e.number = x.number",
        (cutoffs.dead_letters, MOST),
    ).fetchall()
    for queue_no, seq, number, references in rows:
        db.execute(
            "UPDATE dead_letters SET settled = ?, settled_at = ?, settled_by = ? WHERE queue_no "
            "= ? AND seq = ?",
            (DISCARDED, cutoffs.dead_letters, BY, queue_no, seq),
        )
        alive = db.execute(
            "SELECT 1 FROM entries WHERE number = ? AND queue_no = ? AND seq > ?",
            (number, queue_no, seq),
        ).fetchone()
        # otherwise a later generation or a redriven entry needs the body
        if alive is None:
            (changes.finished if references == 1 else changes.released).append(number)


def drop_records(db: Connection, cutoffs: Cutoffs) -> None:
    """Delete metadata and log entries older than their retention."""
    if cutoffs.metadata:
        numbers = [n for (n,) in db.execute(_FINISHED, (cutoffs.metadata, MOST))]
        for table in ("dead_letters", "entries", "envelopes"):
            db.executemany(f"DELETE FROM {table} WHERE number = ?", [(n,) for n in numbers])
    if cutoffs.log:
        first = str(logtable.drop_old(_run(db), cutoffs.log, MOST)).encode()
        db.execute("INSERT OR REPLACE INTO settings VALUES (?, ?)", (logtable.FIRST, first))


def oldest(db: Connection, cutoffs: Cutoffs) -> Cutoffs:
    """Return the time of the oldest record of each kind that would be deleted; 0: none."""
    metadata = dead = None
    if cutoffs.metadata:
        query = f"SELECT accepted_at FROM envelopes WHERE number IN ({_FINISHED})"
        metadata = db.execute(query, (cutoffs.metadata, 1)).fetchone()
    if cutoffs.dead_letters:
        query = "SELECT min(at) FROM dead_letters WHERE settled = '' AND at < ?"
        dead = db.execute(query, (cutoffs.dead_letters,)).fetchone()
    log = logtable.oldest(_run(db), cutoffs.log) if cutoffs.log else 0
    return Cutoffs(metadata[0] if metadata else 0, (dead and dead[0]) or 0, log)


def _run(db: Connection) -> logtable.Run:
    return lambda query, values: db.execute(query, values).fetchall()
