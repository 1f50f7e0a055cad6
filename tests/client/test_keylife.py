"""Rotation with overlap, renewal by itself, destruction by the rule; and a crash between any two
steps.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox import pki
from cipherbox.client.home import CERTIFICATE, IDENTITY, KEY, NEXT_KEY, load_home
from cipherbox.client.keys import lifecycle as keylife
from cipherbox.client.keys.lifecycle import OLD_KEY_DAYS
from cipherbox.client.keys.pins import SUCCESSION, Pins
from cipherbox.envelope.suites import SignatureSuite
from cipherbox.errors import BundleRefused, CredentialsError, Forbidden, KeyMissing, StoreLocked
from cipherbox.limits import LIMITS
from cipherbox.pki.certificates import is_due, renew_at
from cipherbox.pki.key_replacement import KeyReplacement
from cipherbox.portable import lock_file
from cipherbox.sealing import key_file as keyfile
from cipherbox.server import app
from cipherbox.server.directory.trust import Trust
from tests.client.real_hq import real_hq
from tests.client.waiting import until

DAY_MS = 24 * 3600 * 1000


class Killed(BaseException):
    """The process dies here."""


@contextmanager
def suppress_killed() -> Iterator[None]:
    try:
        yield
    except* Killed:
        pass


def retire_since(hq: Any, name: str, days: int) -> None:
    """Makes the retired keys of a home so many days older."""
    home = load_home(hq.home(name))
    assert home.identity is not None
    assert home.local_key is not None
    home.identity.retired = tuple(
        attrs.evolve(k, retired_at=k.retired_at - days * DAY_MS) for k in home.identity.retired
    )
    keyfile.save(home.path / IDENTITY, home.identity, local_key=home.local_key)


async def opened(hq: Any, name: str) -> list[bytes]:
    async with hq.client(name) as client:
        found = await client.fetch(envelopes=50)
        await client.ack(found)
        return [m.content for d in found for m in d.messages]


async def test_a_backlog_sealed_to_the_old_keys_still_opens(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("to the old keys", to="CA-RC")
        async with hq.client("CA-RC") as center:
            before = center.home.identity.bundle
            await center.key_lifecycle.rotate()
            after = center.home.identity.bundle
        assert (after.sequence, after.previous_hash, after.continuity_suite) == (2, before.hash, 1)
        assert {k.public for k in after.keys}.isdisjoint(k.public for k in before.keys)
        await lab.publish("still to the old keys", to="CA-RC")
        lab.directory.refresh("CA-RC")
        await lab.publish("to the new keys", to="CA-RC")
        pin = lab.directory.pins.get("CA-RC")
        assert (pin.bundle.hash, pin.pinned_by) == (after.hash, SUCCESSION)
    assert await opened(hq, "CA-RC") == [
        b"to the old keys",
        b"still to the old keys",
        b"to the new keys",
    ]


async def test_what_a_rotated_sender_sent_before_is_still_believed(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("before", to="CA-RC")
        await lab.key_lifecycle.rotate()
        await lab.key_lifecycle.rotate()
        await lab.publish("after", to="CA-RC")
    assert await opened(hq, "CA-RC") == [b"before", b"after"]
    assert Pins(hq.home("CA-RC")).get("FL-LAB").bundle.sequence == 3  # type: ignore[union-attr]


async def test_a_client_that_runs_opens_what_is_sealed_to_keys_another_process_made(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as running:
        async with hq.client("CA-RC") as other:
            await other.key_lifecycle.rotate()
        assert running.home.identity.bundle.sequence == 1
        await lab.publish("to the new keys", to="CA-RC")
        (delivery,) = await running.fetch()
        assert delivery.messages[0].content == b"to the new keys"
        assert running.home.identity.bundle.sequence == 2
        monkeypatch.setattr(keylife, "WAIT_S", 0.2)
        with lock_file(running.home.path / "keys.lock", "x"), pytest.raises(StoreLocked):
            await running.key_lifecycle.rotate()


async def test_old_private_keys_are_destroyed_when_nothing_sealed_to_them_can_arrive(
    hq: Any,
) -> None:
    """An offline sender uses a pin for 35 days, an inbox takes ids of 400 days, and clocks
    differ by one.
    """
    assert OLD_KEY_DAYS == 436 == pki.OFFLINE_CRL_DAYS + LIMITS.watermark_ms // DAY_MS + 1
    async with hq.client("FL-LAB") as lab:
        await lab.publish("to the old keys", to="CA-RC")
    async with hq.client("CA-RC") as center:
        assert center.home.config.keep_old_days == OLD_KEY_DAYS
        await center.key_lifecycle.rotate()
        (old, _) = center.home.identity.retired
    retire_since(hq, "CA-RC", OLD_KEY_DAYS - 1)
    async with hq.client("CA-RC") as center:
        await center.key_lifecycle.renew()
        assert len(center.home.identity.retired) == 2
        (delivery,) = await center.fetch()  # not acknowledged: it comes again
        assert delivery.messages[0].content == b"to the old keys"
    retire_since(hq, "CA-RC", 1)
    async with hq.client("CA-RC") as center:
        await until(lambda: not center.home.identity.retired)  # by itself
        (again,) = await center.fetch_unopened()
        with pytest.raises(KeyMissing):
            await center.open(again)
    home = load_home(hq.home("CA-RC"))
    assert old.seed.hex().encode() not in keyfile.decrypt(
        (home.path / IDENTITY).read_bytes(), local_key=home.local_key
    )


async def test_fewer_days_are_a_setting(hq: Any) -> None:
    file = hq.home("CA-RC") / "client.toml"
    file.write_text(file.read_text().replace("keep_old_days = 436", "keep_old_days = 2"))
    async with hq.client("CA-RC") as center:
        await center.key_lifecycle.rotate()
    retire_since(hq, "CA-RC", 2)
    async with hq.client("CA-RC") as center:
        await until(lambda: not center.home.identity.retired)


async def test_both_signatures_as_a_choice_and_back(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("one signature", to="CA-RC")
        await lab.key_lifecycle.rotate("ed25519+mldsa65")
        assert lab.home.identity.suite == SignatureSuite.ED25519_MLDSA65
        await lab.publish("two signatures", to="CA-RC")
        await lab.key_lifecycle.rotate("ed25519")
        assert lab.home.identity.bundle.continuity_suite == 2  # both keys stand behind the way back
        await lab.publish("one again", to="CA-RC")
    assert await opened(hq, "CA-RC") == [b"one signature", b"two signatures", b"one again"]


async def test_both_signatures_from_the_first_day(hq: Any) -> None:
    from cipherbox.client.enrol import join

    async with hq.admin() as admin:
        token = await admin.enrol("SF-RC")
        with pytest.raises(Forbidden):
            await admin.key_lifecycle.rotate()
    await join(hq.home("SF-RC"), token, signatures="ed25519+mldsa65")
    async with hq.client("SF-RC") as center:
        assert center.home.identity.suite == SignatureSuite.ED25519_MLDSA65
        assert center.home.config.signatures == "ed25519+mldsa65"
        await center.key_lifecycle.rotate()  # as the setting says
        assert center.home.identity.suite == SignatureSuite.ED25519_MLDSA65


# -- renewal ---------------------------------------------------------------------------------------


def short_lived(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    """What HQ issues from now on lives so long."""
    issue = pki.issue_client
    monkeypatch.setattr(
        Trust,
        "issue",
        lambda self, key, client_id: issue(self.authority, key, client_id, days),  # type: ignore[arg-type]
    )


async def test_a_certificate_renews_by_itself_at_two_thirds_of_its_life(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_lived(monkeypatch, 10 / 24 / 60)  # ten minutes, five of them gone at once
    await hq.join("SF-RC")
    leaf = load_home(hq.home("SF-RC")).chain[0]
    life = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    assert renew_at(leaf) == leaf.not_valid_before_utc + life * 2 / 3
    assert not is_due(leaf)
    assert is_due(leaf, leaf.not_valid_before_utc + life * 0.67)
    short_lived(monkeypatch, 398)
    async with hq.client("SF-RC") as center:
        await center.bundles(["FL-LAB"])
        assert center.home.chain[0] == leaf  # not yet
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(minutes=3)
    monkeypatch.setattr(keylife, "is_due", lambda c: is_due(c, later))
    said: list[Any] = []
    async with hq.client("SF-RC", on_event=said.append) as center:
        await until(lambda: center.home.identity.bundle.sequence == 2)
        assert center.home.identity.bundle.chain[0] == pki.der(center.home.chain[0])
        assert center.home.chain[
            0
        ].not_valid_after_utc > leaf.not_valid_after_utc + datetime.timedelta(days=300)
        assert pki.spki(center.home.key.public_key()) != pki.spki(leaf.public_key())  # type: ignore[arg-type]
    assert any("The certificate was renewed" in str(e) for e in said)
    async with hq.client("FL-LAB") as lab:
        await lab.publish("to the renewed", to="SF-RC")
    assert await opened(hq, "SF-RC") == [b"to the renewed"]


async def test_a_short_command_does_not_renew(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keylife, "is_due", lambda c: True)
    async with hq.client("FL-LAB", renew=False) as lab:
        await lab.publish("x", to="CA-RC")
        before = lab.home.chain[0]
    assert load_home(hq.home("FL-LAB")).chain[0] == before


async def test_a_client_that_renewed_goes_on_when_its_former_certificate_expires(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its connection is older than the renewal, so HQ ends it; the next one is accepted."""
    ended: set[str] = set()
    require = Trust.require

    def expired(trust: Trust, serial: str) -> None:
        if serial in ended:
            raise CredentialsError("it expired")
        require(trust, serial)

    monkeypatch.setattr(Trust, "require", expired)
    monkeypatch.setattr(app, "CERTIFICATES_S", 0.02)
    await hq.restart()
    async with hq.client("CA-RC", keep_trying=True) as center:
        former = pki.serial(center.home.chain[0])
        await center.key_lifecycle.renew()
        before = center.connection.current
        ended.add(former)
        await until(lambda: center.connection.current not in (None, before))
        await center.publish("after", to="FL-LAB")


async def test_an_admin_renews_too(hq: Any) -> None:
    async with hq.admin() as admin:
        before = admin.home.chain[0]
        found = await admin.key_lifecycle.renew()
        assert found.ends_at == pki.ms(admin.home.chain[0].not_valid_after_utc)
        assert admin.home.chain[0] != before
    async with hq.admin() as admin:
        assert admin.role == "admin"


async def test_an_offline_ca_renews_when_the_request_was_carried(tmp_path: Path) -> None:
    from cipherbox.server.ca.offline import sign_offline
    from tests.server.hq import open_vault

    async with real_hq(tmp_path, offline_ca=tmp_path / "ca") as hq, hq.admin() as admin:
        before = admin.home.chain[0]
        assert (await admin.key_lifecycle.renew()).ends_at == 0
        assert (admin.home.path / NEXT_KEY).exists()
        assert (await admin.key_lifecycle.renew()).ends_at == 0  # the same request
        requests = await admin.export_requests()
        await admin.import_certificates(sign_offline(open_vault(tmp_path / "ca"), requests))
        assert (await admin.key_lifecycle.renew()).ends_at
        assert admin.home.chain[0] != before
        assert not (admin.home.path / NEXT_KEY).exists()


# -- crashes ---------------------------------------------------------------------------------------


def writes(monkeypatch: pytest.MonkeyPatch, die_before: int | None) -> list[str]:
    """Counts the durable steps of a change of keys; the process dies before the one that is
    named.
    """
    done: list[str] = []

    def step(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if len(done) == die_before:
                raise Killed
            done.append(name)
            return work(*arguments, **options)

        return counted

    monkeypatch.setattr(KeyReplacement, "begin", step("next key", KeyReplacement.begin))
    monkeypatch.setattr(keylife, "write_atomic", step("certificate", keylife.write_atomic))
    monkeypatch.setattr(KeyReplacement, "finish", step("key", KeyReplacement.finish))
    monkeypatch.setattr(keylife.keyfile, "save", step("keys", keyfile.save))
    monkeypatch.setattr(
        keylife.KeyLifecycle, "_publish", step("publish", keylife.KeyLifecycle._publish)
    )
    return done


@pytest.mark.parametrize(
    ("act", "die_before"),
    [*(("renew", step) for step in range(7)), *(("rotate", step) for step in range(4))],
)
async def test_a_crash_between_any_two_steps_leaves_a_home_that_works(
    hq: Any, monkeypatch: pytest.MonkeyPatch, act: str, die_before: int
) -> None:
    async with hq.client("FL-LAB") as lab:
        await lab.publish("before", to="CA-RC")
    with monkeypatch.context() as patch:
        done = writes(patch, die_before)
        steps = {
            "renew": ["next key", "certificate", "key", "keys", "publish", "keys"],
            "rotate": ["keys", "publish", "keys"],
        }[act]
        with suppress_killed():
            async with hq.client("CA-RC", renew=False) as center:
                await getattr(center.key_lifecycle, act)()
        assert done == steps[:die_before]
    async with hq.client("FL-LAB") as lab:
        await lab.publish("after", to="CA-RC")
    async with hq.client("CA-RC") as center:
        await center.finish_keys()
        assert center.home.identity.upcoming is None
        assert center.home.identity.bundle.chain[0] == pki.der(center.home.chain[0])
        (own,) = await center.directory.ask([("CA-RC", 0)])
        assert own.bundles[-1] == center.home.identity.bundle.raw
        await getattr(center.key_lifecycle, act)()  # and it can be done again
    assert await opened(hq, "CA-RC") == [b"before", b"after"]


async def test_a_lost_answer_of_hq_loses_no_key(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """HQ took the bundle, and the client never heard so: what is sealed to it meanwhile opens."""
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> None:
            raise Killed

        patch.setattr(keylife.Identity, "promote", killed)
        with suppress_killed():
            async with hq.client("CA-RC") as center:
                await center.key_lifecycle.rotate()
    async with hq.client("FL-LAB") as lab:
        await lab.publish("to keys the owner is not sure of", to="CA-RC")
        assert lab.directory.pins.get("CA-RC").bundle.sequence == 2
    home = load_home(hq.home("CA-RC"))
    assert home.identity is not None
    assert home.identity.upcoming is not None
    assert await opened(hq, "CA-RC") == [b"to keys the owner is not sure of"]


async def test_while_hq_is_away_the_new_keys_wait(hq: Any) -> None:
    from cipherbox.errors import NetworkError

    async with hq.client("CA-RC", tries=1) as center:
        await hq.stop()
        center.connection.timeout_s = 0.3
        with pytest.raises(NetworkError):
            await center.key_lifecycle.rotate()
        assert center.home.identity.bundle.sequence == 1
    await hq.start()
    async with hq.client("CA-RC") as center:
        await until(lambda: center.home.identity.bundle.sequence == 2)


async def test_a_home_from_an_old_backup_is_told_so(hq: Any) -> None:
    path = hq.home("CA-RC") / IDENTITY
    backup = path.read_bytes()
    async with hq.client("CA-RC") as center:
        await center.key_lifecycle.rotate()
    path.write_bytes(backup)
    async with hq.client("CA-RC") as center:
        with pytest.raises(
            BundleRefused, match="restored from an older backup, or its keys were stolen"
        ):
            await center.key_lifecycle.rotate()
        assert center.home.identity.upcoming is None
        assert center.home.identity.bundle.sequence == 1


async def test_a_key_that_fits_no_certificate_is_named(hq: Any) -> None:
    home = load_home(hq.home("CA-RC"))
    assert home.local_key is not None
    (home.path / KEY).write_bytes(pki.key_pem(pki.new_key(), home.local_key))
    (home.path / NEXT_KEY).write_bytes(pki.key_pem(pki.new_key(), home.local_key))
    (home.path / NEXT_KEY).chmod(0o600)
    with pytest.raises(CredentialsError, match="does not belong to the certificate"):
        load_home(hq.home("CA-RC"))
    assert (home.path / CERTIFICATE).exists()
    await trio.lowlevel.checkpoint()
