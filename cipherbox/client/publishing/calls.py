"""The calls of `Client` that publish."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Unpack

from cipherbox.checks import checked
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import Home
from cipherbox.client.keys.directory import Directory
from cipherbox.client.options import PublishKeywords, PublishOptions
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.publishing.idempotency import publish_once
from cipherbox.client.publishing.publish import Confirmation, EnvelopePublisher
from cipherbox.client.publishing.publisher import Publisher, check_publisher
from cipherbox.client.publishing.sealer import Sealer
from cipherbox.client.publishing.splitting import Content, as_messages
from cipherbox.concurrency import background
from cipherbox.errors import CipherBoxError
from cipherbox.wire import frames


@checked
class PublishingCalls:
    """Mixed into `Client`."""

    home: Home
    connection: ReconnectingConnection
    events: Events
    directory: Directory
    sealer: Sealer
    publishing: EnvelopePublisher

    def outbox(self) -> OutboxSender:
        """Return the sender with its outbox; Forbidden on an admin's machine."""
        return self.publishing.outbox()

    async def publish(
        self,
        messages: Content | Sequence[Content],
        *,
        wait: bool = True,
        key: str | None = None,
        **keywords: Unpack[PublishKeywords],
    ) -> Confirmation:
        """Seal and send messages, and return HQ's confirmation that they are on stable storage.

        ``to`` names recipients by id, or ``exchange`` and ``routing_key`` name a route; with the
        default exchange the key is a queue's name.  A str is text, bytes are binary, a `Message`
        has a type and headers.  ``box``: "bulk" or "sys", the recipients' other mailboxes.
        ``expires_at``: ms since 1970, 0 never.  ``stanza``: how the content key is wrapped;
        "ratchet" for sessions (`cipherbox manual sessions`).  ``cipher``: the body cipher.
        ``allow_mixed``: permit a classical recipient beside post-quantum ones.  ``partial``: send
        to those who can get it.  ``prompt_receipt``: recipients sign immediately instead of once a
        second, for callers that wait until it was opened.  ``wait`` False: return when the outbox
        has it, with ``accepted_at`` 0.  ``key``: an idempotency key.  Raise HQ's refusal, or Queued
        if HQ did not confirm in time: then it is sent from the outbox.
        """
        options = PublishOptions.make(**keywords)
        if key is not None:
            return await publish_once(
                self.publishing, as_messages(messages), options, key, wait=wait
            )
        return await self.publishing.publish(as_messages(messages), options, wait=wait)

    @asynccontextmanager
    async def publisher(
        self,
        *,
        batch: int | None = None,
        **keywords: Unpack[PublishKeywords],
    ) -> AsyncIterator[Publisher]:
        """Return a publisher that batches automatically; leaving the block waits until everything
        is confirmed.

        ``batch``: the most messages of one envelope; None for the best number.
        """
        options = check_publisher(PublishOptions.make(**keywords))
        route = await self.sealer.resolve_route(options)
        async with background() as nursery:
            publisher = Publisher(
                self.sealer, self.connection, self.outbox(), options, route, nursery, batch
            )
            self.connection.window.room_listeners.append(publisher.room_came)
            try:
                yield publisher
                await publisher.flush()
            finally:
                self.connection.window.room_listeners.remove(publisher.room_came)
                publisher.close()

    async def seal_again(self, client_id: str | None = None) -> tuple[int, list[CipherBoxError]]:
        """Seal again, for today's keys, what ``client_id`` (None: any) has not opened.

        Return the number of envelopes, and the errors of those that could not be sealed.  A revoked
        recipient is left out; a recipient that opened a message does not get it twice.
        """
        outbox_sender = self.outbox()
        pinned = [pin.bundle.client_id for pin in self.directory.pins.entries()]
        for name in pinned if client_id is None else [client_id]:
            self.directory.refresh(name)
        return await outbox_sender.seal_again_all(client_id)

    async def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """Return a route's ``queues``, each with its ``queue`` and ``readers``, and its
        ``version``.
        """
        return await self.sealer.resolve(exchange, routing_key)

    async def readers(self, exchange: str, routing_key: str) -> list[str]:
        """Return the readers of a route; raise NotAllowed if one of them is not on the
        allow-list.
        """
        options = PublishOptions.make(exchange=exchange, routing_key=routing_key, allow_mixed=True)
        return list((await self.sealer.resolve_route(options, anew=True)).names)
