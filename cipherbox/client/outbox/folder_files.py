"""The agent's files, as the outbox knows them: which were taken, in which envelope or transfer,
what became of them.

A file is *taken* (state 0) in the transaction that keeps its envelope, and stays so until it has
been moved out of `outgoing`.  So a crash at any instant sends nothing twice, and what was sent
before says nothing about a new file, even one of the same name, size and date.
"""

from __future__ import annotations

from collections.abc import Sequence

import orjson

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.local_database import transaction, translated
from cipherbox.client.outbox.origins import OVER, REFUSED, SENT, FolderFile, insert_file
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.rows import (
    CANCELLED,
    CONFIRMED,
    MOST_GENERATIONS,
    PARKED,
    WAITING,
)
from cipherbox.client.outbox.transfers import SENDING, STOPPED
from cipherbox.envelope.outcomes import Outcome, outcome_words

_COLUMNS = (
    "f.number, f.file, f.path, f.recipients, f.size, f.modified_ns, f.changed_ns, f.inode, "
    "f.envelope_id, f.message, f.transfer, f.state, f.place, f.reason, f.taken_at, f.changed_at"
)


@frozen
class Claim:
    """One file that the agent took; ``place`` is where it was moved, or is about to be."""

    number: int
    file: str
    path: tuple[str, ...]
    recipients: tuple[str, ...]
    size: int
    modified_ns: int
    changed_ns: int
    inode: int
    envelope_id: bytes | None
    message: int
    transfer: int | None
    state: int
    place: str
    reason: str
    taken_at: int
    changed_at: int
    fate: int = WAITING  # of its envelope
    why: str = ""  # it was refused by HQ, cancelled, or could not be sent


class FolderFiles:
    """See the module; uses the outbox's database, so calls come one at a time with the outbox's
    own.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._db, self._path = outbox.database

    def taken(self) -> list[Claim]:
        """Return files that are not moved yet, with their envelopes' states, oldest first."""
        with translated(self._path):
            rows = self._db.execute(
                f"SELECT {_COLUMNS}, e.state, e.reason, t.state, t.reason, m.state, m.reason "
                "FROM folder_files f LEFT JOIN envelopes e ON e.envelope_id = f.envelope_id "
                "LEFT JOIN transfers t ON t.number = f.transfer LEFT JOIN envelopes m ON "
                "m.envelope_id = t.manifest WHERE f.state = 0 ORDER BY f.number"
            ).fetchall()
        return [_claim(row[:16], _fate(row)) for row in rows]

    def plan(self, places: Sequence[tuple[int, str]]) -> None:
        """Record where files are about to be moved: (number, place)."""
        with transaction(self._db, self._path):
            self._db.executemany(
                "UPDATE folder_files SET place = ? WHERE number = ?",
                [(place, number) for number, place in places],
            )

    def settle(self, ends: Sequence[tuple[int, int, str, str]]) -> None:
        """Record the final state of files: (number, state, place, reason).  A transfer follows its
        file.
        """
        now = clock.now_ms()
        with transaction(self._db, self._path):
            self._db.executemany(
                "UPDATE folder_files SET state = ?, place = ?, reason = ?, changed_at = ? WHERE "
                "number = ?",
                [(state, place, reason, now, number) for number, state, place, reason in ends],
            )
            self._db.executemany(
                "UPDATE transfers SET file = ? WHERE ? <> '' AND number = "
                "(SELECT transfer FROM folder_files WHERE number = ?)",
                [(place, place, number) for number, _, place, _ in ends],
            )

    def refusals(self) -> list[Claim]:
        """Return files in `sent` that a recipient has refused since, with ``why``."""
        return self._outcomes(SENT)

    def taken_after_all(self) -> list[Claim]:
        """Return files in `refused` that their recipients have accepted since."""
        still = {claim.number for claim in self._outcomes(REFUSED)}
        return [claim for claim in self.refused() if claim.number not in still]

    def refused(self, most: int = 1000) -> list[Claim]:
        """Return files that a recipient has refused, newest last."""
        with translated(self._path):
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM folder_files f WHERE state = 2 ORDER BY number DESC "
                "LIMIT ?",
                (most,),
            ).fetchall()
        return [_claim(row, (CONFIRMED, row[13])) for row in rows[::-1]]

    def of_envelope(self, envelope_id: bytes) -> list[Claim]:
        """Return the files of an envelope, or the file of a manifest."""
        with translated(self._path):
            rows = self._db.execute(
                f"SELECT {_COLUMNS} FROM folder_files f WHERE envelope_id = ? OR transfer IN "
                "(SELECT number FROM transfers WHERE manifest = ?) ORDER BY message",
                (envelope_id, envelope_id),
            ).fetchall()
        return [_claim(row, (CONFIRMED, row[13])) for row in rows]

    def adopt(self, transfer: int, file: FolderFile) -> None:
        """Record the file of an unfinished transfer, which versions before 0.6.0 did not."""
        with transaction(self._db, self._path):
            if (
                self._db.execute(
                    "SELECT 1 FROM folder_files WHERE transfer = ?", (transfer,)
                ).fetchone()
                is None
            ):
                insert_file(self._db, file, clock.now_ms(), transfer=transfer)

    def _outcomes(self, state: int) -> list[Claim]:
        with translated(self._path):
            rows = self._db.execute(
                f"SELECT {_COLUMNS}, o.recipient, o.outcome, o.messages FROM outcomes o JOIN "
                "envelopes e ON e.number = o.number JOIN folder_files f ON (f.envelope_id = "
                "e.envelope_id OR f.transfer IN (SELECT number FROM transfers WHERE manifest = "
                "e.envelope_id)) WHERE (o.outcome <> 0 OR o.messages <> x'') AND f.state = ? "
                "AND o.generation >= e.generation AND (o.outcome <> ? OR e.generation >= ? OR "
                "e.content_key IS NULL) ORDER BY f.number, o.recipient",
                (state, Outcome.KEY_MISSING, MOST_GENERATIONS),
            ).fetchall()
        found: dict[int, Claim] = {}
        for row in rows:
            recipient, outcome, messages = row[16:]
            message = row[9] if row[8] is not None else 0
            if outcome == Outcome.OPENED:
                outcome = messages[message] if message < len(messages) else Outcome.OPENED
            if outcome == Outcome.OPENED:
                continue
            why = f"{recipient} refused it: {outcome_words(outcome)}"
            before = found.get(row[0])
            found[row[0]] = _claim(
                row[:16], (CONFIRMED, why if before is None else f"{before.why}; {why}")
            )
        return list(found.values())


def _fate(row: Sequence[object]) -> tuple[int, str]:
    envelope, why, transfer, stopped, manifest, refused = row[16:22]
    if row[8] is not None:
        return _state(envelope, why)
    if transfer == SENDING:
        return WAITING, ""
    if transfer is None or transfer == STOPPED:
        return PARKED, str(stopped or "it was given up")
    return _state(manifest, refused)


def _state(state: object, why: object) -> tuple[int, str]:
    """Return the state; an envelope whose history was deleted had been confirmed."""
    if state is None:
        return CONFIRMED, ""
    return int(str(state)), "it was cancelled" if state == CANCELLED else str(why)


def _claim(row: Sequence[object], fate: tuple[int, str]) -> Claim:
    fields = list(row)
    for at in (2, 3):
        fields[at] = tuple(orjson.loads(str(fields[at])))
    return Claim(*[*fields, *fate])  # type: ignore[arg-type]


__all__ = ["OVER", "REFUSED", "SENT", "Claim", "FolderFiles"]
