"""Receipts: the recipient's signed statement of what became of envelopes.

One signature covers a whole inbox commit: it signs the root of a Merkle tree (RFC 6962, section
2.1) with one leaf for each envelope.  An exported receipt carries its leaf and the path to the
root, so that it can be verified alone, years later.  The manual page `receipt` specifies the bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct

import attrs

from cipherbox.classes import frozen
from cipherbox.envelope import signature
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.merkle_tree import leaf_hash, root_from_path
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.suites import SIGNATURE_SIZES, SignatureSuite
from cipherbox.errors import InvalidRequest, MalformedEnvelope, SignatureInvalid, UnknownVersion
from cipherbox.limits import LIMITS, check_client_id

MAGIC = b"CBXR"
VERSION = 2  # version 1 is read, but no longer written
USE = "receipt"
_HEAD = struct.Struct(">4sBBB")
_TAIL = struct.Struct(">Q32s32sI")
_NOTE = struct.Struct(">H")
_LEAVES = {1: struct.Struct(">16sI32sQBI"), 2: struct.Struct(">16sI32s32sQQBI")}
NO_COMMITMENT = bytes(32)
_PATH = struct.Struct(">IB")


@frozen
class Leaf:
    """What became of one envelope. ``messages`` holds an outcome for each message, or is empty if
    all have the envelope's outcome.
    """

    sender: str
    envelope_id: bytes
    generation: int
    envelope_hash: bytes
    accepted_at: int
    outcome: Outcome
    messages: tuple[Outcome, ...] = ()
    # of the sender to the plaintext; zeros for envelopes of version 1
    commitment: bytes = NO_COMMITMENT
    log_entry: int = 0  # in which HQ's log records the acceptance; 0: HQ named none to the signer

    def encode(self, version: int = VERSION) -> bytes:
        name = self.sender.encode()
        first = (self.envelope_id, self.generation, self.envelope_hash)
        last = (self.accepted_at, self.outcome, len(self.messages))
        if version > 1:
            first, last = (*first, self.commitment), (self.accepted_at, self.log_entry, *last[1:])  # type: ignore[assignment]
        return (
            bytes([len(name)]) + name + _LEAVES[version].pack(*first, *last) + bytes(self.messages)
        )


@frozen
class Receipt:
    """A signed root; ``at`` is ms since 1970."""

    recipient: str
    at: int
    bundle_hash: bytes
    root: bytes
    leaf_count: int
    suite: int
    signatures: bytes = attrs.field(repr=False)
    # the newest head of HQ's log the signer had verified
    checkpoint: bytes = attrs.field(default=b"", repr=False)
    version: int = VERSION


@frozen
class Exported:
    """A receipt with one leaf and its path."""

    receipt: Receipt
    leaf: Leaf
    index: int
    path: tuple[bytes, ...]


def encode_unsigned(
    recipient: str,
    at: int,
    bundle_hash: bytes,
    root: bytes,
    leaf_count: int,
    suite: int,
    checkpoint: bytes = b"",
    version: int = VERSION,
) -> bytes:
    """Return the part of a receipt whose SHA-256 is signed."""
    name = recipient.encode()
    note = _NOTE.pack(len(checkpoint)) + checkpoint if version > 1 else b""
    return b"".join(
        (
            _HEAD.pack(MAGIC, version, 0, len(name)),
            name,
            _TAIL.pack(at, bundle_hash, root, leaf_count),
            note,
            bytes([suite]),
        )
    )


def _unsigned(receipt: Receipt) -> bytes:
    return encode_unsigned(
        receipt.recipient,
        receipt.at,
        receipt.bundle_hash,
        receipt.root,
        receipt.leaf_count,
        receipt.suite,
        receipt.checkpoint,
        receipt.version,
    )


def encode_receipt(receipt: Receipt) -> bytes:
    return _unsigned(receipt) + receipt.signatures


def encode_exported(exported: Exported) -> bytes:
    tail = _PATH.pack(exported.index, len(exported.path)) + b"".join(exported.path)
    return encode_receipt(exported.receipt) + exported.leaf.encode(exported.receipt.version) + tail


def read_receipt(raw: bytes) -> tuple[Receipt, int]:
    """Return the receipt at the start of ``raw``, and the offset of its end."""
    return _receipt(raw)


def decode_leaf(raw: bytes, at: int, version: int = VERSION) -> tuple[Leaf, int]:
    """Return the leaf that begins at ``at``, and the offset of its end."""
    try:
        sender = _text(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
        values = list(_LEAVES[version].unpack_from(raw, at))
        at += _LEAVES[version].size
        outcome, count = values[-2:]
        commitment, log_entry = (values[3], values[5]) if version > 1 else (NO_COMMITMENT, 0)
        accepted_at = values[4] if version > 1 else values[3]
        if count > LIMITS.messages or at + count > len(raw):
            raise MalformedEnvelope("the receipt's outcomes do not fit into it")
        messages = tuple(Outcome(value) for value in raw[at : at + count])
        first = (sender, values[0], values[1], values[2])
        leaf = Leaf(*first, accepted_at, Outcome(outcome), messages, commitment, log_entry)
    except (struct.error, IndexError, ValueError):
        raise MalformedEnvelope("these bytes are not a receipt") from None
    return leaf, at + count


def decode_exported(raw: bytes) -> Exported:
    """Return the receipt with its leaf and path; raise MalformedEnvelope if there is none."""
    receipt, at = _receipt(raw)
    leaf, at = decode_leaf(raw, at, receipt.version)
    try:
        index, steps = _PATH.unpack_from(raw, at)
        at += _PATH.size
        path = tuple(raw[at + 32 * i : at + 32 * i + 32] for i in range(steps))
    except struct.error:
        raise MalformedEnvelope("these bytes are not a receipt") from None
    if at + 32 * steps != len(raw):
        raise MalformedEnvelope("the receipt has the wrong length")
    return Exported(receipt, leaf, index, path)


def _text(raw: bytes) -> str:
    try:
        return check_client_id(raw.decode("ascii"))
    except (UnicodeDecodeError, InvalidRequest):
        raise MalformedEnvelope("the receipt contains an invalid client id") from None


def _receipt(raw: bytes) -> tuple[Receipt, int]:
    if len(raw) > LIMITS.receipt_bytes:
        raise MalformedEnvelope("the receipt is too long")
    try:
        magic, version, flags, size = _HEAD.unpack_from(raw)
        if magic != MAGIC:
            raise MalformedEnvelope("these bytes are not a receipt")
        if version not in _LEAVES or flags:
            raise UnknownVersion(
                f"the receipt is of version {version} with flags {flags}",
                remedy="update this program",
            )
        at = _HEAD.size + size
        recipient = _text(raw[_HEAD.size : at])
        when, bundle_hash, root, count = _TAIL.unpack_from(raw, at)
        at += _TAIL.size
        checkpoint = b""
        if version > 1:
            (size,) = _NOTE.unpack_from(raw, at)
            at += _NOTE.size
            checkpoint, at = raw[at : at + size], at + size
        suite, at = raw[at], at + 1
        length = SIGNATURE_SIZES[SignatureSuite(suite)]
    except (struct.error, ValueError, IndexError):
        raise MalformedEnvelope("these bytes are not a receipt") from None
    if at + length > len(raw) or not count:
        raise MalformedEnvelope("the receipt ends too early")
    signatures = raw[at : at + length]
    return Receipt(
        recipient, when, bundle_hash, root, count, suite, signatures, checkpoint, version
    ), at + length


def verify_receipt(receipt: Receipt, bundle: KeyBundle) -> None:
    """Raise SignatureInvalid unless ``bundle`` (checked by the caller) signed it."""
    if receipt.recipient != bundle.client_id or not hmac.compare_digest(
        receipt.bundle_hash, bundle.hash
    ):
        raise SignatureInvalid("the receipt was signed with other keys than these")
    digest = hashlib.sha256(_unsigned(receipt)).digest()
    signature.verify(bundle.sign_keys, receipt.suite, USE, digest, receipt.signatures)


def verify_exported(exported: Exported, bundle: KeyBundle) -> None:
    """Raise SignatureInvalid unless signature and path are valid; MalformedEnvelope if the path
    cannot be one.
    """
    verify_receipt(exported.receipt, bundle)
    leaf = leaf_hash(exported.leaf.encode(exported.receipt.version))
    root = root_from_path(leaf, exported.index, exported.receipt.leaf_count, exported.path)
    if not hmac.compare_digest(root, exported.receipt.root):
        raise SignatureInvalid("the receipt's leaf does not belong to its root")
