"""Revocation lists (X.509 CRLs, RFC 5280): made by our issuing CA, or by an organization's CA, and checked.

A list belongs to one CA: its issuer's name and key must be that CA's.  It has a number that only rises and an end; a
stale one is an error, since hiding a newer list hides a revocation.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cipherbox import pki
from cipherbox.errors import CredentialsError, ListOverdue
from cipherbox.pki import BACKDATED, CRL_DAYS, Authority, ms

_PEM = re.compile(b"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def make_crl(
    issuing: Authority, revoked: Sequence[tuple[str, datetime.datetime]], number: int, days: int = CRL_DAYS
) -> bytes:
    """The revocation list, DER: ``revoked`` holds (serial, when); ``number`` only rises."""
    start = pki.now()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuing.certificate.subject)
        .last_update(start - BACKDATED)
        .next_update(start + datetime.timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing.key.public_key()), critical=False)
    )
    for number_text, when in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(int(number_text, 16)).revocation_date(when).build()
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuing.key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


@attrs.frozen
class RevocationList:
    """A checked revocation list: its number, its end, and when each serial was revoked (ms since 1970)."""

    number: int
    next_update: datetime.datetime
    revoked: dict[str, int]


def read_crl(data: bytes, issuing: x509.Certificate) -> RevocationList:
    """What a list of this CA says, even one that has ended; CredentialsError if it is no list, or not of this CA."""
    try:
        crl = x509.load_der_x509_crl(data)
        key = issuing.public_key()
        known = isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
        good = known and crl.is_signature_valid(key)  # type: ignore[arg-type]
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        end = crl.next_update_utc
        revoked = {f"{entry.serial_number:x}": ms(entry.revocation_date_utc) for entry in crl}
    except x509.ExtensionNotFound:
        raise CredentialsError("the revocation list has no number (crlNumber)") from None
    except Exception:
        raise CredentialsError("this is not a revocation list") from None
    if not good or crl.issuer != issuing.subject or end is None:
        raise CredentialsError("the revocation list was not signed by this HQ's CA")
    return RevocationList(number, end, revoked)


def check_crl(
    data: bytes, issuing: x509.Certificate, at: datetime.datetime, least_number: int = 0
) -> RevocationList:
    """Checks signature, number and end.  ListOverdue: it has ended, or is older than ``least_number``."""
    found = read_crl(data, issuing)
    if found.number < least_number:
        raise ListOverdue(f"the revocation list has number {found.number}; number {least_number} was seen before")
    if at > found.next_update:
        raise ListOverdue(
            f"the revocation list ended on {found.next_update:%Y-%m-%d %H:%M} UTC (it is {at:%Y-%m-%d %H:%M} by this "
            "machine's clock); HQ's administrator must issue a new one"
        )
    return found


def lists_in(data: bytes, where: str) -> list[bytes]:
    """The lists in a file, each as DER: one in DER, or any number in PEM.  CredentialsError names ``where``."""
    try:
        if b"-----BEGIN" not in data:
            x509.load_der_x509_crl(data)
            return [data]
        found = [x509.load_pem_x509_crl(block) for block in _PEM.findall(data)]
    except ValueError:
        found = []
    if not found:
        raise CredentialsError(f"{where} holds no whole revocation list")
    return [crl.public_bytes(serialization.Encoding.DER) for crl in found]
