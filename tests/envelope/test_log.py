"""HQ's signed log: every entry that was changed, dropped or moved is found; a proof holds for its envelopes alone."""

from __future__ import annotations

import os

import nacl.signing
import pytest

from cipherbox.envelope import log
from cipherbox.envelope.receipt import merkle_path, merkle_root, root_from_path
from cipherbox.errors import CipherBoxError, EnvelopeError, MalformedEnvelope, SignatureInvalid

KEY = nacl.signing.SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
Entry = tuple[bytes, bytes, bytes]


def entry(before: Entry | None, groups: list[log.Group]) -> Entry:
    index = log.decode_head(before[0]).index + 1 if before else 1
    previous = log.head_hash(before[0], before[1]) if before else log.NO_HASH
    root = merkle_root([log.root_of(g) for g in groups])
    head = log.Head(index, 1000 + index, previous, root, len(groups)).encode()
    return head, KEY.sign(log.signed_bytes(head)).signature, log.encode_groups(groups)


def accepted(sender: str, count: int, at: int = 1001) -> tuple[log.Group, list[bytes]]:
    leaves = [log.leaf(os.urandom(16), i, os.urandom(32)) for i in range(count)]
    return log.Group(log.ACCEPTED, log.accepted_payload(log.accepted_head(sender, at), leaves)), leaves


def chain(length: int) -> list[Entry]:
    found: list[Entry] = []
    for number in range(length):
        groups = [accepted("FL-LAB", number + 1)[0], log.Group(log.ACTS, b'[["admin","Grant",{}]]')]
        found.append(entry(found[-1] if found else None, groups))
    return found


def verify(entries: list[Entry]) -> int:
    """How many entries hold, up to the first that does not."""
    before = None
    for number, (head, signature, body) in enumerate(entries):
        try:
            found = log.verify_entry(head, signature, body, PUBLIC, before)
        except EnvelopeError:
            return number
        before = (found.index, log.head_hash(head, signature))
    return len(entries)


def test_a_whole_chain_holds_and_any_change_shows() -> None:
    entries = chain(4)
    assert verify(entries) == 4
    for part in range(3):
        raw = entries[2][part]
        for at in range(len(raw)):
            changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            other = (*entries[2][:part], changed, *entries[2][part + 1 :])
            assert verify([*entries[:2], other, entries[3]]) == 2, (part, at)  # type: ignore[list-item]
    assert verify([entries[0], entries[2]]) == 1
    assert verify([entries[0], entries[2], entries[1], entries[3]]) == 1
    assert verify([entries[0], entries[0]]) == 1


def test_another_key_signs_nothing() -> None:
    (one,) = chain(1)
    with pytest.raises(SignatureInvalid):
        log.verify_entry(*one, bytes(nacl.signing.SigningKey.generate().verify_key), None)


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
    head, signature, _ = entry(None, groups)
    roots = [log.root_of(g) for g in groups]
    proof = log.make_proof(head, signature, roots, others // 2)
    assert log.verify_proof(proof, "FL-LAB", own, PUBLIC).index == 1
    for wrong in (own[:-1], own[::-1], [*own, own[0]], [log.leaf(b"x" * 16, 0, b"y" * 32), *own[1:]], []):
        with pytest.raises(EnvelopeError):
            log.verify_proof(proof, "FL-LAB", wrong, PUBLIC)
    with pytest.raises(SignatureInvalid):
        log.verify_proof(proof, "PA-LAB", own, PUBLIC)
    for at in range(len(proof)):
        with pytest.raises(CipherBoxError):
            log.verify_proof(proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :], "FL-LAB", own, PUBLIC)
    with pytest.raises(MalformedEnvelope):
        log.verify_proof(proof + bytes(32), "FL-LAB", own, PUBLIC)


def _root_as_in_the_rfc(leaves: list[bytes]) -> bytes:
    import hashlib

    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return hashlib.sha256(b"\x01" + _root_as_in_the_rfc(leaves[:k]) + _root_as_in_the_rfc(leaves[k:])).digest()


def test_the_tree_is_the_rfcs() -> None:
    leaves = [bytes([n]) * 32 for n in range(40)]
    for count in range(1, 40):
        root = merkle_root(leaves[:count])
        assert root == _root_as_in_the_rfc(leaves[:count])
        for index in range(count):
            path = merkle_path(leaves[:count], index)
            assert root_from_path(leaves[index], index, count, path) == root


def test_a_proof_of_a_key_bundle_holds_for_that_bundle_alone() -> None:
    digest = os.urandom(32)
    bundle = log.Group(log.BUNDLE, log.bundle_payload("CA-RC", 3, digest))
    groups = [accepted("FL-LAB", 2)[0], bundle, log.Group(log.ACTS, b"[]")]
    head, signature, _ = entry(None, groups)
    proof = log.make_proof(head, signature, [log.root_of(g) for g in groups], 1)
    assert log.verify_bundle_proof(proof, "CA-RC", 3, digest, PUBLIC).index == 1
    assert log.read_bundle(bundle.payload) == ("CA-RC", 3, digest)
    for other in (("CA-RB", 3, digest), ("CA-RC", 2, digest), ("CA-RC", 3, bytes(32))):
        with pytest.raises(SignatureInvalid):
            log.verify_bundle_proof(proof, *other, PUBLIC)
    for at in range(len(proof)):
        with pytest.raises((SignatureInvalid, MalformedEnvelope)):
            log.verify_bundle_proof(proof[:at] + bytes([proof[at] ^ 1]) + proof[at + 1 :], "CA-RC", 3, digest, PUBLIC)
    for cut in (b"", proof[:-1], proof + b"x"):
        with pytest.raises(MalformedEnvelope):
            log.verify_bundle_proof(cut, "CA-RC", 3, digest, PUBLIC)
    for short in (b"", bundle.payload[:-1], bundle.payload + b"x"):
        with pytest.raises(MalformedEnvelope):
            log.read_bundle(short)
