"""The only file that knows sqlite3: opening, schema, transactions, and what its errors mean here.

WAL with synchronous=FULL: a commit is one sync of the log, and durable when it returns.  Pages of 16 KiB suit envelopes
of one to a few KiB.  One connection, used by one thread at a time.  An upgrade runs in one transaction, after a copy
of the database was put beside it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from cipherbox.errors import Damaged, DiskFull, SchemaTooNew, StoreError, StoreUnavailable

APPLICATION_ID = 0x43425831  # "CBX1"
_ROWS = 50  # rows of one INSERT: more gains nothing

Connection = sqlite3.Connection


def _scripts() -> list[str]:
    files = sorted((f for f in resources.files(__package__).iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [f.read_text() for f in files]


def plain(error: sqlite3.Error) -> StoreError | DiskFull | StoreUnavailable:
    """What a database error means to HQ."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"the disk of the database is full: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Damaged(f"the database is damaged: {error}; restore a backup")
    return StoreUnavailable(f"the database does not answer: {error}")


@contextmanager
def translated() -> Iterator[None]:
    """Turns sqlite3's errors into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise plain(error) from error


def connect(path: Path, *, create: bool) -> Connection:
    """Opens the database and brings its schema up to date; StoreError or a retryable refusal says what is wrong."""
    if not create and not path.exists():
        raise StoreError(f"there is no database {path}; run: cipherbox init")
    with translated():
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: Connection, path: Path) -> None:
    db.execute("PRAGMA page_size = 16384")
    db.execute("PRAGMA busy_timeout = 5000")
    scripts = _scripts()
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if tables and application != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program")
    if version > len(scripts):
        raise SchemaTooNew(
            f"{path} has schema {version}; this program knows up to {len(scripts)}. Use the newer program"
        )
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("PRAGMA cache_size = -16384")
    db.execute("PRAGMA wal_autocheckpoint = 1000")
    if version == len(scripts):
        return
    if version:
        _copy(db, path.with_name(f"{path.name}.schema{version}"))
    with transaction(db):
        for number in range(version, len(scripts)):
            for statement in _statements(scripts[number]):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(scripts)}")


def _statements(script: str) -> Iterator[str]:
    """One statement at a time: `executescript` would end the transaction."""
    pending = ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""


def _copy(db: Connection, path: Path) -> None:
    copy = sqlite3.connect(path)
    try:
        db.backup(copy)
    finally:
        copy.close()


@contextmanager
def transaction(db: Connection) -> Iterator[None]:
    """All or nothing, durable when the block ends; errors in our words."""
    with translated():
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                if db.in_transaction:
                    db.execute("ROLLBACK")
            raise


def insert_many(db: Connection, head: str, rows: Sequence[Sequence[Any]]) -> None:
    """INSERT of many rows, so many to a statement; ``head`` ends before VALUES."""
    if not rows:
        return
    one = "(" + ",".join("?" * len(rows[0])) + ")"
    full = len(rows) - len(rows) % _ROWS
    if full:
        text = f"{head} VALUES " + ",".join([one] * _ROWS)
        for at in range(0, full, _ROWS):
            db.execute(text, [v for row in rows[at : at + _ROWS] for v in row])
    if full < len(rows):
        db.executemany(f"{head} VALUES {one}", rows[full:])
