"""Refuse what cannot be taken in: the receipt is recorded as pending before HQ is told."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.opening import OUTCOMES, Opener
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.progress import Key, Progress
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import EnvelopeError

_REASONS = 20  # counted separately


class Refuser:
    """Collects the refusals of a batch, then sends them together."""

    def __init__(self, opener: Opener, receipts: PendingReceipts, progress: Progress) -> None:
        self._opener, self._receipts, self._progress = opener, receipts, progress
        self._collected: list[tuple[Delivery, EnvelopeError, Outcome]] = []

    def add(self, delivery: Delivery, error: EnvelopeError, outcome: Outcome | None = None) -> None:
        """Collect a refusal; ``outcome`` where the error's class does not determine it."""
        self._progress.refused += 1
        if len(self._progress.refusals) < _REASONS:
            with suppress(EnvelopeError):  # what is no envelope names no sender
                self._progress.refusals[delivery.sender_id, str(error)] += 1
        outcome = OUTCOMES.get(type(error), Outcome.OTHER) if outcome is None else outcome
        self._collected.append((delivery, error, outcome))

    def send(self) -> None:
        """Record the receipts of what was collected, then tell HQ."""
        refused, self._collected = self._collected, []
        if refused:
            self._receipts.refuse(
                [(delivery, outcome, str(error)) for delivery, error, outcome in refused]
            )
        for delivery, error, outcome in refused:
            self._opener.refuse_soon(delivery, error, outcome=outcome)

    def without(
        self, deliveries: list[Delivery], failed: Mapping[Key, EnvelopeError]
    ) -> list[Delivery]:
        """Refuse the deliveries that could not be recorded; return the others."""
        if not failed:
            return deliveries
        recorded: list[Delivery] = []
        for delivery in deliveries:
            error = failed.get((delivery.sender_id, delivery.envelope_id))
            if error is None:
                recorded.append(delivery)
            else:
                self.add(delivery, error)
        self.send()
        return recorded
