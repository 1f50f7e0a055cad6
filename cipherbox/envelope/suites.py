"""Tables of body ciphers, signature suites and signing keys: numbers on the wire, names and sizes.

Settings, the API and the command line use these names.
"""

from __future__ import annotations

import enum

from cipherbox.classes import frozen


class BodyCipher(enum.IntEnum):
    """How the body is encrypted; both have a 32-byte key, a 12-byte nonce and a 16-byte tag."""

    AES_256_GCM = 1
    CHACHA20_POLY1305 = 2


BODY_CIPHERS = {
    "aes-256-gcm": BodyCipher.AES_256_GCM,
    "chacha20-poly1305": BodyCipher.CHACHA20_POLY1305,
}


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


@frozen
class SignKeyFormat:
    """One row: a signing key's name, and the bytes of its public key and of its signatures."""

    algorithm: SignAlgorithm
    name: str
    public_bytes: int
    signature_bytes: int


SIGN_KEYS: dict[int, SignKeyFormat] = {
    row.algorithm: row
    for row in (
        SignKeyFormat(SignAlgorithm.ED25519, "ed25519", 32, 64),  # RFC 8032
        SignKeyFormat(SignAlgorithm.MLDSA65, "mldsa65", 1952, 3309),  # FIPS 204, table 2
    )
}


class SignatureSuite(enum.IntEnum):
    """Which signatures an envelope carries; all of a suite's signatures must verify."""

    ED25519 = 1
    ED25519_MLDSA65 = 2


# the keys of a suite, in the order of their signatures
SUITE_KEYS: dict[int, tuple[SignAlgorithm, ...]] = {
    SignatureSuite.ED25519: (SignAlgorithm.ED25519,),
    SignatureSuite.ED25519_MLDSA65: (SignAlgorithm.ED25519, SignAlgorithm.MLDSA65),
}
SIGNATURE_SIZES = {
    suite: sum(SIGN_KEYS[key].signature_bytes for key in keys) for suite, keys in SUITE_KEYS.items()
}
SUITE_NAMES = {
    suite: "+".join(SIGN_KEYS[key].name for key in keys) for suite, keys in SUITE_KEYS.items()
}
SUITES = {name: SignatureSuite(suite) for suite, name in SUITE_NAMES.items()}
