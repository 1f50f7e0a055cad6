"""The stanza `rsa-oaep`, and RSA private keys: made here, or taken from PEM files as OpenSSL writes
them.

RSA-OAEP cannot be bound to an envelope itself, so it carries a fresh secret, and the key that wraps
the content key is derived from that secret and the binding.  What fails, fails alike: a sender
learns nothing from which step it was.
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
# far above a key of 4,096 bits with its numbers in words; a wrong file is not read whole
PEM_BYTES = 32 * 1024
PASSWORD_BYTES = 1024
_PEM = b"-----BEGIN "
_SECRET = 32
_NONCE = bytes(12)  # the key under it wraps once
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)


class RsaOaep:
    """Wraps and unwraps as an HPKE suite does."""

    def encrypt(self, plaintext: bytes, public_key: RSAPublicKey, info: bytes) -> bytes:
        """The RSA ciphertext of a fresh secret, then ``plaintext`` under what is derived from it
        and ``info``.
        """
        secret = os.urandom(_SECRET)
        return public_key.encrypt(secret, _OAEP) + AESGCM(hkdf(secret, info, 32)).encrypt(
            _NONCE, plaintext, None
        )

    def decrypt(self, ciphertext: bytes, private_key: RSAPrivateKey, info: bytes) -> bytes:
        """What `encrypt` was given; ValueError or InvalidTag when it does not open."""
        at = private_key.key_size // 8
        secret = private_key.decrypt(ciphertext[:at], _OAEP)
        if len(secret) != _SECRET:
            raise ValueError("another secret than the format has")
        return AESGCM(hkdf(secret, info, 32)).decrypt(_NONCE, ciphertext[at:], None)


def generate(bits: int = DEFAULT_BITS) -> bytes:
    """A fresh private key: PKCS#8, DER, as key files hold it."""
    return _encode(rsa.generate_private_key(65_537, bits))


def load_private(seed: bytes) -> RSAPrivateKey:
    """The key of these bytes.  They were proved before they went into the key file: doing it
    again takes 0.1 s.
    """
    key = load_der_private_key(seed, None, unsafe_skip_rsa_key_validation=True)
    if not isinstance(key, RSAPrivateKey):
        raise ValueError("not an RSA key")
    return key


def public(seed: bytes) -> bytes:
    """The public key as a bundle has it."""
    return encode_public(load_private(seed).public_key())


def public_pem(spki: bytes) -> bytes:
    """A bundle's RSA key as `openssl rsa -pubout` writes it."""
    return load_der_public_key(spki).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def is_pem(data: bytes) -> bool:
    """Whether this may be a PEM file; OpenSSL writes text before the block when asked to."""
    return _PEM in data


def import_pem(data: bytes, where: str, password: Callable[[], bytes]) -> bytes:
    """The private key of a PEM file (PKCS#1 or PKCS#8), as key files hold it; ``password`` is asked
    when it needs one.

    ConfigError names ``where``, says what is wrong and what to do, and never what is in it.
    """
    if b"PUBLIC KEY-----" in data and b"PRIVATE KEY-----" not in data:
        raise ConfigError(f"{where} is a public key", remedy="import the private key it belongs to")
    if len(data) > PEM_BYTES:
        raise ConfigError(
            f"{where} is larger than any RSA key that is taken here ({PEM_BYTES} bytes)"
        )
    secret: bytes | None = None
    try:
        key = _load(data, None, checked=False)
    except TypeError:  # the library's word for an encrypted key and no password
        secret = _password(password(), where)
        try:
            key = _load(data, secret, checked=False)
        except Exception:  # whatever the parser says of garbled bytes, its text could quote them
            raise ConfigError(
                f"{where} does not open: the password is wrong, or the file is damaged"
            ) from None
    except Exception:  # the same
        raise ConfigError(
            f"{where} holds no private key that can be read: an RSA key of two primes, in PKCS#1 "
            "or PKCS#8; if OpenSSL reads it, write it anew with: openssl pkey -in OLD -out NEW"
        ) from None
    if not isinstance(key, RSAPrivateKey):
        raise ConfigError(
            f"{where} is not an RSA key", remedy="make one with: cipherbox keys generate --rsa"
        )
    if why := fault(key.public_key()):  # first, for proving the primes of a huge key takes minutes
        raise ConfigError(
            f"{where}: {why}", remedy="make another with: cipherbox keys generate --rsa"
        )
    try:
        key = _load(data, secret, checked=True)
    except Exception:
        raise ConfigError(
            f"{where}: the numbers of this RSA key do not belong together; it is damaged"
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
