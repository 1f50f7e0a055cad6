"""The inbox's rows of incoming files; `incoming_files` has the rules.

Calls are serialised, in the thread that holds the inbox's lock.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import Any

import attrs

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.inbox.encrypted_lines import EncryptedLines
from cipherbox.client.inbox.handler_contents import Contents
from cipherbox.client.publishing.parts import Manifest, read_manifest
from cipherbox.envelope.outcomes import Outcome

OPEN, NAMING, DONE, REFUSED, CHECKING = range(5)
RECEIPT_HELD = -1  # the receipt of an envelope whose files are incomplete, or that a handler has
FIRST_STEP = """
CREATE TABLE transfers (
  sender TEXT NOT NULL, id BLOB NOT NULL, state INTEGER NOT NULL DEFAULT 0, manifest BLOB, envelope INTEGER,
  file TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (sender, id)
) WITHOUT ROWID;
CREATE TABLE parts (
  sender TEXT NOT NULL, id BLOB NOT NULL, part INTEGER NOT NULL, part_bytes INTEGER NOT NULL, hash BLOB NOT NULL,
  PRIMARY KEY (sender, id, part)
) WITHOUT ROWID;
ALTER TABLE envelopes ADD COLUMN outcome INTEGER NOT NULL DEFAULT 0;
ALTER TABLE envelopes ADD COLUMN outcomes BLOB;
CREATE TABLE contents (
  number INTEGER PRIMARY KEY, sealed_at INTEGER NOT NULL, plain BLOB NOT NULL, states BLOB NOT NULL
);
CREATE TABLE failures (
  number INTEGER NOT NULL, message INTEGER NOT NULL, attempts INTEGER NOT NULL, next_at INTEGER NOT NULL,
  reason TEXT NOT NULL, PRIMARY KEY (number, message)
) WITHOUT ROWID;
"""  # noqa: E501
# Where the bytes lie, how many parts there are, what a file's line says beside its manifest, and
# all the envelopes that hold a manifest: a sender seals another one when a part was lost.
STEP = """
ALTER TABLE transfers ADD COLUMN partial TEXT NOT NULL DEFAULT '';
ALTER TABLE transfers ADD COLUMN locked INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transfers ADD COLUMN have INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transfers ADD COLUMN needs INTEGER NOT NULL DEFAULT -1;
ALTER TABLE transfers ADD COLUMN sha256 BLOB NOT NULL DEFAULT x'';
ALTER TABLE transfers ADD COLUMN message INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transfers ADD COLUMN headers TEXT NOT NULL DEFAULT '';
ALTER TABLE transfers ADD COLUMN sent_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE transfers ADD COLUMN changed_at INTEGER NOT NULL DEFAULT 0;
UPDATE transfers SET changed_at = strftime('%s', 'now') * 1000,
  have = (SELECT count(*) FROM parts WHERE parts.sender = transfers.sender AND parts.id = transfers.id);
UPDATE transfers SET state = 4 WHERE state = 1;
CREATE INDEX transfers_open ON transfers (state) WHERE state IN (0, 1, 4);
CREATE TABLE manifests (
  sender TEXT NOT NULL, id BLOB NOT NULL, number INTEGER NOT NULL, PRIMARY KEY (sender, id, number)
) WITHOUT ROWID;
CREATE INDEX manifests_by_number ON manifests (number);
INSERT INTO manifests SELECT sender, id, envelope FROM transfers WHERE envelope IS NOT NULL;
ALTER TABLE envelopes ADD COLUMN suite INTEGER NOT NULL DEFAULT 0;
"""  # noqa: E501
# Small files of a batch lie in one hidden file until they get their own; and a file that has its
# end holds no receipt.
SHARED = """
ALTER TABLE transfers ADD COLUMN shared TEXT NOT NULL DEFAULT '';
ALTER TABLE transfers ADD COLUMN at INTEGER NOT NULL DEFAULT 0;
CREATE INDEX transfers_shared ON transfers (shared) WHERE state IN (0, 1, 4);
DELETE FROM manifests WHERE NOT EXISTS (SELECT 1 FROM transfers t
  WHERE t.sender = manifests.sender AND t.id = manifests.id AND t.state IN (0, 1, 4));
"""
MOST = (1 << 62) - 1  # of a time stated by others, whose clocks are untrusted: SQLite's limit
_COLUMNS = (
    "sender, id, state, coalesce(manifest, x''), coalesce(envelope, 0), file, partial, locked, "
    "have, needs, sha256, message, headers, sent_at, shared, at"
)
Step = Callable[[Callable[[sqlite3.Connection], None], Sequence[bytes]], None]


@frozen
class Row:
    """One file. ``have`` and ``needs`` count its stored and required parts (-1: not counted);
    ``envelope`` is the number of the envelope that names it; ``shared`` is the hidden file it
    shares, and ``at`` its offset there.
    """

    sender: str
    transfer: bytes
    state: int = OPEN
    manifest: bytes = attrs.field(default=b"", repr=False)
    envelope: int = 0
    file: str = ""
    partial: str = ""
    locked: bool = attrs.field(default=False, converter=bool)
    have: int = 0
    needs: int = -1
    sha256: bytes = b""
    message: int = 0
    headers: str = attrs.field(default="", repr=False)
    sent_at: int = 0
    shared: str = ""
    at: int = 0

    @property
    def name(self) -> tuple[str, bytes]:
        return self.sender, self.transfer

    @property
    def whole(self) -> bool:
        """Whether everything that its manifest requires has arrived."""
        if not self.manifest or self.state != OPEN:
            return bool(self.manifest)
        return self.have >= (
            self.needs if self.needs >= 0 else len(read_manifest(self.manifest).hashes)
        )


class Transfers:
    """Reads and writes the rows of incoming files."""

    def __init__(
        self, db: sqlite3.Connection, contents: Contents | None, stored_lines: EncryptedLines | None
    ) -> None:
        self._db, self._contents, self._stored_lines = db, contents, stored_lines

    def find(self, sender: str, transfer: bytes) -> Row | None:
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM transfers WHERE sender = ? AND id = ?", (sender, transfer)
        ).fetchone()
        return Row(*row) if row is not None else None

    def pending(self, most: int) -> list[tuple[str, bytes]]:
        """Return complete files that are not finished yet, at most this many."""
        return self._db.execute(
            "SELECT sender, id FROM transfers WHERE manifest IS NOT NULL AND state IN (0, 1, 4)"
            " AND (state <> 0 OR needs < 0 OR have >= needs) LIMIT ?",
            (most,),
        ).fetchall()

    def named(self) -> list[Row]:
        """Return files whose name is recorded, but which may not have it yet."""
        return self._rows("state = 1", ())

    def stale(self, before_ms: int) -> list[Row]:
        """Return incomplete files without progress since that time."""
        return self._rows("state = 0 AND changed_at < ?", (before_ms,))

    def shares(self, shared: str) -> bool:
        """Return whether an unfinished file is stored in that hidden file."""
        found = self._db.execute(
            "SELECT 1 FROM transfers WHERE shared = ? AND state IN (0, 1, 4) LIMIT 1", (shared,)
        ).fetchone()
        return found is not None

    def number(self, sender: str, envelope_id: bytes) -> int:
        """Return the number of an envelope's row."""
        found = self._db.execute(
            "SELECT number FROM envelopes WHERE sender = ? AND envelope_id = ?",
            (sender, envelope_id),
        ).fetchone()
        return int(found[0])

    def envelope_id(self, row: Row) -> bytes:
        """Return the id of the envelope that names the file."""
        found = self._db.execute(
            "SELECT envelope_id FROM envelopes WHERE number = ?", (row.envelope,)
        ).fetchone()
        return bytes(found[0]) if found is not None else bytes(16)

    # -- inside the inbox's transaction ------------------------------------------------------------

    def part(self, row: Row, part: int) -> None:
        """Record that a part is stored."""
        self._begin(row)
        name = row.sender, row.transfer
        new = self._db.execute(
            "INSERT OR IGNORE INTO parts SELECT sender, id, ?, 0, x'' FROM transfers"
            " WHERE sender = ? AND id = ? AND state = 0",
            (part, *name),
        ).rowcount
        self._db.execute(
            "UPDATE transfers SET have = have + ?, changed_at = ? WHERE sender = ? AND id = ?",
            (max(new, 0), clock.now_ms(), *name),
        )

    def manifest(self, row: Row, number: int, raw: bytes, manifest: Manifest) -> None:
        """Record a file's manifest from envelope ``number``. The first one counts; a different one
        is refused.
        """
        before = self.find(row.sender, row.transfer)
        if before is not None and before.manifest and before.state != REFUSED:
            if read_manifest(before.manifest) != manifest:
                self._db.execute(
                    "UPDATE envelopes SET outcome = ? WHERE number = ?", (Outcome.OTHER, number)
                )
            elif before.state != DONE:
                self._hold([row.name], number)
            return
        self._begin(row)
        self._db.execute(
            "UPDATE transfers SET manifest = ?, envelope = ?, needs = ?, sent_at = ?, state = 0, "
            "changed_at = ? WHERE sender = ? AND id = ?",
            (
                raw,
                number,
                len(manifest.hashes),
                min(row.sent_at, MOST),
                clock.now_ms(),
                row.sender,
                row.transfer,
            ),
        )
        self._hold([row.name], number)

    def add(self, rows: Iterable[Row], number: int) -> None:
        """Record files of one envelope that arrived as messages."""
        now = clock.now_ms()
        names: list[tuple[str, bytes]] = []

        def values() -> Iterator[tuple[object, ...]]:
            for row in rows:  # one at a time: 65,000 of them would be 200 MB
                names.append(row.name)
                yield (
                    row.sender,
                    row.transfer,
                    row.state,
                    row.manifest,
                    number,
                    row.partial,
                    row.locked,
                    row.message,
                    row.headers,
                    min(row.sent_at, MOST),
                    now,
                    row.shared,
                    row.at,
                )

        self._db.executemany(
            "INSERT OR IGNORE INTO transfers (sender, id, state, manifest, envelope, partial, "
            "locked, message, headers, sent_at, changed_at, shared, at) VALUES (?, ?, ?, ?, ?, "
            "?, ?, ?, ?, ?, ?, ?, ?)",
            values(),
        )
        self._hold(names, number)

    def malformed(self, number: int) -> None:
        """Record that the envelope has neither a valid part nor a valid manifest."""
        self._db.execute(
            "UPDATE envelopes SET outcome = ? WHERE number = ?", (Outcome.MALFORMED, number)
        )

    def done(self, found: Sequence[tuple[Row, Manifest, bytes]], now: int) -> None:
        """Record that files have their names: their lines are stored, a handler may get them, and
        receipts become due.
        """
        self._db.executemany(
            "UPDATE transfers SET state = ?, file = ? WHERE sender = ? AND id = ?",
            [(DONE, row.file, *row.name) for row, _, _ in found],
        )
        self._db.executemany(
            "DELETE FROM parts WHERE sender = ? AND id = ?", [row.name for row, _, _ in found]
        )
        for row, manifest, line in found:
            if self._stored_lines is not None:
                suite = self._suite(row.envelope)
                self._stored_lines.write(
                    row.sender, self.envelope_id(row), now, line, [manifest.content_type], suite
                )
        if self._contents is not None:
            for number in {row.envelope for row, _, _ in found}:
                files = [(row, manifest) for row, manifest, _ in found if row.envelope == number]
                self._contents.files(
                    number,
                    self.envelope_id(files[0][0]),
                    [
                        (
                            row.sender,
                            row.message,
                            manifest.content_type,
                            row.sent_at,
                            _about(row, manifest),
                        )
                        for row, manifest in files
                    ],
                )
        self._release([row for row, _, _ in found])

    def refuse(self, row: Row, reason: str) -> None:
        """Record that the file will not become complete; its receipt says so."""
        name = row.sender, row.transfer
        self._db.execute(
            "UPDATE transfers SET state = ?, reason = ?, have = 0 WHERE sender = ? AND id = ?",
            (REFUSED, reason, *name),
        )
        self._db.execute("DELETE FROM parts WHERE sender = ? AND id = ?", name)
        self._db.execute(
            "UPDATE envelopes SET outcome = ? WHERE number IN"
            " (SELECT number FROM manifests WHERE sender = ? AND id = ?)",
            (Outcome.OTHER, *name),
        )
        if self._contents is not None:
            self._contents.drop(row.envelope, row.message)
        self._release([row])

    def _hold(self, names: Sequence[tuple[str, bytes]], number: int) -> None:
        """Hold back the envelope's receipt until the files are complete."""
        self._db.execute(
            "UPDATE envelopes SET receipt = ? WHERE number = ?", (RECEIPT_HELD, number)
        )
        self._db.executemany(
            "INSERT OR IGNORE INTO manifests VALUES (?, ?, ?)", [(*name, number) for name in names]
        )

    def _release(self, rows: Sequence[Row]) -> None:
        """Make the receipts of envelopes that name the files due, unless another of their files is
        incomplete or a handler has them.
        """
        numbers: set[int] = set()
        for row in rows:
            found = self._db.execute(
                "SELECT number FROM manifests WHERE sender = ? AND id = ?", row.name
            ).fetchall()
            numbers.update(number for (number,) in found)
        self._db.executemany(
            "DELETE FROM manifests WHERE sender = ? AND id = ?", [row.name for row in rows]
        )
        self._db.executemany(
            "UPDATE envelopes SET receipt = NULL WHERE number = ? AND receipt = -1"
            " AND NOT EXISTS (SELECT 1 FROM manifests m WHERE m.number = envelopes.number)"
            " AND NOT EXISTS (SELECT 1 FROM contents c WHERE c.number = envelopes.number)",
            [(number,) for number in numbers],
        )

    # -- transactions of their own -----------------------------------------------------------------

    def check(self, rows: Sequence[Row]) -> None:
        """Record that everything of these files arrived: no part of them is written from here
        on.
        """
        values = [(CHECKING, *row.name) for row in rows]
        self._each("UPDATE transfers SET state = ? WHERE sender = ? AND id = ?", values)

    def name(self, rows: Sequence[Row]) -> None:
        """Record the names that these files get now."""
        self._each(
            "UPDATE transfers SET state = ?, file = ?, sha256 = ? WHERE sender = ? AND id = ?",
            [(NAMING, row.file, row.sha256, *row.name) for row in rows],
        )

    def _each(self, statement: str, values: Sequence[tuple[object, ...]]) -> None:
        if not values:
            return
        self._db.execute("BEGIN IMMEDIATE")
        try:
            self._db.executemany(statement, values)
            self._db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise

    # -- internals ---------------------------------------------------------------------------------

    def _begin(self, row: Row) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO transfers (sender, id, partial, locked, changed_at) VALUES "
            "(?, ?, ?, ?, ?)",
            (row.sender, row.transfer, row.partial, row.locked, clock.now_ms()),
        )

    def _suite(self, number: int) -> int:
        found = self._db.execute(
            "SELECT suite FROM envelopes WHERE number = ?", (number,)
        ).fetchone()
        return int(found[0]) if found is not None else 0

    def _rows(self, where: str, values: Sequence[object]) -> list[Row]:
        return [
            Row(*row)
            for row in self._db.execute(f"SELECT {_COLUMNS} FROM transfers WHERE {where}", values)
        ]


def _about(row: Row, manifest: Manifest) -> dict[str, Any]:
    """Return the description of a file for a handler."""
    about: dict[str, Any] = {
        "file": row.file,
        "filename": "/".join(manifest.path),
        "size": manifest.size,
    }
    if manifest.entries:
        about["files"] = [
            {"name": one.path, "size": one.size} for one in manifest.entries if one.size >= 0
        ]
    if row.locked:
        about["kept"] = f"{row.sender}/{row.transfer.hex()}"
    return about


def in_turn(touched: dict[str, dict[bytes, None]]) -> Iterator[tuple[str, bytes]]:
    """Yield one file of each sender, then the next of each: many files of one sender delay no
    other's.
    """
    for row in zip_longest(
        *([(sender, transfer) for transfer in own] for sender, own in touched.items())
    ):
        yield from (name for name in row if name is not None)
