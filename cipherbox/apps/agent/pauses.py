"""Growing pauses between tries of what does not work yet, for each thing by itself."""

from __future__ import annotations

from collections.abc import Hashable

import trio

FIRST_S, MOST_S = 2.0, 300.0


class Pauses:
    """In memory alone: a restart tries everything at once."""

    def __init__(self) -> None:
        self._waiting: dict[Hashable, tuple[float, float, str]] = {}  # next try, pause, why

    def due(self, key: Hashable) -> bool:
        """Whether it may be tried now."""
        found = self._waiting.get(key)
        return found is None or trio.current_time() >= found[0]

    def later(self, key: Hashable, why: str) -> bool:
        """It did not work: the next try comes after twice the pause.  Whether ``why`` is news."""
        _, before, told = self._waiting.get(key, (0.0, FIRST_S / 2, ""))
        pause = min(before * 2, MOST_S)
        self._waiting[key] = (trio.current_time() + pause, pause, why)
        return why != told

    def clear(self, key: Hashable) -> None:
        """It worked, or is no longer there."""
        self._waiting.pop(key, None)
