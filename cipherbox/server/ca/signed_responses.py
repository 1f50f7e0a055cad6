"""Answers of an offline CA: our offline CA's document, or plain PEM from other tools.

Both contain any number of certificates: of clients, of HQ, of the issuing CA and the CAs between it
and the root; and revocation lists of the issuing CA.  The manual page `pki` describes the document.
Nothing is verified here.
"""

from __future__ import annotations

import base64
from typing import NamedTuple

import orjson
from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from cipherbox import clock, pki
from cipherbox.errors import BundleNotCertified, CipherBoxError, ConfigError, InvalidRequest
from cipherbox.pki.profile import dns_names, extensions_of
from cipherbox.pki.revocation_lists import lists_in
from cipherbox.server.ca.credentials import checked_issuing, is_ca

CERTIFICATES_FORMAT, REQUESTS_FORMAT = "cipherbox-certificates-1", "cipherbox-requests-1"


class Signed(NamedTuple):
    """The contents of an answer; ``cas`` are in their original order."""

    cas: list[x509.Certificate]
    leaves: list[x509.Certificate]
    lists: list[bytes]


def read_signed(document: bytes) -> Signed:
    """Parse an answer; raise InvalidRequest if it is neither of the two."""
    found, lists = _pem(document) if b"-----BEGIN" in document else _document(document)
    once = list(dict.fromkeys(found))
    return Signed([c for c in once if is_ca(c)], [c for c in once if not is_ca(c)], lists)


def _pem(document: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    try:
        lists = lists_in(document, "this file") if b"BEGIN X509 CRL" in document else []
        found = pki.load_pem(document, "this file") if b"BEGIN CERTIFICATE-" in document else []
    except CipherBoxError as error:
        raise InvalidRequest(str(error)) from None
    if document.count(b"-----BEGIN") != len(found) + len(lists):
        raise InvalidRequest(
            "this file contains something other than complete certificates and revocation lists"
        )
    return found, lists


def _document(document: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    try:
        data = orjson.loads(document)
        if data["format"] == REQUESTS_FORMAT:
            raise InvalidRequest(
                "this file contains the requests, not the CA's answer",
                remedy="sign them at the CA (cipherbox ca sign), then import its answer",
            )
        if data["format"] != CERTIFICATES_FORMAT:
            raise InvalidRequest(f"this file does not have the format {CERTIFICATES_FORMAT}")
        ders = [
            base64.b64decode(c, validate=True)
            for item in data["certificates"]
            for c in item["chain"]
        ]
        ders += [base64.b64decode(c, validate=True) for c in data.get("issuing", [])]
        lists = [base64.b64decode(data["crl"], validate=True)] if data.get("crl") else []
        return [pki.load_der(c) for c in ders], lists
    except InvalidRequest:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, BundleNotCertified):
        raise InvalidRequest("this file is neither an offline CA's answer nor PEM") from None


def for_hq(leaf: x509.Certificate) -> bool:
    """Return whether it is HQ's certificate rather than a client's; raise InvalidRequest if clients
    would not recognize HQ by it.
    """
    try:
        found = extensions_of(leaf)
    except BundleNotCertified:
        return False
    purposes = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if purposes is None or pki.SERVER not in purposes.value:
        return False
    if pki.SERVER_NAME in dns_names(found):
        return True
    raise InvalidRequest(
        f"HQ's certificate needs the DNS name {pki.SERVER_NAME} (subjectAltName)",
        remedy="have it signed again",
    )


def issuing_chain(signed: Signed, key: bytes, root: x509.Certificate) -> list[x509.Certificate]:
    """Return the issuing CA with this key (SubjectPublicKeyInfo) and those above it; empty if the
    file has none.

    Raise ConfigError if they do not lead to the root in this order.
    """
    if not any(pki.spki_of(c) == key for c in signed.cas):
        return []
    chain = checked_issuing(signed.cas, root, "this file", clock.now())
    if pki.spki_of(chain[0]) != key:
        raise ConfigError(
            "this file: the certificates are in the wrong order: the issuing CA comes first"
        )
    return chain
