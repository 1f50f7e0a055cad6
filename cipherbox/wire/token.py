"""The enrolment token: one line of text with everything a machine needs to join HQ, and the secret
that authorizes it.

The manual page `token` has the format.  The secret works once; HQ keeps only its SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

import attrs

from cipherbox.classes import frozen
from cipherbox.errors import CipherBoxError, TokenError
from cipherbox.limits import LIMITS, check_client_id

PREFIX = "cipherbox-1-"
_VERSION = 1
_HEAD = struct.Struct(">B16s32sQB")
_SIZE = struct.Struct(">H")
_CHECK = 4


@frozen
class Token:
    """A decoded token: ``expires_at`` is in milliseconds since 1970, ``root_fingerprint`` the
    SHA-256 of the root certificate's DER.
    """

    client_id: str
    address: str  # "host:port", or several with commas; "wss://host:port/" for WebSocket
    root_fingerprint: bytes
    expires_at: int
    secret: bytes = attrs.field(repr=False)


def secret_hash(secret: bytes) -> bytes:
    """Return the hash that HQ keeps in place of the secret."""
    return hashlib.sha256(secret).digest()


def encode_token(token: Token) -> str:
    """Return the token as one line of text."""
    name, address = token.client_id.encode(), token.address.encode()
    raw = _HEAD.pack(_VERSION, token.secret, token.root_fingerprint, token.expires_at, len(name))
    raw += name + _SIZE.pack(len(address)) + address
    raw += hashlib.sha256(raw).digest()[:_CHECK]
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """Return the decoded token, ignoring white space and line breaks (from mail); raise TokenError
    if it is not a valid one.
    """
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise TokenError(f"not an enrolment token: a token begins with {PREFIX!r}")
    body = text[len(PREFIX) :]
    if len(body) > LIMITS.token_bytes:
        raise TokenError("not an enrolment token: too long")
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenError(
            "the token has invalid characters",
            remedy="copy the whole token again, or ask for a new one (cipherbox enroll)",
        ) from None
    if len(raw) < _HEAD.size + 2 + _CHECK or not hmac.compare_digest(
        hashlib.sha256(raw[:-_CHECK]).digest()[:_CHECK], raw[-_CHECK:]
    ):
        raise TokenError(
            "the token is damaged or incomplete",
            remedy="copy the whole token again, or ask for a new one (cipherbox enroll)",
        )
    version, secret, fingerprint, expires_at, size = _HEAD.unpack_from(raw)
    if version != _VERSION:
        raise TokenError(f"unknown token version {version}", remedy="update this program")
    at = _HEAD.size
    name, at = raw[at : at + size], at + size
    address = raw[at + 2 : -_CHECK]
    try:
        if len(name) != size or _SIZE.unpack_from(raw, at)[0] != len(address) or not address:
            raise TokenError("the token is damaged")
        client_id = check_client_id(name.decode("ascii"))
        hq_address = address.decode("utf-8")
    except (UnicodeDecodeError, struct.error, CipherBoxError):
        raise TokenError("the token is damaged: its fields are inconsistent") from None
    return Token(client_id, hq_address, fingerprint, expires_at, secret)
