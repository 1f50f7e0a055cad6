"""Encrypt a client's secrets under its home's local key: content keys, session state and received
content.

A sender keeps content keys to seal its own envelopes again. An envelope's bytes and its content key
together are its plaintext, so the key is never stored in clear. XChaCha20-Poly1305 under a key that
HKDF derives for this use alone; envelope id and generation are associated data.
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
SECRET_BOX_BYTES = _NONCE + 16  # what encryption adds: nonce and tag
SESSIONS_DAMAGED = (
    "the sessions file is damaged or belongs to another key; move it away to begin new sessions"
)
CONTENT_DAMAGED = "stored received content is damaged, or belongs to another home's local key"


class LocalSecretBox:
    """Wraps and unwraps content keys, and has a box for each other use. ``local_key`` has 32
    bytes.
    """

    def __init__(self, local_key: bytes) -> None:
        self._key = hkdf(local_key, label("outbox"), 32)
        self.session_box = SecretBox(hkdf(local_key, label("sessions"), 32))
        self.content_box = SecretBox(hkdf(local_key, label("content"), 32), CONTENT_DAMAGED)

    def __repr__(self) -> str:
        return "LocalSecretBox(…)"

    def wrap(self, content_key: bytes, envelope_id: bytes, generation: int) -> bytes:
        """Return the encrypted content key, 72 bytes."""
        nonce = nacl.utils.random(_NONCE)
        bound = envelope_id + generation.to_bytes(4, "big")
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(
            content_key, bound, nonce, self._key
        )

    def unwrap(self, wrapped: bytes, envelope_id: bytes, generation: int) -> bytes:
        """Return the content key. Raise DecryptionFailed if the bytes were changed or belong to
        another envelope.
        """
        bound = envelope_id + generation.to_bytes(4, "big")
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                wrapped[_NONCE:], bound, wrapped[:_NONCE], self._key
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise DecryptionFailed("the stored key of this envelope does not decrypt") from None


class SecretBox:
    """Encrypts data at rest. ``key`` has 32 bytes; ``damaged`` is the error's text if decryption
    fails.

    Each call's ``place`` is associated data: where the bytes are stored, so that they cannot be
    moved.
    """

    def __init__(self, key: bytes, damaged: str = SESSIONS_DAMAGED) -> None:
        self._key, self._damaged = key, damaged

    def __repr__(self) -> str:
        return "SecretBox(…)"

    def encrypt(self, secret: bytes | memoryview, place: bytes) -> bytes:
        """Return the ciphertext, 40 bytes longer than the secret."""
        nonce = nacl.utils.random(_NONCE)
        return nonce + crypto_aead_xchacha20poly1305_ietf_encrypt(
            bytes(secret), place, nonce, self._key
        )

    def decrypt(self, ciphertext: bytes, place: bytes) -> bytes:
        """Return the secret. Raise DecryptionFailed if the bytes were changed, moved, or belong to
        another home.
        """
        try:
            return crypto_aead_xchacha20poly1305_ietf_decrypt(
                ciphertext[_NONCE:], place, ciphertext[:_NONCE], self._key
            )
        except (nacl.exceptions.CryptoError, ValueError):
            raise DecryptionFailed(self._damaged) from None
