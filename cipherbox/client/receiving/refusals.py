"""Tell HQ in the background which envelopes were refused.

A final refusal is sent immediately, a temporary one after a pause that grows with each attempt.
Meanwhile the envelope's bytes are dropped here and its credit is returned, so that one sender's
envelopes delay no other's.  The number that waits is bounded for each sender; further ones become
dead letters immediately, and nothing is lost.  A refusal that HQ does not answer, or cannot take
now, is repeated while the delivery's connection is open, since HQ redelivers only after its end.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.concurrency import Flag, Signal
from cipherbox.errors import CipherBoxError

OF_SENDER = 256  # of one sender, waiting
CONCURRENT = 64  # sent to HQ concurrently
FLUSH_S = 5.0
REPEAT_S = 1.0  # before a refusal that HQ did not take is repeated
Nack = Callable[[Delivery, bool, int, str], Awaitable[None]]


class _Due(NamedTuple):
    at: float
    number: int
    delivery: Delivery
    sender: str
    requeue: bool
    outcome: int
    reason: str


class Refusals:
    """The refusals due to HQ. ``nack`` sends one; ``nursery`` runs the task that does."""

    def __init__(self, nack: Nack, events: Events, nursery: trio.Nursery) -> None:
        self._nack, self._events, self._nursery = nack, events, nursery
        self._due: list[_Due] = []
        self._waiting: Counter[str] = Counter()
        self._number = 0
        self._news = Flag()
        self._under_way = 0
        self._idle = Signal()
        self._running = False

    def put(
        self,
        delivery: Delivery,
        sender: str,
        *,
        requeue: bool,
        outcome: int,
        reason: str,
        pause_s: float,
    ) -> bool:
        """Tell HQ after a pause; return whether it is requeued, as requested, or dead-lettered."""
        if requeue and self._waiting[sender] >= OF_SENDER:
            requeue, pause_s = False, 0.0
            reason = f"{reason}; too many of this sender's wait already"
        if requeue:
            self._waiting[sender] += 1
        delivery.release()
        self._number += 1
        at = trio.current_time() + pause_s
        self._push(_Due(at, self._number, delivery, sender, requeue, outcome, reason))
        if not self._running:
            self._running = True
            self._nursery.start_soon(self._run)
        return requeue

    async def flush(self) -> None:
        """Wait briefly until HQ was told everything that is due."""
        with trio.move_on_after(FLUSH_S):
            while self._under_way or (self._due and self._due[0].at <= trio.current_time()):
                await self._idle.wait()

    # -- inside ------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            while True:
                self._news.clear()
                now = trio.current_time()
                ready: list[_Due] = []
                while self._due and self._due[0].at <= now and len(ready) < CONCURRENT:
                    ready.append(heapq.heappop(self._due))
                if ready:
                    self._under_way = len(ready)
                    async with trio.open_nursery() as nursery:
                        for one in ready:
                            nursery.start_soon(self._tell, one)
                    self._under_way = 0
                    continue
                self._idle.notify()
                with trio.move_on_at(self._due[0].at if self._due else float("inf")):
                    await self._news.wait()
        finally:
            self._running = False

    def _push(self, one: _Due) -> None:
        heapq.heappush(self._due, one)
        self._news.set()

    async def _tell(self, one: _Due) -> None:
        try:
            if not one.delivery.lost:  # otherwise it is back in its queue already
                await self._nack(one.delivery, one.requeue, one.outcome, one.reason)
        except CipherBoxError as error:
            again = error.retryable and not one.delivery.lost
            what = "it is repeated" if again else "HQ redelivers the envelope"
            self._events.emit(RECEIVER, f"A refusal could not be sent to HQ: {error}; {what}")
            if again:
                self._push(one._replace(at=trio.current_time() + REPEAT_S))
                return
        if one.requeue:
            self._waiting[one.sender] -= 1
            if self._waiting[one.sender] <= 0:
                del self._waiting[one.sender]
