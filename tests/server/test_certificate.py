"""HQ's certificates on a running HQ: renewed under open connections, whatever is in the way; lists from files."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import orjson
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from cipherbox import pki
from cipherbox.config import load_server_config, secret_key
from cipherbox.crl import make_crl
from cipherbox.errors import BundleNotCertified, Busy, ConfigError, CredentialsError, Forbidden, InvalidRequest, Revoked
from cipherbox.portable import write_private
from cipherbox.server import authority, organization
from cipherbox.server.alerts import alerts
from cipherbox.server.hq import HQ
from cipherbox.server.material import (
    Material,
    certificates_in,
    checked_issuing,
    is_waiting,
    next_key,
    put_server,
    read_material,
)
from cipherbox.server.offline import CA_KEY, ROOT_KEY, sign_offline
from cipherbox.store.sqlite.store import open_store
from cipherbox.tls import client_context
from cipherbox.wire import frames
from tests.server.hq import Raw, Running, open_vault, prepare, running
from tests.server.test_reload import admin_of, alive, shown

DUE_DAYS = 6 / 24 / 60  # certificates begin five minutes ago: of six minutes two thirds are over


def show(r: Running, certificate: x509.Certificate, key: pki.PrivateKey) -> None:
    """HQ shows this certificate from now on."""
    tls = r.hq.config.tls
    tls.certificate.write_bytes(pki.pem(certificate))
    write_private(tls.key, pki.key_pem(key, secret_key(r.hq.config.encryption.service_key_file)))
    r.hq.reload()


def make_due(r: Running) -> x509.Certificate:
    key = pki.new_key()
    certificate = pki.issue_server(r.issuing, key.public_key(), "DC-HQ", DUE_DAYS)
    show(r, certificate, key)
    return certificate


async def test_it_is_renewed_under_open_connections(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        old = make_due(r)
        lab, key = await r.client("FL-LAB"), r.hq.log_key
        await r.hq.certificate.look()
        assert r.hq.trust.server != old
        assert not pki.is_due(r.hq.trust.server)
        new = await r.client("FL-LAB")
        assert (shown(lab), shown(new)) == (old.serial_number, r.hq.trust.server.serial_number)
        assert r.hq.log_key != key
        await r.person("CA-RC")
        for raw in (lab, new):
            await alive(raw)
            await raw.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
        kept = r.hq.trust.server
        await r.hq.certificate.look()  # once is enough
        assert r.hq.trust.server is kept
    async with running(tmp_path / "hq") as again:
        assert again.hq.trust.server == kept


@contextmanager
def full_disk(_: Running) -> Iterator[None]:
    """No file of this process grows any more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_place(r: Running) -> Iterator[None]:
    """The directory takes nothing: it is not where it was."""
    directory = r.hq.config.tls.key.parent
    away = directory.rename(directory.with_name("away"))
    directory.write_text("")
    try:
        yield
    finally:
        directory.unlink()
        away.rename(directory)


@pytest.mark.parametrize("trouble", [full_disk, no_place])
async def test_what_is_in_the_way_is_said_and_the_old_one_serves(
    tmp_path: Path, trouble: Callable[[Running], Iterator[None]]
) -> None:
    async with running(tmp_path / "hq") as r:
        old = make_due(r)
        files = {p: p.read_bytes() for p in (r.hq.config.tls.certificate, r.hq.config.tls.key)}
        with trouble(r):  # type: ignore[attr-defined]
            await r.hq.certificate.look()
            assert r.hq.certificate.trouble
            found = {a.name: a for a in alerts(r.hq)}
            assert "tried again" in found["certificate-renewal"].text
        assert {p: p.read_bytes() for p in files} == files
        assert shown(await r.client("FL-LAB")) == old.serial_number
        await r.hq.certificate.look()
        assert not r.hq.certificate.trouble
        assert shown(await r.client("FL-LAB")) != old.serial_number


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_crash_between_two_steps_leaves_an_hq_that_starts(tmp_path: Path, steps: int) -> None:
    config = prepare(tmp_path / "hq")
    tls = config.tls
    before = tls.certificate.read_bytes(), tls.key.read_bytes()
    issuing = read_material(config).authority
    assert issuing is not None
    key = next_key(config)
    certificate = pki.issue_server(issuing, key.public_key(), "DC-HQ")
    coming = (tls.key.parent / "server.key.next").read_bytes()
    put_server(config, certificate)
    after = tls.certificate.read_bytes()
    tls.key.write_bytes(before[1])
    write_private(tls.key.parent / "server.key.next", coming)
    if steps == 0:
        write_private(tls.key.parent / "server.key.next", coming[:100])
    tls.certificate.write_bytes(after if steps >= 2 else before[0])
    if steps == 3:
        (tls.key.parent / "server.key.next").replace(tls.key)
    material = read_material(config)
    assert pki.spki_of(material.server) == pki.spki(material.server_key.public_key())
    assert (material.server == certificate) == (steps >= 2)
    material.try_out()
    assert pki.spki(next_key(config).public_key()) != pki.spki(material.server_key.public_key())


@contextmanager
def clock(days: float) -> Iterator[None]:
    before = pki.now
    pki.now = lambda: before() + timedelta(days=days)
    try:
        yield
    finally:
        pki.now = before


@pytest.mark.parametrize(("days", "says"), [(-800, "begins only on"), (5000, "ended on")])
async def test_a_clock_that_is_years_off_is_named_at_the_start(tmp_path: Path, days: int, says: str) -> None:
    config = prepare(tmp_path / "hq")
    store = open_store(config.directory)
    try:
        hq = HQ(config, store)
        with clock(days), pytest.raises(ConfigError, match=says) as caught:
            await hq.certificate.begin()
        assert "this machine's clock says" in str(caught.value)
        assert "timedatectl" in str(caught.value)
    finally:
        store.close()


async def test_what_was_made_while_the_clock_was_ahead_is_made_again(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        key = pki.new_key()
        with clock(500):
            certificate = pki.issue_server(r.issuing, key.public_key(), "DC-HQ")
            r.hq.trust.new_crl()
        with pytest.raises(ConfigError, match="not valid yet"):
            show(r, certificate, key)
        list_ahead = r.hq.trust.crl_ends
        r.hq.take_over(r.hq.config, read_material(r.hq.config), r.hq.context)
        await r.hq.certificate.look()
        assert r.hq.trust.server.not_valid_before_utc < pki.now()
        r.hq.trust.crl()
        assert r.hq.trust.crl_ends != list_ahead
        await alive(await r.client("FL-LAB"))


async def test_ends_of_cas_are_said_a_year_before(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        with clock(3652 - 300):
            found = {a.name: a for a in alerts(r.hq)}
        assert "cipherbox ca renew" in found["certificate-issuing"].text
        assert "certificate-root" not in found


def test_nothing_is_issued_that_outlives_its_issuer() -> None:
    root = pki.new_root("X")
    issuing = pki.new_issuing("X", root)
    with clock(3652 - 100):
        leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
        assert leaf.not_valid_after_utc == issuing.certificate.not_valid_after_utc
        renewed = pki.renew_issuing(issuing, root)
        assert renewed.certificate.not_valid_after_utc > issuing.certificate.not_valid_after_utc
        again = pki.issue_client(renewed, pki.new_key().public_key(), "FL-LAB")
        for chain in ([leaf, renewed.certificate], [leaf, issuing.certificate], [again, issuing.certificate]):
            pki.verify_chain(chain, root.certificate, pki.now())
    with clock(4000), pytest.raises(CredentialsError, match="clock is right"):
        pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")


# -- keys taken off -----------------------------------------------------------------------------------------------


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
    other = prepare(tmp_path / "other" / "hq")
    authority.take_off(other, tmp_path / "stick", b"k" * 32, as_it_is, whole=False)
    with pytest.raises(ConfigError, match="another CA already"):
        authority.take_off(config, tmp_path / "stick", b"k" * 32, as_it_is, whole=False)
    shutil.copy(config.ca.root_key, config.ca.issuing_key)
    with pytest.raises(ConfigError, match="is not the key of"):
        authority.take_off(config, tmp_path / "third", b"k" * 32, as_it_is, whole=True)
    assert config.ca.root_key.exists()
    assert not (tmp_path / "third").exists()


def test_the_root_of_another_is_not_brought_back(tmp_path: Path) -> None:
    config, other = prepare(tmp_path / "hq"), prepare(tmp_path / "other" / "hq")
    for one, place in ((config, "mine"), (other, "theirs")):
        authority.take_off(one, tmp_path / place, b"k" * 32, as_it_is, whole=False)
    before = config.tls.issuing.read_bytes()
    theirs = tmp_path / "theirs"
    for work in (lambda v: authority.bring_back(config, v, whole=False), lambda v: authority.renew(config, v)):
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


# -- chains -------------------------------------------------------------------------------------------------------


def ca_under(parent: pki.Authority, name: str, depth: int | None, *more: x509.ExtensionType) -> pki.Authority:
    key, start = pki.new_key(), pki.now() - timedelta(minutes=5)
    usage = certificate_usage(parent.certificate)
    builder = (
        x509.CertificateBuilder().subject_name(x509.Name.from_rfc4514_string(f"CN={name}"))
        .issuer_name(parent.certificate.subject).public_key(key.public_key()).serial_number(x509.random_serial_number())
        .not_valid_before(start).not_valid_after(start + timedelta(days=90))
        .add_extension(x509.BasicConstraints(True, depth), critical=True).add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )  # fmt: skip
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
        ([leaf], "CN=FL-LAB is no CA"),
        ([pki.new_issuing("X", pki.new_root("X")).certificate], "was not issued by"),
        ([b.certificate], "CN=B was not issued by CN=Org root"),
        ([a.certificate, b.certificate], "wrong order"),
        ([b.certificate, a.certificate], "may not sign others"),  # A may have no CA below it
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
    people = x509.NameConstraints([x509.DirectoryName(x509.Name.from_rfc4514_string("O=Org"))], None)
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    for extension, says in (
        (x509.ExtendedKeyUsage([pki.SERVER]), "for this purpose"), (people, "certain subjects"),
        (unknown, "unknown here"),
    ):  # fmt: skip
        issuing = ca_under(root, "A", 0, extension)
        leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
        with pytest.raises(BundleNotCertified, match=says):
            pki.verify_chain([leaf, issuing.certificate], root.certificate, pki.now())
    issuing = ca_under(root, "A", 0, dns)
    leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
    pki.verify_chain([leaf, issuing.certificate], root.certificate, pki.now())  # it has no DNS name
    key = pki.new_key()
    server = pki.issue_server(issuing, key.public_key(), "DC-HQ")  # and this one has another
    with pytest.raises(CredentialsError, match="permitted subtree"):
        Material(root.certificate, (issuing.certificate,), server, key, None).try_out()


def test_a_root_in_the_middle_of_an_organizations_pki_can_be_the_one() -> None:
    anchor = top()  # issued by another, which nobody here knows
    issuing = ca_under(anchor, "A", 0)
    key = pki.new_key()
    server = pki.issue_server(issuing, key.public_key(), "DC-HQ")
    Material(anchor.certificate, (issuing.certificate,), server, key, None).try_out()
    with pytest.raises(CredentialsError):
        Material(pki.new_root("X").certificate, (issuing.certificate,), server, key, None).try_out()


async def test_an_answer_that_is_none_changes_nothing(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        before = r.hq.config.tls.issuing.read_bytes()
        stranger = pki.new_issuing("X", pki.new_root("X"))
        half = pki.pem(r.issuing.certificate)[:300]
        for document in (b"", b"{}", half, b"[1]", pki.pem(stranger.certificate)):
            with pytest.raises(InvalidRequest):
                await r.hq.carried.take(document)
        leaf = pki.issue_client(r.issuing, pki.new_key().public_key(), "FL-LAB")
        with pytest.raises(Forbidden, match="signs by itself"):
            await r.hq.carried.take(pki.pem(leaf))
        assert r.hq.config.tls.issuing.read_bytes() == before
        await alive(await r.client("FL-LAB"))


def test_the_organizations_answer_must_fit(tmp_path: Path) -> None:
    org = pki.new_root("Org")
    (tmp_path / "root.pem").write_bytes(pki.pem(org.certificate))
    made = organization.ask(
        tmp_path / "hq", address="127.0.0.1:1", name="DC-HQ", listen="127.0.0.1:0", websocket_listen="",
        org=tmp_path / "root.pem", issues=False, admin_id="admin", admin_home=tmp_path / "admin", database=None,
    )  # fmt: skip
    config = load_server_config(tmp_path / "hq")
    request = x509.load_pem_x509_csr(made[0].read_bytes())
    assert request.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0
    with pytest.raises(ConfigError, match="no certificate for the key"):
        organization.finish(config, tmp_path / "admin", pki.pem(ca_under(org, "A", 0).certificate))
    assert is_waiting(config)
    key = pki.load_key(config.ca.issuing_key.read_bytes(), secret_key(config.encryption.service_key_file), "issuing")
    old = pki.renew_issuing(pki.Authority(ca_under(org, "A", 0).certificate, key), org).certificate
    with clock(4000), pytest.raises(ConfigError, match="ended on"):
        organization.finish(config, tmp_path / "admin", pki.pem(old))
    organization.finish(config, tmp_path / "admin", pki.pem(org.certificate, old)[len(pki.pem(org.certificate)) :])
    assert not is_waiting(config)
    assert certificates_in(config.tls.issuing) == [old]
    read_material(config).try_out()


# -- lists --------------------------------------------------------------------------------------------------------


def set_lists(r: Running, path: Path, stale: str = "warn") -> None:
    text = r.hq.config.file.read_text()
    text = text.replace('revocation_lists = ""', f'revocation_lists = "{path}"')
    r.hq.config.file.write_text(text.replace('stale_lists = "warn"', f'stale_lists = "{stale}"'))


async def cut(raw: Raw) -> None:
    with trio.fail_after(10):
        while await raw.next() is not None:
            pass


async def test_a_list_ends_the_connections_of_the_certificates_it_names_at_once(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, other, boss = await r.client("FL-LAB"), await r.client("CA-RC"), await admin_of(r)
        person, now = r.people["FL-LAB"], datetime.now(UTC)
        path = tmp_path / "issuing.crl"
        path.write_bytes(make_crl(r.issuing, [], 5))
        set_lists(r, path)
        assert isinstance(await boss.ask(frames.Reload), frames.Listing)
        await alive(lab)
        number = await r.hq.engine.in_store(r.hq.trust.crl_number)
        listed = make_crl(r.issuing, [(pki.serial(person.chain[0]), now)], 6)
        path.write_bytes(listed[:100])
        with pytest.raises(ConfigError, match="no whole revocation list"):
            r.hq.reload()
        await alive(lab)
        path.write_bytes(make_crl(r.issuing, [], 4))
        with pytest.raises(ConfigError, match="5 was read before"):
            r.hq.reload()
        path.write_bytes(listed)
        r.hq.reload()
        await cut(lab)
        for raw in (other, boss):
            await alive(raw)
        with trio.fail_after(10):
            while await r.hq.engine.in_store(r.hq.trust.crl_number) == number:  # HQ's own list names it too
                await trio.sleep(0.01)
        with pytest.raises(Revoked):
            r.hq.trust.identify(person.chain[0])
        assert r.hq.engine.broker.rights.clients["FL-LAB"].revoked_at


async def test_a_list_that_was_replaced_is_found_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.server.lists.LOOK_S", 0.05)
    async with running(tmp_path / "hq") as r:
        (tmp_path / "lists").mkdir()
        set_lists(r, tmp_path / "lists")
        r.hq.reload()
        lab = await r.client("FL-LAB")
        serial = pki.serial(r.people["FL-LAB"].chain[0])
        (tmp_path / "lists" / "new.crl").write_bytes(make_crl(r.issuing, [(serial, datetime.now(UTC))], 9))
        await cut(lab)
        (tmp_path / "lists" / "new.crl").write_bytes(b"half")
        with trio.fail_after(10):
            while not r.hq.lists.trouble:
                await trio.sleep(0.01)
        assert {a.name for a in alerts(r.hq)} >= {"lists"}
        assert r.hq.lists.found


async def test_only_the_old_certificate_of_a_client_can_be_on_it(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, person = await r.client("FL-LAB"), r.people["FL-LAB"]
        key = pki.new_key()
        renewed = await r.hq.enrolments.renew("FL-LAB", pki.make_csr(key, "FL-LAB"))
        chain = [pki.load_der(c) for c in renewed.chain]
        new = await r.open(client_context(r.root, chain, key))
        await new.hello()
        path = tmp_path / "issuing.crl"
        path.write_bytes(make_crl(r.issuing, [(pki.serial(person.chain[0]), datetime.now(UTC))], 6))
        set_lists(r, path)
        r.hq.reload()
        await cut(lab)
        await alive(new)
        assert not r.hq.engine.broker.rights.clients["FL-LAB"].revoked_at


async def test_by_choice_nobody_is_let_in_under_a_stale_list(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        path = tmp_path / "issuing.crl"
        with clock(-30):
            path.write_bytes(make_crl(r.issuing, [], 5))
        set_lists(r, path)
        r.hq.reload()
        found = {a.name: a for a in alerts(r.hq)}
        assert "newer one" in found["certificate-lists"].text
        await alive(await r.client("FL-LAB"))
        set_lists(r, path, "refuse")
        r.hq.reload()
        raw = await r.dial(r.people["FL-LAB"], hello=False)
        with pytest.raises(AssertionError, match="lets nobody in before it has a newer"):
            await raw.hello()
        assert Busy.retryable  # clients come back by themselves
        await alive(lab)
        assert any("nobody is let in" in why for why in r.hq.unready())
        path.write_bytes(make_crl(r.issuing, [], 6))
        r.hq.reload()
        await alive(await r.client("FL-LAB"))


async def test_the_list_of_certificates_is_the_admins(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, boss = await r.client("FL-LAB"), await admin_of(r)
        assert await lab.refused(frames.List, "certificates", "", "") == "forbidden"
        rows = {row["name"]: row for row in orjson.loads((await boss.ask(frames.List, "certificates", "", "")).rows)}
        assert list(rows) == ["root", "issuing", "server", "revocations", "clients", "requests"]
        assert rows["server"]["sha256"] == pki.fingerprint(r.hq.trust.server).hex()
        ending = {row["client"] for row in rows["clients"]["ending"]}
        assert ending == {"FL-LAB", "BOSS"}  # these two were made for thirty days


def test_requests_of_hq_are_signed_as_a_servers(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    authority.take_off(config, tmp_path / "ca", b"k" * 32, as_it_is, whole=True)
    signed = sign_offline(open_vault(tmp_path / "ca"), organization.own_request(config))
    assert "crl" not in orjson.loads(signed)
    before = config.tls.certificate.read_bytes()
    organization.put_by_hand(load_server_config(config.directory), signed)
    assert config.tls.certificate.read_bytes() != before
    read_material(load_server_config(config.directory)).try_out()
