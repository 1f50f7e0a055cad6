"""How often this client asks HQ for something that others make it ask for."""

from __future__ import annotations

import trio


class Bucket:
    """So many tokens a minute, all of them at the start."""

    def __init__(self, per_minute: int) -> None:
        self._most, self._left, self._at = float(per_minute), float(per_minute), trio.current_time()

    def take(self, tokens: float = 1) -> float:
        """Takes tokens; how long until there are so many, if there are not."""
        now = trio.current_time()
        self._left = min(self._most, self._left + (now - self._at) * self._most / 60)
        self._at = now
        if self._left < tokens:
            return (tokens - self._left) * 60 / self._most
        self._left -= tokens
        return 0.0

    def give_back(self) -> None:
        """The token was not needed."""
        self._left += 1
