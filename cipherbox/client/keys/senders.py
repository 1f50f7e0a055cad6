"""Look up and verify the key bundles that received envelopes name. A part of `Directory`.

That bundle must be the pinned one, one accepted before it, one that follows it by succession, or
one that the hash chain of the pinned bundle reaches backwards. An error in one sender's keys
affects that sender alone.

Whether the keys were valid when HQ accepted the envelope is decided by the order of HQ's log, not
by the times that HQ states, since its clock may have been wrong: an envelope names a bundle by its
hash, so it is younger than the bundle; HQ accepts none under keys that have ended; and `LogOrder`
proves that it was accepted before its sender was revoked. Only of an envelope that the log of
version 0.5 accepted (entry 0) the time decides.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from cryptography import x509

from cipherbox import clock, pki
from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.keys.pins import Pin, Pins
from cipherbox.client.keys.revocations import Revocations
from cipherbox.client.receiving.faults import Fault, fault_of
from cipherbox.envelope.bundle import KeyBundle, check_bundle, check_continuity
from cipherbox.errors import (
    BundleError,
    BundleMalformed,
    BundleUnknown,
    CipherBoxError,
    SenderNotValid,
)
from cipherbox.limits import LIMITS
from cipherbox.wire import frames

REVOKED = 2
ENDLESS = 255  # not a state of HQ's: this client has more bundles than are requested
_SENDERS = 1024  # bundles of senders in memory, 24 KiB at most each
_OF_SENDER = 16  # and at most this many of each sender


class Senders(ABC):
    """Verified bundles of senders, in memory."""

    pins: Pins
    _root: x509.Certificate
    _revocations: Revocations
    _events: Events
    _senders: dict[bytes, tuple[KeyBundle, str, int]]

    @abstractmethod
    async def ask(
        self, clients: Sequence[tuple[str, int]], hashes: Sequence[bytes] = ()
    ) -> list[frames.BundleAnswer]: ...

    @abstractmethod
    def _advance(
        self, name: str, pin: Pin | None, later: list[KeyBundle], role: str
    ) -> Pin | None: ...

    @abstractmethod
    def _decoded(self, name: str, answer: frames.BundleAnswer) -> list[KeyBundle]: ...

    def known_sender(
        self, client_id: str, bundle_hash: bytes, accepted_at: int, log_entry: int = 0
    ) -> KeyBundle | None:
        """Return the bundle if it was checked before and the revocation list is fresh; else use
        `sender`.
        """
        found = self._senders.get(bundle_hash)
        if found is None or not self._revocations.fresh or found[0].client_id != client_id:
            return None
        if not log_entry:
            self._check_time(*found, accepted_at)
        return found[0]

    def is_revoked(self, bundle: KeyBundle, log_entry: int) -> bool:
        """Return whether the list, or for an envelope of the log HQ, says that a bundle's
        certificate was revoked, at any time.
        """
        found = self._senders.get(bundle.hash)
        stated = bool(log_entry) and found is not None and bool(found[2])
        return stated or bool(self._revocations.revoked_at(bundle.serial))

    def has_sender(self, bundle_hash: bytes) -> bool:
        """Return whether a sender's bundle was looked up and verified."""
        return bundle_hash in self._senders

    async def sender(
        self, client_id: str, bundle_hash: bytes, accepted_at: int, log_entry: int = 0
    ) -> KeyBundle:
        """Return the trusted bundle that an envelope names, which HQ accepted in that entry of its
        log; 0: in the log of version 0.5, at that time.  Raise SenderNotValid otherwise.
        """
        await self._revocations.ensure()
        if bundle_hash not in self._senders:
            error = (await self.look_up({client_id: [bundle_hash]}))[(client_id, bundle_hash)]
            if isinstance(error, BundleError):
                raise SenderNotValid(f"the keys of {client_id} are not trusted: {error}") from error
            if error is not None:
                raise error
        found = self._senders[bundle_hash]
        if found[0].client_id != client_id:
            raise SenderNotValid(
                f"the envelope of {client_id} names the keys of {found[0].client_id}"
            )
        if not log_entry:
            self._check_time(*found, accepted_at)
        return found[0]

    async def look_up(
        self, wanted: Mapping[str, Sequence[bytes]]
    ) -> dict[tuple[str, bytes], CipherBoxError | None]:
        """Ask HQ for the bundles that envelopes of these senders name, in one request.

        Return for each (sender, bundle hash) None if the bundle is trusted now, else its error.
        Raise only errors that concern all of them.
        """
        await self._revocations.ensure()
        found: dict[tuple[str, bytes], CipherBoxError | None] = {}
        pins: dict[str, Pin | None] = {}
        for name, hashes in wanted.items():
            try:
                pins[name] = self.pins.get(name)
            except BundleError as error:
                found.update({(name, one): error for one in hashes})
        numbers = newer(pins)
        asked = [(name, one) for name in pins for one in wanted[name]]
        answers = await self.ask(numbers, [one for _, one in asked]) if asked else []
        by_client = dict(zip(pins, answers, strict=False))
        for (name, one), by_hash in zip(asked, answers[len(numbers) :], strict=True):
            try:
                await self._verify_sender(name, one, by_client[name], by_hash)
                found[(name, one)] = None
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                if not isinstance(error, CipherBoxError):
                    error = BundleMalformed(f"{type(error).__name__}: {error}")
                found[(name, one)] = error
        return found

    async def _verify_sender(
        self,
        name: str,
        bundle_hash: bytes,
        by_client: frames.BundleAnswer,
        by_hash: frames.BundleAnswer,
    ) -> None:
        pin = self.pins.get(name)  # the previous bundle may have moved it
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
                raise BundleMalformed(
                    f"{name} has changed its keys too often since they were pinned here"
                )
            later = [
                b
                for b in self._decoded(name, by_client)
                if pin is None or b.sequence > pin.bundle.sequence
            ]
            pin = self._advance(name, pin, later, RECEIVER)
            if pin is None or (
                bundle_hash not in pin.accepted and not await self._precedes(pin, bundle)
            ):
                raise BundleError(
                    "the bundle does not lead to the keys pinned here",
                    remedy="compare fingerprints",
                )
        leaf = check_bundle(
            bundle, name, self._root, clock.now_ms(), ended_is_error=False, history=True
        )
        self._cache_sender(bundle, pki.serial(leaf), revoked_at)

    def _cache_sender(self, bundle: KeyBundle, serial: str, revoked_at: int) -> None:
        """Cache a bundle, within the limits in total and for each sender: a sender that changes
        keys often evicts its own.
        """
        own = [h for h, (b, _, _) in self._senders.items() if b.client_id == bundle.client_id]
        for gone in own[: max(0, len(own) + 1 - _OF_SENDER)]:
            del self._senders[gone]
        if len(self._senders) >= _SENDERS:
            self._senders.pop(next(iter(self._senders)))
        self._senders[bundle.hash] = (bundle, serial, revoked_at)

    async def _precedes(self, pin: Pin, bundle: KeyBundle) -> bool:
        """Return whether the hash chain of the pinned bundle reaches ``bundle``, which its owner
        thus confirms.

        The chain ends at a bundle that starts anew: its owner names the previous one only because
        HQ showed it.
        """
        (answer,) = await self.ask([(pin.bundle.client_id, bundle.sequence)])
        by_hash = {b.hash: b for b in self._decoded(pin.bundle.client_id, answer)} | {
            bundle.hash: bundle
        }
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

    def _check_time(
        self, bundle: KeyBundle, serial: str, revoked_at: int, accepted_at: int
    ) -> None:
        name = bundle.client_id
        if not bundle.created_at - LIMITS.clock_ahead_ms <= accepted_at <= bundle.ends_at:
            raise SenderNotValid(f"these keys of {name} were not valid when HQ accepted it")
        listed = self._revocations.revoked_at(serial)
        for moment in (listed, revoked_at):
            # A list's times are whole seconds (RFC 5280, 5.1.2.6): within the same second the
            # order in HQ's log decides.
            if moment and accepted_at >= moment + 1000:
                raise SenderNotValid(f"HQ accepted it after the certificate of {name} was revoked")


def newer(pins: Mapping[str, Pin | None]) -> list[tuple[str, int]]:
    """Return the query for each client: the bundles after its pin, or the newest without a pin."""
    return [(name, pin.bundle.sequence if pin else frames.NEWEST) for name, pin in pins.items()]
