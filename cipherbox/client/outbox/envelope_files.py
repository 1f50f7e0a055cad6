"""The files of large envelopes in ``outbox/``: written and synced before the commit that names
them, freed after the commit that drops them.

A freed file is a spare for some seconds (`cipherbox.spares`): the next envelope is written over it,
and its row names it.  No row ever has the bytes of another one:

1. A file is freed only when the commit that drops it is durable.  So a crash at any instant, also
   while a spare is written over, leaves every row its own bytes, and at most files that no row
   names; they are swept once they are a day old.
2. Only files that this process wrote within the last hour become spares: other processes of this
   home sweep older ones.
3. Another process may read a file when it is freed.  A reader therefore asks afterwards whether the
   row still names the file (`OutboxQueries.bytes_of`): if so, nobody had begun to write over it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox import clock
from cipherbox.envelope.layout import Octets
from cipherbox.portable import O_BINARY, sync_data, sync_directory, write_all
from cipherbox.spares import Spares

SPARE_BYTES = 128 * 1024 * 1024  # receipts come once a second, for all that was opened in it
_OWN_S, _OWN = 3600, 4096  # how long, and how many, files are remembered to become spares


class EnvelopeFiles:
    """The directory of large envelopes.  Methods raise OSError, but for `free` and `delete`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._spares = Spares()
        self._own: dict[str, tuple[int, float]] = {}  # file -> size, and when it was written

    @property
    def has_spares(self) -> bool:
        """Whether `drop_spares` has something to delete, now or later."""
        return bool(self._spares)

    def write(self, envelopes: Sequence[tuple[str, Octets]]) -> list[str]:
        """Write and sync envelopes, each with a name for a new file; return the names of their
        files.  After an error none of them remains.
        """
        written: list[str] = []
        created = False
        try:
            for stem, raw in envelopes:
                if not self._write_over(raw, written):
                    self._write_new(f"{stem}-{os.urandom(4).hex()}", raw, written)
                    created = True
            if created:
                sync_directory(self._path)
        except BaseException:
            self.delete(written)
            self.drop_spares()  # if the disk is full, the next try finds their room
            raise
        return written

    def read(self, name: str, size: int) -> bytes | None:
        """Return the first ``size`` bytes of a file; None if it does not exist."""
        try:
            with (self._path / name).open("rb") as file:
                return file.read(size)
        except FileNotFoundError:
            return None

    def free(self, names: Iterable[str]) -> None:
        """Make spares of files that a durable commit has dropped."""
        now = clock.elapsed_s()
        for name in names:
            size, written_at = self._own.pop(name, (0, 0.0))
            if size and now - written_at < _OWN_S:
                self._spares.add(name, size, now)
            else:
                self.delete([name])
        self.delete(self._spares.drop(SPARE_BYTES, now))

    def drop_spares(self, *, old: bool = False) -> None:
        """Delete the spares; with ``old`` only those that were freed some seconds ago."""
        self.delete(self._spares.drop(SPARE_BYTES, clock.elapsed_s() if old else None))

    def delete(self, names: Iterable[str]) -> None:
        """Delete files; one that cannot be deleted is swept later."""
        for name in names:
            self._own.pop(name, None)
            with suppress(OSError):
                os.unlink(os.path.join(self._path, name))

    def _write_over(self, raw: Octets, written: list[str]) -> bool:
        name = self._spares.take(len(raw))
        if name is None:
            return False
        try:
            fd = os.open(os.path.join(self._path, name), os.O_WRONLY | O_BINARY)
        except FileNotFoundError:
            return False
        written.append(name)
        try:
            write_all(fd, raw)
            sync_data(fd)
            size = os.fstat(fd).st_size
        finally:
            os.close(fd)
        self._wrote(name, size)
        return True

    def _write_new(self, name: str, raw: Octets, written: list[str]) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY
        fd = os.open(os.path.join(self._path, name), flags, 0o600)
        written.append(name)
        try:
            write_all(fd, raw)
            os.fsync(fd)
        finally:
            os.close(fd)
        self._wrote(name, len(raw))

    def _wrote(self, name: str, size: int) -> None:
        self._own[name] = size, clock.elapsed_s()
        while len(self._own) > _OWN:
            del self._own[next(iter(self._own))]
