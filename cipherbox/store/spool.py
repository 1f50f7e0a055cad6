"""The spool: large bodies in files beside the database.

A file and its directory are synced before the commit that names the file; it is freed after the
commit that deletes its last body.  So a crash leaves at most files that no row names: orphans,
which are removed when the store is opened.

Bodies of one commit share files: on ext4 a body of 64 KiB costs 0.06 ms in a shared file and 0.7 ms
in one of its own.  A file is kept until all its bodies are deleted, so shared files are small.

A freed file is a *spare* for a few seconds (`cipherbox.spares`): new bodies are written over its
bytes.  No body is ever mistaken for another one:
1. A spare is a file that this process wrote and freed: the commit that deleted its last body is on
   stable storage.  A file whose commit failed is never a spare: that commit may have taken effect,
   and must find its own bytes.
2. A crash while a spare is overwritten, or before the commit that names its new bodies, leaves a
   file that no row names, whatever is in it.
3. Each row has the offset, the length and the hash of its body, which every reader checks.  One
   that comes too late, after the body was deleted, finds it damaged, as it found it missing before.
4. While somebody takes or reads a snapshot (`SpoolSnapshot`), no spare is overwritten, since the
   snapshot's links lead to the same bytes.  Its directory is there before the first link.
"""

from __future__ import annotations

import itertools
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cipherbox.errors import StoreUnavailable
from cipherbox.portable import private_dir
from cipherbox.spares import Spares
from cipherbox.store.files import Files

# of bodies in one file: bodies of a mebibyte gain nothing by sharing one
SHARED_BYTES = 4 * 1024 * 1024
SPARE_BYTES = 32 * 1024 * 1024  # of all spares; what is freed beyond is deleted
_SUFFIX = ".spool"
_TRIES = 10  # for a snapshot while HQ is busy
NAME = re.compile(r"[0-9]+-[0-9]+\.spool", re.ASCII)  # of a file that a row may name
LINKS, LINKS_NAME = "spool.", re.compile(r"spool\.[0-9a-f]{12}", re.ASCII)


class Place(NamedTuple):
    """Where a body is in the spool: the file's name, and the offset."""

    name: str
    at: int


class Spool:
    """The directory of spooled bodies.  Methods raise OSError."""

    def __init__(self, path: Path, files: Files, epoch: int) -> None:
        self.path = path
        self._files = files
        self._prefix = f"{epoch:08d}"
        self._count = 0
        self._spares = Spares()
        path.mkdir(mode=0o700, exist_ok=True)

    def write(self, bodies: Sequence[bytes]) -> list[Place]:
        """Write and sync bodies and return their places; after an error no file remains."""
        places: list[Place] = []
        begun: list[str] = []
        created = False
        try:
            for group in _groups(bodies):
                name = self._take_spare(sum(map(len, group)))
                if name is not None:
                    begun.append(name)
                    self._files.overwrite_synced(self.path / name, group)
                else:
                    self._count += 1
                    name = f"{self._prefix}-{self._count:010d}{_SUFFIX}"
                    begun.append(name)
                    created = True
                    self._files.write_synced(self.path / name, group)
                offsets = itertools.accumulate(map(len, group[:-1]), initial=0)
                places += [Place(name, at) for at in offsets]
            if created:
                self._files.sync_directory(self.path)
        except BaseException:
            self.delete(begun)
            raise
        return places

    def read(self, place: Place, size: int) -> bytes | None:
        """Return a body; None if its file is missing or unreadable, fewer bytes if it is
        truncated.
        """
        return self._files.read(self.path / place.name, place.at, size)

    def _take_spare(self, size: int) -> str | None:
        """Return the name of a spare for these bytes; None if a new file is needed."""
        if not self._spares or any(
            name.startswith(LINKS) for name in self._files.names(self.path.parent)
        ):
            return None
        return self._spares.take(size)

    def free(self, names: Iterable[str]) -> None:
        """Make spares of files whose bodies are deleted by a commit that succeeded."""
        now = time.monotonic()
        for name in names:
            try:
                size = self._files.size(self.path / name)
            except OSError:
                size = 0
            if size and name.startswith(self._prefix):
                self._spares.add(name, size, now)
            else:
                self.delete([name])
        self.drop_spares(now)

    def drop_spares(self, now: float | None = None) -> bool:
        """Delete spares that are old or too many, or all of them without ``now``; return whether
        there were any.
        """
        dropped = self._spares.drop(SPARE_BYTES, now)
        self.delete(dropped)
        return bool(dropped)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that cannot be deleted becomes an orphan, since the commit is done."""
        for name in names:
            with suppress(OSError):
                self._files.delete(self.path / name)

    def sweep(self, named: set[str]) -> list[str]:
        """Delete the files that no row names, and return their names."""
        orphans = [
            n for n in self._files.names(self.path) if n.endswith(_SUFFIX) and n not in named
        ]
        self.delete(orphans)
        return orphans


class SpoolSnapshot:
    """The spool's files as one snapshot of the database names them, kept by hard links while HQ
    continues and deletes files.

    All files are linked before the database's snapshot begins and again after it.  If the snapshot
    names a file that was created and deleted in between, it is taken again.

    ``still``: nobody writes this store, so no links are needed, and the disk may be read-only.  A
    killed process leaves its links, which keep the space of deleted files: `link_directories`.
    """

    def __init__(self, directory: Path, *, still: bool = False) -> None:
        self._spool = directory / "spool"
        self._still = still
        self._links = self._spool if still else directory / f"{LINKS}{secrets.token_hex(6)}"
        self._files = Files()

    def take(self, begin: Callable[[], Iterable[str]], undo: Callable[[], None]) -> None:
        """Take a snapshot: ``begin`` begins the database's and returns the files it names, ``undo``
        ends it.  Raise StoreUnavailable if HQ is too busy.
        """
        if self._still:
            begin()
            return
        private_dir(self._links)
        missing: set[str] = set()
        for _ in range(_TRIES):
            self._link()
            named = set(begin())
            self._link()
            before, missing = missing, {name for name in named if not (self._links / name).exists()}
            # a file missing in two snapshots is lost, which reading its bodies reports
            if not missing - before:
                return
            undo()
        raise StoreUnavailable("HQ is too busy for a snapshot", remedy="retry later")

    def _link(self) -> None:
        for name in os.listdir(self._spool) if self._spool.exists() else []:
            with suppress(FileExistsError, FileNotFoundError):
                try:
                    os.link(self._spool / name, self._links / name)
                except PermissionError:
                    shutil.copyfile(self._spool / name, self._links / name)

    def read(self, place: Place, size: int) -> bytes | None:
        """Return a body, as `Spool.read` does."""
        return (
            self._files.read(self._links / place.name, place.at, size)
            if NAME.fullmatch(place.name)
            else None
        )

    def close(self) -> None:
        """Remove the links."""
        if not self._still:
            shutil.rmtree(self._links, ignore_errors=True)


def link_directories(directory: Path) -> list[Path]:
    """Return the links of snapshots: of those being read now, and of those that were killed."""
    return sorted(path for path in directory.glob(f"{LINKS}*") if LINKS_NAME.fullmatch(path.name))


def _groups(bodies: Sequence[bytes]) -> Iterable[list[bytes]]:
    group: list[bytes] = []
    size = 0
    for body in bodies:
        if group and size + len(body) > SHARED_BYTES:
            yield group
            group, size = [], 0
        group.append(body)
        size += len(body)
    if group:
        yield group
