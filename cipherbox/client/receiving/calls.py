"""The consuming calls of `Client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from cipherbox.checks import checked
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.home import Home, keyless
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery, ranges, settled
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.sessions.sessions import Sessions, in_sessions
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

CONSUME_ENVELOPES = LIMITS.credit_envelopes
CONSUME_BYTES = 16 * 1024 * 1024


async def send_nack(
    connection: ReconnectingConnection, delivery: Delivery, requeue: bool, outcome: int, reason: str
) -> None:
    """Tell HQ that this envelope was refused: it is requeued or dead-lettered."""
    await connection.request(
        frames.Nack,
        queue=delivery.queue,
        seq=delivery.seq,
        requeue=requeue,
        outcome=outcome,
        reason=reason[:1000],
    )
    settled([delivery])


@checked
class ConsumingCalls:
    """Mixed into `Client`."""

    connection: ReconnectingConnection
    events: Events
    home: Home
    opener: Opener
    revocations: Revocations
    sessions: Sessions | None

    @property
    def mailbox(self) -> str:
        """Return the queue of messages addressed to this client by name."""
        return f"box.{self.home.config.client_id}"

    @asynccontextmanager
    async def consume(
        self,
        queue: str | None = None,
        *,
        envelopes: int = CONSUME_ENVELOPES,
        size: int = CONSUME_BYTES,
    ) -> AsyncIterator[Consumer]:
        """Provide an async iterator over the deliveries of a queue (None: this client's mailbox),
        verified and opened.

        ``envelopes`` and ``size`` (bytes) bound what is delivered and not yet acknowledged.
        """
        if self.home.identity is None:
            raise keyless()
        async with self.consume_unopened(queue, envelopes=envelopes, size=size) as consumer:
            yield consumer

    @asynccontextmanager
    async def consume_unopened(
        self,
        queue: str | None = None,
        *,
        envelopes: int = CONSUME_ENVELOPES,
        size: int = CONSUME_BYTES,
    ) -> AsyncIterator[Consumer]:
        """Consume without opening: read with ``batch()``, and open or refuse each delivery."""
        await self.revocations.ensure()
        consumer = Consumer(self.connection, self.opener, queue or self.mailbox, envelopes, size)
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def fetch(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """Return at most that number of waiting deliveries, verified and opened; acknowledge them,
        or they are redelivered.
        """
        found = await self.fetch_unopened(queue, envelopes)
        self.opener.expect(found)
        return [delivery for delivery in found if await self.opener.admit(delivery)]

    async def fetch_unopened(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """Return waiting deliveries as `fetch` does, but unopened."""
        name = queue or self.mailbox
        answer: frames.Fetched = await self.connection.request(
            frames.Fetch, queue=name, envelopes=envelopes, size=CONSUME_BYTES
        )
        items = [(e.seq, e.attempt, e.accepted_at, e.log_entry, e.envelope) for e in answer.entries]
        return [Delivery(name, item, None, self.connection.current) for item in items]

    async def open(self, delivery: Delivery) -> Delivery:
        """Verify and open an unopened delivery; raise EnvelopeError if that fails."""
        await self.opener.open(delivery)
        return delivery

    async def ack(self, deliveries: Delivery | Iterable[Delivery]) -> int:
        """Acknowledge deliveries whose outcome is durably recorded here; return the number that HQ
        confirmed.
        """
        many = [deliveries] if isinstance(deliveries, Delivery) else list(deliveries)
        queues: dict[str, list[Delivery]] = {}
        for delivery in many:
            queues.setdefault(delivery.queue, []).append(delivery)
        counted = 0
        for queue, own in queues.items():
            numbers = ranges(delivery.seq for delivery in own)
            self._say(own, "ACK sent for {}")
            for at in range(0, len(numbers), LIMITS.ranges_per_frame):
                part = numbers[at : at + LIMITS.ranges_per_frame]
                answer: frames.AckConfirmed = await self.connection.request(
                    frames.Ack, queue=queue, ranges=part
                )
                counted += answer.count
            settled(own)
            self._say(own, "Server confirmed ACK for {}", mark=True)
            if self.sessions is not None:
                hashes = [d.parsed.hashes.envelope_hash for d in own if in_sessions(d.parsed)]
                self.sessions.acknowledged(hashes)
        return counted

    async def nack(
        self, delivery: Delivery, *, requeue: bool = True, outcome: int = 255, reason: str = ""
    ) -> None:
        """Refuse an envelope that could not be opened: it is requeued or dead-lettered."""
        await send_nack(self.connection, delivery, requeue, outcome, reason)

    async def resend(
        self, queue: str | None = None, *, sender_id: str = "", envelope_id: bytes = bytes(16)
    ) -> int:
        """Request redelivery of everything unacknowledged in a queue (None: in every queue), or of
        one envelope; return the number.
        """
        answer: frames.Ok = await self.connection.request(
            frames.Resend, queue=queue or "", sender_id=sender_id, envelope_id=envelope_id
        )
        return answer.count

    def _say(self, deliveries: list[Delivery], text: str, *, mark: bool = False) -> None:
        if self.events.has_listener:
            for delivery in deliveries:
                if not delivery.quiet:
                    self.events.messages(
                        RECEIVER, text, delivery.envelope_id, delivery.count, mark=mark
                    )
