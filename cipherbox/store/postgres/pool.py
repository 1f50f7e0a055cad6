"""Sessions that read beside the writing one, kept open for the next reader."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cipherbox.store.postgres.driver import PostgresConnection


class ReaderPool:
    """A pool of reading sessions, usable from several threads; ``connect`` opens a session."""

    def __init__(self, connect: Callable[[], PostgresConnection]) -> None:
        self._connect = connect
        self._idle: list[PostgresConnection] = []
        self._lock = threading.Lock()

    @contextmanager
    def reader(self) -> Iterator[PostgresConnection]:
        """Lend a session for the block; close it if it broke."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        if connection is None or connection.broken:
            connection = self._connect()
        try:
            yield connection
        finally:
            if connection.broken:
                connection.close()
            else:
                with self._lock:
                    self._idle.append(connection)

    def close(self) -> None:
        """Close the idle sessions; the pool can be used again."""
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()
