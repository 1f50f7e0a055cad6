"""The signed log of version 0.5.0: a chain of signed heads.  It is only read and verified; the
first entry of its successor names its last head.
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
    """A decoded head. ``at`` is ms since 1970; entries count from 1."""

    index: int  # type: ignore[assignment]
    at: int
    previous: bytes
    root: bytes
    groups: int


def decode_head(raw: bytes) -> OldHead:
    """Return the head in these bytes; raise MalformedEnvelope if there is none."""
    if len(raw) != _HEAD.size:
        raise MalformedEnvelope("a head of the old log has the wrong length")
    magic, version, index, at, previous, root, groups = _HEAD.unpack(raw)
    if magic != b"CBXL" or version != 1 or not index or not groups:
        raise MalformedEnvelope("these bytes are not a head of the old log")
    return OldHead(index, at, previous, root, groups)


def head_hash(head: bytes, signature: bytes) -> bytes:
    """Return the hash by which the next head refers to this one."""
    return hashlib.sha256(head + signature).digest()


def verify_entry(
    head: bytes, signature: bytes, body: bytes, key: bytes, before: tuple[int, bytes] | None
) -> OldHead:
    """Return the verified head of one entry; raise SignatureInvalid or MalformedEnvelope.

    ``before`` is (index, head hash) of the previous entry, or None if that is unknown.
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
        raise SignatureInvalid("the entry does not name its predecessor's hash")
    groups = decode_groups(body)
    if len(groups) != found.groups or not hmac.compare_digest(
        merkle_root([root_of(g) for g in groups]), found.root
    ):
        raise SignatureInvalid("the entry's content is not what was signed")
    return found
