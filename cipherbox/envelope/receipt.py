"""Receipts: the recipient's signed word on what became of envelopes.

One signature covers a whole inbox commit: the root of a Merkle tree (RFC 6962, section 2.1) over one leaf for each
envelope.  An exported receipt carries its leaf and the path to the root, so that it can be shown alone, years later.
The bytes are in the manual page `receipt`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Sequence

import attrs

from cipherbox.envelope import signature
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.kinds import SIGNATURE_SIZES, Outcome, SignatureSuite
from cipherbox.errors import InvalidRequest, MalformedEnvelope, SignatureInvalid, UnknownVersion
from cipherbox.limits import LIMITS, check_client_id

MAGIC = b"CBXR"
VERSION = 1
USE = "receipt"
_HEAD = struct.Struct(">4sBBB")
_TAIL = struct.Struct(">Q32s32sIB")
_LEAF = struct.Struct(">16sI32sQBI")
_PATH = struct.Struct(">IB")


@attrs.frozen
class Leaf:
    """What became of one envelope; ``messages`` holds an outcome for each, or nothing: all as the envelope."""

    sender: str
    envelope_id: bytes
    generation: int
    envelope_hash: bytes
    accepted_at: int
    outcome: Outcome
    messages: tuple[Outcome, ...] = ()

    def encode(self) -> bytes:
        name = self.sender.encode()
        fixed = _LEAF.pack(
            self.envelope_id, self.generation, self.envelope_hash, self.accepted_at, self.outcome, len(self.messages)
        )
        return bytes([len(name)]) + name + fixed + bytes(self.messages)


@attrs.frozen
class Receipt:
    """A signed root; ``at`` is ms since 1970."""

    recipient: str
    at: int
    bundle_hash: bytes
    root: bytes
    leaf_count: int
    suite: int
    signatures: bytes = attrs.field(repr=False)


@attrs.frozen
class Exported:
    """A receipt with one leaf and its path."""

    receipt: Receipt
    leaf: Leaf
    index: int
    path: tuple[bytes, ...]


def leaf_hash(leaf: bytes) -> bytes:
    return hashlib.sha256(b"\x00" + leaf).digest()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()


def _split_at(count: int) -> int:
    return 1 << ((count - 1).bit_length() - 1)


def merkle_root(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes; InvalidRequest for none.

    Pairs level by level, an odd one rising alone: the tree of RFC 6962.
    """
    if not leaves:
        raise InvalidRequest("a tree has at least one leaf")
    level, sha256 = list(leaves), hashlib.sha256
    while len(level) > 1:
        above = [sha256(b"\x01" + a + b).digest() for a, b in zip(level[::2], level[1::2], strict=False)]
        if len(level) % 2:
            above.append(level[-1])
        level = above
    return level[0]


def merkle_path(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """The siblings from leaf to root, nearest first."""
    if len(leaves) == 1:
        return ()
    k = _split_at(len(leaves))
    if index < k:
        return (*merkle_path(leaves[:k], index), merkle_root(leaves[k:]))
    return (*merkle_path(leaves[k:], index - k), merkle_root(leaves[:k]))


def root_from_path(leaf: bytes, index: int, count: int, path: Sequence[bytes]) -> bytes:
    """The root a path leads to; MalformedEnvelope if it has the wrong length for ``index`` of ``count``."""
    if not 0 <= index < count:
        raise MalformedEnvelope("the receipt's leaf lies outside its tree")
    turns = []
    while count > 1:
        k = _split_at(count)
        turns.append(index < k)
        index, count = (index, k) if index < k else (index - k, count - k)
    if len(turns) != len(path):
        raise MalformedEnvelope("the receipt's path has the wrong length")
    found = leaf
    for left, sibling in zip(reversed(turns), path, strict=True):
        found = _node(found, sibling) if left else _node(sibling, found)
    return found


def encode_unsigned(recipient: str, at: int, bundle_hash: bytes, root: bytes, leaf_count: int, suite: int) -> bytes:
    """The part of a receipt that is signed (its SHA-256 is)."""
    name = recipient.encode()
    return _HEAD.pack(MAGIC, VERSION, 0, len(name)) + name + _TAIL.pack(at, bundle_hash, root, leaf_count, suite)


def encode_receipt(receipt: Receipt) -> bytes:
    return encode_unsigned(
        receipt.recipient, receipt.at, receipt.bundle_hash, receipt.root, receipt.leaf_count, receipt.suite
    ) + receipt.signatures  # fmt: skip


def encode_exported(exported: Exported) -> bytes:
    tail = _PATH.pack(exported.index, len(exported.path)) + b"".join(exported.path)
    return encode_receipt(exported.receipt) + exported.leaf.encode() + tail


def read_receipt(raw: bytes) -> tuple[Receipt, int]:
    """The receipt at the start of ``raw``, and where it ends."""
    return _receipt(raw)


def decode_leaf(raw: bytes, at: int) -> tuple[Leaf, int]:
    """The leaf that begins at ``at``, and where it ends."""
    try:
        sender = _text(raw[at + 1 : at + 1 + raw[at]])
        at += 1 + raw[at]
        envelope_id, generation, envelope_hash, accepted_at, outcome, count = _LEAF.unpack_from(raw, at)
        at += _LEAF.size
        if count > LIMITS.messages or at + count > len(raw):
            raise MalformedEnvelope("the receipt's outcomes do not fit into it")
        messages = tuple(Outcome(value) for value in raw[at : at + count])
        leaf = Leaf(sender, envelope_id, generation, envelope_hash, accepted_at, Outcome(outcome), messages)
    except (struct.error, IndexError, ValueError):
        raise MalformedEnvelope("these bytes are not a receipt") from None
    return leaf, at + count


def decode_exported(raw: bytes) -> Exported:
    """A receipt with leaf and path."""
    receipt, at = _receipt(raw)
    leaf, at = decode_leaf(raw, at)
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
        raise MalformedEnvelope("the receipt names a client whose id is not one") from None


def _receipt(raw: bytes) -> tuple[Receipt, int]:
    if len(raw) > LIMITS.receipt_bytes:
        raise MalformedEnvelope("the receipt is too long")
    try:
        magic, version, flags, size = _HEAD.unpack_from(raw)
        if magic != MAGIC:
            raise MalformedEnvelope("these bytes are not a receipt")
        if version != VERSION or flags:
            raise UnknownVersion(f"the receipt is of version {version} with flags {flags}; update this program")
        at = _HEAD.size + size
        recipient = _text(raw[_HEAD.size : at])
        when, bundle_hash, root, count, suite = _TAIL.unpack_from(raw, at)
        at += _TAIL.size
        length = SIGNATURE_SIZES[SignatureSuite(suite)]
    except (struct.error, ValueError):
        raise MalformedEnvelope("these bytes are not a receipt") from None
    if at + length > len(raw) or not count:
        raise MalformedEnvelope("the receipt ends too early")
    return Receipt(recipient, when, bundle_hash, root, count, suite, raw[at : at + length]), at + length


def verify_receipt(receipt: Receipt, bundle: KeyBundle) -> None:
    """Raises SignatureInvalid unless ``bundle`` (checked by the caller) signed it."""
    if receipt.recipient != bundle.client_id or not hmac.compare_digest(receipt.bundle_hash, bundle.hash):
        raise SignatureInvalid("the receipt was signed with other keys than these")
    unsigned = encode_unsigned(
        receipt.recipient, receipt.at, receipt.bundle_hash, receipt.root, receipt.leaf_count, receipt.suite
    )
    digest = hashlib.sha256(unsigned).digest()
    signature.verify(bundle.sign_keys, receipt.suite, USE, digest, receipt.signatures)


def verify_exported(exported: Exported, bundle: KeyBundle) -> None:
    """Signature and path both: SignatureInvalid, or MalformedEnvelope for a path that cannot be one."""
    verify_receipt(exported.receipt, bundle)
    leaf = leaf_hash(exported.leaf.encode())
    root = root_from_path(leaf, exported.index, exported.receipt.leaf_count, exported.path)
    if not hmac.compare_digest(root, exported.receipt.root):
        raise SignatureInvalid("the receipt's leaf does not belong to its root")
