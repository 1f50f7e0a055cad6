"""Prekeys: the public keys a client leaves at HQ, so that others can begin a session with it while
it is away.

A *signed* part holds the session's identity key, a prekey and a last-resort ML-KEM key; each
*one-time* part holds an X25519 and an ML-KEM key for one first contact.  Every part is signed by
the signing keys of the client's key bundle, all of its suite: who believes the bundle (pinned,
certified) can believe the prekeys, and nobody else can make them.  HQ checks the same before it
takes them.  The bytes are in the manual page `sessions`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import attrs
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from cipherbox.envelope import signature
from cipherbox.envelope.stanza_types import MLKEM768_BYTES, check_x25519
from cipherbox.envelope.suites import SIGNATURE_SIZES, SignatureSuite
from cipherbox.errors import (
    BundleForAnother,
    BundleMalformed,
    BundleNotCertified,
    InvalidRequest,
    SignatureInvalid,
)
from cipherbox.limits import check_client_id

MAGIC, ONCE_MAGIC = b"CBXP", b"CBXO"
VERSION = 1
USE, ONCE_USE = "prekeys", "prekey-once"
_HEAD = struct.Struct(">4sBBB")
_SIGNED = struct.Struct(f">Q32sI32s{MLKEM768_BYTES}sB")
_ONCE = struct.Struct(f">32sI32s{MLKEM768_BYTES}sB")


@attrs.frozen
class SignedPrekeys:
    """The signed part.  ``made_at``: ms since 1970; ``kem`` is the last-resort key."""

    client_id: str
    made_at: int
    identity: bytes
    prekey_id: int
    prekey: bytes
    kem: bytes = attrs.field(repr=False)
    suite: int
    signatures: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)


@attrs.frozen
class OncePrekey:
    """A one-time part; it belongs to the signed part with the same identity key."""

    client_id: str
    identity: bytes
    prekey_id: int
    prekey: bytes
    kem: bytes = attrs.field(repr=False)
    suite: int
    signatures: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)


def unsigned(
    client_id: str,
    made_at: int,
    identity: bytes,
    prekey_id: int,
    prekey: bytes,
    kem: bytes,
    suite: int,
) -> bytes:
    """The bytes of a signed part before its signatures, which are over their SHA-256 for use
    `prekeys`.
    """
    name = client_id.encode()
    head = _HEAD.pack(MAGIC, VERSION, 0, len(name)) + name
    return head + _SIGNED.pack(made_at, identity, prekey_id, prekey, kem, suite)


def unsigned_once(
    client_id: str, identity: bytes, prekey_id: int, prekey: bytes, kem: bytes, suite: int
) -> bytes:
    """The bytes of a one-time part before its signatures, for use `prekey-once`."""
    name = client_id.encode()
    head = _HEAD.pack(ONCE_MAGIC, VERSION, 0, len(name)) + name
    return head + _ONCE.pack(identity, prekey_id, prekey, kem, suite)


def decode(raw: bytes) -> SignedPrekeys:
    """BundleMalformed for other bytes.  Nothing is verified yet."""
    return SignedPrekeys(*_parts(raw, MAGIC, _SIGNED))


def decode_once(raw: bytes) -> OncePrekey:
    """As `decode`, of a one-time part."""
    found = OncePrekey(*_parts(raw, ONCE_MAGIC, _ONCE))
    if not found.prekey_id:
        raise BundleMalformed("a one-time prekey has no number")
    return found


def _parts(raw: bytes, magic: bytes, layout: struct.Struct) -> tuple[Any, ...]:
    try:
        found, version, flags, size = _HEAD.unpack_from(raw)
        if found != magic or version != VERSION or flags:
            raise BundleMalformed(
                "these bytes are no prekeys of a version this program knows", remedy="update it"
            )
        at = _HEAD.size + size
        client_id = check_client_id(raw[_HEAD.size : at].decode("ascii"))
        fields = layout.unpack_from(raw, at)
        at += layout.size
        expected = SIGNATURE_SIZES[SignatureSuite(fields[-1])]
    except (struct.error, ValueError, InvalidRequest):
        raise BundleMalformed("these bytes are no prekeys") from None
    if len(raw) != at + expected:
        raise BundleMalformed("the prekeys have the wrong length")
    return client_id, *fields, raw[at:], hashlib.sha256(raw[:at]).digest()


def check(
    prekeys: SignedPrekeys | OncePrekey, client_id: str, sign_keys: Mapping[int, bytes]
) -> None:
    """Believes prekeys of ``client_id`` because its bundle's ``sign_keys`` signed them.

    BundleForAnother, BundleNotCertified, or BundleMalformed for keys that are none.
    """
    if prekeys.client_id != client_id:
        raise BundleForAnother(
            f"asked for the prekeys of {client_id}, got those of {prekeys.client_id}"
        )
    use = USE if isinstance(prekeys, SignedPrekeys) else ONCE_USE
    try:
        signature.verify(sign_keys, prekeys.suite, use, prekeys.digest, prekeys.signatures)
    except SignatureInvalid:
        raise BundleNotCertified(
            f"the prekeys of {client_id} are not signed by its keys; it leaves new ones when it "
            "next receives"
        ) from None
    try:
        MLKEM768PublicKey.from_public_bytes(prekeys.kem)
        for key in (prekeys.identity, prekeys.prekey):
            check_x25519(key)
    except ValueError:
        raise BundleMalformed("a prekey is not a key") from None
