"""Consumers: deliveries that HQ pushes from a queue, within a credit.

A consumer has a credit in envelopes and bytes, and HQ pushes within it.  Acknowledged and refused
deliveries return their credit, in eighths, so that HQ delivers without pause.  At most one credit
is delivered and not yet acknowledged, which bounds memory on both sides: a program that never
acknowledges gets no more.

When the connection ends, deliveries that the program has not taken yet are dropped here and
redelivered by HQ.  Those that the program has are redelivered too, with a higher `attempt`; they
may be acknowledged over the new connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

import trio

from cipherbox.checks import checked
from cipherbox.client.connection.connection import Connection
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import RECEIVER
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.opening import Opener
from cipherbox.concurrency import Signal
from cipherbox.errors import CipherBoxError, EnvelopeError, GoingAway, TimedOut
from cipherbox.limits import LIMITS
from cipherbox.wire import frames
from cipherbox.wire.codec import DeliveredItem

RETRY_S = 1.0  # before a subscription that HQ refused temporarily is retried


class Consumer:
    """An async iterator over the deliveries of one queue; `Client.consume` provides it.

    Each delivery is verified and opened.  One that cannot be is refused with its reason and does
    not appear.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        opener: Opener,
        queue: str,
        envelopes: int,
        size: int,
    ) -> None:
        self.queue = queue
        self.tag = 0
        self._connection, self._opener = connection, opener
        self._envelopes = max(1, min(envelopes, LIMITS.credit_envelopes))
        self._size = max(1, min(size, LIMITS.credit_bytes))
        self._given = (self._envelopes, self._size)
        self._back_envelopes = self._back_bytes = 0
        self._waiting: deque[Delivery] = deque()
        self._returned: deque[Delivery] = deque()  # requeued here, to be taken next
        self._left = 0  # of them when the last batch was taken
        self._failure: CipherBoxError | None = None
        # why HQ temporarily refused the newest subscription
        self._trouble: CipherBoxError | None = None
        self._changed = Signal()
        self._current: Connection | None = None
        self.started = trio.Event()

    def __aiter__(self) -> Consumer:
        return self

    async def __anext__(self) -> Delivery:
        while True:
            (delivery,) = await self.batch(1)
            if not self._opener.ready(delivery):
                self._opener.lookups.park(delivery, self.looked_up)
                continue
            try:
                if await self._opener.admit(delivery):
                    return delivery
            except (trio.Cancelled, CipherBoxError) as error:
                lasts = isinstance(error, CipherBoxError) and not error.retryable
                if delivery.connection is self._current and not lasts:
                    # a caller's time limit, or a silent HQ, must not lose it
                    self._returned.appendleft(delivery)
                raise

    @property
    def waiting(self) -> int:
        """Return the number of deliveries that HQ pushed and nobody has taken yet."""
        return len(self._waiting) + len(self._returned)

    def requeue(self, deliveries: Sequence[Delivery]) -> None:
        """Put deliveries back, to be taken next; drop those of an earlier connection."""
        self._returned.extendleft(d for d in reversed(deliveries) if d.connection is self._current)
        self._changed.notify()

    def looked_up(self, delivery: Delivery, error: Exception | None) -> None:
        """Requeue a parked delivery when its sender's keys were looked up, or refuse it."""
        if error is None:
            if delivery.connection is self._current:
                self._returned.append(delivery)
                self._changed.notify()
        elif fault_of(error) is Fault.SENDER:
            self._opener.refuse_soon(delivery, refusal(error))
        elif isinstance(error, CipherBoxError):
            self.fail(error)

    def in_order(self, taken: Sequence[Delivery]) -> list[Delivery]:
        """Return those of a batch that may be opened now: none whose sender has deliveries that
        returned since the batch was taken, which were sent earlier.  These go behind them.
        """
        left = [*self._returned][: self._left]  # when the batch was taken: sent later than it
        fresh = [*self._returned][self._left :]
        if not fresh:
            return [*taken]
        returned = {_sender_of(delivery) for delivery in fresh}
        behind = [d for d in taken if (name := _sender_of(d)) and name in returned]
        current = [d for d in behind if d.connection is self._current]
        self._returned = deque([*fresh, *current, *left])
        return [delivery for delivery in taken if delivery not in behind]

    @checked
    async def batch(
        self, most: int = LIMITS.credit_envelopes, size: int = LIMITS.credit_bytes
    ) -> list[Delivery]:
        """Return 1 to ``most`` unopened deliveries of up to ``size`` bytes; wait for the first."""
        await trio.lowlevel.checkpoint()
        while not self._waiting and not self._returned:
            if self._failure is not None:
                raise self._failure.copy()
            await self._changed.wait()
        taken: list[Delivery] = []
        for source in (self._returned, self._waiting):
            while source and len(taken) < most and (not taken or source[0].size <= size):
                taken.append(source.popleft())
                size -= taken[-1].size
            if source:
                break  # what is pushed was sent later than what returned and has no room
        self._left = len(self._returned)
        return taken

    def settled(self, deliveries: Iterable[Delivery]) -> None:
        """Return the credit of acknowledged or refused deliveries to HQ, in eighths."""
        current = self._current
        for delivery in deliveries:
            if delivery.connection is current and not delivery.credited:
                delivery.credited = True
                self._back_envelopes += 1
                self._back_bytes += delivery.size
        envelopes, size = self._given
        if current is not None and (
            self._back_envelopes * 8 >= envelopes or self._back_bytes * 8 >= size
        ):
            current.credit(self.tag, self._back_envelopes, self._back_bytes)
            self._back_envelopes = self._back_bytes = 0

    # -- the connection's subscriber ---------------------------------------------------------------

    def attach(self, current: Connection) -> None:
        """Subscribe on a new connection, with the whole credit."""
        if self._failure is not None or current.error is not None:
            return
        self._current = current
        self._back_envelopes = self._back_bytes = 0
        self._given = (
            min(self._envelopes, max(1, current.welcome.credit_envelopes)),
            min(self._size, max(1, current.welcome.credit_bytes)),
        )
        self._subscribe(current)

    def _subscribe(self, current: Connection) -> None:
        def done(answer: frames.Ok | None, error: CipherBoxError | None) -> None:
            if error is None:
                self._trouble = None
                self.started.set()
            elif error.retryable:
                self._trouble = error
                if self._current is current and current.error is None:
                    self._opener.events.emit(
                        RECEIVER, f"HQ cannot deliver {self.queue} now: {error}; retrying"
                    )
                    self._connection.later(RETRY_S, again)
            elif self._current is current:
                self.fail(error)

        def again() -> None:
            if self._current is current and self._failure is None and current.error is None:
                self._subscribe(current)

        current.post(
            frames.Consume,
            done,
            tag=self.tag,
            queue=self.queue,
            envelopes=self._given[0],
            size=self._given[1],
        )

    def detach(self) -> None:
        """Drop deliveries that were not taken: the connection ended, and HQ redelivers them."""
        self._current = None
        self._waiting.clear()
        self._returned.clear()
        self._left = 0

    def take(self, entries: list[DeliveredItem]) -> None:
        """Queue what HQ pushed."""
        current = self._current
        self._waiting.extend(Delivery(self.queue, item, self, current) for item in entries)
        self._changed.notify()

    def fail(self, error: CipherBoxError) -> None:
        """End the iterator with this error."""
        self._failure = error
        self.started.set()
        self._changed.notify()

    async def start(self) -> None:
        """Subscribe and wait for HQ's answer; raise its refusal."""
        self.tag = self._connection.next_tag()
        self._connection.subscribe(self.tag, self)
        with trio.move_on_after(self._connection.tries * self._connection.timeout_s):
            await self.started.wait()
        if self._failure is not None:
            raise self._failure.copy()
        if not self.started.is_set():
            error = self._connection.trouble or self._trouble
            raise (error or TimedOut("HQ did not answer CONSUME")).copy()
        self._opener.events.emit(RECEIVER, f"Subscribed to queue {self.queue}")

    async def stop(self) -> None:
        """End the subscription; unacknowledged deliveries return to the front of their queue."""
        current, self._current = self._current, None
        self._connection.unsubscribe(self.tag)
        self._failure = self._failure or GoingAway("the consumer is closed")
        self._waiting.clear()
        self._returned.clear()
        self._left = 0
        self._changed.notify()
        if current is not None and current.error is None:
            with trio.move_on_after(1.0, shield=True):
                try:
                    await current.ask(frames.Cancel, 1.0, tag=self.tag)
                except CipherBoxError:
                    pass  # the end of the connection ends the subscription as well


def _sender_of(delivery: Delivery) -> str:
    """Return who sent a delivery; empty if it is malformed, which shows when it is opened."""
    try:
        return delivery.sender_id
    except EnvelopeError:
        return ""
