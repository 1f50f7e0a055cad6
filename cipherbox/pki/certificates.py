"""Certificates: a root, an issuing CA, one certificate per party, and the revocation list.

The root signs the issuing CA and nothing else, so its key can leave the machine after `init`.  The
issuing CA signs HQ's server certificate, the clients' certificates and the revocation list.  All
keys made here are ECDSA P-384 (RFC 5480), all signatures ECDSA with SHA-384; the CAs of an
organization above ours may be RSA.  A renewed issuing CA keeps its name and key, so what it signed
before stays valid and it has a single revocation list.  No certificate outlives its issuer.  A
client's id is its certificate's common name and comes from HQ's records; only the public key of a
signing request is used.  Clients check HQ by one fixed logical name, so its addresses may change.
`profile` verifies certificates; the manual page `pki` describes the profile.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Sequence

import attrs
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from cipherbox import clock
from cipherbox.classes import frozen
from cipherbox.errors import ConfigError, CredentialsError, InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.pki.profile import CLIENT, SERVER, SERVER_NAME, check_dates, load_der, verify_chain

ROOT_DAYS, ISSUING_DAYS, LEAF_DAYS = 7305, 3652, 398
CRL_DAYS, OFFLINE_CRL_DAYS = 7, 35
RENEW_AT = 2 / 3  # of a certificate's life
_LABEL_NUMBER = b"cipherbox/v1/enrol-number\x00"
BACKDATED = datetime.timedelta(minutes=5)  # other machines' clocks may lag a little

# the profile's names
__all__ = ["CLIENT", "SERVER", "SERVER_NAME", "check_dates", "load_der", "verify_chain"]

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@frozen
class Authority:
    """A certificate that signs others, with its key."""

    certificate: x509.Certificate
    key: PrivateKey = attrs.field(repr=False)


def ms(moment: datetime.datetime) -> int:
    """Return the milliseconds since 1970."""
    return int(moment.timestamp() * 1000)


def new_key() -> PrivateKey:
    """Return a new P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


def end_of(chain: Sequence[x509.Certificate]) -> datetime.datetime:
    """Return when the first of these certificates expires."""
    return min(one.not_valid_after_utc for one in chain)


def renew_at(certificate: x509.Certificate) -> datetime.datetime:
    """Return when a certificate is due for renewal."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return begin + (end - begin) * RENEW_AT


def is_due(certificate: x509.Certificate, at: datetime.datetime | None = None) -> bool:
    """Return whether two thirds of a certificate's life have passed."""
    return (at or clock.now()) >= renew_at(certificate)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    issuer_key: PublicKey,
    days: float,
    signer: x509.Certificate | None,
) -> x509.CertificateBuilder:
    start = clock.now() - BACKDATED
    end = start + datetime.timedelta(days=days)
    if signer is not None:
        end = min(end, signer.not_valid_after_utc)
        if signer.not_valid_after_utc <= clock.now():
            raise CredentialsError(
                f"{common_name(signer) or 'the CA'} ended on "
                f"{signer.not_valid_after_utc:%Y-%m-%d %H:%M} UTC by this machine's clock "
                "and can sign nothing more",
                remedy="if the clock is right, renew it: cipherbox ca renew",
            )
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key), critical=False
        )
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _authority(
    subject: x509.Name,
    signer: Authority | None,
    days: int,
    depth: int,
    key: PrivateKey | None = None,
) -> Authority:
    key = key or new_key()
    issuer = signer.certificate.subject if signer else subject
    issuer_key = signer.key if signer else key
    above = signer.certificate if signer else None
    certificate = (
        _builder(subject, issuer, key.public_key(), issuer_key.public_key(), days, above)
        .add_extension(x509.BasicConstraints(ca=True, path_length=depth), critical=True)
        .add_extension(_usage(ca=True), critical=True)
        .sign(issuer_key, hashes.SHA384())
    )
    return Authority(certificate, key)


def new_root(name: str) -> Authority:
    """Return a self-signed root that may sign one level of issuing CAs."""
    return _authority(_name(f"{name} root"), None, ROOT_DAYS, 1)


def new_issuing(name: str, root: Authority) -> Authority:
    """Return an issuing CA under ``root``."""
    return _authority(_name(f"{name} issuing CA"), root, ISSUING_DAYS, 0)


def renew_issuing(issuing: Authority, root: Authority) -> Authority:
    """Return the issuing CA with the same name and key, valid for ten years from now."""
    return _authority(issuing.certificate.subject, root, ISSUING_DAYS, 0, issuing.key)


def _leaf(
    issuing: Authority, key: PublicKey, name: str, purpose: x509.ObjectIdentifier, days: float
) -> x509.Certificate:
    builder = (
        _builder(
            _name(name),
            issuing.certificate.subject,
            key,
            issuing.key.public_key(),
            days,
            issuing.certificate,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(ca=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    )
    if purpose == SERVER:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(SERVER_NAME)]), critical=False
        )
    return builder.sign(issuing.key, hashes.SHA384())


def issue_client(
    issuing: Authority, key: PublicKey, client_id: str, days: float = LEAF_DAYS
) -> x509.Certificate:
    """Issue a client's certificate, with its id as common name."""
    return _leaf(issuing, key, check_client_id(client_id), CLIENT, days)


def issue_server(
    issuing: Authority, key: PublicKey, name: str, days: float = LEAF_DAYS
) -> x509.Certificate:
    """Issue HQ's certificate, with the logical name that clients check."""
    return _leaf(issuing, key, name, SERVER, days)


def make_csr(key: PrivateKey, client_id: str) -> bytes:
    """Return a PKCS#10 signing request, DER."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(client_id))
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def make_ca_csr(key: PrivateKey, name: str) -> bytes:
    """Return a PKCS#10 request, DER, for an issuing CA under an organization's CA."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name(f"{name} issuing CA"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(ca=True), critical=True)
    return builder.sign(key, hashes.SHA384()).public_bytes(serialization.Encoding.DER)


def csr_pem(csr: bytes) -> bytes:
    """Return a signing request as PEM, for other tools."""
    return x509.load_der_x509_csr(csr).public_bytes(serialization.Encoding.PEM)


def key_of_csr(csr: bytes) -> PublicKey:
    """Return the public key of a signing request, whose signature is verified; ignore the rest."""
    try:
        request = x509.load_der_x509_csr(csr)
        key = request.public_key()
        good = request.is_signature_valid
    except Exception:  # the parser has many errors, all of which mean: no signing request
        raise InvalidRequest("this is not a certificate signing request") from None
    if not good or not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise InvalidRequest(
            "a signing request needs an ECDSA P-384 key and its own valid signature"
        )
    return key


def spki(key: PublicKey) -> bytes:
    """Return a key's SubjectPublicKeyInfo, DER."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def spki_of(certificate: x509.Certificate) -> bytes:
    """Return a certificate's SubjectPublicKeyInfo, DER, for any type of key; raise CredentialsError
    if it cannot be read.
    """
    try:
        key = certificate.public_key()
    except Exception:
        raise CredentialsError(
            "a certificate has a damaged key, or one of a kind unknown here"
        ) from None
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def enrol_number(root_fingerprint: bytes, key_spki: bytes) -> str:
    """Return the short number that both ends of an enrolment display: "123 456"."""
    digest = hashlib.sha256(_LABEL_NUMBER + root_fingerprint + key_spki).digest()
    digits = f"{int.from_bytes(digest[:8], 'big') % 1_000_000:06d}"
    return f"{digits[:3]} {digits[3:]}"


def fingerprint(certificate: x509.Certificate) -> bytes:
    """Return the SHA-256 of a certificate's DER."""
    return certificate.fingerprint(hashes.SHA256())


def common_name(certificate: x509.Certificate) -> str:
    """Return the subject's common name, or an empty string."""
    found = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else ""


def serial(certificate: x509.Certificate) -> str:
    """Return the serial number as hexadecimal text."""
    return f"{certificate.serial_number:x}"


def der(certificate: x509.Certificate) -> bytes:
    """Return a certificate as DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates as PEM, concatenated."""
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def load_pem(data: bytes, where: str) -> list[x509.Certificate]:
    """Return certificates from PEM; raise CredentialsError, naming ``where``."""
    try:
        found = x509.load_pem_x509_certificates(data)
        for one in found:
            one.public_key(), one.subject, one.issuer  # the parser reads them only now
    except UnsupportedAlgorithm:
        raise CredentialsError(
            f"{where} holds a certificate with a key of a kind unknown here"
        ) from None
    except Exception:
        raise CredentialsError(f"{where} holds no certificate, or a damaged one") from None
    return found


def password_of(local_key: bytes) -> bytes:
    """Return the PKCS#8 password of a local key: its hexadecimal text, usable with
    OpenSSL's tools.
    """
    return local_key.hex().encode()


def key_pem(key: PrivateKey, local_key: bytes) -> bytes:
    """Return a key as PKCS#8 PEM, encrypted under a local key."""
    protection = serialization.BestAvailableEncryption(password_of(local_key))
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, protection
    )


def load_key(data: bytes, local_key: bytes, where: str) -> PrivateKey:
    """Return a private key from `key_pem`; raise ConfigError, naming ``where``, never its
    contents.
    """
    try:
        key = serialization.load_pem_private_key(data, password_of(local_key))
    except Exception:
        raise ConfigError(
            f"{where} does not open with the key that belongs to it",
            remedy="restore both files from your backup",
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{where} is not an ECDSA key")
    return key
