"""The file ``received_messages.jsonl``: appended to and synced within the inbox's transaction, even
if others move or change it.

Before each write the inbox checks the file at its path. If it was moved, removed or rotated, a new
file is started, and that is recorded before its first line is written. If it was shortened, writing
continues at its end. Data that others appended stays. So a line is only ever written to the file
under this name, or to one that a person has moved.

At a start, lines behind the recorded length are those of an interrupted step, and are cut off; but
if the database lost commits, they may be the only copy. Then whoever opens it first copies them to
another file (`keep_tail`): it may be a command that does not write lines, and when it closes the
database, no sign of the loss is left.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cipherbox import clock
from cipherbox.portable import O_BINARY, give_to, is_root, sync_directory, write_private

_LARGE = 64 * 1024
_DAY_MS = 24 * 3600 * 1000
NOT_YET = -1  # no inbox has opened the lines yet
Say = Callable[[str], None]


class At(NamedTuple):
    """The file's identity and length as the inbox records it; ``begun`` is ms since 1970."""

    length: int
    inode: int
    begun: int

    def is_of(self, stat: os.stat_result) -> bool:
        """Return whether this was recorded of that file."""
        return self.length != NOT_YET and self.inode in (0, _inode(stat))


class LinesFile:
    """The lines' file. Methods block on the disk and raise OSError. ``rotate`` is (bytes, days), 0
    for never.
    """

    def __init__(self, path: Path, at: At, say: Say, rotate: tuple[int, int] = (0, 0)) -> None:
        self.path, self._say, self._rotate = path, say, rotate
        self._fd = _opened(path)
        self._added = 0
        self._left_over = False  # bytes of a failed step follow the recorded length
        self.at = at
        self.cut = self._cut_back()

    def _cut_back(self) -> int:
        """Truncate the file to its recorded length; return the number of bytes of an interrupted
        step that were removed; 0 if `keep_tail` has copied them.

        If it is a different or shorter file, or no inbox has opened it, writing continues at its
        end.
        """
        stat = os.fstat(self._fd)
        size, inode = stat.st_size, _inode(stat)
        if not self.at.is_of(stat) or size < self.at.length:
            self.at = At(self._end(size), inode, clock.now_ms() if size == 0 else self.at.begun)
            return 0
        if size > self.at.length:
            kept = _kept(self.path, _whole_lines(self.path, self.at.length))
            if kept is not None:
                self._say(
                    f"the lines that the inbox does not know any more are in data/{kept.name}"
                )
            os.ftruncate(self._fd, self.at.length)
            os.fsync(self._fd)
            if kept is not None:
                size = self.at.length
        self.at = self.at._replace(inode=inode)
        return size - self.at.length

    def look(self) -> bool:
        """Return whether the next line goes to another file or offset than recorded: then record
        `at` first.
        """
        before = self.at
        try:
            named = os.stat(self.path)
        except FileNotFoundError:
            self._begin("was removed")
            return True
        if _inode(named) != self.at.inode:
            self._begin("was replaced")
        elif self._due(named.st_size):
            self.close()  # Windows cannot rename an open file
            rotated = rotate(self.path)
            self._begin(f"was rotated to {rotated.name if rotated is not None else 'another name'}")
        elif named.st_size < self.at.length:
            self._say(f"{self.path.name} was shortened; new lines go to its end")
            self.at = self.at._replace(length=self._end(named.st_size))
        elif named.st_size > self.at.length:
            if self._left_over:
                os.ftruncate(self._fd, self.at.length)
            else:
                self.at = self.at._replace(length=self._end(named.st_size))
        self._left_over = False
        return self.at != before

    def append(self, lines: Sequence[bytes]) -> At:
        """Write and sync the lines, and return the position to record with them."""
        self._added = sum(map(len, lines))
        at = self.at.length
        for data in joined(lines):
            view = memoryview(data)
            while view:
                os.lseek(self._fd, at, os.SEEK_SET)
                written = os.write(self._fd, view)
                view, at = view[written:], at + written
        if self._added:
            os.fsync(self._fd)
        return self.at._replace(length=at)

    def committed(self) -> None:
        """Report that what was appended is recorded."""
        self.at = self.at._replace(length=self.at.length + self._added)
        self._added = 0

    def undo(self) -> None:
        """Truncate what was appended."""
        self._added = 0
        self._left_over = True
        with suppress(OSError):
            os.ftruncate(self._fd, self.at.length)
            self._left_over = False

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        with suppress(OSError):
            os.close(fd)

    def _begin(self, why: str) -> None:
        self.close()
        self._fd = _opened(self.path)
        stat = os.fstat(self._fd)
        self.at = At(self._end(stat.st_size), _inode(stat), clock.now_ms())
        self._say(f"{self.path.name} {why}; new lines go to a new file")

    def _due(self, size: int) -> bool:
        most, days = self._rotate
        return size > 0 and (
            0 < most < size or (days > 0 and self.at.begun + days * _DAY_MS < clock.now_ms())
        )

    def _end(self, size: int) -> int:
        """Return the offset at which a new line can begin."""
        if size:
            os.lseek(self._fd, size - 1, os.SEEK_SET)
            if os.read(self._fd, 1) != b"\n":
                size += os.write(self._fd, b"\n")
        return size


def keep_tail(path: Path, at: At) -> None:
    """Copy the whole lines behind the recorded length to another file, if none has them."""
    try:
        if not at.is_of(path.stat()):
            return
        whole = _whole_lines(path, at.length)
    except FileNotFoundError:
        return
    if whole and _kept(path, whole) is None:
        target = _named(path, f"unrecorded-{clock.now():%Y%m%dT%H%M%SZ}")
        write_private(target, whole)
        if is_root():  # keep it readable for the home's owner
            stat = path.stat()
            give_to(target, (stat.st_uid, stat.st_gid))


def _kept(path: Path, whole: bytes) -> Path | None:
    """Return the file to which `keep_tail` has copied these lines."""
    for one in path.parent.glob(_named(path, "unrecorded-*").name) if whole else ():
        with suppress(OSError):  # not readable for this user
            if one.read_bytes() == whole:
                return one
    return None


def _whole_lines(path: Path, at: int) -> bytes:
    with path.open("rb") as file:
        file.seek(at)
        whole, end, _ = file.read().rpartition(b"\n")
    return whole + end


def _named(path: Path, addition: str) -> Path:
    return path.with_name(f"{path.stem}-{addition}{path.suffix}")


def rotate(path: Path) -> Path | None:
    """Rename the file to include the time, and return the new path, or None if it does not exist. A
    receiver starts a new one.
    """
    stem = f"{path.stem}-{clock.now():%Y%m%dT%H%M%SZ}"
    number = 1
    while True:
        target = path.with_name(f"{stem}{'' if number == 1 else f'-{number}'}{path.suffix}")
        number += 1
        if os.path.lexists(target):
            continue
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return None
        sync_directory(path.parent)
        return target


def joined(lines: Sequence[bytes]) -> Iterator[bytes]:
    """Join small pieces; yield large ones unchanged, since joining would copy them."""
    small: list[bytes] = []
    for data in lines:
        if len(data) < _LARGE:
            small.append(data)
            continue
        yield b"".join(small)
        small.clear()
        yield data
    yield b"".join(small)


def _opened(path: Path) -> int:
    made = not os.path.lexists(path)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | O_BINARY, 0o600)
    if made:
        sync_directory(path.parent)
    return fd


def _inode(stat: os.stat_result) -> int:
    return stat.st_ino & ((1 << 62) - 1)
