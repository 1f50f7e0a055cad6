"""The calls of `Client` that publish."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from cipherbox.checks import checked
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.client.home import Home
from cipherbox.client.keys.directory import Directory
from cipherbox.client.options import PublishOptions
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
        to: str | Sequence[str] | None = None,
        exchange: str = "",
        routing_key: str = "",
        box: str = "",
        expires_at: int = 0,
        stanza: int | str | None = None,
        cipher: int | str | None = None,
        allow_mixed: bool = False,
        partial: bool = False,
        wait: bool = True,
        key: str | None = None,
    ) -> Confirmation:
        """Seals and sends messages, and waits until HQ has them on stable storage.

        ``to`` names recipients by id, or ``exchange`` and ``routing_key`` name a route; with the
        default exchange the key is a queue's name.  A str is text, bytes are binary, a `Message`
        says its type and headers.  ``stanza``:  how the key is wrapped; "ratchet" for sessions
        (`cipherbox manual sessions`).  ``expires_at``: ms since 1970, 0 never.  Raises what refuses
        it; Queued when HQ did not confirm in time: it goes out from the outbox.  ``wait`` False:
        returns when it is kept, with ``accepted_at`` 0.  ``key``: an idempotency key (see `once`).
        """
        options = PublishOptions.make(
            to,
            exchange,
            routing_key,
            box,
            stanza=stanza,
            cipher=cipher,
            allow_mixed=allow_mixed,
            expires_at=expires_at,
            partial=partial,
        )
        if key is not None:
            return await publish_once(
                self.publishing, as_messages(messages), options, key, wait=wait
            )
        return await self.publishing.publish(as_messages(messages), options, wait=wait)

    @asynccontextmanager
    async def publisher(
        self,
        *,
        to: str | Sequence[str] | None = None,
        exchange: str = "",
        routing_key: str = "",
        box: str = "",
        expires_at: int = 0,
        stanza: int | str | None = None,
        cipher: int | str | None = None,
        allow_mixed: bool = False,
        partial: bool = False,
        batch: int | None = None,
    ) -> AsyncIterator[Publisher]:
        """A publisher that batches by itself; leaving the block waits until all is confirmed.

        ``batch``: at most so many messages in one envelope; None for as many as are best.
        """
        options = check_publisher(
            PublishOptions.make(
                to,
                exchange,
                routing_key,
                box,
                stanza=stanza,
                cipher=cipher,
                allow_mixed=allow_mixed,
                expires_at=expires_at,
                partial=partial,
            )
        )
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
        """Seals again, for the keys of now, what ``client_id`` (None: any) has not opened: how
        many envelopes, and why others were not.  A revoked recipient is left out; who opened a
        message gets it once.
        """
        outbox_sender = self.outbox()
        pinned = [pin.bundle.client_id for pin in self.directory.pins.entries()]
        for name in pinned if client_id is None else [client_id]:
            self.directory.refresh(name)
        return await outbox_sender.seal_again_all(client_id)

    async def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """Who would read what is published there: ``queues`` (each ``queue`` and ``readers``)
        and a ``version``.
        """
        return await self.sealer.resolve(exchange, routing_key)

    async def readers(self, exchange: str, routing_key: str) -> list[str]:
        """Who reads a route, if the allow-list permits them all; NotAllowed names who is not on
        it.
        """
        options = PublishOptions.make(
            None,
            exchange,
            routing_key,
            "",
            stanza=None,
            cipher=None,
            allow_mixed=True,
            expires_at=0,
            partial=False,
        )
        return list((await self.sealer.resolve_route(options, anew=True)).names)
