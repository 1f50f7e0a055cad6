"""The client: `open_client` and `Client`, all calls of a program behind one object.

    async with open_client() as client:
        confirmation = await client.publish("Sample 17 is ready", to=["CA-RC"])
        async with client.consume() as deliveries:
            async for delivery in deliveries:
                print(delivery.sender_id, delivery.messages[0].content)
                await client.ack(delivery)

One client has one connection, which reconnects.  Every call is bounded: ``tries`` attempts of
``timeout_s``.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio

from cipherbox.checks import checked
from cipherbox.client.admin import AdminCalls
from cipherbox.client.connection.confirm_window import PendingPublish
from cipherbox.client.connection.connection import Connection
from cipherbox.client.connection.reconnecting import ConnectionObserver, ReconnectingConnection
from cipherbox.client.events import KEYS, LINE, RECEIVER, SENDER, EventKind, Events, OnEvent
from cipherbox.client.home import Home, keyless, load_home, note_replaced
from cipherbox.client.hq_time import HqClock
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
from cipherbox.client.publishing.publish import Confirmation, EnvelopePublisher
from cipherbox.client.publishing.publisher import Publisher
from cipherbox.client.publishing.routes import Routes
from cipherbox.client.publishing.sealer import Sealer
from cipherbox.client.receiving.calls import ConsumingCalls, send_nack
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.contacts import Contacts
from cipherbox.client.receiving.contacts_upload import keep_uploaded
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.handler import Handler, Handlers, process
from cipherbox.client.receiving.opening import Opener
from cipherbox.client.receiving.receipts import ReceiptConsumer
from cipherbox.client.sessions.prekeys import Prekeys
from cipherbox.client.sessions.sessions import Sessions, settings_of
from cipherbox.client.watch import watch
from cipherbox.concurrency import background
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.ids import id_time_ms
from cipherbox.errors import CipherBoxError, ClockSkew, StoreError
from cipherbox.sealing.identity import DecryptKey
from cipherbox.wire import frames


class ClientObserver(ConnectionObserver):
    """What a client does with each connection to HQ, and with what HQ says about its envelopes."""

    def __init__(
        self, revocations: Revocations, outbox_sender: OutboxSender | None, hq_clock: HqClock
    ) -> None:
        self._revocations, self._outbox_sender = revocations, outbox_sender
        self._hq_clock = hq_clock

    def accept(self, connection: Connection) -> None:
        self._hq_clock.shown(connection.welcome.server_time)
        self._revocations.check_hq(connection)

    async def opened(self, welcome: frames.Welcome) -> None:
        if self._outbox_sender is not None:
            with suppress(StoreError):  # it is compared again on the next connection
                await self._outbox_sender.compare(welcome.history)
        await self.revocation_list()

    async def revocation_list(self, number: int = 0) -> None:
        """Send nothing more to whoever was revoked; seal what it has not opened for the others."""
        with suppress(CipherBoxError):  # on the next connection, or at the next publish
            await self._revocations.ensure(number)
            if self._outbox_sender is not None:
                await self._outbox_sender.without_revoked()

    def proven(self, frame: frames.Confirm, items: list[PendingPublish]) -> None:
        if self._outbox_sender is not None:
            self._outbox_sender.proven(frame, items)

    def settled(self, item: PendingPublish) -> None:
        if isinstance(item.error, ClockSkew):
            self._hq_clock.refused(id_time_ms(item.envelope_id))
        if self._outbox_sender is not None:
            self._outbox_sender.settled(item)
        else:
            super().settled(item)


def _sessions(home: Home) -> Sessions | None:
    """Return the sessions of this home; None on an admin's machine, which has no identity."""
    if home.identity is None:
        return None
    return Sessions(home.path, home.secret_box.session_box, home.identity, settings_of(home.config))


@checked
class Client(ConsumingCalls, Tracking, AdminCalls):
    """An open client: ``home`` has its files, ``directory`` its pinned keys, ``allow`` its
    allow-list.
    """

    def __init__(
        self,
        home: Home,
        connection: ReconnectingConnection,
        events: Events,
        nursery: trio.Nursery,
        log: LogProofVerifier,
    ) -> None:
        self.home, self.connection, self.events, self.log = home, connection, events, log
        self._welcome: frames.Welcome | None = None
        self.revocations = Revocations(home.path, home.issuing, connection)
        self.directory = Directory(
            Pins(home.path), home.root, self.revocations, connection, events, log
        )
        self.allow = AllowList(home.path)
        self.sessions = _sessions(home)
        self.prekeys = None if self.sessions is None else Prekeys(self.sessions, connection, events)
        self.key_lifecycle = KeyLifecycle(
            home,
            connection,
            events,
            self.directory,
            published=None if self.prekeys is None else self.prekeys.replace_if_rotated,
        )
        self.opener = Opener(
            home.identity,
            self.directory,
            events,
            partial(send_nack, connection),
            nursery,
            LogOrder(self.directory.is_revoked, connection, log),
            Contacts(home.path),
            self.sessions,
            refresh=self.key_lifecycle.refresh,
        )
        self.hq_clock = HqClock(
            home.path, lambda text: events.emit(LINE, text, kind=EventKind.CLOCK)
        )
        self.sealer = Sealer(
            home.identity,
            self.directory,
            self.allow,
            connection,
            events,
            home.secret_box,
            Routes(home.path),
            clock_ms=self.hq_clock.now_ms,
            clock_is_wrong=lambda: self.hq_clock.wrong_by_ms != 0,
            prekeys=self.prekeys,
        )
        self.outbox_sender = self._outbox_sender()
        self.publishing = EnvelopePublisher(self.sealer, connection, events, self.outbox_sender)
        self.receipts = ReceiptConsumer(self)
        self.observer = ClientObserver(self.revocations, self.outbox_sender, self.hq_clock)
        if self.outbox_sender is not None:
            nursery.start_soon(self.outbox_sender.run)

    def _outbox_sender(self) -> OutboxSender | None:
        """Return what keeps and sends envelopes; None on an admin's machine."""
        home = self.home
        if self.sessions is None:
            return None
        return OutboxSender(
            self.connection,
            Outbox(
                home.path,
                home.config.keep_until,
                self.sessions.chains,
                home.hides,
                lambda text: self.events.emit(SENDER, text),
            ),
            self.events,
            self.sealer.seal_again,
            self.directory.revoked,
            self.sessions,
            home.signed_now,
        )

    @property
    def client_id(self) -> str:
        return self.home.config.client_id

    @property
    def role(self) -> str:
        """Return client or admin, as HQ states; before the first connection, as configured."""
        return self.hq.role if self.hq is not None else self.home.config.role

    @property
    def hq(self) -> frames.Welcome | None:
        """Return HQ's newest WELCOME: name, limits, clock."""
        if self.connection.current is not None:
            self._welcome = self.connection.current.welcome
        return self._welcome

    # -- receiving ---------------------------------------------------------------------------------

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
        """Run ``handler(handled, tx)`` once for each message, in one transaction with what it
        writes with ``tx``, until cancelled or idle for ``idle_s``.

        ``tx`` is a connection to this home's inbox (sqlite3) inside a transaction: create tables of
        your own, and what you write is there exactly once.  The handler may be async.  `Later` and
        OSError are retried without limit; after ``tries`` other errors the message is parked.
        ``ordered``: a message that waits holds up its sender's next ones.  A whole file is one
        call: ``handled.file`` in ``incoming``.
        """
        return await process(self, handler, queues, tries, idle_s, incoming, ordered)

    # -- keys --------------------------------------------------------------------------------------

    async def finish_keys(self) -> None:
        """Finish an interrupted rotation, renewal or upgrade; on an error the next command does."""
        with suppress(CipherBoxError):
            await self.key_lifecycle.finish()

    async def register(self) -> None:
        """Publish this client's key bundle again, unchanged."""
        identity = self.home.identity
        if identity is None or identity.bundle is None:
            raise keyless("an admin's machine holds no keys to publish")
        await self.connection.request(frames.Register, bundle=identity.bundle.raw)
        self.events.emit(
            RECEIVER, f"Registered key bundle {identity.bundle.sequence} of {self.client_id}"
        )

    async def add_key(self, key: DecryptKey) -> Added:
        """Publish the next key bundle of this client, with ``key`` added; see `keys.own`."""
        return await add_key(self.home, self.directory, self.connection, key)

    async def offer_prekeys(self) -> int:
        """Upload prekeys to HQ, so that others can begin sessions with this client; return the
        number of one-time prekeys HQ has.  A receiver does this automatically.
        """
        if self.prekeys is None:
            raise keyless("an admin's machine holds no keys to publish")
        return await self.prekeys.offer()

    async def bundles(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """Return the pinned bundle of each client, fetched and verified as needed."""
        return await self.directory.recipients(list(client_ids))

    async def readable_queues(self) -> list[str]:
        """Return every queue this client reads, the mailbox for files last, without `.sys`."""
        rows = await self.list("queues")
        bulk = f"{self.mailbox}.bulk"
        names = [
            str(r["name"])
            for r in rows
            if r.get("owner") == self.client_id or self.client_id in r["readers"]
        ]
        return [*(n for n in names if n not in (bulk, f"{self.mailbox}.sys")), bulk]


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
    """Open the client whose files are in ``home`` (None: $CIPHERBOX_HOME, else ~/.cipherbox) and
    connect it.

    ``overrides`` replace settings of client.toml: address, tries, timeout_s, pause_max_s.
    ``on_event`` is called with each event (a str; see `events`).  When HQ is unreachable, raise
    NetworkError after ``tries`` attempts; with ``keep_trying`` the block begins immediately, and
    the connection is opened as soon as possible.

    ``renew``: renew the certificate automatically after two thirds of its lifetime, for as long as
    the block runs.  ``password`` decrypts the keys; without it, `[client] password_file` or systemd
    must supply it.
    """
    events = Events(on_event)
    files = (
        home
        if isinstance(home, Home)
        else load_home(home, password=password, say=lambda t: events.emit(KEYS, t))
    )
    if overrides:
        files = attrs.evolve(files, config=attrs.evolve(files.config, **overrides))
    config = files.config
    log = LogProofVerifier.of(files, events)
    connection = ReconnectingConnection.of(config, files.context, events, log)
    client: Client | None = None
    try:
        async with background() as nursery:
            client = Client(files, connection, events, nursery, log)
            _start_tasks(client, nursery, renew)
            if not keep_trying:
                await connection.ready(config.tries)
                await client.finish_keys()
            yield client
            if connection.current is not None:
                await client.receipts.finish()
    finally:
        note_replaced(files.path, connection.failure, connection.opened > 0)
        if client is not None and client.sessions is not None:
            client.sessions.close()
        log.close()


def _start_tasks(client: Client, nursery: trio.Nursery, renew: bool) -> None:
    """Start what runs for as long as a client is open."""
    connection, log = client.connection, client.log
    nursery.start_soon(log.run, connection, connection.window.covered)
    nursery.start_soon(connection.run, nursery, client.observer)
    nursery.start_soon(client.key_lifecycle.run if renew else client.finish_keys)
    nursery.start_soon(watch, client, renew)
    if client.home.identity is not None:
        nursery.start_soon(client.receipts.run)
        nursery.start_soon(keep_uploaded, client)


__all__ = ["Client", "Confirmation", "Consumer", "Delivery", "Publisher", "open_client"]
