"""The signed log as version 0.5.0 kept it: a chain of signed heads.  It is read and verified, and
never written again; the first entry of the log that followed names its last head.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from cipherbox.envelope.labels import label
from cipherbox.envelope.merkle_tree import merkle_root
from cipherbox.envelope.transparency_log import decode_groups, root_of
from cipherbox.errors import MalformedEnvelope, SignatureInvalid

_HEAD = struct.Struct(">4sBQQ32s32sI")
_USE = label("log-head")


class OldHead(NamedTuple):
    """What was signed; ``at`` is ms since 1970, entries count from 1."""

    index: int  # type: ignore[assignment]
    at: int
    previous: bytes
    root: bytes
    groups: int


def decode_head(raw: bytes) -> OldHead:
    """Return a head; MalformedEnvelope if it is none."""
    if len(raw) != _HEAD.size:
        raise MalformedEnvelope("a head of the old log has another length")
    magic, version, index, at, previous, root, groups = _HEAD.unpack(raw)
    if magic != b"CBXL" or version != 1 or not index or not groups:
        raise MalformedEnvelope("these bytes are not a head of the old log")
    return OldHead(index, at, previous, root, groups)


def head_hash(head: bytes, signature: bytes) -> bytes:
    """Return what the next head holds of this one."""
    return hashlib.sha256(head + signature).digest()


def verify_entry(
    head: bytes, signature: bytes, body: bytes, key: bytes, before: tuple[int, bytes] | None
) -> OldHead:
    """Return one entry's head after the one whose (index, head hash) is ``before``; None: nothing
    is known of that.

    SignatureInvalid or MalformedEnvelope says what does not fit.
    """
    try:
        nacl.signing.VerifyKey(key).verify(_USE + hashlib.sha256(head).digest(), signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise SignatureInvalid("a head of HQ's old log is not signed with HQ's key") from None
    found = decode_head(head)
    if before is not None and found.index != before[0] + 1:
        raise SignatureInvalid(
            f"entry {before[0] + 1} is missing: {found.index} comes after {before[0]}"
        )
    if before is not None and not hmac.compare_digest(found.previous, before[1]):
        raise SignatureInvalid("it does not follow the entry before it")
    groups = decode_groups(body)
    if len(groups) != found.groups or not hmac.compare_digest(
        merkle_root([root_of(g) for g in groups]), found.root
    ):
        raise SignatureInvalid("what it holds is not what was signed")
    return found
