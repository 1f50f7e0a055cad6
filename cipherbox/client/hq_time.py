"""A client's clock, and the time that HQ shows: what a wrong clock of this machine must not do.

Rules:

1. Private keys, received messages and ids are deleted by the earlier of this machine's clock and
   the newest time that HQ's log has shown here (`deletion_ms`); what is deleted later is stamped
   with the later one (`stamp_ms`). So one wrong clock deletes nothing; a home that HQ has not shown
   a time deletes nothing at all.
2. New envelope ids have HQ's time while this machine's clock differs from it by more than an hour
   (`HqClock`): by this machine's own HQ would refuse them. It is said once, with the remedy. If HQ
   refuses one as too new, its clock was corrected after it had shown its time: that is forgotten.
3. Security is never decided by HQ's time: the end of certificates, key bundles and revocation lists
   is compared with this machine's clock. A wrong one then refuses to send or connect, and it is
   retried until the clock is right.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

from cipherbox import clock
from cipherbox.client.log import heads
from cipherbox.errors import EnvelopeError
from cipherbox.limits import LIMITS

STEP_MS = 3_600_000  # as HQ's own default, `[clock] step_s`
_REMEDY = "Set the clock: timedatectl set-ntp true"


def shown_ms(home: Path) -> int:
    """Return the time of the newest head of HQ's log that this home has verified, in ms since 1970;
    0 without one.  It cannot fail.
    """
    path = (home / heads.DATABASE).absolute()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5.0)) as db:
            return heads.time_of(db)
    except (sqlite3.Error, EnvelopeError, OSError):
        return 0


def deletion_ms(home: Path, now_ms: int | None = None) -> int:
    """Return the time by which this home may delete what is old; ``now_ms`` is the clock's."""
    return min(clock.now_ms() if now_ms is None else now_ms, shown_ms(home))


def stamp_ms(home: Path, now_ms: int | None = None) -> int:
    """Return the time for what is deleted when it is old; ``now_ms`` is the clock's."""
    return max(clock.now_ms() if now_ms is None else now_ms, shown_ms(home))


class HqClock:
    """The time for new envelope ids.  ``say`` tells the user of a wrong clock."""

    def __init__(
        self,
        home: Path,
        say: Callable[[str], None],
        wall_ms: Callable[[], int] = clock.now_ms,
        elapsed_s: Callable[[], float] = clock.elapsed_s,
    ) -> None:
        self._say, self._wall_ms, self._elapsed_s = say, wall_ms, elapsed_s
        self._shown: tuple[int, float] | None = None  # HQ's time, and when it was shown
        self._said = False
        self._last = shown_ms(home)

    def shown(self, server_ms: int) -> None:
        """Take the time that HQ shows on a new connection."""
        self._shown = server_ms, self._elapsed_s()
        self._tell()

    def refused(self, at_ms: int) -> None:
        """Take that HQ refused an id of this time as too new: its clock may have been corrected
        since it was shown.
        """
        latest = at_ms - LIMITS.clock_ahead_ms  # that HQ's clock can show now
        if self._shown is not None and latest < self._expected(*self._shown) - STEP_MS:
            self._shown = None

    def _tell(self) -> None:
        warning = self.warning
        if warning and not self._said:
            self._say(warning)
        self._said = bool(warning)

    @property
    def warning(self) -> str:
        """What is wrong with this machine's clock, and the remedy; empty if nothing is."""
        wall, off = self._wall_ms(), self.wrong_by_ms
        if off:
            hours, side = abs(off) / 3_600_000, "ahead of" if off > 0 else "behind"
            return (
                f"WARNING: this machine's clock shows {_text(wall)}, {hours:.1f} hours {side} HQ's "
                f"({_text(wall - off)}). {_REMEDY}. Until then message ids have HQ's time"
            )
        if self._shown is None and self._last - wall > STEP_MS:
            return (
                f"WARNING: this machine's clock shows {_text(wall)}, which is before the time that "
                f"HQ's log has shown here, {_text(self._last)}. {_REMEDY}"
            )
        return ""

    @property
    def wrong_by_ms(self) -> int:
        """How far this machine's clock is ahead of HQ's; 0 if it is close, or HQ showed none."""
        if self._shown is None:
            return 0
        off = self._wall_ms() - self._expected(*self._shown)
        return off if abs(off) > STEP_MS else 0

    def now_ms(self) -> int:
        """Return this machine's time, or HQ's while the two differ by more than an hour."""
        wall = self._wall_ms()
        if self._shown is None:  # the log alone may be wrong: HQ's clock was once ahead
            self._tell()
            return wall
        expected = self._expected(*self._shown)
        return expected if abs(wall - expected) > STEP_MS else wall

    def _expected(self, server_ms: int, at_s: float) -> int:
        return server_ms + int((self._elapsed_s() - at_s) * 1000)


def _text(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "an impossible time"
