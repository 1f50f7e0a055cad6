"""Prekeys: public keys that a client stores at HQ, so that others can start a session with it while
it is offline.

A *signed* part holds the session's identity key, a prekey and a last-resort ML-KEM key; each
*one-time* part holds an X25519 and an ML-KEM key for one first contact.  Every part carries all the
signatures of the suite of the client's key bundle: anyone who trusts the bundle (pinned, certified)
can trust the prekeys, and nobody else can make them.  HQ makes the same checks before it accepts
them.  The manual page `sessions` specifies the bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Mapping
from typing import Any

import attrs
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PublicKey

from cipherbox.classes import frozen
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


@frozen
class SignedPrekeys:
    """The signed part. ``made_at`` is ms since 1970; ``kem`` is the last-resort key."""

    client_id: str
    made_at: int
    identity: bytes
    prekey_id: int
    prekey: bytes
    kem: bytes = attrs.field(repr=False)
    suite: int
    signatures: bytes = attrs.field(repr=False)
    digest: bytes = attrs.field(repr=False)


@frozen
class OncePrekey:
    """A one-time part of the signed part with the same identity key."""

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
    """Return the bytes of a signed part without its signatures, which cover their SHA-256 with the
    use `prekeys`.
    """
    name = client_id.encode()
    head = _HEAD.pack(MAGIC, VERSION, 0, len(name)) + name
    return head + _SIGNED.pack(made_at, identity, prekey_id, prekey, kem, suite)


def unsigned_once(
    client_id: str, identity: bytes, prekey_id: int, prekey: bytes, kem: bytes, suite: int
) -> bytes:
    """Return the bytes of a one-time part without its signatures, whose use is `prekey-once`."""
    name = client_id.encode()
    head = _HEAD.pack(ONCE_MAGIC, VERSION, 0, len(name)) + name
    return head + _ONCE.pack(identity, prekey_id, prekey, kem, suite)


def decode(raw: bytes) -> SignedPrekeys:
    """Return the signed part in these bytes, unverified; raise BundleMalformed if there is none."""
    return SignedPrekeys(*_parts(raw, MAGIC, _SIGNED))


def decode_once(raw: bytes) -> OncePrekey:
    """Return the one-time part in these bytes, as `decode` does for the signed part."""
    found = OncePrekey(*_parts(raw, ONCE_MAGIC, _ONCE))
    if not found.prekey_id:
        raise BundleMalformed("a one-time prekey has no id")
    return found


def _parts(raw: bytes, magic: bytes, layout: struct.Struct) -> tuple[Any, ...]:
    try:
        found, version, flags, size = _HEAD.unpack_from(raw)
        if found != magic or version != VERSION or flags:
            raise BundleMalformed(
                "these bytes are not prekeys of a version this program knows",
                remedy="update this program",
            )
        at = _HEAD.size + size
        client_id = check_client_id(raw[_HEAD.size : at].decode("ascii"))
        fields = layout.unpack_from(raw, at)
        at += layout.size
        expected = SIGNATURE_SIZES[SignatureSuite(fields[-1])]
    except (struct.error, ValueError, InvalidRequest):
        raise BundleMalformed("these bytes are not prekeys") from None
    if len(raw) != at + expected:
        raise BundleMalformed("the prekeys have the wrong length")
    return client_id, *fields, raw[at:], hashlib.sha256(raw[:at]).digest()


def check(
    prekeys: SignedPrekeys | OncePrekey, client_id: str, sign_keys: Mapping[int, bytes]
) -> None:
    """Verify prekeys of ``client_id`` with the ``sign_keys`` of its bundle.

    Raise BundleForAnother, BundleNotCertified, or BundleMalformed if a key is invalid.
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
            f"the prekeys of {client_id} are not signed by its keys; it publishes new ones "
            "when it next receives"
        ) from None
    try:
        MLKEM768PublicKey.from_public_bytes(prekeys.kem)
        for key in (prekeys.identity, prekeys.prekey):
            check_x25519(key)
    except ValueError:
        raise BundleMalformed("a prekey is not a valid key") from None
