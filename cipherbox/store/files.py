"""The interface between a store and the disk: a store writes every file through one `Files`, so
that a test can make any of these calls fail, or simulate a power cut by discarding what was not
synced.

Methods raise OSError, which the store translates into our errors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from cipherbox import portable

_BINARY = getattr(os, "O_BINARY", 0)  # Windows would translate line ends
# Errors of reading a file that is missing or unreadable.  Others (too many open files, no
# permission) may be transient and must not be taken for damage.
_LOST = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO})


class Files:
    """The real disk."""

    def write_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        """Create, write and sync a file; `sync_directory` syncs its directory."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o600)
        try:
            for part in parts:
                portable.write_all(fd, part)
            os.fsync(fd)
        finally:
            os.close(fd)

    def overwrite_synced(self, path: Path, parts: Iterable[bytes]) -> None:
        """Write over the beginning of a file that is at least as long, and sync it."""
        fd = os.open(path, os.O_WRONLY | _BINARY)
        try:
            for part in parts:
                portable.write_all(fd, part)
            portable.sync_data(fd)
        finally:
            os.close(fd)

    def sync_directory(self, path: Path) -> None:
        portable.sync_directory(path)

    def rename_synced(self, source: Path, target: Path) -> None:
        """Sync a finished file and rename it, replacing the target."""
        portable.sync_file(source)
        portable.replace_file(source, target)

    def read(self, path: Path, at: int, size: int) -> bytes | None:
        """Return up to ``size`` bytes from ``at``; None if the file is missing or unreadable."""
        try:
            with path.open("rb") as file:
                size = min(size, os.fstat(file.fileno()).st_size - at)
                if size <= 0:
                    return b""
                file.seek(at)
                return file.read(size)
        except OSError as error:
            if error.errno in _LOST:
                return None
            raise

    def delete(self, path: Path) -> None:
        """Delete a file, if it exists."""
        with suppress(FileNotFoundError):
            path.unlink()

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def size(self, path: Path) -> int:
        """Return the size of a file; 0 if it does not exist."""
        try:
            return path.stat().st_size
        except FileNotFoundError:
            return 0

    def free_bytes(self, path: Path) -> int:
        return portable.free_bytes(path)

    def truncate(self, path: Path, size: int) -> None:
        os.truncate(path, size)

    def allocate(self, path: Path, size: int) -> None:
        """Make a file occupy ``size`` bytes on the disk, keeping its contents."""
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for at in range(file.tell(), size, 1 << 20):
                    file.write(bytes(min(1 << 20, size - at)))
            file.flush()
            os.fsync(file.fileno())
