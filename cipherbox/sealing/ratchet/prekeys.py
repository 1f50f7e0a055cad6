"""Private prekeys, and the signed offers made from them.

A client keeps its session identity key for the life of its home, signed prekeys for some weeks,
one-time prekeys until they are used. The caller stores the encoded keys encrypted.
"""

from __future__ import annotations

import hashlib
import os

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

from cipherbox.classes import frozen
from cipherbox.envelope import prekeys as public_form
from cipherbox.envelope.stanza_types import StanzaType, key_id
from cipherbox.errors import BundleNotCertified, StoreError
from cipherbox.sealing.identity import Identity
from cipherbox.sealing.ratchet import handshake
from cipherbox.sealing.ratchet.double_ratchet import KEY, Random, public

SEED = 64


@frozen(repr=False)
class Pair:
    """An X25519 private key and an ML-KEM-768 seed."""

    dh: bytes
    kem: bytes

    @classmethod
    def generate(cls, random: Random = os.urandom) -> Pair:
        return cls(random(KEY), MLKEM768PrivateKey.generate().private_bytes_raw())

    @classmethod
    def decode(cls, raw: bytes) -> Pair:
        """Return the pair that `encode` encoded. Raise StoreError for anything else."""
        if len(raw) != KEY + SEED:
            raise StoreError("a stored prekey is damaged")
        return cls(raw[:KEY], raw[KEY:])

    def encode(self) -> bytes:
        return self.dh + self.kem

    @property
    def kem_public(self) -> bytes:
        return MLKEM768PrivateKey.from_seed_bytes(self.kem).public_key().public_bytes_raw()


def session_key_id(identity_public: bytes) -> bytes:
    """Return the key id of a recipient's entry of type `ratchet` in a prefix."""
    return key_id(StanzaType.RATCHET, identity_public)


def offer(
    identity: Identity, session_identity: bytes, prekey_id: int, pair: Pair, made_at: int
) -> bytes:
    """Return the signed part of an offer; ``session_identity`` is private."""
    raw = public_form.unsigned(
        identity.client_id,
        made_at,
        public(session_identity),
        prekey_id,
        public(pair.dh),
        pair.kem_public,
        identity.suite,
    )
    return raw + identity.sign(public_form.USE, hashlib.sha256(raw).digest())


def offer_once(identity: Identity, session_identity: bytes, prekey_id: int, pair: Pair) -> bytes:
    """Return a one-time part of an offer."""
    raw = public_form.unsigned_once(
        identity.client_id,
        public(session_identity),
        prekey_id,
        public(pair.dh),
        pair.kem_public,
        identity.suite,
    )
    return raw + identity.sign(public_form.ONCE_USE, hashlib.sha256(raw).digest())


def verified_prekeys(
    client_id: str, sign_keys: dict[int, bytes], signed: bytes, once: bytes
) -> handshake.Prekeys:
    """Return prekeys that HQ served for a client, checked against the signing keys of its trusted
    bundle. Raise BundleError if they are invalid.

    ``once`` is empty if HQ has no one-time prekey left: the last-resort key is used then.
    """
    one = public_form.decode(signed)
    public_form.check(one, client_id, sign_keys)
    if not once:
        return handshake.Prekeys(one.identity, one.prekey_id, one.prekey, one.kem)
    two = public_form.decode_once(once)
    public_form.check(two, client_id, sign_keys)
    if two.identity != one.identity:
        raise BundleNotCertified(f"the one-time prekey of {client_id} belongs to other prekeys")
    return handshake.Prekeys(
        one.identity, one.prekey_id, one.prekey, two.kem, two.prekey_id, two.prekey
    )
