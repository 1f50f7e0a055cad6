"""Back-off for each file, destination and transfer, with the last reason reported."""

from __future__ import annotations

from collections.abc import Hashable

from cipherbox.concurrency import Backoff, KeyedBackoff

FIRST_S, MOST_S = 2.0, 300.0


class Pauses:
    """Kept in memory: a restart tries everything immediately."""

    def __init__(self) -> None:
        self._backoff: KeyedBackoff[Hashable] = KeyedBackoff(lambda: Backoff(FIRST_S, MOST_S))
        self._reported: dict[Hashable, str] = {}

    def due(self, key: Hashable) -> bool:
        """Return whether it may be tried now."""
        return self._backoff.due(key)

    def later(self, key: Hashable, why: str) -> bool:
        """Note a failure and double the pause; return whether the reason is a new one."""
        self._backoff.failed(key)
        before, self._reported[key] = self._reported.get(key, ""), why
        return why != before

    def clear(self, key: Hashable) -> None:
        """Forget the failures: it succeeded, or no longer exists."""
        self._backoff.succeeded(key)
        self._reported.pop(key, None)
