"""The offsets of an envelope's parts, and the hashes over them, computed in one pass.

    prefix | stanzas | body | signatures
           ^stanzas  ^body  ^signatures  ^total

SHA-256 runs once over the envelope.  Its value before the body is the body's associated data; its
value before the signatures is the *envelope hash*, which is signed, compared, logged and receipted;
its value at the end is the *stored hash*, which HQ verifies when it reads the disk.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from cipherbox.envelope.prefix import Prefix, decode_prefix
from cipherbox.envelope.suites import SIGNATURE_SIZES
from cipherbox.errors import MalformedEnvelope
from cipherbox.limits import LIMITS

_COPIED_BYTES = 8192  # below it slices of bytes cost less than a memoryview
Octets = bytes | memoryview
_sha256 = hashlib.sha256
_new = tuple.__new__  # a NamedTuple's own constructor takes three times as long


class Layout(NamedTuple):
    """The prefix, and the offsets of the parts that follow it."""

    prefix: Prefix
    stanzas_at: int
    body_at: int
    signatures_at: int
    total: int


class Hashes(NamedTuple):
    """The values of the running hash at the three offsets."""

    header_hash: bytes
    envelope_hash: bytes
    stored_hash: bytes


_SIGNATURES = {int(suite): size for suite, size in SIGNATURE_SIZES.items()}


def split(buf: Octets) -> Layout:
    """Return the layout of an envelope; raise MalformedEnvelope unless its length is exactly what
    the prefix says.
    """
    prefix = decode_prefix(buf if isinstance(buf, bytes) else bytes(buf[: LIMITS.prefix_bytes]))
    at = prefix.prefix_length
    body_at = at + prefix.stanzas_length
    signatures_at = body_at + prefix.body_length
    total = signatures_at + _SIGNATURES[prefix.signature_suite]
    if total != len(buf):
        raise MalformedEnvelope(f"the envelope has {len(buf)} bytes; its prefix says {total}")
    return _new(Layout, (prefix, at, body_at, signatures_at, total))


def hashes(buf: Octets, layout: Layout) -> Hashes:
    """Return all three hashes, in one pass."""
    _, _, body_at, signatures_at, total = layout
    view = buf if total < _COPIED_BYTES else memoryview(buf)
    running = _sha256(view[:body_at])
    header = running.digest()
    running.update(view[body_at:signatures_at])
    envelope = running.digest()
    running.update(view[signatures_at:])
    return _new(Hashes, (header, envelope, running.digest()))


def stored_hashes(buf: Octets, layout: Layout) -> tuple[bytes, bytes]:
    """Return only the envelope hash and the stored hash, for HQ."""
    at = layout[3]
    view = buf if len(buf) < _COPIED_BYTES else memoryview(buf)
    running = _sha256(view[:at])
    envelope = running.digest()
    running.update(view[at:])
    return envelope, running.digest()


def stanza(buf: Octets, layout: Layout, index: int) -> bytes:
    """Return the bytes of recipient ``index``'s stanza."""
    at = layout.stanzas_at + sum(r.stanza_length for r in layout.prefix.recipients[:index])
    return bytes(buf[at : at + layout.prefix.recipients[index].stanza_length])
