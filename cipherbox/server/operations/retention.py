"""Retention: delete old records, such that a wrong clock cannot delete what is not old.

Rules:

1. Nothing is deleted in the first minutes after a start, when a clock may not be set yet, nor while
   it is in doubt (`clock_guard`).
2. The time that counts is the earlier one of the clock and the newest entry of the signed log:
   nothing is deleted by a time that the log contradicts.
3. Each hour deletes at most the records of one day, the oldest one that has any. What is due beyond
   that is an alert, so a wrong clock or setting is noticed while nearly everything still exists.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cipherbox.broker.model import Cutoffs, Retain
from cipherbox.concurrency import repeat
from cipherbox.errors import Busy
from cipherbox.ops.logs import get_logger
from cipherbox.server.clock_guard import ClockGuard
from cipherbox.server.engine import Engine
from cipherbox.server.live_config import LiveConfig
from cipherbox.store.port import Store

log = get_logger(__name__)
START_S = 600.0  # time to set a clock after a start; a machine without one asks the network
EVERY_S = 3600.0
_DAY_MS = 86_400_000


class Retention:
    """Deletes old records; ``behind_days`` is how far the oldest one is past its time after a
    pass, 0 if all that was due is deleted.  ``log_at`` is the time of the log's newest entry.
    """

    def __init__(
        self,
        live: LiveConfig,
        store: Store,
        engine: Engine,
        clock: ClockGuard,
        log_at: Callable[[], int],
    ) -> None:
        self._live, self._store, self._engine, self._clock = live, store, engine, clock
        self._log_at = log_at
        self.behind_days = 0.0

    async def run(self) -> None:
        """Delete old records once an hour, until cancelled."""
        await trio.sleep(START_S)
        await repeat(
            self.step,
            EVERY_S,
            on_failure=lambda error, _: log.error(
                "Old records could not be deleted", extra={"error": str(error)}
            ),
        )

    async def step(self) -> None:
        """Delete what is due, at most the records of one day."""
        try:
            first = due = await self._due(self._cutoffs())
            while due is not None:
                await self._engine.call(lambda n, c=due: Retain(0, "", n, c))  # type: ignore[misc]
                log.info("Old records deleted", extra={"cutoffs": due._asdict()})
                due = await self._due(first or due)
            wanted = self._cutoffs()
            rest = await self._due(wanted)
        except Busy:
            return  # the store is not available; retry in an hour
        self.behind_days = 0.0
        if rest is not None:
            pairs = zip(wanted, rest, strict=True)
            self.behind_days = max((w - r) / _DAY_MS for w, r in pairs if r) + 1

    def _cutoffs(self) -> Cutoffs:
        wanted = self._live.now.retention
        now = min(self._clock.now_ms(), self._log_at())
        if self._clock.doubt:
            now = 0
        days = (wanted.metadata_days, wanted.dead_letter_days, wanted.log_days)
        return Cutoffs(*(max(0, now - d * _DAY_MS) if d else 0 for d in days))

    async def _due(self, cutoffs: Cutoffs) -> Cutoffs | None:
        if not any(cutoffs):
            return None
        return await self._engine.in_store(self._store.retention_due, cutoffs)
