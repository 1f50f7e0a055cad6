"""The disk reserve for acks, and whether there is room for more envelopes.

The reserve is a file that occupies space.  When the disk is full the file is deleted, so that acks,
deletes and revocations still commit; it is created again when there is room.  Without the reserve
no new envelope is accepted.

A database does not shrink when its envelopes are acknowledged: it keeps empty pages.  They count as
room, otherwise a store that was full once would refuse envelopes forever.  The write-ahead log and
the spool need space of their own.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cipherbox.store.files import Files

_SMALLEST = 2  # half of the intended size is enough while the disk is nearly full
_MARGIN = 8  # an eighth of it is left free as well, for other programs


class Reserve:
    """The reserve: a file of ``size`` bytes.  Methods that access the disk raise OSError."""

    def __init__(self, path: Path, size: int, files: Files) -> None:
        self.path = path
        self._size = size
        self._files = files

    def free_bytes(self) -> int:
        return self._files.free_bytes(self.path.parent)

    def low(self) -> bool:
        """Return whether the disk is almost full."""
        return self.free_bytes() < self._size // _MARGIN

    def make(self) -> bool:
        """Create or enlarge the file if the disk has twice the space; return whether it
        is enough.
        """
        held = self._files.size(self.path)
        if held < self._size:
            size = min(self._size, held + self.free_bytes() // 2)
            if size == self._size or (size > held and held < self._size // _SMALLEST <= size):
                try:
                    self._files.allocate(self.path, size)
                    held = size
                except OSError:
                    self.release()
                    held = 0
        return held >= self._size // _SMALLEST

    def release(self) -> None:
        with suppress(OSError):
            self._files.delete(self.path)

    def room(self, size_bytes: int, spare_bytes: int) -> bool:
        """Return whether there is room for envelopes; ``spare_bytes`` are the database's empty
        pages.

        Each byte is written to the log or the spool, and at most once more to the database.
        """
        if not self.make():
            return False
        free = self.free_bytes() - self._size // _MARGIN
        return free >= size_bytes and free + spare_bytes >= 2 * size_bytes
