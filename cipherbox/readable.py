"""Sizes, times and sentences as people read them, in a terminal and in a browser."""

from __future__ import annotations

import datetime
from collections.abc import Mapping


def size_text(size: int) -> str:
    """Return a number of bytes in a suitable unit."""
    number = float(size)
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def age_text(seconds: float) -> str:
    """Return a duration in a suitable unit."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def local_time(ms: int) -> datetime.datetime | None:
    """Return a time in ms since 1970 as local time; None if no calendar has it, for another party's
    clock is untrusted.
    """
    try:
        return datetime.datetime.fromtimestamp(ms / 1000)
    except (ValueError, OverflowError, OSError):
        return None


class Sentence(str):
    """An English sentence that a table of texts can translate: its pattern, with names in braces,
    and their values.  A value may be a sentence, or several.
    """

    pattern: str
    values: dict[str, object]

    def __new__(cls, pattern: str, /, **values: object) -> Sentence:
        found = super().__new__(cls, filled(pattern, values))
        found.pattern, found.values = pattern, values
        return found


def filled(pattern: str, values: Mapping[str, object]) -> str:
    """Return a pattern with its values; several are separated by commas."""
    return pattern.format(
        **{
            name: ", ".join(map(str, value)) if isinstance(value, list) else value
            for name, value in values.items()
        }
    )
