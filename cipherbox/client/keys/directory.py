"""Other parties' key bundles: from this machine's pins, or from HQ, and never believed because HQ says so.

As a sender: ask HQ for what came after the pin; take it if every step is signed by the keys before it; pin the newest.
As a receiver: an envelope names its sender's bundle by hash.  That bundle must be the pinned one, one accepted before
it, one that follows it by succession, or one that the hash chain of the pinned bundle reaches backwards.  And the
sender must have been valid when HQ accepted the envelope: within the bundle's time, before a revocation.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import trio
from cryptography import x509

from cipherbox import pki
from cipherbox.client.events import RECEIVER, SENDER, Events
from cipherbox.client.faults import Fault, fault_of
from cipherbox.client.keys.changes import day, explained
from cipherbox.client.keys.pins import FIRST_USE, SUCCESSION, Pin, Pins
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.line import Line
from cipherbox.client.log.verifier import LogProofVerifier
from cipherbox.envelope.bundle import (
    KeyBundle,
    check_bundle,
    check_continuity,
    check_succession,
    decode_bundle,
    fingerprint,
)
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleMalformed,
    BundleOutdated,
    BundleUnknown,
    CipherBoxError,
    NetworkError,
    RecipientRevoked,
    SenderNotValid,
    UnknownRecipient,
)
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

FRESH_S = 300.0  # a recipient's new keys are used at the latest after this
KNOWN, NOT_FOUND, REVOKED = 0, 1, 2
ENDLESS = 255  # not HQ's word: there are more bundles of this client than are asked for
_PAGES = 16  # of HQ's answer: 512 bundles of one client, or what fills as many frames
_SENDERS = 1024  # bundles of senders in memory: of 16 KiB at most each
_OF_SENDER = 8  # and of each sender


class Directory:
    """See the module.  ``pins`` may be used directly, for `keys list` and the like."""

    def __init__(
        self, pins: Pins, root: x509.Certificate, revocations: Revocations, line: Line, events: Events,
        log: LogProofVerifier,
    ) -> None:  # fmt: skip
        self.pins = pins
        self.log = log
        self._root, self._revocations, self._line, self._events = root, revocations, line, events
        self._asked: dict[str, float] = {}
        self._told: dict[str, bytes] = {}  # of a pinned client: the bundle of which it was said that it begins anew
        self._leaves: dict[bytes, x509.Certificate] = {}  # of pinned bundles whose signatures were checked
        self._senders: dict[bytes, tuple[KeyBundle, str, int]] = {}  # bundle, its certificate's serial, revoked at

    # -- as a sender --------------------------------------------------------------------------------------------

    async def recipients(self, client_ids: Sequence[str]) -> list[KeyBundle]:
        """The believed bundle of each, in this order.

        UnknownRecipient, RecipientRevoked, or the BundleError that stops the sender.  While HQ cannot be reached the
        pins are used as they are, as long as the revocation list holds.
        """
        try:
            await self._renew(client_ids)
        except NetworkError:
            if not self._revocations.holds or not all(self.pins.get(name) for name in client_ids):
                raise
        return [self._usable(name) for name in client_ids]

    async def reachable(self, client_ids: Sequence[str]) -> tuple[list[str], dict[str, CipherBoxError]]:
        """Who of these can be sent to now, and why the others cannot.  One request, however many they are."""
        await self._revocations.ensure()
        pins = {name: self.pins.get(name) for name in client_ids}
        answers = await self.ask(_newer(pins))
        found: list[str] = []
        reasons: dict[str, CipherBoxError] = {}
        for name, answer in zip(pins, answers, strict=True):
            try:
                self._take(name, pins[name], answer)
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
            raise UnknownRecipient(f"{name} has published no keys")
        try:
            leaf = self._leaf(pin.bundle, name)
        except BundleOutdated:
            self.refresh(name)  # its new keys are used as soon as it has published them
            raise
        if self._revocations.revoked_at(pki.serial(leaf)):
            raise RecipientRevoked(f"the certificate of {name} was revoked")
        return pin.bundle

    async def _renew(self, client_ids: Sequence[str]) -> None:
        await self._revocations.ensure()
        now = trio.current_time()
        old = [name for name in client_ids if now - self._asked.get(name, float("-inf")) > FRESH_S]
        if old:
            pins = {name: self.pins.get(name) for name in old}
            answers = await self.ask(_newer(pins))
            for name, answer in zip(pins, answers, strict=True):
                self._take(name, pins[name], answer)
                self._asked[name] = now

    def refresh(self, client_id: str) -> None:
        """HQ is asked for this client's newest keys before they are used again."""
        self._asked.pop(client_id, None)

    def _leaf(self, bundle: KeyBundle, name: str) -> x509.Certificate:
        """The bundle's certificate.  Its signatures are checked once, its end every time."""
        leaf = self._leaves.get(bundle.hash)
        if leaf is None or bundle.client_id != name or _now_ms() > bundle.ends_at:
            leaf = self._leaves[bundle.hash] = check_bundle(bundle, name, self._root, _now_ms())
        return leaf

    async def offered(self, client_id: str) -> KeyBundle:
        """The newest bundle HQ has of a client: certified, but not compared with the pin.  For a person to look at."""
        (answer,) = await self.ask([(client_id, frames.NEWEST)])
        if answer.state == NOT_FOUND or not answer.bundles:
            raise UnknownRecipient(f"HQ has no keys of {client_id}")
        bundle = max(self._decoded(client_id, answer), key=lambda b: b.sequence)
        check_bundle(bundle, client_id, self._root, _now_ms())
        return bundle

    async def ask(
        self, clients: Sequence[tuple[str, int]], hashes: Sequence[bytes] = ()
    ) -> list[frames.BundleAnswer]:
        """HQ's answers: first for the clients, then for the hashes, each in order.

        What HQ left out of an answer is asked for again, of the chain of one client at most so much: BundleMalformed.
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
        for at in left:  # a chain without an end is its owner's fault, and no other's
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
            answer: frames.Bundles = await self._line.request(frames.GetBundles, clients=names, hashes=wanted)
            if len(answer.answers) != len(names) + len(wanted):
                raise BundleMalformed("HQ answered another number of clients than it was asked for")
            self.log.bundles([raw for one in answer.answers for raw in one.bundles], answer.proofs)
            found += answer.answers
        return found

    def _take(self, name: str, pin: Pin | None, answer: frames.BundleAnswer) -> None:
        if answer.state == REVOKED:
            raise RecipientRevoked(f"the certificate of {name} was revoked")
        if answer.state == NOT_FOUND:
            raise UnknownRecipient(f"HQ knows no client {name}")
        if answer.state == ENDLESS:
            raise BundleMalformed(f"{name} has changed its keys too often since they were pinned here")
        self._advance(name, pin, self._decoded(name, answer), SENDER)

    def _advance(self, name: str, pin: Pin | None, later: list[KeyBundle], role: str) -> Pin | None:
        """The pin after what HQ showed: moved on, made, or as it was."""
        if not later:
            return pin
        for bundle in later:
            check_bundle(bundle, name, self._root, _now_ms(), ended_is_error=False, history=True)
        if pin is None:
            newest = max(later, key=lambda b: b.sequence)
            if role == SENDER:  # nobody is met by keys to which nothing may be sealed
                check_bundle(newest, name, self._root, _now_ms(), ended_is_error=False)
            pinned = self.pins.accept(newest, FIRST_USE, proof=self.log.proof(newest))
            self._events.say(
                role, f"Key of {name} retrieved and pinned at first use; fingerprint {fingerprint(newest)}"
            )
            return pinned
        try:
            newest = check_succession(pin.bundle, later)
        except BundleDiscontinuous as error:
            shown = max(later, key=lambda b: b.sequence)
            raise explained(pin, shown, str(error), self.log.entry(shown)) from None
        if newest.hash == pin.bundle.hash:
            return pin
        between = tuple(b.hash for b in later)
        pinned = self.pins.accept(newest, SUCCESSION, between, self.log.proof(newest))
        self._events.say(
            role,
            f"Key of {name} changed: bundle {pin.bundle.sequence} to {newest.sequence}, signed by the keys before; "
            f"fingerprint {fingerprint(newest)}",
        )
        if pin.verified_at and not pinned.verified_at:
            self._events.say(
                role,
                f"The keys of {name} were compared on {day(pin.verified_at)} by a number of CipherBox 0.5.0, which did "
                f"not cover the keys that messages are sealed to; compare once more: cipherbox keys verify {name}",
            )
        return pinned

    async def revoked(self) -> list[str]:
        """Whom the CA's signed list names among those pinned here, and who has no later keys at HQ."""
        listed: dict[str, int] = {}
        for pin in self.pins.entries() if self._revocations.names_any else ():
            if self._revocations.revoked_at(pki.serial(pin.bundle.certificate)):
                listed[pin.bundle.client_id] = pin.bundle.sequence
        answers = await self.ask(list(listed.items())) if listed else []
        for name, answer in zip(listed, answers, strict=True):
            self._say_if_broken(name, answer)
        return [name for name, answer in zip(listed, answers, strict=True) if answer.state == REVOKED]

    def _say_if_broken(self, name: str, answer: frames.BundleAnswer) -> None:
        """A pinned client that was enrolled again: whoever pinned it hears so at once, not with the next message."""
        pin = self.pins.get(name)
        try:
            later = self._decoded(name, answer)
            if pin is not None:
                check_succession(pin.bundle, later)
        except BundleDiscontinuous as error:
            newest = max(later, key=lambda b: b.sequence)
            if pin is not None and newest.hash != self._told.get(name):
                self._told[name] = newest.hash
                why = explained(pin, newest, str(error), self.log.entry(newest))
                self._events.say(SENDER, f"WARNING: {why}")
        except BundleError:
            pass  # said when somebody sends to it

    async def check_own(self, own: KeyBundle, upcoming: bytes = b"") -> None:
        """BundleError when HQ hands out keys in this client's name that it did not make."""
        (answer,) = await self.ask([(own.client_id, own.sequence - 1)])
        for bundle in self._decoded(own.client_id, answer):
            if bundle.hash not in (own.hash, upcoming):
                raise BundleError(
                    f"HQ hands out key bundle {bundle.sequence} in the name of {own.client_id}, fingerprint "
                    f"{fingerprint(bundle)}, and this home did not make it. If it was not made by another copy of this "
                    "home, somebody poses as this client: tell the admin and your correspondents now"
                )

    # -- as a receiver ------------------------------------------------------------------------------------------

    def known_sender(self, client_id: str, bundle_hash: bytes, accepted_at: int) -> KeyBundle | None:
        """The bundle if it was checked before and the revocation list is fresh; else ask `sender`."""
        found = self._senders.get(bundle_hash)
        if found is None or not self._revocations.fresh or found[0].client_id != client_id:
            return None
        self._check_time(*found, accepted_at)
        return found[0]

    async def sender(self, client_id: str, bundle_hash: bytes, accepted_at: int) -> KeyBundle:
        """The bundle an envelope names, believed and valid at HQ's acceptance time; else SenderNotValid."""
        await self._revocations.ensure()
        if bundle_hash not in self._senders:
            error = (await self.look_up({client_id: [bundle_hash]}))[(client_id, bundle_hash)]
            if isinstance(error, BundleError):
                raise SenderNotValid(f"the keys of {client_id} are not trusted: {error}") from error
            if error is not None:
                raise error
        found = self._senders[bundle_hash]
        if found[0].client_id != client_id:
            raise SenderNotValid(f"the envelope of {client_id} names the keys of {found[0].client_id}")
        self._check_time(*found, accepted_at)
        return found[0]

    async def look_up(self, wanted: Mapping[str, Sequence[bytes]]) -> dict[tuple[str, bytes], CipherBoxError | None]:
        """Asks HQ for the bundles that envelopes of these senders name, all in one request.

        For each (sender, bundle hash): None if the bundle is believed now, else what is wrong with that one.  Raised is
        only what concerns all of them.
        """
        await self._revocations.ensure()
        found: dict[tuple[str, bytes], CipherBoxError | None] = {}
        pins: dict[str, Pin | None] = {}
        for name, hashes in wanted.items():
            try:
                pins[name] = self.pins.get(name)
            except BundleError as error:
                found.update({(name, one): error for one in hashes})
        numbers = _newer(pins)
        asked = [(name, one) for name in pins for one in wanted[name]]
        answers = await self.ask(numbers, [one for _, one in asked]) if asked else []
        by_client = dict(zip(pins, answers, strict=False))
        for (name, one), by_hash in zip(asked, answers[len(numbers) :], strict=True):
            try:
                await self._believe(name, one, by_client[name], by_hash)
                found[(name, one)] = None
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                if not isinstance(error, CipherBoxError):
                    error = BundleMalformed(f"{type(error).__name__}: {error}")
                found[(name, one)] = error
        return found

    async def _believe(
        self, name: str, bundle_hash: bytes, by_client: frames.BundleAnswer, by_hash: frames.BundleAnswer
    ) -> None:
        pin = self.pins.get(name)  # which the bundle before may have moved
        revoked_at = 0
        if pin is not None and pin.bundle.hash == bundle_hash:
            bundle = pin.bundle
        else:
            named = next((b for b in self._decoded(name, by_hash) if b.hash == bundle_hash), None)
            if named is None:
                raise BundleUnknown
            bundle = named
            revoked_at = by_hash.revoked_at if by_hash.state == REVOKED else 0
            if by_client.state == ENDLESS:
                raise BundleMalformed(f"{name} has changed its keys too often since they were pinned here")
            later = [b for b in self._decoded(name, by_client) if pin is None or b.sequence > pin.bundle.sequence]
            pin = self._advance(name, pin, later, RECEIVER)
            if pin is None or (bundle_hash not in pin.accepted and not await self._precedes(pin, bundle)):
                raise BundleError("the bundle does not lead to the keys pinned here; compare fingerprints")
        leaf = check_bundle(bundle, name, self._root, _now_ms(), ended_is_error=False, history=True)
        self._keep_sender(bundle, pki.serial(leaf), revoked_at)

    def _keep_sender(self, bundle: KeyBundle, serial: str, revoked_at: int) -> None:
        """In memory, so many in all and of each: a sender that changes its keys all day drops its own."""
        own = [h for h, (b, _, _) in self._senders.items() if b.client_id == bundle.client_id]
        for gone in own[: max(0, len(own) + 1 - _OF_SENDER)]:
            del self._senders[gone]
        if len(self._senders) >= _SENDERS:
            self._senders.pop(next(iter(self._senders)))
        self._senders[bundle.hash] = (bundle, serial, revoked_at)

    async def _precedes(self, pin: Pin, bundle: KeyBundle) -> bool:
        """Whether the chain of the pinned bundle reaches ``bundle``: then its owner stands behind it.

        The chain ends at a bundle that begins anew: its owner names the one before only because HQ showed it.
        """
        (answer,) = await self.ask([(pin.bundle.client_id, bundle.sequence)])
        by_hash = {b.hash: b for b in self._decoded(pin.bundle.client_id, answer)} | {bundle.hash: bundle}
        at: KeyBundle | None = pin.bundle
        while at is not None and at.sequence > bundle.sequence:
            before = by_hash.get(at.previous_hash)
            try:
                if before is not None:
                    check_continuity(before, at)
            except BundleError:
                return False
            at = before
        return at is not None and at.hash == bundle.hash

    def _check_time(self, bundle: KeyBundle, serial: str, revoked_at: int, accepted_at: int) -> None:
        name = bundle.client_id
        if not bundle.created_at - LIMITS.clock_ahead_ms <= accepted_at <= bundle.ends_at:
            raise SenderNotValid(f"HQ accepted it when these keys of {name} were not valid")
        listed = self._revocations.revoked_at(serial)
        for moment in (listed, revoked_at):
            if moment and accepted_at >= moment:
                raise SenderNotValid(f"HQ accepted it after the certificate of {name} was revoked")

    def _decoded(self, name: str, answer: frames.BundleAnswer) -> list[KeyBundle]:
        return [decode_bundle(raw) for raw in answer.bundles]


def _newer(pins: Mapping[str, Pin | None]) -> list[tuple[str, int]]:
    """What to ask for: all after the pin; without one the newest."""
    return [(name, pin.bundle.sequence if pin else frames.NEWEST) for name, pin in pins.items()]


def _rest(answer: frames.BundleAnswer, client_id: str, after: int) -> tuple[str, int]:
    return client_id, decode_bundle(answer.bundles[-1]).sequence if answer.bundles else after


def _now_ms() -> int:
    return int(time.time() * 1000)
