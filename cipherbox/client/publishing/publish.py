"""From messages to confirmed envelopes: who receives them, with which keys, sealed, sent,
confirmed.

Recipients are named by id, or by a route: then HQ says who reads it, the allow-list says whether
they may, and HQ refuses the envelope when that changed meanwhile (RouteChanged).  Such an envelope
was not accepted, so the messages are sealed anew, for the new readers, under a fresh id.  Every
other repetition sends the same bytes under the same id.

One publish of very many messages becomes several envelopes, one after the other; more than 256
recipients named by id become groups.  An error in the middle leaves those before it published.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import trio

from cipherbox import clock
from cipherbox.client.connection.confirm_window import (
    Confirmed,
    PendingPublish,
    kept_error,
    unconfirmed_error,
)
from cipherbox.client.connection.reconnecting import NOT_LET_IN, Patience, ReconnectingConnection
from cipherbox.client.events import SENDER, Events
from cipherbox.client.home import keyless
from cipherbox.client.keys.directory import Directory
from cipherbox.client.options import body_cipher, stanza_type
from cipherbox.client.outbox.origins import Origins
from cipherbox.client.outbox.rows import OutboxEntry, Row
from cipherbox.client.publishing.allow_list import AllowList
from cipherbox.client.publishing.routes import BOXES, Routes, check_one_reader, is_mailbox
from cipherbox.client.publishing.splitting import split
from cipherbox.client.sessions.prekeys import Prekeys
from cipherbox.client.sessions.sessions import Speaker, in_sessions
from cipherbox.envelope.bundle import BundleKey, KeyBundle
from cipherbox.envelope.ids import EnvelopeIds, message_id
from cipherbox.envelope.stanza_types import POST_QUANTUM, StanzaType
from cipherbox.envelope.suites import BodyCipher
from cipherbox.errors import (
    BundleError,
    CipherBoxError,
    CredentialsError,
    Forbidden,
    InvalidRequest,
    NoRoute,
    RecipientRefuses,
    RecipientRevoked,
    RouteChanged,
    SessionMoved,
    TooLarge,
    UnknownRecipient,
)
from cipherbox.limits import LIMITS, check_client_id, check_name
from cipherbox.sealing.body import Message, pack, salted
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.sealing.open import inspect, open_plain
from cipherbox.sealing.seal import choose_keys, seal
from cipherbox.wire import frames

if TYPE_CHECKING:
    from cipherbox.client.outbox.sender import OutboxSender

PARTIAL = 1  # flag of SEND


@attrs.frozen
class Confirmation:
    """HQ's word that a publish is on stable storage.

    ``accepted_at`` is ms since 1970 by HQ's clock; ``again``: HQ had it already; ``missing``:
    recipients a partial publish did not reach.  ``envelopes`` holds (id, number of messages) in
    order; ``more`` has the confirmations of further groups when there were more than 256
    recipients.  ``duplicate``: published before with this idempotency key.
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
        """Of the first envelope, 16 bytes."""
        return self.envelopes[0][0]

    @property
    def message_ids(self) -> tuple[uuid.UUID, ...]:
        """One for each message, in order."""
        return tuple(
            message_id(envelope, i) for envelope, count in self.envelopes for i in range(count)
        )


@attrs.frozen
class ResolvedRoute:
    """Where envelopes go, resolved: bundles and keys of the recipients, the route and its
    version.
    """

    exchange: str
    routing_key: str
    version: int
    bundles: tuple[KeyBundle, ...]
    keys: tuple[BundleKey, ...]
    names: tuple[str, ...]
    in_sessions: bool = False


@attrs.frozen
class PublishOptions:
    """What a caller says about where to; `Sealer.target` resolves it."""

    to: tuple[str, ...] | None
    exchange: str = ""
    routing_key: str = ""
    stanza: StanzaType | None = None
    cipher: BodyCipher = BodyCipher.AES_256_GCM
    allow_mixed: bool = False
    expires_at: int = 0
    flags: int = 0

    @classmethod
    def make(
        cls,
        to: str | Sequence[str] | None,
        exchange: str,
        routing_key: str,
        box: str,
        *,
        stanza: int | str | None,
        cipher: int | str | None,
        allow_mixed: bool,
        expires_at: int,
        partial: bool,
    ) -> PublishOptions:
        """Checks the arguments of `publish`; InvalidRequest says what does not go together."""
        if box not in BOXES:
            raise InvalidRequest(f"a mailbox is '', 'bulk' or 'sys', not {box!r}")
        if box and (exchange or routing_key):
            raise InvalidRequest(
                "a box belongs to a recipient's mailbox; it does not go with an exchange or a key"
            )
        names = None if to is None else tuple(dict.fromkeys([to] if isinstance(to, str) else to))
        if names is not None:
            for name in names:
                check_client_id(name)
        if not names and not exchange and not routing_key:
            raise InvalidRequest(
                "say who receives it: to=[client ids], or an exchange with its routing key"
            )
        if exchange:
            check_name(exchange, "exchange name")
        if routing_key:
            check_name(routing_key, "routing key")
        return cls(
            names or None,
            exchange,
            routing_key or BOXES[box],
            stanza_type(stanza),
            body_cipher(cipher),
            allow_mixed,
            expires_at,
            PARTIAL if partial else 0,
        )

    @property
    def to_mailboxes(self) -> bool:
        return is_mailbox(self.exchange, self.routing_key)

    def groups(self) -> list[PublishOptions]:
        """This address, or several of at most 256 recipients each."""
        if self.to is None or len(self.to) <= LIMITS.recipients:
            return [self]
        if not self.to_mailboxes:
            raise InvalidRequest(f"a route takes at most {LIMITS.recipients} recipients at once")
        step = LIMITS.recipients
        return [attrs.evolve(self, to=self.to[i : i + step]) for i in range(0, len(self.to), step)]


class Sealer:
    """Resolves addresses and seals for them.  One per client; holds what HQ answered about
    routes.
    """

    def __init__(
        self,
        identity: Identity | None,
        directory: Directory,
        allow: AllowList,
        line: ReconnectingConnection,
        events: Events,
        keeper: LocalSecretBox,
        routes: Routes,
        clock_ms: Callable[[], int] = clock.now_ms,
        prekeys: Prekeys | None = None,
    ) -> None:
        self._prekeys = prekeys
        self._identity, self._directory, self._allow, self._line = identity, directory, allow, line
        self.events = events
        self.post: OutboxSender | None = None  # set by the client
        self._keeper = keeper
        self._clock_ms = clock_ms
        self._ids = EnvelopeIds(clock_ms)
        self._routes: dict[tuple[str, str], frames.Route] = {}
        self._kept_routes = routes

    async def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """HQ's answer: the queues of a route and who reads them."""
        answer: frames.Route = await self._line.request(
            frames.Resolve, exchange=exchange, routing_key=routing_key
        )
        return answer

    async def _resolved(self, where: tuple[str, str]) -> frames.Route:
        try:
            route = await self.resolve(*where)
        except NOT_LET_IN:
            kept = self._kept_routes.get(where)
            if kept is None:
                raise
            return kept
        route.correlation = 0
        self._kept_routes.put(where, route)
        return route

    async def target(self, address: PublishOptions, *, anew: bool = False) -> ResolvedRoute:
        """Readers, permission, keys.  ``anew``: ask HQ again, the route has changed."""
        if self._identity is None:
            raise keyless()
        version, names = 0, address.to
        if not address.to_mailboxes:
            where = (address.exchange, address.routing_key)
            if anew or where not in self._routes:
                self._routes[where] = await self._resolved(where)
            route = self._routes[where]
            version = route.version
            if address.stanza == StanzaType.RATCHET:
                check_one_reader(route)
            if names is None:
                names = tuple(
                    dict.fromkeys(reader for queue in route.queues for reader in queue.readers)
                )
                if not names:
                    del self._routes[where]
                    raise NoRoute(
                        f"no queue with a reader is bound to exchange {where[0]!r} with key "
                        f"{where[1]!r}"
                    )
                self._allow.check(address.exchange, names)
                if len(names) > LIMITS.recipients:
                    raise InvalidRequest(
                        f"{len(names)} clients read this route; an envelope has {LIMITS.recipients}"
                    )
        assert names is not None
        bundles = await self._directory.recipients(names)
        if address.stanza == StanzaType.RATCHET:
            if self._prekeys is None:
                raise Forbidden("this client has no sessions")
            bundles = await self._prekeys.ensured(bundles, self._directory)
            return ResolvedRoute(
                address.exchange,
                address.routing_key,
                version,
                tuple(bundles),
                (),
                names,
                in_sessions=True,
            )
        keys = choose_keys(bundles, stanza=address.stanza, allow_mixed=address.allow_mixed)
        return ResolvedRoute(
            address.exchange, address.routing_key, version, tuple(bundles), tuple(keys), names
        )

    def seal(
        self,
        address: PublishOptions,
        target: ResolvedRoute,
        plain: bytes,
        count: int,
        settled: Callable[[PendingPublish], None] | None,
        *,
        replaces: bytes | None = None,
        before: Row | None = None,
        reserve: bool = False,
    ) -> PendingPublish:
        """One envelope, ready for the post.  ``reserve``: see `Sessions.speakers`.

        ``replaces``: an envelope that HQ did not take, whose place it takes.  ``before``: this is
        its next generation.
        """
        identity = self._identity
        if identity is None:
            raise Forbidden
        now = self._clock_ms()
        if address.expires_at and address.expires_at <= now:
            raise InvalidRequest("the messages would have expired already")
        if identity.bundle is not None and now > identity.bundle.ends_at:
            raise BundleError("this client's own keys have ended; its certificate must be renewed")
        sealed_at = now if before is None else before.sealed_at
        generation = 0 if before is None else before.generation + 1
        with self._speakers(target, reserve) as speakers:
            sealed = seal(
                identity,
                target.bundles,
                plain,
                count,
                envelope_id=self._ids.next() if before is None else before.envelope_id,
                sealed_at=sealed_at,
                exchange=target.exchange,
                routing_key=target.routing_key,
                expires_at=address.expires_at,
                generation=generation,
                cipher=address.cipher,
                keys=target.keys,
                speakers=speakers,
            )
        if self.events.heard and target.routing_key not in (".bulk", ".sys"):
            self.events.messages(
                SENDER, "Encrypted {} for " + ", ".join(target.names), sealed.envelope_id, count
            )
        fresh = OutboxEntry(
            sealed.raw,
            sealed.envelope_id,
            generation,
            count,
            target.exchange,
            target.routing_key,
            target.names,
            address.flags,
            target.version,
            sealed_at,
            sealed.envelope_hash,
            self._keeper.wrap(sealed.content_key, sealed.envelope_id, generation),
            None,
            replaces,
            tuple(step for speaker in speakers or () for step in speaker.turned),
            commitment=sealed.commitment,
        )
        return PendingPublish(
            sealed.raw,
            sealed.envelope_id,
            count,
            settled,
            flags=address.flags,
            route_version=target.version,
            fresh=fresh,
            generation=generation,
        )

    @contextmanager
    def _speakers(self, target: ResolvedRoute, reserve: bool) -> Iterator[list[Speaker] | None]:
        if not target.in_sessions or self._prekeys is None:
            yield None
            return
        names = [bundle.client_id for bundle in target.bundles]
        with self._prekeys.sessions.speakers(names, reserve=reserve) as found:
            yield found

    async def seal_again(
        self, row: Row, raw: bytes, without: Collection[str] = ()
    ) -> PendingPublish:
        """The next generation of an envelope of the outbox, for those who read its route now.

        ``without``: recipients that were revoked.  The same plaintext, commitment, id, time and
        end; fresh keys.  What the sender chose or allowed before holds, and where a chosen key is
        gone its owner's preferred one is used; what went through a session goes through a fresh
        one.  Raises what stops a publish, or DecryptionFailed.
        """
        sighted = inspect(raw)
        prefix = sighted.layout.prefix
        key = self._keeper.unwrap(row.content_key or b"", row.envelope_id, row.generation)
        plain = salted(open_plain(sighted, key))
        by_route = not is_mailbox(row.exchange, row.routing_key)
        kinds = {StanzaType(r.stanza_type) for r in prefix.recipients}
        stanza = next(iter(kinds)) if len(kinds) == 1 and not kinds & POST_QUANTUM else None
        left = row.recipients if by_route else tuple(n for n in row.recipients if n not in without)
        if not left:
            raise RecipientRevoked(f"the certificate of {', '.join(row.recipients)} was revoked")
        if in_sessions(sighted) and self._prekeys is not None:
            stanza = StanzaType.RATCHET
            for name in left:
                self._prekeys.sessions.retire(name, raw)
        address = PublishOptions(
            None if by_route else left,
            row.exchange,
            row.routing_key,
            stanza,
            BodyCipher(prefix.body_cipher),
            expires_at=prefix.expires_at,
            flags=row.flags,
            allow_mixed=bool(kinds & POST_QUANTUM) and not kinds <= POST_QUANTUM,
        )
        try:
            target = await self.target(address, anew=True)
        except BundleError:
            if stanza == StanzaType.RATCHET:
                raise  # whoever hands out bad prekeys does not choose a weaker way
            target = await self.target(attrs.evolve(address, stanza=None), anew=True)
        return self.seal(address, target, plain, row.messages, None, before=row, reserve=True)

    # -- publish -----------------------------------------------------------------------------------

    async def publish(
        self, messages: Sequence[Message], address: PublishOptions, *, wait: bool = True
    ) -> Confirmation:
        """Seals, sends, waits for HQ's word; see `Client.publish`."""
        first, *others = [
            await self.publish_group(messages, group, wait) for group in address.groups()
        ]
        return attrs.evolve(first, more=tuple(others))

    async def publish_group(
        self,
        messages: Sequence[Message],
        address: PublishOptions,
        wait: bool,
        *,
        beside: Origins | None = None,
        replaces: bytes | None = None,
    ) -> Confirmation:
        """As `publish`, for at most 256 recipients.  ``beside`` is recorded with the envelope,
        which then is one.
        """
        done: list[tuple[bytes, int, Confirmed]] = []
        refused: CipherBoxError | None = None  # because of some recipients
        try:
            target = await self.target(address)
        except CredentialsError as error:
            raise type(error)(
                f"{error}. Nothing was sent, and nothing was kept", error.detail
            ) from None
        parts = list(split(messages, self._line.window.envelope_bytes, len(target.bundles)))
        if beside is not None and len(parts) > 1:
            raise TooLarge(
                f"{len(messages)} messages that belong together do not fit into one envelope"
            )
        for part in parts:
            plain = pack(part)
            moved, changes = False, 0
            while True:
                item = self.seal(
                    address, target, plain, len(part), None, replaces=replaces, reserve=moved
                )
                if item.fresh is not None and beside is not None:
                    item.fresh = item.fresh._replace(beside=beside)
                try:
                    await self._send(item, wait)
                    break
                except SessionMoved:
                    moved = True
                except (RecipientRefuses, RecipientRevoked, UnknownRecipient) as error:
                    if not item.others:
                        raise
                    refused = refused or error  # what follows goes to the others, too
                    target = await self.target(attrs.evolve(address, to=item.others))
                    break
                except RouteChanged as error:
                    replaces = item.envelope_id
                    changes += 1
                    try:
                        if changes == self._line.tries:
                            raise
                        target = await self.target(address, anew=True)
                    except CipherBoxError:
                        self._kept_by().aside(item, error)
                        raise
            replaces = None
            done.append((item.envelope_id, item.count, item.result or Confirmed(0, False, (), ())))
        if refused is not None:
            raise refused
        last = done[-1][2]
        return Confirmation(
            last.accepted_at,
            tuple(dict.fromkeys(q for _, _, r in done for q in r.queues)),
            tuple(dict.fromkeys(m for _, _, r in done for m in r.missing)),
            all(r.again for _, _, r in done),
            tuple((envelope_id, count) for envelope_id, count, _ in done),
        )

    def _kept_by(self) -> OutboxSender:
        if self.post is None:
            raise keyless()
        return self.post

    async def _send(self, item: PendingPublish, wait: bool) -> None:
        """Keeps and sends an envelope, and waits for HQ's word.  Queued: it waits in the outbox."""
        ready = trio.Event()
        line, post = self._line, self._kept_by()
        item.settled = lambda _: ready.set()
        post.add(item)
        await post.kept(item)
        if not wait:
            item.owner = None
            self.events.messages(SENDER, "Kept {} in the outbox", item.envelope_id, item.count)
            return
        what = "Sent {}" if line.link is not None else "Kept {} in the outbox"
        self.events.messages(SENDER, what, item.envelope_id, item.count)
        patience = Patience(line)
        try:
            while not ready.is_set() and not patience.ended:
                await patience.wait(ready)
        finally:
            item.owner = None  # the post goes on with it
        if item.error is not None:
            raise kept_error(item, item.error)
        if item.result is None:
            item.trouble = item.trouble or line.trouble
            since = time.strftime("%H:%M:%S", time.localtime(line.away_since)) if line.away else ""
            raise unconfirmed_error(item, f"{line.tries} tries of {line.timeout_s:g} s", since)
        self.events.messages(
            SENDER, "Server ACK received for {}", item.envelope_id, item.count, mark=True
        )
