"""The receiver: every message once into ``data/received_messages.jsonl``, whatever is cut off or sent again.

For each batch: what the inbox already has is acknowledged again and not written; what is new is verified and opened;
what cannot be is refused with its reason; the rest is recorded (see `inbox`), and then acknowledged.  The lookup comes
before the verification: an id that is recorded is only acknowledged, whatever bytes came with it.  If they commit to
another plaintext than the recorded one, and the sender signed that, they are refused with a receipt.

While one batch is written to the disk the next one is opened.  So at most one batch is under way, and what it holds is
neither new nor recorded: whoever meets an id of it, or has to ask the database, waits for it first.

One receiver per home: the home's lock is held while it runs.  `run` ends with the first error; `keep`, for what runs as
a service, waits out each that passes and begins again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.checks import checked
from cipherbox.client.consume import Consumer, Delivery
from cipherbox.client.events import RECEIVER
from cipherbox.client.inbox.holding import Holding, OnLines
from cipherbox.client.inbox.inbox import Inbox, counted
from cipherbox.client.inbox.lasting import lasting
from cipherbox.client.inbox.lines import Received
from cipherbox.client.inbox.opening import NEVER, OUTCOMES
from cipherbox.client.receipts import MENDED
from cipherbox.client.sessions.hearing import Heard
from cipherbox.client.tasks import background
from cipherbox.envelope.kinds import Outcome
from cipherbox.errors import AnotherPlaintext, CipherBoxError, EnvelopeError, NotFound

if TYPE_CHECKING:
    from cipherbox.client.api import Client

TOLD = (NEVER | MENDED) - {Outcome.MALFORMED}  # refusals the sender gets a receipt for: it can be named
FETCH_ENVELOPES = 256
_REASONS = 20  # kept apart for whoever asks at the end
BATCH_BYTES = 4 * 1024 * 1024  # opened and recorded in one step
BULK_ENVELOPES = 16  # of files: then messages of others have their turn
Key = tuple[str, bytes]  # sender, envelope id


@checked
class Receiver(Holding):
    """See the module.  ``on_lines`` is told the recorded lines of each batch: one bytes of JSON lines per envelope.

    ``incoming``: where files from others get their names; None: as the settings say.  ``keep_contents``: messages are
    kept for a handler, too (see `handler`).
    """

    def __init__(
        self, client: Client, *, on_lines: OnLines | None = None, incoming: Path | str | None = None,
        keep_contents: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(client, on_lines, Path(incoming) if incoming is not None else None, keep_contents)
        self.duplicates = 0  # envelopes that came again
        self.refused = 0  # envelopes that could not be opened
        self.refusals: Counter[tuple[str, str]] = Counter()  # (sender, reason) -> envelopes, of the first so many
        self._turn = trio.Lock()  # one batch at a time is opened, of whatever queue
        self._under_way: set[Key] = set()  # ids of the batch that is being written
        self._under_way_count = 0  # and its messages
        self._most: int | None = None
        self._acks_open = 0

    async def keep(
        self, queues: Sequence[str] | None = None, *, own_trouble: bool = False,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        """Receives until cancelled: what may pass by itself is said, waited out, and it begins again.

        That is HQ's trouble and the network's (`retryable`); with ``own_trouble`` also that of this machine, as a full
        disk.  A queue that an admin took away meanwhile is missed only if it was named in ``queues``.  Everything else
        is raised, and StoreLocked when another receiver uses this home.
        """
        await self.lock_free()
        with self.locked():
            task_status.started()
            passing = (CipherBoxError,) if own_trouble else (NotFound,) if queues is None else ()
            await lasting(lambda: self.run(queues), self.client, passing)

    async def run(
        self, queues: Sequence[str] | None = None, *, count: int | None = None, idle_s: float | None = None,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> int:  # fmt: skip
        """Receives until cancelled, until ``count`` messages were recorded, or until nothing came for ``idle_s``.

        ``queues``: None for all this client reads.  Returns how many messages were recorded.  StoreLocked when another
        receiver uses this home.
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
                        await nursery.start(self._consume, name, acks)
                    task_status.started()
                    await self._until_done(idle_s)
                await self._settled()
                await self._owed.flush()
                await self.client.prekeys.looked()
        return self.received - before

    async def drain(self, queues: Sequence[str] | None = None, *, count: int | None = None) -> int:
        """Takes what waits now (`fetch`), at most ``count`` messages; returns how many were recorded."""
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
                for name in list(queues) if queues is not None else await self.client.readable_queues():
                    await self._drain(name, count, before)
                await self._complete_now()
                await self._owed.flush()
                await self.client.prekeys.looked()
        return self.received - before

    async def _drain(self, name: str, count: int | None, before: int) -> None:
        while not self._enough():
            most = FETCH_ENVELOPES if count is None else min(FETCH_ENVELOPES, before + count - self.received)
            deliveries = await self.client.fetch_unopened(name, most)
            if not deliveries:
                return
            new, done = await self._open_new(deliveries)
            await self._record(new, self._heard())
            await self._complete_now()
            if done:
                await self.client.ack(done)

    async def take(self, deliveries: list[Delivery]) -> None:
        """Records and acknowledges deliveries of `Client.consume_unopened`, holding the lock for this moment only.

        StoreLocked when another receiver uses this home.  Receipts are owed, and signed by whoever runs `OwedReceipts`.
        """
        with self._opened():
            new, done = await self._open_new(deliveries)
            await self._record(new, self._heard())
            await self._complete_now()
        if done:
            await self.client.ack(done)

    # -- for handlers -------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether something is being opened or written."""
        return self._turn.locked() or bool(self._under_way) or bool(self._acks_open) or self._completes

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

    async def _consume(self, name: str, acks: trio.Nursery, task_status: trio.TaskStatus[None]) -> None:
        async with self.client.consume_unopened(name) as consumer:
            task_status.started()
            try:
                while not self._enough_with(0):
                    deliveries = await self._next(consumer)
                    async with self._turn:
                        new, done = await self._open_new(deliveries)
                        await self._recorded()
                        self._set_out(new)
                        self._acks_open += 1
                        acks.start_soon(self._finish, new, done, self._heard())
            except CipherBoxError as error:
                self._failure = error
                self._move()

    async def _next(self, consumer: Consumer) -> list[Delivery]:
        if consumer.queue.endswith(".bulk") and self._most is None:
            return await consumer.batch(BULK_ENVELOPES, BATCH_BYTES)  # a part may be far larger than its envelope
        most = 4096 if self._most is None else max(1, self._most - self.received - self._coming - self._under_way_count)
        return await consumer.batch(most, BATCH_BYTES)

    async def _open_new(self, deliveries: list[Delivery]) -> tuple[list[Received], list[Delivery]]:
        """What is new, opened; and what may be acknowledged once that is recorded."""
        inbox = self._inbox
        assert inbox is not None
        new: list[Received] = []
        done: list[Delivery] = []
        seen: dict[Key, bytes] = {}  # commitments to the plaintexts
        count = 0
        for delivery in deliveries:
            if self._enough_with(count):
                break  # what is left returns to its queue when the consumer ends
            try:
                if await self._is_old(inbox, delivery, seen):
                    done.append(delivery)
                elif inbox.too_old(delivery.envelope_id):
                    error = EnvelopeError("its id is older than this inbox's records reach")
                    await self._refuse(delivery, error, Outcome.TOO_OLD)
                else:
                    new.append(await self._open(delivery))
                    count += counted(new[-1])
                    seen[(delivery.sender_id, delivery.envelope_id)] = delivery.commitment
                    done.append(delivery)
            except EnvelopeError as error:
                await self._refuse(delivery, error)
        return new, done

    async def _is_old(self, inbox: Inbox, delivery: Delivery, seen: dict[Key, bytes]) -> bool:
        key = (delivery.sender_id, delivery.envelope_id)
        known = seen.get(key)
        if known is None:
            if key not in self._under_way and inbox.surely_new(*key):
                return False
            await self._recorded()
            known = inbox.commitment(*key)
            if known is None:
                return False
        if known and delivery.commitment and known != delivery.commitment:
            await self.client.opener.verify(delivery)
            raise AnotherPlaintext
        self.duplicates += 1
        self._events.messages(RECEIVER, "Received {} again; it is stored already", key[1], delivery.count)
        return True

    def _set_out(self, new: list[Received]) -> None:
        self._under_way = {(one.sender, one.envelope_id) for one in new}
        self._under_way_count = sum(map(counted, new))

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
            except CipherBoxError as error:
                self._failure = self._failure or error
                return
            finally:
                self._set_out([])
                self._move()
            if done:
                await self.client.ack(done)
        except CipherBoxError as error:
            self._events.say(RECEIVER, f"HQ did not confirm an ACK: {error}; the messages are stored and come again")
        finally:
            self._acks_open -= 1
            self._move()

    async def _open(self, delivery: Delivery) -> Received:
        prefix = delivery.sighted.layout.prefix
        if not delivery.quiet:
            text = f"Received {{}} from {prefix.sender}"
            self._events.messages(RECEIVER, text, prefix.envelope_id, prefix.message_count)
        await self.client.opener.open(delivery, later=True)
        return Received(
            prefix.sender, prefix.envelope_id, prefix.generation, delivery.queue, delivery.accepted_at,
            prefix.sealed_at, delivery.messages, delivery.sighted.hashes.envelope_hash, delivery.commitment,
            prefix.signature_suite,
        )  # fmt: skip

    async def _refuse(self, delivery: Delivery, error: EnvelopeError, outcome: Outcome | None = None) -> None:
        self.refused += 1
        if len(self.refusals) < _REASONS:
            with suppress(EnvelopeError):  # what is no envelope names no sender
                self.refusals[delivery.sender_id, str(error)] += 1
        outcome = OUTCOMES.get(type(error), Outcome.OTHER) if outcome is None else outcome
        if self._owed is not None:
            (self._owed.refuse if outcome in TOLD else self._owed.note)(delivery, outcome, str(error))
        await self.client.opener.refuse(delivery, error, outcome=outcome)

    def _enough(self) -> bool:
        return self._most is not None and self.received >= self._most

    def _enough_with(self, new: int) -> bool:
        return self._most is not None and self.received + self._coming + self._under_way_count + new >= self._most

    async def _until_done(self, idle_s: float | None) -> None:
        while not self._enough():
            if self._failure is not None:
                raise self._failure
            with trio.move_on_after(float("inf") if idle_s is None else idle_s) as scope:
                await self._moved.wait()
            if scope.cancelled_caught and not self._turn.locked() and not self._under_way and not self._completes:
                return

    async def _settled(self) -> None:
        """Waits for HQ's word on the acks that are out; each has its own bound."""
        while self._acks_open:
            await self._moved.wait()
