"""HQ's last hour and day as plots: sampled while the page of an admin runs, kept in its memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

SAMPLE_S = 10.0
POINTS = 360  # of each plot: an hour in steps of 10 s, a day in steps of 4 minutes
DAY_EVERY = 24  # samples of the hour for one of the day
WIDTH, HEIGHT = 300, 80  # of a plot, in its own units
# what is plotted: part of the report, name in it
SHOWN = (
    ("rates", "published messages"),
    ("rates", "delivered envelopes"),
    ("now", "waiting"),
    ("now", "memory_bytes"),
)


class Plot(NamedTuple):
    """One line of a plot; ``points`` is an SVG polyline."""

    name: str
    points: str
    now: float
    most: float
    since: float  # seconds that it spans


class History:
    """See the module."""

    def __init__(self) -> None:
        self._hour: deque[tuple[float, ...]] = deque(maxlen=POINTS)
        self._day: deque[tuple[float, ...]] = deque(maxlen=POINTS)
        self._count = 0

    def add(self, report: dict[str, Any]) -> None:
        """Add a sample; for the day, the most of each value since the one before."""
        self._hour.append(tuple(float(report[part][name]) for part, name in SHOWN))
        self._count += 1
        if self._count % DAY_EVERY == 0:
            latest = list(self._hour)[-DAY_EVERY:]
            self._day.append(tuple(max(values) for values in zip(*latest, strict=True)))

    def hour(self) -> list[Plot]:
        """Return the plots of the last hour."""
        return list(_plots(self._hour, SAMPLE_S))

    def day(self) -> list[Plot]:
        """Return the plots of the last day."""
        return list(_plots(self._day, SAMPLE_S * DAY_EVERY))


def _plots(samples: Sequence[tuple[float, ...]], step_s: float) -> Iterator[Plot]:
    if len(samples) < 2:
        return
    for (_, name), values in zip(SHOWN, zip(*samples, strict=True), strict=True):
        most = max(values)
        start = WIDTH - WIDTH * (len(values) - 1) / (POINTS - 1)
        points = " ".join(
            f"{start + WIDTH * at / (POINTS - 1):.1f},"
            f"{HEIGHT - (HEIGHT - 4) * (value / most if most else 0):.1f}"
            for at, value in enumerate(values)
        )
        yield Plot(name, points, values[-1], most, step_s * (len(values) - 1))
