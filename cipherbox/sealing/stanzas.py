"""Stanzas: the content key wrapped for one recipient.

Every stanza is bound to its type's label, to the prefix and to its index: one wrapped for one
recipient of one envelope opens nowhere else. HPKE (RFC 9180, base mode, single shot) takes that
binding as `info`, and so does `rsa`. A new type is one more row of `SCHEMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from cipherbox.classes import frozen
from cipherbox.envelope import rsa as rsa_keys
from cipherbox.envelope.stanza_types import MLKEM768_BYTES, STANZAS, StanzaType, stanza_label
from cipherbox.errors import BundleMalformed, DecryptionFailed, KeyMissing
from cipherbox.sealing import rsa
from cipherbox.sealing.primitives import CONTENT_KEY_BYTES

MLKEM_SEED = 64
_INVALID_KEY = "an encryption key in the bundle is invalid"


@frozen
class Scheme:
    """How one stanza type generates keys, wraps and unwraps; private keys are seeds, as bytes."""

    info: bytes
    generate: Callable[[], bytes]
    public: Callable[[bytes], bytes]
    load_public: Callable[[bytes], Any]
    load_private: Callable[[bytes], Any]
    suite: Suite | rsa.RsaOaep


def _hybrid_generate() -> bytes:
    return (
        MLKEM768PrivateKey.generate().private_bytes_raw()
        + X25519PrivateKey.generate().private_bytes_raw()
    )


def hybrid_parts(seed: bytes) -> tuple[MLKEM768PrivateKey, X25519PrivateKey]:
    return (
        MLKEM768PrivateKey.from_seed_bytes(seed[:MLKEM_SEED]),
        X25519PrivateKey.from_private_bytes(seed[MLKEM_SEED:]),
    )


def _hybrid_public(seed: bytes) -> bytes:
    mlkem, x25519 = hybrid_parts(seed)
    return mlkem.public_key().public_bytes_raw() + x25519.public_key().public_bytes_raw()


def _hybrid_load_public(raw: bytes) -> MLKEM768X25519PublicKey:
    return MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(raw[:MLKEM768_BYTES]),
        X25519PublicKey.from_public_bytes(raw[MLKEM768_BYTES:]),
    )


SCHEMES: dict[int, Scheme] = {
    StanzaType.HPKE_MLKEM768_X25519: Scheme(
        stanza_label(StanzaType.HPKE_MLKEM768_X25519),
        _hybrid_generate,
        _hybrid_public,
        _hybrid_load_public,
        lambda seed: MLKEM768X25519PrivateKey(*hybrid_parts(seed)),
        Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    ),
    StanzaType.HPKE_X25519: Scheme(
        stanza_label(StanzaType.HPKE_X25519),
        lambda: X25519PrivateKey.generate().private_bytes_raw(),
        lambda seed: X25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw(),
        X25519PublicKey.from_public_bytes,
        X25519PrivateKey.from_private_bytes,
        Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM),
    ),
    StanzaType.RSA_OAEP: Scheme(
        stanza_label(StanzaType.RSA_OAEP),
        rsa.generate,
        rsa.public,
        rsa_keys.load_public,
        rsa.load_private,
        rsa.RsaOaep(),
    ),
}


@lru_cache(maxsize=1024)
def _public_key(stanza_type: int, raw: bytes) -> Any:
    try:
        return SCHEMES[stanza_type].load_public(raw)
    except BundleMalformed:
        raise
    except Exception:  # libraries raise different errors for a bad point or length
        raise BundleMalformed(_INVALID_KEY) from None


def _info(stanza_type: int, prefix_hash: bytes, index: int) -> bytes:
    return SCHEMES[stanza_type].info + prefix_hash + index.to_bytes(2, "big")


def size(stanza_type: int, public_key: bytes) -> int:
    """Return the length of a stanza for this key. Raise BundleMalformed for an invalid key."""
    if stanza_type == StanzaType.RSA_OAEP:
        return rsa_keys.stanza_bytes(_public_key(stanza_type, public_key))
    return STANZAS[stanza_type].least


def session_binding(prefix_hash: bytes, index: int) -> bytes:
    """Return the binding of a stanza of type `ratchet`, which a session wraps and unwraps, not this
    module.
    """
    return stanza_label(StanzaType.RATCHET) + prefix_hash + index.to_bytes(2, "big")


def wrap(
    stanza_type: int, public_key: bytes, content_key: bytes, prefix_hash: bytes, index: int
) -> bytes:
    """Return the stanza for recipient ``index``: encapsulated key, then the encrypted content key.

    Raise BundleMalformed for an invalid public key, or one with an all-zero shared secret (RFC
    9180, section 7.1.4).
    """
    key = _public_key(stanza_type, public_key)
    try:
        return SCHEMES[stanza_type].suite.encrypt(
            content_key, key, info=_info(stanza_type, prefix_hash, index)
        )
    except ValueError:
        raise BundleMalformed(_INVALID_KEY) from None


def unwrap(
    stanza_type: int, private_key: Any, stanza: bytes, prefix_hash: bytes, index: int
) -> bytes:
    """Return the content key. ``private_key`` is what `Scheme.load_private` returned. Raise
    DecryptionFailed if the stanza does not open.
    """
    scheme = SCHEMES.get(stanza_type)
    if scheme is None:
        raise KeyMissing(f"unknown stanza type {stanza_type}")
    try:
        content_key = scheme.suite.decrypt(
            stanza, private_key, info=_info(stanza_type, prefix_hash, index)
        )
    except (InvalidTag, ValueError):
        raise DecryptionFailed("the stanza does not open with this client's key") from None
    if len(content_key) != CONTENT_KEY_BYTES:
        raise DecryptionFailed("the stanza does not hold a content key")
    return content_key
