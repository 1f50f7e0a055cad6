"""Sizes and times as people read them, in a terminal and in a browser."""

from __future__ import annotations

import datetime


def size_text(size: int) -> str:
    """Return a number of bytes in a suitable unit."""
    number = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def local_time(ms: int) -> datetime.datetime | None:
    """Return a time in ms since 1970 as local time; None if no calendar has it, for another party's
    clock is untrusted.
    """
    try:
        return datetime.datetime.fromtimestamp(ms / 1000)
    except (ValueError, OverflowError, OSError):
        return None
