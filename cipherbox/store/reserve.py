"""The disk reserve for acks, and whether there is room for more envelopes.

The reserve is a file that occupies space.  When the disk is full the file is deleted, so that acks,
deletes and revocations still commit; it is created again when there is room.

Rules:

1. Envelopes are accepted while the reserve is whole and they fit beside it: each byte is written to
   the log or the spool, and at most once more to the database.  `MARGIN` stays free besides, for
   other programs.
2. Once they did not fit, the reserve is not whole: it lacks its last page, or is gone.  It is made
   whole, and envelopes are accepted again, when ``resume`` bytes are free beside it.
3. So the file itself says whether HQ refuses envelopes, and a restart changes nothing.  The same
   holds for the first start: a disk that has less than ``resume`` beside the reserve is full.

A database does not shrink when its envelopes are acknowledged: it keeps empty pages.  They count as
room, otherwise a store that was full once would refuse envelopes forever.  The write-ahead log and
the spool need space of their own.

Asking the system costs 0.1 to 0.3 ms, as much as the rest of a small commit.  So while there is
plenty of space, its answer is used for `FRESH_S`, less what was committed since.  Only another
program can make that wrong, by writing all of `PLENTY_BYTES` in this time; then a commit finds the
disk full, nothing of it is written, and the reserve is still there for acks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from math import inf
from pathlib import Path

from cipherbox.store.files import Files

MARGIN = 8  # an eighth of it is left free as well, for other programs
_PAGE = 4096  # what it lacks while envelopes are refused
FRESH_S = 1.0
PLENTY_BYTES = 256 * 1024 * 1024


class Reserve:
    """The reserve: a file of ``size`` bytes.  Methods that access the disk raise OSError."""

    def __init__(
        self,
        path: Path,
        size: int,
        files: Files,
        now: Callable[[], float] = time.monotonic,
        *,
        resume: int = 0,
    ) -> None:
        self.path = path
        self._size = size
        self._resume = resume
        self._files = files
        self._now = now
        self._known_free = 0  # as the disk said, less what was committed since
        self._free_until = self._made_until = -inf  # when the answers must be asked for again

    def free_bytes(self) -> int:
        """Return the free space as known for at most `FRESH_S`."""
        return self._known_free if self._now() < self._free_until else self._ask()

    def _ask(self) -> int:
        self._known_free = self._files.free_bytes(self.path.parent)
        self._free_until = self._now() + FRESH_S
        return self._known_free

    def forget(self) -> None:
        """Ask the disk again: what was known of it is wrong."""
        self._free_until = self._made_until = -inf

    def plenty(self, size_bytes: int) -> bool:
        """Return whether there is room for envelopes beyond doubt: the whole reserve existed a
        moment ago, and there is far more space than they take.
        """
        return (
            self._now() < self._made_until
            and self.free_bytes() - self._size // MARGIN - 2 * size_bytes >= PLENTY_BYTES
        )

    def spend(self, size_bytes: int) -> None:
        """Count envelopes that are written now, to the log or the spool and to the database."""
        self._known_free -= 2 * size_bytes

    def low(self) -> bool:
        """Return whether the disk is almost full."""
        return self._ask() < self._size // MARGIN

    def make(self) -> bool:
        """Create or enlarge the file if ``resume`` bytes are left beside it; return whether it is
        whole.
        """
        held = self._files.size(self.path)
        if held < self._size and self._ask() >= self._size - held + self._resume:
            try:
                self._files.allocate(self.path, self._size)
                held = self._size
            except OSError:
                self.release()
                held = 0
        self._made_until = self._now() + FRESH_S if held >= self._size else -inf
        return held >= self._size

    def refuse(self) -> None:
        """Take a page from the reserve: envelopes are refused until it is made whole."""
        self.forget()
        if self._files.size(self.path) >= self._size:
            self._files.truncate(self.path, max(0, self._size - _PAGE))

    def release(self) -> None:
        self.forget()
        with suppress(OSError):
            self._files.delete(self.path)

    def room(self, size_bytes: int, spare_bytes: int) -> bool:
        """Return whether there is room for envelopes; ``spare_bytes`` are the database's empty
        pages.
        """
        if not self.make():
            return False
        free = self._ask() - self._size // MARGIN
        return free >= size_bytes and free + spare_bytes >= 2 * size_bytes
