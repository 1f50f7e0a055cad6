"""The session of an HQ that waits as a standby: its latest attempt's, open until the next has one.

A database lists its sessions, so whoever writes it sees who waits (`postgres.lease`, rule 4).  It
also counts for how long its attempts have seen the same renewal of the lease (rule 2).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Session(Protocol):
    """A session at a database."""

    def close(self) -> None: ...


class WaitingSession:
    """See the module."""

    def __init__(self, elapsed_s: Callable[[], float] = time.monotonic) -> None:
        self._elapsed_s = elapsed_s
        self._latest: Session | None = None
        self._since: float | None = None
        self.waited_s = 0.0  # from the first session to the latest
        self._seen: tuple[object, float] = (None, 0.0)

    def unchanged_s(self, seen: object) -> float:
        """Return for how long attempts have seen the same."""
        now = self._elapsed_s()
        if self._seen[0] != seen:
            self._seen = seen, now
        return now - self._seen[1]

    def keep(self, session: Session) -> None:
        """Keep this session, and close the one before."""
        now = self._elapsed_s()
        self._since = now if self._since is None else self._since
        self.waited_s = now - self._since
        before, self._latest = self._latest, session
        if before is not None:
            before.close()

    def close(self) -> None:
        """Close the session, if there is one."""
        if self._latest is not None:
            self._latest.close()
            self._latest = None
