"""A contradiction of HQ's log as a file: two heads that HQ signed and that do not go together.

Anybody verifies it offline.  Two heads prove a fork by themselves when they have one size and two
roots, and a rollback when the later one is smaller.  Otherwise HQ failed to prove that the larger
goes on from the smaller; it can clear itself with such a proof and with nothing else, and the
verdict says so.  The document is in the page `log`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

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
    """``first`` was met before ``second``; ``proof``: what HQ gave as the proof that they go
    together, if anything.
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
    """What a file of evidence shows."""

    kind: str
    first: Checkpoint
    second: Checkpoint
    hq: str  # the name in the certificate that stands behind the log key
    words: str


def compare(first: Checkpoint, second: Checkpoint, proof: Sequence[bytes]) -> str:
    """Return how two heads of one log key, met in this order, go together."""
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
    """Return what happened, in plain words."""
    return _WORDS[kind].format(
        first=first,
        second=second,
        new=second.incarnation.hex()[:8],
        old=first.incarnation.hex()[:8],
        small=min(first.size, second.size),
        large=max(first.size, second.size),
    )


def make_file(evidence: Evidence) -> bytes:
    """Return the file."""
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
    """Return what the file shows: MalformedEnvelope or SignatureInvalid if it shows nothing at
    all.
    """
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
        raise MalformedEnvelope(
            "this file is no evidence about a log, or not a whole one"
        ) from None
    first, second = verify_checkpoint(first_raw, key), verify_checkpoint(second_raw, key)
    kind = compare(first, second, proof)
    return Verdict(kind, first, second, _certifier(key, certified, der), words(kind, first, second))


def _certifier(key: bytes, certified: bytes, der: bytes) -> str:
    try:
        certificate = x509.load_der_x509_certificate(der)
        public = certificate.public_key()
        if certified[:32] != key or not isinstance(public, ec.EllipticCurvePublicKey):
            raise ValueError
        public.verify(certified[32:], label("log-key") + key, ec.ECDSA(hashes.SHA384()))
        return pki.common_name(certificate)
    except Exception:  # the parser's errors are many; each means the same
        raise SignatureInvalid(
            "the certificate in the file does not stand behind the log key in it"
        ) from None


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
