"""Certificates, chains, revocation lists, signing requests."""

from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st

from cipherbox import clock, pki
from cipherbox.errors import (
    BundleNotCertified,
    ConfigError,
    CredentialsError,
    InvalidRequest,
    ListOverdue,
)
from cipherbox.pki.revocation_lists import check_crl, make_crl
from tests.parties import party, world

NOW = clock.now()
DAY = datetime.timedelta(days=1)


def extensions(certificate: x509.Certificate) -> dict[str, object]:
    return {type(e.value).__name__: e.value for e in certificate.extensions}


def test_profiles() -> None:
    here = world()
    lab = party("FL-LAB")
    server = pki.issue_server(here.issuing, pki.new_key().public_key(), "DC-HQ")
    for certificate, depth in ((here.root.certificate, 1), (here.issuing.certificate, 0)):
        found = extensions(certificate)
        assert found["BasicConstraints"] == x509.BasicConstraints(True, depth)
        assert found["KeyUsage"].key_cert_sign  # type: ignore[attr-defined]
        assert not found["KeyUsage"].digital_signature  # type: ignore[attr-defined]
    for certificate, purpose in ((lab.certificate, pki.CLIENT), (server, pki.SERVER)):
        found = extensions(certificate)
        assert list(found["ExtendedKeyUsage"]) == [purpose]  # type: ignore[call-overload]
        assert found["BasicConstraints"] == x509.BasicConstraints(False, None)
        assert isinstance(certificate.signature_hash_algorithm, hashes.SHA384)
        assert certificate.public_key().curve.name == "secp384r1"  # type: ignore[union-attr]
    assert pki.common_name(lab.certificate) == "FL-LAB"
    names = extensions(server)["SubjectAlternativeName"]
    assert names.get_values_for_type(x509.DNSName) == [pki.SERVER_NAME]  # type: ignore[attr-defined]


def test_a_chain_is_good_only_under_its_root_in_its_time_and_for_its_purpose() -> None:
    here, lab = world(), party("FL-LAB")
    root = here.root.certificate
    assert pki.verify_chain(lab.chain, root, NOW) == lab.certificate
    bad = [
        ([lab.certificate], NOW, pki.CLIENT),  # the issuing CA is missing
        ([here.issuing.certificate], NOW, pki.CLIENT),  # a CA is no client
        (lab.chain, NOW, pki.SERVER),
        (lab.chain, NOW + 400 * DAY, pki.CLIENT),
        (lab.chain, NOW - 2 * DAY, pki.CLIENT),
        ([lab.certificate, world("OTHER").issuing.certificate], NOW, pki.CLIENT),
        ([], NOW, pki.CLIENT),
        ([b"junk", b"junk"], NOW, pki.CLIENT),
    ]
    for chain, at, usage in bad:
        with pytest.raises(BundleNotCertified):
            pki.verify_chain(chain, root, at, usage)  # type: ignore[arg-type]
    with pytest.raises(BundleNotCertified):
        pki.verify_chain(lab.chain, world("OTHER").root.certificate, NOW)


def test_a_client_cannot_issue() -> None:
    here, lab = world(), party("FL-LAB")
    forged = pki.issue_client(
        pki.Authority(lab.certificate, lab.key), pki.new_key().public_key(), "CA-RC"
    )
    with pytest.raises(BundleNotCertified, match="may not sign"):
        pki.verify_chain([forged, *lab.chain], here.root.certificate, NOW)


def test_from_a_request_only_a_proven_p384_key_is_taken() -> None:
    key = pki.new_key()
    csr = pki.make_csr(key, "FL-LAB")
    assert pki.spki(pki.key_of_csr(csr)) == pki.spki(key.public_key())
    weak = ec.generate_private_key(ec.SECP256R1())
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(weak, hashes.SHA256())
    )
    changed = bytearray(csr)
    changed[-1] ^= 1
    for bad in (
        request.public_bytes(serialization.Encoding.DER),
        bytes(changed),
        b"",
        csr[:-1],
        b"0" * 200,
    ):
        with pytest.raises(InvalidRequest):
            pki.key_of_csr(bad)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_refused(raw: bytes) -> None:
    with pytest.raises(InvalidRequest):
        pki.key_of_csr(raw)


def test_revocation_lists() -> None:
    here = world()
    issuing = here.issuing.certificate
    # NOW is from when this file was read
    crl, now = make_crl(here.issuing, [("ab12", NOW)], 7), clock.now()
    checked = check_crl(crl, issuing, now, 7)
    assert (checked.number, list(checked.revoked)) == (7, ["ab12"])
    with pytest.raises(ListOverdue, match="ended"):
        check_crl(crl, issuing, now + 8 * DAY)
    with pytest.raises(ListOverdue, match="seen before"):
        check_crl(crl, issuing, now, 8)
    with pytest.raises(CredentialsError, match="not signed"):
        check_crl(crl, world("OTHER").issuing.certificate, now)
    for offset in range(0, len(crl), 7):
        changed = crl[:offset] + bytes([crl[offset] ^ 1]) + crl[offset + 1 :]
        try:
            same = check_crl(changed, issuing, now, 7)
        except CredentialsError:
            continue
        # how many bits of a string are unused can change without changing anything
        assert same == checked, offset


def test_the_short_number_depends_on_root_and_key() -> None:
    numbers = {pki.enrol_number(bytes([r]) * 32, bytes([k])) for r in range(5) for k in range(5)}
    assert len(numbers) == 25
    assert all(len(n) == 7 and n[3] == " " for n in numbers)


def test_private_keys_open_with_their_key_alone() -> None:
    key = pki.new_key()
    data = pki.key_pem(key, b"k" * 32)
    assert pki.spki(pki.load_key(data, b"k" * 32, "f").public_key()) == pki.spki(key.public_key())
    assert b"ENCRYPTED" in data
    for wrong in (b"j" * 32, b""):
        with pytest.raises(ConfigError, match=r"client\.key"):
            pki.load_key(data, wrong, "client.key")
    with pytest.raises(ConfigError, match="backup"):
        pki.load_key(b"junk", b"k" * 32, "f")


def test_an_authority_shows_no_key() -> None:
    assert "key" not in repr(world().issuing)
