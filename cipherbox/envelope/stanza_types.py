"""The numbers on the wire, their sizes, and the labels that keep one use of a key from another."""

from __future__ import annotations

import enum
import hashlib


def label(use: str) -> bytes:
    """The domain separator of one use: never shared, never a prefix of another (it ends in a
    zero byte).
    """
    return b"cipherbox/v1/" + use.encode() + b"\x00"


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


class BodyCipher(enum.IntEnum):
    """How the body is encrypted; both have a 32-byte key, a 12-byte nonce and a 16-byte tag."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


class SignatureSuite(enum.IntEnum):
    """Which signatures an envelope carries; all of a suite's signatures must verify."""

    ED25519 = 1
    ED25519_MLDSA65 = 2


SIGNATURE_SIZES = {SignatureSuite.ED25519: 64, SignatureSuite.ED25519_MLDSA65: 64 + 3309}


class HashSuite(enum.IntEnum):
    """The hash of an envelope: of its bytes, its stanzas' binding and its commitments."""

    SHA256 = 1


class KeyUsage(enum.IntEnum):
    """What a key in a bundle is for."""

    ENCRYPT = 1
    SIGN = 2


class SignAlgorithm(enum.IntEnum):
    """Algorithms of signing keys in a bundle."""

    ED25519 = 1
    MLDSA65 = 2


SIGN_KEY_SIZES = {SignAlgorithm.ED25519: 32, SignAlgorithm.MLDSA65: 1952}


class Outcome(enum.IntEnum):
    """What became of an envelope or a message at its recipient; used in NACK and in receipts."""

    OPENED = 0
    MALFORMED = 1
    UNKNOWN_VERSION = 2
    NOT_RECIPIENT = 3
    KEY_MISSING = 4
    SIGNATURE_INVALID = 5
    DECRYPTION_FAILED = 6
    COMMITMENT_MISMATCH = 7
    SENDER_NOT_VALID = 8
    HANDLER_FAILED = 9
    TOO_OLD = 10
    PLAINTEXT_MISMATCH = 11
    COMMITMENT_CHANGED = 12
    NOT_ACCEPTED = 13
    OTHER = 255


def key_id(stanza_type: int, public_key: bytes) -> bytes:
    """The 16 bytes that name an encryption key in a prefix."""
    return hashlib.sha256(label("key-id") + bytes([stanza_type]) + public_key).digest()[:16]
