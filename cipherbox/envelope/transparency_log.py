"""HQ's transparency log: everything one commit accepted, delivered, dead-lettered and changed, as
one leaf of an append-only tree.

An entry's events are in groups: one for each CONFIRM of the commit, with a leaf for each envelope,
and one for each other kind of event.  The entry's record holds the Merkle root over the groups'
roots, and is the leaf of the log's tree (`envelope.merkle_tree`), whose head is a checkpoint
(`envelope.checkpoint`).  So a publisher can verify that its envelopes are in the log with the
record, two short paths and the checkpoint, and nobody can change, drop or reorder an entry without
signing two heads that contradict each other.

Pure functions of bytes and hashes.  The manual page `log` specifies the bytes.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.envelope.merkle_tree import (
    HASH_BYTES,
    leaf_hash,
    merkle_path,
    merkle_root,
    root_before,
    root_from_path,
)
from cipherbox.errors import MalformedEnvelope, SignatureInvalid, UnknownVersion

MAGIC, VERSION = b"CBXL", 2
ACCEPTED, DELIVERED, ACKNOWLEDGED, DEAD, DROPPED, ACTS, BUNDLE, AGAIN, REVOKED, BEGUN, RESTORED = (
    range(1, 12)
)
KIND_NAMES = {
    1: "accepted",
    2: "delivered",
    3: "acknowledged",
    4: "dead",
    5: "dropped",
    6: "acts",
    7: "bundle",
    8: "again",
    9: "revoked",
    10: "begun",
    11: "restored",
}
_ENVELOPES = (ACCEPTED, AGAIN)
_RECORD = struct.Struct(">4sBBQQ32sI")
RECORD_BYTES = _RECORD.size
_GROUP = struct.Struct(">BI")
_LEAF_BYTES = 16 + 4 + 32
_PROOF = struct.Struct(">BB")
_PLACE = struct.Struct(">IB")
_sha256 = hashlib.sha256


class Record(NamedTuple):
    """An entry's record, a leaf of the tree. Entries count from 1, so entry n is leaf n - 1. ``at``
    is ms since 1970.
    """

    index: int  # type: ignore[assignment]
    at: int
    root: bytes
    groups: int

    def encode(self) -> bytes:
        return _RECORD.pack(MAGIC, VERSION, 0, self.index, self.at, self.root, self.groups)


class Group(NamedTuple):
    """Events of one kind. The payload of ACCEPTED and AGAIN has `accepted_payload`'s format, BUNDLE
    and REVOKED have their own, and the others are JSON.
    """

    kind: int
    payload: bytes


class LoggedBundle(NamedTuple):
    """A key bundle that HQ serves, as recorded in its log."""

    client_id: str
    sequence: int
    bundle_hash: bytes


class Accepted(NamedTuple):
    """One envelope in an ACCEPTED or AGAIN group."""

    envelope_id: bytes
    generation: int
    envelope_hash: bytes


class Proven(NamedTuple):
    """The result of a valid proof: an entry's record, and the head it is under, with its note.

    ``before``: origin, size and root of the log without this entry, if it is the head's last.
    """

    record: Record
    head: Checkpoint
    note: bytes
    before: tuple[str, int, bytes] | None


def accepted_head(sender: str, at: int) -> bytes:
    """Return the prefix that all leaves of one group share."""
    name = sender.encode()
    return bytes([len(name)]) + name + at.to_bytes(8, "big")


def accepted_payload(head: bytes, leaves: Sequence[bytes]) -> bytes:
    """Return the payload of a group: ``head``, and the id, generation (u32) and hash of each
    envelope.
    """
    return head + b"".join(leaves)


def bundle_payload(client_id: str, sequence: int, bundle_hash: bytes) -> bytes:
    """Return the payload of a BUNDLE group: one key bundle, so that its proof reveals no other."""
    name = client_id.encode()
    return bytes([len(name)]) + name + sequence.to_bytes(8, "big") + bundle_hash


def read_bundle(payload: bytes) -> LoggedBundle:
    """Return the bundle that a BUNDLE group names; raise MalformedEnvelope if it is malformed."""
    size = 1 + payload[0] if payload else 0
    if not size or len(payload) != size + 8 + 32:
        raise MalformedEnvelope("a group of the log is malformed")
    name = payload[1:size].decode("utf-8", "replace")
    return LoggedBundle(name, int.from_bytes(payload[size : size + 8], "big"), payload[size + 8 :])


def leaf(envelope_id: bytes, generation: int, envelope_hash: bytes) -> bytes:
    """Return the leaf of one envelope."""
    return envelope_id + generation.to_bytes(4, "big") + envelope_hash


def read_leaves(leaves: bytes) -> list[Accepted]:
    """Return the envelopes of leaves that were joined."""
    found = [leaves[at : at + _LEAF_BYTES] for at in range(0, len(leaves), _LEAF_BYTES)]
    return [Accepted(one[:16], int.from_bytes(one[16:20], "big"), one[20:]) for one in found]


def group_root(kind: int, head: bytes, leaves: Sequence[bytes]) -> bytes:
    """Return the root of a group. For kinds without envelopes the payload is the only leaf, and
    ``head`` is empty.
    """
    return merkle_root(_leaf_hashes(kind, head, leaves))


def root_of(group: Group) -> bytes:
    """Return the root of a stored group; raise MalformedEnvelope if its payload is malformed."""
    if group.kind not in _ENVELOPES:
        return group_root(group.kind, b"", [group.payload])
    head, leaves = _split(group.payload)
    return group_root(group.kind, head, leaves)


def read_accepted(payload: bytes) -> tuple[str, int, list[Accepted]]:
    """Return (sender, accepted at, envelopes) of an ACCEPTED or AGAIN group."""
    head, _ = _split(payload)
    sender = head[1:-8].decode("utf-8", "replace")
    return sender, int.from_bytes(head[-8:], "big"), read_leaves(payload[len(head) :])


def encode_groups(groups: Sequence[Group]) -> bytes:
    """Return the body of an entry."""
    return b"".join(_GROUP.pack(kind, len(payload)) + payload for kind, payload in groups)


def decode_groups(body: bytes) -> list[Group]:
    """Return the groups of an entry; raise MalformedEnvelope unless all bytes belong to them."""
    found, at = [], 0
    while at < len(body):
        if at + _GROUP.size > len(body):
            raise MalformedEnvelope("an entry of the log ends too early")
        kind, size = _GROUP.unpack_from(body, at)
        at += _GROUP.size
        if kind not in KIND_NAMES or at + size > len(body):
            raise MalformedEnvelope("an entry of the log is malformed")
        found.append(Group(kind, body[at : at + size]))
        at += size
    return found


def decode_record(raw: bytes) -> Record:
    """Return the record in these bytes; raise MalformedEnvelope if there is none."""
    if len(raw) != _RECORD.size:
        raise MalformedEnvelope("a record of the log has the wrong length")
    magic, version, flags, index, at, root, groups = _RECORD.unpack(raw)
    if magic != MAGIC or not index or not groups:
        raise MalformedEnvelope("these bytes are not a record of the log")
    if version != VERSION or flags:
        raise UnknownVersion(
            f"the log is of version {version} with flags {flags}", remedy="update the older program"
        )
    return Record(index, at, root, groups)


def verify_entry(raw: bytes, body: bytes, index: int) -> Record:
    """Return the record of entry ``index``; raise SignatureInvalid or MalformedEnvelope if it does
    not match the entry's body. Its inclusion in the tree is not checked here.
    """
    found = decode_record(raw)
    if found.index != index:
        raise SignatureInvalid(f"entry {index} is missing: entry {found.index} is in its place")
    groups = decode_groups(body)
    if len(groups) != found.groups or not hmac.compare_digest(
        merkle_root([root_of(g) for g in groups]), found.root
    ):
        raise SignatureInvalid("the entry's content is not what was signed")
    return found


# -- proofs ----------------------------------------------------------------------------------------


def make_proof(
    record: bytes,
    roots: Sequence[bytes],
    group: int,
    path: Sequence[bytes],
    checkpoint: bytes,
    leaves: Sequence[bytes] = (),
    leaf_index: int = 0,
) -> bytes:
    """Return the proof that group ``group`` is in the entry, and that the entry (with ``path``) is
    in the checkpoint's tree.

    ``leaves``: the hashes of the group's leaves, if the proof is only for the leaf ``leaf_index``.
    """
    own = merkle_path(leaves, leaf_index) if leaves else ()
    inner = merkle_path(roots, group)
    return b"".join(
        (
            _PROOF.pack(VERSION, 0),
            len(leaves).to_bytes(4, "big"),
            _place(leaf_index, own),
            record,
            _place(group, inner),
            bytes([len(path)]),
            *path,
            len(checkpoint).to_bytes(2, "big"),
            checkpoint,
        )
    )


def proof_checkpoint(proof: bytes) -> bytes:
    """Return the checkpoint a proof leads to, unverified; raise MalformedEnvelope if the proof is
    malformed.
    """
    return _parsed(proof).checkpoint


def proof_record(proof: bytes) -> Record:
    """Return the record a proof is for, unverified; raise MalformedEnvelope if the proof is
    malformed.
    """
    return decode_record(_parsed(proof).record)


def verify_proof(
    proof: bytes,
    sender: str,
    leaves: Sequence[bytes],
    key: bytes,
    accepted_at: int,
    *,
    again: bool = False,
) -> Proven:
    """Return the entry that holds exactly these envelopes of ``sender``, in this order, as one
    group accepted at that time; ``again``: as duplicates.

    Raise SignatureInvalid or MalformedEnvelope if the proof is invalid.
    """
    if not leaves:
        raise MalformedEnvelope("HQ's proof is for no envelope")
    kind = AGAIN if again else ACCEPTED
    head = accepted_head(sender, accepted_at)
    return _verified(proof, key, lambda parsed: group_root(kind, head, leaves), whole=True)


def verify_acceptance(
    proof: bytes, sender: str, one: Accepted, key: bytes, accepted_at: int
) -> Proven:
    """Return the entry that records the acceptance of this envelope; raise SignatureInvalid or
    MalformedEnvelope.
    """

    def root(parsed: _Parsed) -> bytes:
        (digest,) = _leaf_hashes(ACCEPTED, accepted_head(sender, accepted_at), [leaf(*one)])
        return root_from_path(digest, parsed.leaf, parsed.leaves, parsed.own)

    return _verified(proof, key, root, whole=False)


def verify_bundle_proof(
    proof: bytes, client_id: str, sequence: int, bundle_hash: bytes, key: bytes
) -> Proven:
    """Return the entry with this key bundle; raise SignatureInvalid or MalformedEnvelope."""
    payload = bundle_payload(client_id, sequence, bundle_hash)
    return _verified(proof, key, lambda _: group_root(BUNDLE, b"", [payload]), whole=True)


def verify_group_proof(proof: bytes, group: Group, key: bytes) -> Proven:
    """Return the entry with this group (of a kind without envelopes); raise SignatureInvalid or
    MalformedEnvelope.
    """
    return _verified(proof, key, lambda _: root_of(group), whole=True)


class _Parsed(NamedTuple):
    leaves: int
    leaf: int
    own: tuple[bytes, ...]
    record: bytes
    group: int
    inner: tuple[bytes, ...]
    path: tuple[bytes, ...]
    checkpoint: bytes


def _verified(
    proof: bytes, key: bytes, root_of_group: Callable[[_Parsed], bytes], *, whole: bool
) -> Proven:
    parsed = _parsed(proof)
    if whole == bool(parsed.leaves):
        raise MalformedEnvelope("HQ's proof is of another kind")
    head = verify_checkpoint(parsed.checkpoint, key)
    record = decode_record(parsed.record)
    own = root_of_group(parsed)
    inner = root_from_path(own, parsed.group, record.groups, parsed.inner)
    outer = root_from_path(leaf_hash(parsed.record), record.index - 1, head.size, parsed.path)
    if not (hmac.compare_digest(inner, record.root) and hmac.compare_digest(outer, head.root)):
        raise SignatureInvalid("HQ's proof is for something else")
    before = None
    if record.index == head.size:
        before = head.origin, head.size - 1, root_before(parsed.path)
    return Proven(record, head, parsed.checkpoint, before)


def _place(index: int, path: Sequence[bytes]) -> bytes:
    return _PLACE.pack(index, len(path)) + b"".join(path)


def _parsed(proof: bytes) -> _Parsed:
    try:
        version, flags = _PROOF.unpack_from(proof)
        if version != VERSION or flags:
            raise UnknownVersion(
                f"HQ's proof is of version {version} with flags {flags}",
                remedy="update the older program",
            )
        at = _PROOF.size
        leaves, at = int.from_bytes(proof[at : at + 4], "big"), at + 4
        own_index, own, at = _read_place(proof, at)
        record, at = proof[at : at + RECORD_BYTES], at + RECORD_BYTES
        group, inner, at = _read_place(proof, at)
        path, at = _read_hashes(proof, at + 1, proof[at])
        size, at = int.from_bytes(proof[at : at + 2], "big"), at + 2
    except (struct.error, IndexError):
        raise MalformedEnvelope("HQ's proof is incomplete") from None
    if at + size != len(proof) or (not leaves and (own_index or own)):
        raise MalformedEnvelope("HQ's proof has the wrong length")
    return _Parsed(leaves, own_index, own, record, group, inner, path, proof[at:])


def _read_place(raw: bytes, at: int) -> tuple[int, tuple[bytes, ...], int]:
    index, steps = _PLACE.unpack_from(raw, at)
    path, at = _read_hashes(raw, at + _PLACE.size, steps)
    return index, path, at


def _read_hashes(raw: bytes, at: int, count: int) -> tuple[tuple[bytes, ...], int]:
    end = at + HASH_BYTES * count
    if end > len(raw):
        raise MalformedEnvelope("HQ's proof is incomplete")
    return tuple([raw[i : i + HASH_BYTES] for i in range(at, end, HASH_BYTES)]), end


def leaf_hashes_of(payload: bytes) -> tuple[bytes, list[bytes], list[bytes]]:
    """Return (head, leaves, their hashes) of a stored ACCEPTED group."""
    head, leaves = _split(payload)
    return head, leaves, _leaf_hashes(ACCEPTED, head, leaves)


def _leaf_hashes(kind: int, head: bytes, leaves: Sequence[bytes]) -> list[bytes]:
    start = b"\x00" + bytes([kind]) + head
    return [_sha256(start + one).digest() for one in leaves]


def _split(payload: bytes) -> tuple[bytes, list[bytes]]:
    size = 9 + payload[0] if payload else 0
    if not size or len(payload) <= size or (len(payload) - size) % _LEAF_BYTES:
        raise MalformedEnvelope("a group of the log is malformed")
    return payload[:size], [
        payload[at : at + _LEAF_BYTES] for at in range(size, len(payload), _LEAF_BYTES)
    ]
