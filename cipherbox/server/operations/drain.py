"""Before an upgrade: nothing new is taken, what waits goes out to the consumers that are there,
then HQ ends.

What waits for a client that is not here stays in the store, as it does at any stop.  A consumer
that takes nothing holds it up until the deadline.
"""

from __future__ import annotations

import trio

from cipherbox.ops.logs import get_logger
from cipherbox.server.engine import Engine

log = get_logger(__name__)
MOST_S = 300


class Drain:
    """Whether HQ drains, and until when."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._until = 0.0
        self.done = trio.Event()

    def left(self) -> int:
        """Envelopes that may still go out: in queues somebody consumes, or with somebody who
        fetched them.
        """
        queues = self._engine.broker.state.queues.values()
        return sum(q.depth if q.consumers else len(q.unacknowledged) for q in queues if q.depth)

    def begin(self, most_s: float, by: str) -> int:
        """From now on; again sets another deadline."""
        self._engine.draining = True
        self._until = trio.current_time() + (most_s or MOST_S)
        left = self.left()
        log.warning(
            "HQ drains: nothing new is taken, then it ends", extra={"client": by, "left": left}
        )
        return left

    def undo(self, by: str) -> None:
        """Takes publishes again."""
        if self._engine.draining and not self.done.is_set():
            self._engine.draining = False
            log.warning("HQ drains no longer: it takes everything again", extra={"client": by})

    def tick(self, now: float) -> None:
        """HQ's clock."""
        if not self._engine.draining or self.done.is_set():
            return
        left = self.left()
        if not self._engine.waiting and (not left or now >= self._until):
            log.warning("HQ has drained and ends", extra={"left": left})
            self.done.set()
