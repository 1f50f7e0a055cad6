"""Drain, before an upgrade: accept nothing new, deliver what waits to connected consumers, then
stop.

What waits for clients that are not connected stays in the store, as at any stop.  A consumer that
reads nothing delays the stop until the deadline.
"""

from __future__ import annotations

import trio

from cipherbox.ops.logs import get_logger
from cipherbox.server.engine import Engine

log = get_logger(__name__)
MOST_S = 300


class Drain:
    """Whether HQ is draining, and until when."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._until = 0.0
        self.done = trio.Event()

    def left(self) -> int:
        """Return the number of envelopes still to be delivered: in queues with consumers, or
        fetched and not acknowledged.
        """
        queues = self._engine.broker.state.queues.values()
        return sum(q.depth if q.consumers else len(q.unacknowledged) for q in queues if q.depth)

    def begin(self, most_s: float, by: str) -> int:
        """Begin to drain, or change the deadline; return the number of envelopes left."""
        self._engine.draining = True
        self._until = trio.current_time() + (most_s or MOST_S)
        left = self.left()
        log.warning(
            "HQ is draining: it accepts nothing new, then stops",
            extra={"client": by, "left": left},
        )
        return left

    def undo(self, by: str) -> None:
        """Cancel: accept publishes again."""
        if self._engine.draining and not self.done.is_set():
            self._engine.draining = False
            log.warning("Drain cancelled: HQ accepts publishes again", extra={"client": by})

    def tick(self, now: float) -> None:
        """Stop HQ when it has drained; called twice a second."""
        if not self._engine.draining or self.done.is_set():
            return
        left = self.left()
        if not self._engine.waiting and (not left or now >= self._until):
            log.warning("HQ has drained and stops", extra={"left": left})
            self.done.set()
