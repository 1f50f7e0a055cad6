"""Secrets of a client, encrypted under the home's local key: content keys a sender keeps, so that
it can seal its own envelopes again, what sessions are made of, and what was received.

An envelope's bytes and its content key together are its plaintext, so the key never lies beside
them in clear. XChaCha20-Poly1305 under a key that HKDF derives for this use alone; envelope id and
generation are associated data.
"""

from __future__ import annotations

import nacl.exceptions
import nacl.utils
from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)

from cipherbox.envelope.labels import label
from cipherbox.errors import DecryptionFailed
from cipherbox.sealing.primitives import hkdf

_NONCE = 24
SECRET_BOX_BYTES = _NONCE + 16  # what locking adds
SESSION_TROUBLE = (
    "the file with the sessions is damaged or belongs to another key; move it away, and they begin "
    "anew"
)
CONTENT_TROUBLE = (
    "what was kept here of received content is damaged, or belongs to another home's local key"
)


class LocalSecretBox:
    """Wraps and unwraps content keys.  ``local_key`` has 32 bytes."""

    def __init__(self, local_key: bytes) -> None:
        self._key = hkdf(local_key, label("outbox"), 32)
        self.session_box = SecretBox(hkdf(local_key, label("sessions"), 32))
        self.content_box = SecretBox(hkdf(local_key, label("content"), 32), CONTENT_TROUBLE)

    def __repr__(self) -> str:
        return "LocalSecretBox(…)"

    def wrap(self, content_key: bytes, envelope_id: bytes, generation: int) -> bytes:
        """What may lie on the disk: 72 bytes."""
        nonce = nacl.utils.random(_NONCE)
        bound = envelope_id + generation.to_bytes(4, "big")
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(
            content_key, bound, nonce, self._key
        )

    def unwrap(self, wrapped: bytes, envelope_id: bytes, generation: int) -> bytes:
        """The content key; DecryptionFailed if these bytes were changed or belong to another
        envelope.
        """
        bound = envelope_id + generation.to_bytes(4, "big")
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                wrapped[_NONCE:], bound, wrapped[:_NONCE], self._key
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise DecryptionFailed("the kept key of this envelope cannot be read") from None


class SecretBox:
    """Encrypts what lies on this machine's disk.  ``key`` has 32 bytes; ``place`` says where the
    bytes belong, ``trouble`` what to tell a person when they do not open.
    """

    def __init__(self, key: bytes, trouble: str = SESSION_TROUBLE) -> None:
        self._key, self._trouble = key, trouble

    def __repr__(self) -> str:
        return "SecretBox(…)"

    def encrypt(self, secret: bytes | memoryview, place: bytes) -> bytes:
        """What may lie on the disk: 40 bytes more."""
        nonce = nacl.utils.random(_NONCE)
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(
            bytes(secret), place, nonce, self._key
        )

    def decrypt(self, locked: bytes, place: bytes) -> bytes:
        """The secret; DecryptionFailed if these bytes were changed, moved, or belong to another
        home.
        """
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                locked[_NONCE:], place, locked[:_NONCE], self._key
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise DecryptionFailed(self._trouble) from None
