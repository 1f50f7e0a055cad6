"""One hidden file that many small ones share until each gets its own: it is made durable once for all of them."""

from __future__ import annotations

from collections.abc import Callable

from cipherbox.sealing.lockedfile import Places

_PIECE = 1024 * 1024  # written in one step


class Shared:
    """Written from its beginning to its end; ``opens`` opens it when the first bytes come."""

    def __init__(self, name: str, opens: Callable[[], Places]) -> None:
        self.name, self._opens = name, opens
        self.size = 0
        self._stored: Places | None = None
        self._pending: list[bytes] = []
        self._written = 0

    def add(self, data: bytes) -> int:
        """Puts it to the end; where it begins."""
        at = self.size
        self._pending.append(data)
        self.size += len(data)
        if self.size - self._written >= _PIECE:
            self._write()
        return at

    def sync(self) -> None:
        """Puts what was added on stable storage."""
        if self._pending:
            self._write()
        if self._stored is not None:
            self._stored.sync(self.size)

    def close(self) -> None:
        if self._stored is not None:
            self._stored.close()

    def _write(self) -> None:
        if self._stored is None:
            self._stored = self._opens()
        self._stored.write(b"".join(self._pending), self._written)
        self._pending.clear()
        self._written = self.size
