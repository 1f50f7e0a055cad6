"""A disk and a database that fail when told to."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from pathlib import Path

import attrs

from cipherbox.limits import LIMITS
from cipherbox.store.files import Files
from cipherbox.store.sqlite.store import SqliteStore, open_store

SMALL_RESERVE = attrs.evolve(LIMITS, disk_reserve_bytes=64 * 1024, disk_resume_bytes=512 * 1024)
PLENTY = 1 << 40


class Faulty(Files):
    """Fails the named call with an errno when it is armed; ``calls`` are all that were made."""

    def __init__(self) -> None:
        self.fail: tuple[str, int] | None = None
        self.free = PLENTY
        self.calls: list[str] = []

    def _check(self, name: str) -> None:
        self.calls.append(name)
        if self.fail and self.fail[0] == name:
            raise OSError(self.fail[1], os.strerror(self.fail[1]))

    def write_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        """A write that fails leaves half a file, as a full disk does."""
        if self.fail and self.fail[0] == "write_synced":
            whole = b"".join(parts)
            path.write_bytes(whole[: len(whole) // 2])
        self._check("write_synced")
        super().write_synced(path, parts)

    def overwrite_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        """A write that fails has changed half of the bytes."""
        if self.fail and self.fail[0] == "overwrite_synced":
            whole = b"".join(parts)
            with path.open("r+b") as file:
                file.write(whole[: len(whole) // 2])
        self._check("overwrite_synced")
        super().overwrite_synced(path, parts)

    def sync_directory(self, path: Path) -> None:
        self._check("sync_directory")
        super().sync_directory(path)

    def rename_synced(self, source: Path, target: Path) -> None:
        self._check("rename_synced")
        super().rename_synced(source, target)

    def read(self, path: Path, at: int, size: int) -> bytes | None:
        self._check("read")
        return super().read(path, at, size)

    def delete(self, path: Path) -> None:
        self._check("delete")
        super().delete(path)

    def allocate(self, path: Path, size: int) -> None:
        self._check("allocate")
        super().allocate(path, size)

    def free_bytes(self, path: Path) -> int:
        self._check("free_bytes")
        return self.free


class FailingEnd:
    """A connection whose next COMMIT fails, ``reached`` the disk or not."""

    def __init__(self, db: sqlite3.Connection, reached: bool) -> None:
        self._db = db
        self._reached = reached
        self._armed = True

    def __getattr__(self, name: str) -> object:
        return getattr(self._db, name)

    def execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        if statement == "COMMIT" and self._armed:
            self._armed = False
            self._db.execute("COMMIT" if self._reached else "ROLLBACK")
            raise sqlite3.OperationalError("disk I/O error")
        return self._db.execute(statement, *values)  # type: ignore[arg-type]


def opened(path: Path, files: Files | None = None) -> SqliteStore:
    return open_store(path, create=True, files=files, limits=SMALL_RESERVE)


def spool_names(path: Path) -> list[str]:
    return sorted(os.listdir(path / "spool"))
