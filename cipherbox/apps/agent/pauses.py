"""Growing pauses between tries of what does not work yet, for each thing by itself."""

from __future__ import annotations

from collections.abc import Hashable

from cipherbox.concurrency import Backoff, KeyedBackoff

FIRST_S, MOST_S = 2.0, 300.0


class Pauses:
    """In memory alone: a restart tries everything at once."""

    def __init__(self) -> None:
        self._backoff: KeyedBackoff[Hashable] = KeyedBackoff(lambda: Backoff(FIRST_S, MOST_S))
        self._told: dict[Hashable, str] = {}

    def due(self, key: Hashable) -> bool:
        """Whether it may be tried now."""
        return self._backoff.due(key)

    def later(self, key: Hashable, why: str) -> bool:
        """It did not work: the next try comes after twice the pause.  Whether ``why`` is news."""
        self._backoff.failed(key)
        told, self._told[key] = self._told.get(key, ""), why
        return why != told

    def clear(self, key: Hashable) -> None:
        """It worked, or is no longer there."""
        self._backoff.succeeded(key)
        self._told.pop(key, None)
