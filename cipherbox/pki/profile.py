"""The certificate profile, and the only verifier of chains: of TLS peers, key bundles, and what a
CA signed.

1. Each certificate matches the profile (`check_ca`, `check_leaf`): its purpose, its key, its
   extensions.  The manual page `pki` has the profile as a table.
2. The chain is in order, leaf first, and all its certificates are valid at the given time; one that
   begins up to `CLOCK_LAG` later is, too.
3. `cryptography`'s verifier checks the path: signatures and their algorithms, path lengths, name
   constraints.

For TLS peers OpenSSL verifies with `VERIFY_X509_STRICT` in addition; but for dates, nothing is
accepted here that it would refuse.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from cipherbox.errors import BundleNotCertified
from cipherbox.limits import LIMITS

SERVER_NAME = "hq.cipherbox.internal"
CLIENT = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER = ExtendedKeyUsageOID.SERVER_AUTH
CERTIFICATES = 4  # of a chain, without the root
RSA_BITS = 2048  # NIST SP 800-57; the least at OpenSSL's security level 2
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
_ANY = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
_UNDERSTOOD = frozenset(
    [
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.NAME_CONSTRAINTS,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    ]
)
_NOT_ISSUED = "the certificate was not issued by this HQ's CA"
_PURPOSES = {CLIENT: "a client", SERVER: "HQ"}
# how far a clock may lag behind the one that dated a certificate or a list; as for ids
CLOCK_LAG = datetime.timedelta(milliseconds=LIMITS.clock_ahead_ms)
HASHES = ("sha256", "sha384", "sha512")
# for extensions that are not critical; rule 1 covers the others
_PERMIT = verification.ExtensionPolicy.permit_all()
_PERMIT_CA = _PERMIT.require_present(x509.BasicConstraints, verification.Criticality.CRITICAL, None)


class OutOfDate(BundleNotCertified, code=BundleNotCertified.code):
    """A certificate is not valid at the given time, which may be wrong."""


OutOfDate.name = BundleNotCertified.name


def verify_chain(
    chain: Sequence[bytes | x509.Certificate],
    root: x509.Certificate,
    at: datetime.datetime | None = None,
    usage: x509.ObjectIdentifier = CLIENT,
) -> x509.Certificate:
    """Return the leaf of ``chain`` (leaf first, then the CAs up to, without, the root); raise
    BundleNotCertified if the chain does not lead to ``root`` or violates the profile.

    Without ``at`` it is verified for a time at which all of it is valid.
    """
    certificates = [c if isinstance(c, x509.Certificate) else load_der(c) for c in chain]
    if not 1 <= len(certificates) <= CERTIFICATES:
        raise BundleNotCertified(f"a chain has 1 to {CERTIFICATES} certificates")
    leaf = certificates[0]
    _check_names(certificates, root)
    for depth, ca in enumerate([*certificates[1:], root]):
        check_ca(ca, depth, usage, anchor=ca is root)
    _check_common(extensions_of(leaf), "the certificate", anchor=leaf == root)
    _check_path(certificates, root, at)
    check_leaf(leaf, usage)
    return leaf


def verify_issuing(
    chain: Sequence[x509.Certificate], root: x509.Certificate, at: datetime.datetime | None = None
) -> None:
    """Raise BundleNotCertified unless ``chain`` (an issuing CA, then those up to the root) leads to
    ``root`` and matches the profile.
    """
    _check_names(chain, root)
    for depth, ca in enumerate([*chain, root]):
        check_ca(ca, depth, anchor=ca is root)
    _check_path(chain, root, at)


def check_root(root: x509.Certificate, at: datetime.datetime) -> None:
    """Raise BundleNotCertified unless it can be a trust anchor; another CA may have issued it."""
    check_ca(root, 0, anchor=True)
    check_dates([root], at)
    if root.subject == root.issuer:
        _check_path([root], root, at)


def check_dates(certificates: Sequence[x509.Certificate], at: datetime.datetime) -> None:
    """Raise OutOfDate if one of them is not valid yet, or has expired.

    One that begins within `CLOCK_LAG` is valid: it exists, so the clock that gave ``at`` lags.
    """
    for one in certificates:
        first, last = one.not_valid_before_utc, one.not_valid_after_utc
        if at + CLOCK_LAG < first:
            raise OutOfDate(f"the certificate begins only on {first:%Y-%m-%d %H:%M} UTC")
        if at > last:
            raise OutOfDate(f"the certificate ended on {last:%Y-%m-%d %H:%M} UTC")


def verify_signature(certificate: x509.Certificate, signature: bytes, data: bytes) -> None:
    """Raise InvalidSignature unless the certificate's ECDSA key signed ``data`` with SHA-384."""
    key = certificate.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise InvalidSignature("the certificate has no ECDSA key")
    key.verify(signature, data, ec.ECDSA(hashes.SHA384()))


def load_der(data: bytes) -> x509.Certificate:
    """Return a certificate from DER; raise BundleNotCertified if it is not one."""
    try:
        found = x509.load_der_x509_certificate(data)
        found.subject, found.issuer  # noqa: B018  # the parser reads them only now
    except Exception:  # the parser has many errors, all of which mean: no certificate
        raise BundleNotCertified("this is not a certificate") from None
    return found


# -- one certificate -------------------------------------------------------------------------------


def check_leaf(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> None:
    """Raise BundleNotCertified unless the leaf matches the profile of clients or HQ (``usage``)."""
    found = extensions_of(leaf)
    if (
        not {
            ExtensionOID.BASIC_CONSTRAINTS,
            ExtensionOID.KEY_USAGE,
            ExtensionOID.EXTENDED_KEY_USAGE,
        }
        <= found.keys()
    ):
        raise BundleNotCertified("the certificate does not say what it is for")
    signs = found[ExtensionOID.KEY_USAGE].value
    if found[ExtensionOID.BASIC_CONSTRAINTS].value.ca or list(
        found[ExtensionOID.EXTENDED_KEY_USAGE].value
    ) != [usage]:
        raise BundleNotCertified(
            f"the certificate is for another purpose, and not that of {_PURPOSES[usage]}"
        )
    if not signs.digital_signature or signs.key_cert_sign:
        raise BundleNotCertified(
            "the certificate's key is not for signatures (digitalSignature) alone"
        )
    key = _key(leaf)
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp384r1":
        raise BundleNotCertified("the certificate's key is not ECDSA P-384")
    if usage == CLIENT and len(leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)) != 1:
        raise BundleNotCertified("the certificate has no name, or more than one")
    if usage == SERVER and SERVER_NAME not in dns_names(found):
        raise BundleNotCertified(
            f"the certificate has another name than {SERVER_NAME} (subjectAltName)"
        )


def check_ca(
    ca: x509.Certificate,
    depth: int,
    usage: x509.ObjectIdentifier | None = None,
    *,
    anchor: bool = False,
) -> None:
    """Raise BundleNotCertified unless the CA may have ``depth`` CAs below it and certify for
    ``usage`` (None: for any purpose).
    """
    found = extensions_of(ca)
    basic, signs = found.get(ExtensionOID.BASIC_CONSTRAINTS), found.get(ExtensionOID.KEY_USAGE)
    if (
        basic is None
        or signs is None
        or not basic.critical
        or not basic.value.ca
        or not signs.value.key_cert_sign
    ):
        raise BundleNotCertified(
            "a certificate in the chain may not sign others (CA:TRUE, critical, and keyCertSign)"
        )
    if basic.value.path_length is not None and basic.value.path_length < depth:
        raise BundleNotCertified(
            "a certificate in the chain may not sign others: its path length is too short"
        )
    _check_common(found, "a CA in the chain", anchor=anchor)
    if ExtensionOID.SUBJECT_KEY_IDENTIFIER not in found or not ca.subject.rdns:
        raise BundleNotCertified(
            "a CA in the chain has no name or no identifier (subjectKeyIdentifier)"
        )
    _check_key(ca)
    purposes = found.get(ExtensionOID.EXTENDED_KEY_USAGE)
    if usage is not None and purposes is not None and not {usage, _ANY} & {*purposes.value}:
        raise BundleNotCertified("a CA in the chain may not certify for this purpose")
    names = found.get(ExtensionOID.NAME_CONSTRAINTS)
    if names is not None:
        bounds = [*(names.value.permitted_subtrees or ()), *(names.value.excluded_subtrees or ())]
        if not names.critical or any(isinstance(name, x509.DirectoryName) for name in bounds):
            raise BundleNotCertified("a CA in the chain may certify for certain subjects only")


Found = dict[x509.ObjectIdentifier, Any]  # extensions by object identifier


def signs_lists(ca: x509.Certificate) -> bool:
    """Return whether the CA may sign revocation lists."""
    usage = extensions_of(ca).get(ExtensionOID.KEY_USAGE)
    return usage is not None and bool(usage.value.crl_sign)


def extensions_of(certificate: x509.Certificate) -> Found:
    """Return the extensions; raise BundleNotCertified if one is duplicate or unreadable."""
    try:
        return {extension.oid: extension for extension in certificate.extensions}
    except x509.DuplicateExtension as error:
        raise BundleNotCertified(
            f"a certificate has an extension twice: {error.oid.dotted_string}"
        ) from None
    except Exception:  # a modified certificate fails in many ways, all of which mean the same
        raise BundleNotCertified(_NOT_ISSUED) from None


def _check_common(found: Found, what: str, *, anchor: bool) -> None:
    for oid, extension in found.items():
        if extension.critical and oid not in _UNDERSTOOD:
            raise BundleNotCertified(
                f"{what} makes a condition unknown here: {oid.dotted_string} (critical)"
            )
    above = found.get(ExtensionOID.AUTHORITY_KEY_IDENTIFIER)
    if not anchor and (above is None or above.value.key_identifier is None):
        raise BundleNotCertified(
            f"{what} does not say which key signed it (authorityKeyIdentifier)"
        )


def _key(certificate: x509.Certificate) -> object:
    try:
        return certificate.public_key()
    except Exception:  # an unknown type of key, or a point that is not on its curve
        raise BundleNotCertified(
            "a certificate in the chain has a damaged key, or one of a kind unknown here"
        ) from None


def _check_key(ca: x509.Certificate) -> None:
    key = _key(ca)
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= RSA_BITS:
        return
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES:
        return
    raise BundleNotCertified(
        f"a CA in the chain has too weak a key, or one of another kind than RSA from {RSA_BITS} "
        "bits on and ECDSA on a curve of NIST"
    )


def dns_names(found: Found) -> list[str]:
    """Return the DNS names in a certificate's extensions."""
    names = found.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    return names.value.get_values_for_type(x509.DNSName) if names is not None else []


# -- the path --------------------------------------------------------------------------------------


def _check_names(chain: Sequence[x509.Certificate], root: x509.Certificate) -> None:
    try:
        good = all(
            child.issuer == parent.subject
            for child, parent in zip(chain, [*chain[1:], root], strict=True)
        )
    except Exception:  # as for extensions: names are parsed when they are accessed
        good = False
    if not good:
        raise BundleNotCertified(_NOT_ISSUED)


def _check_path(
    chain: Sequence[x509.Certificate], root: x509.Certificate, at: datetime.datetime | None
) -> None:
    begin = max(one.not_valid_before_utc for one in (*chain, root))
    check_dates([*chain, root], at or begin)
    at = max(at, begin) if at is not None else begin
    for one in chain:
        _check_signature(one)
    builder = (
        verification.PolicyBuilder()
        .store(verification.Store([root]))
        .time(at)
        .max_chain_depth(CERTIFICATES)
    )
    verifier = builder.extension_policies(
        ca_policy=_PERMIT_CA, ee_policy=_PERMIT
    ).build_client_verifier()
    try:
        found = verifier.verify(chain[0], list(chain[1:])).chain
    except (verification.VerificationError, ValueError) as error:
        raise BundleNotCertified(_plain(str(error))) from None
    if found != [*chain, root] and found != list(chain):
        raise BundleNotCertified(
            "the certificates of the chain are in the wrong order, or one is superfluous"
        )


def _check_signature(one: x509.Certificate) -> None:
    try:
        digest = one.signature_hash_algorithm
    except Exception:  # an unknown algorithm
        digest = None
    if digest is None or digest.name not in HASHES:
        raise BundleNotCertified("a certificate in the chain is signed with a weak or unknown hash")


def _plain(reason: str) -> str:
    if (
        "nameConstraint" in reason
        or "name constraint" in reason
        or "no permitted" in reason
        or "excluded" in reason
    ):
        return (
            "the name constraints of a CA in the chain do not permit the certificate, or are "
            "unknown here"
        )
    if "no interior errors" in reason:
        return _NOT_ISSUED
    detail = (
        reason.removeprefix("validation failed: ")
        .removeprefix("candidates exhausted: ")
        .split(" (encountered")[0]
    )
    return f"{_NOT_ISSUED}, or does not fit: {detail[:200]}"
