"""The seam between a store and the disk: every file a store writes goes through one `Files`, so
that a test can make any of these calls fail, and a layer that forgets what was not synced can stand
in for a power cut.

Methods raise OSError; the store says what that means to HQ.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cipherbox import portable

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
# What reading a file that is gone, or that the disk cannot give back, says.  Anything else (too
# many open files, no permission) may be over soon and must not pass for damage.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO})


class Files:
    """The real disk."""

    def write_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        """Writes a file that is not there yet and syncs it; its directory is synced by
        `sync_directory`.
        """
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        try:
            for part in parts:
                portable.write_all(fd, part)
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_directory(self, path: Path) -> None:
        portable.sync_directory(path)

    def rename_synced(self, source: Path, target: Path) -> None:
        """Syncs a finished file and gives it its name, replacing what had it."""
        portable.sync_file(source)
        portable.replace_file(source, target)

    def read(self, path: Path, at: int, size: int) -> bytes | None:
        """Up to ``size`` bytes from ``at``; None if the file is gone or its place on the disk
        cannot be read.
        """
        try:
            with path.open("rb") as file:
                size = min(size, os.fstat(file.fileno()).st_size - at)
                if size <= 0:
                    return b""
                file.seek(at)
                return file.read(size)
        except OSError as error:
            if error.errno in _GONE:
                return None
            raise

    def delete(self, path: Path) -> None:
        """A file that is gone already is fine."""
        with suppress(FileNotFoundError):
            path.unlink()

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def size(self, path: Path) -> int:
        """0 if it is not there."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def free_bytes(self, path: Path) -> int:
        return portable.free_bytes(path)

    def allocate(self, path: Path, size: int) -> None:
        """Makes ``path`` a file that really occupies ``size`` bytes; what it has already stays."""
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for at in range(file.tell(), size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - at)))
            file.flush()
            os.fsync(file.fileno())
