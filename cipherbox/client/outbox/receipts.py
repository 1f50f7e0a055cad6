"""What recipients signed for, in the outbox: receipts are kept, bytes that nobody owes a word on
go.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from cipherbox import clock
from cipherbox.classes import define
from cipherbox.client.local_database import transaction
from cipherbox.client.outbox.queries import OutboxQueries
from cipherbox.client.outbox.rows import COPIES, UNTIL_OPENED, Signed
from cipherbox.envelope import transparency_log as log

_IDS = 500  # envelope ids in one IN (…)
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


class _Before(NamedTuple):
    """What a recipient had signed for an envelope, and with which receipt."""

    outcome: int
    generation: int
    messages: bytes
    signed_at: int
    receipt: int


@define
class _SentEnvelope:
    """An envelope that was sent to the signer of a receipt; ``before`` is the newest it signed."""

    before: _Before | None
    envelope_id: bytes
    number: int
    generation: int
    envelope_hash: bytes
    entry: int  # of HQ's log, as proven here; 0: not proven
    routing_key: str
    file: str | None
    owed: int


def _adds(one: Signed, before: _Before) -> bool:
    """Return whether an outcome says more than what its recipient signed before."""
    if before.outcome == one.outcome == 0 and before.messages and before.signed_at < one.signed_at:
        return before.messages != one.messages  # its handler tried again what it had given up
    # what was opened stays opened
    return before.outcome != 0 and before.generation < one.generation


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
            known = self._sent_to(recipient, outcomes)
            rows: list[tuple[object, ...]] = []
            opened: list[_SentEnvelope] = []
            replaced = {receipt or 0}
            for one in outcomes:
                envelope = known.get(one.envelope_id)
                if envelope is None or not self._is_of(envelope, one):
                    continue
                before = envelope.before
                if before is not None:
                    if not _adds(one, before):
                        continue
                    replaced.add(before.receipt)
                envelope.before = _Before(
                    one.outcome, one.generation, one.messages, one.signed_at, receipt or 0
                )
                rows.append((envelope.number, recipient, *envelope.before, one.leaf))
                if one.outcome == 0 and (before is None or before.outcome != 0):
                    opened.append(envelope)
                news.append(self._compared(envelope, one))
            db.executemany(
                "INSERT OR REPLACE INTO outcomes (number, recipient, outcome, generation, "
                "messages, signed_at, receipt, leaf) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                rows,
            )
            dropped += self._count_opened(opened)
            self._drop_unused_receipts(replaced)
        self._large.free(dropped)
        return news

    def _sent_to(self, recipient: str, outcomes: Sequence[Signed]) -> dict[bytes, _SentEnvelope]:
        """Return the envelopes that these outcomes name, by id, as far as they were sent to the
        recipient.
        """
        found: dict[bytes, _SentEnvelope] = {}
        is_sent: dict[str, bool] = {}  # the recipients of an envelope, as text
        for at in range(0, len(outcomes), _IDS):
            part = [one.envelope_id for one in outcomes[at : at + _IDS]]
            marks = ",".join("?" * len(part))
            query = (
                "SELECT e.envelope_id, e.recipients, e.number, e.generation, e.envelope_hash, "
                "coalesce(p.entry, 0), e.routing_key, e.file, e.owed, o.outcome, o.generation, "
                "o.messages, o.signed_at, o.receipt FROM envelopes e LEFT JOIN proofs p ON "
                "p.proof = e.proof LEFT JOIN outcomes o ON o.number = e.number AND o.recipient = "
                f"? WHERE e.envelope_id IN ({marks})"
            )
            for row in self._db.execute(query, (recipient, *part)):
                envelope_id, names = row[:2]
                sent = is_sent.get(names)
                if sent is None:
                    sent = is_sent[names] = recipient in orjson.loads(names)
                if sent:
                    before = _Before(*row[9:]) if row[9] is not None else None
                    found[envelope_id] = _SentEnvelope(before, envelope_id, *row[2:9])
        return found

    def _is_of(self, envelope: _SentEnvelope, one: Signed) -> bool:
        """Return whether an outcome is signed for bytes that were sent: of this generation or an
        earlier one.
        """
        if envelope.generation == one.generation:
            return envelope.envelope_hash == one.envelope_hash
        query = "SELECT envelope_hash FROM generations WHERE envelope_id = ? AND generation = ?"
        earlier = self._db.execute(query, (one.envelope_id, one.generation)).fetchone()
        return earlier is not None and earlier[0] == one.envelope_hash

    def _compared(self, envelope: _SentEnvelope, one: Signed) -> Signed:
        """Return an outcome with the entry of HQ's log that was proven here, if it is another."""
        if not one.log_entry or envelope.entry in (0, one.log_entry):
            return one
        leaf = log.leaf(one.envelope_id, one.generation, one.envelope_hash)
        entry = another_entry(one.log_entry, leaf, self.proof(envelope.number))
        return one._replace(proven_entry=entry)

    def _count_opened(self, opened: Sequence[_SentEnvelope]) -> list[str]:
        """Count these as opened once more; delete key and bytes of those that every recipient has
        opened, unless they went earlier.  Return the files to delete after the commit.
        """
        last = [one for one in opened if one.owed <= 1 and self._keep_until == UNTIL_OPENED]
        gone = {one.number for one in last}
        self._db.executemany(
            "UPDATE envelopes SET owed = owed - 1, content_key = NULL, data = NULL, file = NULL "
            "WHERE number = ?",
            [(number,) for number in gone],
        )
        self._db.executemany(
            "UPDATE envelopes SET owed = owed - 1 WHERE number = ?",
            [(one.number,) for one in opened if one.number not in gone],
        )
        files = [one.file for one in last if one.file]
        for one in opened:
            if one.routing_key == BULK:
                files += self._forget_file(one.envelope_id)
        return files

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
