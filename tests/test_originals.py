"""Faults of the predecessors in keys and trust: each of these tests fails on one of them."""

from __future__ import annotations

from pathlib import Path

import attrs

from cipherbox.client.home import load_home
from cipherbox.envelope.bundle import decode_bundle
from cipherbox.limits import LIMITS
from cipherbox.wire import frames
from tests.client.real_hq import real_hq
from tests.server.hq import codec_name, running


async def test_an_upload_with_a_bad_signature_is_refused_and_not_kept(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, key_requests_per_minute=10_000)
    async with running(tmp_path / "hq", limits=limits) as r:
        lab = await r.client("FL-LAB")
        bundle = r.people["FL-LAB"].identity.bundle
        assert bundle is not None
        at = bundle.raw.index(bundle.certificate_signature)
        for offset in range(at + 8, at + len(bundle.certificate_signature), 9):
            raw = bundle.raw[:offset] + bytes([bundle.raw[offset] ^ 1]) + bundle.raw[offset + 1 :]
            answer = await lab.ask(frames.Register, raw)
            assert codec_name(answer) == "bundle-refused", offset
            assert "not signed by its certificate's key" in answer.message
        found = await lab.ask(frames.GetBundles, [frames.BundleQuery("FL-LAB", 0)], [])
        assert found.answers[0].bundles == []
        assert isinstance(await lab.ask(frames.Register, bundle.raw), frames.Ok)


async def test_nobody_registers_in_anothers_name(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        thief, victim = await r.client("PA-LAB"), await r.person("FL-LAB")
        stolen = victim.identity.bundle
        assert stolen is not None
        assert (
            "asked for the keys of PA-LAB" in (await thief.ask(frames.Register, stolen.raw)).message
        )
        me = r.people["PA-LAB"]
        forged = attrs.evolve(me.identity.bundle, client_id="FL-LAB")
        assert forged.client_id == "FL-LAB"
        me.identity.client_id = "FL-LAB"
        own = me.identity.make_bundle(me.key, me.chain, stolen.created_at)
        assert await thief.refused(frames.Register, own.raw) == "bundle-refused"
        found = await thief.ask(frames.GetBundles, [frames.BundleQuery("FL-LAB", 0)], [])
        assert found.answers[0].bundles == []


async def test_private_keys_never_lie_in_plain_text(tmp_path: Path) -> None:
    async with real_hq(tmp_path) as hq:
        await hq.join("FL-LAB", "CA-RC")
        async with hq.client("CA-RC") as center, hq.client("FL-LAB") as lab:
            await lab.publish("x", to="CA-RC")
            await center.key_lifecycle.rotate("ed25519+mldsa65")
            await center.key_lifecycle.renew()
        home = load_home(hq.home("CA-RC"))
    identity = home.identity
    assert identity is not None
    secrets = [k.seed for k in (*identity.current, *identity.retired)] + [
        s for s in identity.seeds() if s
    ]
    secrets.append(home.key.private_numbers().private_value.to_bytes(48, "big"))
    assert len(secrets) == 7
    for path in [*home.path.rglob("*"), *hq.directory.rglob("*")]:
        if path.is_file() and path.name != "reserve":
            data = path.read_bytes()
            for secret in secrets:
                assert secret not in data, path
                assert secret.hex().encode() not in data, path
            assert b"BEGIN PRIVATE KEY" not in data, path


async def test_keys_and_log_outlive_a_restart(tmp_path: Path) -> None:
    async with real_hq(tmp_path) as hq:
        await hq.join("FL-LAB", "CA-RC")
        async with hq.client("FL-LAB") as lab:
            await lab.publish("before", to="CA-RC")
            key, pin = lab.connection.current.log_key, lab.directory.pins.get("CA-RC")
        await hq.restart()
        async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
            (answer,) = await lab.directory.ask([("CA-RC", 0)])
            assert [decode_bundle(raw).hash for raw in answer.bundles] == [pin.bundle.hash]
            assert lab.connection.current.log_key == key
            (delivery,) = await center.fetch()
            assert delivery.messages[0].content == b"before"
