"""Verify and open deliveries, and refuse what cannot be opened.

Each failure has an outcome of the receipt format.  An envelope that can never be opened here
(malformed, for another recipient, with an invalid signature, body or commitment) becomes a dead
letter at HQ, with the reason.  One that may open later (a key is missing, a person must compare the
sender's keys first, the version is newer) is requeued after a pause that grows with each attempt:
requeueing it immediately would only use up its deliveries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio

from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.home import keyless
from cipherbox.client.keys.directory import Directory
from cipherbox.client.log.order import LogOrder
from cipherbox.client.receiving.contacts import Contacts
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.lookups import Lookups
from cipherbox.client.receiving.refusals import Nack, Refusals
from cipherbox.client.sessions.sessions import Sessions, in_sessions
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.outcomes import Outcome, outcome_code
from cipherbox.errors import (
    AnotherPlaintext,
    CipherBoxError,
    CommitmentMismatch,
    DecryptionFailed,
    EnvelopeError,
    KeyMissing,
    MalformedEnvelope,
    NotAccepted,
    NotRecipient,
    PlaintextMismatch,
    SenderNotValid,
    SignatureInvalid,
    UnknownVersion,
)
from cipherbox.portable import escape_text
from cipherbox.sealing.body import Messages
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.open import ParsedEnvelope, open_envelope, verify

OUTCOMES: dict[type[CipherBoxError], Outcome] = {
    MalformedEnvelope: Outcome.MALFORMED,
    UnknownVersion: Outcome.UNKNOWN_VERSION,
    NotRecipient: Outcome.NOT_RECIPIENT,
    KeyMissing: Outcome.KEY_MISSING,
    SignatureInvalid: Outcome.SIGNATURE_INVALID,
    DecryptionFailed: Outcome.DECRYPTION_FAILED,
    CommitmentMismatch: Outcome.COMMITMENT_MISMATCH,
    SenderNotValid: Outcome.SENDER_NOT_VALID,
    PlaintextMismatch: Outcome.PLAINTEXT_MISMATCH,
    AnotherPlaintext: Outcome.COMMITMENT_CHANGED,
    NotAccepted: Outcome.NOT_ACCEPTED,
}
NEVER = frozenset(
    [
        Outcome.MALFORMED,
        Outcome.NOT_RECIPIENT,
        Outcome.SIGNATURE_INVALID,
        Outcome.DECRYPTION_FAILED,
        Outcome.COMMITMENT_MISMATCH,
        Outcome.TOO_OLD,
        Outcome.PLAINTEXT_MISMATCH,
        Outcome.COMMITMENT_CHANGED,
        Outcome.NOT_ACCEPTED,
    ]
)
PAUSE_MAX_S = 60.0


class Opener:
    """Opens or refuses the deliveries of one client. ``nack`` sends refusals to HQ; ``nursery``
    runs the pauses before a delivery is requeued.
    """

    def __init__(
        self,
        identity: Identity | None,
        directory: Directory,
        events: Events,
        nack: Nack,
        nursery: trio.Nursery,
        order: LogOrder,
        contacts: Contacts,
        sessions: Sessions | None = None,
        *,
        refresh: Callable[[], bool] = lambda: False,
    ) -> None:
        self._order, self._contacts = order, contacts
        self._sessions = sessions
        self.events = events
        self._identity, self._directory = identity, directory
        self.lookups = Lookups(directory, events, nursery)
        self.refusals = Refusals(nack, events, nursery)
        # loads keys that another process of this home has made
        self._refresh = refresh

    def contact_lists(self) -> ContactLists:
        """Return whose mail is accepted now; raise ConfigError if the lists cannot be read."""
        return self._contacts.lists()

    async def open(
        self, delivery: Delivery, *, later: bool = False, lists: ContactLists | None = None
    ) -> None:
        """Fill the delivery's messages, or raise the EnvelopeError.

        ``later``: the caller records them, and with them what this changed in sessions
        (`Sessions.take_received`).  ``lists``: whose mail is accepted; None: read them again.
        """
        if delivery.opened:
            return
        if self._identity is None:
            raise keyless()
        prefix = delivery.parsed.layout.prefix
        if not self._accepts(delivery, lists):
            raise NotAccepted(
                f"no mail is taken from {prefix.sender}", remedy="see: cipherbox contacts list"
            )
        sender = await self._sender(delivery)
        try:
            messages = self._opened(delivery.parsed, sender, later)
        except KeyMissing:
            if not self._refresh():
                raise
            messages = self._opened(delivery.parsed, sender, later)
        delivery.fill(messages)
        if not delivery.quiet:
            self.events.messages(RECEIVER, "Decrypted {}", prefix.envelope_id, prefix.message_count)

    async def verify(self, delivery: Delivery) -> None:
        """Verify the sender's signature alone; raise EnvelopeError if it is invalid."""
        verify(delivery.parsed, await self._sender(delivery))

    async def _sender(self, delivery: Delivery) -> KeyBundle:
        prefix = delivery.parsed.layout.prefix
        known = self._directory.known_sender(
            prefix.sender, prefix.bundle_hash, delivery.accepted_at, delivery.log_entry
        )
        if known is None:
            known = await self._looked_up(delivery)
        await self.check_order(known, delivery)
        return known

    async def check_order(self, bundle: KeyBundle, delivery: Delivery) -> None:
        """Raise SenderNotValid if HQ accepted the delivery after these keys of its sender were
        revoked.
        """
        await self._order.check(bundle, delivery)

    async def _looked_up(self, delivery: Delivery) -> KeyBundle:
        prefix = delivery.parsed.layout.prefix
        if not self._directory.has_sender(prefix.bundle_hash) and not self.lookups.missed(
            prefix.sender, prefix.bundle_hash
        ):
            ((_, error),) = await self.lookups.settle([delivery])
            if error is not None:
                raise refusal(error) if fault_of(error) is Fault.SENDER else error
        if self.lookups.missed(prefix.sender, prefix.bundle_hash):
            raise SenderNotValid("HQ does not have the key bundle the envelope names")
        return await self._directory.sender(
            prefix.sender, prefix.bundle_hash, delivery.accepted_at, delivery.log_entry
        )

    def _accepts(self, delivery: Delivery, lists: ContactLists | None = None) -> bool:
        """Return whether it is accepted; receipts always are: they answer what this client sent."""
        if delivery.queue.endswith(".sys"):
            return True
        return (self.contact_lists() if lists is None else lists).accepts(delivery.sender_id)

    def expect(self, deliveries: Sequence[Delivery]) -> None:
        """Request HQ's proofs for the deliveries that are opened next, in this order."""
        self._order.expect(deliveries)

    def ready(self, delivery: Delivery) -> bool:
        """Return whether it can be opened or refused without looking up its sender's keys at HQ."""
        try:
            prefix = delivery.parsed.layout.prefix
        except EnvelopeError:
            return True
        known = self._directory.has_sender(prefix.bundle_hash) or self.lookups.missed(
            prefix.sender, prefix.bundle_hash
        )
        if known and not self.lookups.holds_earlier(delivery):
            return True
        return not self._accepts(delivery)

    def _opened(self, parsed: ParsedEnvelope, sender: KeyBundle, later: bool) -> Messages:
        assert self._identity is not None
        if self._sessions is not None and in_sessions(parsed):
            return (self._sessions.decrypt if later else self._sessions.open)(parsed, sender)
        return open_envelope(parsed, self._identity, sender)

    async def admit(self, delivery: Delivery) -> bool:
        """Open the delivery or refuse it; return whether it is open."""
        try:
            await self.open(delivery)
        except EnvelopeError as error:
            await self.refuse(delivery, error)
            return False
        return True

    async def refuse(
        self,
        delivery: Delivery,
        error: EnvelopeError,
        *,
        outcome: Outcome | None = None,
        pause: bool = True,
    ) -> None:
        """Refuse as `refuse_soon`, and wait until HQ was told unless there is a pause before."""
        self.refuse_soon(delivery, error, outcome=outcome, pause=pause)
        await self.refusals.flush()

    def refuse_soon(
        self,
        delivery: Delivery,
        error: EnvelopeError,
        *,
        outcome: Outcome | None = None,
        pause: bool = True,
    ) -> None:
        """Tell HQ why this envelope was not opened; ``outcome`` overrides the error's own."""
        outcome = OUTCOMES.get(type(error), Outcome.OTHER) if outcome is None else outcome
        sender, name = _sender(delivery), _name(delivery)
        pause_s = min(2.0 ** min(delivery.attempt - 1, 6), PAUSE_MAX_S) if pause else 0.0
        reason = escape_text(f"{outcome_code(outcome)}: {error}")
        final = outcome in NEVER
        back = self.refusals.put(
            delivery,
            sender,
            requeue=not final,
            outcome=outcome,
            reason=reason,
            pause_s=0.0 if final else pause_s,
        )
        what = "is requeued" if back else "becomes a dead letter"
        self.events.emit(RECEIVER, f"Refused {name}: {error}; it {what}")


def _sender(delivery: Delivery) -> str:
    try:
        return delivery.sender_id
    except EnvelopeError:
        return ""


def _name(delivery: Delivery) -> str:
    where = f"number {delivery.seq} of queue {delivery.queue}"
    try:
        return f"{where} from {delivery.sender_id}"
    except EnvelopeError:
        return where
