"""Rate limit for requests to HQ that other clients can cause."""

from __future__ import annotations

import trio


class Bucket:
    """A token bucket: full at the start, refilled at ``per_minute`` tokens a minute."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._left, self._at = float(per_minute), float(per_minute), trio.current_time()

    def take(self, tokens: float = 1) -> float:
        """Take tokens and return 0, or return the seconds until there are enough."""
        now = trio.current_time()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        if self._left < tokens:
            return (tokens - self._left) * 60 / self._most
        self._left -= tokens
        return 0.0

    def give_back(self) -> None:
        """Return a token that was not needed."""
        self._left += 1
