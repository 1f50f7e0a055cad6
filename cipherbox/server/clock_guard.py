"""Decide whether HQ's clock is right or in doubt: the one owner of that verdict.

HQ knows the time from three sources: this machine's clock, which may be set wrong; a clock that
only counts (`clock.elapsed_s`); and what it has recorded, in its signed log and in a mark that it
writes every hour. Rules:

1. The time that HQ expects is the last time it trusted plus what has elapsed since. A clock that
   differs from it by more than `[clock] step_s` is in doubt; by a sixtieth more, so that a step of
   just that size, as that of an hour, is followed there and back.
2. Across a restart without a reboot the same holds, since the mark has the count. After a reboot
   nothing says how long HQ was stopped: then the time may be any between the newest record and
   `[clock] stopped_days` later.  So it is when another machine takes over.  If the database's
   server has a clock that fits these bounds, HQ's may not differ from it by more than `step_s`,
   either: a standby's may be wrong by days.
3. While the clock is in doubt HQ uses the time it expects, so nothing is ever stamped, expired or
   deleted by a time in doubt. It accepts no envelopes, issues no certificates and deletes no
   records; deliveries and acknowledgements continue.
4. The doubt ends when the clock is back at the expected time, or when an admin confirms it.  The
   database is asked again meanwhile: its clock may be the one that was wrong, or, on the same
   machine, have been corrected, too.
5. The trusted time advances with the clock only in `mark`, once an hour: smaller steps than
   `step_s` are allowed, but not many of them in a short time.
6. A clock that HQ trusts can go back: one that is off by more than half of `step_s` is used, but
   not recorded.  Else two steps in the same direction would be trusted, and their end, which is
   above the bound, doubted until an admin confirms it.
7. The bounds of a reboot stay, also over restarts, until the clock has made no step within them for
   `_SETTLES_S`: one that was wrong at the start, as that of a machine that keeps local time or has
   no clock without power, is corrected by the network then; and a right one that is set wrong
   meanwhile can go back.  Only then is the time that the clock shows the only one expected, and
   the database's clock does not count any more.
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
_SETTLES_S = 3600.0  # without a step: by then the network's time has corrected the machine's
# Of `step_s`, added to it.  The two clocks are not read at the same instant, and the one of a
# machine that was off has drifted.  A doubt ends, and a start is judged, at half of it: at one edge
# it would come and go.
_EDGE = 60
REMEDY = (
    "set the clock of HQ's machine (timedatectl set-ntp true); if it is right, an admin confirms "
    "it: cipherbox clock confirm"
)
_REMEDY_OF_TWO = (
    "set the clocks of HQ's machine and of the database's server (timedatectl set-ntp true); if "
    "HQ's is right, an admin can confirm it: cipherbox clock confirm"
)


class Mark(NamedTuple):
    """What HQ records about its clock while it trusts it."""

    at: int  # the time, ms since 1970
    log_at: int  # the time of the newest log entry; it never goes back
    boot: str  # of the machine; empty: unknown
    elapsed_s: float  # since that boot
    back_ms: int = 0  # how much earlier, or later, the time may really have been
    ahead_ms: int = 0

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
                int(found.get("back_ms", 0)),  # an older program's has neither
                int(found.get("ahead_ms", 0)),
            )
        except (ValueError, KeyError, TypeError):
            return None


class Recorded(NamedTuple):
    """What a store has recorded about the time."""

    mark: Mark | None
    log_at: int  # 0: the log has no entry
    database_at: int = 0  # what the database's server shows now; 0: it has no clock of its own


class _Base(NamedTuple):
    """A trusted time, and how much earlier, or later, it may really have been."""

    at: int
    elapsed_s: float
    back_ms: int = 0
    ahead_ms: int = 0

    @property
    def is_open(self) -> bool:
        """Whether it may have been another time."""
        return bool(self.back_ms or self.ahead_ms)


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
        self._base = self._first(recorded)
        self.consult(recorded.database_at)
        self._stepped_s = elapsed_s()
        self.doubt = Problem()  # why the clock is in doubt; empty if it is right
        self._trusts = False  # yet: HQ may have been in doubt when it ended
        # the records do not have the bounds by which a doubt ended: what is logged from then on may
        # be late by more than rule 8 says, so a mark is due soon
        self.unrecorded = False
        self.now_ms()

    def _first(self, recorded: Recorded) -> _Base:
        mark, log_at, here = recorded.mark, recorded.log_at, self._elapsed_s()
        if mark is None:
            # a new HQ, or one of an older program: it wrote nothing while it was idle
            return _Base(log_at, here, 0, _FOREVER_MS) if log_at else _Base(self._wall_ms(), here)
        if mark.boot and mark.boot == self._boot and mark.elapsed_s <= here:
            return _moved(_Base(mark.at, mark.elapsed_s, mark.back_ms, mark.ahead_ms), here)
        at = earliest = mark.at
        if log_at > mark.log_at:
            at = max(at, log_at)
            if not mark.back_ms and not mark.ahead_ms:
                earliest = max(earliest, log_at - self._step_ms())
        slack_ms = self._settings().stopped_days * _DAY_MS or _FOREVER_MS
        return _Base(at, here, at - earliest + mark.back_ms, slack_ms)

    def consult(self, database_at: int) -> None:
        """Take what the database's server shows now, if it fits the bounds."""
        base = _moved(self._base, self._elapsed_s())
        off = database_at - base.at
        fits = base.is_open and -self._step_ms() - base.back_ms <= off <= base.ahead_ms
        self._database = _Base(database_at, base.elapsed_s) if fits else None

    def now_ms(self) -> int:
        """Return the time in ms since 1970: the clock's, or the expected one while the clock is in
        doubt. Each call checks the clock.
        """
        wall, here, base = self._wall_ms(), self._elapsed_s(), self._base
        expected = _at(base, here)
        step_ms = self._step_ms()
        step_ms += step_ms // _EDGE // (1 if self._trusts else 2)
        right = -step_ms - base.back_ms <= wall - expected <= step_ms + base.ahead_ms
        if (database := self._database) is not None:
            expected = _at(database, here)
            right = right and abs(wall - expected) <= step_ms
        if right:
            if base.is_open:
                self._follow(wall, here)
            self._trusts = True
            if self.doubt:
                self.doubt, self.unrecorded = Problem(), base.is_open
                log.warning("HQ's clock is right again: everything continues")
            return wall
        self._trusts, self._stepped_s = False, here
        if not self.doubt:
            self.doubt = _doubt(wall, expected, of_two=database is not None)
            log.critical(
                "HQ's clock is in doubt: nothing new is accepted, issued or deleted",
                extra={"error": self.doubt.what},
            )
        return expected

    def _follow(self, wall: int, here: float) -> None:
        """Expect what the clock shows, as far as the bounds allow it, and keep these bounds until
        it has made no step for a while.
        """
        base = _moved(self._base, here)
        at = min(max(wall, base.at - base.back_ms), base.at + base.ahead_ms)
        off = at - base.at
        if abs(off) > self._near_ms():
            self._stepped_s = here
        if here - self._stepped_s >= _SETTLES_S:
            self._base, self._database = _Base(at, here), None
        else:
            self._base = _Base(at, here, base.back_ms + off, base.ahead_ms - off)

    def _step_ms(self) -> int:
        return self._settings().step_s * 1000

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
        self._base, self._database = _Base(self._wall_ms(), self._elapsed_s()), None
        self.now_ms()

    def mark(self, log_at: int) -> Mark | None:
        """Advance the trusted time and return what is to be recorded; None while in doubt."""
        now, here = self.now_ms(), self._elapsed_s()
        if self.doubt:
            return None
        base = _moved(self._base, here)
        if not base.is_open and abs(now - base.at) <= self._near_ms():
            base = _Base(now, here)
        self._base, self.unrecorded = base, False
        return Mark(base.at, log_at, self._boot, here, base.back_ms, base.ahead_ms)


def _at(base: _Base, here: float) -> int:
    """Return the trusted time at another count."""
    return base.at + int((here - base.elapsed_s) * 1000)


def _moved(base: _Base, here: float) -> _Base:
    """Return the same times and bounds at another count."""
    return base._replace(at=_at(base, here), elapsed_s=here)


def _doubt(wall: int, expected: int, *, of_two: bool) -> Problem:
    """``of_two``: the database's server shows the expected time."""
    off = abs(wall - expected) / 3_600_000
    size = f"{off / 24:.1f} days" if off >= 48 else f"{off:.1f} hours"
    side = "ahead of" if wall > expected else "behind"
    than = "the clock of the database's server" if of_two else "the time that HQ expects"
    return Problem(
        f"HQ's clock shows {_text(wall)}, {size} {side} {than} ({_text(expected)})",
        _REMEDY_OF_TWO if of_two else REMEDY,
    )


def _text(ms: int) -> str:
    try:
        return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "an impossible time"
