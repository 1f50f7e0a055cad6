"""What a home records of HQ's log, durably and for all its programs.

That is: the newest head it verified, incarnations that ended with an admin's signed statement, the
contradiction that stopped it, the entries that `audit verify` read, and the head it cosigned last
as a witness.

Heads arrive with every batch. They are committed without a sync: after a power failure the home has
a head of a few seconds before, which it verified as well; HQ then proves the newer ones again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from cipherbox.client.local_database import open_database, transaction, translated
from cipherbox.envelope.checkpoint import Checkpoint, decode_note, read_checkpoint
from cipherbox.envelope.evidence import CONSISTENT, compare

DATABASE = "log.sqlite3"
STEPS = (
    """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE ended (origin TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE met (note BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE read (entry INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE revoked (serial TEXT PRIMARY KEY, entry INTEGER NOT NULL) WITHOUT ROWID;
""",
)
_HEAD, _COSIGNED, _READ = "head", "cosigned", "read"
_CONTRADICTION, _FILE, _BETWEEN = "contradiction", "contradiction-file", "contradiction-between"
# origin of an incarnation that a backup replaced -> the number of its entries that remain
Ended = Mapping[str, int]


class Head(NamedTuple):
    """A head whose signature was verified, with the signed note."""

    checkpoint: Checkpoint
    note: bytes


def head_of(note: bytes) -> Head:
    """Return the head of a note that was verified before."""
    return Head(read_checkpoint(decode_note(note).text), note)


def time_of(db: sqlite3.Connection) -> int:
    """Return when the newest verified head in this database was signed, ms since 1970; 0 without
    one.
    """
    row = db.execute("SELECT value FROM facts WHERE name = ?", (_HEAD,)).fetchone()
    return head_of(bytes(row[0])).checkpoint.at if row is not None else 0


def is_lost(head: Checkpoint, ended: Ended) -> bool:
    """Return whether a head covers entries that were lost in a restore, as an admin has signed."""
    return head.size > ended.get(head.origin, head.size)


def contradiction_text(text: str, file: str) -> str:
    """Return what a contradiction means for the home; ``file`` is the evidence, if any."""
    show = (
        f"show the evidence in {file} to the admin and to your correspondents (cipherbox audit "
        "evidence FILE)"
        if file
        else "tell the admin and your correspondents"
    )
    then = (
        "once you know what happened and want to continue with this HQ: cipherbox audit accept "
        "(cipherbox manual log)"
    )
    return f"{text}. Nothing is sent or received until a person has decided: {show}; {then}"


class Heads:
    """The database of a home's log records. Methods block on the disk and raise StoreError if it
    fails.
    """

    def __init__(self, home: Path) -> None:
        self._path = home / DATABASE
        self._db = open_database(self._path, STEPS)

    def close(self) -> None:
        self._db.close()

    def newest(self) -> Head | None:
        """Return the newest head that any program of this home verified."""
        note = self._fact(_HEAD)
        return head_of(note) if note is not None else None

    def advance(self, head: Head, before: Head | None, ended: Ended) -> bool:
        """Record a verified head that is consistent with ``before``, and the ended incarnations.

        Return False, recording nothing, if another program of this home has recorded a head other
        than ``before`` meanwhile: their consistency is not known yet. A smaller head only counts
        when the one before was lost in a restore.
        """
        with transaction(self._db, self._path, synced=False):
            known = self.newest()
            if known is not None and (
                before is None or known.checkpoint[:3] != before.checkpoint[:3]
            ):
                return False
            self._end(ended)
            lost = self.ended()
            if (
                known is None
                or is_lost(known.checkpoint, lost)
                or known.checkpoint.size <= head.checkpoint.size
            ):
                self._put(_HEAD, head.note)
        return True

    def ended(self) -> dict[str, int]:
        """Return the incarnations that a backup replaced, as an admin signed, and the number of
        entries that remain of each.
        """
        with translated(self._path):
            return dict(self._db.execute("SELECT origin, size FROM ended").fetchall())

    def unproven(self) -> list[Head]:
        """Return heads that programs of this home observed but could not verify before they ended,
        up to a limit.
        """
        with translated(self._path):
            return [
                head_of(note) for (note,) in self._db.execute("SELECT note FROM met LIMIT 4096")
            ]

    def keep_unproven(self, heads: Iterable[Head]) -> None:
        """Record heads that HQ has not proven yet, so that the home's next program asks again."""
        with transaction(self._db, self._path, synced=False):
            self._db.executemany(
                "INSERT OR IGNORE INTO met VALUES (?)", [(head.note,) for head in heads]
            )

    def mark_proven(self, heads: Iterable[Head]) -> None:
        """Record that these heads are verified."""
        with transaction(self._db, self._path, synced=False):
            self._db.executemany("DELETE FROM met WHERE note = ?", [(head.note,) for head in heads])

    # -- a contradiction ---------------------------------------------------------------------------

    def contradiction(self) -> tuple[str, str] | None:
        """Return the contradiction's description and its evidence file, if this home found one."""
        text = self._fact(_CONTRADICTION)
        return (text.decode(), (self._fact(_FILE) or b"").decode()) if text is not None else None

    def keep_contradiction(self, text: str, file: str, between: Iterable[Head] = ()) -> None:
        """Record a contradiction, unless one is recorded already."""
        with transaction(self._db, self._path):
            if self._fact(_CONTRADICTION) is None:
                self._put(_CONTRADICTION, text.encode())
                self._put(_FILE, file.encode())
                self._put(_BETWEEN, b"\0".join(head.note for head in between))

    def contradicting_heads(self) -> list[Head]:
        """Return the heads that contradict each other."""
        return [head_of(note) for note in (self._fact(_BETWEEN) or b"").split(b"\0") if note]

    def resolve_contradiction(self, ended: Ended) -> None:
        """Remove the contradiction: an admin's signed statement explains it."""
        with transaction(self._db, self._path):
            self._end(ended)
            self._db.execute(
                "DELETE FROM facts WHERE name IN (?, ?, ?)", (_CONTRADICTION, _FILE, _BETWEEN)
            )

    def forget(self) -> None:
        """Delete what is recorded: a person has decided, and the next head observed counts as the
        first.
        """
        with transaction(self._db, self._path):
            self._db.execute("DELETE FROM facts WHERE name <> ?", (_COSIGNED,))
            self._db.execute("DELETE FROM read")
            self._db.execute("DELETE FROM met")

    # -- as a witness ------------------------------------------------------------------------------

    def cosigned(self) -> Head | None:
        """Return the head that this home cosigned last."""
        note = self._fact(_COSIGNED)
        return head_of(note) if note is not None else None

    def keep_cosigned(self, before: Head | None, head: Head) -> bool:
        """Record the head to be cosigned. Return False if another program was faster: then it must
        not be signed.
        """
        with transaction(self._db, self._path):
            known = self._fact(_COSIGNED)
            if known != (before.note if before is not None else None):
                return False
            self._put(_COSIGNED, head.note)
            return True

    # -- audit verify ------------------------------------------------------------------------------

    def read_hashes(self, after: int, most: int) -> dict[int, bytes]:
        """Return the leaf hash of each entry that `audit verify` read before."""
        with translated(self._path):
            query = "SELECT entry, hash FROM read WHERE entry > ? ORDER BY entry LIMIT ?"
            return dict(self._db.execute(query, (after, most)).fetchall())

    def last_read(self) -> int:
        """Return the newest entry that `audit verify` read."""
        with translated(self._path):
            return int(self._db.execute("SELECT coalesce(max(entry), 0) FROM read").fetchone()[0])

    def keep_read(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        """Record verified entries; earlier records remain."""
        with transaction(self._db, self._path):
            self._db.executemany("INSERT OR IGNORE INTO read VALUES (?, ?)", hashes)

    # -- revocations -------------------------------------------------------------------------------

    def revoked_entry(self, serial: str) -> int:
        """Return the earliest entry proven to revoke the certificate, or 0."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT entry FROM revoked WHERE serial = ?", (serial,)
            ).fetchone()
        return int(row[0]) if row else 0

    def keep_revoked(self, serial: str, entry: int) -> int:
        """Record a proven entry, and return the earliest one."""
        with transaction(self._db, self._path):
            known = self.revoked_entry(serial)
            if not known or entry < known:
                self._db.execute("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (serial, entry))
                return entry
        return known

    # -- internals ---------------------------------------------------------------------------------

    def _end(self, ended: Ended) -> None:
        self._db.executemany("INSERT OR REPLACE INTO ended VALUES (?, ?)", list(ended.items()))

    def _fact(self, name: str) -> bytes | None:
        with translated(self._path):
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _put(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def first_inconsistent(
    points: Sequence[Head], proofs: dict[int, tuple[bytes, ...]]
) -> tuple[Head, Head, tuple[bytes, ...]] | None:
    """Return the first two inconsistent heads and their proof, by size, or None; the last point is
    the newest head.
    """
    *earlier, newest = points
    order = sorted(earlier, key=lambda head: head.checkpoint.size)
    for small, large in pairwise([*order, newest]):
        proof = (
            proofs.get(small.checkpoint.size, ())
            if small.checkpoint.size != large.checkpoint.size
            else ()
        )
        if compare(small.checkpoint, large.checkpoint, proof) != CONSISTENT:
            return small, large, proof
    return None
