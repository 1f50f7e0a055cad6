"""Groups: a signed receipt with all its leaves, as one sender gets it."""

from __future__ import annotations

import attrs
import pytest

from cipherbox.envelope.group import Unsigned, decode_group, verify_group
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import USE, Leaf, decode_leaf, verify_exported
from cipherbox.errors import EnvelopeError, InvalidRequest, MalformedEnvelope, SignatureInvalid
from cipherbox.limits import LIMITS
from tests.parties import party

SIGNER = party("CA-RC")
LEAVES = [
    Leaf(name, bytes([number]) * 16, number, bytes([number]) * 32, 7, Outcome.OPENED, more)
    for number, (name, more) in enumerate(
        [
            ("FL-LAB", ()),
            ("NY-LAB", (Outcome.OPENED, Outcome.OTHER)),
            ("FL-LAB", ()),
            ("SF-LAB", ()),
        ]
    )
]


def signed(sender: str = "FL-LAB", leaves: list[Leaf] = LEAVES) -> bytes:
    identity = SIGNER.identity
    unsigned = Unsigned.over("CA-RC", 5, SIGNER.bundle.hash, identity.suite, leaves, b"a head\n")
    return unsigned.group(identity.sign(USE, unsigned.digest), sender)


def test_a_sender_gets_its_own_leaves_and_the_hashes_of_the_others() -> None:
    group = decode_group(signed())
    verify_group(group, SIGNER.bundle)
    assert group.leaves == (LEAVES[0], None, LEAVES[2], None)
    assert (group.receipt.leaf_count, group.receipt.at) == (4, 5)
    assert group.receipt.checkpoint == b"a head\n"
    assert group.hashes == decode_group(signed("NY-LAB")).hashes
    assert decode_group(signed("NY-LAB")).leaves == (None, LEAVES[1], None, None)


def test_each_own_leaf_can_be_shown_alone_and_no_other() -> None:
    group = decode_group(signed())
    for index in (0, 2):
        exported = group.export(index)
        verify_exported(exported, SIGNER.bundle)
        assert exported.leaf == LEAVES[index]
    for index in (-4, -1, 1, 3, 4):
        with pytest.raises(MalformedEnvelope):
            group.export(index)


def test_every_byte_counts_and_nothing_is_missing_or_follows() -> None:
    raw = signed()
    for offset in range(len(raw)):
        changed = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
        with pytest.raises(EnvelopeError):
            verify_group(decode_group(changed), SIGNER.bundle)
        with pytest.raises(MalformedEnvelope):
            decode_group(raw[:offset])
    with pytest.raises(MalformedEnvelope, match="follow"):
        decode_group(raw + b"\x00")
    last = len(raw) - 33  # the kind of the last leaf, which is another sender's
    assert raw[last] == 0
    with pytest.raises(MalformedEnvelope):
        decode_group(raw[:last] + b"\x02" + raw[last + 1 :])


def test_leaves_that_were_not_signed_and_keys_of_others_are_refused() -> None:
    group = decode_group(signed())
    other = attrs.evolve(group, hashes=(*group.hashes[:3], bytes(32)))
    with pytest.raises(SignatureInvalid, match="not those that were signed"):
        verify_group(other, SIGNER.bundle)
    with pytest.raises(SignatureInvalid):
        verify_group(group, party("NY-RC").bundle)


def test_a_group_has_a_leaf_and_a_bounded_size() -> None:
    with pytest.raises(InvalidRequest):
        signed(leaves=[])
    with pytest.raises(MalformedEnvelope, match="too long"):
        decode_group(signed() + bytes(LIMITS.receipt_bytes))


def test_a_leaf_of_version_1_has_neither_commitment_nor_entry() -> None:
    leaf = attrs.evolve(LEAVES[1], commitment=b"c" * 32, log_entry=9)
    assert decode_leaf(b"x" + leaf.encode(), 1) == (leaf, 1 + len(leaf.encode()))
    old = leaf.encode(1)
    assert decode_leaf(old, 0, 1) == (LEAVES[1], len(old))
    for size in range(len(old)):
        with pytest.raises(MalformedEnvelope):
            decode_leaf(old[:size], 0, 1)
    many = attrs.evolve(leaf, messages=(Outcome.OPENED,) * (LIMITS.messages + 1))
    with pytest.raises(MalformedEnvelope, match="do not fit"):
        decode_leaf(many.encode(), 0)
