"""The clock: the only place that asks the system for the time of day.

Durations are measured elsewhere, with monotonic clocks: the time of day may jump.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime


def now() -> datetime:
    """Return the time of day in UTC."""
    return datetime.now(UTC)


def now_ms() -> int:
    """Return the milliseconds since 1970."""
    return int(time.time() * 1000)
