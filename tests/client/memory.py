"""How much memory this process took at most since a moment, as Linux counts it."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path

import pytest

MOST_BYTES = 200 * 1024 * 1024  # what one sender may cost
# what many examples may leave behind in all: a recipient's credit and its queues
LEFT_BYTES, LEFT_OBJECTS = 64 * 1024 * 1024, 10_000
_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


class Memory:
    """Counts from when it is made."""

    def __init__(self) -> None:
        if not os.access(_CLEAR, os.W_OK) or not hasattr(ctypes.CDLL(None), "malloc_trim"):
            pytest.skip("what memory a process took at most can be asked of Linux with glibc only")
        gc.collect()
        self.restart()

    def restart(self) -> None:
        """Count from now on: what this process keeps of what came before is no growth."""
        ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide as much growth
        _CLEAR.write_text("5", encoding="ascii")  # the highest is what is in use now
        self._before = _bytes("VmRSS")

    def most(self) -> int:
        """The highest since then, above what was in use."""
        return _bytes("VmHWM") - self._before


def held() -> tuple[int, int]:
    """Return how many bytes of content Python's objects hold, and how many objects are of classes
    of ours; what Hypothesis remembers of its examples is left out.
    """
    gc.collect()
    seen: set[int] = set()
    size = ours = 0
    for one in gc.get_objects():
        module = str(type(one).__module__)
        if module.startswith("hypothesis"):
            continue
        ours += module.startswith("cipherbox")
        for inner in gc.get_referents(one):
            if type(inner) in (bytes, bytearray, str) and id(inner) not in seen:
                seen.add(id(inner))
                size += sys.getsizeof(inner)
    return size, ours


def _bytes(name: str) -> int:
    (line,) = [
        one
        for one in _STATUS.read_text(encoding="ascii").splitlines()
        if one.startswith(f"{name}:")
    ]
    return int(line.split()[1]) * 1024
