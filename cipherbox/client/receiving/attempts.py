"""What becomes of a message that a handler did not take: it waits (*later*), or it is *bad*.

Later: what the handler hands messages to is away.  That says nothing about the message: it is tried
again without end, after pauses that double up to five minutes, and counts no try.  When several in
a row have to wait, the handler as a whole does, and one message at a time tries whether it takes
them again: one that was never tried before one that was.  A person is told once when it begins and
once when nothing waits any more.

Bad: the handler will not take this message as it is.  It is tried again a few times and then parked
for a person.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import attrs
import trio

from cipherbox import clock
from cipherbox.errors import Bad, CipherBoxError

STEP = "ALTER TABLE failures ADD COLUMN later INTEGER NOT NULL DEFAULT 0;\n"
PAUSE_S, BAD_MAX_S, LATER_MAX_S = 1.0, 60.0, 300.0
IN_A_ROW = 3  # that have to wait; then the handler as a whole waits
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")


def is_later(error: Exception) -> bool:
    """Whether this says something about the world, and nothing about the message: `Later`, the
    system's errors (a connection that is refused, a disk that is full, a program that is not
    installed), and our own that may pass.
    """
    if isinstance(error, CipherBoxError):
        return error.retryable and not isinstance(error, Bad)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(_BUSY)
    return isinstance(error, OSError | trio.TooSlowError)


@attrs.frozen
class Failure:
    """The attempts of a message; ``next_at`` is ms since 1970."""

    attempts: int = 0  # in which it was bad
    later: int = 0
    next_at: int = 0

    def after(self, later: bool) -> Failure:
        """Return the state after one more attempt."""
        if later:
            pause = min(PAUSE_S * 2 ** min(self.later, 20), LATER_MAX_S)
            return Failure(self.attempts, self.later + 1, clock.now_ms() + int(pause * 1000))
        pause = min(PAUSE_S * 2 ** min(self.attempts, 20), BAD_MAX_S)
        return Failure(self.attempts + 1, self.later, clock.now_ms() + int(pause * 1000))

    @property
    def pause_s(self) -> float:
        """Return the remaining pause."""
        return max(0.0, (self.next_at - clock.now_ms()) / 1000)


class Away:
    """Whether the handler as a whole has to wait, and what a person was told.  ``say`` is given
    the lines.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._row = 0
        self._until_ms = 0
        self._waiting: set[tuple[int, int]] = set()
        self._told = False  # that it began, and not yet that it is over
        self._took = False  # something was taken since that was told

    @property
    def waits(self) -> bool:
        """Whether nothing may be tried now."""
        return clock.now_ms() < self._until_ms

    @property
    def doubtful(self) -> bool:
        """The last one had to wait: one that was never tried tells more than one that was."""
        return self._row > 0

    def later(self, number: int, index: int, reason: str) -> None:
        """Note that a message has to wait."""
        first = not self._waiting and not self._told
        self._waiting.add((number, index))
        self._row += 1
        if first or (self._row == IN_A_ROW and (self._took or not self._told)):
            self._told, self._took = True, False
            text = (
                f"The handler takes nothing now: {reason}. What has come waits and is tried again "
                "without end"
            )
            self._say(f"{text}, after pauses up to {LATER_MAX_S:.0f} s")
        if self._row >= IN_A_ROW:
            pause = min(PAUSE_S * 2 ** min(self._row - IN_A_ROW, 20), LATER_MAX_S)
            self._until_ms = clock.now_ms() + int(pause * 1000)

    def over(self, number: int, index: int) -> None:
        """Note that a message was taken or is bad: the handler is available."""
        was_away = self._row >= IN_A_ROW
        self._row = self._until_ms = 0
        self._took = True
        self._waiting.discard((number, index))
        if self._told and (was_away or not self._waiting):
            self._told = False
            self._say("The handler takes messages again")
