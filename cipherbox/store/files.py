"""The seam between a store and the disk: every file a store writes goes through one `Files`, so that a test can make
any of these calls fail, and a layer that forgets what was not synced can stand in for a power cut."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from cipherbox import portable


class Files:
    """The real disk."""

    def write_synced(self, path: Path, data: bytes) -> None:
        """Writes a file of its own name and syncs it; its directory is synced by `sync_directory`."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o600)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            os.fsync(fd)
        finally:
            os.close(fd)

    def sync_directory(self, path: Path) -> None:
        portable.sync_directory(path)

    def read(self, path: Path) -> bytes | None:
        """None if it is not there or cannot be read."""
        try:
            return path.read_bytes()
        except OSError:
            return None

    def delete(self, path: Path) -> None:
        """A file that is gone already is fine."""
        with suppress(FileNotFoundError):
            path.unlink()

    def names(self, path: Path) -> list[str]:
        return sorted(os.listdir(path))

    def free_bytes(self, path: Path) -> int:
        return portable.free_bytes(path)

    def allocate(self, path: Path, size: int) -> None:
        """Makes ``path`` a file that really occupies ``size`` bytes."""
        with path.open("wb") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                for _ in range(0, size, 1 << 20):
                    file.write(bytes(min(1 << 20, size)))
            file.flush()
            os.fsync(file.fileno())
