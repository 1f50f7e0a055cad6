"""How much memory this process took at most since a moment, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import pytest

MOST_BYTES = 200 * 1024 * 1024  # what one sender may cost
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Memory:
    """Counts from when it is made."""

    def __init__(self) -> None:
        if not os.access(_CLEAR, os.W_OK) or not hasattr(ctypes.CDLL(None), "malloc_trim"):
            pytest.skip("what memory a process took at most can be asked of Linux with glibc only")
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide as much growth
        _CLEAR.write_text("5", encoding="ascii")  # the highest is what is in use now
        self._before = _bytes("VmRSS")

    def most(self) -> int:
        """The highest since then, above what was in use."""
        return _bytes("VmHWM") - self._before


def _bytes(name: str) -> int:
    (line,) = [
        one
        for one in _STATUS.read_text(encoding="ascii").splitlines()
        if one.startswith(f"{name}:")
    ]
    return int(line.split()[1]) * 1024
