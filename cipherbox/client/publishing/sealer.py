"""Resolve where messages go, and seal envelopes for those who read them there.

Recipients are named by id, or by a route: then HQ says who reads it, and the allow-list whether
they may.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext

import attrs

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.client.connection.confirm_window import OnOutcome, PendingPublish
from cipherbox.client.connection.reconnecting import HQ_UNAVAILABLE, ReconnectingConnection
from cipherbox.client.events import SENDER, Events
from cipherbox.client.home import keyless
from cipherbox.client.keys.directory import Directory
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.origins import Origins
from cipherbox.client.outbox.rows import OutboxEntry, Row
from cipherbox.client.publishing.allow_list import AllowList
from cipherbox.client.publishing.routes import Routes, check_one_reader, is_mailbox
from cipherbox.client.sessions.prekeys import Prekeys
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.client.sessions.sessions import SendingChain, in_sessions
from cipherbox.envelope.bundle import BundleKey, KeyBundle
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.stanza_types import POST_QUANTUM, StanzaType
from cipherbox.envelope.suites import BodyCipher
from cipherbox.errors import (
    BundleError,
    BundleExpired,
    BundleNotCertified,
    ClockSkew,
    Forbidden,
    InvalidRequest,
    NoRoute,
    RecipientRevoked,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import salted
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.local_secret_box import LocalSecretBox
from cipherbox.sealing.open import open_plain, parse_envelope
from cipherbox.sealing.seal import Sealed, choose_keys, seal
from cipherbox.wire import frames

_NO_CHAINS: AbstractContextManager[None] = nullcontext()


@frozen
class ResolvedRoute:
    """A resolved route: its version, and the recipients with their bundles and keys."""

    exchange: str
    routing_key: str
    version: int
    bundles: tuple[KeyBundle, ...]
    keys: tuple[BundleKey, ...]
    names: tuple[str, ...]
    in_sessions: bool = False


class Sealer:
    """Resolves routes and seals for their readers.  One per client; it caches HQ's answers."""

    def __init__(
        self,
        identity: Identity | None,
        directory: Directory,
        allow: AllowList,
        connection: ReconnectingConnection,
        events: Events,
        secret_box: LocalSecretBox,
        routes: Routes,
        clock_ms: Callable[[], int] = clock.now_ms,
        clock_is_wrong: Callable[[], bool] = bool,
        prekeys: Prekeys | None = None,
    ) -> None:
        self._prekeys = prekeys
        self._identity, self._directory, self._allow, self._connection = (
            identity,
            directory,
            allow,
            connection,
        )
        self.events = events
        self._secret_box = secret_box
        self._clock_ms, self._clock_is_wrong = clock_ms, clock_is_wrong
        self._ids = EnvelopeIds(clock_ms)
        self._routes: dict[tuple[str, str], frames.Route] = {}
        self._kept_routes = routes

    async def resolve(self, exchange: str, routing_key: str) -> frames.Route:
        """Return HQ's answer: the queues of a route and their readers."""
        answer: frames.Route = await self._connection.request(
            frames.Resolve, exchange=exchange, routing_key=routing_key
        )
        return answer

    async def _resolved(self, where: tuple[str, str]) -> frames.Route:
        try:
            route = await self.resolve(*where)
        except HQ_UNAVAILABLE:
            kept = self._kept_routes.get(where)
            if kept is None:
                raise
            return kept
        route.correlation = 0
        self._kept_routes.put(where, route)
        return route

    async def resolve_route(self, options: PublishOptions, *, anew: bool = False) -> ResolvedRoute:
        """Resolve readers and keys, and check the allow-list.  ``anew``: ask HQ again."""
        if self._identity is None:
            raise keyless()
        version, names = 0, options.to
        if not options.to_mailboxes:
            where = (options.exchange, options.routing_key)
            if anew or where not in self._routes:
                self._routes[where] = await self._resolved(where)
            route = self._routes[where]
            version = route.version
            if options.stanza == StanzaType.RATCHET:
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
                self._allow.check(options.exchange, names)
                if len(names) > LIMITS.recipients:
                    raise InvalidRequest(
                        f"{len(names)} clients read this route; an envelope has {LIMITS.recipients}"
                    )
        assert names is not None
        bundles = await self._recipients(names)
        if options.stanza == StanzaType.RATCHET:
            if self._prekeys is None:
                raise Forbidden("this client has no sessions")
            bundles = await self._prekeys.ensured(bundles, self._directory)
            return ResolvedRoute(
                options.exchange,
                options.routing_key,
                version,
                tuple(bundles),
                (),
                names,
                in_sessions=True,
            )
        keys = choose_keys(bundles, stanza=options.stanza, allow_mixed=options.allow_mixed)
        return ResolvedRoute(
            options.exchange, options.routing_key, version, tuple(bundles), tuple(keys), names
        )

    async def _recipients(self, names: Sequence[str]) -> list[KeyBundle]:
        """Return the recipients' bundles. By a clock that is known to be wrong they may have ended,
        or not have begun: then raise ClockSkew, for which envelopes and files wait.
        """
        try:
            return await self._directory.recipients(names)
        except (BundleExpired, BundleNotCertified) as error:
            if not self._clock_is_wrong():
                raise
            raise ClockSkew(
                f"{error}, by this machine's clock, which differs from HQ's by more than an hour",
                remedy="set the clock; what waits is sent automatically then",
            ) from error

    def seal(
        self,
        options: PublishOptions,
        route: ResolvedRoute,
        plain: bytes,
        count: int,
        on_outcome: OnOutcome | None,
        *,
        replaces: bytes | None = None,
        before: Row | None = None,
        reserve: bool = False,
        origins: Origins | None = None,
        keep: bool = True,
    ) -> PendingPublish:
        """Return one sealed envelope; with ``keep`` it has an outbox entry.

        ``replaces`` is an envelope that HQ refused, whose place it takes; ``before`` the generation
        before it; ``origins`` is recorded with it.  ``reserve``: see `sending_chains`.
        """
        now = self._clock_ms()
        identity = self._valid_identity(options, now)
        sealed_at = now if before is None else before.sealed_at
        generation = 0 if before is None else before.generation + 1
        with self._sending_chains(route, reserve) as sending_chains:
            sealed = seal(
                identity,
                route.bundles,
                plain,
                count,
                envelope_id=self._ids.next() if before is None else before.envelope_id,
                sealed_at=sealed_at,
                exchange=route.exchange,
                routing_key=route.routing_key,
                expires_at=options.expires_at,
                generation=generation,
                cipher=options.cipher,
                keys=route.keys,
                sending_chains=sending_chains,
                prompt_receipt=options.prompt_receipt,
            )
        steps = tuple(step for chain in sending_chains or () for step in chain.steps)
        kept = sealed, generation, route, options.flags, sealed_at, steps, replaces, origins
        entry = self._entry(*kept) if keep else None
        if self.events.has_listener and route.routing_key not in (".bulk", ".sys"):
            self.events.messages(
                SENDER, "Encrypted {} for " + ", ".join(route.names), sealed.envelope_id, count
            )
        return PendingPublish(
            sealed.raw,
            sealed.envelope_id,
            count,
            on_outcome,
            flags=options.flags,
            route_version=route.version,
            entry=entry,
            generation=generation,
            envelope_hash=sealed.envelope_hash,
        )

    def _valid_identity(self, options: PublishOptions, now: int) -> Identity:
        """Return the identity to sign with; raise unless it and the messages are valid now."""
        identity = self._identity
        if identity is None:
            raise Forbidden
        if options.expires_at and options.expires_at <= now:
            raise InvalidRequest("the messages would have expired already")
        if identity.bundle is not None and now > identity.bundle.ends_at:
            raise BundleError("this client's own keys have ended; its certificate must be renewed")
        return identity

    def _entry(
        self,
        sealed: Sealed,
        generation: int,
        route: ResolvedRoute,
        flags: int,
        sealed_at: int,
        steps: tuple[RatchetStep, ...],
        replaces: bytes | None,
        origins: Origins | None,
    ) -> OutboxEntry:
        """Return what the outbox keeps of an envelope; its content key is encrypted there."""
        return OutboxEntry(
            sealed.raw,
            sealed.envelope_id,
            generation,
            sealed.count,
            route.exchange,
            route.routing_key,
            route.names,
            flags,
            route.version,
            sealed_at,
            sealed.envelope_hash,
            self._secret_box.wrap(sealed.content_key, sealed.envelope_id, generation),
            replaces=replaces,
            steps=steps,
            origins=origins,
            commitment=sealed.commitment,
        )

    def _sending_chains(
        self, route: ResolvedRoute, reserve: bool
    ) -> AbstractContextManager[list[SendingChain] | None]:
        if not route.in_sessions or self._prekeys is None:
            return _NO_CHAINS
        names = [bundle.client_id for bundle in route.bundles]
        return self._prekeys.sessions.sending_chains(names, reserve=reserve)

    async def seal_again(
        self,
        row: Row,
        raw: bytes,
        without: Collection[str] = (),
        on_outcome: OnOutcome | None = None,
    ) -> PendingPublish:
        """Return the next generation of an envelope of the outbox, for its route's current readers
        ``without`` the revoked ones.

        Plaintext, commitment, id, time and expiry stay; the keys are new.  The sender's options
        still apply; a chosen key that no longer exists is replaced by the recipient's preferred
        one, and a session by a new one.  Raise what `resolve_route` raises, or DecryptionFailed.
        """
        parsed = parse_envelope(raw)
        prefix = parsed.layout.prefix
        key = self._secret_box.unwrap(row.content_key or b"", row.envelope_id, row.generation)
        plain = salted(open_plain(parsed, key))
        by_route = not is_mailbox(row.exchange, row.routing_key)
        kinds = {StanzaType(r.stanza_type) for r in prefix.recipients}
        stanza = next(iter(kinds)) if len(kinds) == 1 and not kinds & POST_QUANTUM else None
        left = row.recipients if by_route else tuple(n for n in row.recipients if n not in without)
        if not left:
            raise RecipientRevoked(f"the certificate of {', '.join(row.recipients)} was revoked")
        if in_sessions(parsed) and self._prekeys is not None:
            stanza = StanzaType.RATCHET
            for name in left:
                self._prekeys.sessions.retire(name, raw)
        options = PublishOptions(
            None if by_route else left,
            row.exchange,
            row.routing_key,
            stanza,
            BodyCipher(prefix.body_cipher),
            expires_at=prefix.expires_at,
            flags=row.flags,
            allow_mixed=bool(kinds & POST_QUANTUM) and not kinds <= POST_QUANTUM,
            prompt_receipt=prefix.prompt_receipt,
        )
        try:
            route = await self.resolve_route(options, anew=True)
        except BundleError:
            if stanza == StanzaType.RATCHET:
                raise  # bad prekeys must not downgrade to a weaker stanza
            route = await self.resolve_route(attrs.evolve(options, stanza=None), anew=True)
        return self.seal(options, route, plain, row.messages, on_outcome, before=row, reserve=True)
