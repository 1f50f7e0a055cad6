"""Spares: files that were freed a moment ago, to be written over instead of new ones.

Neither directory nor size changes then, so on ext4 a file of 1 MiB costs a third of the CPU time of
a new one, and a quarter of the time of its sync.  This is the list only; its owners do the IO, and
say why no reader takes new bytes for old ones.  A spare is not kept for long: what was deleted
does not stay on the disk.
"""

from __future__ import annotations

from typing import NamedTuple

SPARE_S = 10.0  # then a spare is deleted
_WASTE = 4  # a spare is taken for at least this part of its size


class Spare(NamedTuple):
    """A freed file."""

    name: str
    size: int
    freed_at: float


class Spares:
    """The spares of one directory, the oldest first.  Times are seconds of one clock."""

    def __init__(self) -> None:
        self._spares: list[Spare] = []

    def __bool__(self) -> bool:
        return bool(self._spares)

    def add(self, name: str, size: int, now: float) -> None:
        """Add a file that nothing names any more."""
        self._spares.append(Spare(name, size, now))

    def take(self, size: int) -> str | None:
        """Return the name of a spare for so many bytes, which is not one any more; None if none
        fits.
        """
        fitting = [spare for spare in self._spares if size <= spare.size <= _WASTE * size]
        if not fitting:
            return None
        spare = min(fitting, key=lambda spare: spare.size)
        self._spares.remove(spare)
        return spare.name

    def drop(self, most_bytes: int, now: float | None = None) -> list[str]:
        """Remove those that are old, or beyond ``most_bytes`` in total, or all without ``now``;
        return their names, to be deleted.
        """
        size = sum(spare.size for spare in self._spares)
        dropped = []
        for spare in self._spares:
            if now is not None and size <= most_bytes and now - spare.freed_at <= SPARE_S:
                break
            dropped.append(spare.name)
            size -= spare.size
        del self._spares[: len(dropped)]
        return dropped
