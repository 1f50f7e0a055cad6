"""Retries of messages that a handler did not accept: *later* means they wait, *bad* may park them.

Later: the system behind the handler is unavailable.  That is not the message's fault: it is retried
indefinitely, with a back-off of up to five minutes, and no attempt is counted.  When several in a
row have to wait, the handler as a whole backs off, and one message at a time probes whether it is
available again, preferably one that was never tried.  Its beginning and its end are reported
once each.

Bad: the handler will not accept this message as it is.  It is retried a few times and then parked
for a person.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.errors import Bad, CipherBoxError

STEP = "ALTER TABLE failures ADD COLUMN later INTEGER NOT NULL DEFAULT 0;\n"
PAUSE_S, BAD_MAX_S, LATER_MAX_S = 1.0, 60.0, 300.0
IN_A_ROW = 3  # messages that have to wait, before the handler as a whole backs off
_BUSY = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", "SQLITE_IOERR")


def is_later(error: Exception) -> bool:
    """Return whether the error is not the message's fault: `Later`, a system error (a refused
    connection, a full disk, a missing program), or a transient one of ours.
    """
    if isinstance(error, CipherBoxError):
        return error.retryable and not isinstance(error, Bad)
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorname", "").startswith(_BUSY)
    import trio

    return isinstance(error, OSError | trio.TooSlowError)


@frozen
class Failure:
    """The attempts of a message; ``next_at`` is ms since 1970."""

    attempts: int = 0  # that found it bad
    later: int = 0  # attempts that found the handler unavailable
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
        """Return the remaining pause, never more than the longest one: the clock may have been
        ahead when it began.
        """
        return max(0.0, min((self.next_at - clock.now_ms()) / 1000, LATER_MAX_S))


class HandlerBackoff:
    """The back-off of the whole handler.  ``say`` reports its beginning and end to the user."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._row = 0
        self._until_s = 0.0  # by `clock.elapsed_s`
        self._waiting: set[tuple[int, int]] = set()
        self._reported = False  # its beginning, and not yet its end
        self._accepted = False  # a message was accepted since that report

    @property
    def waits(self) -> bool:
        """Return whether nothing may be tried now."""
        return clock.elapsed_s() < self._until_s

    @property
    def is_failing(self) -> bool:
        """Return whether the last message had to wait; an untried one is then a better probe."""
        return self._row > 0

    def later(self, number: int, index: int, reason: str) -> None:
        """Note that a message has to wait."""
        first = not self._waiting and not self._reported
        self._waiting.add((number, index))
        self._row += 1
        if first or (self._row == IN_A_ROW and (self._accepted or not self._reported)):
            self._reported, self._accepted = True, False
            text = (
                f"The handler is unavailable: {reason}. Messages wait and are retried "
                f"indefinitely, with a back-off of up to {LATER_MAX_S:.0f} s"
            )
            self._say(text)
        if self._row >= IN_A_ROW:
            pause = min(PAUSE_S * 2 ** min(self._row - IN_A_ROW, 20), LATER_MAX_S)
            self._until_s = clock.elapsed_s() + pause

    def over(self, number: int, index: int) -> None:
        """Note that a message was accepted or is bad: the handler is available."""
        backed_off = self._row >= IN_A_ROW
        self._row, self._until_s = 0, 0.0
        self._accepted = True
        self._waiting.discard((number, index))
        if self._reported and (backed_off or not self._waiting):
            self._reported = False
            self._say("The handler is available again")
