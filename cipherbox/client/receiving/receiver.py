"""The receiver: write every message exactly once to ``data/received_messages.jsonl``, despite
crashes and redelivery.

For each batch: envelopes that the inbox already has are acknowledged and not written again; new
ones are verified and opened, or refused with a reason; the opened ones are recorded (see `inbox`)
and then acknowledged.  The lookup precedes the verification: an envelope whose id is recorded is
acknowledged without being opened.  If it commits to another plaintext than the recorded one, and
the sender signed that, it is refused with a receipt.  The steps are in `loop`.

One receiver per home: the home's lock is held while it runs.  `run` ends with the first error;
`keep`, for services, waits out transient errors and starts again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.checks import checked
from cipherbox.client.inbox.inbox import InboxStorage
from cipherbox.client.receiving.acknowledger import EVERY_S, to_repeat
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.inbox_lock import LOOK_S, InboxLock
from cipherbox.client.receiving.loop import BATCH_BYTES, ReceiveLoop
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.progress import Progress
from cipherbox.client.receiving.recorder import OnLines, open_recorder
from cipherbox.client.receiving.supervised import keep_running
from cipherbox.concurrency import background
from cipherbox.errors import CipherBoxError, NetworkError, NotFound, Refused

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import ReceivingClient

# of all queues together; the last envelope that HQ pushes from each may exceed its share
CREDIT_BYTES = 24 * 1024 * 1024
LEAST_BYTES = 1024 * 1024  # of one queue
# deliveries -> those only to acknowledge, and those to record
Sort = Callable[[list[Delivery]], Awaitable[tuple[list[Delivery], list[Delivery]]]]
Tolerate = Callable[[CipherBoxError], None] | None


async def keep_all(deliveries: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
    """Return every delivery as one to record."""
    return [], deliveries


@checked
class Receiver:
    """Receives into one home. ``on_lines`` is called with the recorded lines of each batch: JSON
    lines, as one bytes object per envelope.

    ``incoming`` is the directory for received files; None: as configured. ``keep_contents`` also
    stores messages for a handler (see `handler`).
    """

    def __init__(
        self,
        client: ReceivingClient,
        *,
        on_lines: OnLines | None = None,
        incoming: Path | str | None = None,
        keep_contents: bool = False,
    ) -> None:
        self.client = client
        self.storage = InboxStorage.of(
            client.home, Path(incoming) if incoming is not None else None
        )
        self.loop: ReceiveLoop | None = None  # while the inbox is open
        self._on_lines, self._keep_contents = on_lines, keep_contents
        self._progress = Progress()
        self._lock = InboxLock(client.home.path)

    @property
    def received(self) -> int:
        """Return the number of messages recorded and files completed."""
        return self._progress.received

    @property
    def files(self) -> int:
        """Return the number of files completed."""
        return self._progress.files

    @property
    def duplicates(self) -> int:
        """Return the number of envelopes that were received before."""
        return self._progress.duplicates

    @property
    def refused(self) -> int:
        """Return the number of envelopes that could not be opened."""
        return self._progress.refused

    @property
    def refusals(self) -> Counter[tuple[str, str]]:
        """Return the number of refused envelopes by (sender, reason), for the first few reasons."""
        return self._progress.refusals

    def locked_soon(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock, after a brief wait while another program of this home has it."""
        return self._lock.held_soon()

    def locked(self) -> AbstractContextManager[None]:
        """Hold the home's lock; within it, `run`, `drain` and `take` do not take it again."""
        return self._lock.held()

    async def keep(
        self,
        queues: Sequence[str] | None = None,
        *,
        own_trouble: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Receive until cancelled; wait out transient errors and start again.

        Those are HQ's and the network's (`retryable`); with ``own_trouble`` also those of this
        machine, such as a full disk.  A queue that an admin deleted meanwhile is an error only if
        it was named in ``queues``.  Everything else is raised, and StoreLocked when another
        receiver uses this home.
        """
        async with self.locked_soon():
            task_status.started()
            also = (CipherBoxError,) if own_trouble else (NotFound,) if queues is None else ()
            await keep_running(lambda: self.run(queues), self.client, also)

    async def run(
        self,
        queues: Sequence[str] | None = None,
        *,
        count: int | None = None,
        idle_s: float | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> int:
        """Receive until cancelled, until ``count`` messages were recorded, or until nothing came
        for ``idle_s``.

        ``queues``: None for all this client reads.  Return the number of messages recorded.
        StoreLocked when another receiver uses this home.
        """
        before = self.received
        self._progress.stop_after(count)
        async with self.locked_soon():
            with self._opened() as loop:
                names = await self._names(queues)
                async with background() as tasks:
                    tasks.start_soon(loop.recorder.receipts.run)
                    tasks.start_soon(loop.acks.run)
                    assert self.client.prekeys is not None
                    tasks.start_soon(self.client.prekeys.keep)
                    tasks.start_soon(self.client.key_lifecycle.say_registered)
                    tasks.start_soon(loop.recorder.keep_completing)
                    async with background() as nursery:
                        credit = max(CREDIT_BYTES // len(names), LEAST_BYTES)
                        for name in names:
                            await nursery.start(loop.consume, name, credit, tasks)
                        task_status.started()
                        await self._until_done(loop, idle_s)
                    await self._progress.recorded()
                    await loop.acks.flush()
                    await self._flush_all(loop)
        return self.received - before

    async def drain(self, queues: Sequence[str] | None = None, *, count: int | None = None) -> int:
        """Receive what waits now (`fetch`), at most ``count`` messages; return the number of
        messages recorded.
        """
        before = self.received
        self._progress.stop_after(count)
        async with self.locked_soon():
            with self._opened() as loop:
                async with background() as nursery:
                    nursery.start_soon(loop.recorder.receipts.run)
                    assert self.client.prekeys is not None
                    nursery.start_soon(self.client.prekeys.keep)
                    await self.client.key_lifecycle.say_registered()
                    for name in await self._names(queues):
                        await loop.fetch(name)
                    await loop.recorder.complete_now()
                    await self._flush_all(loop)
        return self.received - before

    async def take(self, deliveries: list[Delivery]) -> None:
        """Record and acknowledge deliveries of `Client.consume_unopened`, holding the lock for
        this moment only.

        StoreLocked when another receiver uses this home.  Receipts become pending, and are signed
        by whoever runs `PendingReceipts`.
        """
        with self._opened() as loop:
            await loop.take(deliveries)

    async def take_from(
        self, consumer: Consumer, most: int, sort: Sort = keep_all, tolerate: Tolerate = None
    ) -> None:
        """Record what a consumer delivers, at most ``most`` envelopes in one step, and sign for it;
        until cancelled.

        The lock is held as for `take`.  ``sort`` separates the deliveries of a program's own
        content type: it returns those that are done with, which are only acknowledged, and those to
        record.  ``tolerate`` is called with an error of HQ or the network, and receiving continues:
        what was not acknowledged is taken again, or HQ redelivers it after the connection's end.
        """
        receipts = PendingReceipts(self.client)
        try:
            async with background() as nursery:
                nursery.start_soon(receipts.run)
                while True:
                    done, others = await sort(await consumer.batch(most, BATCH_BYTES))
                    held = bool(others)
                    while done or others:
                        try:
                            if others:
                                await self.take(others)
                                others = []
                                receipts.notify(prompt=True)  # people may watch both ends
                            if done:
                                await self.client.ack(done)
                                done = []
                        except (NetworkError, Refused) as error:
                            if tolerate is None:
                                raise
                            tolerate(error)
                            done, others = to_repeat(done, error), to_repeat(others, error)
                            if done or others:
                                await trio.sleep(EVERY_S)
                    if held:  # another receiver may wait for the lock: it looks every LOOK_S
                        await trio.sleep(2 * LOOK_S)
        finally:
            receipts.close()

    # -- for handlers ------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Return whether a delivery is being opened or recorded."""
        return self.loop is not None and self.loop.busy

    async def wait_for_more(self) -> None:
        """Wait until something was recorded."""
        await self._progress.changed.wait()

    def receipts_due(self, *, prompt: bool) -> None:
        """Look for pending receipts: a handler has finished."""
        if self.loop is not None:
            self.loop.recorder.receipts.notify(prompt=prompt)

    async def flush(self) -> None:
        """Wait briefly until no receipt is pending."""
        if self.loop is not None:
            await self.loop.recorder.receipts.flush()

    # -- inside ------------------------------------------------------------------------------------

    @contextmanager
    def _opened(self) -> Iterator[ReceiveLoop]:
        with (
            self.locked(),
            open_recorder(
                self.client,
                self.storage,
                self._progress,
                on_lines=self._on_lines,
                keep_contents=self._keep_contents,
            ) as recorder,
        ):
            self.loop = ReceiveLoop(self.client, recorder, self._progress)
            try:
                yield self.loop
            finally:
                self.loop = None

    async def _names(self, queues: Sequence[str] | None) -> list[str]:
        return list(queues) if queues is not None else await self.client.readable_queues()

    async def _flush_all(self, loop: ReceiveLoop) -> None:
        await self.client.opener.refusals.flush()
        await loop.recorder.receipts.flush()
        assert self.client.prekeys is not None
        await self.client.prekeys.wait_checked()

    async def _until_done(self, loop: ReceiveLoop, idle_s: float | None) -> None:
        progress = self._progress
        while not progress.limit_reached:
            if progress.failure is not None:
                raise progress.failure
            with trio.move_on_after(float("inf") if idle_s is None else idle_s) as scope:
                await progress.changed.wait()
            recording = bool(progress.writing) or loop.recorder.completing
            if scope.cancelled_caught and not loop.opening and not recording:
                return
