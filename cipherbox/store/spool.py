"""Large bodies as files beside the database.

A file is written and synced, and its directory synced, before the commit that names it; it is deleted after the commit
that drops its last body.  So a crash leaves at most files that no row names: orphans, swept when the store is opened.
A name holds the store's epoch and is never used twice: a commit that failed and yet reached the disk must find its
own bytes under the names it wrote.

Bodies of one commit share files: on ext4 a body of 64 KiB costs 0.06 ms in a shared file and 0.7 ms in one of its own.
A file stays until all its bodies are gone, so shared files are small.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cipherbox.store.files import Files

SHARED_BYTES = 4 * 1024 * 1024  # of bodies in one file: a mebibyte each gains nothing from more company
_SUFFIX = ".spool"
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
        """Makes the bodies durable; returns their places in the same order.  On an error nothing stays behind."""
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
        """A file that cannot be deleted is an orphan from now on: this must not fail what is committed already."""
        for name in names:
            with suppress(OSError):
                self._files.delete(self.path / name)

    def sweep(self, named: set[str]) -> list[str]:
        """Deletes the files that no row names; returns them."""
        orphans = [n for n in self._files.names(self.path) if n.endswith(_SUFFIX) and n not in named]
        self.delete(orphans)
        return orphans


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
