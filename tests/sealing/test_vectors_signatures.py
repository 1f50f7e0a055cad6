"""Published vectors for the signatures of envelopes, bundles and receipts: Ed25519 and ML-DSA-65.

What is signed always begins with a label; here the label is taken away, so that the vectors' own
messages are signed and verified by the functions everything else calls.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import mldsa

from cipherbox.envelope import signature
from cipherbox.envelope.suites import SignAlgorithm
from cipherbox.errors import SignatureInvalid
from cipherbox.sealing import identity
from cipherbox.sealing.identity import Identity
from tests.published import ROOT, flipped, rows

# of Ed25519's base point: RFC 8032, section 5.1
ORDER = 2**252 + 27742317777372353535851937790883648493
MLDSA_BYTES = 3309


@pytest.fixture(autouse=True)
def _no_label(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (signature, identity):
        monkeypatch.setattr(module, "signed_message", lambda use, suite, digest: digest)


class Ed25519Row(NamedTuple):
    seed: bytes
    public: bytes
    message: bytes
    signed: bytes


def ed25519_rows() -> list[Ed25519Row]:
    """`seed and public key : public key : message : signature and message`, in hexadecimal text."""
    found = []
    for line in (ROOT / "asymmetric/Ed25519/sign.input").read_text().splitlines():
        secret, public, message, signed = (bytes.fromhex(part) for part in line.split(":")[:4])
        found.append(Ed25519Row(secret[:32], public, message, signed[:64]))
    assert len(found) == 1024
    return found


def verify_ed25519(public: bytes, message: bytes, signed: bytes) -> None:
    signature.verify({SignAlgorithm.ED25519: public}, 1, "", message, signed)


def refused(public: bytes, message: bytes, signed: bytes) -> None:
    with pytest.raises(SignatureInvalid):
        verify_ed25519(public, message, signed)


def test_ed25519_keys_and_signatures_are_as_published() -> None:
    for row in ed25519_rows():
        signer = Identity("FL-LAB", row.seed, None, [])
        assert signer.sign_keys == {SignAlgorithm.ED25519: row.public}
        assert signer.sign("", row.message) == row.signed
        verify_ed25519(row.public, row.message, row.signed)


def test_ed25519_refuses_changed_vectors() -> None:
    """Also the second form of a signature, S + L: it would be another envelope with the same
    sender (section 5.1.7).
    """
    found = ed25519_rows()
    for row, other in zip(found, [*found[1:], found[0]], strict=True):
        scalar = int.from_bytes(row.signed[32:], "little") + ORDER
        refused(row.public, row.message, row.signed[:32] + scalar.to_bytes(32, "little"))
        refused(row.public, row.message + b"\x00", row.signed)
        refused(row.public, row.message, flipped(row.signed, 0))
        refused(row.public, row.message, flipped(row.signed, 32))
        refused(row.public, row.message, row.signed[:-1])
        refused(row.public, row.message, row.signed + b"\x00")
        refused(flipped(row.public, 0), row.message, row.signed)
        refused(other.public, row.message, row.signed)


@pytest.mark.parametrize(
    "y", [0, 1, 2**255 - 20, 2**255 - 19, 2**255 - 18], ids=["0", "1", "p-1", "p", "p+1"]
)
def test_ed25519_takes_no_key_of_small_order(y: int) -> None:
    """With the neutral point as key and as R, and S = 0, the plain equation holds for every
    message.

    No vectors: these are the points that follow from the prime.
    """
    for sign in (0, 1):
        public = (y | sign << 255).to_bytes(32, "little")
        for r in (public, bytes([1]) + bytes(31)):
            for message in (b"", b"a", b"b", b"c"):
                refused(public, message, r + bytes(32))


def test_ml_dsa_65_keys_and_signatures_are_as_published() -> None:
    """The published signatures have a context, and ours is empty: the call is the library's, with
    the context given.

    For us each of them, right as it is, must be refused: it was made for another use of the key.
    """
    found = rows("asymmetric/MLDSA/kat_MLDSA_65_det_pure.rsp")
    for row, other in zip(found, [*found[1:], found[0]], strict=True):
        signer, message, context = (
            Identity("FL-LAB", bytes(32), row.raw("xi"), []),
            row.raw("msg"),
            row.raw("ctx"),
        )
        keys, signed = signer.sign_keys, row.raw("sm")[:MLDSA_BYTES]
        assert keys[SignAlgorithm.MLDSA65] == row.raw("pk")
        assert row.raw("sm")[MLDSA_BYTES:] == message
        public = mldsa.MLDSA65PublicKey.from_public_bytes(keys[SignAlgorithm.MLDSA65])
        public.verify(signed, message, context)
        foreign = mldsa.MLDSA65PublicKey.from_public_bytes(other.raw("pk"))
        for key, said, about, where in (
            (public, flipped(signed), message, context),
            (public, flipped(signed, 0), message, context),
            (public, signed[:-1], message, context),
            (public, signed + b"\x00", message, context),
            (public, signed, message + b"\x00", context),
            (public, signed, message, flipped(context)),
            (foreign, signed, message, context),
        ):
            with pytest.raises(InvalidSignature):
                key.verify(said, about, where)

        own = signer.sign("", message)
        signature.verify(keys, 2, "", message, own)
        with pytest.raises(SignatureInvalid):
            signature.verify(keys, 2, "", message, own[:64] + signed)


def test_suite_2_needs_both_signatures() -> None:
    """Over published keys: the two halves stand only together, each over this message and by its
    own key.
    """
    first, second = rows("asymmetric/MLDSA/kat_MLDSA_65_det_pure.rsp")[:2]
    classic = ed25519_rows()[:2]
    signer = Identity("FL-LAB", classic[0].seed, first.raw("xi"), [])
    other = Identity("PA-LAB", classic[1].seed, second.raw("xi"), [])
    message = first.raw("msg")
    good, theirs = signer.sign("", message), other.sign("", message)
    signature.verify(signer.sign_keys, 2, "", message, good)
    for bad in (
        good[:64] + theirs[64:],
        theirs[:64] + good[64:],
        flipped(good),
        flipped(good, 0),
        good[:64],
        good[64:],
        good[64:] + good[:64],
        good + b"\x00",
    ):
        with pytest.raises(SignatureInvalid):
            signature.verify(signer.sign_keys, 2, "", message, bad)
    with pytest.raises(SignatureInvalid):
        signature.verify(signer.sign_keys, 1, "", message, good[:64])
