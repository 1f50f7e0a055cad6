"""A client's SQLite databases: private to its user, durable at every commit, upgraded in a
transaction.

A commit is on stable storage when it returns (WAL, synchronous FULL), unless `transaction` was
called otherwise. Several processes of one home, and several parts of one, may have the same file
open; each waits for the other's transaction. Nothing else may open and close such a file: on Unix
closing it releases the locks of the whole process, and another process that then closes the file
last deletes its write-ahead log, with every later commit.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from cipherbox.errors import Damaged, SchemaTooNew, SchemaTooOld, StoreError
from cipherbox.portable import (
    O_BINARY,
    give_to_owner_of_folder,
    private_dir,
    sync_data,
    unwritable,
)

SYNCHRONOUS = "FULL"
_LOG_BYTES, _FRAME_BYTES = 32, 24  # headers of a write-ahead log and of each frame
_NO_TEXT = "Could not decode to UTF-8"  # sqlite3's own error, without a code; it quotes the text
_RESTORE = "move it away, or restore it from a backup"
_BUSY_MS = 30_000  # how long a commit waits for another process of this home
_LOOK_MS = 10
TICK = threading.Event()  # never set


def open_database(
    path: Path,
    steps: Sequence[str],
    oldest: int = 1,
    on_lost: Callable[[str], None] | None = None,
) -> sqlite3.Connection:
    """Open or create the database; ``steps[n]`` is the SQL that upgrades version n to n + 1.
    ``on_lost`` is called with a text if SQLite dropped commits.

    Raise SchemaTooNew if a newer program wrote it, SchemaTooOld if it is below ``oldest``, Damaged
    if it is not a database, StoreError for other errors.
    """
    try:
        commits = commits_in_log(path) if on_lost is not None else []
        private_dir(path.parent)
        if why := unwritable(path.parent) or (path.exists() and unwritable(path)):
            raise StoreError(why)
        with suppress(FileExistsError):
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | O_BINARY, 0o600))
            give_to_owner_of_folder(path)
        os.chmod(path, 0o600)
        db = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=_BUSY_MS / 1000
        )
    except (OSError, sqlite3.Error) as error:
        text = getattr(error, "strerror", None) or error
        raise StoreError(f"cannot open {path}: {text}") from None
    try:
        with translated(path):
            db.execute("PRAGMA journal_mode = WAL")
            db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
            # overwrite deleted content with zeros where that costs no extra writes
            db.execute("PRAGMA secure_delete = FAST")
            if on_lost is not None and (lost := lost_commits(db, path, commits)):
                on_lost(lost)  # before an upgrade, which writes over what it is known by
            db.execute("BEGIN IMMEDIATE")
            try:
                _upgrade(db, path, steps, oldest)
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")
    except BaseException:
        db.close()
        raise
    return db


def commits_in_log(path: Path) -> list[int]:
    """Return the frames of the database's write-ahead log that end a commit, valid or not; call it
    before the database is opened.

    SQLite takes the log up to its first frame with a wrong checksum.  What follows is silently
    dropped, also what had been synced (https://www.sqlite.org/fileformat2.html#walformat).
    """
    try:
        log = path.with_name(f"{path.name}-wal").read_bytes()
    except OSError:
        return []
    size = int.from_bytes(log[8:12], "big") + _FRAME_BYTES
    salts, starts = log[16:24], range(_LOG_BYTES, len(log) - size + 1, size)
    return [
        number
        for number, at in enumerate(starts, 1)
        if log[at + 8 : at + 16] == salts and any(log[at + 4 : at + 8])
    ]


def lost_commits(db: sqlite3.Connection, path: Path, commits: list[int]) -> str:
    """Say how many of these commits SQLite dropped when it opened the database; return "" if it has
    all.
    """
    if not commits:
        return ""
    db.execute("BEGIN IMMEDIATE")  # another program may be about to end the newest one
    db.execute("COMMIT")
    valid = _valid_frames(db)
    lost = sum(number > valid for number in commits) if valid >= 0 else 0
    # another program of this home may have begun the log anew meanwhile
    if not lost or commits_in_log(path)[: len(commits)] != commits:
        return ""
    return (
        f"{path.name} lost its last {lost} changes: the disk damaged them, or a power cut came "
        "while they were written"
    )


def _valid_frames(db: sqlite3.Connection) -> int:
    """Return the number of frames that SQLite takes of the log; -1 if it does not say.

    It does not while another connection moves them to the database, for which no busy timeout
    waits.
    """
    valid = -1
    for _ in range(_BUSY_MS // _LOOK_MS):
        _, valid, _ = db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        if valid >= 0:
            break
        TICK.wait(_LOOK_MS / 1000)
    return valid


def version_of(db: sqlite3.Connection) -> tuple[int, int]:
    """Return a mark that changes with every commit to the database, of this connection (the second
    number) and of others, in whichever process.
    """
    (others,) = db.execute("PRAGMA data_version").fetchone()
    return others, db.total_changes


def _upgrade(db: sqlite3.Connection, path: Path, steps: Sequence[str], oldest: int) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > len(steps):
        raise SchemaTooNew(f"{path} was written by a newer program")
    if 0 < version < oldest:
        raise SchemaTooOld(
            f"{path} was written by a version of CipherBox before 0.5.0, which this version "
            "cannot read; nothing was changed"
        )
    if version == len(steps):
        return  # writing the same version again would cost a sync at every start
    for step in steps[version:]:
        for statement in step.split(";\n"):
            if statement.strip():
                db.execute(statement)
    db.execute(f"PRAGMA user_version = {len(steps)}")


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Raise errors of SQLite and of the disk as ours, with the file's name."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Damaged(f"{path} is damaged ({error})", remedy=_RESTORE) from None
        if str(error).startswith(_NO_TEXT):
            raise Damaged(f"{path} is damaged (a text is not UTF-8)", remedy=_RESTORE) from None
        raise StoreError(f"{path}: {error}") from None
    except UnicodeDecodeError:  # SQLite quotes the damaged part, and sqlite3 cannot read that
        raise Damaged(f"{path} is damaged", remedy=_RESTORE) from None
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Put every commit so far on stable storage, for a transaction that was not ``synced``.

    The write-ahead log has no locks, so closing another descriptor of it releases none.  What was
    moved to the database meanwhile is durable: a checkpoint syncs the log before and the database
    after.
    """
    with translated(path):
        try:
            fd = os.open(f"{path}-wal", os.O_RDWR | O_BINARY)
        except FileNotFoundError:
            return  # a file system without write-ahead logs: each commit is synced
        try:
            sync_data(fd)
        finally:
            os.close(fd)


@contextmanager
def transaction(db: sqlite3.Connection, path: Path, *, synced: bool = True) -> Iterator[None]:
    """Commit one transaction at the end of the block; roll it back on any error.

    ``synced`` false: the commit survives the end of this process but not a power failure, which
    reverts the file to the last synced commit. Use it for facts that are observed again or may
    safely be repeated; a sync costs about 5 ms.
    """
    with translated(path):
        if not synced:
            db.execute("PRAGMA synchronous = NORMAL")
        db.execute("BEGIN IMMEDIATE")
        try:
            yield
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        finally:
            if not synced:
                db.execute(f"PRAGMA synchronous = {SYNCHRONOUS}")
