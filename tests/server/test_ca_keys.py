"""The CA's keys taken off HQ and brought back; chains through an organization's CAs, and its
answers.
"""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cipherbox import clock, pki
from cipherbox.config.settings import load_server_config, secret_key
from cipherbox.errors import (
    BundleNotCertified,
    ConfigError,
    CredentialsError,
    Forbidden,
    InvalidRequest,
)
from cipherbox.server.ca import authority, organization
from cipherbox.server.ca.credentials import (
    Credentials,
    certificates_in,
    checked_issuing,
    is_waiting,
    read_material,
)
from cipherbox.server.ca.offline import CA_KEY, ROOT_KEY
from tests.server.clocks import shifted_clock
from tests.server.hq import open_vault, prepare, prepare_another, running
from tests.server.test_reload import alive


def as_it_is(data: bytes) -> bytes:
    return data


def test_a_key_stays_until_its_copy_is_proven(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        authority.take_off(config, tmp_path / "file", b"k" * 32, as_it_is, whole=True)
    seen = iter([b"k" * 32, b"j" * 32])  # what is read back is not what was written
    with pytest.raises(ConfigError, match="does not open"):
        authority.take_off(config, tmp_path / "bad", b"k" * 32, lambda _: next(seen), whole=True)
    assert config.ca.root_key.exists()
    assert config.ca.issuing_key.exists()
    assert "offline = false" in config.file.read_text()
    other = prepare_another(tmp_path / "other" / "hq")
    authority.take_off(other, tmp_path / "stick", b"k" * 32, as_it_is, whole=False)
    with pytest.raises(ConfigError, match="already has another CA"):
        authority.take_off(config, tmp_path / "stick", b"k" * 32, as_it_is, whole=False)
    shutil.copy(config.ca.root_key, config.ca.issuing_key)
    with pytest.raises(ConfigError, match="is not the key of"):
        authority.take_off(config, tmp_path / "third", b"k" * 32, as_it_is, whole=True)
    assert config.ca.root_key.exists()
    assert not (tmp_path / "third").exists()


def test_the_root_of_another_is_not_brought_back(tmp_path: Path) -> None:
    config, other = prepare_another(tmp_path / "hq"), prepare(tmp_path / "other" / "hq")
    for one, place in ((config, "mine"), (other, "theirs")):
        authority.take_off(one, tmp_path / place, b"k" * 32, as_it_is, whole=False)
    before = config.tls.issuing.read_bytes()
    theirs = tmp_path / "theirs"
    for work in (
        lambda v: authority.bring_back(config, v, whole=False),
        lambda v: authority.renew(config, v),
    ):
        with pytest.raises(ConfigError, match="of another CA"):
            work(open_vault(theirs))
    (theirs / ROOT_KEY).unlink()
    with pytest.raises(ConfigError, match="mounted"):
        authority.renew(config, open_vault(theirs))
    (theirs / CA_KEY).chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        open_vault(theirs)
    assert config.tls.issuing.read_bytes() == before
    assert not config.ca.root_key.exists()


def test_settings_keep_every_other_line(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    text = config.file.read_text() + "# mine\n"
    config.file.write_text(text)
    authority.take_off(config, tmp_path / "ca", b"k" * 32, as_it_is, whole=True)
    assert config.file.read_text() == text.replace("offline = false", "offline = true")
    authority.bring_back(config, open_vault(tmp_path / "ca"), whole=True)
    assert config.file.read_text() == text


def ca_under(
    parent: pki.Authority, name: str, depth: int | None, *more: x509.ExtensionType
) -> pki.Authority:
    key, start = pki.new_key(), clock.now() - timedelta(minutes=5)
    usage = certificate_usage(parent.certificate)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name.from_rfc4514_string(f"CN={name}"))
        .issuer_name(parent.certificate.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=90))
        .add_extension(x509.BasicConstraints(True, depth), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(parent.key.public_key()),
            critical=False,
        )
    )
    for extension in more:
        builder = builder.add_extension(extension, critical=True)
    return pki.Authority(builder.sign(parent.key, hashes.SHA384()), key)


def certificate_usage(certificate: x509.Certificate) -> x509.KeyUsage:
    return certificate.extensions.get_extension_for_class(x509.KeyUsage).value


def top() -> pki.Authority:
    """A root without a bound on what is below it."""
    made = pki.new_root("Org")
    return ca_under(pki.Authority(made.certificate, made.key), "Org", None)


def test_a_chain_that_does_not_lead_to_the_root_is_explained() -> None:
    root = pki.new_root("Org")
    a = ca_under(root, "A", 0)
    b = ca_under(a, "B", 0)
    leaf = pki.issue_client(a, pki.new_key().public_key(), "FL-LAB")
    cases = [
        ([a.certificate], ""),
        ([a.certificate, root.certificate], ""),
        ([], "missing"),
        ([leaf], "CN=FL-LAB is not a CA"),
        ([pki.new_issuing("X", pki.new_root("X")).certificate], "was not issued by"),
        ([b.certificate], "CN=B was not issued by CN=Org root"),
        ([a.certificate, b.certificate], "wrong order"),
        # A may have no CA below it
        ([b.certificate, a.certificate], "CN=B below CN=A: .* may not sign others"),
        ([a.certificate] * 4, "more than 3"),
    ]
    for chain, says in cases:
        if not says:
            assert checked_issuing(chain, root.certificate, "x") == [a.certificate]
            continue
        with pytest.raises(ConfigError, match=says):
            checked_issuing(chain, root.certificate, "x")


def test_what_an_organization_bounds_is_obeyed() -> None:
    root = pki.new_root("Org")
    dns = x509.NameConstraints([x509.DNSName("example.org")], None)
    people = x509.NameConstraints(
        [x509.DirectoryName(x509.Name.from_rfc4514_string("O=Org"))], None
    )
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for extension, says in (
        (x509.ExtendedKeyUsage([pki.SERVER]), "for this purpose"),
        (people, "certain subjects"),
        (unknown, "unknown here"),
    ):
        issuing = ca_under(root, "A", 0, extension)
        leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
        with pytest.raises(BundleNotCertified, match=says):
            pki.verify_chain([leaf, issuing.certificate], root.certificate, clock.now())
    issuing = ca_under(root, "A", 0, dns)
    leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
    pki.verify_chain(
        [leaf, issuing.certificate], root.certificate, clock.now()
    )  # it has no DNS name
    key = pki.new_key()
    server = pki.issue_server(issuing, key.public_key(), "DC-HQ")  # and this one has another
    with pytest.raises(CredentialsError, match="permitted subtree"):
        Credentials(root.certificate, (issuing.certificate,), server, key, None).try_out()


def test_a_root_in_the_middle_of_an_organizations_pki_can_be_the_one() -> None:
    anchor = top()  # issued by another, which nobody here knows
    issuing = ca_under(anchor, "A", 0)
    key = pki.new_key()
    server = pki.issue_server(issuing, key.public_key(), "DC-HQ")
    Credentials(anchor.certificate, (issuing.certificate,), server, key, None).try_out()
    with pytest.raises(CredentialsError):
        Credentials(
            pki.new_root("X").certificate, (issuing.certificate,), server, key, None
        ).try_out()


async def test_an_answer_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        before = r.hq.config.tls.issuing.read_bytes()
        stranger = pki.new_issuing("X", pki.new_root("X"))
        half = pki.pem(r.issuing.certificate)[:300]
        for document in (b"", b"{}", half, b"[1]", pki.pem(stranger.certificate)):
            with pytest.raises(InvalidRequest):
                await r.hq.ca_exchange.take(document)
        leaf = pki.issue_client(r.issuing, pki.new_key().public_key(), "FL-LAB")
        with pytest.raises(Forbidden, match="signs its clients"):
            await r.hq.ca_exchange.take(pki.pem(leaf))
        assert r.hq.config.tls.issuing.read_bytes() == before
        await alive(await r.client("FL-LAB"))


def test_the_organizations_answer_must_fit(tmp_path: Path) -> None:
    org = pki.new_root("Org")
    (tmp_path / "root.pem").write_bytes(pki.pem(org.certificate))
    made = organization.ask(
        tmp_path / "hq",
        address="127.0.0.1:1",
        name="DC-HQ",
        listen="127.0.0.1:0",
        websocket_listen="",
        org=tmp_path / "root.pem",
        issues=False,
        admin_id="admin",
        admin_home=tmp_path / "admin",
        database=None,
    )
    config = load_server_config(tmp_path / "hq")
    request = x509.load_pem_x509_csr(made[0].read_bytes())
    assert request.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    with pytest.raises(ConfigError, match="no certificate for the key"):
        organization.finish(config, tmp_path / "admin", pki.pem(ca_under(org, "A", 0).certificate))
    assert is_waiting(config)
    key = pki.load_key(
        config.ca.issuing_key.read_bytes(),
        secret_key(config.encryption.service_key_file),
        "issuing",
    )
    old = pki.renew_issuing(pki.Authority(ca_under(org, "A", 0).certificate, key), org).certificate
    with shifted_clock(4000), pytest.raises(ConfigError, match="ended on"):
        organization.finish(config, tmp_path / "admin", pki.pem(old))
    organization.finish(
        config, tmp_path / "admin", pki.pem(org.certificate, old)[len(pki.pem(org.certificate)) :]
    )
    assert not is_waiting(config)
    assert certificates_in(config.tls.issuing) == [old]
    read_material(config).try_out()
