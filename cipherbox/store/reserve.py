"""Disk space kept back for acks, and whether there is room for more envelopes.

The reserve is a file that occupies space.  When the disk is full it is given up, so that acks,
deletes and revocations still commit; it is made again when there is room.  Nothing new is taken
without one.

A database does not shrink when its envelopes are acknowledged: it keeps empty pages, and those are
room as well, or a store that was full once would refuse envelopes for ever.  The log in front of
the database and the spool need space of their own.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from cipherbox.store.files import Files

_SMALLEST = 2  # half of the wanted size will do while the disk is nearly full
_MARGIN = 8  # and an eighth of it stays free besides, for what other programs write


class Reserve:
    """The file ``path``, wanted to be ``size`` bytes.  Methods raise OSError where they ask the
    disk.
    """

    def __init__(self, path: Path, size: int, files: Files) -> None:
        self.path = path
        self._size = size
        self._files = files

    def free_bytes(self) -> int:
        return self._files.free_bytes(self.path.parent)

    def low(self) -> bool:
        """Whether hardly anything is free."""
        return self.free_bytes() < self._size // _MARGIN

    def make(self) -> bool:
        """Makes or enlarges the file where the disk has twice the space; says whether there is a
        reserve.
        """
        held = self._files.size(self.path)
        if held < self._size:
            size = min(self._size, held + self.free_bytes() // 2)
            if size == self._size or (size > held and held < self._size // _SMALLEST <= size):
                try:
                    self._files.allocate(self.path, size)
                    held = size
                except OSError:
                    self.give_up()
                    held = 0
        return held >= self._size // _SMALLEST

    def give_up(self) -> None:
        with suppress(OSError):
            self._files.delete(self.path)

    def room(self, size_bytes: int, spare_bytes: int) -> bool:
        """For so many bytes of envelopes?  ``spare_bytes``: empty pages of the database.

        Each byte is written to the log or the spool, and at most once more to the database.
        """
        if not self.make():
            return False
        free = self.free_bytes() - self._size // _MARGIN
        return free >= size_bytes and free + spare_bytes >= 2 * size_bytes
