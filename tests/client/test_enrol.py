"""Joining a real HQ: the whole way, what is refused, what goes on after an interruption."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.client import enrol
from cipherbox.client.enrol import join
from cipherbox.client.home import load_home
from cipherbox.client.keys.pins import PERSON
from cipherbox.errors import BundleDiscontinuous, EnrolmentRefused, NetworkError, TokenError
from cipherbox.portable import WINDOWS
from cipherbox.server.ca.offline import sign_offline
from cipherbox.wire.token import decode_token, encode_token
from tests.client.real_hq import RealHq, real_hq
from tests.server.hq import open_vault


@pytest.fixture
def hq(empty_hq: RealHq) -> RealHq:
    return empty_hq


async def token_for(hq: Any, client_id: str, **options: Any) -> str:
    async with hq.admin() as admin:
        token: str = await admin.enrol(client_id, **options)
        return token


async def test_join_makes_a_home(hq: Any) -> None:
    numbers: list[str] = []
    token = await token_for(hq, "FL-LAB")
    home = hq.home("FL-LAB")
    report = await join(home, token, on_number=numbers.append)
    assert (report.client_id, report.role, report.home) == ("FL-LAB", "client", home)
    assert numbers == [report.number]
    assert len(report.number) == 7
    loaded = load_home(home)
    assert loaded.identity is not None
    assert loaded.identity.bundle is not None
    assert not (home / "joining.json").exists()
    if not WINDOWS:
        for name in ("client.key", "local.key", "keys.cbk"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    secret = (home / "local.key").read_bytes()
    assert secret not in (home / "client.key").read_bytes()
    async with hq.client("FL-LAB") as lab:
        (bundle,) = await lab.bundles(["FL-LAB"])
        assert bundle.hash == loaded.identity.bundle.hash
        await lab.register()  # again: found the same


async def test_an_admin_gets_no_keys_that_open(hq: Any) -> None:
    report = await join(hq.home("boss"), await token_for(hq, "boss", role="admin"))
    assert report.role == "admin"
    assert not (hq.home("boss") / "keys.cbk").exists()
    async with hq.client("boss") as boss:
        assert boss.role == "admin"
        assert {"admin", "boss"} <= {row["name"] for row in await boss.list("clients")}


async def test_a_token_works_once(hq: Any) -> None:
    token = await token_for(hq, "FL-LAB")
    await join(hq.home("FL-LAB"), token)
    with pytest.raises((EnrolmentRefused, TokenError)):
        await join(hq.home("thief"), token)
    with pytest.raises(EnrolmentRefused, match="already used"):
        await join(hq.home("FL-LAB"), token)
    for left in ("joining.json", "client.key.next"):
        assert not (hq.home("FL-LAB") / left).exists()
    async with hq.client("FL-LAB") as lab:
        await lab.ping()  # and its home is as it was


async def test_a_token_that_ended(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    token = decode_token(await token_for(hq, "FL-LAB"))
    with pytest.raises(TokenError, match="expired on"):
        await join(hq.home("FL-LAB"), encode_token(attrs.evolve(token, expires_at=1)))
    assert not (hq.home("FL-LAB") / "client.key").exists()
    short = await token_for(hq, "FL-LAB", valid_s=1)
    await trio.sleep(1.1)
    monkeypatch.setattr(enrol, "_check_time", lambda token: None)  # a machine whose clock is wrong
    with pytest.raises((EnrolmentRefused, TokenError)):
        await join(hq.home("FL-LAB"), short)


async def test_a_token_of_another_hq(hq: Any, tmp_path: Path) -> None:
    token = decode_token(await token_for(hq, "FL-LAB"))
    other = attrs.evolve(token, root_fingerprint=bytes(32))
    with pytest.raises(TokenError, match="not the HQ that issued the token"):
        await join(hq.home("FL-LAB"), encode_token(other))
    secret = attrs.evolve(token, secret=bytes(16))
    with pytest.raises((EnrolmentRefused, TokenError)):
        await join(hq.home("FL-LAB"), encode_token(secret))
    nobody = attrs.evolve(token, address="127.0.0.1:1")
    with pytest.raises(NetworkError, match="cannot be reached"):
        await join(hq.home("FL-LAB"), encode_token(nobody))
    for text in ("", "cipherbox-1-", "cipherbox-1-AAAA", encode_token(token)[:-3]):
        with pytest.raises(TokenError):
            await join(hq.home("FL-LAB"), text)
    await join(hq.home("FL-LAB"), encode_token(token))  # none of it used the token up


async def test_an_interrupted_join_goes_on_with_the_same_key(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = await token_for(hq, "FL-LAB")
    home = hq.home("FL-LAB")
    numbers: list[str] = []
    original = enrol._register

    async def cut(*arguments: Any) -> None:
        await original(*arguments)
        raise NetworkError("cut when everything was nearly done")

    with monkeypatch.context() as patch:
        patch.setattr(enrol, "_register", cut)
        with pytest.raises(NetworkError, match="nearly done"):
            await join(home, token, on_number=numbers.append)
    key = (home / "client.key").read_bytes()
    with pytest.raises(Exception, match=r"client\.toml"):
        load_home(home)
    await join(home, token, on_number=numbers.append)
    assert (home / "client.key").read_bytes() == key
    assert numbers[0] == numbers[1]
    async with hq.client("FL-LAB") as lab:
        await lab.publish("it works", to="FL-LAB")


async def test_it_waits_for_approval(hq: Any) -> None:
    token = await token_for(hq, "FL-LAB", approve=True)
    told: list[tuple[str, str]] = []
    waits = trio.Event()

    def on_number(number: str, waiting: str = "") -> None:
        told.append((number, waiting))
        if waiting:
            waits.set()

    async with trio.open_nursery() as nursery, hq.admin() as admin:

        async def run() -> None:
            await join(hq.home("FL-LAB"), token, on_number=on_number, pause_s=0.05)

        nursery.start_soon(run)
        with trio.fail_after(60):
            await waits.wait()
        (row,) = await admin.list("pending")
        assert row["name"] == "FL-LAB"
        assert row["number"] == told[0][0]  # both ends show the same
        await admin.approve("FL-LAB")
    assert [waiting for _, waiting in told] == ["", enrol.WAITING[enrol.WAITS_FOR_APPROVAL]]
    load_home(hq.home("FL-LAB"))


async def test_the_admin_may_refuse(hq: Any) -> None:
    token = await token_for(hq, "FL-LAB", approve=True)
    async with hq.admin() as admin:

        def on_number(number: str, waiting: str = "") -> None:
            if waiting:
                nursery.start_soon(lambda: admin.approve("FL-LAB", accept=False))

        async with trio.open_nursery() as nursery:
            with pytest.raises(EnrolmentRefused):
                await join(hq.home("FL-LAB"), token, on_number=on_number, pause_s=0.05)


async def test_it_waits_for_the_offline_ca(tmp_path: Path) -> None:
    async with real_hq(tmp_path, offline_ca=tmp_path / "carried_away") as hq:
        token = await token_for(hq, "FL-LAB")
        waits = trio.Event()

        def on_number(number: str, waiting: str = "") -> None:
            if waiting == enrol.WAITING[enrol.WAITS_FOR_CA]:
                waits.set()

        async with trio.open_nursery() as nursery, hq.admin() as admin:

            async def run() -> None:
                await join(hq.home("FL-LAB"), token, on_number=on_number, pause_s=0.05)

            nursery.start_soon(run)
            with trio.fail_after(60):
                await waits.wait()
            document = await admin.export_requests()
            await admin.import_certificates(
                sign_offline(open_vault(tmp_path / "carried_away"), document)
            )
        async with hq.client("FL-LAB") as lab:
            await lab.publish("it works", to="FL-LAB")


async def test_keys_that_were_lost_are_made_anew_and_stop_senders_who_knew_the_old(hq: Any) -> None:
    await hq.join("FL-LAB", "CA-RC")
    async with hq.client("CA-RC") as center:
        await center.publish("to the first keys", to="FL-LAB")
    for file in [path for path in hq.home("FL-LAB").iterdir() if path.is_file()]:
        file.unlink()
    await hq.join("FL-LAB", replace=True)
    async with hq.client("FL-LAB") as lab:
        identity = lab.home.identity
        assert identity is not None
        assert identity.bundle is not None
        assert identity.bundle.sequence == 2
    async with hq.client("CA-RC") as center:
        with pytest.raises(BundleDiscontinuous):
            await center.publish("secret", to="FL-LAB")
        offered = await center.directory.newest_at_hq("FL-LAB")
        assert offered.hash == identity.bundle.hash
        center.directory.pins.accept(offered, PERSON)
        await center.publish("to the new keys", to="FL-LAB")
