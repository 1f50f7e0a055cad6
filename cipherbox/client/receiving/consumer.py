"""Consumers: deliveries that HQ pushes from a queue, within a credit.

A consumer has a credit in envelopes and bytes, and HQ pushes within it.  Acknowledged and refused
deliveries return their credit, in eighths, so that HQ delivers without pause.  At most one credit
is delivered and not yet acknowledged, which bounds memory on both sides: a program that never
acknowledges gets no more.

When the connection ends, deliveries that the program has not taken yet are dropped here and
redelivered by HQ.  Those that the program has are redelivered too, with a higher `attempt`; they
may be acknowledged over the new connection.

A delivery that was taken may return: its sender's keys were looked up first, or there was no time
to open it.  The order of each sender's deliveries stays, by these rules:
1. What returned is taken before what HQ pushed, the lowest number of the queue first.
2. `in_order` puts a taken delivery back if an earlier one of its sender has returned meanwhile.
3. The program opens or parks (`Lookups`) what it took in the order of the queue, and parks what it
   could open while an earlier one of the same sender is parked.
So the lowest number that returned is never put back: whatever returns, one batch later there is
progress.
"""

from __future__ import annotations

from bisect import insort
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter

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
_number = attrgetter("seq")


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
        self._returned: list[Delivery] = []  # to be taken next, sorted by number
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
                if not lasts:  # a caller's time limit, or a silent HQ, must not lose it
                    self.requeue([delivery])
                raise

    @property
    def waiting(self) -> int:
        """Return the number of deliveries that HQ pushed and nobody has taken yet."""
        return len(self._waiting) + len(self._returned)

    @property
    def credit_bytes(self) -> int:
        """Return how many bytes HQ delivers before some are acknowledged."""
        return self._given[1]

    def requeue(self, deliveries: Iterable[Delivery]) -> None:
        """Put deliveries back, to be taken next; drop those of an earlier connection."""
        for delivery in deliveries:
            if delivery.connection is self._current:
                insort(self._returned, delivery, key=_number)
        self._changed.notify()

    def looked_up(self, delivery: Delivery, error: Exception | None) -> None:
        """Requeue a parked delivery when its sender's keys were looked up, or refuse it."""
        if error is None:
            self.requeue([delivery])
        elif fault_of(error) is Fault.SENDER:
            self._opener.refuse_soon(delivery, refusal(error))
        elif isinstance(error, CipherBoxError):
            self.fail(error)

    def in_order(self, taken: Sequence[Delivery]) -> list[Delivery]:
        """Return those of a batch that may be opened now; put back those that were sent later than
        what has returned of the same sender.
        """
        first: dict[str, int] = {}  # the lowest number that returned, of each sender
        for delivery in self._returned:
            first.setdefault(_sender_of(delivery), delivery.seq)
        early: list[Delivery] = []
        late: list[Delivery] = []
        for delivery in taken:
            before = first.get(_sender_of(delivery), delivery.seq)
            (late if before < delivery.seq else early).append(delivery)
        self.requeue(late)
        return early

    @checked
    async def batch(
        self, most: int = LIMITS.credit_envelopes, size: int = LIMITS.credit_bytes
    ) -> list[Delivery]:
        """Return 1 to ``most`` unopened deliveries of up to ``size`` bytes; wait for the first."""
        return await self.take_batch(most, size)

    async def take_batch(self, most: int, size: int) -> list[Delivery]:
        """Do what `batch` does, for our own calls, whose arguments need no check."""
        if self._waiting or self._returned:
            await trio.lowlevel.checkpoint()
        while not self._waiting and not self._returned:
            if self._failure is not None:
                raise self._failure.copy()
            await self._changed.wait()
        taken: list[Delivery] = []
        for delivery in chain(self._returned, self._waiting):
            if len(taken) >= most or (taken and delivery.size > size):
                break  # what comes behind it was sent later
            taken.append(delivery)
            size -= delivery.size
        returned = min(len(taken), len(self._returned))
        del self._returned[:returned]
        for _ in taken[returned:]:
            self._waiting.popleft()
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
