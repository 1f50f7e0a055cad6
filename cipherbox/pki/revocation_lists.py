"""Revocation lists (X.509 CRLs, RFC 5280): made by our issuing CA or an organization's CA, and
checked.

A list belongs to one CA: its issuer's name and key must be that CA's, and the CA must be allowed to
sign lists.  It has a number that only rises, and an expiry; a stale list is an error, since hiding
a newer list hides a revocation.

A list is either read completely or refused: a delta, or a list for part of a CA's certificates, is
never taken for a complete one.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import CRLEntryExtensionOID, ExtensionOID

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.errors import CredentialsError, ListOverdue, NotValidNow
from cipherbox.pki.certificates import BACKDATED, CRL_DAYS, Authority, ms
from cipherbox.pki.profile import CLOCK_LAG, HASHES, signs_lists

_MOST = 1 << 160  # RFC 5280, section 5.2.3: a number has at most 20 octets
_UNDERSTOOD = (ExtensionOID.CRL_NUMBER, ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
_PEM = re.compile(b"-----BEGIN X509 CRL-----.+?-----END X509 CRL-----", re.DOTALL)


def make_crl(
    issuing: Authority,
    revoked: Sequence[tuple[str, datetime.datetime]],
    number: int,
    days: int = CRL_DAYS,
    *,
    at: datetime.datetime | None = None,
) -> bytes:
    """Return a signed list, DER: ``revoked`` has (serial, time), ``number`` only rises, and it
    begins ``at`` a time, else now.
    """
    start = at if at is not None else clock.now()
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuing.certificate.subject)
        .last_update(start - BACKDATED)
        .next_update(start + datetime.timedelta(days=days))
        .add_extension(x509.CRLNumber(number), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuing.key.public_key()),
            critical=False,
        )
    )
    for number_text, when in revoked:
        entry = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(number_text, 16))
            .revocation_date(when)
            .build()
        )
        builder = builder.add_revoked_certificate(entry)
    return builder.sign(issuing.key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


@frozen
class RevocationList:
    """A checked revocation list: its number, its expiry, and when each serial was revoked (ms since
    1970).
    """

    number: int
    next_update: datetime.datetime
    revoked: dict[str, int]


def read_crl(data: bytes, ca: x509.Certificate, at: datetime.datetime) -> RevocationList:
    """Return a list of this CA, even an expired one; raise CredentialsError if it is invalid or not
    understood.  This machine's clock may lag behind the CA's by `CLOCK_LAG`.
    """
    crl = _parsed(data)
    try:
        if not is_signed(data, ca) or crl.issuer != ca.subject:
            raise CredentialsError("the revocation list was not signed by this HQ's CA")
        digest = crl.signature_hash_algorithm
        extensions = {extension.oid: extension for extension in crl.extensions}
        begin, end = crl.last_update_utc, crl.next_update_utc
        revoked = _revoked(crl)
    except CredentialsError:
        raise
    except x509.DuplicateExtension as error:
        raise CredentialsError(
            f"the revocation list has an extension twice: {error.oid.dotted_string}"
        ) from None
    except Exception:  # parts are parsed when they are accessed, and fail in many ways
        raise CredentialsError("this is not a revocation list") from None
    if digest is None or digest.name not in HASHES:
        raise CredentialsError("the revocation list is signed with a weak or unknown hash")
    if not signs_lists(ca):
        raise CredentialsError("the revocation list is of a CA that may not sign lists (cRLSign)")
    _check_whole(extensions)
    if begin > at + CLOCK_LAG:
        raise NotValidNow(
            f"the revocation list begins only on {begin:%Y-%m-%d %H:%M} UTC, and it is "
            f"{at:%Y-%m-%d %H:%M} by this machine's clock"
        )
    if end is None or end <= begin:
        raise CredentialsError(
            "the revocation list does not say when the next one comes (nextUpdate)"
        )
    number = extensions.get(ExtensionOID.CRL_NUMBER)
    if number is None or not 0 <= number.value.crl_number < _MOST:
        raise CredentialsError("the revocation list has no number (crlNumber)")
    # a later date is a mistake, and would keep the certificate valid until then
    latest = ms(begin + 2 * BACKDATED)
    revoked = {serial: when if when <= latest else ms(begin) for serial, when in revoked.items()}
    return RevocationList(number.value.crl_number, end, revoked)


def issuer_of(data: bytes) -> x509.Name:
    """Return the issuer that a list names; raise CredentialsError if it is not a list."""
    try:
        return _parsed(data).issuer
    except Exception:  # names are parsed when they are accessed
        raise CredentialsError("this is not a revocation list") from None


def _parsed(data: bytes) -> x509.CertificateRevocationList:
    try:
        return x509.load_der_x509_crl(data)
    except Exception:
        raise CredentialsError("this is not a revocation list") from None


def is_signed(data: bytes, ca: x509.Certificate) -> bool:
    """Return whether this CA signed the revocation list (DER)."""
    key = ca.public_key()
    known = isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    return known and _parsed(data).is_signature_valid(key)  # type: ignore[arg-type]


def _check_whole(extensions: Mapping[x509.ObjectIdentifier, Any]) -> None:
    """Raise CredentialsError unless the list covers all certificates of its CA."""
    if ExtensionOID.DELTA_CRL_INDICATOR in extensions:
        raise CredentialsError(
            "this revocation list is a delta: it names only what changed since another list",
            remedy="take the complete list",
        )
    if ExtensionOID.ISSUING_DISTRIBUTION_POINT in extensions:
        raise CredentialsError(
            "this revocation list is partitioned (issuingDistributionPoint): it covers "
            "a part of what its CA signed",
            remedy="take the complete list",
        )
    for oid, extension in extensions.items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise CredentialsError(
                f"the revocation list makes a condition unknown here: {oid.dotted_string}, critical"
            )


def _revoked(crl: x509.CertificateRevocationList) -> dict[str, int]:
    """Return when each serial number was revoked, in ms since 1970; the earliest of duplicates."""
    found: dict[str, int] = {}
    for entry in crl:
        serial, when = f"{entry.serial_number:x}", ms(entry.revocation_date_utc)
        for extension in entry.extensions:
            if extension.critical and extension.oid != CRLEntryExtensionOID.CRL_REASON:
                raise CredentialsError(
                    "an entry of the revocation list makes a condition unknown here: "
                    f"{extension.oid.dotted_string} (critical)"
                )
            value = extension.value
            if isinstance(value, x509.CertificateIssuer):
                raise CredentialsError(
                    "the revocation list names certificates of another CA (an indirect list)"
                )
            if (
                isinstance(value, x509.CRLReason)
                and value.reason is x509.ReasonFlags.remove_from_crl
            ):
                raise CredentialsError(
                    "the revocation list takes an entry back (removeFromCRL), as only a delta may"
                )
        found[serial] = min(when, found.get(serial, when))
    return found


def check_crl(
    data: bytes, issuing: x509.Certificate, at: datetime.datetime, least_number: int = 0
) -> RevocationList:
    """Read a list as `read_crl`; raise ListOverdue if it is expired or below ``least_number``."""
    found = read_crl(data, issuing, at)
    if found.number < least_number:
        raise ListOverdue(
            f"the revocation list has number {found.number}; number {least_number} was seen before"
        )
    if at > found.next_update:
        raise ListOverdue(
            f"the revocation list ended on {found.next_update:%Y-%m-%d %H:%M} UTC (it "
            f"is {at:%Y-%m-%d %H:%M} by this machine's clock)",
            remedy="if the clock is right, HQ's administrator must issue a new one (cipherbox ca)",
        )
    return found


def lists_in(data: bytes, where: str) -> list[bytes]:
    """Return the lists in a file, each as DER: one in DER, or any number in PEM; raise
    CredentialsError, naming ``where``.
    """
    try:
        if b"-----BEGIN" not in data:
            x509.load_der_x509_crl(data)
            return [data]
        found = [x509.load_pem_x509_crl(block) for block in _PEM.findall(data)]
    except Exception:  # the parser has many errors
        found = []
    # the last one may be incomplete
    if not found or len(found) != data.count(b"-----BEGIN X509 CRL-----"):
        raise CredentialsError(f"{where} holds no whole revocation list")
    return [crl.public_bytes(serialization.Encoding.DER) for crl in found]
