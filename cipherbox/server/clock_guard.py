"""Decide whether HQ's clock is right or in doubt: the one owner of that verdict.

HQ knows the time from three sources: this machine's clock, which may be set wrong; a clock that
only counts (`clock.elapsed_s`); and what it has recorded, in its signed log and in a mark that it
writes every hour. Rules:

1. The time that HQ expects is the last time it trusted plus what has elapsed since. A clock that
   differs from it by more than `[clock] step_s` is in doubt.
2. Across a restart without a reboot the same holds, since the mark has the count. After a reboot
   nothing says how long HQ was stopped: then the clock may be ahead of the newest record by
   `[clock] stopped_days`, and behind it by `step_s`.  So it is when another machine takes over,
   unless the database's server has a clock that fits these bounds: that one is expected, since a
   standby's clock may be wrong by days, and its machine does not know how long ago the record is.
3. While the clock is in doubt HQ uses the time it expects, so nothing is ever stamped, expired or
   deleted by a time in doubt. It accepts no envelopes, issues no certificates and deletes no
   records; deliveries and acknowledgements continue.
4. The doubt ends when the clock is back at the expected time, or when an admin confirms it.
5. The trusted time advances with the clock only in `mark`, once an hour: smaller steps than
   `step_s` are allowed, but not many of them in a short time.
6. A clock that HQ trusts can go back: one that is off by more than half of `step_s` is used, but
   not recorded.  Else a step just below the bound, as that of an hour, or two smaller ones, would
   be trusted, and their end, just above the bound, doubted until an admin confirms it.
7. A clock that was ahead at a start after a reboot, as one of a machine that keeps local time, may
   be corrected for `_SETTLES_S`: back to any time that the records allow.  Until then the mark has
   both bounds, since a wrong clock may be corrected, and a right one set wrong; then what it shows.
8. The log has the times that HQ used, also those that rule 6 does not record: an entry newer than
   the mark may be late by `step_s`, but the mark is not.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

import orjson

from cipherbox.broker.model import LogRow, OldLogRow
from cipherbox.config.settings import ClockSettings
from cipherbox.errors import ClockDoubted, Problem
from cipherbox.ops.logs import get_logger
from cipherbox.store.port import CLOCK

log = get_logger(__name__)
_DAY_MS = 86_400_000
_FOREVER_MS = 1 << 62
_SETTLES_S = 3600.0  # after a start: by then the network's time has corrected the machine's
# A doubt ends this much closer than it begins, and a start is judged so: at the edge it would come
# and go.  In an hour between two marks a clock that is slewed (500 ppm) moves by 1.8 s.
_EDGE_MS = 10_000
REMEDY = (
    "set the clock of HQ's machine (timedatectl set-ntp true); if it is right, an admin confirms "
    "it: cipherbox clock confirm"
)


class Mark(NamedTuple):
    """What HQ records about its clock while it trusts it."""

    at: int  # the time, ms since 1970
    log_at: int  # the time of the newest log entry; it never goes back
    boot: str  # of the machine; empty: unknown
    elapsed_s: float  # since that boot
    back_ms: int = 0  # how much earlier the time may really have been

    def encode(self) -> bytes:
        """Return the value of the setting."""
        return orjson.dumps(self._asdict())

    @classmethod
    def decode(cls, value: bytes | None) -> Mark | None:
        """Return the recorded mark; None without one, or if another program wrote it."""
        try:
            found = orjson.loads(value or b"")
            return cls(
                int(found["at"]),
                int(found["log_at"]),
                str(found["boot"]),
                float(found["elapsed_s"]),
                int(found.get("back_ms", 0)),  # an older program's has none
            )
        except (ValueError, KeyError, TypeError):
            return None


class Recorded(NamedTuple):
    """What a store has recorded about the time."""

    mark: Mark | None
    log_at: int  # 0: the log has no entry
    database_at: int = 0  # what the database's server shows now; 0: it has no clock of its own


class _Base(NamedTuple):
    """A trusted time, and how much later, or earlier, it may really have been."""

    at: int
    elapsed_s: float
    slack_ms: int
    back_ms: int = 0


class ClockStore(Protocol):
    """What is read of a store."""

    def get_setting(self, name: str) -> bytes | None: ...

    def last_log(self) -> LogRow | None: ...

    def last_old_log(self) -> OldLogRow | None: ...


def recorded(store: ClockStore, database_at: int = 0) -> Recorded:
    """Return what a store has recorded about the time; ``database_at`` is its server's clock."""
    last = store.last_log() or store.last_old_log()
    mark = Mark.decode(store.get_setting(CLOCK))
    return Recorded(mark, last.at if last is not None else 0, database_at)


class ClockGuard:
    """The clock of one HQ. ``wall_ms`` is the machine's clock, ``elapsed_s`` one that only counts,
    since the boot named ``boot``; an empty name: never the boot of a recorded mark.
    """

    def __init__(
        self,
        settings: Callable[[], ClockSettings],
        recorded: Recorded,
        wall_ms: Callable[[], int],
        elapsed_s: Callable[[], float],
        boot: str,
    ) -> None:
        self._settings, self._wall_ms, self._elapsed_s = settings, wall_ms, elapsed_s
        self._boot = boot
        self._base, self._settled_s = self._first(recorded), elapsed_s() + _SETTLES_S
        self.doubt = Problem()  # why the clock is in doubt; empty if it is right
        self._trusts = False  # yet: HQ may have been in doubt when it ended
        self.now_ms()

    def _first(self, recorded: Recorded) -> _Base:
        mark, log_at, here = recorded.mark, recorded.log_at, self._elapsed_s()
        if mark is None:
            # a new HQ, or one of an older program: it wrote nothing while it was idle
            return _Base(log_at or self._wall_ms(), here, _FOREVER_MS)
        if mark.boot and mark.boot == self._boot and mark.elapsed_s <= here:
            return _Base(mark.at + int((here - mark.elapsed_s) * 1000), here, 0, mark.back_ms)
        settings = self._settings()
        slack_ms = settings.stopped_days * _DAY_MS or _FOREVER_MS
        at, back_ms, step_ms = mark.at, mark.back_ms, settings.step_s * 1000
        if log_at > mark.log_at:
            at, back_ms = log_at, max(0, min(step_ms, log_at - mark.at)) + back_ms
        if -step_ms - back_ms <= recorded.database_at - at <= slack_ms:
            return _Base(recorded.database_at, here, 0)
        return _Base(at, here, slack_ms, back_ms)

    def now_ms(self) -> int:
        """Return the time in ms since 1970: the clock's, or the expected one while the clock is in
        doubt. Each call checks the clock.
        """
        wall, here, base = self._wall_ms(), self._elapsed_s(), self._base
        expected = self._expected(here)
        step_ms = self._settings().step_s * 1000
        if not self._trusts:
            step_ms -= _EDGE_MS
        # the slack of the first base ends when a clock is trusted
        settles = base.slack_ms or here < self._settled_s
        off, back_ms = wall - expected, base.back_ms if settles else 0
        if -step_ms - back_ms <= off <= step_ms + base.slack_ms:
            if base.slack_ms or off < -step_ms:
                earliest = expected - back_ms
                at = wall if wall >= earliest - self._near_ms() else earliest
                self._base = _Base(at, here, 0, max(0, at - earliest))
            self._trusts = True
            if self.doubt:
                self.doubt = Problem()
                log.warning("HQ's clock is right again: everything continues")
            return wall
        self._trusts = False
        if not self.doubt:
            self.doubt = _doubt(wall, expected)
            log.critical(
                "HQ's clock is in doubt: nothing new is accepted, issued or deleted",
                extra={"error": self.doubt.what},
            )
        return expected

    def _expected(self, here: float) -> int:
        return self._base.at + int((here - self._base.elapsed_s) * 1000)

    def _near_ms(self) -> int:
        """How far off a clock is recorded."""
        return self._settings().step_s * 500

    def now(self) -> datetime:
        """Return the same time as `now_ms`."""
        return datetime.fromtimestamp(self.now_ms() / 1000, UTC)

    def wall_ms(self) -> int:
        """Return what this machine's clock shows, right or not."""
        return self._wall_ms()

    def passed(self, at_ms: int) -> bool:
        """Return whether a time has certainly passed: while the clock is in doubt, none has."""
        return at_ms <= self.now_ms() and not self.doubt

    def refusal(self) -> ClockDoubted | None:
        """Return the error for what is refused while the clock is in doubt."""
        return ClockDoubted(self.doubt) if self.doubt else None

    def require(self) -> None:
        """Raise ClockDoubted while the clock is in doubt."""
        self.now_ms()
        if refusal := self.refusal():
            raise refusal

    def confirm(self) -> None:
        """Trust what the clock shows now: an admin says that it is right."""
        self._base = _Base(self._wall_ms(), self._elapsed_s(), 0)
        self.now_ms()

    def mark(self, log_at: int) -> Mark | None:
        """Advance the trusted time and return what is to be recorded; None while in doubt."""
        now, here = self.now_ms(), self._elapsed_s()
        if self.doubt:
            return None
        at = expected = self._expected(here)
        off, settled, back_ms = now - expected, here >= self._settled_s, self._base.back_ms
        if abs(off) <= self._near_ms() or (settled and -back_ms <= off < 0):
            at = now
        back_ms = 0 if settled else max(0, back_ms + at - expected)
        self._base = _Base(at, here, 0, back_ms)
        return Mark(at, log_at, self._boot, here, back_ms)


def _doubt(wall: int, expected: int) -> Problem:
    off = abs(wall - expected) / 3_600_000
    size = f"{off / 24:.1f} days" if off >= 48 else f"{off:.1f} hours"
    side = "ahead of" if wall > expected else "behind"
    return Problem(
        f"HQ's clock shows {_text(wall)}, {size} {side} the time that HQ expects "
        f"({_text(expected)})",
        REMEDY,
    )


def _text(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "an impossible time"
