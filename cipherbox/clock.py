"""The clock: the only place that asks the system for the time of day.

1. The time of day may be wrong, and may jump. Whatever decides by it is listed on the manual page
   `clocks`, with what a wrong clock does there; a test compares the list with the code.
2. Durations are measured with monotonic clocks. `elapsed_s` is the one that also counts while the
   machine sleeps, where the system has one; it begins anew with each boot, which `boot_id` names.
3. For tests, the environment variable CIPHERBOX_TEST_CLOCK names a file with a number of seconds
   that is added to the time of day; changing the file moves the clock of a running process. HQ and
   `doctor` report it. It gives nobody a power: whoever sets the environment of a process also
   chooses its program. The library of TLS has its own clock, which this does not move.
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path

SWITCH = "CIPHERBOX_TEST_CLOCK"
_BOOT = "/proc/sys/kernel/random/boot_id"  # Linux; elsewhere the boots are not told apart

switch = os.environ.get(SWITCH, "")  # read once: a running process cannot be given one


def _shift_s() -> float:
    try:
        return float(Path(switch).read_text("ascii"))
    except (OSError, ValueError):
        return 0.0  # no file yet


def now_s() -> float:
    """Return the time of day in seconds since 1970."""
    return time.time() + _shift_s() if switch else time.time()


def now_ms() -> int:
    """Return the time of day in milliseconds since 1970."""
    return int(now_s() * 1000)


def now() -> datetime:
    """Return the time of day in UTC."""
    return datetime.fromtimestamp(now_s(), UTC)


def elapsed_s() -> float:
    """Return the seconds since this machine was booted; the time of day does not move it."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def boot_id() -> str:
    """Return a name of this boot of the machine; empty if the system has none."""
    try:
        return Path(_BOOT).read_text("ascii").strip()
    except OSError:
        return ""
