"""HQ's signed log: every entry that was changed is found; a proof holds for its envelopes alone."""

from __future__ import annotations

import os

import nacl.signing
import pytest

from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.checkpoint import Checkpoint, origin_of, sign_checkpoint
from cipherbox.errors import (
    CipherBoxError,
    EnvelopeError,
    MalformedEnvelope,
    SignatureInvalid,
    UnknownVersion,
)

KEY = nacl.signing.SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
ORIGIN = origin_of(PUBLIC, bytes(16))


def record(groups: list[log.Group], index: int = 1, at: int = 1001) -> bytes:
    return log.Record(
        index, at, tree.merkle_root([log.root_of(g) for g in groups]), len(groups)
    ).encode()


def accepted(
    sender: str, count: int, at: int = 1001, kind: int = log.ACCEPTED
) -> tuple[log.Group, list[bytes]]:
    leaves = [log.leaf(os.urandom(16), i, os.urandom(32)) for i in range(count)]
    return log.Group(kind, log.accepted_payload(log.accepted_head(sender, at), leaves)), leaves


def proof_of(
    groups: list[log.Group],
    own: int,
    before: int = 0,
    key: nacl.signing.SigningKey = KEY,
    **one: object,
) -> bytes:
    """The proof of a group of an entry that came after ``before`` others."""
    edge = tree.RightEdge()
    for number in range(before):
        edge.append(tree.leaf_hash(b"%d" % number))
    path, raw = edge.path(), record(groups, before + 1)
    edge.append(tree.leaf_hash(raw))
    note = sign_checkpoint(Checkpoint(ORIGIN, edge.size, edge.root(), 1001), key)
    return log.make_proof(raw, [log.root_of(g) for g in groups], own, path, note, **one)  # type: ignore[arg-type]


def test_a_whole_entry_holds_and_any_change_shows() -> None:
    groups = [accepted("FL-LAB", 3)[0], log.Group(log.ACTS, b'[["admin","Grant",{}]]')]
    raw, body = record(groups, 4), log.encode_groups(groups)
    assert log.verify_entry(raw, body, 4).index == 4
    for at in range(len(body)):
        with pytest.raises(EnvelopeError):
            log.verify_entry(raw, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :], 4)
    with pytest.raises(SignatureInvalid, match="entry 3 is missing: entry 4 is in its place"):
        log.verify_entry(raw, body, 3)


def test_flags_and_versions_that_are_not_known_are_refused() -> None:
    raw = record([log.Group(log.ACTS, b"[]")])
    for at in (4, 5):
        with pytest.raises(UnknownVersion):
            log.decode_record(raw[:at] + b"\x09" + raw[at + 1 :])


def test_what_is_read_is_what_was_written() -> None:
    group, leaves = accepted("FL-LAB", 3, at=77)
    sender, at, envelopes = log.read_accepted(group.payload)
    assert (sender, at) == ("FL-LAB", 77)
    assert [log.leaf(*e) for e in envelopes] == leaves
    assert log.decode_groups(log.encode_groups([group])) == [group]
    for cut in (group.payload[:-1], group.payload[:10], b""):
        with pytest.raises(MalformedEnvelope):
            log.read_accepted(cut)


@pytest.mark.parametrize("others", range(6))
def test_a_proof_holds_for_exactly_its_envelopes(others: int) -> None:
    groups, own = [], []
    for number in range(others + 1):
        group, leaves = accepted("FL-LAB" if number == others // 2 else f"L{number}", 3, at=1001)
        groups.append(group)
        if number == others // 2:
            own = leaves
    proof = proof_of(groups, others // 2, before=others)
    found = log.verify_proof(proof, "FL-LAB", own, PUBLIC, 1001)
    assert (found.record.index, found.head.size) == (others + 1, others + 1)
    before = tree.RightEdge()
    for number in range(others):
        before.append(tree.leaf_hash(b"%d" % number))
    assert found.before == (ORIGIN, others, before.root())
    assert found.note == log.proof_checkpoint(proof)
    assert log.proof_record(proof) == found.record
    for wrong in (
        own[:-1],
        own[::-1],
        [*own, own[0]],
        [log.leaf(b"x" * 16, 0, b"y" * 32), *own[1:]],
        [],
    ):
        with pytest.raises(EnvelopeError):
            log.verify_proof(proof, "FL-LAB", wrong, PUBLIC, 1001)
    for sender, at, again in (
        ("PA-LAB", 1001, False),
        ("FL-LAB", 1002, False),
        ("FL-LAB", 1001, True),
    ):
        with pytest.raises(SignatureInvalid):
            log.verify_proof(proof, sender, own, PUBLIC, at, again=again)
    for at in range(len(proof)):
        with pytest.raises(CipherBoxError):
            log.verify_proof(
                proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :], "FL-LAB", own, PUBLIC, 1001
            )
    for cut in (b"", proof[:-1], proof + bytes(32), proof[:60]):
        with pytest.raises(MalformedEnvelope):
            log.verify_proof(cut, "FL-LAB", own, PUBLIC, 1001)


def test_another_key_signs_nothing() -> None:
    group, leaves = accepted("FL-LAB", 1)
    other = nacl.signing.SigningKey.generate()
    with pytest.raises(SignatureInvalid):
        log.verify_proof(proof_of([group], 0, key=other), "FL-LAB", leaves, PUBLIC, 1001)
    with pytest.raises(SignatureInvalid):
        log.verify_proof(proof_of([group], 0), "FL-LAB", leaves, bytes(other.verify_key), 1001)


def test_a_proof_of_one_envelope_tells_its_place_and_nothing_of_the_others() -> None:
    group, leaves = accepted("FL-LAB", 5)
    groups = [log.Group(log.ACTS, b"[]"), group]
    hashes = log.leaf_hashes_of(group.payload)[2]
    for index, one in enumerate(log.read_accepted(group.payload)[2]):
        proof = proof_of(groups, 1, before=9, leaves=hashes, leaf_index=index)
        assert log.verify_acceptance(proof, "FL-LAB", one, PUBLIC, 1001).record.index == 10
        assert not any(other in proof for other in leaves)
        with pytest.raises(SignatureInvalid):
            log.verify_acceptance(proof, "FL-LAB", one._replace(generation=9), PUBLIC, 1001)
        with pytest.raises(SignatureInvalid):
            log.verify_acceptance(proof, "FL-LAB", one, PUBLIC, 1000)
        with pytest.raises(MalformedEnvelope):  # a proof of the whole group is another kind
            log.verify_proof(proof, "FL-LAB", leaves, PUBLIC, 1001)


def test_a_proof_of_a_key_bundle_holds_for_that_bundle_alone() -> None:
    digest = os.urandom(32)
    bundle = log.Group(log.BUNDLE, log.bundle_payload("CA-RC", 3, digest))
    groups = [accepted("FL-LAB", 2)[0], bundle, log.Group(log.ACTS, b"[]")]
    proof = proof_of(groups, 1)
    assert log.verify_bundle_proof(proof, "CA-RC", 3, digest, PUBLIC).record.index == 1
    assert log.verify_group_proof(proof, bundle, PUBLIC).record.index == 1
    assert log.read_bundle(bundle.payload) == ("CA-RC", 3, digest)
    for other in (("CA-RB", 3, digest), ("CA-RC", 2, digest), ("CA-RC", 3, bytes(32))):
        with pytest.raises(SignatureInvalid):
            log.verify_bundle_proof(proof, *other, PUBLIC)
    for short in (b"", bundle.payload[:-1], bundle.payload + b"x"):
        with pytest.raises(MalformedEnvelope):
            log.read_bundle(short)
