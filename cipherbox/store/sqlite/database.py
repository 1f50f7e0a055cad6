"""The only module that depends on sqlite3: opening, schema, transactions, translation of errors.

WAL with synchronous=FULL: a commit is one sync of the write-ahead log, and durable when it returns.
Pages of 16 KiB suit envelopes of one to a few KiB.  There is one connection, used by one thread at
a time.  An upgrade runs in one transaction, after the database was copied.
"""

from __future__ import annotations

import errno
import functools
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any

from cipherbox.errors import (
    Damaged,
    DiskFull,
    InvalidRequest,
    SchemaTooNew,
    StoreError,
    StoreUnavailable,
)
from cipherbox.store.files import Files
from cipherbox.store.sqlite.shape import check_shape

APPLICATION_ID = 0x43425831  # "CBX1"
_ROWS = 50  # rows of one INSERT: more gains nothing
_PAGES_BACK = 1024  # 16 MB, some 50 ms
SETTINGS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "temp_store = MEMORY",
    "secure_delete = FAST",  # builds differ in their default
    "cache_size = -16384",  # KiB
    "wal_autocheckpoint = 1000",  # 16 MB
    "journal_size_limit = 33554432",  # shrinks the log after one huge commit
)

Connection = sqlite3.Connection
_NO_TEXT = "Could not decode to UTF-8"  # sqlite3's own error, without a code; it quotes the text


@functools.cache
def scripts() -> tuple[str, ...]:
    """Return the schema's steps, oldest first."""
    files = sorted(
        (f for f in resources.files(__package__).iterdir() if f.name.endswith(".sql")),
        key=lambda f: f.name,
    )
    return tuple(f.read_text("utf-8") for f in files)


def _translate(error: sqlite3.Error) -> StoreError | DiskFull | StoreUnavailable:
    """Return our error for one of sqlite3."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return DiskFull(f"the disk of the database is full: {error}")
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Damaged(f"the database is damaged: {error}", remedy="restore a backup")
    if str(error).startswith(_NO_TEXT):
        return Damaged("the database is damaged: a text is not UTF-8", remedy="restore a backup")
    return StoreUnavailable(f"the database is not available: {error}")


@contextmanager
def translated() -> Iterator[None]:
    """Translate the errors of sqlite3 and of the disk into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _translate(error) from error
    except UnicodeDecodeError:  # SQLite quotes the damaged part, and sqlite3 cannot read that
        raise Damaged("the database is damaged", remedy="restore a backup") from None
    except OverflowError as error:
        raise InvalidRequest("a number exceeds the largest that the store holds") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(f"the disk of the store is full: {error.strerror}") from error
        raise StoreUnavailable(f"the store's disk failed: {error.strerror}") from error


def connect(path: Path, *, create: bool, files: Files) -> Connection:
    """Open the database and upgrade its schema; raise StoreError or a retryable error."""
    if not create and not path.exists():
        raise StoreError(f"no database {path}", remedy="run: cipherbox init")
    with translated():
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            _prepare(db, path, files)
        except BaseException:
            db.close()
            raise
    return db


def connect_reader(path: Path, *, still: bool = False) -> Connection:
    """Open a second connection that only reads.  A ``still`` database, which nobody writes, is read
    without files beside it, unless its write-ahead log is there.
    """
    uri = path.absolute().as_uri()
    if still and not path.with_name(f"{path.name}-wal").exists():
        uri += "?immutable=1"
    with translated():
        db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
        try:
            for setting in ("query_only = ON", "busy_timeout = 5000", "cache_size = -2048"):
                db.execute(f"PRAGMA {setting}")
        except BaseException:
            db.close()
            raise
    return db


def _prepare(db: Connection, path: Path, files: Files) -> None:
    db.execute("PRAGMA page_size = 16384")
    # for `shrink`; it costs nothing measurable
    db.execute("PRAGMA auto_vacuum = INCREMENTAL")
    db.execute("PRAGMA busy_timeout = 5000")
    steps = scripts()
    version = db.execute("PRAGMA user_version").fetchone()[0]
    application = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    if application != APPLICATION_ID and (tables or application or version):
        raise StoreError(f"{path} belongs to another program")
    if version > len(steps):
        raise SchemaTooNew(
            f"{path} was written by a newer program (schema {version}; this one knows "
            f"{len(steps)})",
            remedy="use that program",
        )
    if version:
        check_age(db, path, version)
    for setting in SETTINGS:
        db.execute(f"PRAGMA {setting}")
    if version < len(steps):
        if version:
            _copy(db, path.with_name(f"{path.name}.schema{version}"), files)
        _upgrade(db, version, steps)


def check_age(db: Connection, path: Path, version: int) -> None:
    """Raise SchemaTooOld if the database is too old to be upgraded."""
    check_shape(db, path, version, tuple(map(_statements, scripts())))


def _upgrade(db: Connection, version: int, steps: Sequence[str]) -> None:
    with transaction(db):
        for step in steps[version:]:
            for statement in _statements(step):
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        db.execute(f"PRAGMA user_version = {len(steps)}")


@functools.cache
def _statements(script: str) -> tuple[str, ...]:
    """Return the statements of a script; `executescript` would end the transaction."""
    found, pending = [], ""
    for line in script.splitlines():
        pending += line + "\n"
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    if any(line.strip() and not line.lstrip().startswith("--") for line in pending.splitlines()):
        raise StoreError("a schema file ends inside a statement")
    return tuple(found)


def _copy(db: Connection, path: Path, files: Files) -> None:
    """Copy the database; an incomplete copy never has the final name."""
    part = path.with_name(f"{path.name}.part")
    files.delete(part)
    copy = sqlite3.connect(part)
    try:
        db.backup(copy)
    except BaseException:
        copy.close()
        files.delete(part)
        raise
    copy.close()
    files.rename_synced(part, path)


class CommitProgress:
    """The progress of a transaction: once it is ``ending``, an error does not tell whether it took
    effect.
    """

    ending = False
    sync_s = 0.0  # duration of its COMMIT


@contextmanager
def transaction(db: Connection) -> Iterator[CommitProgress]:
    """Run the block in a transaction, durable when it ends; raise our errors."""
    progress = CommitProgress()
    with translated():
        roll_back(db)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield progress
            progress.ending = True
            began = time.perf_counter()
            db.execute("COMMIT")
            progress.sync_s = time.perf_counter() - began
        except BaseException:
            with suppress(sqlite3.Error):
                roll_back(db)
            raise


def roll_back(db: Connection) -> None:
    """Roll back a transaction that failed, even one whose COMMIT failed before."""
    if db.in_transaction:
        db.execute("ROLLBACK")


def spare_bytes(db: Connection) -> int:
    """Return the size of the database's empty pages: what it can store without growing."""
    pages: int = db.execute("PRAGMA freelist_count").fetchone()[0]
    size: int = db.execute("PRAGMA page_size").fetchone()[0]
    return pages * size


def shrink(db: Connection) -> None:
    """Return some empty pages and the log's space to the disk."""
    with translated():
        # `execute` would stop after one page
        db.executescript(f"PRAGMA incremental_vacuum({_PAGES_BACK})")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def insert_flat(db: Connection, head: str, width: int, values: list[Any]) -> None:
    """Insert many rows, `_ROWS` per statement; ``values`` are all rows' values, ``width``
    of each.
    """
    one = "(" + ",".join("?" * width) + ")"
    step = width * _ROWS
    full = len(values) - len(values) % step
    if full:
        text = f"{head} VALUES " + ",".join([one] * _ROWS)
        for at in range(0, full, step):
            db.execute(text, values[at : at + step])
    if full < len(values):
        rest = [values[at : at + width] for at in range(full, len(values), width)]
        db.executemany(f"{head} VALUES {one}", rest)
