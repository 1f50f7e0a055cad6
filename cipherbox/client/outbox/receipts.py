"""What recipients signed for, in the outbox: receipts are kept, bytes that nobody owes a word on
go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import orjson

from cipherbox import clock
from cipherbox.client.local_database import transaction
from cipherbox.client.outbox.queries import OutboxQueries
from cipherbox.client.outbox.rows import COPIES, UNTIL_OPENED, Signed
from cipherbox.envelope import transparency_log as log

BULK = ".bulk"  # routing key of a mailbox for files
# Rows that nothing refers to.
UNUSED = (
    "DELETE FROM outcomes WHERE number NOT IN (SELECT number FROM envelopes)",
    "DELETE FROM generations WHERE envelope_id NOT IN (SELECT envelope_id FROM envelopes)",
    "DELETE FROM receipts WHERE receipt NOT IN (SELECT receipt FROM outcomes)",
    "DELETE FROM bundles WHERE hash NOT IN (SELECT bundle_hash FROM receipts)",
    "DELETE FROM proofs WHERE proof NOT IN (SELECT proof FROM envelopes WHERE proof IS NOT NULL)",
)
# Finds the outcomes of a receipt, then deletes what earlier versions left behind.  A migration
# never changes: do not add to `UNUSED`.
STEP = "CREATE INDEX outcomes_by_receipt ON outcomes (receipt);\n" + "".join(
    f"{statement};\n" for statement in UNUSED
)


def another_entry(named: int, leaf: bytes, proof: tuple[int, bytes, bytes] | None) -> int:
    """The entry that HQ proved here for ``leaf``, if it is another than the one ``named`` in a
    receipt; else 0.

    ``proof``: what is kept with the envelope; it may be of another generation.
    """
    if not named or proof is None or proof[0] == named:
        return 0
    entry, _, leaves = proof
    return (
        entry
        if any(leaves[at : at + len(leaf)] == leaf for at in range(0, len(leaves), len(leaf)))
        else 0
    )


class OutboxReceipts(OutboxQueries):
    """The half of `Outbox` that keeps receipts."""

    _keep_until: str

    def sign(
        self,
        bundle: bytes,
        bundle_hash: bytes,
        recipient: str,
        group: bytes,
        digest: bytes,
        outcomes: Sequence[Signed],
    ) -> list[Signed]:
        """Keep a verified receipt and return what was new in it; delete the bytes of envelopes that
        every recipient has signed for.
        """
        news: list[Signed] = []
        dropped: list[str] = []
        with transaction(self._db, self._path):
            db, now = self._db, clock.now_ms()
            found = db.execute("SELECT receipt FROM receipts WHERE hash = ?", (digest,)).fetchone()
            if found is not None:
                return []
            db.execute("INSERT OR IGNORE INTO bundles VALUES (?, ?)", (bundle_hash, bundle))
            row = (recipient, bundle_hash, now, digest, group)
            receipt = db.execute(
                "INSERT INTO receipts (recipient, bundle_hash, taken_at, hash, bytes) VALUES (?, "
                "?, ?, ?, ?)",
                row,
            ).lastrowid
            replaced = {receipt or 0}
            for one in outcomes:
                known = self._take(one, receipt or 0, dropped, replaced)
                if known is not None:
                    news.append(known)
            self._drop_unused_receipts(replaced)
        self._large.free(dropped)
        return news

    def _take(
        self, one: Signed, receipt: int, dropped: list[str], replaced: set[int]
    ) -> Signed | None:
        """Return what was new in it; add to ``replaced`` the receipt that said otherwise before."""
        db = self._db
        found = self._signed_envelope(one)
        if found is None:
            return None
        number, routing_key, one = found
        before = db.execute(
            "SELECT outcome, generation, messages, signed_at, receipt FROM outcomes WHERE "
            "number = ? AND recipient = ?",
            (number, one.recipient),
        ).fetchone()
        values = (
            number,
            one.recipient,
            one.generation,
            one.outcome,
            one.signed_at,
            receipt,
            one.leaf,
            one.messages,
        )
        insert = "INSERT OR REPLACE INTO outcomes VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        if (
            before is not None
            and before[0] == one.outcome == 0
            and before[2]
            and before[3] < one.signed_at
        ):
            if before[2] == one.messages:
                return None
            db.execute(insert, values)  # its handler tried again what it had given up
            replaced.add(before[4])
            return one
        if before is not None and (before[0] == 0 or before[1] >= one.generation):
            return None  # what was opened stays opened
        db.execute(insert, values)
        if before is not None:
            replaced.add(before[4])
        if one.outcome == 0:
            db.execute("UPDATE envelopes SET owed = owed - 1 WHERE number = ?", (number,))
            if self._keep_until == UNTIL_OPENED:
                dropped += self._forget_bytes(number, "owed <= 0")
            if routing_key == BULK:
                dropped += self._forget_file(one.envelope_id)
        return one

    def _signed_envelope(self, one: Signed) -> tuple[int, str, Signed] | None:
        """Return (number, routing key) of an envelope that was sent to this recipient, and what is
        signed, with the entry of HQ's log that was proven here; None if it was not sent.
        """
        db = self._db
        row = db.execute(
            "SELECT e.number, e.recipients, e.generation, e.envelope_hash, coalesce(p.entry, 0), "
            "e.routing_key FROM envelopes e LEFT JOIN proofs p ON p.proof = e.proof WHERE "
            "e.envelope_id = ?",
            (one.envelope_id,),
        ).fetchone()
        if row is None or one.recipient not in orjson.loads(row[1]):
            return None
        number, _, generation, digest, entry, routing_key = row
        if generation != one.generation:
            earlier = db.execute(
                "SELECT envelope_hash FROM generations WHERE envelope_id = ? AND generation = ?",
                (one.envelope_id, one.generation),
            ).fetchone()
            digest = earlier[0] if earlier else None
        if digest != one.envelope_hash:
            return None
        if one.log_entry and entry not in (0, one.log_entry):
            leaf = log.leaf(one.envelope_id, one.generation, one.envelope_hash)
            one = one._replace(proven_entry=another_entry(one.log_entry, leaf, self.proof(number)))
        return number, routing_key, one

    def _forget_file(self, manifest: bytes) -> list[str]:
        """Delete the hashes of a file's parts once all recipients have signed for its manifest;
        return the name of its copy, to delete after the commit.
        """
        db, copies = self._db, []
        for number, transfer_id, copied in db.execute(
            "SELECT t.number, t.id, t.copied FROM transfers t JOIN envelopes e ON e.envelope_id = "
            "t.manifest WHERE t.manifest = ? AND e.owed <= 0",
            (manifest,),
        ).fetchall():
            db.execute("DELETE FROM parts WHERE transfer = ?", (number,))
            copies += [f"{COPIES}/{transfer_id.hex()}"] if copied else []
        return copies

    def _drop_outcomes(self, number: int) -> None:
        """Delete, inside a transaction, what recipients signed for an envelope."""
        receipts = self._db.execute(
            "SELECT receipt FROM outcomes WHERE number = ?", (number,)
        ).fetchall()
        self._db.execute("DELETE FROM outcomes WHERE number = ?", (number,))
        self._drop_unused_receipts({receipt for (receipt,) in receipts})

    def _drop_unused_receipts(self, receipts: Iterable[int]) -> None:
        self._db.executemany(
            "DELETE FROM receipts WHERE receipt = ? AND NOT EXISTS (SELECT 1 FROM outcomes o "
            "WHERE o.receipt = receipts.receipt)",
            [(receipt,) for receipt in receipts],
        )

    def _drop_proof(self, proof: int) -> None:
        """Delete, inside a transaction, a proof unless another envelope has it."""
        db = self._db
        (leaves,) = db.execute("SELECT leaves FROM proofs WHERE proof = ?", (proof,)).fetchone()
        query = "SELECT 1 FROM envelopes WHERE envelope_id = ? AND proof = ?"
        for one in log.read_leaves(leaves):
            if db.execute(query, (one.envelope_id, proof)).fetchone():
                return
        db.execute("DELETE FROM proofs WHERE proof = ?", (proof,))

    def _forget_bytes(self, number: int, when: str) -> list[str]:
        """Delete key and bytes; return the names of files to delete after the commit."""
        row = self._db.execute(
            f"SELECT file FROM envelopes WHERE number = ? AND {when}", (number,)
        ).fetchone()
        if row is None:
            return []
        self._db.execute(
            "UPDATE envelopes SET content_key = NULL, data = NULL, file = NULL WHERE number = ?",
            (number,),
        )
        return [row[0]] if row[0] else []
