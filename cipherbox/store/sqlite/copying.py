"""SQLite as the source and the target of a copy; see `cipherbox.store.copying`.

The source is one long read transaction: a snapshot, while HQ continues to write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from cipherbox.errors import StoreError
from cipherbox.store.copying import OWN_SETTINGS, TABLES, Row, batches, columns
from cipherbox.store.spool import Place, Spool, SpoolSnapshot
from cipherbox.store.sqlite import database
from cipherbox.store.sqlite.commit import INTO_SPOOL
from cipherbox.store.sqlite.database import Connection

_FROM = {
    "entries": "entries d JOIN envelopes e ON e.number = d.number",
    "dead_letters": "dead_letters d JOIN envelopes e ON e.number = d.number",
}
_ORDER = {
    "entries": "d.queue_no, d.seq",
    "envelopes": "d.number",
    "log": "d.entry",
    "old_log": "d.entry",
}
_OF_ENVELOPE = ("accepted_at", "bytes", "fan", "expires_at", "sender", "envelope_id")


class SqliteSource:
    """A snapshot of the database ``name`` and its spool in ``directory``.

    ``still``: nobody writes them, as those of a backup, which may be on a read-only disk.
    """

    def __init__(self, directory: Path, name: str, *, still: bool = False) -> None:
        path = directory / name
        if not path.exists():
            raise StoreError(f"no database {path}")
        self._spool = SpoolSnapshot(directory, still=still)
        self._db = database.connect_reader(path, still=still)
        try:
            with database.translated():
                version, ours = (
                    self._db.execute("PRAGMA user_version").fetchone()[0],
                    len(database.scripts()),
                )
                if version != ours:
                    if 0 < version < ours:
                        database.check_age(self._db, path, version)
                    raise StoreError(
                        f"{path} has schema {version}, and this program copies only schema {ours}",
                        remedy="upgrade a store first (cipherbox store upgrade); restore a backup "
                        "with the version that made it, then upgrade",
                    )
                self._spool.take(self._begin, self._undo)
        except BaseException:
            self.close()
            raise

    def _begin(self) -> list[str]:
        self._db.execute("BEGIN")
        return [
            name
            for (name,) in self._db.execute(
                "SELECT DISTINCT spool FROM bodies WHERE spool IS NOT NULL"
            )
        ]

    def _undo(self) -> None:
        self._db.execute("ROLLBACK")

    def rows(self, table: str) -> Iterator[list[Row]]:
        if table == "bodies":
            yield from batches(self._bodies(), lambda row: len(row[3] or b""))
            return
        names = [self._column(table, name) for name, _ in columns(table)]
        query = f"SELECT {', '.join(names)} FROM {_FROM.get(table, f'{table} d')}"
        if table in _ORDER:
            query += f" ORDER BY {_ORDER[table]}"
        with database.translated():
            found = (tuple(row) for row in self._db.execute(query))
            if table == "settings":
                found = (row for row in found if row[0] not in OWN_SETTINGS)
            yield from batches(
                found, lambda row: len(row[-1]) if table in ("log", "old_log") else 0
            )

    def _column(self, table: str, name: str) -> str:
        return f"e.{name}" if table in _FROM and name in _OF_ENVELOPE else f'd."{name}"'

    def _bodies(self) -> Iterator[Row]:
        query = (
            "SELECT b.number, e.pending, b.stored_hash, b.data, e.bytes, b.log_entry, b.spool, "
            "b.at, b.bytes FROM bodies b JOIN envelopes e ON e.number = b.number ORDER BY "
            "b.number"
        )
        for (
            number,
            pending,
            stored_hash,
            data,
            envelope_bytes,
            entry,
            name,
            at,
            size,
        ) in self._db.execute(query):
            raw = self._spool.read(Place(name, at), size) if name is not None else data
            yield number, pending, stored_hash, raw, envelope_bytes, entry

    def close(self) -> None:
        self._db.close()
        self._spool.close()


def fill(db: Connection, table: str, rows: Sequence[Row], spool: Spool, spool_from: int) -> None:
    """Insert rows in the open transaction; large bodies go to the spool first."""
    if table == "bodies":
        _fill_bodies(db, rows, spool, spool_from)
        return
    names = [name for name, _ in columns(table) if not (table in _FROM and name in _OF_ENVELOPE)]
    wanted = {name: at for at, (name, _) in enumerate(columns(table))}
    values = [[row[wanted[name]] for name in names] for row in rows]
    if table == "envelopes":
        names, values = [*names, "pending"], [[*value, value[wanted["fan"]]] for value in values]
    marks = ", ".join("?" * len(names))
    quoted = ", ".join(f'"{name}"' for name in names)
    db.executemany(f"INSERT INTO {table} ({quoted}) VALUES ({marks})", values)


def empty(db: Connection) -> None:
    """Delete everything but the database's own settings, in the open transaction."""
    for table in TABLES:
        if table != "settings":
            db.execute(f"DELETE FROM {table}")
    marks = ", ".join("?" * len(OWN_SETTINGS))
    db.execute(f"DELETE FROM settings WHERE name NOT IN ({marks})", OWN_SETTINGS)


def _fill_bodies(db: Connection, rows: Sequence[Row], spool: Spool, spool_from: int) -> None:
    large = [row for row in rows if len(row[3]) >= spool_from]
    places: dict[int, Place] = dict(
        zip((row[0] for row in large), spool.write([r[3] for r in large]), strict=True)
    )
    for number, pending, stored_hash, data, size, log_entry in rows:
        place = places.get(number)
        if place is None:
            db.execute(
                "INSERT INTO bodies (number, stored_hash, data, log_entry) VALUES (?, ?, ?, ?)",
                (number, stored_hash, data, log_entry),
            )
        else:
            db.execute(INTO_SPOOL, (number, stored_hash, *place, size, log_entry))
        db.execute("UPDATE envelopes SET pending = ? WHERE number = ?", (pending, number))
