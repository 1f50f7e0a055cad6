"""Receipt groups: one signed receipt with all its leaves, of which those about other senders'
envelopes are hashes only.

A recipient sends a group to each sender.  The sender stores it, and can later export any leaf of
its own with the path to the root.  The manual page `receipt` specifies the bytes.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from cipherbox.classes import frozen
from cipherbox.envelope.bundle import KeyBundle
from cipherbox.envelope.merkle_tree import leaf_hash, merkle_path, merkle_root
from cipherbox.envelope.receipt import (
    USE,
    Exported,
    Leaf,
    Receipt,
    decode_leaf,
    encode_receipt,
    encode_unsigned,
    read_receipt,
    verify_receipt,
)
from cipherbox.envelope.suites import SignatureSuite
from cipherbox.errors import MalformedEnvelope, SignatureInvalid

TYPE = "application/vnd.cipherbox.receipts"
_HASH, _LEAF = b"\x00", b"\x01"


@frozen
class Group:
    """A decoded group. ``leaves[i]`` is None where only ``hashes[i]`` is known."""

    receipt: Receipt
    leaves: tuple[Leaf | None, ...]
    hashes: tuple[bytes, ...]

    def export(self, index: int) -> Exported:
        """Return one leaf with its path, for verification without the others."""
        leaf = self.leaves[index] if 0 <= index < len(self.leaves) else None
        if leaf is None:
            raise MalformedEnvelope("the receipt has no such leaf")
        return Exported(self.receipt, leaf, index, merkle_path(self.hashes, index))


@frozen
class Unsigned:
    """Hashed leaves of one commit. The recipient signs `digest`, with the use `receipt`."""

    recipient: str
    at: int
    bundle_hash: bytes
    suite: SignatureSuite
    senders: tuple[str, ...]
    encoded: tuple[bytes, ...]
    hashes: tuple[bytes, ...]
    root: bytes
    checkpoint: bytes = b""

    @classmethod
    def over(
        cls,
        recipient: str,
        at: int,
        bundle_hash: bytes,
        suite: SignatureSuite,
        leaves: Sequence[Leaf],
        checkpoint: bytes = b"",
    ) -> Unsigned:
        """Return the leaves, hashed; raise InvalidRequest if there is none.

        ``at``: ms since 1970.  ``checkpoint``: the newest head of HQ's log the signer verified.
        """
        encoded = tuple(leaf.encode() for leaf in leaves)
        hashes = tuple(map(leaf_hash, encoded))
        senders = tuple(leaf.sender for leaf in leaves)
        return cls(
            recipient,
            at,
            bundle_hash,
            suite,
            senders,
            encoded,
            hashes,
            merkle_root(hashes),
            checkpoint,
        )

    @property
    def digest(self) -> bytes:
        count = len(self.hashes)
        unsigned = encode_unsigned(
            self.recipient, self.at, self.bundle_hash, self.root, count, self.suite, self.checkpoint
        )
        return hashlib.sha256(unsigned).digest()

    def group(self, signatures: bytes, sender: str) -> bytes:
        """Return the signed group for one sender."""
        count = len(self.hashes)
        receipt = Receipt(
            self.recipient,
            self.at,
            self.bundle_hash,
            self.root,
            count,
            self.suite,
            signatures,
            self.checkpoint,
        )
        out = [encode_receipt(receipt)]
        for name, leaf, digest in zip(self.senders, self.encoded, self.hashes, strict=True):
            out += (_LEAF, leaf) if name == sender else (_HASH, digest)
        return b"".join(out)


def decode_group(raw: bytes) -> Group:
    """Return the group in these bytes; raise MalformedEnvelope unless all of them belong to it."""
    receipt, at = read_receipt(raw)
    leaves: list[Leaf | None] = []
    hashes: list[bytes] = []
    for _ in range(receipt.leaf_count):
        kind = raw[at : at + 1]
        if kind == _LEAF:
            leaf, end = decode_leaf(raw, at + 1, receipt.version)
            leaves.append(leaf)
            hashes.append(leaf_hash(raw[at + 1 : end]))
            at = end
        elif kind == _HASH and at + 33 <= len(raw):
            leaves.append(None)
            hashes.append(raw[at + 1 : at + 33])
            at += 33
        else:
            raise MalformedEnvelope("these bytes are not a receipt")
    if at != len(raw):
        raise MalformedEnvelope("bytes follow the receipt")
    return Group(receipt, tuple(leaves), tuple(hashes))


def verify_group(group: Group, bundle: KeyBundle) -> None:
    """Raise SignatureInvalid unless the signature is valid and covers these leaves."""
    verify_receipt(group.receipt, bundle)
    if not hmac.compare_digest(merkle_root(group.hashes), group.receipt.root):
        raise SignatureInvalid("the receipt's leaves are not those that were signed")


__all__ = ["TYPE", "USE", "Group", "Unsigned", "decode_group", "verify_group"]
