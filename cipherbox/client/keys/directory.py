"""Other parties' key bundles: pinned on this machine, or from HQ and verified.

As a sender: ask HQ for bundles after the pin, accept them if each is signed by the keys before it,
and pin the newest. As a receiver: an envelope names its sender's bundle by hash. That bundle must
be the pinned one, one accepted before it, one that follows it by succession, or one that the hash
chain of the pinned bundle reaches backwards. The sender must also have been valid when HQ accepted
the envelope: within the bundle's validity, and before any revocation.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.client.connection.reconnecting import HQ_UNAVAILABLE, ReconnectingConnection
from cipherbox.client.events import SENDER, EventKind, Events
from cipherbox.client.keys.changes import day, discontinuity_error
from cipherbox.client.keys.pins import FIRST_USE, SUCCESSION, Pin, Pins
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.keys.senders import ENDLESS, REVOKED, Senders, newer
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope.bundle import (
    KeyBundle,
    check_bundle,
    check_succession,
    decode_bundle,
    fingerprint,
)
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleMalformed,
    BundleOutdated,
    CipherBoxError,
    RecipientRevoked,
    UnknownRecipient,
    names_detail,
)
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

FRESH_S = 300.0  # a recipient's new keys are used after this time at the latest
KNOWN, NOT_FOUND = 0, 1
_PAGES = 16  # of HQ's answer: 512 bundles of one client, or as many frames' worth


class Directory(Senders):
    """The bundles that this client trusts. ``pins`` is public, for `keys list` and similar
    commands.
    """

    def __init__(
        self,
        pins: Pins,
        root: x509.Certificate,
        revocations: Revocations,
        connection: ReconnectingConnection,
        events: Events,
        log: LogProofVerifier,
    ) -> None:
        self.pins = pins
        self.log = log
        self._root, self._revocations, self._connection, self._events = (
            root,
            revocations,
            connection,
            events,
        )
        self._asked: dict[str, float] = {}
        # of a pinned client: the bundle that was reported to start anew
        self._reported: dict[str, bytes] = {}
        # of pinned bundles whose signatures were checked
        self._leaves: dict[bytes, x509.Certificate] = {}
        # bundle, its certificate's serial, revoked at
        self._senders: dict[bytes, tuple[KeyBundle, str, int]] = {}

    # -- as a sender -------------------------------------------------------------------------------

    async def recipients(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """Return the trusted bundle of each client, in this order.

        Raise UnknownRecipient, RecipientRevoked, or the BundleError that stops the sender. While HQ
        is unreachable or refuses this client, the pins are used unchanged as long as the revocation
        list is valid.
        """
        try:
            await self._renew(client_ids)
        except HQ_UNAVAILABLE:
            if not self._revocations.valid or not all(self.pins.get(name) for name in client_ids):
                raise
        return [self._usable(name) for name in client_ids]

    async def reachable(
        self, client_ids: Sequence[str]
    ) -> tuple[list[str], dict[str, CipherBoxError]]:
        """Return the clients that can be sent to now, and the reason for each other one. It takes
        one request for any number of clients.
        """
        await self._revocations.ensure()
        pins = {name: self.pins.get(name) for name in client_ids}
        answers = await self.ask(newer(pins))
        found: list[str] = []
        reasons: dict[str, CipherBoxError] = {}
        for name, answer in zip(pins, answers, strict=True):
            try:
                self._apply_answer(name, pins[name], answer)
                self._usable(name)
            except CipherBoxError as error:
                reasons[name] = error
            else:
                self._asked[name] = trio.current_time()
                found.append(name)
        return found, reasons

    def _usable(self, name: str) -> KeyBundle:
        pin = self.pins.get(name)
        if pin is None:
            raise UnknownRecipient(f"{name} has published no keys", names_detail([name]))
        try:
            leaf = self._leaf(pin.bundle, name)
        except BundleOutdated:
            self.refresh(name)  # use its new keys as soon as it publishes them
            raise
        if self._revocations.revoked_at(pki.serial(leaf)):
            raise RecipientRevoked(f"the certificate of {name} was revoked", names_detail([name]))
        return pin.bundle

    async def _renew(self, client_ids: Sequence[str]) -> None:
        await self._revocations.ensure()
        now = trio.current_time()
        old = [name for name in client_ids if now - self._asked.get(name, float("-inf")) > FRESH_S]
        if old:
            pins = {name: self.pins.get(name) for name in old}
            answers = await self.ask(newer(pins))
            for name, answer in zip(pins, answers, strict=True):
                self._apply_answer(name, pins[name], answer)
                self._asked[name] = now

    def refresh(self, client_id: str) -> None:
        """Ask HQ for this client's newest keys before the next use."""
        self._asked.pop(client_id, None)

    def _leaf(self, bundle: KeyBundle, name: str) -> x509.Certificate:
        """Return the bundle's certificate. Its signatures are checked once, its end every time."""
        leaf = self._leaves.get(bundle.hash)
        if leaf is None or bundle.client_id != name or clock.now_ms() > bundle.ends_at:
            leaf = self._leaves[bundle.hash] = check_bundle(
                bundle, name, self._root, clock.now_ms()
            )
        return leaf

    async def newest_at_hq(self, client_id: str) -> KeyBundle:
        """Return the newest bundle that HQ has of a client: certified, but not compared with the
        pin. It is for a person to look at.
        """
        (answer,) = await self.ask([(client_id, frames.NEWEST)])
        if answer.state == NOT_FOUND or not answer.bundles:
            raise UnknownRecipient(f"HQ has no keys of {client_id}")
        bundle = max(self._decoded(client_id, answer), key=lambda b: b.sequence)
        check_bundle(bundle, client_id, self._root, clock.now_ms())
        return bundle

    async def ask(
        self, clients: Sequence[tuple[str, int]], hashes: Sequence[bytes] = ()
    ) -> list[frames.BundleAnswer]:
        """Return HQ's answers in order: first for the clients, then for the hashes.

        HQ answers in pages. A client with too many pages gets the state ENDLESS.
        """
        found = await self._ask(clients, hashes)
        left = [at for at, answer in enumerate(found) if answer.more]
        for _ in range(_PAGES):
            if not left:
                return found
            later = await self._ask([_rest(found[at], *clients[at]) for at in left])
            for at, answer in zip(left, later, strict=True):
                found[at].bundles += answer.bundles
                found[at].more = answer.more
            left = [at for at in left if found[at].more]
        for at in left:  # an endless chain is its owner's fault and must not affect other clients
            found[at].state, found[at].bundles = ENDLESS, []
        return found

    async def _ask(
        self, clients: Sequence[tuple[str, int]], hashes: Sequence[bytes] = ()
    ) -> list[frames.BundleAnswer]:
        found: list[frames.BundleAnswer] = []
        queries: list[tuple[list[frames.BundleQuery], list[bytes]]] = []
        for at in range(0, len(clients), LIMITS.names_per_frame):
            part = clients[at : at + LIMITS.names_per_frame]
            queries.append(([frames.BundleQuery(name, after) for name, after in part], []))
        if hashes:
            if not queries:
                queries.append(([], []))
            queries[-1][1].extend(hashes)
        for names, wanted in queries:
            answer: frames.Bundles = await self._connection.request(
                frames.GetBundles, clients=names, hashes=wanted
            )
            if len(answer.answers) != len(names) + len(wanted):
                raise BundleMalformed("HQ's answer does not match the number of bundles requested")
            self.log.bundles([raw for one in answer.answers for raw in one.bundles], answer.proofs)
            found += answer.answers
        return found

    def _apply_answer(self, name: str, pin: Pin | None, answer: frames.BundleAnswer) -> None:
        if answer.state == REVOKED:
            raise RecipientRevoked(f"the certificate of {name} was revoked", names_detail([name]))
        if answer.state == NOT_FOUND:
            raise UnknownRecipient(f"HQ does not know client {name}", names_detail([name]))
        if answer.state == ENDLESS:
            raise BundleMalformed(
                f"{name} has changed its keys too often since they were pinned here"
            )
        self._advance(name, pin, self._decoded(name, answer), SENDER)

    def _advance(self, name: str, pin: Pin | None, later: list[KeyBundle], role: str) -> Pin | None:
        """Return the pin after HQ's answer: moved, created, or unchanged."""
        if not later:
            return pin
        for bundle in later:
            check_bundle(
                bundle, name, self._root, clock.now_ms(), ended_is_error=False, history=True
            )
        if pin is None:
            newest = max(later, key=lambda b: b.sequence)
            if role == SENDER:  # do not pin keys at first use that nothing may be sealed to
                check_bundle(newest, name, self._root, clock.now_ms(), ended_is_error=False)
            pinned = self.pins.accept(newest, FIRST_USE, proof=self.log.bundle_proofs.proof(newest))
            self._events.emit(
                role,
                f"Key of {name} retrieved and pinned at first use; fingerprint "
                f"{fingerprint(newest)}",
                kind=EventKind.KEY,
            )
            return pinned
        try:
            newest = check_succession(pin.bundle, later)
        except BundleDiscontinuous as error:
            shown = max(later, key=lambda b: b.sequence)
            raise discontinuity_error(
                pin, shown, str(error), self.log.bundle_proofs.entry(shown)
            ) from None
        if newest.hash == pin.bundle.hash:
            return pin
        between = tuple(b.hash for b in later)
        pinned = self.pins.accept(newest, SUCCESSION, between, self.log.bundle_proofs.proof(newest))
        self._events.emit(
            role,
            f"Key of {name} changed: bundle {pin.bundle.sequence} to {newest.sequence}, signed "
            f"by the keys before; fingerprint {fingerprint(newest)}",
            kind=EventKind.KEY,
        )
        if pin.verified_at and not pinned.verified_at:
            self._events.emit(
                role,
                f"The keys of {name} were compared on {day(pin.verified_at)} by a number of "
                "CipherBox 0.5.0, which did not cover the keys that messages are sealed to; "
                f"compare once more: cipherbox keys verify {name}",
                kind=EventKind.KEY,
            )
        return pinned

    async def revoked(self) -> list[str]:
        """Return the pinned clients that the CA's revocation list names and that have no newer keys
        at HQ.
        """
        listed: dict[str, int] = {}
        for pin in self.pins.entries() if self._revocations.names_any else ():
            if self._revocations.revoked_at(pin.bundle.serial):
                listed[pin.bundle.client_id] = pin.bundle.sequence
        answers = await self.ask(list(listed.items())) if listed else []
        for name, answer in zip(listed, answers, strict=True):
            self._warn_if_broken(name, answer)
        return [
            name for name, answer in zip(listed, answers, strict=True) if answer.state == REVOKED
        ]

    def _warn_if_broken(self, name: str, answer: frames.BundleAnswer) -> None:
        """Warn that a pinned client was enrolled again: now, rather than with its next message."""
        pin = self.pins.get(name)
        try:
            later = self._decoded(name, answer)
            if pin is not None:
                check_succession(pin.bundle, later)
        except BundleDiscontinuous as error:
            newest = max(later, key=lambda b: b.sequence)
            if pin is not None and newest.hash != self._reported.get(name):
                self._reported[name] = newest.hash
                why = discontinuity_error(
                    pin, newest, str(error), self.log.bundle_proofs.entry(newest)
                )
                self._events.emit(SENDER, f"WARNING: {why}")
        except BundleError:
            pass  # reported when this client sends to it

    async def check_own(self, own: KeyBundle, upcoming: bytes = b"") -> None:
        """Raise BundleError if HQ serves keys in this client's name that this home did not make."""
        (answer,) = await self.ask([(own.client_id, own.sequence - 1)])
        for bundle in self._decoded(own.client_id, answer):
            if bundle.hash not in (own.hash, upcoming):
                raise BundleError(
                    f"HQ serves key bundle {bundle.sequence} in the name of {own.client_id}, "
                    f"fingerprint {fingerprint(bundle)}, which this home did not make. Unless "
                    "another copy of this home made it, somebody impersonates this client: "
                    "tell the admin and your correspondents now"
                )

    def _decoded(self, name: str, answer: frames.BundleAnswer) -> list[KeyBundle]:
        return [decode_bundle(raw) for raw in answer.bundles]


def _rest(answer: frames.BundleAnswer, client_id: str, after: int) -> tuple[str, int]:
    return client_id, decode_bundle(answer.bundles[-1]).sequence if answer.bundles else after
