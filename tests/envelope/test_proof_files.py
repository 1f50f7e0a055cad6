"""Files that anybody verifies offline: a receipt for a message, and a contradiction of HQ's log."""

from __future__ import annotations

import base64
import json
from typing import Any

import nacl.signing
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from cipherbox import pki
from cipherbox.envelope import checkpoint as checkpoints
from cipherbox.envelope import evidence, receipt_file
from cipherbox.envelope.checkpoint import Checkpoint
from cipherbox.envelope.group import Unsigned, decode_group
from cipherbox.envelope.ids import EnvelopeIds, message_id
from cipherbox.envelope.labels import label
from cipherbox.envelope.outcomes import Outcome, outcome_code
from cipherbox.envelope.receipt import USE, Leaf
from cipherbox.errors import BundleError, CipherBoxError, MalformedEnvelope, SignatureInvalid
from tests.parties import now_ms, party, world

SIGNER = party("CA-RC")
ID = EnvelopeIds(now_ms).next()
NOW = now_ms()
LONG = b" " * (2 << 20)  # more than there is room for in a file of either kind


def receipt(index: int = 0, signer: Any = SIGNER, at: int = NOW) -> bytes:
    outcomes = (Outcome.OPENED, Outcome.OTHER)
    leaf = Leaf("FL-LAB", ID, 0, b"h" * 32, NOW - 5, Outcome.MALFORMED, outcomes)
    identity = SIGNER.identity
    unsigned = Unsigned.over("CA-RC", at, SIGNER.bundle.hash, identity.suite, [leaf])
    group = decode_group(unsigned.group(identity.sign(USE, unsigned.digest), "FL-LAB"))
    root = world().root.certificate
    return receipt_file.make_file(group.export(0), index, signer.bundle, root)


def changed(raw: bytes, **values: object) -> bytes:
    return json.dumps({**json.loads(raw), **values}).encode()


@pytest.mark.parametrize(
    ("index", "outcome"), [(0, Outcome.OPENED), (1, Outcome.OTHER), (2, Outcome.MALFORMED)]
)
def test_a_receipts_file_says_what_was_signed(index: int, outcome: Outcome) -> None:
    found = receipt_file.verify_file(receipt(index))
    assert found == receipt_file.Statement(
        message_id=str(message_id(ID, index)),
        sender="FL-LAB",
        recipient="CA-RC",
        outcome=outcome_code(outcome),
        signed_at=NOW,
        accepted_at=NOW - 5,
        envelope_sha256=(b"h" * 32).hex(),
        root_sha256=pki.fingerprint(world().root.certificate).hex(),
    )


def test_what_a_receipts_file_says_besides_is_refused() -> None:
    raw = receipt()
    for key, value in json.loads(raw).items():
        for other in (None, "x", 5, [], value[:-1] if isinstance(value, str) else value + 1):
            with pytest.raises(CipherBoxError):
                receipt_file.verify_file(changed(raw, **{key: other}))
    with pytest.raises(SignatureInvalid, match="the file says outcome is 'no'"):
        receipt_file.verify_file(changed(raw, outcome="no"))
    other = str(message_id(EnvelopeIds(now_ms).next(), 0))
    with pytest.raises(SignatureInvalid, match="message_id"):
        receipt_file.verify_file(changed(raw, message_id=other))
    for text in (b"", b"[]", b"{}", b"[" * 100_000, b"\xff", raw + LONG):
        with pytest.raises(MalformedEnvelope):
            receipt_file.verify_file(text)


def test_a_receipts_file_with_another_ones_keys_or_before_they_were_valid_proves_nothing() -> None:
    with pytest.raises((BundleError, SignatureInvalid)):
        receipt_file.verify_file(receipt(signer=party("NY-RC")))
    with pytest.raises(BundleError):
        receipt_file.verify_file(receipt(at=5))


# -- a contradiction of the log --------------------------------------------------------------------

LOG = nacl.signing.SigningKey(bytes(32))
PUBLIC = bytes(LOG.verify_key)
ORIGIN = checkpoints.origin_of(PUBLIC, bytes(16))


def found_evidence(**more: Any) -> evidence.Evidence:
    heads = [Checkpoint(ORIGIN, 3, bytes([number]) * 32, 5 + number) for number in range(2)]
    first, second = (checkpoints.sign_checkpoint(head, LOG) for head in heads)
    signature = SIGNER.key.sign(label("log-key") + PUBLIC, ec.ECDSA(hashes.SHA384()))
    certificate = pki.der(SIGNER.certificate)
    values = (first, second, (b"p" * 32,), PUBLIC, PUBLIC + signature, certificate, 77, "FL-LAB")
    return evidence.Evidence(*values)._replace(**more)


def test_a_file_of_evidence_shows_a_fork_to_anybody() -> None:
    raw = evidence.make_file(found_evidence())
    document = json.loads(raw)
    assert (document["found_at"], document["found_by"]) == (77, "FL-LAB")
    assert document["proof"] == [base64.b64encode(b"p" * 32).decode()]
    verdict = evidence.verify_file(raw)
    assert (verdict.kind, verdict.hq) == (evidence.FORK, "CA-RC")
    assert (verdict.first.root, verdict.second.root) == (bytes(32), b"\x01" * 32)
    assert verdict.words == document["says"]
    assert "two heads of 3 entries" in verdict.words


def test_a_file_of_evidence_that_hq_did_not_sign_shows_nothing() -> None:
    raw = evidence.make_file(found_evidence())
    for key in ("first", "second", "log_key", "log_key_certified", "hq_certificate", "format"):
        value = json.loads(raw)[key]
        for other in (None, 5, value[:-1], value.replace("A", "B"), ""):
            if other != value:
                with pytest.raises((MalformedEnvelope, SignatureInvalid)):
                    evidence.verify_file(changed(raw, **{key: other}))
    for key in ("proof", "log_key_certified", "hq_certificate"):
        value = json.loads(raw)[key]
        with pytest.raises(MalformedEnvelope):  # no base64
            evidence.verify_file(
                changed(raw, **{key: [value[0] + "!"] if key == "proof" else value + "!"})
            )
    for text in (b"", b"[]", b"[" * 100_000, raw + LONG):
        with pytest.raises(MalformedEnvelope):
            evidence.verify_file(text)
    stranger = party("NY-RC")
    for wrong in (
        found_evidence(certificate=pki.der(stranger.certificate)),
        found_evidence(certified=bytes(32) + found_evidence().certified[32:]),
    ):
        with pytest.raises(SignatureInvalid, match="does not certify"):
            evidence.verify_file(evidence.make_file(wrong))
