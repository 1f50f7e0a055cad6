"""One envelope that HQ delivered, and the acknowledgement ranges it becomes."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Protocol

from cipherbox.client.connection.connection import Connection
from cipherbox.envelope.ids import message_id
from cipherbox.errors import EnvelopeError
from cipherbox.sealing.body import Message
from cipherbox.sealing.open import ParsedEnvelope, parse_envelope
from cipherbox.wire import frames
from cipherbox.wire.codec import DeliveredItem


class CreditHolder(Protocol):
    """The consumer that a delivery was pushed to, which gets its credit back."""

    @property
    def credit_bytes(self) -> int: ...

    def settled(self, deliveries: Iterable[Delivery]) -> None: ...


class Delivery:
    """One envelope of a queue.

    ``sender_id``, ``envelope_id`` (16 bytes) and ``count`` come from the clear prefix; ``messages``
    exist once it was verified and opened.  ``accepted_at`` (ms since 1970) and ``log_entry`` are
    HQ's statements of when it accepted the envelope and which log entry records that.  ``attempt``
    above 1: delivered before.
    """

    __slots__ = (
        "_error",
        "_messages",
        "_parsed",
        "accepted_at",
        "attempt",
        "connection",
        "consumer",
        "credited",
        "log_entry",
        "queue",
        "raw",
        "seq",
        "size",
    )

    def __init__(
        self,
        queue: str,
        item: DeliveredItem,
        consumer: CreditHolder | None,
        connection: Connection | None,
    ) -> None:
        self.queue = queue
        self.seq, self.attempt, self.accepted_at, self.log_entry, self.raw = item
        self.size = len(self.raw)  # of its credit, also when the bytes are freed
        self.consumer, self.connection = consumer, connection
        self._messages: Sequence[Message] | None = None
        self._parsed: ParsedEnvelope | None = None
        self._error: EnvelopeError | None = None
        self.credited = False  # its part of the credit was given back

    def __repr__(self) -> str:
        return (
            f"Delivery({self.queue!r}, seq={self.seq}, attempt={self.attempt}, {self.size} bytes)"
        )

    @property
    def parsed(self) -> ParsedEnvelope:
        """Return layout and hashes, parsed on first use; EnvelopeError if malformed."""
        if self._parsed is None:
            if self._error is not None:
                raise self._error.copy()
            try:
                self._parsed = parse_envelope(self.raw)
            except EnvelopeError as error:
                self._error = error
                raise
        return self._parsed

    @property
    def sender_id(self) -> str:
        return self.parsed.layout.prefix.sender

    @property
    def envelope_id(self) -> bytes:
        return self.parsed.layout.prefix.envelope_id

    @property
    def commitment(self) -> bytes:
        """Return the sender's commitment to the plaintext, the same in every generation; empty in
        version 1.
        """
        return self.parsed.layout.prefix.plain_commitment

    @property
    def sealed_at(self) -> int:
        """Return when the sender sealed it, ms since 1970 by the sender's clock."""
        return self.parsed.layout.prefix.sealed_at

    @property
    def count(self) -> int:
        """Return the number of its messages."""
        return self.parsed.layout.prefix.message_count

    @property
    def message_ids(self) -> list[uuid.UUID]:
        """Return the ids of its messages, in order."""
        return [message_id(self.envelope_id, index) for index in range(self.count)]

    @property
    def quiet(self) -> bool:
        """Return whether it is not logged on its own: parts of files, and receipts."""
        return self.queue.endswith((".bulk", ".sys"))

    @property
    def lost(self) -> bool:
        """Return whether its connection has ended, so that HQ redelivers it."""
        return self.connection is not None and self.connection.error is not None

    @property
    def opened(self) -> bool:
        return self._messages is not None

    @property
    def messages(self) -> Sequence[Message]:
        """Return the messages of an opened delivery."""
        if self._messages is None:
            raise EnvelopeError("this delivery was not opened yet: await client.open(delivery)")
        return self._messages

    def release(self) -> None:
        """Free its bytes and return its credit; only HQ's answer is pending."""
        if self.consumer is not None:
            self.consumer.settled([self])
        self.raw, self._parsed, self._messages = b"", None, None

    def drop_raw(self) -> None:
        """Free the sealed bytes of an opened delivery; the parsed prefix stays."""
        self._parsed = self.parsed._replace(raw=b"")
        self.raw = b""

    def drop_messages(self) -> None:
        """Free the messages: they are recorded."""
        self._messages = None

    def fill(self, messages: Sequence[Message]) -> None:
        """Set the messages that the opener found."""
        self._messages = messages


def ranges(numbers: Iterable[int]) -> list[frames.Range]:
    """Return numbers as ranges, for an ACK."""
    found: list[frames.Range] = []
    for number in sorted(set(numbers)):
        if found and found[-1].first + found[-1].count == number:
            found[-1].count += 1
        else:
            found.append(frames.Range(number, 1))
    return found


def settled(deliveries: list[Delivery]) -> None:
    """Return the credit of deliveries to their consumers."""
    for consumer in {d.consumer for d in deliveries if d.consumer is not None}:
        consumer.settled(d for d in deliveries if d.consumer is consumer)
