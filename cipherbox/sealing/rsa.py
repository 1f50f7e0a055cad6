"""The stanza `rsa-oaep`, and RSA private keys: generated, or imported from PEM files as OpenSSL
writes them.

RSA-OAEP cannot be bound to an envelope, so it carries a fresh secret, and the key that wraps the
content key is derived from that secret and the binding. All failures look alike: a sender does not
learn which step failed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_private_key,
)

from cipherbox.envelope.rsa import encode_public, fault
from cipherbox.errors import ConfigError
from cipherbox.sealing.primitives import hkdf

DEFAULT_BITS = 3072  # as strong as X25519 and AES-128; NIST SP 800-57 has 2,048 bits end with 2030
# far above a 4,096-bit key with a textual dump; limits what is read of a wrong file
PEM_BYTES = 32 * 1024
PASSWORD_BYTES = 1024
_PEM = b"-----BEGIN "
_SECRET = 32
_NONCE = bytes(12)  # each key is used once
OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class RsaOaep:
    """Wraps and unwraps with the interface of an HPKE suite."""

    def encrypt(self, plaintext: bytes, public_key: RSAPublicKey, info: bytes) -> bytes:
        """Return the RSA ciphertext of a fresh secret, then ``plaintext`` encrypted under a key
        derived from the secret and ``info``.
        """
        secret = os.urandom(_SECRET)
        return public_key.encrypt(secret, OAEP) + AESGCM(hkdf(secret, info, 32)).encrypt(
            _NONCE, plaintext, None
        )

    def decrypt(self, ciphertext: bytes, private_key: RSAPrivateKey, info: bytes) -> bytes:
        """Return the plaintext. Raise ValueError or InvalidTag if it does not decrypt."""
        at = private_key.key_size // 8
        secret = private_key.decrypt(ciphertext[:at], OAEP)
        if len(secret) != _SECRET:
            raise ValueError("the secret has the wrong length")
        return AESGCM(hkdf(secret, info, 32)).decrypt(_NONCE, ciphertext[at:], None)


def generate(bits: int = DEFAULT_BITS) -> bytes:
    """Return a fresh private key in PKCS#8 DER, as key files store it."""
    return _encode(rsa.generate_private_key(65_537, bits))


def load_private(seed: bytes) -> RSAPrivateKey:
    """Return the private key of these bytes without validating it again, which takes 0.1 s: it was
    validated before it went into the key file.
    """
    key = load_der_private_key(seed, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key


def public(seed: bytes) -> bytes:
    """Return the public key as a bundle stores it."""
    return encode_public(load_private(seed).public_key())


def public_pem(spki: bytes) -> bytes:
    """Return a bundle's RSA key as `openssl rsa -pubout` writes it."""
    return load_der_public_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def is_pem(data: bytes) -> bool:
    """Return whether this may be a PEM file; OpenSSL can write text before the block."""
    return _PEM in data


def import_pem(data: bytes, where: str, password: Callable[[], bytes]) -> bytes:
    """Return the private key of a PEM file (PKCS#1 or PKCS#8) as key files store it, calling
    ``password`` if the file is encrypted.

    Raise ConfigError that names ``where``, the cause and the remedy, and never quotes the file.
    """
    if b"PUBLIC KEY-----" in data and b"PRIVATE KEY-----" not in data:
        raise ConfigError(f"{where} is a public key", remedy="import its private key")
    if len(data) > PEM_BYTES:
        raise ConfigError(f"{where} is too large for an RSA key (at most {PEM_BYTES} bytes)")
    secret: bytes | None = None
    try:
        key = _load(data, None, checked=False)
    except TypeError:  # what the library raises for an encrypted key without a password
        secret = _password(password(), where)
        try:
            key = _load(data, secret, checked=False)
        except Exception:  # the parser's own text could quote the file
            raise ConfigError(
                f"{where} does not open: the password is wrong, or the file is damaged"
            ) from None
    except Exception:
        raise ConfigError(
            f"{where} holds no private key that can be read: an RSA key of two primes, in PKCS#1 "
            "or PKCS#8; if OpenSSL reads it, write it anew with: openssl pkey -in OLD -out NEW"
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError(
            f"{where} is not an RSA key", remedy="make one with: cipherbox keys generate --rsa"
        )
    if why := fault(key.public_key()):  # first, since checking a huge key's primes takes minutes
        raise ConfigError(
            f"{where}: {why}", remedy="make another with: cipherbox keys generate --rsa"
        )
    try:
        key = _load(data, secret, checked=True)
    except Exception:
        raise ConfigError(
            f"{where} is damaged: the numbers of this RSA key are inconsistent"
        ) from None
    assert isinstance(key, RSAPrivateKey)
    return _encode(key)


def _load(pem: bytes, password: bytes | None, *, checked: bool) -> object:
    return load_pem_private_key(pem, password, unsafe_skip_rsa_key_validation=not checked)


def _password(secret: bytes, where: str) -> bytes:
    if not secret:
        raise ConfigError(f"{where} is encrypted, and the password is empty")
    if len(secret) > PASSWORD_BYTES:
        raise ConfigError(f"the password of {where} is longer than {PASSWORD_BYTES} bytes")
    return secret


def _encode(key: RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
