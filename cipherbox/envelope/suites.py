"""Body ciphers, signature suites and the keys in bundles: their numbers on the wire and sizes."""

from __future__ import annotations

import enum


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
