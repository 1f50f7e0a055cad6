"""Publish messages: seal them, keep them in the outbox, send them, wait for HQ's confirm.

HQ refuses an envelope whose route has changed meanwhile (RouteChanged).  Such an envelope was not
accepted, so the messages are sealed again, for the new readers, under a new id.  Every other
repetition sends the same bytes under the same id.

One publish of very many messages becomes several envelopes, one after the other; more than 256
recipients named by id become groups.  An error in the middle leaves those before it published.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

import attrs
import trio

from cipherbox.classes import frozen
from cipherbox.client.connection.confirm_window import (
    Confirmed,
    PendingPublish,
    set_by_outcome,
    unconfirmed_error,
)
from cipherbox.client.connection.reconnecting import Patience, ReconnectingConnection
from cipherbox.client.events import SENDER, Events
from cipherbox.client.home import keyless
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.origins import Origins
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.publishing.sealer import ResolvedRoute, Sealer
from cipherbox.client.publishing.splitting import split
from cipherbox.envelope.ids import message_id
from cipherbox.errors import (
    CipherBoxError,
    CredentialsError,
    RecipientRefuses,
    RecipientRevoked,
    RouteChanged,
    SessionMoved,
    TooLarge,
    UnknownRecipient,
)
from cipherbox.sealing.body import Message, pack


@frozen
class Confirmation:
    """HQ's confirmation that a publish is on stable storage.

    ``accepted_at`` is ms since 1970 by HQ's clock; ``again``: HQ had it already; ``missing``:
    recipients that a partial publish did not reach.  ``envelopes`` has (id, number of messages) in
    order; ``more`` the confirmations of further groups if there were more than 256 recipients.
    ``duplicate``: published before with this idempotency key.
    """

    accepted_at: int
    queues: tuple[str, ...]
    missing: tuple[str, ...]
    again: bool
    envelopes: tuple[tuple[bytes, int], ...]
    more: tuple[Confirmation, ...] = ()
    duplicate: bool = False

    @property
    def envelope_id(self) -> bytes:
        """Return the id of the first envelope, 16 bytes."""
        return self.envelopes[0][0]

    @property
    def message_ids(self) -> tuple[uuid.UUID, ...]:
        """Return an id for each message, in order."""
        return tuple(
            message_id(envelope, i) for envelope, count in self.envelopes for i in range(count)
        )


class EnvelopePublisher:
    """See the module.  One per client; on an admin's machine there is no outbox to publish from."""

    def __init__(
        self,
        sealer: Sealer,
        connection: ReconnectingConnection,
        events: Events,
        outbox_sender: OutboxSender | None,
    ) -> None:
        self._sealer, self.connection, self._events = sealer, connection, events
        self._outbox_sender = outbox_sender

    async def publish(
        self, messages: Sequence[Message], options: PublishOptions, *, wait: bool = True
    ) -> Confirmation:
        """Seal, send, and wait for HQ's confirm; see `Client.publish`."""
        first, *others = [
            await self.publish_group(messages, group, wait) for group in options.groups()
        ]
        return attrs.evolve(first, more=tuple(others))

    async def publish_group(
        self,
        messages: Sequence[Message],
        options: PublishOptions,
        wait: bool,
        *,
        origins: Origins | None = None,
        replaces: bytes | None = None,
    ) -> Confirmation:
        """As `publish`, for at most 256 recipients.  ``origins`` is recorded with the envelope,
        which then is one; it takes the place of envelope ``replaces``.
        """
        try:
            route = await self._sealer.resolve_route(options)
        except CredentialsError as error:
            raise error.copy(f"{error.what}. Nothing was sent, and nothing was kept") from None
        parts = list(split(messages, self.connection.window.envelope_bytes, len(route.bundles)))
        if origins is not None and len(parts) > 1:
            raise TooLarge(
                f"{len(messages)} messages that belong together do not fit into one envelope"
            )
        done: list[PendingPublish] = []
        refused: CipherBoxError | None = None  # because of some recipients
        for part in parts:
            sent = await self._publish_part(part, options, route, wait, origins, replaces)
            done.append(sent.item)
            # what follows goes to the others, too
            route, refused, replaces = sent.route, refused or sent.refused, None
        if refused is not None:
            raise refused
        return _confirmation(done, wait=wait)

    async def _publish_part(
        self,
        messages: Sequence[Message],
        options: PublishOptions,
        route: ResolvedRoute,
        wait: bool,
        origins: Origins | None,
        replaces: bytes | None,
    ) -> _Sent:
        """Publish one envelope; seal it again when its session or its route has changed."""
        plain = pack(messages)
        moved, changes = False, 0
        while True:
            outcome = trio.Event()
            item = self._sealer.seal(
                options,
                route,
                plain,
                len(messages),
                set_by_outcome(outcome),
                replaces=replaces,
                reserve=moved,
                origins=origins,
            )
            try:
                await self._send(item, outcome, wait)
                return _Sent(item, route)
            except SessionMoved:
                moved = True
            except (RecipientRefuses, RecipientRevoked, UnknownRecipient) as error:
                if not item.others:
                    raise
                others = attrs.evolve(options, to=item.others)
                return _Sent(item, await self._sealer.resolve_route(others), error)
            except RouteChanged as error:
                replaces = item.envelope_id
                changes += 1
                try:
                    if changes == self.connection.tries:
                        raise
                    route = await self._sealer.resolve_route(options, anew=True)
                except CipherBoxError:
                    self.outbox().park(item, error)
                    raise

    def outbox(self) -> OutboxSender:
        """Return the sender with its outbox; Forbidden on an admin's machine."""
        if self._outbox_sender is None:
            raise keyless("an admin's machine sends nothing, so it has no outbox")
        return self._outbox_sender

    async def _send(self, item: PendingPublish, outcome: trio.Event, wait: bool) -> None:
        """Keep and send an envelope, and wait for its confirm; Queued if none came in time."""
        connection, outbox_sender = self.connection, self.outbox()
        outbox_sender.add(item)
        if not wait:
            item.disown()
        await outbox_sender.kept(item)
        if not wait:
            self._events.messages(SENDER, "Kept {} in the outbox", item.envelope_id, item.count)
            return
        what = "Sent {}" if connection.current is not None else "Kept {} in the outbox"
        self._events.messages(SENDER, what, item.envelope_id, item.count)
        if not await outbox_sender.confirmed(item, outcome, Patience(connection)):
            item.trouble = item.trouble or connection.trouble
            since = (
                time.strftime("%H:%M:%S", time.localtime(connection.away_since))
                if connection.away
                else ""
            )
            raise unconfirmed_error(
                item, f"{connection.tries} tries of {connection.timeout_s:g} s", since
            )
        self._events.messages(
            SENDER, "Server ACK received for {}", item.envelope_id, item.count, mark=True
        )


@frozen
class _Sent:
    """An envelope that was sent.  ``refused``: HQ refused some of its recipients; ``route`` is that
    of what follows.
    """

    item: PendingPublish
    route: ResolvedRoute
    refused: CipherBoxError | None = None


def _confirmation(items: Sequence[PendingPublish], *, wait: bool) -> Confirmation:
    """Return the confirmation of one publish that became these envelopes.  Without ``wait`` it is
    the outbox's, even if HQ was faster.
    """
    kept = Confirmed(0, False, (), ())
    results = [(item.result if wait else None) or kept for item in items]
    return Confirmation(
        results[-1].accepted_at,
        tuple(dict.fromkeys(q for result in results for q in result.queues)),
        tuple(dict.fromkeys(m for result in results for m in result.missing)),
        all(result.again for result in results),
        tuple((item.envelope_id, item.count) for item in items),
    )
