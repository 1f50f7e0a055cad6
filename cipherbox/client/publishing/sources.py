"""The source of a transfer: a file, a copy of one, or a directory, whose files are read one after
another.

A source must not change during the transfer.  Sizes and times are compared after each read, and
once more at the end; FileChanged names the file that changed.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from cipherbox.client.outbox.transfers import LOCKED_COPY, Transfer, copy_at
from cipherbox.errors import FileChanged
from cipherbox.portable import O_BINARY, int64, read_at
from cipherbox.sealing.encrypted_file import RandomAccessFile
from cipherbox.sealing.local_secret_box import SecretBox


class Source(Protocol):
    """Bytes to send.  `check` returns the time of the last change, in ns since 1970, and raises
    FileChanged if that was during the transfer.
    """

    def read(self, size: int, at: int) -> bytes: ...

    def check(self) -> int: ...

    def close(self) -> None: ...


def open_source(transfer: Transfer, box: SecretBox) -> Source:
    """Return the source of this transfer; ``box`` decrypts an encrypted copy."""
    if transfer.entries and not transfer.copied:
        return DirectorySource(transfer)
    return FileSource(transfer, box)


class FileSource:
    """One file, or a copy."""

    def __init__(self, transfer: Transfer, box: SecretBox) -> None:
        self._transfer = transfer
        try:
            self._fd = os.open(transfer.file, os.O_RDONLY | O_BINARY)
        except OSError as error:
            raise FileChanged(
                f"{transfer.file} cannot be read any more: {error.strerror}"
            ) from None
        self._stored: RandomAccessFile = copy_at(
            self._fd, transfer.id, box if transfer.copied == LOCKED_COPY else None
        )
        try:
            self.check()
        except BaseException:
            self.close()
            raise

    def read(self, size: int, at: int) -> bytes:
        return self._stored.read(size, at)

    def check(self) -> int:
        transfer = self._transfer
        try:
            now, named = os.fstat(self._fd), os.stat(transfer.file)
        except OSError as error:
            raise FileChanged(
                f"{transfer.file} vanished while it was sent: {error.strerror}"
            ) from None
        # a locked copy is larger than the file
        size = transfer.size if transfer.copied == LOCKED_COPY else now.st_size
        same = (size, int64(now.st_mtime_ns)) == (transfer.size, transfer.modified_ns)
        if not same or (now.st_ino, now.st_dev) != (named.st_ino, named.st_dev):
            raise FileChanged(f"{transfer.file} changed while it was sent")
        return now.st_mtime_ns

    def close(self) -> None:
        self._stored.close()


class DirectorySource:
    """The files of a directory; one of them is open at a time."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._top = Path(transfer.file)
        self._files = [entry for entry in transfer.entries if entry.size > 0]
        self._ends = list(accumulate(entry.size for entry in self._files))
        self._open: tuple[int, int] | None = None  # number of the file, descriptor

    def read(self, size: int, at: int) -> bytes:
        found = []
        end = at + size
        while at < end and at < self._transfer.size:
            number = bisect_right(self._ends, at)
            inside = at - (self._ends[number] - self._files[number].size)
            room = min(end - at, self._files[number].size - inside)
            data = read_at(self._descriptor(number), room, inside)
            self._same(number)
            if len(data) != room:
                raise FileChanged(
                    f"{self._top / self._files[number].path} became shorter while it was sent"
                )
            found.append(data)
            at += room
        return b"".join(found)

    def check(self) -> int:
        for number in range(len(self._files)):
            self._same(number)
        return max((entry.modified_ns for entry in self._transfer.entries), default=0)

    def close(self) -> None:
        if self._open is not None:
            os.close(self._open[1])
            self._open = None

    def _descriptor(self, number: int) -> int:
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self.close()
        path = self._top / self._files[number].path
        try:
            self._open = number, os.open(path, os.O_RDONLY | O_BINARY)
        except OSError as error:
            raise FileChanged(f"{path} cannot be read any more: {error.strerror}") from None
        return self._open[1]

    def _same(self, number: int) -> None:
        entry = self._files[number]
        path = self._top / entry.path
        try:
            now = os.stat(path)
        except OSError as error:
            raise FileChanged(f"{path} vanished while it was sent: {error.strerror}") from None
        if (now.st_size, int64(now.st_mtime_ns)) != (entry.size, entry.modified_ns):
            raise FileChanged(f"{path} changed while it was sent")
