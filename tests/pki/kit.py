"""Certificates and revocation lists with any extension and any mistake, under a CA of our own."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cipherbox import clock, pki

UNKNOWN = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
DAY = timedelta(days=1)
BASIC, USAGE, PURPOSE, OWN_ID, ISSUER_ID, NAMES = (
    x509.BasicConstraints,
    x509.KeyUsage,
    x509.ExtendedKeyUsage,
    x509.SubjectKeyIdentifier,
    x509.AuthorityKeyIdentifier,
    x509.SubjectAlternativeName,
)


def usage(**flags: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "key_cert_sign",
        "crl_sign",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: flags.get(name, False) for name in names})


def make(
    issuer: Any,
    name: str,
    key: Any,
    kind: str,
    *,
    without: Any = (),
    critical: dict[Any, bool] | None = None,
    more: Any = (),
    begins: timedelta = -DAY,
    life: timedelta = 30 * DAY,
    hash: hashes.HashAlgorithm | None = None,
    **instead: Any,
) -> x509.Certificate:
    """A certificate of ``kind`` client, hq or ca as ours are; ``instead`` replaces extensions:
    basic, usage, ...
    """
    ca = kind == "ca"
    found = {
        BASIC: instead.get("basic", x509.BasicConstraints(ca, 0 if ca else None)),
        USAGE: instead.get("usage", usage(digital_signature=not ca, key_cert_sign=ca, crl_sign=ca)),
        OWN_ID: x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
        ISSUER_ID: x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()),
    }
    if not ca:
        found[PURPOSE] = instead.get(
            "purpose", x509.ExtendedKeyUsage([pki.SERVER if kind == "hq" else pki.CLIENT])
        )
    if kind == "hq" or "names" in instead:
        found[NAMES] = instead.get(
            "names", x509.SubjectAlternativeName([x509.DNSName(pki.SERVER_NAME)])
        )
    marks = {BASIC: True, USAGE: True, **(critical or {})}
    start = clock.now() + begins
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(f"CN={name}"))
        .issuer_name(issuer.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + life)
    )
    for what, extension in found.items():
        if what not in without:
            builder = builder.add_extension(extension, critical=marks.get(what, False))
    for extension, mark in more:
        builder = builder.add_extension(extension, critical=mark)
    return builder.sign(issuer.key, hash or hashes.SHA384())


def authority(issuer: Any, name: str = "CA between", key: Any = None, **options: Any) -> Any:
    """A CA under ``issuer``, of any kind of key."""
    key = key or pki.new_key()
    return pki.Authority(make(issuer, name, key, "ca", **options), key)


def crl(
    ca: Any,
    serials: Any = (),
    number: int | None = 7,
    *,
    more: Any = (),
    entry: Any = (),
    begins: timedelta = -DAY / 24,
    life: timedelta = 7 * DAY,
    when: datetime | None = None,
    hash: hashes.HashAlgorithm | None = None,
) -> bytes:
    """A list of ``ca`` that names these serial numbers, each with the extensions ``entry``."""
    start = clock.now() + begins
    builder = x509.CertificateRevocationListBuilder().issuer_name(ca.certificate.subject)
    builder = builder.last_update(start).next_update(start + life)
    if number is not None:
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    for extension, mark in more:
        builder = builder.add_extension(extension, critical=mark)
    for serial in serials:
        one = (
            x509.RevokedCertificateBuilder()
            .serial_number(int(serial, 16))
            .revocation_date(when or start)
        )
        for extension, mark in entry:
            one = one.add_extension(extension, critical=mark)
        builder = builder.add_revoked_certificate(one.build())
    return builder.sign(ca.key, hash or hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def part(**only: Any) -> x509.IssuingDistributionPoint:
    """A list of a part of what its CA signed."""
    said = {
        "full_name": None,
        "relative_name": None,
        "only_contains_user_certs": False,
        "only_contains_ca_certs": False,
        "only_some_reasons": None,
        "indirect_crl": False,
        "only_contains_attribute_certs": False,
        **only,
    }
    return x509.IssuingDistributionPoint(**said)
