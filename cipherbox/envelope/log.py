"""HQ's signed log: what one commit accepted, delivered, gave up and changed, as one entry under one signed head.

An entry's leaves are in groups: one for each connection that published in the commit, with a leaf for each envelope,
and one for each other kind of event.  The root is a Merkle root (RFC 6962, section 2.1) over the groups' roots; the
head holds the root and the hash of the head before, and is signed.  So a publisher needs the head and one short path
to know that its envelopes are in the log, and nobody can change, drop or reorder an entry without breaking the chain.

Pure: bytes and hashes.  The bytes are in the manual page `log`.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from cipherbox.envelope.kinds import label
from cipherbox.envelope.receipt import merkle_path, merkle_root, root_from_path
from cipherbox.errors import MalformedEnvelope, SignatureInvalid

MAGIC, VERSION = b"CBXL", 1
ACCEPTED, DELIVERED, ACKNOWLEDGED, DEAD, DROPPED, ACTS, BUNDLE = range(1, 8)
KIND_NAMES = {1: "accepted", 2: "delivered", 3: "acknowledged", 4: "dead", 5: "dropped", 6: "acts", 7: "bundle"}
NO_HASH = bytes(32)
SIGNATURE_BYTES = 64
_HEAD = struct.Struct(">4sBQQ32s32sI")
_GROUP = struct.Struct(">BI")
_LEAF_BYTES = 16 + 4 + 32
_PROOF = struct.Struct(">IB")
_USE = label("log-head")
_sha256 = hashlib.sha256


class Head(NamedTuple):
    """What is signed; ``at`` is ms since 1970, entries count from 1."""

    index: int  # type: ignore[assignment]
    at: int
    previous: bytes
    root: bytes
    groups: int

    def encode(self) -> bytes:
        return _HEAD.pack(MAGIC, VERSION, self.index, self.at, self.previous, self.root, self.groups)


class Group(NamedTuple):
    """Events of one kind; the payload of ACCEPTED is in `accepted_payload`'s form, of the others JSON."""

    kind: int
    payload: bytes


class LoggedBundle(NamedTuple):
    """A key bundle that HQ hands out, as its log names it."""

    client_id: str
    sequence: int
    bundle_hash: bytes


class Accepted(NamedTuple):
    """One envelope in a group of ACCEPTED."""

    envelope_id: bytes
    generation: int
    envelope_hash: bytes


def accepted_head(sender: str, at: int) -> bytes:
    """What the leaves of one group have in common."""
    name = sender.encode()
    return bytes([len(name)]) + name + at.to_bytes(8, "big")


def accepted_payload(head: bytes, leaves: Sequence[bytes]) -> bytes:
    """``leaves``: id, generation (u32) and hash of each envelope, joined."""
    return head + b"".join(leaves)


def bundle_payload(client_id: str, sequence: int, bundle_hash: bytes) -> bytes:
    """The payload of a group of BUNDLE: one key bundle, so that its proof tells nothing of another."""
    name = client_id.encode()
    return bytes([len(name)]) + name + sequence.to_bytes(8, "big") + bundle_hash


def read_bundle(payload: bytes) -> LoggedBundle:
    """What a group of BUNDLE names; MalformedEnvelope if its payload is not whole."""
    size = 1 + payload[0] if payload else 0
    if not size or len(payload) != size + 8 + 32:
        raise MalformedEnvelope("a group of the log is not whole")
    name = payload[1:size].decode("utf-8", "replace")
    return LoggedBundle(name, int.from_bytes(payload[size : size + 8], "big"), payload[size + 8 :])


def leaf(envelope_id: bytes, generation: int, envelope_hash: bytes) -> bytes:
    """One envelope of a group."""
    return envelope_id + generation.to_bytes(4, "big") + envelope_hash


def group_root(kind: int, head: bytes, leaves: Sequence[bytes]) -> bytes:
    """The root of a group; for other kinds than ACCEPTED the payload is the one leaf and ``head`` is empty."""
    start = b"\x00" + bytes([kind]) + head
    return merkle_root([_sha256(start + one).digest() for one in leaves])


def root_of(group: Group) -> bytes:
    """The root of a group as it is stored; MalformedEnvelope if its payload is not whole."""
    if group.kind != ACCEPTED:
        return group_root(group.kind, b"", [group.payload])
    head, leaves = _split(group.payload)
    return group_root(ACCEPTED, head, leaves)


def read_accepted(payload: bytes) -> tuple[str, int, list[Accepted]]:
    """(sender, accepted at, envelopes) of a group of ACCEPTED."""
    head, leaves = _split(payload)
    sender = head[1:-8].decode("utf-8", "replace")
    found = [Accepted(one[:16], int.from_bytes(one[16:20], "big"), one[20:]) for one in leaves]
    return sender, int.from_bytes(head[-8:], "big"), found


def _split(payload: bytes) -> tuple[bytes, list[bytes]]:
    size = 9 + payload[0] if payload else 0
    if not size or len(payload) <= size or (len(payload) - size) % _LEAF_BYTES:
        raise MalformedEnvelope("a group of the log is not whole")
    return payload[:size], [payload[at : at + _LEAF_BYTES] for at in range(size, len(payload), _LEAF_BYTES)]


def encode_groups(groups: Sequence[Group]) -> bytes:
    """The body of an entry."""
    return b"".join(_GROUP.pack(kind, len(payload)) + payload for kind, payload in groups)


def decode_groups(body: bytes) -> list[Group]:
    """The groups of an entry; MalformedEnvelope unless every byte is accounted for."""
    found, at = [], 0
    while at < len(body):
        if at + _GROUP.size > len(body):
            raise MalformedEnvelope("an entry of the log ends too early")
        kind, size = _GROUP.unpack_from(body, at)
        at += _GROUP.size
        if kind not in KIND_NAMES or at + size > len(body):
            raise MalformedEnvelope("an entry of the log is not whole")
        found.append(Group(kind, body[at : at + size]))
        at += size
    return found


def decode_head(raw: bytes) -> Head:
    """A head; MalformedEnvelope if it is none."""
    if len(raw) != _HEAD.size:
        raise MalformedEnvelope("a head of the log has another length")
    magic, version, index, at, previous, root, groups = _HEAD.unpack(raw)
    if magic != MAGIC or version != VERSION or not index or not groups:
        raise MalformedEnvelope("these bytes are not a head of the log")
    return Head(index, at, previous, root, groups)


def head_hash(head: bytes, signature: bytes) -> bytes:
    """What the next head holds of this one."""
    return _sha256(head + signature).digest()


def signed_bytes(head: bytes) -> bytes:
    """What is signed of a head."""
    return _USE + _sha256(head).digest()


def verify_head(head: bytes, signature: bytes, key: bytes) -> Head:
    """The head, if ``key`` (Ed25519, 32 bytes) signed it; else SignatureInvalid."""
    try:
        nacl.signing.VerifyKey(key).verify(signed_bytes(head), signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise SignatureInvalid("a head of HQ's log is not signed with HQ's key") from None
    return decode_head(head)


def verify_entry(head: bytes, signature: bytes, body: bytes, key: bytes, before: tuple[int, bytes] | None) -> Head:
    """One entry after the one whose (index, head hash) is ``before``; None: nothing is known of that.

    SignatureInvalid or MalformedEnvelope says what does not fit.
    """
    found = verify_head(head, signature, key)
    if before is not None and found.index != before[0] + 1:
        raise SignatureInvalid(f"entry {before[0] + 1} is missing: {found.index} comes after {before[0]}")
    if before is not None and not hmac.compare_digest(found.previous, before[1]):
        raise SignatureInvalid("it does not follow the entry before it")
    groups = decode_groups(body)
    if len(groups) != found.groups or not hmac.compare_digest(merkle_root([root_of(g) for g in groups]), found.root):
        raise SignatureInvalid("what it holds is not what was signed")
    return found


def make_proof(head: bytes, signature: bytes, roots: Sequence[bytes], index: int) -> bytes:
    """The proof that group ``index`` is in the entry."""
    path = merkle_path(roots, index)
    return head + signature + _PROOF.pack(index, len(path)) + b"".join(path)


def verify_proof(proof: bytes, sender: str, leaves: Sequence[bytes], key: bytes) -> Head:
    """The signed head that holds exactly these envelopes of ``sender``, in this order, as one group.

    SignatureInvalid or MalformedEnvelope.
    """
    return _proven(proof, key, lambda at: group_root(ACCEPTED, accepted_head(sender, at), leaves) if leaves else b"")


def verify_bundle_proof(proof: bytes, client_id: str, sequence: int, bundle_hash: bytes, key: bytes) -> Head:
    """The signed head that holds this key bundle.  SignatureInvalid or MalformedEnvelope."""
    payload = bundle_payload(client_id, sequence, bundle_hash)
    return _proven(proof, key, lambda _: group_root(BUNDLE, b"", [payload]))


def _proven(proof: bytes, key: bytes, root_at: Callable[[int], bytes]) -> Head:
    at = _HEAD.size + SIGNATURE_BYTES
    if len(proof) < at + _PROOF.size:
        raise MalformedEnvelope("HQ's proof is not whole")
    head = verify_head(proof[: _HEAD.size], proof[_HEAD.size : at], key)
    index, steps = _PROOF.unpack_from(proof, at)
    at += _PROOF.size
    path = [proof[at + 32 * i : at + 32 * i + 32] for i in range(steps)]
    own = root_at(head.at)
    if at + 32 * steps != len(proof) or not own:
        raise MalformedEnvelope("HQ's proof has the wrong length")
    if not hmac.compare_digest(root_from_path(own, index, head.groups, path), head.root):
        raise SignatureInvalid("HQ's proof is for something else")
    return head
