"""Large bodies as files beside the database.

A file is written and synced, and its directory synced, before the commit that names it; it is
deleted after the commit that drops its last body.  So a crash leaves at most files that no row
names: orphans, swept when the store is opened.  A name holds the store's epoch and is never used
twice: a commit that failed and yet reached the disk must find its own bytes under the names it
wrote.

Bodies of one commit share files: on ext4 a body of 64 KiB costs 0.06 ms in a shared file and 0.7 ms
in one of its own.  A file stays until all its bodies are gone, so shared files are small.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cipherbox.errors import StoreUnavailable
from cipherbox.portable import private_dir
from cipherbox.store.files import Files

# of bodies in one file: a mebibyte each gains nothing from more company
SHARED_BYTES = 4 * 1024 * 1024
_SUFFIX = ".spool"
_TRIES = 10  # snapshots beside a busy HQ
NAME = re.compile(r"[0-9]+-[0-9]+\.spool", re.ASCII)  # what a row may name


class Place(NamedTuple):
    """Where a body lies in the spool."""

    name: str
    at: int


class Spool:
    """The directory of spooled bodies.  Methods raise OSError."""

    def __init__(self, path: Path, files: Files, epoch: int) -> None:
        self.path = path
        self._files = files
        self._prefix = f"{epoch:08d}"
        self._count = 0
        path.mkdir(mode=0o700, exist_ok=True)

    def write(self, bodies: Sequence[bytes]) -> list[Place]:
        """Makes the bodies durable; returns their places in the same order.  On an error nothing
        stays behind.
        """
        places: list[Place] = []
        begun: list[str] = []
        try:
            for group in _groups(bodies):
                self._count += 1
                name = f"{self._prefix}-{self._count:010d}{_SUFFIX}"
                begun.append(name)
                self._files.write_synced(self.path / name, group)
                at = 0
                for body in group:
                    places.append(Place(name, at))
                    at += len(body)
            if places:
                self._files.sync_directory(self.path)
        except BaseException:
            self.delete(begun)
            raise
        return places

    def read(self, place: Place, size: int) -> bytes | None:
        """None if the file is gone or cannot be read; fewer bytes than ``size`` if it was cut."""
        return self._files.read(self.path / place.name, place.at, size)

    def delete(self, names: Iterable[str]) -> None:
        """A file that cannot be deleted is an orphan from now on: this must not fail what is
        committed already.
        """
        for name in names:
            with suppress(OSError):
                self._files.delete(self.path / name)

    def sweep(self, named: set[str]) -> list[str]:
        """Deletes the files that no row names; returns them."""
        orphans = [
            n for n in self._files.names(self.path) if n.endswith(_SUFFIX) and n not in named
        ]
        self.delete(orphans)
        return orphans


class SpoolSnapshot:
    """The spool as one snapshot of the database names it, while HQ goes on and deletes: hard links
    to its files.

    All files are linked before the database's snapshot begins and once more after.  If the snapshot
    names one that came and went in between, another is begun.
    """

    def __init__(self, directory: Path) -> None:
        self._spool = directory / "spool"
        self._links = directory / f"spool.{secrets.token_hex(6)}"
        self._files = Files()

    def take(self, begin: Callable[[], Iterable[str]], undo: Callable[[], None]) -> None:
        """``begin`` begins a snapshot and gives the files it names; ``undo`` ends it again.
        StoreUnavailable.
        """
        private_dir(self._links)
        missing: set[str] = set()
        for _ in range(_TRIES):
            self._link()
            named = set(begin())
            self._link()
            before, missing = missing, {name for name in named if not (self._links / name).exists()}
            # what is missing in two snapshots is lost: whoever reads it says so
            if not missing - before:
                return
            undo()
        raise StoreUnavailable("HQ is too busy for a snapshot now", remedy="try again")

    def _link(self) -> None:
        for name in os.listdir(self._spool) if self._spool.exists() else []:
            with suppress(FileExistsError, FileNotFoundError):
                try:
                    os.link(self._spool / name, self._links / name)
                except PermissionError:
                    shutil.copyfile(self._spool / name, self._links / name)

    def read(self, place: Place, size: int) -> bytes | None:
        """As `Spool.read`."""
        return (
            self._files.read(self._links / place.name, place.at, size)
            if NAME.fullmatch(place.name)
            else None
        )

    def close(self) -> None:
        """The links go."""
        shutil.rmtree(self._links, ignore_errors=True)


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
