"""The outbox: every envelope this home sealed, on disk before the first try on the network.

A row has the state of its envelope: waiting, confirmed by HQ, parked (refused, with the reason) or
cancelled.  Its bytes stay until the recipients have signed for it (or only until HQ confirmed or
delivered it, as `keep_until` says), with the content key encrypted under the home's local key: so
it can be sealed again, in the next generation, when a recipient's key was lost or HQ was restored
from an older backup.  Then the bytes are deleted and the row stays, as the message's history.

Rules.
1. `write` is one transaction for all that gathered: new envelopes and outcomes together.
2. Large envelopes are files in ``outbox/`` (`envelope_files`).  A file no row names is left by a
   crash; it is swept once it is a day old, since another process of this home may be about to
   name it.  So is the copy of a file that all recipients have.
3. An outcome belongs to a generation: one of an earlier generation changes nothing.
4. Whatever refers to a row is deleted in the transaction that deletes the row: SQLite gives the
   number of the newest row to the next one, and that must not inherit what others signed.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox import clock
from cipherbox.client.hq_time import deletion_ms
from cipherbox.client.local_database import open_database, sync, transaction, translated
from cipherbox.client.outbox import origins
from cipherbox.client.outbox.envelope_files import EnvelopeFiles
from cipherbox.client.outbox.receipts import STEP as RECEIPTS_STEP
from cipherbox.client.outbox.receipts import UNUSED, OutboxReceipts
from cipherbox.client.outbox.rows import (
    COPIES,
    UNTIL_CONFIRMED,
    UNTIL_DELIVERED,
    UNTIL_OPENED,
    Confirmed,
    OutboxEntry,
    Proven,
    Refused,
    confirm_values,
    values_of,
)
from cipherbox.client.sessions.sending_chains import STEP as CHAINS
from cipherbox.client.sessions.sending_chains import RatchetStep, SendingChains
from cipherbox.portable import private_dir
from cipherbox.sealing.local_secret_box import SecretBox

DATABASE, FILES = "outbox.sqlite3", "outbox"
_FILE_FROM = 64 * 1024  # larger envelopes are files: in the database they cost half the speed
_ORPHAN_S = 24 * 3600
OLDEST = 4  # what 0.5.0 wrote
STEPS = (
    """
CREATE TABLE envelopes (
    number INTEGER PRIMARY KEY, envelope_id BLOB NOT NULL, generation INTEGER NOT NULL, messages INTEGER NOT NULL,
    exchange TEXT NOT NULL, routing_key TEXT NOT NULL, recipients TEXT NOT NULL, flags INTEGER NOT NULL,
    route_version INTEGER NOT NULL, sealed_at INTEGER NOT NULL, bytes INTEGER NOT NULL, envelope_hash BLOB NOT NULL,
    content_key BLOB, data BLOB, file TEXT, transfer INTEGER,
    state INTEGER NOT NULL DEFAULT 0, accepted_at INTEGER NOT NULL DEFAULT 0, queues TEXT NOT NULL DEFAULT '',
    code INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', changed_at INTEGER NOT NULL,
    owed INTEGER NOT NULL, proof INTEGER
);
CREATE UNIQUE INDEX envelopes_by_id ON envelopes (envelope_id);
CREATE INDEX envelopes_waiting ON envelopes (number) WHERE state = 0;
CREATE TABLE generations (envelope_id BLOB NOT NULL, generation INTEGER NOT NULL, envelope_hash BLOB NOT NULL);
CREATE TABLE outcomes (
    number INTEGER NOT NULL, recipient TEXT NOT NULL, generation INTEGER NOT NULL, outcome INTEGER NOT NULL,
    signed_at INTEGER NOT NULL, receipt INTEGER NOT NULL, leaf INTEGER NOT NULL, PRIMARY KEY (number, recipient)
) WITHOUT ROWID;
CREATE TABLE receipts (
    receipt INTEGER PRIMARY KEY, recipient TEXT NOT NULL, bundle_hash BLOB NOT NULL, taken_at INTEGER NOT NULL,
    hash BLOB NOT NULL, bytes BLOB NOT NULL
);
CREATE UNIQUE INDEX receipts_by_hash ON receipts (hash);
CREATE TABLE bundles (hash BLOB PRIMARY KEY, bytes BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE transfers (
    number INTEGER PRIMARY KEY, id BLOB NOT NULL, file TEXT NOT NULL, path TEXT NOT NULL, size INTEGER NOT NULL,
    modified_ns INTEGER NOT NULL, part_bytes INTEGER NOT NULL, recipients TEXT NOT NULL, content_type TEXT NOT NULL,
    compress INTEGER NOT NULL, copied INTEGER NOT NULL, state INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '', manifest BLOB, made_at INTEGER NOT NULL, done_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE parts (
    transfer INTEGER NOT NULL, part INTEGER NOT NULL, hash BLOB NOT NULL, envelope_id BLOB NOT NULL,
    PRIMARY KEY (transfer, part)
) WITHOUT ROWID;
CREATE INDEX parts_by_envelope ON parts (envelope_id);
CREATE TABLE proofs (
    proof INTEGER PRIMARY KEY, entry INTEGER NOT NULL, bytes BLOB NOT NULL, leaves BLOB NOT NULL
);
""",  # noqa: E501
    """
CREATE TABLE histories (one INTEGER PRIMARY KEY CHECK (one = 1), history BLOB NOT NULL);
""",
    "ALTER TABLE transfers ADD COLUMN stanza INTEGER NOT NULL DEFAULT 0;\n",
    CHAINS,
    origins.STEP,
    "ALTER TABLE envelopes ADD COLUMN commitment BLOB NOT NULL DEFAULT x'';\n",
    "CREATE TABLE contact (one INTEGER PRIMARY KEY CHECK (one = 1), at INTEGER NOT NULL);\n",
    origins.MESSAGES_STEP,
    "ALTER TABLE transfers ADD COLUMN entries TEXT NOT NULL DEFAULT '';\n",
    RECEIPTS_STEP,
)


class Outbox(OutboxReceipts):
    """The outbox of one home.  Methods block on the disk; calls come from one thread at a time.

    ``hides`` encrypts copies of files; None: they are plain copies.
    """

    def __init__(
        self,
        home: Path,
        keep_until: str = UNTIL_OPENED,
        chains: SendingChains | None = None,
        hides: SecretBox | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._chains = chains
        self.hides = hides
        self._path = home / DATABASE
        self._files = home / FILES
        self._large = EnvelopeFiles(self._files)
        self._keep_until = keep_until
        self._db = open_database(
            self._path,
            STEPS,
            OLDEST,
            lambda lost: say(f"{lost}; messages or receipts of that time may be missing"),
        )
        try:
            with translated(self._path):
                private_dir(self._files)
                self._sweep()
        except BaseException:
            self._db.close()
            raise

    @property
    def database(self) -> tuple[sqlite3.Connection, Path]:
        """Return the connection and its file, for the tables of `transfers`."""
        return self._db, self._path

    @property
    def directory(self) -> Path:
        """Return the directory of large envelopes and of copies of files."""
        return self._files

    @property
    def has_spares(self) -> bool:
        """Whether `drop_spares` is to be called now and then."""
        return self._large.has_spares

    def drop_spares(self) -> None:
        """Delete files whose envelopes were deleted some seconds ago."""
        self._large.drop_spares(old=True)

    def close(self) -> None:
        self._large.drop_spares()
        with suppress(sqlite3.Error):
            self._db.close()

    # -- what the sender writes --------------------------------------------------------------------

    def write(
        self,
        fresh: Sequence[OutboxEntry] = (),
        confirmed: Sequence[Confirmed] = (),
        refused: Sequence[Refused] = (),
        proven: Sequence[Proven] = (),
        steps: Sequence[RatchetStep] = (),
        *,
        on_visible: Callable[[], None] | None = None,
    ) -> set[bytes]:
        """Write all of it in one transaction; raise StoreError if nothing was written.

        ``on_visible`` is called between commit and sync, when every process of this home sees it
        and nothing but a power failure loses it; on StoreError after that it may be kept or not.

        ``steps`` are ratchet steps that belong to none of the envelopes.  Return the ids of the
        sessions that another process used meanwhile, and of the envelopes whose idempotency key
        another envelope has.  These envelopes, the steps of these sessions, and what was sealed in
        them were left out.
        """
        dropped: list[str] = []
        with translated(self._path):
            places = self._spool(fresh)
        written = [name for name in places if name is not None]
        try:
            with transaction(self._db, self._path, synced=on_visible is None):
                now = clock.now_ms()
                moved = self._turn([*steps, *(step for item in fresh for step in item.steps)])
                if moved:
                    fresh, places = self._unmoved(fresh, places, moved, dropped)
                taken = origins.insert(self._db, fresh, now)
                if taken:
                    fresh, places = self._unmoved(fresh, places, taken, dropped)
                for item, file in zip(fresh, places, strict=True):
                    if item.replaces is not None:
                        dropped += self._remove(item.replaces)
                    if item.generation:
                        dropped += self._next_generation(item, file, now)
                self._insert(fresh, places, now)
                proofs = {name: n for one in proven for name, n in self._prove(one).items()}
                self._confirm(confirmed, proofs, now, dropped)
                for out in refused:
                    self._db.execute(
                        "UPDATE envelopes SET state = ?, code = ?, reason = ?, changed_at = ? "
                        "WHERE envelope_id = ? AND generation = ? AND state IN (0, 2)",
                        (out.state, out.code, out.reason, now, out.envelope_id, out.generation),
                    )
        except BaseException:
            self._large.delete(written)
            raise
        if on_visible is not None:
            on_visible()
            sync(self._path)
        self._large.free(dropped)
        return moved | taken

    def delivered(self, envelope_id: bytes) -> None:
        """Record that HQ delivered it to all; with ``keep_until`` delivered, delete its bytes."""
        if self._keep_until != UNTIL_DELIVERED:
            return
        with transaction(self._db, self._path):
            row = self._db.execute(
                "SELECT number FROM envelopes WHERE envelope_id = ?", (envelope_id,)
            ).fetchone()
            dropped = self._forget_bytes(row[0], "state = 1") if row else []
        self._large.free(dropped)

    def again(self, envelope_id: bytes) -> bool:
        """Let it wait to be sent again, unchanged; return False if its bytes were deleted."""
        with transaction(self._db, self._path):
            changed = self._db.execute(
                "UPDATE envelopes SET state = 0, code = 0, reason = '', changed_at = ? "
                "WHERE envelope_id = ? AND (data IS NOT NULL OR file IS NOT NULL)",
                (clock.now_ms(), envelope_id),
            ).rowcount
        return changed > 0

    def resend_if_restored(self, incarnation: bytes) -> int:
        """Compare the id of HQ's store with the last one seen, and return the number of envelopes
        that wait again.

        Another id means that HQ was restored and may have lost what it confirmed: every envelope
        that a recipient has not signed for is sent again, and every file with all its parts.
        """
        with transaction(self._db, self._path):
            db = self._db
            db.execute("INSERT OR REPLACE INTO contact VALUES (1, ?)", (clock.now_ms(),))
            known = db.execute("SELECT history FROM histories").fetchone()
            if known is not None and known[0] == incarnation:
                return 0
            db.execute("INSERT OR REPLACE INTO histories VALUES (1, ?)", (incarnation,))
            if known is None:
                return 0
            open_files = (
                "SELECT t.number FROM transfers t LEFT JOIN envelopes e ON e.envelope_id = "
                "t.manifest WHERE t.state = 0 OR (t.state = 1 AND e.owed > 0)"
            )
            numbers = [number for (number,) in db.execute(open_files)]
            db.executemany("DELETE FROM parts WHERE transfer = ?", [(n,) for n in numbers])
            db.executemany(
                "UPDATE transfers SET state = 0, done_bytes = 0 WHERE number = ?",
                [(n,) for n in numbers],
            )
            return db.execute(
                "UPDATE envelopes SET state = 0, code = 0, reason = '', changed_at = ? "
                "WHERE state = 1 AND owed > 0 AND (data IS NOT NULL OR file IS NOT NULL)",
                (clock.now_ms(),),
            ).rowcount

    def forget(self, before_ms: int) -> int:
        """Delete the history of what was settled before that time; return the number of rows."""
        with transaction(self._db, self._path):
            which = "state IN (1, 3) AND data IS NULL AND file IS NULL AND changed_at < ?"
            self._db.execute(
                "DELETE FROM outcomes WHERE number IN (SELECT number FROM envelopes WHERE "
                f"{which})",
                (before_ms,),
            )
            gone = self._db.execute(f"DELETE FROM envelopes WHERE {which}", (before_ms,)).rowcount
            origins.forget(self._db)
            for statement in UNUSED:
                self._db.execute(statement)
        return gone

    def drop(self, envelope_ids: Iterable[bytes]) -> None:
        """Delete these envelopes with their history."""
        with transaction(self._db, self._path):
            dropped = [name for one in envelope_ids for name in self._remove(one)]
        self._large.free(dropped)

    # -- inside ------------------------------------------------------------------------------------

    def _turn(self, steps: Sequence[RatchetStep]) -> set[bytes]:
        return self._chains.write(self._db, steps) if steps and self._chains is not None else set()

    def _unmoved(
        self,
        fresh: Sequence[OutboxEntry],
        places: Sequence[str | None],
        moved: set[bytes],
        dropped: list[str],
    ) -> tuple[list[OutboxEntry], list[str | None]]:
        kept: list[tuple[OutboxEntry, str | None]] = []
        for item, file in zip(fresh, places, strict=True):
            if item.envelope_id not in moved and not any(
                step.session_id in moved for step in item.steps
            ):
                kept.append((item, file))
            elif file is not None:
                dropped.append(file)
        return [item for item, _ in kept], [file for _, file in kept]

    def _spool(self, fresh: Sequence[OutboxEntry]) -> list[str | None]:
        """Return the file of each envelope; None for those that the database has."""
        large = [item for item in fresh if len(item.raw) >= _FILE_FROM]
        names = iter(
            self._large.write(
                [(f"{item.envelope_id.hex()}-{item.generation}", item.raw) for item in large]
            )
        )
        return [next(names) if len(item.raw) >= _FILE_FROM else None for item in fresh]

    def _insert(self, fresh: Sequence[OutboxEntry], places: Sequence[str | None], now: int) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO envelopes (envelope_id, generation, messages, exchange, "
            "routing_key, recipients, flags, route_version, sealed_at, bytes, envelope_hash, "
            "content_key, data, file, transfer, changed_at, owed, commitment) VALUES (?, ?, ?, "
            "?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [values_of(i, file, now) for i, file in zip(fresh, places, strict=True)],
        )

    def _next_generation(self, item: OutboxEntry, file: str | None, now: int) -> list[str]:
        """Replace the generation before; a recipient that opened it need not sign again."""
        db = self._db
        row = db.execute(
            "SELECT number, file FROM envelopes WHERE envelope_id = ? AND generation < ?",
            (item.envelope_id, item.generation),
        ).fetchone()
        if row is None:
            return []
        db.execute(
            "INSERT INTO generations SELECT envelope_id, generation, envelope_hash FROM "
            "envelopes WHERE number = ?",
            (row[0],),
        )
        db.execute(
            "UPDATE envelopes SET (envelope_id, generation, messages, exchange, routing_key, "
            "recipients, flags, route_version, sealed_at, bytes, envelope_hash, content_key, "
            "data, file, transfer, changed_at, owed, commitment) = (?, ?, ?, ?, ?, ?, ?, ?, ?, "
            "?, ?, ?, ?, ?, ?, ?, ?, ?), state = 0, code = 0, reason = ? WHERE number = ?",
            (*values_of(item, file, now), item.reason, row[0]),
        )
        opened = {
            name
            for (name,) in db.execute(
                "SELECT recipient FROM outcomes WHERE number = ? AND outcome = 0", (row[0],)
            )
        }
        owed = sum(name not in opened for name in item.recipients)
        db.execute("UPDATE envelopes SET owed = ? WHERE number = ?", (owed, row[0]))
        return [row[1]] if row[1] else []

    def _confirm(
        self,
        confirmed: Sequence[Confirmed],
        proofs: dict[bytes, int],
        now: int,
        dropped: list[str],
    ) -> None:
        """Record confirms, and the proofs of these and other envelopes.  Each UPDATE writes the
        whole row, the envelope included.
        """
        written = self._db.executemany(
            "UPDATE envelopes SET accepted_at = ?, queues = ?, code = 0, changed_at = ?, "
            "reason = CASE state WHEN 0 THEN reason ELSE '' END, state = 1, "
            "proof = coalesce(?, proof) "
            "WHERE envelope_id = ? AND generation = ? AND state <> 1",
            [confirm_values(c, now, proofs.get(c.envelope_id)) for c in confirmed],
        ).rowcount
        if written == len(confirmed):  # usually: then their proofs are written, too
            done = {c.envelope_id for c in confirmed}
            proofs = {name: proof for name, proof in proofs.items() if name not in done}
        self._db.executemany(
            "UPDATE envelopes SET proof = ?1 WHERE envelope_id = ?2 AND proof IS NOT ?1",
            [(proof, name) for name, proof in proofs.items()],
        )
        if self._keep_until == UNTIL_CONFIRMED:
            for one in confirmed:
                dropped += self._forget_bytes_of(one.envelope_id)

    def _prove(self, one: Proven) -> dict[bytes, int]:
        """Store a proof; return its number for each of its envelopes."""
        # A pipe deletes an envelope as soon as its peer has the bytes, which may be before HQ's
        # confirm is recorded.
        for name in one.envelope_ids:
            inserted = self._db.execute(
                "INSERT INTO proofs (entry, bytes, leaves) SELECT ?, ?, ? "
                "WHERE EXISTS (SELECT 1 FROM envelopes WHERE envelope_id = ?)",
                (one.entry, one.proof, one.leaves, name),
            )
            if inserted.rowcount:
                assert inserted.lastrowid is not None
                return dict.fromkeys(one.envelope_ids, inserted.lastrowid)
        return {}

    def _forget_bytes_of(self, envelope_id: bytes) -> list[str]:
        row = self._db.execute(
            "SELECT number FROM envelopes WHERE envelope_id = ?", (envelope_id,)
        ).fetchone()
        return self._forget_bytes(row[0], "state = 1") if row else []

    def _remove(self, envelope_id: bytes) -> list[str]:
        row = self._db.execute(
            "SELECT number, file, proof FROM envelopes WHERE envelope_id = ?", (envelope_id,)
        ).fetchone()
        if row is None:
            return []
        number, file, proof = row
        for table in ("envelopes", "publish_keys", "generations"):
            self._db.execute(f"DELETE FROM {table} WHERE envelope_id = ?", (envelope_id,))
        self._drop_outcomes(number)
        if proof is not None:
            self._drop_proof(proof)
        return [file] if file else []

    def _sweep(self) -> None:
        if old := self._older_files(self._files):
            named = {
                n for (n,) in self._db.execute("SELECT file FROM envelopes WHERE file IS NOT NULL")
            }
            self._large.delete(name for name in old if name not in named)
        if old := self._older_files(self._files / COPIES):
            needed = self._db.execute(
                "SELECT t.id FROM transfers t LEFT JOIN envelopes e ON e.envelope_id = t.manifest "
                "WHERE t.copied AND NOT (t.state = 1 AND e.owed <= 0)"
            )
            named = {transfer_id.hex() for (transfer_id,) in needed}
            self._large.delete(f"{COPIES}/{name}" for name in old if name not in named)

    def _older_files(self, directory: Path) -> list[str]:
        """Return the names of files that no process of this home is about to name."""
        oldest = deletion_ms(self._path.parent) / 1000 - _ORPHAN_S
        with suppress(FileNotFoundError):
            return [
                e.name for e in os.scandir(directory) if e.is_file() and e.stat().st_mtime < oldest
            ]
        return []
