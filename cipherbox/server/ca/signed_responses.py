"""What comes back from a CA that is elsewhere: our offline CA's document, or plain PEM that other
tools made.

Either holds certificates in any number: of clients, of HQ, of the issuing CA itself with the CAs
between it and the root; and revocation lists of the issuing CA.  The document is in the manual page
`pki`.  Nothing here is believed yet.
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
    """``cas`` in the order in which they came."""

    cas: list[x509.Certificate]
    leaves: list[x509.Certificate]
    lists: list[bytes]


def read_signed(document: bytes) -> Signed:
    """InvalidRequest if it is neither."""
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
            "this file holds something other than whole certificates and revocation lists"
        )
    return found, lists


def _document(document: bytes) -> tuple[list[x509.Certificate], list[bytes]]:
    try:
        data = orjson.loads(document)
        if data["format"] == REQUESTS_FORMAT:
            raise InvalidRequest(
                "these are the requests",
                remedy="carry them to the CA: cipherbox ca sign, then import what it wrote",
            )
        if data["format"] != CERTIFICATES_FORMAT:
            raise InvalidRequest(f"this file is not of the format {CERTIFICATES_FORMAT}")
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
        raise InvalidRequest("this file is neither what the offline CA signed nor PEM") from None


def for_hq(leaf: x509.Certificate) -> bool:
    """Whether it is HQ's own certificate and no client's; InvalidRequest if no client would know
    HQ by it.
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
        remedy="have it signed anew",
    )


def issuing_chain(signed: Signed, key: bytes, root: x509.Certificate) -> list[x509.Certificate]:
    """The issuing CA with this key (SubjectPublicKeyInfo), and those above it; empty when the file
    holds none.

    ConfigError: they do not lead to the root in this order.
    """
    if not any(pki.spki_of(c) == key for c in signed.cas):
        return []
    chain = checked_issuing(signed.cas, root, "this file", clock.now())
    if pki.spki_of(chain[0]) != key:
        raise ConfigError(
            "this file: the certificates are in the wrong order: the issuing CA comes first"
        )
    return chain
