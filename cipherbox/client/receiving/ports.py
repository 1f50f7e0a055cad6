"""What receiving needs of a client, as the smallest protocols.

`Client` satisfies all of them, and nothing here knows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import Home
from cipherbox.client.keys.directory import Directory
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.publishing.sealer import Sealer
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.sessions.prekeys import Prekeys
from cipherbox.client.sessions.sessions import Sessions


class Reporter(Protocol):
    """A home whose events are reported."""

    @property
    def home(self) -> Home: ...

    @property
    def events(self) -> Events: ...


class Connected(Reporter, Protocol):
    """A home with its connection to HQ."""

    @property
    def connection(self) -> ReconnectingConnection: ...


class ReceiptSender(Connected, Protocol):
    """What signing and sending receipts needs."""

    @property
    def log(self) -> LogProofVerifier: ...

    @property
    def sealer(self) -> Sealer: ...

    @property
    def sessions(self) -> Sessions | None: ...

    def outbox(self) -> OutboxSender: ...


class DeliverySource(Connected, Protocol):
    """Where deliveries come from, and where they are acknowledged."""

    @property
    def client_id(self) -> str: ...

    @property
    def mailbox(self) -> str: ...

    @property
    def opener(self) -> Opener: ...

    @property
    def sessions(self) -> Sessions | None: ...

    def consume_unopened(
        self, queue: str | None = None, *, envelopes: int = ..., size: int = ...
    ) -> AbstractAsyncContextManager[Consumer]: ...

    async def ack(self, deliveries: Delivery | Iterable[Delivery]) -> int: ...


class ReceiptSource(DeliverySource, Protocol):
    """What taking in receipts needs."""

    @property
    def log(self) -> LogProofVerifier: ...

    @property
    def directory(self) -> Directory: ...

    @property
    def outbox_sender(self) -> OutboxSender | None: ...


class RegistrationNotice(Protocol):
    """Reports once that this client's keys are registered."""

    async def say_registered(self) -> None: ...


class ReceivingClient(DeliverySource, ReceiptSender, Protocol):
    """What a `Receiver` needs."""

    @property
    def revocations(self) -> Revocations: ...

    @property
    def prekeys(self) -> Prekeys | None: ...

    @property
    def key_lifecycle(self) -> RegistrationNotice: ...

    async def fetch_unopened(
        self, queue: str | None = None, envelopes: int = ...
    ) -> list[Delivery]: ...

    async def readable_queues(self) -> list[str]: ...
