"""The receive loop: source -> classify -> open -> record -> acknowledge.

Everything received into the inbox takes these steps: a subscription (`consume`), a fetch (`fetch`),
and programs with their own content type, chat and pipe, through `Receiver.take_from` (`take`).
While one batch is written to the disk the next one is opened, unless both are large.  So at most
one batch is being written, and its envelopes are neither new nor recorded: a task that meets one of
their ids, or has to query the database, waits for that batch first.

Chat cannot use `consume`, which holds the home's lock while it runs: chat locks only while it
records, so that an agent started later can take over.  A pipe cannot, because frames must reach it
in order and unrecorded, and an OPEN that it ignores must stay unacknowledged.
"""

from __future__ import annotations

import trio

from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving.acknowledger import Acknowledger
from cipherbox.client.receiving.classify import Classifier
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.ports import ReceivingClient
from cipherbox.client.receiving.progress import Progress
from cipherbox.client.receiving.recorder import Recorder
from cipherbox.client.receiving.refuser import Refuser
from cipherbox.client.sessions.receiving_chains import ReceivedSteps
from cipherbox.errors import CipherBoxError

FETCH_ENVELOPES = 256
BATCH_BYTES = 4 * 1024 * 1024  # opened and recorded in one step
# Classified in one step. Those left for lack of time are classified again, so a step takes no more
# than the one before had time for, until one had time for all.
ENVELOPES, LEAST_ENVELOPES = 1024, 64
BULK_ENVELOPES = 16  # of files in one step; then other messages have their turn


class ReceiveLoop:
    """The steps on one open inbox."""

    def __init__(self, client: ReceivingClient, recorder: Recorder, progress: Progress) -> None:
        self.recorder = recorder
        self._client, self._progress = client, progress
        self._refuser = Refuser(client.opener, recorder.receipts, progress)
        self._classifier = Classifier(
            client.opener, recorder.inbox, self._refuser, progress, client.events
        )
        self.acks = Acknowledger(client)
        self._open_lock = trio.Lock()  # one batch at a time is opened, across all queues
        self._opening = 0  # batches that were taken and are not opened yet
        self._consumers: list[Consumer] = []
        self._most = ENVELOPES  # of the next step

    @property
    def opening(self) -> bool:
        """Return whether a delivery waits to be opened."""
        waiting = any(consumer.waiting for consumer in self._consumers)
        return waiting or self._opening > 0 or self._client.opener.lookups.busy

    @property
    def busy(self) -> bool:
        """Return whether a delivery is being opened or recorded."""
        progress = self._progress
        return self.opening or self.recorder.completing or progress.recording > 0

    # -- fetched by the receiver -------------------------------------------------------------------

    async def fetch(self, queue: str) -> None:
        """Receive what waits in a queue now, up to the limit."""
        progress = self._progress
        while not progress.limit_reached:
            most = FETCH_ENVELOPES
            if progress.limit is not None:
                most = min(most, progress.limit - progress.received)
            deliveries = await self._client.fetch_unopened(queue, most)
            if not deliveries:
                return
            deliveries = await self._with_keys(deliveries)
            while deliveries and not progress.limit_reached:
                recorded, deliveries = await self._record_next(deliveries)
                await self.recorder.complete_now()
                if recorded:
                    await self._client.ack(recorded)

    async def take(self, deliveries: list[Delivery]) -> None:
        """Record and acknowledge what a program took itself."""
        acked: list[Delivery] = []
        deliveries = await self._with_keys(deliveries)
        while deliveries:
            recorded, deliveries = await self._record_next(deliveries)
            acked += recorded
        await self.recorder.complete_now()
        if acked:
            await self._client.ack(acked)

    async def _record_next(
        self, deliveries: list[Delivery]
    ) -> tuple[list[Delivery], list[Delivery]]:
        """Record as many as there is time for; return what to acknowledge, and the rest."""
        new, done, rest = await self._classifier.open_new(deliveries)
        failed = await self.recorder.record(new, self._session_steps())
        return self._refuser.without(done, failed), rest

    async def _with_keys(self, deliveries: list[Delivery]) -> list[Delivery]:
        """Look up the senders' keys; return what can be opened, refuse the rest."""
        await self._client.revocations.ensure()
        opener = self._client.opener
        unknown = [delivery for delivery in deliveries if not opener.ready(delivery)]
        wrong = {
            id(delivery): error
            for delivery, error in await opener.lookups.settle(unknown)
            if error is not None
        }
        for delivery in deliveries:
            error = wrong.get(id(delivery))
            if error is not None:
                if fault_of(error) is not Fault.SENDER:
                    raise error
                self._refuser.add(delivery, refusal(error))
        self._refuser.send()
        return [delivery for delivery in deliveries if id(delivery) not in wrong]

    # -- pushed by HQ ------------------------------------------------------------------------------

    async def consume(
        self, queue: str, size: int, nursery: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> None:
        """Receive from a queue until the limit is reached; ``nursery`` holds the tasks that
        record.
        """
        progress = self._progress
        async with self._client.consume_unopened(queue, size=size) as consumer:
            self._consumers.append(consumer)
            task_status.started()
            try:
                while not progress.limit_reached:
                    if progress.limits(0):  # reached once everything in progress is recorded
                        await progress.changed.wait()
                        continue
                    taken = await self._next(consumer)
                    self._opening += 1
                    try:
                        await self._receive(consumer, taken, nursery)
                    finally:
                        self._opening -= 1
            except CipherBoxError as error:
                progress.fail(error)

    async def _next(self, consumer: Consumer) -> list[Delivery]:
        left = self._progress.left()
        if left is not None:
            return await consumer.take_batch(max(1, left), BATCH_BYTES)
        # a part of a file may be far larger than its envelope
        bulk = consumer.queue.endswith(".bulk")
        return await consumer.take_batch(BULK_ENVELOPES if bulk else self._most, BATCH_BYTES)

    def _took_time(self, opened: int, *, for_all: bool) -> None:
        """Adjust the size of the next step to the time that this one took."""
        if for_all:
            self._most = max(self._most, min(ENVELOPES, 2 * opened))
        else:
            self._most = max(LEAST_ENVELOPES, opened)

    async def _receive(
        self, consumer: Consumer, taken: list[Delivery], nursery: trio.Nursery
    ) -> None:
        progress = self._progress
        deliveries = await self._ready(consumer, taken)
        if not deliveries:
            return
        if self._open_lock.locked():
            await self._open_lock.acquire()
        else:
            self._open_lock.acquire_nowait()  # `acquire` takes a turn of the event loop
        try:
            if progress.writing_bytes + sum(one.size for one in deliveries) > 2 * BATCH_BYTES:
                await progress.written()  # two large ones are never in memory side by side
            new, done, rest = await self._classifier.open_new(deliveries)
            consumer.requeue(rest)
            self._took_time(len(deliveries) - len(rest), for_all=not rest)
            await progress.written()
            progress.begin_writing(new, sum(one.size for one in done))
            progress.recording += 1
            nursery.start_soon(self._record, new, done, self._session_steps())
        finally:
            self._open_lock.release()

    async def _ready(self, consumer: Consumer, deliveries: list[Delivery]) -> list[Delivery]:
        """Return those that can be opened now; the others return to the consumer when their
        senders' keys were looked up.
        """
        await self._client.revocations.ensure()  # a failure here is no sender's fault
        opener = self._client.opener
        ready = []
        for delivery in consumer.in_order(deliveries):
            if opener.ready(delivery):
                ready.append(delivery)
            else:
                opener.lookups.park(delivery, consumer.looked_up)
        return ready

    async def _record(
        self, new: list[Received], done: list[Delivery], steps: ReceivedSteps | None
    ) -> None:
        """Record a batch; then it may be acknowledged."""
        progress = self._progress
        try:
            failed = await self.recorder.record(new, steps)
            self.acks.put(self._refuser.without(done, failed))
        except CipherBoxError as error:
            progress.fail(error)
        finally:
            new.clear()
            for one in done:
                one.drop_messages()
            progress.end_writing()
            progress.recording -= 1
            progress.changed.notify()

    def _session_steps(self) -> ReceivedSteps | None:
        sessions = self._client.sessions
        return sessions.take_received() if sessions is not None else None
