"""Pins, succession, swapped bundles, senders that were not valid."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from cipherbox import clock, pki
from cipherbox.client.keys.pins import PERSON, SUCCESSION, Pins
from cipherbox.envelope.bundle import fingerprint
from cipherbox.errors import (
    BundleDiscontinuous,
    BundleError,
    BundleForAnother,
    BundleNotCertified,
    BundleRolledBack,
    CredentialsError,
    NotFound,
    RecipientRevoked,
    SenderNotValid,
)
from cipherbox.pki.revocation_lists import make_crl
from tests.client.parties import Authority, Party, now_ms
from tests.client.scripted import ScriptedHq, client_on


async def test_first_use_is_pinned_and_said(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    async with client_on(scripted, lab, tmp_path, monkeypatch, said) as client:
        await client.publish("x", to="CA-RC")
    (pin,) = Pins(tmp_path).entries()
    assert pin.bundle.hash == center.bundle.hash
    assert (pin.pinned_by, pin.verified_at) == ("first use", 0)
    assert any(
        f"pinned at first use; fingerprint {fingerprint(center.bundle)}" in e.text for e in said
    )
    assert (tmp_path / "certs" / "CA-RC_public.key").read_bytes() == center.bundle.encrypt_keys[
        0
    ].public


async def test_keys_that_the_old_ones_signed_are_taken_and_shown(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    async with client_on(scripted, lab, tmp_path, monkeypatch, said) as client:
        await client.publish("x", to="CA-RC")
        Pins(tmp_path).mark_verified("CA-RC")
        center.rotate()
        center.rotate()
        scripted.offer(center)
        client.directory.refresh("CA-RC")
        await client.publish("y", to="CA-RC")
    pin = Pins(tmp_path).get("CA-RC")
    assert pin is not None
    assert (pin.bundle.sequence, pin.pinned_by) == (3, SUCCESSION)
    assert pin.verified_at > 0  # the verified keys signed for these
    assert pin.accepted == {b.hash for b in center.bundles}
    assert any(
        "changed: bundle 1 to 3" in e.text and fingerprint(center.bundle) in e.text for e in said
    )


async def test_a_swapped_bundle_stops_the_sender_until_a_person_compared(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        await client.publish("x", to="CA-RC")
        center.rotate(signed_by_the_old=False)  # certified by HQ's own CA, and yet
        scripted.offer(center)
        client.directory.refresh("CA-RC")
        for _ in range(2):
            with pytest.raises(BundleDiscontinuous, match="compare fingerprints"):
                await client.publish("secret", to="CA-RC")
        assert len(scripted.envelopes) == 1
        offered = await client.directory.newest_at_hq("CA-RC")
        assert fingerprint(offered) == fingerprint(center.bundle)
        client.directory.pins.accept(offered, PERSON)
        await client.publish("y", to="CA-RC")
    assert len(scripted.envelopes) == 2
    pin = Pins(tmp_path).get("CA-RC")
    assert pin is not None
    assert pin.verified_at > 0


async def test_a_malicious_directory_is_refused(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    center.rotate()
    scripted.offer(center)
    other = authority.party("SF-RC")
    foreign = Authority("Another HQ").party("CA-RC")
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        for raw, kind in (
            (other.bundle.raw, BundleForAnother),
            (foreign.bundle.raw, BundleNotCertified),
        ):
            scripted.offers["CA-RC"] = [raw]
            with pytest.raises(kind):
                await client.publish("x", to="CA-RC")
        damaged = bytearray(center.bundle.raw)
        damaged[200] ^= 1
        scripted.offers["CA-RC"] = [bytes(damaged)]
        with pytest.raises(BundleError):
            await client.publish("x", to="CA-RC")
        assert not Pins(tmp_path).entries()
        scripted.offer(center)
        await client.publish("x", to="CA-RC")
        client.directory.refresh("CA-RC")
        # number 2 is pinned; number 1 is shown again
        scripted.offers["CA-RC"] = [b"", b"", center.bundles[0].raw]
        with pytest.raises(BundleRolledBack):
            await client.publish("x", to="CA-RC")
    assert len(scripted.envelopes) == 1


async def test_a_revoked_recipient_is_not_sealed_for(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    revoked = [(pki.serial(center.chain[0]), clock.now())]
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        await client.publish("x", to="CA-RC")
        scripted.crl = make_crl(authority.issuing, revoked, 2)
        client.revocations.refresh()
        with pytest.raises(RecipientRevoked):
            await client.publish("x", to="CA-RC")
        scripted.crl = make_crl(authority.issuing, [], 1)  # HQ shows the list of yesterday
        client.revocations.refresh()
        with pytest.raises(CredentialsError, match="number 2 was seen before"):
            await client.publish("x", to="CA-RC")
        scripted.crl = make_crl(authority.issuing, [], 3, days=0)
        with pytest.raises(CredentialsError, match="ended"):
            await client.publish("x", to="CA-RC")
    assert len(scripted.envelopes) == 1


async def test_a_senders_bundle_is_found_and_must_lead_to_the_pin(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = lab.bundle
    lab.rotate()
    second = lab.bundle
    scripted.offer(lab)
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        directory = client.directory
        assert directory.known_sender("FL-LAB", second.hash, now_ms()) is None
        assert (await directory.sender("FL-LAB", second.hash, now_ms())).hash == second.hash
        assert directory.known_sender("FL-LAB", second.hash, now_ms()) is not None
        # the pin is number 2; number 1 is reached backwards by its hash
        assert (await directory.sender("FL-LAB", first.hash, now_ms())).hash == first.hash
        lab.rotate()
        scripted.offer(lab)
        assert (await directory.sender("FL-LAB", lab.bundle.hash, now_ms())).sequence == 3
        pin = Pins(tmp_path).get("FL-LAB")
        assert pin is not None
        assert pin.bundle.sequence == 3
        lab.rotate(signed_by_the_old=False)
        scripted.offer(lab)
        with pytest.raises(SenderNotValid, match="not signed by the keys before"):
            await directory.sender("FL-LAB", lab.bundle.hash, now_ms())
        with pytest.raises(SenderNotValid, match="does not have"):
            await directory.sender("FL-LAB", bytes(32), now_ms())


async def test_a_sender_must_have_been_valid_when_hq_accepted(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.offer(lab)
    bundle = lab.bundle
    day = 24 * 3600 * 1000
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        sender = client.directory.sender
        await sender("FL-LAB", bundle.hash, bundle.created_at)
        for accepted_at in (bundle.created_at - 2 * day, bundle.ends_at + 1):
            with pytest.raises(SenderNotValid, match="were not valid"):
                await sender("FL-LAB", bundle.hash, accepted_at)
        when = datetime.datetime.fromtimestamp(bundle.created_at // 1000 + 100, datetime.UTC)
        scripted.crl = make_crl(authority.issuing, [(pki.serial(lab.chain[0]), when)], 2)
        client.revocations.refresh()
        assert client.directory.known_sender("FL-LAB", bundle.hash, now_ms()) is None
        await sender("FL-LAB", bundle.hash, pki.ms(when) + 999)  # a list's times are whole seconds
        with pytest.raises(SenderNotValid, match="was revoked"):
            await sender("FL-LAB", bundle.hash, pki.ms(when) + 1000)


def test_a_person_cannot_pin_an_older_bundle(tmp_path: Path, authority: Authority) -> None:
    party = authority.party("CA-RC")
    first = party.bundle
    # the same identity, so the same fingerprint: the telephone would not notice
    second = party.publish()
    pins = Pins(tmp_path)
    pins.accept(second, PERSON)
    with pytest.raises(BundleRolledBack):
        pins.accept(first, PERSON)


def test_pins_survive_a_lost_note(tmp_path: Path, authority: Authority) -> None:
    party = authority.party("CA-RC")
    pins = Pins(tmp_path)
    with pytest.raises(NotFound):
        pins.mark_verified("CA-RC")
    pins.accept(party.bundle, PERSON)
    assert Pins(tmp_path).entries()[0].verified_at > 0
    (tmp_path / "certs" / "pins.json").write_text("{ broken")
    again = Pins(tmp_path).get("CA-RC")
    assert again is not None
    assert (again.bundle.hash, again.verified_at) == (party.bundle.hash, 0)
    (tmp_path / "certs" / "CA-RC.bundle").write_bytes(b"broken")
    with pytest.raises(BundleError, match="damaged"):
        Pins(tmp_path).get("CA-RC")
