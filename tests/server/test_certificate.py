"""HQ's own certificate on a running HQ: renewed under open connections, whatever is in the way."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.config.settings import secret_key
from cipherbox.errors import ConfigError, CredentialsError
from cipherbox.portable import write_private
from cipherbox.server.ca.credentials import next_key, put_server, read_material
from cipherbox.server.hq import HQ
from cipherbox.server.operations.alerts import alerts
from cipherbox.store.sqlite.store import open_store
from tests.server.clocks import confirmed_clock, shifted_clock
from tests.server.hq import Running, prepare, running
from tests.server.test_reload import alive, shown

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
        await r.hq.certificate.renew_if_due()
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
        await r.hq.certificate.renew_if_due()  # once is enough
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
            await r.hq.certificate.renew_if_due()
            assert r.hq.certificate.trouble
            found = {a.name: a for a in alerts(r.hq)}
            assert "retries" in found["certificate-renewal"].text
        assert {p: p.read_bytes() for p in files} == files
        assert shown(await r.client("FL-LAB")) == old.serial_number
        await r.hq.certificate.renew_if_due()
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


@pytest.mark.parametrize(("days", "says"), [(-800, "begins only on"), (5000, "ended on")])
async def test_a_clock_that_is_years_off_is_named_at_the_start(
    tmp_path: Path, days: int, says: str
) -> None:
    config = prepare(tmp_path / "hq")
    store = open_store(config.directory)
    try:
        with shifted_clock(days), pytest.raises(ConfigError, match=says) as caught:
            await HQ(config, store).certificate.begin()
        assert "this machine's clock says" in str(caught.value)
        assert "timedatectl" in str(caught.value)
    finally:
        store.close()


async def test_what_was_made_while_the_clock_was_ahead_is_made_again(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        key = pki.new_key()
        with confirmed_clock(r.hq, 500):
            certificate = pki.issue_server(r.issuing, key.public_key(), "DC-HQ")
            r.hq.trust.new_crl()
        with pytest.raises(ConfigError, match="not valid yet"):
            show(r, certificate, key)
        list_ahead = r.hq.trust.crl_ends
        r.hq.take_over(r.hq.config, read_material(r.hq.config), r.hq.context)
        await r.hq.certificate.renew_if_due()
        assert r.hq.trust.server.not_valid_before_utc < clock.now()
        r.hq.trust.crl()
        assert r.hq.trust.crl_ends != list_ahead
        await alive(await r.client("FL-LAB"))


async def test_ends_of_cas_are_said_a_year_before(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        with confirmed_clock(r.hq, 3652 - 300):
            found = {a.name: a for a in alerts(r.hq)}
        assert "cipherbox ca renew" in found["certificate-issuing"].text
        assert "certificate-root" not in found


def test_nothing_is_issued_that_outlives_its_issuer() -> None:
    root = pki.new_root("X")
    issuing = pki.new_issuing("X", root)
    with shifted_clock(3652 - 100):
        leaf = pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
        assert leaf.not_valid_after_utc == issuing.certificate.not_valid_after_utc
        renewed = pki.renew_issuing(issuing, root)
        assert renewed.certificate.not_valid_after_utc > issuing.certificate.not_valid_after_utc
        again = pki.issue_client(renewed, pki.new_key().public_key(), "FL-LAB")
        for chain in (
            [leaf, renewed.certificate],
            [leaf, issuing.certificate],
            [again, issuing.certificate],
        ):
            pki.verify_chain(chain, root.certificate, clock.now())
    with shifted_clock(4000), pytest.raises(CredentialsError, match="clock is right"):
        pki.issue_client(issuing, pki.new_key().public_key(), "FL-LAB")
