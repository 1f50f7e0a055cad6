"""What recipients signed for, in the outbox: receipts are kept, bytes that nobody owes a word on go."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress

import orjson

from cipherbox.client.localdb import transaction
from cipherbox.client.outbox.reading import OutboxReading
from cipherbox.client.outbox.rows import UNTIL_OPENED, Signed, now_ms


class OutboxSigned(OutboxReading):
    """A part of `Outbox`."""

    _keep_until: str

    def sign(self, bundle: bytes, bundle_hash: bytes, recipient: str, group: bytes, digest: bytes,
             outcomes: Sequence[Signed]) -> list[Signed]:  # fmt: skip
        """Keeps a verified receipt and what it says; returns what was news.  Bytes nobody owes a word on go."""
        news: list[Signed] = []
        dropped: list[str] = []
        with transaction(self._db, self._path):
            db, now = self._db, now_ms()
            found = db.execute("SELECT receipt FROM receipts WHERE hash = ?", (digest,)).fetchone()
            if found is not None:
                return []
            db.execute("INSERT OR IGNORE INTO bundles VALUES (?, ?)", (bundle_hash, bundle))
            row = (recipient, bundle_hash, now, digest, group)
            receipt = db.execute(
                "INSERT INTO receipts (recipient, bundle_hash, taken_at, hash, bytes) VALUES (?, ?, ?, ?, ?)", row
            ).lastrowid
            for one in outcomes:
                if self._take(one, receipt or 0, dropped):
                    news.append(one)
            if not news:
                db.execute("DELETE FROM receipts WHERE receipt = ?", (receipt,))
        self._delete(dropped)
        return news

    def _take(self, one: Signed, receipt: int, dropped: list[str]) -> bool:
        db = self._db
        row = db.execute(
            "SELECT number, recipients, generation, envelope_hash FROM envelopes WHERE envelope_id = ?",
            (one.envelope_id,),
        ).fetchone()
        if row is None or one.recipient not in orjson.loads(row[1]):
            return False
        number, _, generation, digest = row
        if generation != one.generation:
            earlier = db.execute(
                "SELECT envelope_hash FROM generations WHERE envelope_id = ? AND generation = ?",
                (one.envelope_id, one.generation),
            ).fetchone()
            digest = earlier[0] if earlier else None
        if digest != one.envelope_hash:
            return False
        before = db.execute(
            "SELECT outcome, generation, messages, signed_at FROM outcomes WHERE number = ? AND recipient = ?",
            (number, one.recipient),
        ).fetchone()
        values = (number, one.recipient, one.generation, one.outcome, one.signed_at, receipt, one.leaf, one.messages)
        insert = "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        if before is not None and before[0] == one.outcome == 0 and before[2] and before[3] < one.signed_at:
            db.execute(insert, values)  # what its handler gave up it has tried again
            return bool(before[2] != one.messages)
        if before is not None and (before[0] == 0 or before[1] >= one.generation):
            return False  # what was opened stays opened, whatever comes again
        db.execute(insert, values)
        if one.outcome == 0:
            db.execute("UPDATE envelopes SET owed = owed - 1 WHERE number = ?", (number,))
            if self._keep_until == UNTIL_OPENED:
                dropped += self._forget_bytes(number, "owed <= 0")
        return True

    def _forget_bytes(self, number: int, when: str) -> list[str]:
        """Drops key and bytes; the names of files to delete after the commit."""
        row = self._db.execute(f"SELECT file FROM envelopes WHERE number = ? AND {when}", (number,)).fetchone()
        if row is None:
            return []
        self._db.execute(
            "UPDATE envelopes SET content_key = NULL, data = NULL, file = NULL WHERE number = ?", (number,)
        )
        return [row[0]] if row[0] else []

    def _delete(self, names: Iterable[str]) -> None:
        for name in names:
            with suppress(OSError):
                os.unlink(self._files / name)
