"""One profile for every chain: what is not in it is refused with a plain word, in bundles and in
TLS alike.
"""

from __future__ import annotations

import datetime
from ipaddress import ip_address
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from cipherbox import clock, pki
from cipherbox.envelope.bundle import check_bundle
from cipherbox.errors import BundleError, BundleNotCertified, CredentialsError
from cipherbox.net.tls import client_context, server_context, shake_hands
from cipherbox.pki import profile
from cipherbox.sealing.identity import Identity
from tests.parties import now_ms, party, world
from tests.pki.kit import (
    BASIC,
    DAY,
    ISSUER_ID,
    NAMES,
    OWN_ID,
    PURPOSE,
    UNKNOWN,
    USAGE,
    authority,
    make,
    usage,
)

ROOT = pki.new_root("Org")
HERE = world()
KEY = pki.new_key()
DNS = x509.DNSName


def shown(leaf: x509.Certificate, key: Any, issuing: Any, root: x509.Certificate) -> None:
    """A handshake in which HQ shows this certificate."""
    chain = [issuing.certificate]
    shake_hands(server_context([leaf, *chain], key, [root, *chain]), client_context(root))


CLIENTS: list[tuple[dict[str, Any], str]] = [
    ({"more": [(UNKNOWN, True)]}, "unknown here: 1.3.6.1.4.1.55555.1"),
    ({"usage": usage(key_agreement=True)}, "digitalSignature"),
    ({"usage": usage(digital_signature=True, key_cert_sign=True)}, "digitalSignature"),
    ({"without": [USAGE]}, "what it is for"),
    ({"without": [PURPOSE]}, "what it is for"),
    ({"without": [BASIC]}, "what it is for"),
    ({"without": [ISSUER_ID]}, "which key signed it"),
    ({"basic": x509.BasicConstraints(True, 0)}, "another purpose"),
    ({"purpose": x509.ExtendedKeyUsage([pki.SERVER])}, "another purpose"),
    ({"purpose": x509.ExtendedKeyUsage([pki.CLIENT, pki.SERVER])}, "another purpose"),
    ({"begins": 2 * DAY}, "begins only on"),
    ({"begins": -DAY, "life": DAY / 2}, "ended on"),
    ({"hash": hashes.SHA224()}, "weak or unknown hash"),
]


@pytest.mark.parametrize(("mistake", "says"), CLIENTS, ids=lambda value: str(value)[:40])
def test_a_clients_certificate_outside_the_profile_is_refused(
    mistake: dict[str, Any], says: str
) -> None:
    good = make(HERE.issuing, "FL-LAB", KEY, "client", more=[(UNKNOWN, False)])
    chain = [HERE.issuing.certificate]
    pki.verify_chain([good, *chain], HERE.root.certificate, clock.now())
    bad = make(HERE.issuing, "FL-LAB", KEY, "client", **mistake)
    with pytest.raises(BundleNotCertified, match=says):
        pki.verify_chain([bad, *chain], HERE.root.certificate, clock.now())


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (ec.generate_private_key(ec.SECP256R1()), "P-384"),
        (ed25519.Ed25519PrivateKey.generate(), "P-384"),
        (rsa.generate_private_key(65537, 2048), "P-384"),
    ],
    ids=["p256", "ed25519", "rsa"],
)
def test_a_clients_key_is_of_one_kind(key: Any, says: str) -> None:
    bad = make(HERE.issuing, "FL-LAB", key, "client")
    with pytest.raises(BundleNotCertified, match=says):
        pki.verify_chain([bad, HERE.issuing.certificate], HERE.root.certificate, clock.now())


HQS: list[tuple[dict[str, Any], str]] = [
    ({"without": [PURPOSE]}, "what it is for"),
    ({"purpose": x509.ExtendedKeyUsage([pki.SERVER, pki.CLIENT])}, "another purpose"),
    ({"without": [NAMES]}, "another name"),
    (
        {"names": x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])},
        "another name",
    ),
    ({"names": x509.SubjectAlternativeName([DNS("hq.example.org")])}, "another name"),
    ({"more": [(UNKNOWN, True)]}, "unhandled critical extension|unknown here"),
    ({"usage": usage(key_agreement=True)}, "digitalSignature|usage"),
    ({"without": [ISSUER_ID]}, "Authority Key Identifier"),
    ({"begins": -DAY, "life": DAY / 2}, "has ended"),
]


@pytest.mark.parametrize(("mistake", "says"), HQS, ids=lambda value: str(value)[:40])
def test_what_a_client_takes_for_hq_fits_the_profile(mistake: dict[str, Any], says: str) -> None:
    root = HERE.root.certificate
    shown(make(HERE.issuing, "DC-HQ", KEY, "hq"), KEY, HERE.issuing, root)
    # the common name is right, and counts for nothing
    bad = make(HERE.issuing, pki.SERVER_NAME, KEY, "hq", **mistake)
    with pytest.raises(CredentialsError, match=says):
        shown(bad, KEY, HERE.issuing, root)


def caused(value: Any) -> str:
    return str(value)[:40]


CAS: list[tuple[dict[str, Any], str]] = [
    ({"key": rsa.generate_private_key(65537, 1024)}, "too weak a key"),
    ({"key": ec.generate_private_key(ec.SECP256K1())}, "too weak a key"),
    ({"hash": hashes.SHA224()}, "weak or unknown hash"),
    ({"life": DAY / 2}, "ended on"),
    ({"begins": 2 * DAY}, "begins only on"),
    ({"critical": {BASIC: False}}, "may not sign others"),
    ({"without": [USAGE]}, "may not sign others"),
    ({"usage": usage(crl_sign=True)}, "may not sign others"),
    ({"without": [OWN_ID]}, "subjectKeyIdentifier"),
    ({"without": [ISSUER_ID]}, "which key signed it"),
    ({"more": [(UNKNOWN, True)]}, "unknown here"),
    ({"more": [(x509.ExtendedKeyUsage([pki.SERVER]), False)]}, "for this purpose"),
    (
        {"more": [(x509.NameConstraints([x509.DirectoryName(x509.Name([]))], None), True)]},
        "certain subjects",
    ),
    ({"more": [(x509.NameConstraints([DNS("example.org")], None), False)]}, "certain subjects"),
    ({"more": [(x509.InhibitAnyPolicy(0), True)]}, "unknown here"),
]


@pytest.mark.parametrize(("mistake", "says"), CAS, ids=caused)
def test_a_ca_outside_the_profile_certifies_nobody(mistake: dict[str, Any], says: str) -> None:
    between = authority(ROOT, **mistake)
    hash = hashes.SHA256() if isinstance(between.key, rsa.RSAPrivateKey) else None
    leaf = make(between, "FL-LAB", KEY, "client", hash=hash)
    with pytest.raises(BundleNotCertified, match=says):
        pki.verify_chain([leaf, between.certificate], ROOT.certificate, clock.now())


@pytest.mark.parametrize(
    "key",
    [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP256R1()),
        pki.new_key(),
    ],
    ids=["rsa", "p256", "p384"],
)
def test_an_organizations_ca_may_be_rsa_or_ecdsa(key: Any) -> None:
    between = authority(
        ROOT, key=key, more=[(x509.ExtendedKeyUsage([pki.SERVER, pki.CLIENT]), False)]
    )
    leaf = make(between, "FL-LAB", KEY, "client", hash=hashes.SHA256())
    assert pki.verify_chain([leaf, between.certificate], ROOT.certificate, clock.now()) == leaf
    shown(make(between, "DC-HQ", KEY, "hq", hash=hashes.SHA256()), KEY, between, ROOT.certificate)


def test_names_that_a_ca_is_bound_to_bind_hq() -> None:
    for name, good in ((pki.SERVER_NAME, True), ("example.org", False)):
        between = authority(ROOT, more=[(x509.NameConstraints([DNS(name)], None), True)])
        leaf = make(between, "DC-HQ", KEY, "hq")
        if good:
            pki.verify_chain([leaf, between.certificate], ROOT.certificate, clock.now(), pki.SERVER)
            continue
        with pytest.raises(BundleNotCertified, match="name constraints"):
            pki.verify_chain([leaf, between.certificate], ROOT.certificate, clock.now(), pki.SERVER)


def test_an_extension_that_comes_twice_is_refused() -> None:
    other = x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.99"), b"\x05\x00")
    leaf = make(HERE.issuing, "FL-LAB", KEY, "client", more=[(other, False)])
    twice = pki.load_der(pki.der(leaf).replace(b"\x06\x03\x55\x1d\x63", b"\x06\x03\x55\x1d\x0f"))
    with pytest.raises(BundleNotCertified, match=r"twice: 2\.5\.29\.15"):
        profile.verify_chain([twice, HERE.issuing.certificate], HERE.root.certificate, clock.now())


def test_a_chain_is_what_leads_to_the_root_and_nothing_else() -> None:
    lab, stranger = party("FL-LAB"), authority(ROOT).certificate
    chain = [lab.certificate, HERE.issuing.certificate]
    root = HERE.root.certificate
    for bad in ([*chain, stranger], [*chain, root, root], [lab.certificate, stranger]):
        with pytest.raises(BundleNotCertified):
            pki.verify_chain(bad, HERE.root.certificate, clock.now())


def test_a_cross_signed_ca_leads_to_each_of_its_roots_by_its_own_certificate() -> None:
    other, key = pki.new_root("Other"), pki.new_key()
    first, second = (pki.Authority(make(root, "Both", key, "ca"), key) for root in (ROOT, other))
    leaf = make(first, "FL-LAB", KEY, "client")
    for root, between in ((ROOT, first), (other, second)):
        pki.verify_chain([leaf, between.certificate], root.certificate, clock.now())
    with pytest.raises(BundleNotCertified):
        pki.verify_chain([leaf, second.certificate], ROOT.certificate, clock.now())


def test_a_path_may_not_be_longer_than_a_ca_says() -> None:
    top = authority(ROOT, "Top")  # its path length is 0
    below = authority(top, "Below")
    leaf = make(below, "FL-LAB", KEY, "client")
    with pytest.raises(BundleNotCertified, match="path length"):
        pki.verify_chain([leaf, below.certificate, top.certificate], ROOT.certificate, clock.now())


# When certificates begin and how long they last, and when the bundle says that it was made; in days
# from now.
TIMES = [
    ("a certificate of later", (-90, 300), (3, 90), 4, "begins only"),
    ("a certificate that ended", (-90, 300), (-80, 40), -70, "ended on"),
    ("under a CA that ended", (-90, 60), (-80, 300), -70, "a CA above it"),
    ("under a CA of later", (3, 300), (-80, 300), 4, "begins only"),
]


@pytest.mark.parametrize(
    ("issuing", "leaf", "made", "says"), [case[1:] for case in TIMES], ids=[c[0] for c in TIMES]
)
def test_what_is_sealed_to_is_valid_now(
    issuing: tuple[int, int],
    leaf: tuple[int, int],
    made: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The time that a bundle was made is its owner's word; a bundle's end, too."""
    now = clock.now()
    with monkeypatch.context() as earlier:
        earlier.setattr(clock, "now", lambda: now - 100 * DAY)
        root = pki.new_root("Org")
    ca = authority(root, begins=issuing[0] * DAY, life=issuing[1] * DAY)
    certificate = make(ca, "FL-LAB", KEY, "client", begins=leaf[0] * DAY, life=leaf[1] * DAY)
    with monkeypatch.context() as careless:
        careless.setattr(pki, "end_of", lambda chain: chain[0].not_valid_after_utc)
        made_at = now_ms() + made * 24 * 3600 * 1000
        bundle = Identity.generate("FL-LAB").make_bundle(
            KEY, [certificate, ca.certificate], made_at
        )
    with pytest.raises(BundleError, match=says):
        check_bundle(bundle, "FL-LAB", root.certificate, now_ms())


@pytest.mark.parametrize("hours", [-1, -20])
def test_a_clock_that_lags_accepts_new_certificates_and_bundles(hours: int) -> None:
    """HQ's or a sender's: the client was enrolled a moment ago by another clock."""
    ca = authority(ROOT)
    certificate = make(ca, "FL-LAB", KEY, "client")
    chain = [certificate, ca.certificate]
    now = clock.now()
    late = now + datetime.timedelta(hours=hours)
    assert pki.verify_chain(chain, ROOT.certificate, late) == certificate
    for made in (now, late):
        bundle = Identity.generate("FL-LAB").make_bundle(KEY, chain, pki.ms(made))
        check_bundle(bundle, "FL-LAB", ROOT.certificate, pki.ms(late))


def test_a_bundle_ends_with_the_first_certificate_of_its_chain() -> None:
    ca = authority(ROOT, life=3 * DAY)
    certificate = make(ca, "FL-LAB", KEY, "client")
    bundle = Identity.generate("FL-LAB").make_bundle(KEY, [certificate, ca.certificate], now_ms())
    assert bundle.ends_at == pki.ms(ca.certificate.not_valid_after_utc)
    check_bundle(bundle, "FL-LAB", ROOT.certificate, now_ms())
