"""What people compare is what is sealed to: the attack of an HQ with its CA, and homes that
0.5.0 left.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cipherbox.client.home import IDENTITY, load_home
from cipherbox.client.keys.pins import FIRST_USE, PERSON, SUCCESSION, Pins
from cipherbox.envelope.bundle import fingerprint
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleNotSigned,
    BundleOutdated,
    BundleRefused,
    SenderNotValid,
)
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.identity import Identity
from cipherbox.server.directory import bundles as at_hq
from tests.client.parties import Party, now_ms
from tests.client.scripted import ScriptedHq, client_on
from tests.client.waiting import until
from tests.parties import old_bundle, with_other_keys


@pytest.mark.parametrize("signed", ["none", "other"])
@pytest.mark.parametrize("met", [False, True])
async def test_hq_with_its_ca_cannot_put_its_own_keys_beside_a_real_signing_key(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    met: bool,
    signed: str,
) -> None:
    """At first contact, and where the keys are pinned and compared: nothing is sealed, and `keys
    verify` agrees to nothing, whatever digits its owner reads.
    """
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        if met:
            await client.publish("x", to="CA-RC")
            client.directory.pins.mark_verified("CA-RC")
        for anew in (False, True) if met else (False,):
            evil = with_other_keys(center, signed, center.bundle if met else None, anew=anew)
            assert evil.sign_keys == center.bundle.sign_keys
            scripted.offers["CA-RC"] = [center.bundle.raw, evil.raw] if met else [evil.raw]
            client.directory.refresh("CA-RC")
            with pytest.raises(BundleNotSigned, match="put other keys beside those of CA-RC"):
                await client.publish("secret", to="CA-RC")
            with pytest.raises(BundleNotSigned):
                await client.directory.newest_at_hq("CA-RC")
            with pytest.raises(SenderNotValid, match="not trusted"):
                await client.directory.sender("CA-RC", evil.hash, now_ms())
            assert fingerprint(evil) != fingerprint(center.bundle)
    assert len(scripted.envelopes) == int(met)
    pin = Pins(tmp_path).get("CA-RC")
    assert (pin is not None and pin.bundle.hash) == (met and center.bundle.hash)


async def test_after_a_break_no_digits_of_before_agree(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also keys that the CA made up altogether: what the owner reads is the number of another
    bundle.
    """
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        await client.publish("x", to="CA-RC")
        client.directory.pins.mark_verified("CA-RC")
        spoken = fingerprint(center.bundle)
        evil = Identity.generate("CA-RC").make_bundle(
            center.key, center.chain, now_ms(), center.bundle
        )
        assert evil.breaks_continuity
        scripted.offers["CA-RC"] = [center.bundle.raw, evil.raw]
        client.directory.refresh("CA-RC")
        with pytest.raises(BundleDiscontinuous, match="says that it begins anew"):
            await client.publish("secret", to="CA-RC")
        assert fingerprint(await client.directory.newest_at_hq("CA-RC")) != spoken
    assert len(scripted.envelopes) == 1


async def test_a_chain_leads_over_no_break_in_either_direction(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner that begins anew names the bundle before as HQ showed it: it does not stand
    behind that one.
    """
    invented = lab.rotate(signed_by_the_old=False)  # by HQ and its CA
    lab.rotate(signed_by_the_old=False)  # by its owner, enrolled again, after what HQ showed
    scripted.offer(lab)
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        client.directory.pins.accept(lab.bundle, PERSON)  # its number was compared
        assert (await client.directory.sender("FL-LAB", lab.bundle.hash, now_ms())).sequence == 3
        with pytest.raises(SenderNotValid, match="does not lead to the keys pinned here"):
            await client.directory.sender("FL-LAB", invented.hash, now_ms())


# -- homes of 0.5.0 --------------------------------------------------------------------------------


def as_0_5_0(patch: pytest.MonkeyPatch) -> None:
    """Clients make bundles of version 1, and HQ takes them."""

    def make(
        self: Identity,
        key: Any,
        chain: Any,
        created_at: int,
        before: Any = None,
        signer: Any = None,
    ) -> Any:
        return old_bundle(self, key, chain, before, signer)

    check = at_hq.check_bundle
    patch.setattr(Identity, "make_bundle", make)
    patch.setattr(at_hq, "check_bundle", lambda *a, **o: check(*a, **{**o, "history": True}))


@pytest.fixture
async def old_hq(empty_hq: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A lab and a center joined with 0.5.0; the lab has compared the center's number."""
    with monkeypatch.context() as patch:
        as_0_5_0(patch)
        await empty_hq.join("FL-LAB", "CA-RC")
    own = load_home(empty_hq.home("CA-RC")).identity
    assert own is not None
    assert own.bundle is not None
    assert own.bundle.version == 1
    Pins(empty_hq.home("FL-LAB")).accept(own.bundle, PERSON)
    return empty_hq


async def test_a_home_of_0_5_0_makes_its_new_bundle_at_its_first_start(old_hq: Any) -> None:
    said: list[str] = []
    async with old_hq.client("FL-LAB", on_event=lambda e: said.append(str(e))) as lab:
        assert lab.home.identity.bundle.version == 2
        assert Pins(old_hq.home("FL-LAB")).get("CA-RC").compared_at == 0  # type: ignore[union-attr]
        with pytest.raises(BundleOutdated, match="CA-RC publishes new ones when its program"):
            await lab.publish("to keys of 0.5.0", to="CA-RC")
        async with old_hq.client("CA-RC", renew=False) as center:
            assert (center.home.identity.bundle.version, center.home.identity.bundle.sequence) == (
                2,
                2,
            )
        lab.directory.refresh("CA-RC")
        await lab.publish("to keys of today", to="CA-RC")
        pin = lab.directory.pins.get("CA-RC")
    assert (pin.pinned_by, pin.bundle.version, pin.verified_at) == (SUCCESSION, 2, 0)
    assert any(
        "which did not cover the keys that messages are sealed to; compare once more" in line
        for line in said
    )
    async with old_hq.client("CA-RC") as center:
        (found,) = await center.fetch()
        assert [m.content for m in found.messages] == [b"to keys of today"]


async def test_hq_takes_no_bundle_of_version_1_any_more(
    old_hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # a client that does not upgrade by itself
        patch.setattr("cipherbox.client.keys.lifecycle.VERSION", 1)
        async with old_hq.client("CA-RC") as center:
            old = center.home.identity.bundle
            assert old.version == 1
            home = center.home
            third = old_bundle(home.identity, home.key, home.chain, old)
            from cipherbox.wire import frames

            with pytest.raises(BundleRefused, match=r"0\.5\.0 or older"):
                await center.connection.request(frames.Register, bundle=third.raw)


@pytest.mark.parametrize("published", [False, True])
async def test_a_rotation_that_0_5_0_left_undone_is_brought_to_its_end(
    old_hq: Any, monkeypatch: pytest.MonkeyPatch, published: bool
) -> None:
    """Killed before or after HQ got the upcoming keys: either way they are in use, in a bundle
    of today's version.
    """
    with monkeypatch.context() as patch:
        as_0_5_0(patch)
        home = load_home(old_hq.home("CA-RC"))
        own = home.identity
        assert own is not None
        fresh = Identity.generate("CA-RC")
        fresh.bundle = fresh.make_bundle(home.key, home.chain, now_ms(), own.bundle, own)
        own.upcoming = fresh
        keyfile.save(home.path / IDENTITY, own, local_key=home.local_key)  # type: ignore[arg-type]
        if published:
            patch.setattr("cipherbox.client.keys.lifecycle.VERSION", 1)
            patch.setattr(Identity, "promote", lambda *_: None)
            patch.setattr("cipherbox.client.keys.lifecycle.KeyLifecycle._save", lambda *_: None)
            async with old_hq.client("CA-RC", renew=False):
                pass
    async with old_hq.client("CA-RC") as center:
        await until(
            lambda: (
                center.home.identity.upcoming is None and center.home.identity.bundle.version == 2
            )
        )
        assert center.home.identity.sign_keys == fresh.sign_keys
        assert center.home.identity.bundle.sequence == (3 if published else 2)
    async with old_hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")


async def test_a_first_contact_pins_no_keys_to_which_nothing_may_be_sealed(old_hq: Any) -> None:
    (old_hq.home("FL-LAB") / "certs" / "CA-RC.bundle").unlink()
    async with old_hq.client("FL-LAB") as lab:
        with pytest.raises(BundleOutdated):
            await lab.publish("x", to="CA-RC")
        with pytest.raises(BundleError):
            await lab.directory.newest_at_hq("CA-RC")  # nothing to compare
        assert lab.directory.pins.get("CA-RC") is None


async def test_what_a_sender_of_0_5_0_sent_still_opens(
    old_hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("cipherbox.client.keys.lifecycle.VERSION", 1)
        async with old_hq.client("CA-RC", renew=False) as center:
            assert center.home.identity.bundle.version == 1
            sender = await center.directory.sender(
                "FL-LAB",
                load_home(old_hq.home("FL-LAB")).identity.bundle.hash,  # type: ignore[union-attr]
                now_ms(),
            )
            assert sender.version == 1
    pin = Pins(old_hq.home("CA-RC")).get("FL-LAB")
    assert pin is not None
    assert (pin.pinned_by, pin.bundle.version) == (FIRST_USE, 1)
