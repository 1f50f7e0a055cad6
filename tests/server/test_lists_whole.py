"""Lists of an organization on a running HQ: a part never counts as the whole, and HQ itself can
be on one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.cli.doctor.findings import BAD
from cipherbox.cli.doctor.hq import look
from cipherbox.client.keys.revocations import REVOCATIONS
from cipherbox.config.settings import load_server_config, secret_key
from cipherbox.errors import ConfigError, HqRevoked, Revoked
from cipherbox.pki.revocation_lists import make_crl, read_crl
from cipherbox.portable import write_private
from cipherbox.server.ca.credentials import read_material
from cipherbox.server.directory.revocation_lists import read_lists, why_revoked
from cipherbox.server.operations.alerts import alerts
from cipherbox.server.operations.check import problems
from cipherbox.wire import frames
from tests.client.real_hq import real_hq
from tests.pki.kit import ISSUER_ID, crl, make, part
from tests.server.hq import Running, running
from tests.server.test_lists import cut, set_lists
from tests.server.test_reload import admin_of, alive

DELTA = (x509.DeltaCRLIndicator(5), True)


@pytest.fixture
async def r(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Running]:
    """An HQ that reads the lists in a directory, and looks at it all the time."""
    monkeypatch.setattr("cipherbox.server.directory.revocation_lists.LOOK_S", 0.02)
    async with running(tmp_path / "hq") as found:
        (tmp_path / "lists").mkdir()
        set_lists(found, tmp_path / "lists")
        found.hq.reload()
        yield found


async def until(so: Any) -> None:
    with trio.fail_after(60):
        while not so():
            await trio.sleep(0.01)


async def test_a_base_and_its_delta_let_no_revoked_client_in(r: Running, tmp_path: Path) -> None:
    """As a Windows CA publishes them: the delta has the higher number, and does not repeat what
    its base says.
    """
    lab, other = await r.client("FL-LAB"), await r.client("CA-RC")
    boss = await admin_of(r)
    serial = pki.serial(r.people["FL-LAB"].chain[0])
    (tmp_path / "lists" / "Org CA+.crl").write_bytes(crl(r.issuing, [], 6, more=[DELTA]))
    (tmp_path / "lists" / "Org CA.crl").write_bytes(crl(r.issuing, [serial], 5))
    await cut(lab)
    await alive(other)
    await until(lambda: "is a delta" in r.hq.lists.trouble)
    assert any(a.name == "lists" and "Org CA+.crl" in a.text for a in alerts(r.hq))
    rows = orjson.loads((await boss.ask(frames.List, "certificates", "", "")).rows)
    assert any(row["name"] == "refused lists" and "is a delta" in row["why"] for row in rows)
    with pytest.raises(Revoked):
        r.hq.trust.identify(r.people["FL-LAB"].chain[0])
    config = load_server_config(r.hq.config.directory)
    with pytest.raises(ConfigError, match=r"Org CA\+\.crl: this revocation list is a delta"):
        read_lists(config, read_material(config))
    findings = await trio.to_thread.run_sync(look, config.directory)  # it asks this HQ, too
    found = [one for one in findings if one.about == "lists" and one.level == BAD]
    assert ["is a delta" in one.text for one in found] == [True]


@pytest.mark.parametrize("what", ["partition", "future"])
async def test_a_list_that_is_not_understood_changes_nothing(
    r: Running, tmp_path: Path, what: str
) -> None:
    lab = await r.client("FL-LAB")
    serial = pki.serial(r.people["FL-LAB"].chain[0])
    options: dict[str, Any] = {"more": [(part(only_contains_ca_certs=True), True)]}
    if what == "future":
        options = {"begins": clock.now() - clock.now().replace(year=clock.now().year - 1)}
    (tmp_path / "lists" / "a.crl").write_bytes(crl(r.issuing, [serial], 5, **options))
    await until(lambda: r.hq.lists.trouble)
    assert r.hq.lists.found == {}
    await alive(lab)


async def test_hq_renews_its_own_certificate_when_it_is_revoked(r: Running, tmp_path: Path) -> None:
    lab, before = await r.client("FL-LAB"), r.hq.trust.server
    (tmp_path / "lists" / "a.crl").write_bytes(
        make_crl(r.issuing, [(pki.serial(before), clock.now())], 5)
    )
    await until(lambda: r.hq.trust.server != before)
    assert not r.hq.lists.chain_revoked
    await cut(lab)  # and comes again, to the new one
    raw = await r.hq.engine.in_store(r.hq.trust.crl)
    # what clients get from HQ
    assert pki.serial(before) in read_crl(raw, r.hq.trust.issuing, clock.now()).revoked
    new = await r.client("CA-RC")
    await alive(new)


async def test_with_the_ca_elsewhere_nobody_is_let_in_by_a_revoked_certificate(
    r: Running, tmp_path: Path
) -> None:
    lab = await r.client("FL-LAB")
    r.hq.trust.adopt(attrs.evolve(r.hq.trust.material, authority=None))
    (tmp_path / "lists" / "a.crl").write_bytes(
        make_crl(r.issuing, [(pki.serial(r.hq.trust.server), clock.now())], 5)
    )
    await cut(lab)
    await until(lambda: r.hq.certificate.waiting)  # its request for another one
    assert any(
        a.name == "revoked-hq" and "HQ's own certificate was revoked" in a.text
        for a in alerts(r.hq)
    )
    raw = await r.dial(r.people["FL-LAB"], hello=False)
    with pytest.raises(AssertionError, match="HQ's own certificate was revoked"):
        await raw.hello()


async def test_serial_numbers_of_two_cas_are_not_mixed_up(r: Running) -> None:
    """An organization may count from 1: the root's list with the number of HQ's certificate says
    nothing of it.
    """
    material = r.hq.trust.material
    root = pki.Authority(r.root, r.issuing.key)
    listed = attrs.make_class("FiledList", ["ca", "crl", "file"])
    says = attrs.make_class("Says", ["revoked"])
    assert not why_revoked(
        [listed(root.certificate, says({pki.serial(material.server): 1}), "f")], material
    )
    assert why_revoked(
        [listed(material.issuing, says({pki.serial(material.server): 1}), "f")], material
    )


async def test_an_older_list_is_refused_after_a_start_too(tmp_path: Path) -> None:
    path = tmp_path / "a.crl"
    async with running(tmp_path / "hq") as r:
        issuing = r.issuing
        path.write_bytes(make_crl(issuing, [], 9))
        set_lists(r, path)
        r.hq.reload()
        await r.hq.revocations.apply()
    path.write_bytes(make_crl(issuing, [], 8))
    with pytest.raises(ConfigError, match="number 8, but 9 was read before"):
        async with running(tmp_path / "hq"):
            pass
    path.write_bytes(make_crl(issuing, [], 9))
    async with running(tmp_path / "hq"):
        pass


async def test_clients_leave_an_hq_whose_certificate_was_revoked(tmp_path: Path) -> None:
    async with real_hq(tmp_path) as hq:
        await hq.join("FL-LAB", "CA-RC")
        async with hq.client("FL-LAB") as lab:
            await lab.publish("as ever", to="CA-RC")
            material = read_material(load_server_config(hq.directory))
            assert material.authority is not None
            raw = make_crl(material.authority, [(pki.serial(material.server), clock.now())], 99)
            (hq.home("FL-LAB") / REVOCATIONS).write_bytes(raw)
        async with hq.client("FL-LAB", keep_trying=True) as lab:  # the list it holds is enough
            with pytest.raises(HqRevoked, match="HQ's own certificate was revoked"):
                await lab.publish("not any more", to="CA-RC")
        async with hq.client("CA-RC") as center:
            await until(lambda: center.revocations.fresh)

            async def answered(*_: Any, **__: Any) -> frames.Revocations:
                return frames.Revocations(0, raw)

            # the list comes while it is connected
            center.connection.request, asked = answered, center.connection.request
            with pytest.raises(HqRevoked, match="HQ's own certificate was revoked"):
                await center.revocations.ensure(99)
            center.connection.request = asked
            with pytest.raises(HqRevoked):
                await center.ping()


async def test_hq_says_at_its_start_that_no_client_would_accept_its_certificate(
    tmp_path: Path,
) -> None:
    """As a certificate of an organization that 0.5.0 took: it does not say which key signed it."""
    async with running(tmp_path / "hq") as r:
        config, issuing = r.hq.config, r.issuing
    key = pki.new_key()
    bad = make(issuing, "DC-HQ", key, "hq", without=[ISSUER_ID])
    config.tls.certificate.write_bytes(pki.pem(bad))
    write_private(config.tls.key, pki.key_pem(key, secret_key(config.encryption.service_key_file)))
    assert [
        "authorityKeyIdentifier" in text for text in problems(load_server_config(config.directory))
    ] == [True]
    stops = pytest.RaisesExc(ConfigError, match="clients do not accept HQ's")
    with pytest.RaisesGroup(stops, flatten_subgroups=True, allow_unwrapped=True):
        async with running(tmp_path / "hq"):
            pass
