"""RSA public keys in bundles: which ones are accepted, and their only encoding there,
SubjectPublicKeyInfo in DER.

The owner's program, HQ and every sender apply the same rules, so a key that only some of them could
use never gets into a bundle.
"""

from __future__ import annotations

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from cipherbox.errors import BundleMalformed
from cipherbox.limits import LIMITS

SEALED_KEY_BYTES = 32 + 16  # of a stanza: the content key under AES-256-GCM
_EXPONENT_LEAST = 65_537  # smaller ones have a history of attacks; OpenSSL's default
# OpenSSL refuses a larger one with a modulus above 3,072 bits, and each bit costs the sender time
_EXPONENT_MOST = 2**64 - 1


def fault(key: RSAPublicKey) -> str:
    """Return why the key is not accepted; empty if it is."""
    bits, exponent = key.key_size, key.public_numbers().e
    least, most = LIMITS.rsa_bits_least, LIMITS.rsa_bits_most
    if not least <= bits <= most:
        return f"an RSA key must have {least} to {most} bits, and this one has {bits}"
    if bits % 8:
        return f"the bits of an RSA key must be a multiple of 8, and this one has {bits}"
    if not _EXPONENT_LEAST <= exponent <= _EXPONENT_MOST:
        return (
            f"the public exponent of an RSA key must lie between {_EXPONENT_LEAST} and 2^64, and "
            "this one does not"
        )
    if not key.public_numbers().n % 2 or not exponent % 2:
        return "the modulus or the exponent of this RSA key is even, so the key is invalid"
    return ""


def encode_public(key: RSAPublicKey) -> bytes:
    """Return the key's bytes in a bundle."""
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def load_public(raw: bytes) -> RSAPublicKey:
    """Return the key in these bytes; raise BundleMalformed if it is not accepted."""
    try:
        key = load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm):
        raise BundleMalformed("the RSA key in the bundle is invalid") from None
    if not isinstance(key, RSAPublicKey) or encode_public(key) != raw:
        raise BundleMalformed(
            "the RSA key in the bundle is invalid or not in its only allowed encoding"
        )
    if why := fault(key):
        raise BundleMalformed(why)
    return key


def stanza_bytes(key: RSAPublicKey) -> int:
    """Return the length of a stanza for this key, in bytes."""
    return key.key_size // 8 + SEALED_KEY_BYTES
