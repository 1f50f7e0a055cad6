"""The enrolment token: one line of text that carries everything a machine needs to join, and proves
the right to.

The bytes are in the manual page `token`.  The secret works once; HQ keeps only its SHA-256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct

import attrs

from cipherbox.errors import CipherBoxError, TokenError
from cipherbox.limits import LIMITS, check_client_id

PREFIX = "cipherbox-1-"
_VERSION = 1
_HEAD = struct.Struct(">B16s32sQB")
_SIZE = struct.Struct(">H")
_CHECK = 4


@attrs.frozen
class Token:
    """What a token says.  ``expires_at`` is ms since 1970; ``root_fingerprint`` is SHA-256 of
    the root's DER.
    """

    client_id: str
    address: str  # "host:port", or several with commas; "wss://host:port/" for WebSocket
    root_fingerprint: bytes
    expires_at: int
    secret: bytes = attrs.field(repr=False)


def secret_hash(secret: bytes) -> bytes:
    """What HQ keeps of the secret."""
    return hashlib.sha256(secret).digest()


def encode_token(token: Token) -> str:
    """The token as one line of text."""
    name, address = token.client_id.encode(), token.address.encode()
    raw = _HEAD.pack(_VERSION, token.secret, token.root_fingerprint, token.expires_at, len(name))
    raw += name + _SIZE.pack(len(address)) + address
    raw += hashlib.sha256(raw).digest()[:_CHECK]
    return PREFIX + base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """Reads a token; white space around it and line breaks inside it (from mail) do not matter."""
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise TokenError(f"this is no enrolment token: a token begins with {PREFIX!r}")
    body = text[len(PREFIX) :]
    if len(body) > LIMITS.token_bytes:
        raise TokenError("this is no enrolment token: it is too long")
    try:
        raw = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise TokenError(
            "the token has characters that do not belong there; copy it again, whole"
        ) from None
    if len(raw) < _HEAD.size + 2 + _CHECK or not hmac.compare_digest(
        hashlib.sha256(raw[:-_CHECK]).digest()[:_CHECK], raw[-_CHECK:]
    ):
        raise TokenError("the token is damaged or incomplete; copy it again, whole")
    version, secret, fingerprint, expires_at, size = _HEAD.unpack_from(raw)
    if version != _VERSION:
        raise TokenError(
            f"the token is of version {version}, which this program does not know; update it"
        )
    at = _HEAD.size
    name, at = raw[at : at + size], at + size
    address = raw[at + 2 : -_CHECK]
    try:
        if len(name) != size or _SIZE.unpack_from(raw, at)[0] != len(address) or not address:
            raise TokenError("the token is damaged")
        client_id = check_client_id(name.decode("ascii"))
        where = address.decode("utf-8")
    except (UnicodeDecodeError, struct.error, CipherBoxError):
        raise TokenError("the token is damaged: its fields do not fit together") from None
    return Token(client_id, where, fingerprint, expires_at, secret)
