"""Every revocation list is understood completely or refused, with a plain word."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cipherbox import clock, pki
from cipherbox.errors import CredentialsError, ListOverdue, NotValidNow
from cipherbox.pki.revocation_lists import check_crl, lists_in, make_crl, read_crl
from tests.pki.kit import DAY, UNKNOWN, authority, crl, part, usage

ROOT = pki.new_root("Org")
CA = authority(ROOT)
HERE = [x509.UniformResourceIdentifier("http://pki.example.org/ca.crl")]
REASON, ISSUER, SINCE = x509.CRLReason, x509.CertificateIssuer, x509.InvalidityDate

LISTS: list[tuple[dict[str, Any], str]] = [
    ({"more": [(x509.DeltaCRLIndicator(5), True)]}, "a delta"),
    ({"more": [(x509.DeltaCRLIndicator(5), False)]}, "a delta"),
    ({"more": [(part(only_contains_ca_certs=True), True)]}, "partitioned"),
    ({"more": [(part(only_contains_user_certs=True), True)]}, "partitioned"),
    ({"more": [(part(full_name=HERE), True)]}, "partitioned"),
    (
        {"more": [(part(only_some_reasons=frozenset([x509.ReasonFlags.key_compromise])), True)]},
        "partitioned",
    ),
    ({"more": [(part(full_name=HERE, indirect_crl=True), True)]}, "partitioned"),
    ({"more": [(part(full_name=HERE), False)]}, "partitioned"),
    ({"more": [(UNKNOWN, True)]}, "unknown here"),
    ({"serials": ["ab"], "entry": [(UNKNOWN, True)]}, "unknown here"),
    (
        {
            "serials": ["ab"],
            "entry": [(ISSUER([x509.DirectoryName(ROOT.certificate.subject)]), True)],
        },
        "unknown here",
    ),
    (
        {
            "serials": ["ab"],
            "entry": [(ISSUER([x509.DirectoryName(ROOT.certificate.subject)]), False)],
        },
        "another CA",
    ),
    (
        {"serials": ["ab"], "entry": [(REASON(x509.ReasonFlags.remove_from_crl), False)]},
        "takes an entry back",
    ),
    ({"begins": 2 * DAY}, "begins only on"),
    ({"number": None}, "has no number"),
    ({"hash": hashes.SHA224()}, "weak or unknown hash"),
]


@pytest.mark.parametrize(("mistake", "says"), LISTS, ids=lambda value: str(value)[:60])
def test_what_is_not_the_complete_list_is_refused(mistake: dict[str, Any], says: str) -> None:
    with pytest.raises(CredentialsError, match=says):
        check_crl(crl(CA, **mistake), CA.certificate, clock.now())


def test_what_says_no_less_is_taken() -> None:
    now = clock.now()
    fresh = x509.FreshestCRL([x509.DistributionPoint(HERE, None, None, None)])  # where its delta is
    entry = [
        (REASON(x509.ReasonFlags.certificate_hold), False),
        (SINCE(now - 9 * DAY), False),
        (UNKNOWN, False),
    ]
    raw = crl(CA, ["ab"], more=[(fresh, False), (UNKNOWN, False)], entry=entry)
    assert list(check_crl(raw, CA.certificate, now).revoked) == ["ab"]
    for key in (rsa.generate_private_key(65537, 2048), pki.new_key()):
        ca = authority(ROOT, key=key)
        assert list(
            read_crl(crl(ca, ["cd"], hash=hashes.SHA256()), ca.certificate, now).revoked
        ) == ["cd"]


def test_a_ca_that_may_not_sign_lists_signs_none() -> None:
    ca = authority(ROOT, usage=usage(key_cert_sign=True))
    with pytest.raises(CredentialsError, match="cRLSign"):
        check_crl(crl(ca), ca.certificate, clock.now())


def test_a_list_of_another_key_with_the_same_name_is_refused() -> None:
    with pytest.raises(CredentialsError, match="not signed"):
        check_crl(crl(authority(ROOT)), CA.certificate, clock.now())


def test_a_list_may_begin_a_day_later_by_a_clock_that_lags() -> None:
    raw = crl(CA, begins=DAY / 2)
    check_crl(raw, CA.certificate, clock.now())
    with pytest.raises(NotValidNow, match="begins only on"):
        check_crl(raw, CA.certificate, clock.now() - DAY)


def test_revoked_later_is_revoked_now_and_the_first_time_counts() -> None:
    now = clock.now()
    raw = crl(CA, ["ab"], when=now + 9 * DAY)
    assert read_crl(raw, CA.certificate, now).revoked["ab"] < pki.ms(now)
    twice = crl(CA, ["ab", "ab"])
    assert len(read_crl(twice, CA.certificate, now).revoked) == 1
    made = make_crl(CA, [("ab", now)], 3)  # ours begin five minutes ago
    assert read_crl(made, CA.certificate, now).revoked["ab"] == pki.ms(now.replace(microsecond=0))


def test_numbers_only_rise_and_have_an_end() -> None:
    raw = crl(CA, number=(1 << 159) - 1)
    with pytest.raises(ListOverdue, match="seen before"):
        check_crl(raw, CA.certificate, clock.now(), 1 << 159)
    assert check_crl(raw, CA.certificate, clock.now()).number == (1 << 159) - 1


def test_a_file_with_half_a_list_holds_none() -> None:
    blocks = [
        x509.load_der_x509_crl(crl(CA, number=n)).public_bytes(serialization.Encoding.PEM)
        for n in (1, 2)
    ]
    assert len(lists_in(b"".join(blocks), "f")) == 2
    for cut in (
        blocks[0] + blocks[1][:200],
        blocks[0] + blocks[1][:30],
        crl(CA) + b"\x00",
        crl(CA)[:-1],
        b"",
    ):
        with pytest.raises(CredentialsError, match="no whole revocation list"):
            lists_in(cut, "f")


def sized(tag: bytes, content: bytes) -> bytes:
    """DER: a tag with its length."""
    return tag + (b"\x82" + len(content).to_bytes(2, "big")) + content


def test_an_extension_that_comes_twice_is_refused() -> None:
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x02\x01\x07")
    said = x509.load_der_x509_crl(crl(CA, ["ab"] * 9, more=[(other, False)])).tbs_certlist_bytes
    said = said.replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x14")
    signature = CA.key.sign(said, ec.ECDSA(hashes.SHA384()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040303")
    raw = sized(b"\x30", said + algorithm + b"\x03" + bytes([len(signature) + 1, 0]) + signature)
    with pytest.raises(CredentialsError, match=r"twice: 2\.5\.29\.20"):
        check_crl(raw, CA.certificate, clock.now())
