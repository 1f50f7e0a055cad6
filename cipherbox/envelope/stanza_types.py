"""The table of stanza types: how a recipient's copy of the content key may be wrapped.

`STANZAS` is the only list of them.  It determines the prefix's bounds, the keys that a bundle may
hold, the names in the API and on the command line, and which types are post-quantum.  A new type is
one row here, and one in `sealing.stanzas.SCHEMES` if it wraps with a public key.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from cipherbox.classes import frozen
from cipherbox.envelope import rsa
from cipherbox.envelope.labels import label
from cipherbox.limits import LIMITS

X25519_BYTES, MLKEM768_BYTES = 32, 1184  # public keys (RFC 7748; FIPS 203, table 3)
_HPKE_ENC_BYTES = 1120  # of X-Wing: the ML-KEM-768 ciphertext (1,088) and an X25519 key
_PROBE = X25519PrivateKey.from_private_bytes(bytes(32))


class StanzaType(enum.IntEnum):
    """The numbers on the wire."""

    HPKE_MLKEM768_X25519 = 1
    HPKE_X25519 = 2
    RSA_OAEP = 3
    RATCHET = 4


@frozen
class StanzaFormat:
    """One row.  All sizes are bytes.

    ``option`` is the type's name on the command line (`--wrap`), ``name`` everywhere else; the name
    is also in the label that binds a stanza.  ``check_public`` raises ValueError or BundleMalformed
    for a public key that nothing can be sealed to; it is None if bundles have no keys of this type,
    since a session's keys come with its prekeys.
    """

    type: StanzaType
    name: str
    option: str
    least: int  # of a stanza
    most: int
    post_quantum: bool
    check_public: Callable[[bytes], object] | None
    public_bytes: int | None = None  # None: the length varies
    default: bool = False  # every new identity gets a key of this type

    @property
    def in_bundles(self) -> bool:
        return self.check_public is not None


def check_x25519(public: bytes) -> None:
    """Raise ValueError for a point of small order, which makes a shared secret of zeros with every
    private key, the fixed one here included (RFC 7748, section 6.1).
    """
    _PROBE.exchange(X25519PublicKey.from_public_bytes(public))


def _check_hybrid(public: bytes) -> None:
    """Raise ValueError unless both halves are keys; ML-KEM's check is FIPS 203, section 7.2."""
    MLKEM768PublicKey.from_public_bytes(public[:-X25519_BYTES])
    check_x25519(public[-X25519_BYTES:])


_ROWS = (
    StanzaFormat(
        StanzaType.HPKE_MLKEM768_X25519,
        name="hpke-mlkem768-x25519",
        option="hpke",
        least=_HPKE_ENC_BYTES + rsa.SEALED_KEY_BYTES,
        most=_HPKE_ENC_BYTES + rsa.SEALED_KEY_BYTES,
        post_quantum=True,
        check_public=_check_hybrid,
        public_bytes=MLKEM768_BYTES + X25519_BYTES,
        default=True,
    ),
    StanzaFormat(
        StanzaType.HPKE_X25519,
        name="hpke-x25519",
        option="hpke-x25519",
        least=X25519_BYTES + rsa.SEALED_KEY_BYTES,
        most=X25519_BYTES + rsa.SEALED_KEY_BYTES,
        post_quantum=False,
        check_public=check_x25519,
        public_bytes=X25519_BYTES,
        default=True,
    ),
    StanzaFormat(
        StanzaType.RSA_OAEP,
        name="rsa-oaep",
        option="rsa",
        least=LIMITS.rsa_bits_least // 8 + rsa.SEALED_KEY_BYTES,
        most=LIMITS.rsa_bits_most // 8 + rsa.SEALED_KEY_BYTES,
        post_quantum=False,
        check_public=rsa.load_public,
    ),
    StanzaFormat(
        StanzaType.RATCHET,
        name="ratchet",
        option="ratchet",
        least=1,
        most=LIMITS.stanza_bytes,
        post_quantum=True,
        check_public=None,
    ),
)
STANZAS: dict[int, StanzaFormat] = {row.type: row for row in _ROWS}
# plain numbers, since enum members cost HQ time for each envelope
STANZA_BOUNDS = {int(row.type): (row.least, row.most) for row in _ROWS}
IN_BUNDLES = frozenset(row.type for row in _ROWS if row.in_bundles)
POST_QUANTUM = frozenset(row.type for row in _ROWS if row.post_quantum)
DEFAULT_TYPES = tuple(row.type for row in _ROWS if row.default)
BY_NAME = {row.name: row.type for row in _ROWS}


def stanza_label(stanza_type: int) -> bytes:
    """Return the label that begins the binding of every stanza of this type."""
    return label("stanza/" + STANZAS[stanza_type].name)


def key_id(stanza_type: int, public_key: bytes) -> bytes:
    """Return the 16 bytes that identify an encryption key in a prefix."""
    return hashlib.sha256(label("key-id") + bytes([stanza_type]) + public_key).digest()[:16]
