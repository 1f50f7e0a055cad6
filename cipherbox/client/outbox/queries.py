"""Queries of the outbox; `outbox` has the rules and writes."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path

import orjson

from cipherbox import clock
from cipherbox.client.local_database import translated, version_of
from cipherbox.client.outbox.envelope_files import EnvelopeFiles
from cipherbox.client.outbox.rows import Row
from cipherbox.errors import RecipientRevoked

AHEAD_MS = 60_000

_COLUMNS = (
    "number, envelope_id, generation, messages, exchange, routing_key, recipients, flags, "
    "route_version, sealed_at, bytes, envelope_hash, content_key, state, accepted_at, queues, "
    "code, reason, changed_at, owed, file, transfer, commitment"
)


class OutboxQueries:
    """The queries of one home's outbox.  Methods block on the disk; StoreError when it fails."""

    _path: Path
    _large: EnvelopeFiles
    _db: sqlite3.Connection

    def version(self) -> tuple[int, int]:
        """Return a mark that changes with every commit to the outbox, in whichever process."""
        with translated(self._path):
            return version_of(self._db)

    def find(self, envelope_id: bytes) -> Row | None:
        """Return the row of an envelope, without its bytes."""
        rows = self._rows("WHERE envelope_id = ?", (envelope_id,))
        return rows[0] if rows else None

    def rows(self, states: Iterable[int], *, after: int = 0, most: int = 1000) -> list[Row]:
        """Return rows in these states, oldest first."""
        wanted = ",".join(str(int(s)) for s in states)
        return self._rows(
            f"WHERE state IN ({wanted}) AND number > ? ORDER BY number LIMIT ?", (after, most)
        )

    def newest(self, most: int, before: int = 1 << 62) -> list[Row]:
        """Return the newest rows with a number below ``before``, the oldest of them first."""
        return self._rows("WHERE number < ? ORDER BY number DESC LIMIT ?", (before, most))[::-1]

    def newest_to(self, client_id: str, most: int) -> list[Row]:
        """Return the newest rows to this client, the oldest of them first."""
        return self._rows(
            "WHERE EXISTS (SELECT 1 FROM json_each(envelopes.recipients) r WHERE r.value = ?) "
            "ORDER BY number DESC LIMIT ?",
            (client_id, most),
        )[::-1]

    def waiting(self, after: int, sealed_before: int, most: int) -> list[Row]:
        """Return what has to be sent and was not changed since a time, in order.

        What was changed later than in a minute was changed by a wrong clock, at any time.
        """
        return self._rows(
            "WHERE state = 0 AND number > ? AND (changed_at <= ? OR changed_at > ?) ORDER BY "
            "number LIMIT ?",
            (after, sealed_before, clock.now_ms() + AHEAD_MS, most),
        )

    def counts(self) -> dict[int, int]:
        """Return the number of rows in each state."""
        with translated(self._path):
            return dict(
                self._db.execute("SELECT state, count(*) FROM envelopes GROUP BY state").fetchall()
            )

    def unsigned(self, most: int) -> list[Row]:
        """Return what is confirmed and not signed for by all recipients, oldest first."""
        return self._rows("WHERE state = 1 AND owed > 0 ORDER BY number LIMIT ?", (most,))

    def unopened_by(self, client_id: str | None, most: int, after: int = 0) -> list[Row]:
        """Return what this recipient (None: any) has not opened and can be sealed again, oldest
        first.

        That is waiting, confirmed, or refused because a recipient was revoked, and has its key.
        """
        which, values = "", (after, RecipientRevoked.code)
        if client_id is not None:
            which = (
                " AND EXISTS (SELECT 1 FROM json_each(envelopes.recipients) r WHERE r.value = ?) "
                "AND NOT EXISTS (SELECT 1 FROM outcomes o WHERE o.number = envelopes.number AND "
                "o.outcome = 0 AND o.recipient = ?)"
            )
            values += (client_id, client_id)  # type: ignore[assignment]
        return self._rows(
            "WHERE number > ? AND (state IN (0, 1) OR (state = 2 AND code = ?)) AND owed > 0 "
            f"AND content_key IS NOT NULL{which} ORDER BY number LIMIT {int(most)}",
            values,
        )

    def bytes_of(self, row: Row) -> bytes | None:
        """Return the envelope's bytes; None if they were deleted."""
        with translated(self._path):
            if row.file is not None:
                raw = self._large.read(row.file, row.size)
                found = self._db.execute(
                    "SELECT 1 FROM envelopes WHERE envelope_id = ? AND generation = ? AND file = ?",
                    (row.envelope_id, row.generation, row.file),
                ).fetchone()
                return raw if found is not None else None  # it was freed while it was read
            found = self._db.execute(
                "SELECT data FROM envelopes WHERE number = ?", (row.number,)
            ).fetchone()
            return found[0] if found else None

    def outcomes(self, number: int) -> list[tuple[str, int, int, int, int, bytes]]:
        """Return (recipient, outcome, signed at, receipt, leaf, outcome of each message) for each
        recipient that signed.
        """
        with translated(self._path):
            return self._db.execute(
                "SELECT recipient, outcome, signed_at, receipt, leaf, messages FROM outcomes "
                "WHERE number = ? ORDER BY recipient",
                (number,),
            ).fetchall()

    def refused(self, most: int) -> list[Row]:
        """Return what HQ confirmed and a recipient or its handler refused: the newest, the oldest
        of them first.
        """
        return self._rows(
            "WHERE state = 1 AND number IN (SELECT o.number FROM outcomes o WHERE "
            "(o.outcome <> 0 OR o.messages <> x'') AND o.generation >= envelopes.generation) "
            "ORDER BY number DESC LIMIT ?",
            (most,),
        )[::-1]

    def refusals(self, number: int) -> dict[str, int]:
        """Return the reason of each recipient that refused the current generation, or whose handler
        gave up a message of it.
        """
        with translated(self._path):
            rows = self._db.execute(
                "SELECT o.recipient, o.outcome, o.messages FROM outcomes o JOIN envelopes e ON "
                "e.number = o.number WHERE o.number = ? AND (o.outcome <> 0 OR o.messages <> "
                "x'') AND o.generation >= e.generation ORDER BY o.recipient",
                (number,),
            ).fetchall()
        return {
            name: next(one for one in (whole, *messages) if one) for name, whole, messages in rows
        }

    def receipt(self, number: int) -> tuple[bytes, bytes] | None:
        """Return (receipt group, key bundle it was signed with)."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT r.bytes, b.bytes FROM receipts r JOIN bundles b ON b.hash = "
                "r.bundle_hash WHERE r.receipt = ?",
                (number,),
            ).fetchone()
        return (row[0], row[1]) if row else None

    def proof(self, number: int) -> tuple[int, bytes, bytes] | None:
        """Return (entry of HQ's log, proof, leaves) for a row; None if HQ gave none."""
        with translated(self._path):
            row: tuple[int, bytes, bytes] | None = self._db.execute(
                "SELECT p.entry, p.bytes, p.leaves FROM proofs p JOIN envelopes e ON e.proof = "
                "p.proof WHERE e.number = ?",
                (number,),
            ).fetchone()
        return row

    def key_of(self, route: str, key: str) -> tuple[bytes, bytes] | None:
        """Return (digest of the content, envelope id) for an idempotency key."""
        with translated(self._path):
            row: tuple[bytes, bytes] | None = self._db.execute(
                "SELECT digest, envelope_id FROM publish_keys WHERE route = ? AND key = ?",
                (route, key),
            ).fetchone()
        return row

    def size_bytes(self) -> int:
        """Bytes of all envelopes that are still here."""
        with translated(self._path):
            query = (
                "SELECT coalesce(sum(bytes), 0) FROM envelopes WHERE data IS NOT NULL OR file IS "
                "NOT NULL"
            )
            return int(self._db.execute(query).fetchone()[0])

    def _rows(self, where: str, values: Sequence[object]) -> list[Row]:
        with translated(self._path):
            found = self._db.execute(f"SELECT {_COLUMNS} FROM envelopes {where}", values).fetchall()
        return [_row(values) for values in found]


def _row(values: Sequence[object]) -> Row:
    fields = list(values)
    for at in (6, 15):
        fields[at] = tuple(orjson.loads(str(fields[at]))) if fields[at] else ()
    return Row(*fields)  # type: ignore[arg-type]
