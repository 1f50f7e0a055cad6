"""Files encrypted under the home's local key, with random access for reads and writes.

The file is a sequence of slots; slot n holds the 16 KiB from offset n times 16 KiB, each with its
own nonce and tag:

    nonce 24 bytes | XChaCha20-Poly1305 of 16,384 bytes, zero-padded at the end | tag 16 bytes

Associated data is the file's id and the slot's number, so no slot can be moved to another place or
file. A slot that was never written is zeros and reads as zeros. The file's length and hash are
stored where the file is recorded.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple, Protocol, Self

from cipherbox.portable import read_at, write_at
from cipherbox.sealing.local_secret_box import SECRET_BOX_BYTES, SecretBox

CHUNK = 16 * 1024
SLOT = CHUNK + SECRET_BOX_BYTES
_EMPTY = bytes(SLOT)


class Stamp(NamedTuple):
    """What tells that a file was replaced or changed."""

    device: int
    inode: int
    size: int
    modified_ns: int

    @classmethod
    def of(cls, fd: int) -> Self:
        """Return the stamp of an open file."""
        found = os.fstat(fd)
        return cls(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)


class RandomAccessFile(Protocol):
    """A file, encrypted or not, with random access."""

    def read(self, size: int, at: int) -> bytes: ...

    def write(self, data: bytes | memoryview, at: int) -> None: ...

    def sync(self, size: int | None = None) -> None: ...

    def stamp(self) -> Stamp: ...

    def close(self) -> None: ...


class ClearFile:
    """An unencrypted file. It takes over the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, size: int, at: int) -> bytes:
        """Return up to ``size`` bytes from offset ``at``."""
        return read_at(self._fd, size, at)

    def write(self, data: bytes | memoryview, at: int) -> None:
        write_at(self._fd, data, at)

    def sync(self, size: int | None = None) -> None:
        """Write the file to stable storage, cut to ``size`` bytes if given."""
        if size is not None:
            os.ftruncate(self._fd, size)
        os.fsync(self._fd)

    def stamp(self) -> Stamp:
        """Return what changes when the file is replaced or written."""
        return Stamp.of(self._fd)

    def close(self) -> None:
        os.close(self._fd)


class EncryptedFile:
    """An encrypted file, used as `ClearFile` is. ``name`` is the file's id."""

    def __init__(self, fd: int, box: SecretBox, name: bytes) -> None:
        self._fd, self._box, self._name = fd, box, name

    def read(self, size: int, at: int) -> bytes:
        """Return up to ``size`` bytes from offset ``at``; unwritten slots are zeros. Raise
        DecryptionFailed if they were changed.
        """
        found = []
        end = at + size
        while at < end:
            number, inside = divmod(at, CHUNK)
            chunk = self._chunk(number)
            if not chunk:
                break
            found.append(chunk[inside : inside + end - at])
            at += len(found[-1])
        return b"".join(found)

    def write(self, data: bytes | memoryview, at: int) -> None:
        view = memoryview(data)
        while view:
            number, inside = divmod(at, CHUNK)
            piece = view[: CHUNK - inside]
            whole: bytes | memoryview = piece
            if len(piece) < CHUNK:
                before = self._chunk(number) or bytes(CHUNK)
                whole = before[:inside] + bytes(piece) + before[inside + len(piece) :]
            write_at(self._fd, self._box.encrypt(whole, self._place(number)), number * SLOT)
            view, at = view[len(piece) :], at + len(piece)

    def sync(self, size: int | None = None) -> None:
        """Write the file to stable storage, cut to the slots of ``size`` bytes if given."""
        if size is not None:
            os.ftruncate(self._fd, -(-size // CHUNK) * SLOT)
        os.fsync(self._fd)

    def stamp(self) -> Stamp:
        """Return what changes when the file is replaced or written."""
        return Stamp.of(self._fd)

    def close(self) -> None:
        os.close(self._fd)

    def _chunk(self, number: int) -> bytes:
        """Return the plaintext of a slot, or nothing past the end of the file."""
        slot = read_at(self._fd, SLOT, number * SLOT)
        if len(slot) < SLOT:
            return b""
        return bytes(CHUNK) if slot == _EMPTY else self._box.decrypt(slot, self._place(number))

    def _place(self, number: int) -> bytes:
        return b"file" + self._name + number.to_bytes(8, "big")


def sync_and_close(files: dict[Any, RandomAccessFile | None]) -> None:
    """Sync and close files that are being written."""
    for stored in files.values():
        if stored is not None:
            stored.sync()
    for name in list(files):
        stored = files.pop(name)
        if stored is not None:
            stored.close()
