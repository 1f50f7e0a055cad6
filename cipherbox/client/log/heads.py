"""What a home remembers of HQ's log, durably, and for all its programs: the newest head it verified, incarnations that
ended with an admin's word, the contradiction that stopped it, what `audit verify` read, what it cosigned as a witness.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from cipherbox.client.localdb import open_database, transaction, translated
from cipherbox.envelope.checkpoint import Checkpoint, decode_note, read_checkpoint

DATABASE = "log.sqlite3"
STEPS = (
    """
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE ended (origin TEXT PRIMARY KEY, note BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE read (entry INTEGER PRIMARY KEY, hash BLOB NOT NULL);
CREATE TABLE revoked (serial TEXT PRIMARY KEY, entry INTEGER NOT NULL) WITHOUT ROWID;
""",
)
_HEAD, _COSIGNED, _CONTRADICTION, _FILE, _READ = "head", "cosigned", "contradiction", "contradiction-file", "read"


class Head(NamedTuple):
    """A head whose signature was verified, with the signed note itself."""

    checkpoint: Checkpoint
    note: bytes


def head_of(note: bytes) -> Head:
    """The head of a note that was verified before."""
    return Head(read_checkpoint(decode_note(note).text), note)


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

    def advance(self, head: Head, ended: Iterable[Head] = ()) -> None:
        """Remembers a verified head that goes on from the newest; a smaller one counts only when incarnations ended."""
        gone = list(ended)
        with transaction(self._db, self._path):
            for one in gone:
                self._db.execute("INSERT OR REPLACE INTO ended VALUES (?, ?)", (one.checkpoint.origin, one.note))
            known = self.newest()
            names = self.ended()
            if known is None or known.checkpoint.origin in names or known.checkpoint.size <= head.checkpoint.size:
                self._put(_HEAD, head.note)

    def ended(self) -> set[str]:
        """Origins of incarnations of which an admin said that a backup took their place."""
        with translated(self._path):
            return {origin for (origin,) in self._db.execute("SELECT origin FROM ended")}

    # -- a contradiction ----------------------------------------------------------------------------------------

    def contradiction(self) -> tuple[str, str] | None:
        """(what was found, the file of evidence), if this home found one."""
        text = self._fact(_CONTRADICTION)
        return (text.decode(), (self._fact(_FILE) or b"").decode()) if text is not None else None

    def contradict(self, text: str, file: str) -> None:
        """Remembers it; the first one counts."""
        with transaction(self._db, self._path):
            if self._fact(_CONTRADICTION) is None:
                self._put(_CONTRADICTION, text.encode())
                self._put(_FILE, file.encode())

    def explained(self) -> None:
        """An admin's word explains it: the log goes on."""
        with transaction(self._db, self._path):
            self._db.execute("DELETE FROM facts WHERE name IN (?, ?)", (_CONTRADICTION, _FILE))

    def forget(self) -> None:
        """A person has decided: the next head that is met counts as the first."""
        with transaction(self._db, self._path):
            self._db.execute("DELETE FROM facts WHERE name <> ?", (_COSIGNED,))
            self._db.execute("DELETE FROM read")

    # -- as a witness -------------------------------------------------------------------------------------------

    def cosigned(self) -> Head | None:
        """What this home cosigned last."""
        note = self._fact(_COSIGNED)
        return head_of(note) if note is not None else None

    def keep_cosigned(self, before: Head | None, head: Head) -> bool:
        """Remembers what is about to be cosigned, unless another program was faster; whether it may be signed."""
        with transaction(self._db, self._path):
            known = self._fact(_COSIGNED)
            if known != (before.note if before is not None else None):
                return False
            self._put(_COSIGNED, head.note)
            return True

    # -- audit verify -------------------------------------------------------------------------------------------

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

    # -- revocations --------------------------------------------------------------------------------------------

    def revoked_entry(self, serial: str) -> int:
        """The earliest entry that was proven to say that the certificate was revoked; 0: none."""
        with translated(self._path):
            row = self._db.execute("SELECT entry FROM revoked WHERE serial = ?", (serial,)).fetchone()
        return int(row[0]) if row else 0

    def keep_revoked(self, serial: str, entry: int) -> int:
        """Remembers a proven place; the earliest counts, and is returned."""
        with transaction(self._db, self._path):
            known = self.revoked_entry(serial)
            if not known or entry < known:
                self._db.execute("INSERT OR REPLACE INTO revoked VALUES (?, ?)", (serial, entry))
                return entry
        return known

    # -- inside -------------------------------------------------------------------------------------------------

    def _fact(self, name: str) -> bytes | None:
        with translated(self._path):
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return row[0] if row else None

    def _put(self, name: str, value: bytes) -> None:
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))
