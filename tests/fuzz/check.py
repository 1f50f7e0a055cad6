"""Whether a parser keeps the rule for one input: its value or a documented error, in bounded
time and memory.
"""

from __future__ import annotations

import gc
import hashlib
import sys
import time
from pathlib import Path

from tests.fuzz.targets import Target

KEPT = Path(__file__).parent / "regressions"  # a folder for each target: what once broke the rule
SECONDS = 2.0  # of CPU for one input, on a slow machine; the slowest good one takes a twentieth
GROWTH_BYTES = 256 * 1024 * 1024  # above what the largest of all limits lets one input need


class RuleBroken(Exception):
    """What a parser did instead, and the input."""

    def __init__(self, target: Target, data: bytes, what: str) -> None:
        super().__init__(f"{target.name}: {what}; input ({len(data)} bytes): {data[:200].hex()}")
        self.target, self.data, self.what = target, data, what

    def keep(self, place: Path = KEPT) -> Path:
        """Writes the input where the next run, and `make test`, finds it."""
        path = place / self.target.name / f"{hashlib.sha256(self.data).hexdigest()[:16]}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.data)
        return path


def check(target: Target, data: bytes) -> bool:
    """Whether the parser took it; RuleBroken if it did something else than its documentation
    says.
    """
    began = time.process_time()
    try:
        target.read(data)
        taken = True
    except target.refusals:
        taken = False
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        raise RuleBroken(target, data, f"{type(error).__name__}: {error}") from error
    if (spent := time.process_time() - began) > SECONDS:
        raise RuleBroken(target, data, f"it took {spent:.1f} s")
    return taken


def kept(target: Target) -> list[bytes]:
    """What once broke the rule."""
    return [path.read_bytes() for path in sorted((KEPT / target.name).glob("*.bin"))]


def peak_bytes() -> int:
    """The most memory this process ever had."""
    import resource

    gc.collect()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
