"""Receipts: golden files, totality, the tree, and what a signature of one does not say."""

from __future__ import annotations

import hashlib

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox.envelope import bundle as bundles
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import receipt as receipts
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import EnvelopeError, InvalidRequest, MalformedEnvelope, SignatureInvalid
from cipherbox.limits import LIMITS
from tests.golden import files
from tests.parties import party

RECEIPTS = files.read("receipts")


@pytest.mark.parametrize("row", RECEIPTS["exported"], ids=lambda r: str(r["index"]))
def test_golden_receipts(row: dict[str, str]) -> None:
    signer = bundles.decode_bundle(bytes.fromhex(RECEIPTS["bundle"]))
    raw = bytes.fromhex(row["exported"])
    exported = receipts.decode_exported(raw)
    receipts.verify_exported(exported, signer)
    assert exported.leaf.encode().hex() == row["leaf"]
    assert exported.receipt.root.hex() == RECEIPTS["root"]
    assert receipts.encode_exported(exported) == raw


def test_every_byte_of_a_receipt_counts() -> None:
    signer = bundles.decode_bundle(bytes.fromhex(RECEIPTS["bundle"]))
    raw = bytes.fromhex(RECEIPTS["exported"][1]["exported"])
    for offset in range(len(raw)):
        changed = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
        with pytest.raises(EnvelopeError):
            receipts.verify_exported(receipts.decode_exported(changed), signer)


def test_a_receipt_of_somebody_else_is_refused() -> None:
    exported = receipts.decode_exported(bytes.fromhex(RECEIPTS["exported"][0]["exported"]))
    with pytest.raises(SignatureInvalid):
        receipts.verify_exported(exported, party("NY-RC").bundle)


def test_a_receipt_names_its_signer_and_the_signers_bundle() -> None:
    """Rightly signed, in another's name or for another bundle."""
    ca = party("CA-RC")
    leaf = tree.leaf_hash(b"leaf")

    def signed(name: str, bundle_hash: bytes) -> receipts.Receipt:
        parts = (name, 5, bundle_hash, leaf, 1, 1)
        digest = hashlib.sha256(receipts.encode_unsigned(*parts)).digest()
        return receipts.Receipt(*parts, ca.identity.sign(receipts.USE, digest))

    receipts.verify_receipt(signed("CA-RC", ca.bundle.hash), ca.bundle)
    for wrong in (signed("NY-RC", ca.bundle.hash), signed("CA-RC", bytes(32))):
        with pytest.raises(SignatureInvalid, match="other keys"):
            receipts.verify_receipt(wrong, ca.bundle)


def test_nothing_follows_a_receipt() -> None:
    raw = bytes.fromhex(RECEIPTS["exported"][0]["exported"])
    alone = receipts.encode_receipt(receipts.decode_exported(raw).receipt)
    with pytest.raises(MalformedEnvelope):
        receipts.decode_exported(raw + b"x")
    assert receipts.read_receipt(alone + b"x") == (
        receipts.decode_exported(raw).receipt,
        len(alone),
    )
    for decode, whole in ((receipts.read_receipt, alone), (receipts.decode_exported, raw)):
        for size in range(len(whole)):
            with pytest.raises(MalformedEnvelope):
                decode(whole[:size])
        with pytest.raises(MalformedEnvelope, match="too long"):
            decode(whole + bytes(LIMITS.receipt_bytes))


def test_outcomes_one_over() -> None:
    raw = bytes.fromhex(RECEIPTS["exported"][0]["exported"])
    exported = receipts.decode_exported(raw)
    for count, good in ((65_536, True), (65_537, False)):
        leaf = attrs.evolve(exported.leaf, messages=(Outcome.OPENED,) * count)
        whole = receipts.encode_exported(attrs.evolve(exported, leaf=leaf))
        if good:
            assert len(receipts.decode_exported(whole).leaf.messages) == count
        else:
            with pytest.raises(MalformedEnvelope):
                receipts.decode_exported(whole)


def test_no_leaves_have_no_root() -> None:
    with pytest.raises(InvalidRequest):
        tree.merkle_root([])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 8, 100])
def test_merkle_paths_lead_to_the_root(count: int) -> None:
    leaves = [hashlib.sha256(bytes([i])).digest() for i in range(count)]
    root = tree.merkle_root(leaves)
    for i, leaf in enumerate(leaves):
        path = tree.merkle_path(leaves, i)
        assert tree.root_from_path(leaf, i, count, path) == root
        if count > 1:
            other = (i + 1) % count
            assert tree.root_from_path(leaf, other, count, tree.merkle_path(leaves, other)) != root
            with pytest.raises(MalformedEnvelope):
                tree.root_from_path(leaf, i, count, path[:-1])


def test_merkle_root_of_rfc_6962() -> None:
    """The published tree over these leaves (certificate-transparency reference data) has this
    root.
    """
    data = [
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    ]
    leaves = [tree.leaf_hash(bytes.fromhex(d)) for d in data]
    assert (
        tree.merkle_root(leaves).hex()
        == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
    )


@given(st.binary(max_size=300))
def test_any_bytes_are_a_receipt_or_refused(raw: bytes) -> None:
    for buf in (
        raw,
        b"CBXR\x01\x00" + raw,
        bytes.fromhex(RECEIPTS["exported"][0]["exported"])[:150] + raw,
    ):
        for decode in (receipts.read_receipt, receipts.decode_exported):
            try:
                decode(buf)
            except EnvelopeError:
                pass
