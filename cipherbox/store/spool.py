"""Large bodies as files beside the database.

A file is written and synced, and its directory synced, before the commit that names it; it is deleted after the commit
that drops it.  So a crash leaves at most files that no row names: orphans, swept when the store is opened.  A name
holds envelope number and generation and is written again only when the commit that would have named it failed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cipherbox.store.files import Files


class Spool:
    """The directory of spooled bodies."""

    def __init__(self, path: Path, files: Files) -> None:
        self.path = path
        self._files = files
        path.mkdir(mode=0o700, exist_ok=True)

    def write(self, bodies: Iterable[tuple[int, int, bytes]]) -> list[str]:
        """Makes (number, generation, body) durable; returns the names in the same order."""
        names = []
        for number, generation, body in bodies:
            name = f"{number:012d}-{generation}.envelope"
            self._files.write_synced(self.path / name, body)
            names.append(name)
        if names:
            self._files.sync_directory(self.path)
        return names

    def read(self, name: str) -> bytes | None:
        return self._files.read(self.path / name)

    def delete(self, names: Iterable[str]) -> None:
        for name in names:
            self._files.delete(self.path / name)

    def sweep(self, named: set[str]) -> list[str]:
        """Deletes the files that no row names; returns them."""
        orphans = [n for n in self._files.names(self.path) if n.endswith(".envelope") and n not in named]
        self.delete(orphans)
        return orphans
