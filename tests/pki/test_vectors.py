"""Published vectors for certificates: ECDSA P-384 with SHA-384, points, signing requests, keys
at rest, chains.
"""

from __future__ import annotations

import base64
import datetime
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import (
    decode_dss_signature,
    encode_dss_signature,
)

from cipherbox import pki
from cipherbox.errors import BundleNotCertified, ConfigError, InvalidRequest
from tests.parties import party
from tests.published import ROOT, Row, flipped, rows

FIPS = "asymmetric/ECDSA/FIPS_186-3"
RFC_6979 = "asymmetric/ECDSA/RFC6979/evppkey_ecdsa_rfc6979.txt"
REQUESTS = sorted(ROOT.glob("x509/requests/*.*"))
HASH = ec.ECDSA(hashes.SHA384())
WIDTH = 48
INVALID_KEY = "(?i)invalid.*key"
ORDER = ec.SECP384R1().group_order


def point(row: Row, width: int = WIDTH) -> bytes:
    x, y = (int(row[name], 16).to_bytes(width, "big") for name in ("Qx", "Qy"))
    return b"\x04" + x + y


def certified(raw: bytes) -> pki.PublicKey:
    """The public key of a certificate with this point in it, read as every other certificate's
    is.
    """
    genuine = party("FL-LAB").certificate
    own = genuine.public_key()
    assert isinstance(own, ec.EllipticCurvePublicKey)
    there = own.public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )
    data = pki.der(genuine)
    assert data.count(there) == 1
    key = pki.load_der(data.replace(there, raw)).public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def check_refusals(key: pki.PublicKey, signed: bytes, message: bytes) -> None:
    """What is not the one DER form of this signature over this message."""
    r, s = decode_dss_signature(signed)
    pairs = ((0, s), (r, 0), (0, 0), (s, r), (r + ORDER, s), (r, s + ORDER))
    for bad, about in (
        (flipped(signed), message),
        (signed, message + b"\x00"),
        (signed + b"\x00", message),
        (signed[:-1], message),
        (r.to_bytes(WIDTH, "big") + s.to_bytes(WIDTH, "big"), message),
        (b"", message),
        *((encode_dss_signature(*pair), message) for pair in pairs),
    ):
        with pytest.raises(InvalidSignature):
            key.verify(bad, about, HASH)


def test_ecdsa_p384_sha384_verifies_as_published() -> None:
    """FIPS 186-3: the rows marked F have another message, R, S or key."""
    outcomes = []
    for row in rows(f"{FIPS}/SigVer.rsp", "[P-384,SHA-384]"):
        key, good = certified(point(row)), row["Result"].startswith("P")
        signed = encode_dss_signature(int(row["R"], 16), int(row["S"], 16))
        outcomes.append(good)
        if good:
            key.verify(signed, row.raw("Msg"), HASH)
            check_refusals(key, signed, row.raw("Msg"))
        else:
            with pytest.raises(InvalidSignature):
                key.verify(signed, row.raw("Msg"), HASH)
    assert (outcomes.count(True), outcomes.count(False)) == (3, 12)


def test_ecdsa_p384_sha384_signatures_are_as_published() -> None:
    for row in rows(f"{FIPS}/SigGen.txt", "[P-384,SHA-384]"):
        key = certified(point(row))
        signed = encode_dss_signature(int(row["R"], 16), int(row["S"], 16))
        key.verify(signed, row.raw("Msg"), HASH)
        check_refusals(key, signed, row.raw("Msg"))


def test_ecdsa_p384_sha384_against_rfc_6979() -> None:
    """These signatures are published as DER, the form that bundles carry; both keys verify what
    we sign with them.
    """
    text = (ROOT / RFC_6979).read_text().partition("RFC 6979 P-384")[2].partition("Title")[0]
    private_pem, public_pem = re.findall(r"-----BEGIN.*?-----END[^\n]*", text, re.S)[:2]
    private = serialization.load_pem_private_key(private_pem.encode(), None)
    public = serialization.load_pem_public_key(public_pem.encode())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert pki.spki(private.public_key()) == pki.spki(public)
    found = re.findall(
        r'DigestVerify = SHA384\nKey = \S+\nInput = "(\w+)"\nOutput = (\w+)(\nResult)?', text
    )
    assert sum(bool(failing) for *_, failing in found) == 2
    for message, signed, failing in found:
        if failing:
            with pytest.raises(InvalidSignature):
                public.verify(bytes.fromhex(signed), message.encode(), HASH)
        else:
            public.verify(bytes.fromhex(signed), message.encode(), HASH)
            check_refusals(public, bytes.fromhex(signed), message.encode())
            public.verify(private.sign(message.encode(), HASH), message.encode(), HASH)


def test_p384_points_in_certificates_are_checked() -> None:
    """FIPS 186-3: of the rows marked F some numbers are too large, and some points lie on no
    curve.
    """
    outcomes = []
    for row in rows(f"{FIPS}/PKV.rsp", "[P-384]"):
        outcomes.append(row["Result"].split(" -")[0])
        if row["Result"].startswith("P"):
            numbers = certified(point(row)).public_numbers()
            assert (numbers.x, numbers.y) == (int(row["Qx"], 16), int(row["Qy"], 16))
        elif row["Result"].startswith("F (2"):
            with pytest.raises(ValueError, match=INVALID_KEY):
                certified(point(row))
        else:  # a byte more than fits, so not in that certificate: the same key by itself
            spki = bytearray(
                pki.spki(pki.new_key().public_key())[: -2 * WIDTH - 1] + point(row, WIDTH + 1)
            )
            spki[1] += 2
            spki[-2 * WIDTH - 5] += 2
            with pytest.raises(ValueError, match=INVALID_KEY):
                serialization.load_der_public_key(bytes(spki))
    assert [outcomes.count(kind) for kind in ("P (0 )", "F (1", "F (2")] == [4, 4, 4]


def test_requests_are_taken_only_with_a_proven_p384_key() -> None:
    """Of all published requests one key is right; it comes in three files."""
    taken = []
    for path in REQUESTS:
        try:
            key = pki.key_of_csr(der(path))
        except InvalidRequest:
            continue
        taken.append(path.name)
        assert key.curve.name == "secp384r1"
    assert taken == ["ec_sha256.der", "ec_sha256.pem", "ec_sha256_old_header.pem"]
    good = der(ROOT / "x509/requests/ec_sha256.der")
    for at in (-1, len(good) // 2, 20):
        with pytest.raises(InvalidRequest):
            pki.key_of_csr(flipped(good, at))


def der(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".der":
        return data
    inside = re.search(rb"-----BEGIN [A-Z ]+-----(.*?)-----END", data, re.S)
    assert inside
    return base64.b64decode(inside[1])


def test_keys_at_rest_open_as_published() -> None:
    """Our password is a local key in hexadecimal text; these three bytes are the published
    file's "123456".
    """
    folder, local = ROOT / "asymmetric/PKCS8", bytes.fromhex("123456")
    data = (folder / "ec_private_key_encrypted.pem").read_bytes()
    key = pki.load_key(data, local, "key.pem")
    plain = serialization.load_pem_private_key((folder / "ec_private_key.pem").read_bytes(), None)
    assert isinstance(plain, ec.EllipticCurvePrivateKey)
    assert key.private_numbers() == plain.private_numbers()
    assert (
        pki.load_key(pki.key_pem(key, local), local, "key.pem").private_numbers()
        == plain.private_numbers()
    )
    with pytest.raises(ConfigError):
        pki.load_key(data, bytes.fromhex("123457"), "key.pem")
    for path in sorted(folder.glob("*.pem")):
        if path.name != "ec_private_key_encrypted.pem":
            with pytest.raises(ConfigError):
                pki.load_key(path.read_bytes(), local, "key.pem")


def test_a_published_p384_root_is_its_own_issuer_and_no_client() -> None:
    """It is signed as ours are, ECDSA with SHA-384, by another program."""
    root = x509.load_pem_x509_certificate((ROOT / "x509/ecdsa_root.pem").read_bytes())
    data = pki.der(root)
    with pytest.raises(BundleNotCertified, match="what it is for"):
        pki.verify_chain([root], root)
    with pytest.raises(BundleNotCertified, match="which key signed it"):
        pki.verify_chain([flipped(data)], root)
    with pytest.raises(BundleNotCertified, match="not issued"):
        pki.verify_chain([root], party("FL-LAB").world.root.certificate)


HOLDS, NOT_ISSUED, MAY_NOT, BEGINS, ENDED = (
    "what it is for",
    "not issued",
    "may not sign",
    "begins only",
    "ended on",
)
ENCODED = "UtcTime"  # RFC 5280, section 4.1.2.5: through 2049 it has no other form


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        ("ValidCertificatePathTest1EE GoodCACert", HOLDS),
        ("InvalidCASignatureTest2EE BadSignedCACert", NOT_ISSUED),
        ("InvalidEESignatureTest3EE GoodCACert", NOT_ISSUED),
        ("InvalidCAnotBeforeDateTest1EE BadnotBeforeDateCACert", BEGINS),
        ("InvalidEEnotBeforeDateTest2EE GoodCACert", BEGINS),
        ("Validpre2000UTCnotBeforeDateTest3EE GoodCACert", HOLDS),
        ("ValidGeneralizedTimenotBeforeDateTest4EE GoodCACert", ENCODED),
        ("InvalidCAnotAfterDateTest5EE BadnotAfterDateCACert", ENDED),
        ("InvalidEEnotAfterDateTest6EE GoodCACert", ENDED),
        ("Invalidpre2000UTCEEnotAfterDateTest7EE GoodCACert", ENDED),
        ("ValidGeneralizedTimenotAfterDateTest8EE GoodCACert", HOLDS),
        ("InvalidNameChainingTest1EE GoodCACert", NOT_ISSUED),
        ("InvalidNameChainingOrderTest2EE NameOrderingCACert", NOT_ISSUED),
        ("InvalidMissingbasicConstraintsTest1EE MissingbasicConstraintsCACert", MAY_NOT),
        ("InvalidcAFalseTest2EE basicConstraintsCriticalcAFalseCACert", MAY_NOT),
        ("InvalidcAFalseTest3EE basicConstraintsNotCriticalcAFalseCACert", MAY_NOT),
        # RFC 5280
        ("ValidbasicConstraintsNotCriticalTest4EE basicConstraintsNotCriticalCACert", MAY_NOT),
        (
            "InvalidpathLenConstraintTest5EE pathLenConstraint0subCACert pathLenConstraint0CACert",
            MAY_NOT,
        ),
        (
            "InvalidpathLenConstraintTest6EE pathLenConstraint0subCACert pathLenConstraint0CACert",
            MAY_NOT,
        ),
        ("ValidpathLenConstraintTest7EE pathLenConstraint0CACert", HOLDS),
        ("ValidpathLenConstraintTest8EE pathLenConstraint0CACert", HOLDS),
        (
            "InvalidpathLenConstraintTest9EE pathLenConstraint6subsubCA00Cert "
            "pathLenConstraint6subCA0Cert pathLenConstraint6CACert",
            MAY_NOT,
        ),
        (
            "InvalidkeyUsageCriticalkeyCertSignFalseTest1EE keyUsageCriticalkeyCertSignFalseCACert",
            MAY_NOT,
        ),
        (
            "InvalidkeyUsageNotCriticalkeyCertSignFalseTest2EE "
            "keyUsageNotCriticalkeyCertSignFalseCACert",
            MAY_NOT,
        ),
        ("ValidkeyUsageNotCriticalTest3EE keyUsageNotCriticalCACert", HOLDS),
    ],
    ids=lambda value: str(value).split(maxsplit=1)[0],
)
def test_chains_are_judged_as_published(names: str, wanted: str) -> None:
    """NIST's path validation suite, sections 4.1 to 4.3, 4.6 and 4.7.

    Its certificates name no purpose, so none is a client's: a chain that holds is refused for that
    alone, at the end.
    """
    folder = ROOT / "x509/PKITS_data/certs"
    chain = [(folder / f"{name}.crt").read_bytes() for name in names.split()]
    root = pki.load_der((folder / "TrustAnchorRootCertificate.crt").read_bytes())
    with pytest.raises(BundleNotCertified, match=wanted):
        pki.verify_chain(chain, root, datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
