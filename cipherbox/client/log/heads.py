"""What a home remembers of HQ's log, durably, and for all its programs: the newest head it
verified, incarnations that ended with an admin's word, the contradiction that stopped it, what
`audit verify` read, what it cosigned as a witness.

Heads come with every batch.  They are committed without a sync: a power cut takes the home back to
a head of a few seconds before, which it verified as well; HQ then proves the newer ones again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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
# origin of an incarnation that a backup took the place of -> entries that are left of it
Ended = Mapping[str, int]


class Head(NamedTuple):
    """A head whose signature was verified, with the signed note itself."""

    checkpoint: Checkpoint
    note: bytes


def head_of(note: bytes) -> Head:
    """The head of a note that was verified before."""
    return Head(read_checkpoint(decode_note(note).text), note)


def is_gone(head: Checkpoint, ended: Ended) -> bool:
    """Whether a head is of entries that were lost in a restore of which an admin has said so."""
    return head.size > ended.get(head.origin, head.size)


def stopped(text: str, file: str) -> str:
    """What a contradiction means for the home, in words; ``file``: the evidence, if there is
    one.
    """
    show = (
        f"show the evidence in {file} to the admin and to your correspondents (cipherbox audit "
        "evidence FILE)"
        if file
        else "tell the admin and your correspondents"
    )
    then = (
        "when you know what happened and want to go on with this HQ: cipherbox audit accept "
        "(cipherbox manual log)"
    )
    return f"{text}. Nothing is sent or received until a person has looked: {show}; {then}"


class Heads:
    """See the module.  Methods block on the disk; StoreError when it fails."""

    def __init__(self, home: Path) -> None:
        self._path = home / DATABASE
        self._db = open_database(self._path, STEPS)

    def close(self) -> None:
        self._db.close()

    def newest(self) -> Head | None:
        """The newest head that any program of this home verified."""
        note = self._fact(_HEAD)
        return head_of(note) if note is not None else None

    def advance(self, head: Head, before: Head | None, ended: Ended) -> bool:
        """Remembers a verified head that goes on from ``before``, and what an admin's word ended.

        False, and nothing is, when another program of this home has remembered another one than
        ``before`` meanwhile:  whether the two go together is not known yet.  A smaller head counts
        only when the one before is gone.
        """
        with transaction(self._db, self._path, synced=False):
            known = self.newest()
            if known is not None and (
                before is None or known.checkpoint[:3] != before.checkpoint[:3]
            ):
                return False
            self._end(ended)
            gone = self.ended()
            if (
                known is None
                or is_gone(known.checkpoint, gone)
                or known.checkpoint.size <= head.checkpoint.size
            ):
                self._put(_HEAD, head.note)
        return True

    def ended(self) -> dict[str, int]:
        """Incarnations of which an admin said that a backup took their place, and how many
        entries are left of each.
        """
        with translated(self._path):
            return dict(self._db.execute("SELECT origin, size FROM ended").fetchall())

    def met(self) -> list[Head]:
        """Heads that programs of this home met and could not verify before they ended; some, if
        there are many.
        """
        with translated(self._path):
            return [
                head_of(note) for (note,) in self._db.execute("SELECT note FROM met LIMIT 4096")
            ]

    def keep_met(self, heads: Iterable[Head]) -> None:
        """Remembers heads that HQ has not proven yet: the next program of this home asks again."""
        with transaction(self._db, self._path, synced=False):
            self._db.executemany(
                "INSERT OR IGNORE INTO met VALUES (?)", [(head.note,) for head in heads]
            )

    def settle(self, heads: Iterable[Head]) -> None:
        """These are verified."""
        with transaction(self._db, self._path, synced=False):
            self._db.executemany("DELETE FROM met WHERE note = ?", [(head.note,) for head in heads])

    # -- a contradiction ---------------------------------------------------------------------------

    def contradiction(self) -> tuple[str, str] | None:
        """(what was found, the file of evidence), if this home found one."""
        text = self._fact(_CONTRADICTION)
        return (text.decode(), (self._fact(_FILE) or b"").decode()) if text is not None else None

    def contradict(self, text: str, file: str, between: Iterable[Head] = ()) -> None:
        """Remembers it; the first one counts."""
        with transaction(self._db, self._path):
            if self._fact(_CONTRADICTION) is None:
                self._put(_CONTRADICTION, text.encode())
                self._put(_FILE, file.encode())
                self._put(_BETWEEN, b"\0".join(head.note for head in between))

    def between(self) -> list[Head]:
        """The heads that contradict each other."""
        return [head_of(note) for note in (self._fact(_BETWEEN) or b"").split(b"\0") if note]

    def explained(self, ended: Ended) -> None:
        """An admin's word explains it: the log goes on."""
        with transaction(self._db, self._path):
            self._end(ended)
            self._db.execute(
                "DELETE FROM facts WHERE name IN (?, ?, ?)", (_CONTRADICTION, _FILE, _BETWEEN)
            )

    def forget(self) -> None:
        """A person has decided: the next head that is met counts as the first."""
        with transaction(self._db, self._path):
            self._db.execute("DELETE FROM facts WHERE name <> ?", (_COSIGNED,))
            self._db.execute("DELETE FROM read")
            self._db.execute("DELETE FROM met")

    # -- as a witness ------------------------------------------------------------------------------

    def cosigned(self) -> Head | None:
        """What this home cosigned last."""
        note = self._fact(_COSIGNED)
        return head_of(note) if note is not None else None

    def keep_cosigned(self, before: Head | None, head: Head) -> bool:
        """Remembers what is about to be cosigned, unless another program was faster; whether it
        may be signed.
        """
        with transaction(self._db, self._path):
            known = self._fact(_COSIGNED)
            if known != (before.note if before is not None else None):
                return False
            self._put(_COSIGNED, head.note)
            return True

    # -- audit verify ------------------------------------------------------------------------------

    def read_hashes(self, after: int, most: int) -> dict[int, bytes]:
        """Entry -> leaf hash, of what `audit verify` read before."""
        with translated(self._path):
            query = "SELECT entry, hash FROM read WHERE entry > ? ORDER BY entry LIMIT ?"
            return dict(self._db.execute(query, (after, most)).fetchall())

    def last_read(self) -> int:
        """The newest entry that `audit verify` read."""
        with translated(self._path):
            return int(self._db.execute("SELECT coalesce(max(entry), 0) FROM read").fetchone()[0])

    def keep_read(self, hashes: Iterable[tuple[int, bytes]]) -> None:
        """Remembers verified entries; what was remembered before stays."""
        with transaction(self._db, self._path):
            self._db.executemany("INSERT OR IGNORE INTO read VALUES (?, ?)", hashes)

    # -- revocations -------------------------------------------------------------------------------

    def revoked_entry(self, serial: str) -> int:
        """The earliest entry that was proven to say that the certificate was revoked; 0: none."""
        with translated(self._path):
            row = self._db.execute(
                "SELECT entry FROM revoked WHERE serial = ?", (serial,)
            ).fetchone()
        return int(row[0]) if row else 0

    def keep_revoked(self, serial: str, entry: int) -> int:
        """Remembers a proven place; the earliest counts, and is returned."""
        with transaction(self._db, self._path):
            known = self.revoked_entry(serial)
            if not known or entry < known:
                self._db.execute("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (serial, entry))
                return entry
        return known

    # -- inside ------------------------------------------------------------------------------------

    def _end(self, ended: Ended) -> None:
        self._db.executemany("INSERT OR REPLACE INTO ended VALUES (?, ?)", list(ended.items()))

    def _fact(self, name: str) -> bytes | None:
        with translated(self._path):
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _put(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def first_wrong(
    points: Sequence[Head], proofs: dict[int, tuple[bytes, ...]]
) -> tuple[Head, Head, tuple[bytes, ...]] | None:
    """The first two heads that do not go together, in the order in which they were met; the last
    is the newest.
    """
    *met, newest = points
    order = sorted(met, key=lambda head: head.checkpoint.size)
    for small, large in zip(order, [*order[1:], newest], strict=True):
        proof = (
            proofs.get(small.checkpoint.size, ())
            if small.checkpoint.size != large.checkpoint.size
            else ()
        )
        if compare(small.checkpoint, large.checkpoint, proof) != CONSISTENT:
            return small, large, proof
    return None
