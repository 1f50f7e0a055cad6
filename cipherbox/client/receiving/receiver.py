"""The receiver: every message once into ``data/received_messages.jsonl``, whatever is cut off or
sent again.

For each batch: what the inbox already has is acknowledged again and not written; what is new is
verified and opened; what cannot be is refused with its reason; the rest is recorded (see `inbox`),
and then acknowledged.  The lookup comes before the verification: an id that is recorded is only
acknowledged, whatever bytes came with it.  If they commit to another plaintext than the recorded
one, and the sender signed that, they are refused with a receipt.

While one batch is written to the disk the next one is opened, unless both are large.  So at most
one batch is under way, and what it holds is neither new nor recorded: whoever meets an id of it, or
has to ask the database, waits for it first.

One receiver per home: the home's lock is held while it runs.  `run` ends with the first error;
`keep`, for what runs as a service, waits out each that passes and begins again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.checks import checked
from cipherbox.client.events import RECEIVER
from cipherbox.client.inbox.content_types import message_count
from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving.classify import Key, Taking
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.held_inbox import OnLines
from cipherbox.client.receiving.supervised import lasting
from cipherbox.client.sessions.receiving_chains import Heard
from cipherbox.concurrency import background
from cipherbox.errors import CipherBoxError, NotFound

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import ReceivingClient

FETCH_ENVELOPES = 256
BATCH_BYTES = 4 * 1024 * 1024  # opened and recorded in one step
ENVELOPES = 1024  # looked through in one step: what it has no time for is looked through again
# of all queues together; the last envelope that HQ hands out of each may pass its part
CREDIT_BYTES = 24 * 1024 * 1024
LEAST_BYTES = 1024 * 1024  # of one queue
BULK_ENVELOPES = 16  # of files: then messages of others have their turn


@checked
class Receiver(Taking):
    """See the module.  ``on_lines`` is told the recorded lines of each batch: one bytes of JSON
    lines per envelope.

    ``incoming``: where files from others get their names; None: as the settings say.
    ``keep_contents``: messages are kept for a handler, too (see `handler`).
    """

    def __init__(
        self,
        client: ReceivingClient,
        *,
        on_lines: OnLines | None = None,
        incoming: Path | str | None = None,
        keep_contents: bool = False,
    ) -> None:
        super().__init__(
            client, on_lines, Path(incoming) if incoming is not None else None, keep_contents
        )
        self.duplicates = 0  # envelopes that came again
        self.refused = 0  # envelopes that could not be opened
        # (sender, reason) -> envelopes, of the first so many
        self.refusals: Counter[tuple[str, str]] = Counter()
        self._turn = trio.Lock()  # one batch at a time is opened, of whatever queue
        self._under_way: set[Key] = set()  # ids of the batch that is being written
        # its messages, and the bytes they came in
        self._under_way_count = self._under_way_bytes = 0
        self._most: int | None = None
        self._acks_open = 0
        self._to_refuse = []
        self._taking = 0  # batches that were taken and are not opened yet
        self._consumers: dict[str, Consumer] = {}

    async def keep(
        self,
        queues: Sequence[str] | None = None,
        *,
        own_trouble: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Receives until cancelled: what may pass by itself is said, waited out, and it begins
        again.

        That is HQ's trouble and the network's (`retryable`); with ``own_trouble`` also that of this
        machine, as a full disk.  A queue that an admin took away meanwhile is missed only if it was
        named in ``queues``.  Everything else is raised, and StoreLocked when another receiver uses
        this home.
        """
        await self.lock_free()
        with self.locked():
            task_status.started()
            passing = (CipherBoxError,) if own_trouble else (NotFound,) if queues is None else ()
            await lasting(lambda: self.run(queues), self.client, passing)

    async def run(
        self,
        queues: Sequence[str] | None = None,
        *,
        count: int | None = None,
        idle_s: float | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> int:
        """Receives until cancelled, until ``count`` messages were recorded, or until nothing came
        for ``idle_s``.

        ``queues``: None for all this client reads.  Returns how many messages were recorded.
        StoreLocked when another receiver uses this home.
        """
        before = self.received
        self._most = None if count is None else before + count
        self._failure = None
        await self.lock_free()
        with self._opened():
            names = list(queues) if queues is not None else await self.client.readable_queues()
            async with background() as acks:
                assert self._owed is not None
                acks.start_soon(self._owed.run)
                assert self.client.prekeys is not None
                acks.start_soon(self.client.prekeys.keep)
                acks.start_soon(self.client.life.say_registered)
                acks.start_soon(self._complete)
                async with background() as nursery:
                    for name in names:
                        await nursery.start(
                            self._consume, name, max(CREDIT_BYTES // len(names), LEAST_BYTES), acks
                        )
                    task_status.started()
                    await self._until_done(idle_s)
                await self._settled()
                await self.client.opener.refusals.flush()
                await self._owed.flush()
                await self.client.prekeys.looked()
        return self.received - before

    async def drain(self, queues: Sequence[str] | None = None, *, count: int | None = None) -> int:
        """Takes what waits now (`fetch`), at most ``count`` messages; returns how many were
        recorded.
        """
        before = self.received
        self._most = None if count is None else before + count
        await self.lock_free()
        with self._opened():
            async with background() as nursery:
                assert self._owed is not None
                nursery.start_soon(self._owed.run)
                assert self.client.prekeys is not None
                nursery.start_soon(self.client.prekeys.keep)
                await self.client.life.say_registered()
                for name in (
                    list(queues) if queues is not None else await self.client.readable_queues()
                ):
                    await self._drain(name, count, before)
                await self._complete_now()
                await self.client.opener.refusals.flush()
                await self._owed.flush()
                await self.client.prekeys.looked()
        return self.received - before

    async def _drain(self, name: str, count: int | None, before: int) -> None:
        while not self._enough():
            most = (
                FETCH_ENVELOPES
                if count is None
                else min(FETCH_ENVELOPES, before + count - self.received)
            )
            deliveries = await self.client.fetch_unopened(name, most)
            if not deliveries:
                return
            deliveries = await self._looked_up(deliveries)
            while deliveries and not self._enough():
                new, done, deliveries = await self._open_new(deliveries)
                await self._record(new, self._heard())
                await self._complete_now()
                if kept := self._kept(done):
                    await self.client.ack(kept)

    async def take(self, deliveries: list[Delivery]) -> None:
        """Records and acknowledges deliveries of `Client.consume_unopened`, holding the lock for
        this moment only.

        StoreLocked when another receiver uses this home.  Receipts are owed, and signed by whoever
        runs `OwedReceipts`.
        """
        acked: list[Delivery] = []
        with self._opened():
            deliveries = await self._looked_up(deliveries)
            while deliveries:
                new, done, deliveries = await self._open_new(deliveries)
                await self._record(new, self._heard())
                acked += self._kept(done)
            await self._complete_now()
        if acked:
            await self.client.ack(acked)

    # -- for handlers ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is being opened or written."""
        return self._opens or bool(self._under_way) or bool(self._acks_open) or self._completes

    @property
    def _opens(self) -> bool:
        waiting = any(consumer.waiting for consumer in self._consumers.values())
        return waiting or self._taking > 0 or self.client.opener.lookups.busy

    async def wait_for_more(self) -> None:
        """Waits until something was recorded."""
        await self._moved.wait()

    def owe(self) -> None:
        """A handler is done with something: a receipt may be owed."""
        if self._owed is not None:
            self._owed.came()

    async def flush(self) -> None:
        """Waits a little until no receipt is owed."""
        if self._owed is not None:
            await self._owed.flush()

    async def _consume(
        self, name: str, size: int, acks: trio.Nursery, task_status: trio.TaskStatus[None]
    ) -> None:
        async with self.client.consume_unopened(name, size=size) as consumer:
            self._consumers[name] = consumer
            task_status.started()
            try:
                while not self._enough():
                    if self._enough_with(0):  # if all that is under way is recorded
                        await self._moved.wait()
                        continue
                    taken = await self._next(consumer)
                    self._taking += 1
                    try:
                        await self._take_in(consumer, taken, acks)
                    finally:
                        self._taking -= 1
            except CipherBoxError as error:
                self._failure = error
                self._move()

    async def _take_in(self, consumer: Consumer, taken: list[Delivery], acks: trio.Nursery) -> None:
        deliveries = await self._ready(consumer, taken)
        if not deliveries:
            return
        async with self._turn:
            if self._under_way_bytes + sum(one.size for one in deliveries) > 2 * BATCH_BYTES:
                await self._recorded()  # two large ones are never in memory side by side
            new, done, rest = await self._open_new(deliveries)
            consumer.again(rest)
            await self._recorded()
            self._set_out(new, sum(one.size for one in done))
            self._acks_open += 1
            acks.start_soon(self._finish, new, done, self._heard())

    async def _next(self, consumer: Consumer) -> list[Delivery]:
        if consumer.queue.endswith(".bulk") and self._most is None:
            # a part may be far larger than its envelope
            return await consumer.batch(BULK_ENVELOPES, BATCH_BYTES)
        most = ENVELOPES
        if self._most is not None:
            most = max(1, self._most - self.received - self._coming - self._under_way_count)
        return await consumer.batch(most, BATCH_BYTES)

    def _set_out(self, new: list[Received], size: int = 0) -> None:
        self._under_way = {(one.sender, one.envelope_id) for one in new}
        self._under_way_count, self._under_way_bytes = sum(map(message_count, new)), size

    async def _recorded(self) -> None:
        """Waits until nothing is being written; raises what went wrong with it."""
        while self._under_way and self._failure is None:
            await self._moved.wait()
        if self._failure is not None:
            raise self._failure

    def _heard(self) -> Heard | None:
        return self.client.sessions.heard() if self.client.sessions is not None else None

    async def _finish(self, new: list[Received], done: list[Delivery], heard: Heard | None) -> None:
        """Records a batch and acknowledges it."""
        try:
            try:
                await self._record(new, heard)
                done = self._kept(done)
            except CipherBoxError as error:
                self._failure = self._failure or error
                return
            finally:
                new.clear()
                for one in done:
                    one.drop_messages()
                self._set_out([])
                self._move()
            if done:
                await self.client.ack(done)
        except CipherBoxError as error:
            self._events.say(
                RECEIVER,
                f"HQ did not confirm an ACK: {error}; the messages are stored and come again",
            )
        finally:
            self._acks_open -= 1
            self._move()

    def _enough(self) -> bool:
        return self._most is not None and self.received >= self._most

    def _enough_with(self, new: int) -> bool:
        return (
            self._most is not None
            and self.received + self._coming + self._under_way_count + new >= self._most
        )

    async def _until_done(self, idle_s: float | None) -> None:
        while not self._enough():
            if self._failure is not None:
                raise self._failure
            with trio.move_on_after(float("inf") if idle_s is None else idle_s) as scope:
                await self._moved.wait()
            if (
                scope.cancelled_caught
                and not self._opens
                and not self._under_way
                and not self._completes
            ):
                return

    async def _settled(self) -> None:
        """Waits for HQ's word on the acks that are out; each has its own bound."""
        while self._acks_open:
            await self._moved.wait()
