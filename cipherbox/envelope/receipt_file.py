"""Receipt files: a receipt that third parties can verify offline, years later.

The file repeats what is signed in readable form; `verify_file` refuses a file whose readable form
differs from what was signed.  It cannot tell whether the root in the file is the right one: the
caller compares its fingerprint.  The manual page `receipt` specifies the document.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from cryptography import x509

from cipherbox import pki
from cipherbox.classes import frozen
from cipherbox.envelope.bundle import KeyBundle, check_bundle, decode_bundle
from cipherbox.envelope.ids import message_id, split_message_id
from cipherbox.envelope.outcomes import outcome_code
from cipherbox.envelope.receipt import Exported, decode_exported, encode_exported, verify_exported
from cipherbox.errors import InvalidRequest, MalformedEnvelope, SignatureInvalid

FORMAT = "cipherbox-receipt-1"
_MOST = 2 * 1024 * 1024  # bytes of a file: a receipt, a bundle and a certificate


@frozen
class Statement:
    """The contents of a verified receipt. Times are ms since 1970, hashes hexadecimal."""

    message_id: str
    sender: str
    recipient: str
    outcome: str
    signed_at: int
    accepted_at: int
    envelope_sha256: str
    root_sha256: str


def make_file(exported: Exported, index: int, bundle: KeyBundle, root: x509.Certificate) -> bytes:
    """Return the receipt file for message ``index`` of the envelope."""
    words = _words(exported, index)
    document = {
        "format": FORMAT,
        **words,
        "receipt": _text(encode_exported(exported)),
        "bundle": _text(bundle.raw),
        "root": _text(pki.der(root)),
    }
    return f"{json.dumps(document, indent=2)}\n".encode()


def verify_file(data: bytes) -> Statement:
    """Return what the file proves under the root it carries; raise MalformedEnvelope,
    SignatureInvalid or a BundleError if it proves nothing.

    The recipient's keys must have been certified and valid when it signed.
    """
    document = _parsed(data)
    try:
        exported = decode_exported(base64.b64decode(document["receipt"], validate=True))
        bundle = decode_bundle(base64.b64decode(document["bundle"], validate=True))
        root = pki.load_der(base64.b64decode(document["root"], validate=True))
        _, index = split_message_id(document["message_id"])
    except (KeyError, TypeError, ValueError, AttributeError, InvalidRequest):
        raise MalformedEnvelope("this file is not a complete receipt") from None
    check_bundle(bundle, exported.receipt.recipient, root, exported.receipt.at, history=True)
    verify_exported(exported, bundle)
    words = _words(exported, index)
    for key, value in words.items():
        if document.get(key) != value:
            raise SignatureInvalid(
                f"the file says {key} is {document.get(key)!r}; what was signed says {value!r}"
            )
    return Statement(root_sha256=pki.fingerprint(root).hex(), **words)


def _words(exported: Exported, index: int) -> dict[str, Any]:
    leaf = exported.leaf
    outcome = leaf.messages[index] if index < len(leaf.messages) else leaf.outcome
    return {
        "message_id": str(message_id(leaf.envelope_id, index)),
        "sender": leaf.sender,
        "recipient": exported.receipt.recipient,
        "outcome": outcome_code(outcome),
        "signed_at": exported.receipt.at,
        "accepted_at": leaf.accepted_at,
        "envelope_sha256": leaf.envelope_hash.hex(),
    }


def _parsed(data: bytes) -> dict[str, Any]:
    if len(data) > _MOST:
        raise MalformedEnvelope("this file is too large for a receipt")
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        raise MalformedEnvelope("this file is not a receipt") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise MalformedEnvelope(f"this file is not a receipt of format {FORMAT}")
    return document


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


__all__ = ["FORMAT", "Statement", "make_file", "verify_file"]
