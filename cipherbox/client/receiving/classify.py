"""From deliveries to what is to be recorded: known already, new, or refused.  A part of `Receiver`.

What cannot be taken in ends with its own envelope, whatever went wrong (`faults`): it is refused,
with its reason and its receipt, and the next one is taken.  What needs a look-up of its sender's
keys is parked meanwhile (`lookups`).
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import Counter
from contextlib import suppress

from cipherbox.client.events import RECEIVER
from cipherbox.client.inbox.content_types import message_count
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.held_inbox import HeldInbox
from cipherbox.client.receiving.opening import OUTCOMES
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import AnotherPlaintext, EnvelopeError

_REASONS = 20  # kept apart for whoever asks at the end
# of opening, until what was opened is recorded: one sender's costly envelopes hold up no others
TURN_S = 0.25
Key = tuple[str, bytes]  # sender, envelope id


class Taking(HeldInbox, ABC):
    """See the module."""

    duplicates: int
    refused: int
    refusals: Counter[tuple[str, str]]
    _under_way: set[Key]
    _to_refuse: list[tuple[Delivery, EnvelopeError, Outcome]]

    @abstractmethod
    async def _recorded(self) -> None: ...

    @abstractmethod
    def _enough_with(self, new: int) -> bool: ...

    async def _ready(self, consumer: Consumer, deliveries: list[Delivery]) -> list[Delivery]:
        """Those that can be opened now; the others come again when their senders' keys were
        looked up.
        """
        await self.client.revocations.ensure()  # what is wrong with that is no sender's fault
        opener = self.client.opener
        ready = []
        for delivery in deliveries:
            if opener.ready(delivery):
                ready.append(delivery)
            else:
                opener.lookups.park(delivery, consumer.looked_up)
        return ready

    async def _looked_up(self, deliveries: list[Delivery]) -> list[Delivery]:
        """As `_ready` for what was fetched: waits for the look-ups."""
        await self.client.revocations.ensure()
        opener = self.client.opener
        ready = [opener.ready(delivery) for delivery in deliveries]
        asked = [delivery for delivery, known in zip(deliveries, ready, strict=True) if not known]
        wrong = {
            id(delivery): error
            for delivery, error in await opener.lookups.settle(asked)
            if error is not None
        }
        for delivery in deliveries:
            error = wrong.get(id(delivery))
            if error is not None:
                if fault_of(error) is not Fault.SENDER:
                    raise error
                self._refuse(delivery, refusal(error))
        self._refuse_all()
        return [delivery for delivery in deliveries if id(delivery) not in wrong]

    async def _open_new(
        self, deliveries: list[Delivery]
    ) -> tuple[list[Received], list[Delivery], list[Delivery]]:
        """What is new, opened; what may be acknowledged once that is recorded; and what there
        was no time for.
        """
        self.client.opener.expect(deliveries)
        try:
            return await self._sorted(deliveries)
        finally:
            self.client.opener.expect(())
            self._refuse_all()

    async def _sorted(
        self, deliveries: list[Delivery]
    ) -> tuple[list[Received], list[Delivery], list[Delivery]]:
        inbox = self._inbox
        assert inbox is not None
        new: list[Received] = []
        done: list[Delivery] = []
        seen: dict[Key, bytes] = {}  # commitments to the plaintexts
        count, began = 0, time.perf_counter()
        for number, delivery in enumerate(deliveries):
            if self._enough_with(count) or (done and time.perf_counter() - began > TURN_S):
                # it returns to its queue when the consumer ends
                return new, done, deliveries[number:]
            try:
                if await self._is_old(inbox, delivery, seen):
                    done.append(delivery)
                elif inbox.too_old(delivery.envelope_id):
                    error = EnvelopeError("its id is older than this inbox's records reach")
                    self._refuse(delivery, error, Outcome.TOO_OLD)
                else:
                    new.append(await self._open(delivery))
                    count += message_count(new[-1])
                    seen[(delivery.sender_id, delivery.envelope_id)] = delivery.commitment
                    done.append(delivery)
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                self._refuse(delivery, refusal(error))
        return new, done, []

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
        self._events.messages(
            RECEIVER, "Received {} again; it is stored already", key[1], delivery.count
        )
        return True

    async def _open(self, delivery: Delivery) -> Received:
        prefix = delivery.sighted.layout.prefix
        if not delivery.quiet:
            text = f"Received {{}} from {prefix.sender}"
            self._events.messages(RECEIVER, text, prefix.envelope_id, prefix.message_count)
        await self.client.opener.open(delivery, later=True)
        delivery.drop_raw()
        return Received(
            prefix.sender,
            prefix.envelope_id,
            prefix.generation,
            delivery.queue,
            delivery.accepted_at,
            prefix.sealed_at,
            delivery.messages,
            delivery.sighted.hashes.envelope_hash,
            delivery.commitment,
            prefix.signature_suite,
            delivery.log_entry,
        )

    def _kept(self, done: list[Delivery]) -> list[Delivery]:
        """Those of a batch that are recorded now, to be acknowledged; the others are refused."""
        failed, self._failed = self._failed, {}
        if not failed:
            return done
        for delivery in done:
            error = failed.get((delivery.sender_id, delivery.envelope_id))
            if error is not None:
                self._refuse(delivery, error)
        kept = [d for d in done if (d.sender_id, d.envelope_id) not in failed]
        self._refuse_all()
        return kept

    def _refuse(
        self, delivery: Delivery, error: EnvelopeError, outcome: Outcome | None = None
    ) -> None:
        self.refused += 1
        if len(self.refusals) < _REASONS:
            with suppress(EnvelopeError):  # what is no envelope names no sender
                self.refusals[delivery.sender_id, str(error)] += 1
        outcome = OUTCOMES.get(type(error), Outcome.OTHER) if outcome is None else outcome
        self._to_refuse.append((delivery, error, outcome))

    def _refuse_all(self) -> None:
        """The receipts are owed before HQ is told."""
        refused, self._to_refuse = self._to_refuse, []
        if refused and self._owed is not None:
            self._owed.refuse(
                [(delivery, outcome, str(error)) for delivery, error, outcome in refused]
            )
        for delivery, error, outcome in refused:
            self.client.opener.refuse_soon(delivery, error, outcome=outcome)
