"""The session of an HQ that waits as a standby: its latest attempt's, open until the next has one.

A database lists its sessions, so whoever writes it sees who waits (`postgres.lease`, rule 4).
"""

from __future__ import annotations

from typing import Protocol


class Session(Protocol):
    """A session at a database."""

    def close(self) -> None: ...


class WaitingSession:
    """See the module."""

    def __init__(self) -> None:
        self._latest: Session | None = None
        self.kept = False  # whether there ever was one: this HQ has waited

    def keep(self, session: Session) -> None:
        """Keep this session, and close the one before."""
        before, self._latest, self.kept = self._latest, session, True
        if before is not None:
            before.close()

    def close(self) -> None:
        """Close the session, if there is one."""
        if self._latest is not None:
            self._latest.close()
            self._latest = None
