"""`open_client` and `Client`: everything a program does with HQ, behind one object.

    async with open_client() as client:
        confirmation = await client.publish("Sample 17 is ready", to=["CA-RC"])
        async with client.consume() as deliveries:
            async for delivery in deliveries:
                print(delivery.sender_id, delivery.messages[0].content)
                await client.ack(delivery)

One client is one connection, made again when it is cut.  Every call is bounded: ``tries`` attempts
of ``timeout_s``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import trio

from cipherbox.checks import checked
from cipherbox.client.admin import AdminCalls
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import KEYS, RECEIVER, Events, OnEvent
from cipherbox.client.home import Home, keyless, load_home, note_replaced
from cipherbox.client.keys.directory import Directory
from cipherbox.client.keys.lifecycle import KeyLifecycle
from cipherbox.client.keys.local_key import Password
from cipherbox.client.keys.own import Added, add_key
from cipherbox.client.keys.pins import Pins
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.log.order import LogOrder
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.outbox.tracking import Tracking
from cipherbox.client.publishing.allow_list import AllowList
from cipherbox.client.publishing.idempotency import publish_once
from cipherbox.client.publishing.publish import Confirmation, PublishOptions, Sealer
from cipherbox.client.publishing.publisher import Publisher, check_publisher
from cipherbox.client.publishing.routes import Routes
from cipherbox.client.publishing.splitting import Content, as_messages
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.contacts import Contacts
from cipherbox.client.receiving.contacts_upload import keep_uploaded
from cipherbox.client.receiving.delivery import Delivery, ranges, settled
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.receiving.receipts import ReceiptConsumer
from cipherbox.client.sessions.prekeys import Prekeys
from cipherbox.client.sessions.sessions import Sessions, in_sessions, settings_of
from cipherbox.client.watch import watch
from cipherbox.concurrency import background
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.errors import CipherBoxError, StoreError
from cipherbox.limits import LIMITS
from cipherbox.sealing.identity import DecryptKey
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.receiving.handler import Handler, Handlers

CONSUME_ENVELOPES = LIMITS.credit_envelopes
CONSUME_BYTES = 16 * 1024 * 1024


@checked
class Client(Tracking, AdminCalls):
    """An open client.  ``home`` holds its files, ``directory`` and ``allow`` what it believes
    and permits.
    """

    def __init__(
        self,
        home: Home,
        line: ReconnectingConnection,
        events: Events,
        nursery: trio.Nursery,
        log: LogProofVerifier,
    ) -> None:
        self.home, self.line, self.events, self.log = home, line, events, log
        self.revocations = Revocations(home.path, home.issuing, line)
        self.directory = Directory(Pins(home.path), home.root, self.revocations, line, events, log)
        self.allow = AllowList(home.path)
        self.life = KeyLifecycle(home, line, events, self.directory)
        self.sessions: Sessions | None = None
        self.prekeys: Prekeys | None = None
        if home.identity is not None:
            self.sessions = Sessions(
                home.path, home.keeper.vault, home.identity, settings_of(home.config)
            )
            self.prekeys = Prekeys(self.sessions, line, events)
            self.life.published = self.prekeys.follow
        order, contacts = LogOrder(self.revocations, line, log), Contacts(home.path)
        self.opener = Opener(
            home.identity,
            self.directory,
            events,
            self._nack,
            nursery,
            order,
            contacts,
            self.sessions,
        )
        self.opener.refresh = self.life.refresh
        keep = home.keeper, Routes(home.path)
        self.sealer = Sealer(
            home.identity, self.directory, self.allow, line, events, *keep, prekeys=self.prekeys
        )
        self.post: OutboxSender | None = None  # an admin's machine sends nothing
        if self.sessions is not None:
            outbox = Outbox(home.path, home.config.keep_until, self.sessions.chains, home.hides)
            seal_again, revoked = self.sealer.seal_again, self.directory.revoked
            more = home.config.client_id, self.sessions, home.holds
            self.post = OutboxSender(line, outbox, events, seal_again, revoked, *more)
            self.sealer.post = self.post
            nursery.start_soon(self.post.run)
        line.accept, line.listed, line.opened = (
            self.revocations.check_hq,
            self._look_at_revocations,
            self._compare,
        )
        self.receipts = ReceiptConsumer(self)
        self._welcome: frames.Welcome | None = None

    async def _compare(self, welcome: frames.Welcome) -> None:
        with suppress(StoreError):  # it is compared again with the next link
            await self.post.compare(welcome.history) if self.post is not None else None
        await self._look_at_revocations()

    async def _look_at_revocations(self, number: int = 0) -> None:
        """Whoever was revoked gets nothing more; what it has not opened is sealed again for the
        others.
        """
        with suppress(CipherBoxError):  # with the next link, or when somebody publishes
            await self.revocations.ensure(number)
            if self.post is not None:
                await self.post.without_revoked()

    @property
    def client_id(self) -> str:
        return self.home.config.client_id

    @property
    def role(self) -> str:
        """client or admin, as HQ says; before the first connection as the configuration says."""
        return self.hq.role if self.hq is not None else self.home.config.role

    @property
    def hq(self) -> frames.Welcome | None:
        """What HQ said at the newest opening: name, limits, clock."""
        if self.line.link is not None:
            self._welcome = self.line.link.welcome
        return self._welcome

    # -- publishing --------------------------------------------------------------------------------

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
        address = PublishOptions.make(
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
            return await publish_once(self, as_messages(messages), address, key, wait=wait)
        return await self.sealer.publish(as_messages(messages), address, wait=wait)

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
        address = check_publisher(
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
        target = await self.sealer.target(address)
        assert self.post is not None
        async with background() as nursery:
            publisher = Publisher(
                self.sealer, self.line, self.post, address, target, nursery, batch
            )
            self.line.window.room_listeners.append(publisher.room_came)
            try:
                yield publisher
                await publisher.flush()
            finally:
                self.line.window.room_listeners.remove(publisher.room_came)
                publisher.close()

    async def seal_again(self, client_id: str | None = None) -> tuple[int, list[CipherBoxError]]:
        """Seals again, for the keys of now, what ``client_id`` (None: any) has not opened: how
        many envelopes, and why others were not.  A revoked recipient is left out; who opened a
        message gets it once.
        """
        post = self.outbox()
        pinned = [pin.bundle.client_id for pin in self.directory.pins.entries()]
        for name in pinned if client_id is None else [client_id]:
            self.directory.refresh(name)
        return await post.seal_again_all(client_id)

    async def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """Who would read what is published there: ``queues`` (each ``queue`` and ``readers``)
        and a ``version``.
        """
        return await self.sealer.resolve(exchange, routing_key)

    async def readers(self, exchange: str, routing_key: str) -> list[str]:
        """Who reads a route, if the allow-list permits them all; NotAllowed names who is not on
        it.
        """
        address = PublishOptions.make(
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
        return list((await self.sealer.target(address, anew=True)).names)

    # -- consuming ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def consume(
        self,
        queue: str | None = None,
        *,
        envelopes: int = CONSUME_ENVELOPES,
        size: int = CONSUME_BYTES,
    ) -> AsyncIterator[Consumer]:
        """Deliveries of a queue (None: this client's mailbox), verified and opened, as an async
        iterator.

        ``envelopes`` and ``size`` (bytes) bound what is handed out and not yet acknowledged.
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
        """As `consume`; take with ``batch()``, and open or refuse each delivery yourself."""
        await self.revocations.ensure()
        consumer = Consumer(self.line, self.opener, queue or self.mailbox, envelopes, size)
        try:
            await consumer.start()
            yield consumer
        finally:
            await consumer.stop()

    async def fetch(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """Takes what waits now, at most so many, verified and opened; acknowledge them, or they
        come again.
        """
        found = await self.fetch_unopened(queue, envelopes)
        self.opener.expect(found)
        return [delivery for delivery in found if await self.opener.admit(delivery)]

    async def fetch_unopened(self, queue: str | None = None, envelopes: int = 1) -> list[Delivery]:
        """As `fetch`, not opened yet."""
        name = queue or self.mailbox
        answer: frames.Fetched = await self.line.request(
            frames.Fetch, queue=name, envelopes=envelopes, size=CONSUME_BYTES
        )
        items = [(e.seq, e.attempt, e.accepted_at, e.log_entry, e.envelope) for e in answer.entries]
        return [Delivery(name, item, None, self.line.link) for item in items]

    async def open(self, delivery: Delivery) -> Delivery:
        """Verifies and opens a delivery taken unopened; EnvelopeError says why not."""
        await self.opener.open(delivery)
        return delivery

    async def ack(self, deliveries: Delivery | Iterable[Delivery]) -> int:
        """Says that the outcome of these is durably recorded here, and waits for HQ's word; how
        many it counted.
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
                answer: frames.AckConfirmed = await self.line.request(
                    frames.Ack, queue=queue, ranges=part
                )
                counted += answer.count
            self._say(own, "Server confirmed ACK for {}", mark=True)
            if self.sessions is not None:
                hashes = [d.sighted.hashes.envelope_hash for d in own if in_sessions(d.sighted)]
                self.sessions.acknowledged(hashes)
            settled(own)
        return counted

    async def nack(
        self, delivery: Delivery, *, requeue: bool = True, outcome: int = 255, reason: str = ""
    ) -> None:
        """Says that this envelope could not be verified or opened here: back to the queue, or to
        the dead letters.
        """
        await self._nack(delivery, requeue, outcome, reason)

    async def resend(
        self, queue: str | None = None, *, sender_id: str = "", envelope_id: bytes = bytes(16)
    ) -> int:
        """Asks for everything unacknowledged again (None: of every queue), or for one envelope;
        how many.
        """
        answer: frames.Ok = await self.line.request(
            frames.Resend, queue=queue or "", sender_id=sender_id, envelope_id=envelope_id
        )
        return answer.count

    async def process(
        self,
        handler: Handler,
        *,
        queues: list[str] | None = None,
        tries: int = 5,
        idle_s: float | None = None,
        incoming: Path | None = None,
        ordered: bool = False,
    ) -> Handlers:
        """Runs ``handler(handled, tx)`` once for each message, in one transaction with what it
        writes with ``tx``.

        ``tx`` is a connection to this home's inbox (sqlite3) inside a transaction: make tables of
        your own in it, and what you write is there exactly once.  The handler may be async.
        `Later` (and OSError) waits without end; what else it raises counts, and after ``tries`` the
        message is parked.  ``ordered``: what waits holds up its sender.  Until cancelled, or
        nothing came for ``idle_s``.  A whole file is one call: ``handled.file`` in ``incoming``.
        """
        from cipherbox.client.receiving.handler import process

        return await process(self, handler, queues, tries, idle_s, incoming, ordered)

    # -- keys --------------------------------------------------------------------------------------

    async def finish_keys(self) -> None:
        """What was left undone of a rotation, renewal or upgrade; trouble is left to the next
        command.
        """
        with suppress(CipherBoxError):
            await self.life.finish()

    async def register(self) -> None:
        """Publishes this client's key bundle again; HQ finds it the same."""
        identity = self.home.identity
        if identity is None or identity.bundle is None:
            raise keyless("an admin's machine holds no keys to publish")
        await self.line.request(frames.Register, bundle=identity.bundle.raw)
        self.events.say(
            RECEIVER, f"Registered key bundle {identity.bundle.sequence} of {self.client_id}"
        )

    async def add_key(self, key: DecryptKey) -> Added:
        """Publishes the next key bundle of this client, with ``key`` behind the others; see
        `ownkeys`.
        """
        return await add_key(self.home, self.directory, self.line, key)

    async def offer_prekeys(self) -> int:
        """Leaves prekeys at HQ, so that others can begin sessions with this client; a receiver does
        it by itself.

        How many one-time prekeys HQ has then.
        """
        if self.prekeys is None:
            raise keyless("an admin's machine holds no keys to publish")
        return await self.prekeys.offer()

    async def bundles(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """The believed bundle of each client, fetched, checked and pinned as needed."""
        return await self.directory.recipients(list(client_ids))

    @property
    def mailbox(self) -> str:
        return f"box.{self.client_id}"

    async def readable_queues(self) -> list[str]:
        """Every queue this client reads, the box for files last, without the box for receipts."""
        rows = await self.list("queues")
        bulk = f"{self.mailbox}.bulk"
        names = [
            str(r["name"])
            for r in rows
            if r.get("owner") == self.client_id or self.client_id in r["readers"]
        ]
        return [*(n for n in names if n not in (bulk, f"{self.mailbox}.sys")), bulk]

    async def _nack(self, delivery: Delivery, requeue: bool, outcome: int, reason: str) -> None:
        await self.line.request(
            frames.Nack,
            queue=delivery.queue,
            seq=delivery.seq,
            requeue=requeue,
            outcome=outcome,
            reason=reason[:1000],
        )
        settled([delivery])

    def _say(self, deliveries: list[Delivery], text: str, *, mark: bool = False) -> None:
        if self.events.heard:
            for delivery in deliveries:
                if not delivery.quiet:
                    self.events.messages(
                        RECEIVER, text, delivery.envelope_id, delivery.count, mark=mark
                    )


@checked
@asynccontextmanager
async def open_client(
    home: Path | str | Home | None = None,
    *,
    on_event: OnEvent | None = None,
    keep_trying: bool = False,
    password: Password | None = None,
    renew: bool = True,
    **overrides: Any,
) -> AsyncIterator[Client]:
    """Opens the client whose files are in ``home`` (None: $CIPHERBOX_HOME, else ~/.cipherbox) and
    connects it.

    ``overrides`` replace settings of client.toml: address, tries, timeout_s, pause_max_s.
    ``on_event`` is given each line the client says while it works (a str; see `events`).  When HQ
    cannot be reached: NetworkError after ``tries`` attempts, or with ``keep_trying`` the block
    begins at once and the connection is made as soon as it can be.

    ``renew``: the certificate renews by itself when two thirds of its life are over, for as long as
    the block runs.  ``password`` opens keys that are under one; without it `[client] password_file`
    or systemd must hold it ready.
    """
    events = Events(on_event)
    files = (
        home
        if isinstance(home, Home)
        else load_home(home, password=password, say=lambda t: events.say(KEYS, t))
    )
    if overrides:
        files = attrs.evolve(files, config=attrs.evolve(files.config, **overrides))
    config = files.config
    log = LogProofVerifier.of(files, events)
    line = ReconnectingConnection(
        config.address,
        files.context,
        events,
        tries=config.tries,
        timeout_s=config.timeout_s,
        pause_max_s=config.pause_max_s,
        settings=config.line,
        log=log,
    )
    client: Client | None = None
    try:
        async with background() as nursery:
            client = Client(files, line, events, nursery, log)
            nursery.start_soon(log.run, line, line.window.covered)
            nursery.start_soon(line.run, nursery)
            if files.identity is not None:
                nursery.start_soon(client.receipts.run)
            nursery.start_soon(client.life.run if renew else client.finish_keys)
            nursery.start_soon(watch, client, renew)
            if files.identity is not None:
                nursery.start_soon(keep_uploaded, client)
            if not keep_trying:
                await line.ready(config.tries)
                await client.finish_keys()
            yield client
            if line.link is not None:
                await client.receipts.rest()
    finally:
        note_replaced(files.path, line.failure, line.links > 0)
        if client is not None and client.sessions is not None:
            client.sessions.close()
        log.close()


__all__ = ["Client", "Confirmation", "Consumer", "Delivery", "Publisher", "open_client"]
