"""A client's private keys: the signing keys that are its identity, and its encryption keys, retired
ones included.

Keys change in three steps, so that a crash never loses a key that others may already seal to: the
next keys and their bundle are saved (`upcoming`), then published, then they replace the current
keys (`promote`), which stay as retired until nothing sealed to them can still arrive (`destroy`).
Upcoming and retired keys open messages; only current ones sign. No repr shows a secret.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from typing import Any

import attrs
import nacl.signing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey

from cipherbox import pki
from cipherbox.classes import frozen
from cipherbox.envelope.bundle import (
    DISCONTINUOUS,
    NO_HASH,
    SALT_BYTES,
    BundleKey,
    KeyBundle,
    decode_bundle,
    encode_bundle,
    encode_signed_part,
)
from cipherbox.envelope.labels import label
from cipherbox.envelope.signature import required_suite, signed_message
from cipherbox.envelope.stanza_types import DEFAULT_TYPES, key_id
from cipherbox.envelope.suites import KeyUsage, SignAlgorithm, SignatureSuite
from cipherbox.errors import KeyMissing
from cipherbox.sealing.stanzas import SCHEMES


@frozen
class DecryptKey:
    """One encryption key pair; ``seed`` is the private key, ``retired_at`` is ms since 1970 or 0
    while in use.
    """

    algorithm: int
    seed: bytes = attrs.field(repr=False)
    public: bytes = attrs.field(repr=False)
    private: Any = attrs.field(repr=False, eq=False)
    retired_at: int = 0

    @classmethod
    def from_seed(cls, algorithm: int, seed: bytes, retired_at: int = 0) -> DecryptKey:
        kind = SCHEMES[algorithm]
        return cls(algorithm, seed, kind.public(seed), kind.load_private(seed), retired_at)

    @property
    def key_id(self) -> bytes:
        return key_id(self.algorithm, self.public)


class Identity:
    """The private keys of one client. ``current`` encryption keys go into bundles; ``retired`` keys
    only open.
    """

    def __init__(
        self,
        client_id: str,
        ed25519_seed: bytes,
        mldsa65_seed: bytes | None,
        current: Sequence[DecryptKey],
        retired: Sequence[DecryptKey] = (),
    ) -> None:
        self.client_id = client_id
        self.current = tuple(current)
        self.retired = tuple(retired)
        self._ed25519 = nacl.signing.SigningKey(ed25519_seed)
        self._mldsa65 = MLDSA65PrivateKey.from_seed_bytes(mldsa65_seed) if mldsa65_seed else None
        self.suite = required_suite(self.sign_keys)
        self._by_id = {k.key_id: k for k in (*self.retired, *self.current)}
        self.bundle: KeyBundle | None = None  # the published one
        self.upcoming: Identity | None = None  # saved, and perhaps published

    def __repr__(self) -> str:
        return (
            f"Identity({self.client_id!r}, {len(self.current)} current and {len(self.retired)} "
            "retired keys)"
        )

    @classmethod
    def generate(cls, client_id: str, suite: SignatureSuite = SignatureSuite.ED25519) -> Identity:
        """Return an identity with new keys, one for each default stanza type."""
        mldsa = (
            MLDSA65PrivateKey.generate().private_bytes_raw()
            if suite == SignatureSuite.ED25519_MLDSA65
            else None
        )
        keys = [DecryptKey.from_seed(kind, SCHEMES[kind].generate()) for kind in DEFAULT_TYPES]
        return cls(client_id, bytes(nacl.signing.SigningKey.generate()), mldsa, keys)

    @property
    def sign_keys(self) -> dict[int, bytes]:
        keys: dict[int, bytes] = {SignAlgorithm.ED25519: bytes(self._ed25519.verify_key)}
        if self._mldsa65:
            keys[SignAlgorithm.MLDSA65] = self._mldsa65.public_key().public_bytes_raw()
        return keys

    def seeds(self) -> tuple[bytes, bytes | None]:
        """Return the signing seeds, for the key file alone."""
        return bytes(self._ed25519), self._mldsa65.private_bytes_raw() if self._mldsa65 else None

    def sign(self, use: str, digest: bytes) -> bytes:
        """Return this suite's signatures over ``digest`` for one use."""
        message = signed_message(use, self.suite, digest)
        signed = self._ed25519.sign(message).signature
        return signed + self._mldsa65.sign(message) if self._mldsa65 else signed

    def decrypt_key(self, wanted: bytes) -> DecryptKey | None:
        """Return the key pair with this key id, or None."""
        found = self._by_id.get(wanted)
        return (
            self.upcoming.decrypt_key(wanted)
            if found is None and self.upcoming is not None
            else found
        )

    def adopt(self, other: Identity) -> None:
        """Take over all state of ``other`` in one step, wherever this identity is in use."""
        self.__dict__.update(other.__dict__)

    def promote(self, now_ms: int) -> None:
        """Replace the current keys by the upcoming ones, which are published; the former keys are
        retired.
        """
        fresh = self.upcoming
        if fresh is None:
            return
        stay = {k.key_id for k in fresh.current}
        gone = [attrs.evolve(k, retired_at=now_ms) for k in self.current if k.key_id not in stay]
        retired = [k for k in self.retired if k.key_id not in stay] + gone
        ed25519, mldsa65 = fresh.seeds()
        after = Identity(self.client_id, ed25519, mldsa65, fresh.current, retired)
        after.bundle = fresh.bundle
        self.adopt(after)

    def destroy(self, before_ms: int) -> int:
        """Drop keys that were retired before that time, and return the number of them."""
        stay = [k for k in self.retired if not k.retired_at or k.retired_at >= before_ms]
        count = len(self.retired) - len(stay)
        if count:
            after = Identity(self.client_id, *self.seeds(), self.current, stay)
            after.bundle, after.upcoming = self.bundle, self.upcoming
            self.adopt(after)
        return count

    def same_keys(self) -> Identity:
        """Return another identity with the same keys, for a new bundle."""
        return Identity(self.client_id, *self.seeds(), self.current)

    def with_key(self, key: DecryptKey) -> Identity:
        """Return this identity with one more retired key, to be saved before others see the public
        key.
        """
        return self if key.key_id in self._by_id else self._with(self.current, (*self.retired, key))

    def with_current(self, wanted: Sequence[bytes]) -> Identity:
        """Return the same keys with those of these key ids current, in this order. Raise KeyMissing
        if one is missing.
        """
        if missing := [one.hex() for one in wanted if one not in self._by_id]:
            raise KeyMissing(f"the private key of {missing[0]} is missing")
        return self._with(
            [self._by_id[one] for one in wanted],
            [key for one, key in self._by_id.items() if one not in wanted],
        )

    def update_from(self, newer: Identity) -> bool:
        """Take over what another process changed in this identity. Return False if nothing changed
        or if ``newer`` is another identity.
        """
        same = newer.client_id == self.client_id and newer.seeds() == self.seeds()
        if not same or (newer.current, newer.retired, newer.bundle) == (
            self.current,
            self.retired,
            self.bundle,
        ):
            return False
        self.current, self.retired, self.bundle = newer.current, newer.retired, newer.bundle
        self._by_id = newer._by_id
        return True

    def _with(self, current: Sequence[DecryptKey], retired: Sequence[DecryptKey]) -> Identity:
        made = Identity(self.client_id, *self.seeds(), current, retired)
        made.bundle = self.bundle
        return made

    def make_bundle(
        self,
        certificate_key: pki.PrivateKey,
        chain: Sequence[x509.Certificate],
        created_at: int,
        before: KeyBundle | None = None,
        signer: Identity | None = None,
    ) -> KeyBundle:
        """Return a bundle of the current keys, signed by the certificate's key and by these signing
        keys.

        ``before`` is the previous bundle and ``signer`` the identity of that bundle (None: this
        one). With other keys than that bundle's the chain starts over, as after a loss. The bundle
        ends with the certificate, or with a CA above it that ends earlier.
        """
        keys = [BundleKey(KeyUsage.ENCRYPT, k.algorithm, k.public) for k in self.current]
        keys += [
            BundleKey(KeyUsage.SIGN, algorithm, public)
            for algorithm, public in self.sign_keys.items()
        ]
        holder = signer or self
        continued = before is not None and before.sign_keys == holder.sign_keys
        flags = DISCONTINUOUS if before is not None and not continued else 0
        signed = encode_signed_part(
            self.client_id,
            before.sequence + 1 if before else 1,
            created_at,
            pki.ms(pki.end_of(chain)),
            before.hash if before else NO_HASH,
            keys,
            [pki.der(c) for c in chain],
            os.urandom(SALT_BYTES),
            flags,
        )
        digest = hashlib.sha256(signed).digest()
        certified = certificate_key.sign(label("bundle") + digest, ec.ECDSA(hashes.SHA384()))
        suite, continuity = (
            (int(holder.suite), holder.sign("bundle-continuity", digest)) if continued else (0, b"")
        )
        own = self.sign("bundle-own", digest)
        return decode_bundle(
            encode_bundle(signed, certified, int(self.suite), own, suite, continuity)
        )
