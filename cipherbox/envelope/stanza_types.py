"""Stanza types: their numbers on the wire, names and sizes."""

from __future__ import annotations

import enum
import hashlib

from cipherbox.envelope.labels import label


class StanzaType(enum.IntEnum):
    """How a recipient's copy of the content key is wrapped."""

    HPKE_MLKEM768_X25519 = 1
    HPKE_X25519 = 2
    RSA_OAEP = 3
    RATCHET = 4


STANZA_NAMES = {
    StanzaType.HPKE_MLKEM768_X25519: "hpke-mlkem768-x25519",
    StanzaType.HPKE_X25519: "hpke-x25519",
    StanzaType.RSA_OAEP: "rsa-oaep",
    StanzaType.RATCHET: "ratchet",
}
POST_QUANTUM = frozenset({StanzaType.HPKE_MLKEM768_X25519, StanzaType.RATCHET})
SEALED_KEY = 32 + 16  # the content key under AES-256-GCM
STANZA_SIZES = {
    StanzaType.HPKE_MLKEM768_X25519: 1120 + SEALED_KEY,
    StanzaType.HPKE_X25519: 32 + SEALED_KEY,
}
PUBLIC_KEY_SIZES = {StanzaType.HPKE_MLKEM768_X25519: 1184 + 32, StanzaType.HPKE_X25519: 32}


def key_id(stanza_type: int, public_key: bytes) -> bytes:
    """The 16 bytes that name an encryption key in a prefix."""
    return hashlib.sha256(label("key-id") + bytes([stanza_type]) + public_key).digest()[:16]
