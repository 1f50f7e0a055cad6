"""Receipts from the recipients of this client's messages, consumed from the mailbox `.sys`.

A group of receipts is accepted when its signature verifies against the recipient's pinned keys,
when that recipient sent it, and when it names an envelope that was sent to that recipient with that
hash.  The outbox keeps it with the keys it was signed with, so that it can be exported and verified
years later.  A duplicate, a leaf that adds nothing, and a receipt from a client that was no
recipient are ignored.

A recipient that lacks the key an envelope was sealed to gets the next generation, sealed to its
current keys.

Receipts have a loop of their own.  They must be consumed by every command that is connected, also
while another program holds the inbox, and `loop` runs on an open inbox only; they are recorded in
the outbox, and no receipt is pending for a receipt, even for one that cannot be opened.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from cipherbox.client.events import SENDER
from cipherbox.client.outbox.rows import MOST_GENERATIONS, Signed
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.sessions.sessions import STEP_TYPE
from cipherbox.concurrency import Backoff, Flag, Signal, any_error, supervise
from cipherbox.envelope.group import TYPE, Group, decode_group, verify_group
from cipherbox.envelope.ids import message_id
from cipherbox.envelope.outcomes import Outcome, outcome_words
from cipherbox.errors import CipherBoxError, EnvelopeError, SignatureInvalid

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import ReceiptSource

CREDIT = 64  # groups delivered at a time: what a short command can consume before it ends
CREDIT_BYTES = 1024 * 1024  # and their bytes
REST_S = 2.0
_PAUSE_S = 5.0  # after an error, before the mailbox is looked at again
SETTLE_S = 1.0
_MOST = (1 << 63) - 1  # SQLite's largest integer, for times by another party's clock
RESEALABLE = frozenset({Outcome.KEY_MISSING})


class ReceiptConsumer:
    """Consumes the receipts for one client's messages."""

    def __init__(self, client: ReceiptSource) -> None:
        self._client = client
        self.changed = Signal()  # something new was signed
        self._began = trio.Event()
        self._idle = Flag(is_set=True)
        self._consumer: Consumer | None = None

    async def settle(self) -> None:
        """Wait briefly for the receipts that are in the mailbox now."""
        with trio.move_on_after(SETTLE_S):
            await self._began.wait()
            await trio.sleep(SETTLE_S / 4)
            await self._idle.wait()

    async def finish(self) -> None:
        """Take in what HQ has delivered, before the client closes.

        Delivered twenty times to short commands that ended too soon, it would be dead-lettered.
        """
        with trio.move_on_after(REST_S):
            while self._consumer is not None and (
                self._consumer.waiting or not self._idle.is_set()
            ):
                await self._idle.wait()
                await trio.lowlevel.checkpoint()  # lets `run` take what waits and become busy
        await self._client.log.finish(self._client.connection)

    async def run(self) -> None:
        """Take in receipts until cancelled; what could not be taken in is redelivered."""

        def failed(_: CipherBoxError, _pause_s: float) -> None:
            self._consumer = None
            self._idle.set()

        backoff = Backoff(_PAUSE_S, _PAUSE_S)
        await supervise(self._consume, backoff, transient=any_error, on_failure=failed)

    async def _consume(self) -> None:
        client = self._client
        async with client.consume_unopened(
            f"{client.mailbox}.sys", envelopes=CREDIT, size=CREDIT_BYTES
        ) as consumer:
            self._began.set()
            self._consumer = consumer
            while True:
                done = []
                batch = await consumer.batch(64)
                self._idle.clear()
                client.opener.expect(batch)
                for delivery in batch:
                    if await self._take(delivery):
                        delivery.drop_messages()
                        done.append(delivery)
                if done:
                    await client.ack(done)
                self._idle.set()

    async def _take(self, delivery: Delivery) -> bool:
        """Take in one delivery; return whether it may be acknowledged."""
        client = self._client
        try:
            await client.opener.open(delivery)
            delivery.drop_raw()
        except Exception as error:
            if fault_of(error) is not Fault.SENDER:
                raise
            client.opener.refuse_soon(delivery, refusal(error))
            return False
        for message in delivery.messages:
            if message.content_type == STEP_TYPE and client.sessions is not None:
                with suppress(EnvelopeError):  # of a session that is lost here, or a duplicate
                    client.sessions.receive_step(delivery.sender_id, message.content)
            if message.content_type != TYPE:
                continue  # of a newer version
            try:
                await self._group(delivery, message.content)
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                client.events.emit(
                    SENDER, f"A receipt from {delivery.sender_id} does not hold: {error}"
                )
        return True

    async def _group(self, delivery: Delivery, raw: bytes) -> None:
        client = self._client
        group = decode_group(raw)
        receipt = group.receipt
        if receipt.recipient != delivery.sender_id:
            raise SignatureInvalid(f"it speaks for {receipt.recipient}")
        bundle = await client.opener.lookups.bundle(
            receipt.recipient, receipt.bundle_hash, delivery.accepted_at, delivery.log_entry
        )
        await client.opener.check_order(bundle, delivery)
        verify_group(group, bundle)
        if receipt.checkpoint:
            # detects a fork of HQ's log, of which each end saw one branch
            client.log.observe(receipt.checkpoint, receipt.recipient)
        outbox_sender = client.outbox_sender
        assert outbox_sender is not None
        news = await outbox_sender.store(
            outbox_sender.outbox.sign,
            bundle.raw,
            bundle.hash,
            receipt.recipient,
            raw,
            hashlib.sha256(raw).digest(),
            self._outcomes(group),
        )
        assert isinstance(news, list)
        if not news:
            return
        self._say(news)
        self.changed.notify()
        for one in news:
            if one.outcome in RESEALABLE and one.generation < MOST_GENERATIONS:
                await self._reseal(one)

    def _outcomes(self, group: Group) -> list[Signed]:
        me = self._client.client_id
        receipt = group.receipt
        return [
            Signed(
                leaf.envelope_id,
                leaf.generation,
                receipt.recipient,
                leaf.outcome,
                min(receipt.at, _MOST),
                index,
                leaf.envelope_hash,
                bytes(leaf.messages),
                leaf.log_entry,
            )
            for index, leaf in enumerate(group.leaves)
            if leaf is not None and leaf.sender == me
        ]

    def _say(self, news: list[Signed]) -> None:
        events = self._client.events
        for one in news:
            if one.proven_entry:
                events.emit(
                    SENDER,
                    f"{one.recipient} signed that HQ delivered {message_id(one.envelope_id, 0)} "
                    f"as accepted in entry {one.log_entry} of its log, and HQ proved here that "
                    f"it was entry {one.proven_entry}. Unless HQ was restored from a backup in "
                    "between, HQ keeps two logs, or one of the two does not tell the truth: ask "
                    "them, and the admin (cipherbox manual log)",
                )
        if not events.has_listener:
            return
        for one in news:
            failed = len(one.messages) - one.messages.count(Outcome.OPENED)
            if failed:
                text = (
                    f"{one.recipient} opened {{}} and gave up {failed} of {len(one.messages)}; its "
                    "receipt verifies"
                )
            elif one.outcome == Outcome.OPENED:
                text = f"{one.recipient} opened {{}}; its receipt verifies"
            else:
                why = outcome_words(one.outcome)
                text = f"{one.recipient} refused {{}}: {why}; its receipt verifies"
            events.messages(SENDER, text, one.envelope_id, 1, mark=one.outcome == Outcome.OPENED)

    async def _reseal(self, one: Signed) -> None:
        client = self._client
        assert client.outbox_sender is not None
        try:
            client.directory.refresh(one.recipient)
            await client.outbox_sender.seal_again(one.envelope_id, generation=one.generation)
        except CipherBoxError as error:
            client.events.emit(
                SENDER, f"An envelope for {one.recipient} could not be sealed again: {error}"
            )
