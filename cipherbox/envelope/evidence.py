"""Evidence files: two heads that HQ signed and that contradict each other.

Anyone can verify the file offline.  Two heads of one size with different roots prove a fork, and a
later head that is smaller proves a rollback.  Otherwise HQ failed to prove that the larger log
extends the smaller one; only such a proof can refute the file, and the verdict says so.  The manual
page `log` specifies the document.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography import x509

from cipherbox import pki
from cipherbox.envelope.checkpoint import Checkpoint, verify_checkpoint
from cipherbox.envelope.labels import label
from cipherbox.envelope.merkle_tree import is_consistent
from cipherbox.errors import MalformedEnvelope, SignatureInvalid

FORMAT = "cipherbox-log-evidence-1"
FORK, ROLLBACK, BEGUN_ANEW, UNPROVEN, CONSISTENT = (
    "fork",
    "rollback",
    "begun anew",
    "not proven",
    "consistent",
)
_MOST = 1024 * 1024


class Evidence(NamedTuple):
    """Two heads, of which ``first`` was seen before ``second``. ``proof`` is the consistency proof
    that HQ returned, if any.
    """

    first: bytes
    second: bytes
    proof: tuple[bytes, ...]
    log_key: bytes
    certified: bytes  # the key and HQ's TLS key's signature over it, as in WELCOME
    certificate: bytes  # HQ's TLS certificate, DER
    found_at: int
    found_by: str


class Verdict(NamedTuple):
    """What an evidence file proves."""

    kind: str
    first: Checkpoint
    second: Checkpoint
    hq: str  # the name in the certificate that certifies the log key
    words: str


def compare(first: Checkpoint, second: Checkpoint, proof: Sequence[bytes]) -> str:
    """Return the kind of contradiction between two heads of one log key, seen in this order."""
    small, large = sorted((first, second), key=lambda head: head.size)
    if is_consistent(small.size, small.root, large.size, large.root, proof):
        if second.size < first.size and second.origin == first.origin and second.at > first.at:
            return ROLLBACK
        return CONSISTENT
    if first.origin != second.origin:
        return BEGUN_ANEW
    if first.size == second.size:
        return FORK
    earlier, later = sorted((first, second), key=lambda head: head.at)
    return ROLLBACK if later.size < earlier.size else UNPROVEN


_WORDS = {
    FORK: "HQ signed two logs: two heads of {first.size} entries with different content",
    ROLLBACK: (
        "HQ took its log back: it signed a head of {second.size} entries after one of {first.size}"
    ),
    BEGUN_ANEW: (
        "HQ's store began anew (incarnation {new} after {old}) without what it had signed: "
        "{first.size} entries before, {second.size} after, and no proof that the one goes on "
        "from the other"
    ),
    UNPROVEN: (
        "HQ did not prove that its log of {large} entries goes on from the one of {small} that "
        "it signed before"
    ),
    CONSISTENT: "the two heads go together: this file shows no contradiction",
}


def words(kind: str, first: Checkpoint, second: Checkpoint) -> str:
    """Return a description of the verdict."""
    return _WORDS[kind].format(
        first=first,
        second=second,
        new=second.incarnation.hex()[:8],
        old=first.incarnation.hex()[:8],
        small=min(first.size, second.size),
        large=max(first.size, second.size),
    )


def make_file(evidence: Evidence) -> bytes:
    """Return the evidence file."""
    first, second = (
        verify_checkpoint(raw, evidence.log_key) for raw in (evidence.first, evidence.second)
    )
    document = {
        "format": FORMAT,
        "says": words(compare(first, second, evidence.proof), first, second),
        "found_at": evidence.found_at,
        "found_by": evidence.found_by,
        "first": evidence.first.decode(),
        "second": evidence.second.decode(),
        "proof": [_text(one) for one in evidence.proof],
        "log_key": evidence.log_key.hex(),
        "log_key_certified": _text(evidence.certified),
        "hq_certificate": _text(evidence.certificate),
    }
    return f"{json.dumps(document, indent=2, ensure_ascii=False)}\n".encode()


def verify_file(data: bytes) -> Verdict:
    """Return what the file proves; raise MalformedEnvelope or SignatureInvalid if it is invalid."""
    try:
        if len(data) > _MOST:
            raise ValueError
        document: dict[str, Any] = json.loads(data)
        if document["format"] != FORMAT:
            raise ValueError
        key = bytes.fromhex(document["log_key"])
        first_raw, second_raw = document["first"].encode(), document["second"].encode()
        proof = [base64.b64decode(one, validate=True) for one in document["proof"]]
        certified = base64.b64decode(document["log_key_certified"], validate=True)
        der = base64.b64decode(document["hq_certificate"], validate=True)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise MalformedEnvelope("this file is not a complete evidence file about a log") from None
    first, second = verify_checkpoint(first_raw, key), verify_checkpoint(second_raw, key)
    kind = compare(first, second, proof)
    return Verdict(kind, first, second, _certifier(key, certified, der), words(kind, first, second))


def _certifier(key: bytes, certified: bytes, der: bytes) -> str:
    try:
        certificate = x509.load_der_x509_certificate(der)
        if certified[:32] != key:
            raise ValueError
        pki.verify_signature(certificate, certified[32:], label("log-key") + key)
        return pki.common_name(certificate)
    except Exception:  # the parser raises many kinds; each means the same
        raise SignatureInvalid(
            "the certificate in the file does not certify the log key in it"
        ) from None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
