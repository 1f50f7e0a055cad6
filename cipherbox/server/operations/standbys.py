"""The HQs that wait to take over from this one, as the database knows them, and since when.

That one belongs here is known from having seen one, or from having been one: an HQ that took over
has none until the other returns.  Nothing is configured for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from cipherbox.store.port import Standby

MISSED_S = 300.0  # an HQ that is restarted or upgraded is back by then


class Waiting(NamedTuple):
    """A standby, and for how long this HQ has seen it wait."""

    name: str
    address: str
    seconds: float


class Standbys:
    """See the module."""

    def __init__(self, clock_s: Callable[[], float]) -> None:
        self._clock_s = clock_s
        self._since: dict[Standby, float] = {}
        self._alone_since: float | None = None

    def expect(self) -> None:
        """Note that there are two HQs: this one was the standby."""
        self._alone_since = self._clock_s()

    def look(self, found: Sequence[Standby]) -> None:
        """Take what the store says now."""
        now = self._clock_s()
        if self._since and not found:
            self._alone_since = now
        elif found:
            self._alone_since = None
        self._since = {one: self._since.get(one, now) for one in found}

    def rows(self) -> list[Waiting]:
        """Return the standbys by name."""
        now = self._clock_s()
        return [Waiting(*one, now - since) for one, since in sorted(self._since.items())]

    def missed_s(self) -> float:
        """Return for how long no standby has waited, if that is an alert; otherwise 0."""
        if self._alone_since is None:
            return 0.0
        alone_s = self._clock_s() - self._alone_since
        return alone_s if alone_s >= MISSED_S else 0.0
