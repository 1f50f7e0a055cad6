"""The cryptographic calls that everything else is built on: no options, one label for each use, no
constructions of our own.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

from cipherbox.envelope.labels import label
from cipherbox.envelope.suites import BodyCipher

CONTENT_KEY_BYTES = 32
SALT = b"cipherbox/v1"
_BODY_KEY, _BODY_NONCE, _COMMITMENT = label("body-key"), label("body-nonce"), label("commitment")
_PLAINTEXT = label("plaintext-commitment")
_SHA256 = hashes.SHA256()


class ContentKeys(NamedTuple):
    """The three keys that HKDF-SHA256 (RFC 5869) derives from a content key, each under its own
    label.
    """

    body_key: bytes  # 32
    nonce: bytes  # 12
    commitment: bytes  # 32, public: AES-GCM alone does not commit to its key

    def __repr__(self) -> str:
        return "ContentKeys(…)"


def hkdf(secret: bytes, info: bytes, length: int, salt: bytes = SALT) -> bytes:
    """Return the output of HKDF-SHA256."""
    return HKDF(_SHA256, length, salt, info).derive(secret)


def derive(content_key: bytes) -> ContentKeys:
    """Return body key, nonce and commitment of a content key, which seals only one body."""
    secret = HKDF.extract(_SHA256, SALT, content_key)  # once for all three, by RFC 5869
    return ContentKeys(
        HKDFExpand(_SHA256, 32, _BODY_KEY).derive(secret),
        HKDFExpand(_SHA256, 12, _BODY_NONCE).derive(secret),
        HKDFExpand(_SHA256, 32, _COMMITMENT).derive(secret),
    )


def commit_to(plain: bytes, sealed_at: int) -> bytes:
    """Return the commitment to a plaintext, which has its own salt, and to the prefix's time of
    sealing.
    """
    running = hashlib.sha256(_PLAINTEXT + sealed_at.to_bytes(8, "big"))
    running.update(plain)
    return running.digest()


def aead(cipher: int, key: bytes) -> AESGCM | ChaCha20Poly1305:
    """Return the body cipher: AES-256-GCM (RFC 5116) or ChaCha20-Poly1305 (RFC 8439)."""
    return AESGCM(key) if cipher == BodyCipher.AES_256_GCM else ChaCha20Poly1305(key)
