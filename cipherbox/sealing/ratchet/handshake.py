"""The handshake that starts a session with a peer that may be offline (Signal, "The PQXDH Key
Agreement Protocol", revision 3).

The responder has left prekeys: an identity key, a signed X25519 prekey, and for each first contact
a one-time X25519 and ML-KEM-768 key, or a last-resort ML-KEM-768 key when those are exhausted. The
initiator makes an ephemeral key and a KEM ciphertext; both ends compute

    DH1 = DH(IK_A, SPK_B)  DH2 = DH(EK_A, IK_B)  DH3 = DH(EK_A, SPK_B)  [DH4 = DH(EK_A, OPK_B)]
    SS = KEM
    SK = HKDF-SHA256(salt = 32 zeros, input = 32 x FF, DH1, DH2, DH3, [DH4], SS, info)
    AD = 05 IK_A 05 IK_B 0A PQPK_B, the handshake's bytes, and the names of both ends

An attacker who breaks X25519 later, with a quantum computer, still lacks SS; a weakness in ML-KEM
leaves the DHs. The caller has checked the signatures over identity keys and prekeys
(`envelope.prekeys`); nothing here does.
"""

from __future__ import annotations

import hashlib
import os
import struct

import attrs
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey

from cipherbox.classes import frozen
from cipherbox.envelope.labels import label
from cipherbox.errors import BundleMalformed, DecryptionFailed, MalformedEnvelope
from cipherbox.sealing.primitives import hkdf
from cipherbox.sealing.ratchet.double_ratchet import KEY, Random, public, shared

INFO = b"cipherbox/v1_CURVE25519_SHA-256_ML-KEM-768"
KEM_CIPHERTEXT = 1088
_LAYOUT = struct.Struct(f">32s32sQII{KEM_CIPHERTEXT}s")
SIZE = _LAYOUT.size
_F = b"\xff" * 32
_CURVE, _KEM = b"\x05", b"\x0a"


@frozen
class Prekeys:
    """A responder's public prekeys for one first contact; ``once`` is empty when the one-time keys
    are exhausted, and ``kem`` is then the last-resort key.
    """

    identity: bytes
    signed_id: int
    signed: bytes
    kem: bytes
    once_id: int = 0
    once: bytes = b""


@frozen(repr=False)
class Secrets:
    """The private keys of `Prekeys`: X25519 keys, and an ML-KEM seed (64 bytes)."""

    identity: bytes
    signed: bytes
    kem: bytes
    once: bytes = b""


@frozen
class Handshake:
    """What the initiator sends with every message until it has an answer; ``made_at`` is ms since
    1970 by its clock.
    """

    identity: bytes
    ephemeral: bytes
    made_at: int
    signed_id: int
    once_id: int
    ciphertext: bytes = attrs.field(repr=False)

    def encode(self) -> bytes:
        """Return the handshake's 1,168 bytes."""
        return _LAYOUT.pack(
            self.identity,
            self.ephemeral,
            self.made_at,
            self.signed_id,
            self.once_id,
            self.ciphertext,
        )


@frozen(repr=False)
class Agreed:
    """What both ends share: the first root key, the hash of everything agreed on, and the session's
    id.
    """

    root: bytes
    associated: bytes  # 32
    session_id: bytes  # 16


def decode(raw: bytes) -> Handshake:
    """Return the handshake. Raise MalformedEnvelope if the length is wrong."""
    if len(raw) != SIZE:
        raise MalformedEnvelope("the session's handshake has the wrong length")
    return Handshake(*_LAYOUT.unpack(raw))


def dh_secrets(parts: tuple[bytes, ...], kem_secret: bytes) -> bytes:
    """Return the shared secret SK: Signal's KDF."""
    return hkdf(_F + b"".join(parts) + kem_secret, INFO, KEY, bytes(32))


def begin(
    identity: bytes, prekeys: Prekeys, made_at: int, parties: bytes, random: Random = os.urandom
) -> tuple[Handshake, Agreed]:
    """Run the initiator's half and return the handshake and what was agreed on.

    ``identity`` is its private identity key, ``parties`` the encoded names of both ends. Raise
    BundleMalformed for invalid prekeys.
    """
    ephemeral = random(KEY)
    try:
        secret, ciphertext = MLKEM768PublicKey.from_public_bytes(prekeys.kem).encapsulate()
        parts = [
            shared(identity, prekeys.signed),
            shared(ephemeral, prekeys.identity),
            shared(ephemeral, prekeys.signed),
        ]
        if prekeys.once:
            parts.append(shared(ephemeral, prekeys.once))
    except (ValueError, DecryptionFailed):
        raise BundleMalformed("a prekey is invalid") from None
    handshake = Handshake(
        public(identity),
        public(ephemeral),
        made_at,
        prekeys.signed_id,
        prekeys.once_id if prekeys.once else 0,
        ciphertext,
    )
    root = dh_secrets(tuple(parts), secret)
    return handshake, _agreed(root, handshake, prekeys.identity, prekeys.kem, parties)


def answer(secrets: Secrets, handshake: Handshake, parties: bytes) -> Agreed:
    """Run the responder's half and return what was agreed on. Raise DecryptionFailed for a
    handshake with invalid keys.
    """
    parts = [
        shared(secrets.signed, handshake.identity),
        shared(secrets.identity, handshake.ephemeral),
        shared(secrets.signed, handshake.ephemeral),
    ]
    if secrets.once:
        parts.append(shared(secrets.once, handshake.ephemeral))
    kem = MLKEM768PrivateKey.from_seed_bytes(secrets.kem)
    try:
        secret = kem.decapsulate(handshake.ciphertext)
    except ValueError:
        raise DecryptionFailed("the session's handshake does not decrypt") from None
    root = dh_secrets(tuple(parts), secret)
    return _agreed(
        root, handshake, public(secrets.identity), kem.public_key().public_bytes_raw(), parties
    )


def _agreed(
    root: bytes, handshake: Handshake, responder: bytes, kem: bytes, parties: bytes
) -> Agreed:
    keys = _CURVE + handshake.identity + _CURVE + responder + _KEM + kem
    associated = hashlib.sha256(label("session") + keys + handshake.encode() + parties).digest()
    return Agreed(root, associated, hashlib.sha256(label("session-id") + associated).digest()[:16])


def parties(initiator: str, responder: str, prologue: bytes = b"") -> bytes:
    """Return the encoded names of both ends, and a prologue that both must share."""
    names = [name.encode() for name in (initiator, responder)]
    return b"".join(len(part).to_bytes(4, "big") + part for part in (*names, prologue))
