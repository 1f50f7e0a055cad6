"""Classify deliveries: new, known or refused; and open what is new.

A failure that is the sender's fault (`faults`) affects only that envelope: it is refused, with a
reason and a receipt, and the next one is processed.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.inbox.content_types import message_count
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.receiving.progress import Key, Progress
from cipherbox.client.receiving.refuser import Refuser
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import AnotherPlaintext, EnvelopeError

# of opening, before what was opened is recorded: one sender's costly envelopes delay no others
TURN_S = 0.25


class Classified(NamedTuple):
    """``new`` was opened and is to be recorded; ``done`` may be acknowledged once it is;
    ``rest`` was not processed for lack of time.
    """

    new: list[Received]
    done: list[Delivery]
    rest: list[Delivery]


class Classifier:
    """Classifies and opens the deliveries of one receiver."""

    def __init__(
        self, opener: Opener, inbox: Inbox, refuser: Refuser, progress: Progress, events: Events
    ) -> None:
        self._opener, self._inbox, self._refuser = opener, inbox, refuser
        self._progress, self._events = progress, events

    async def open_new(self, deliveries: list[Delivery]) -> Classified:
        """Open what is new, refuse what cannot be taken in."""
        self._opener.expect(deliveries)
        try:
            return await self._classify(deliveries)
        finally:
            self._opener.expect(())
            self._refuser.send()

    async def _classify(self, deliveries: list[Delivery]) -> Classified:
        found = Classified([], [], [])
        seen: dict[Key, bytes] = {}  # commitments to the plaintexts
        lists = self._opener.contact_lists()
        count, began = 0, time.perf_counter()
        for number, delivery in enumerate(deliveries):
            spent = time.perf_counter() - began
            if self._progress.limits(count) or (found.done and spent > TURN_S):
                return found._replace(rest=deliveries[number:])
            try:
                if await self._is_known(delivery, seen):
                    found.done.append(delivery)
                elif self._inbox.too_old(delivery.envelope_id):
                    error = EnvelopeError("its id is older than this inbox's records reach")
                    self._refuser.add(delivery, error, Outcome.TOO_OLD)
                else:
                    found.new.append(await self._open(delivery, lists))
                    count += message_count(found.new[-1])
                    seen[(delivery.sender_id, delivery.envelope_id)] = delivery.commitment
                    found.done.append(delivery)
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                self._refuser.add(delivery, refusal(error))
        return found

    async def _is_known(self, delivery: Delivery, seen: dict[Key, bytes]) -> bool:
        key = (delivery.sender_id, delivery.envelope_id)
        known = seen.get(key)
        if known is None:
            if key not in self._progress.writing and self._inbox.surely_new(*key):
                return False
            await self._progress.written()
            known = self._inbox.commitment(*key)
            if known is None:
                return False
        if known and delivery.commitment and known != delivery.commitment:
            await self._opener.verify(delivery)
            raise AnotherPlaintext
        self._progress.duplicates += 1
        self._events.messages(
            RECEIVER, "Received {} again; it is stored already", key[1], delivery.count
        )
        return True

    async def _open(self, delivery: Delivery, lists: ContactLists) -> Received:
        prefix = delivery.parsed.layout.prefix
        if not delivery.quiet:
            text = f"Received {{}} from {prefix.sender}"
            self._events.messages(RECEIVER, text, prefix.envelope_id, prefix.message_count)
        await self._opener.open(delivery, later=True, lists=lists)
        delivery.drop_raw()
        return Received(
            prefix.sender,
            prefix.envelope_id,
            prefix.generation,
            delivery.queue,
            delivery.accepted_at,
            prefix.sealed_at,
            delivery.messages,
            delivery.parsed.hashes.envelope_hash,
            delivery.commitment,
            prefix.signature_suite,
            delivery.log_entry,
            prefix.prompt_receipt,
        )
