"""Revocation lists from files on a running HQ, and the list of certificates that an admin sees."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
import trio

from cipherbox import pki
from cipherbox.config.settings import load_server_config
from cipherbox.errors import Busy, ConfigError, Revoked
from cipherbox.net.tls import client_context
from cipherbox.pki.revocation_lists import make_crl
from cipherbox.server.ca import authority, organization
from cipherbox.server.ca.credentials import read_material
from cipherbox.server.ca.offline import sign_offline
from cipherbox.server.operations.alerts import alerts
from cipherbox.wire import frames
from tests.server.clocks import shifted_clock
from tests.server.hq import Raw, Running, open_vault, prepare, running
from tests.server.test_reload import admin_of, alive


def set_lists(r: Running, path: Path, stale: str = "warn") -> None:
    text = r.hq.config.file.read_text()
    text = text.replace('revocation_lists = ""', f'revocation_lists = "{path}"')
    r.hq.config.file.write_text(text.replace('stale_lists = "warn"', f'stale_lists = "{stale}"'))


async def cut(raw: Raw) -> None:
    with trio.fail_after(60):
        while await raw.next() is not None:
            pass


async def test_a_list_ends_the_connections_of_the_certificates_it_names_at_once(
    tmp_path: Path,
) -> None:
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
        with trio.fail_after(60):
            # HQ's own list names it too
            while await r.hq.engine.in_store(r.hq.trust.crl_number) == number:
                await trio.sleep(0.01)
        with pytest.raises(Revoked):
            r.hq.trust.identify(person.chain[0])
        assert r.hq.engine.broker.state.rights.clients["FL-LAB"].revoked_at


async def test_a_list_that_was_replaced_is_found_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.server.directory.revocation_lists.LOOK_S", 0.05)
    async with running(tmp_path / "hq") as r:
        (tmp_path / "lists").mkdir()
        set_lists(r, tmp_path / "lists")
        r.hq.reload()
        lab = await r.client("FL-LAB")
        serial = pki.serial(r.people["FL-LAB"].chain[0])
        (tmp_path / "lists" / "new.crl").write_bytes(
            make_crl(r.issuing, [(serial, datetime.now(UTC))], 9)
        )
        await cut(lab)
        (tmp_path / "lists" / "new.crl").write_bytes(b"half")
        with trio.fail_after(60):
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
        assert not r.hq.engine.broker.state.rights.clients["FL-LAB"].revoked_at


async def test_by_choice_nobody_is_let_in_under_a_stale_list(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        path = tmp_path / "issuing.crl"
        with shifted_clock(-30):
            path.write_bytes(make_crl(r.issuing, [], 5))
        set_lists(r, path)
        r.hq.reload()
        found = {a.name: a for a in alerts(r.hq)}
        assert "newer one" in found["certificate-lists"].text
        await alive(await r.client("FL-LAB"))
        set_lists(r, path, "refuse")
        r.hq.reload()
        raw = await r.dial(r.people["FL-LAB"], hello=False)
        with pytest.raises(AssertionError, match="refuses connections until it has a newer"):
            await raw.hello()
        assert Busy.retryable  # clients come back by themselves
        await alive(lab)
        assert any("new connections are refused" in why for why in r.hq.unready())
        path.write_bytes(make_crl(r.issuing, [], 6))
        r.hq.reload()
        await alive(await r.client("FL-LAB"))


async def test_the_list_of_certificates_is_the_admins(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, boss = await r.client("FL-LAB"), await admin_of(r)
        assert await lab.refused(frames.List, "certificates", "", "") == "forbidden"
        rows = {
            row["name"]: row
            for row in orjson.loads((await boss.ask(frames.List, "certificates", "", "")).rows)
        }
        assert list(rows) == ["root", "issuing", "server", "revocations", "clients", "requests"]
        assert rows["server"]["sha256"] == pki.fingerprint(r.hq.trust.server).hex()
        ending = {row["client"] for row in rows["clients"]["ending"]}
        assert ending == {"FL-LAB", "BOSS"}  # these two were made for thirty days


def test_requests_of_hq_are_signed_as_a_servers(tmp_path: Path) -> None:
    config = prepare(tmp_path / "hq")
    authority.take_off(config, tmp_path / "ca", b"k" * 32, bytes, whole=True)
    signed = sign_offline(open_vault(tmp_path / "ca"), organization.own_request(config))
    assert "crl" not in orjson.loads(signed)
    before = config.tls.certificate.read_bytes()
    organization.put_by_hand(load_server_config(config.directory), signed)
    assert config.tls.certificate.read_bytes() != before
    read_material(load_server_config(config.directory)).try_out()
