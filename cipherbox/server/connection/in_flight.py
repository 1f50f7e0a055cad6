"""Requests and publishes of one connection that HQ has not answered yet."""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.broker.model import Answer, Confirmed
from cipherbox.concurrency import Signal
from cipherbox.errors import ProtocolError
from cipherbox.limits import Limits
from cipherbox.server.connection.backpressure import Account
from cipherbox.wire.codec import SendItem


class InFlight:
    """Publishes without a confirm and requests without an answer; ``full`` stops the reader.

    The bytes of publishes count in the client's account.
    """

    def __init__(self, limits: Limits, account: Account) -> None:
        self._limits = limits
        self.account = account
        self._last_correlation = 0
        self.unconfirmed: dict[int, int] = {}  # correlation -> bytes of SENDs
        self.unconfirmed_bytes = 0
        self.requests = 0
        self.published = False  # whether this client has published anything
        self.changed = Signal()  # after an answer, or after sending

    def next_correlation(self, correlation: int) -> None:
        """Raise ProtocolError unless this correlation id is higher than all before."""
        if correlation <= self._last_correlation:
            raise ProtocolError(
                f"correlation ids must rise: {correlation} came after {self._last_correlation}"
            )
        self._last_correlation = correlation

    def publish(self, items: Sequence[SendItem]) -> int:
        """Count publishes and return their bytes."""
        size = 0
        for item in items:
            self.unconfirmed[item[0]] = len(item[3])
            size += len(item[3])
        self.unconfirmed_bytes += size
        self.published = True
        self.account.add(size)
        return size

    def answered(self, answers: Sequence[Answer]) -> None:
        """Count these answers."""
        unconfirmed, before = self.unconfirmed, self.unconfirmed_bytes
        for answer in answers:
            if type(answer) is Confirmed or answer.correlation in unconfirmed:
                self.unconfirmed_bytes -= unconfirmed.pop(answer.correlation, 0)
            else:
                self.requests -= 1
        self.account.add(self.unconfirmed_bytes - before)
        self.changed.notify()

    def fetched(self) -> None:
        """Count the answer to a FETCH."""
        self.requests -= 1
        self.changed.notify()

    @property
    def full(self) -> bool:
        limits = self._limits
        return (
            len(self.unconfirmed) > limits.publish_window
            or self.unconfirmed_bytes > limits.publish_window_bytes
            or self.requests > limits.requests_in_flight
        )

    def close(self) -> None:
        """Release what the ended connection held."""
        self.account.add(-self.unconfirmed_bytes)
        self.unconfirmed_bytes = 0
