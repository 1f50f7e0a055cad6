"""Counted bounds of a running HQ."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from cipherbox import pki
from cipherbox.errors import Throttled
from cipherbox.limits import LIMITS
from cipherbox.server.connection.budget import Rate
from cipherbox.store.port import BundleRow
from cipherbox.wire import frames
from cipherbox.wire.token import decode_token
from tests.server.hq import codec_name, prepare, running


async def test_tokens_open_at_once_and_attempts_a_minute(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, pending_requests=2, enrol_attempts_per_minute=3, token_s=60)
    async with running(tmp_path / "hq", limits=limits) as r:
        admin = await r.dial(await r.person("BOSS", role="admin"))
        answers = [await admin.ask(frames.Enrol, f"C{i}", "client", False, 0) for i in range(3)]
        assert [type(a) for a in answers] == [frames.Token, frames.Token, frames.Error]
        token = decode_token(answers[0].token)
        assert 50_000 < token.expires_at - r.hq.clock_ms() <= 60_000
        csr = pki.make_csr(pki.new_key(), "C0")
        nobody = await r.dial()
        first = await nobody.ask(frames.RequestCertificate, "C0", token.secret, csr)
        again = await nobody.ask(frames.RequestCertificate, "C0", token.secret, csr)
        assert first.state == 0
        assert again.chain == first.chain
        other = await nobody.ask(
            frames.RequestCertificate, "C0", token.secret, pki.make_csr(pki.new_key(), "C0")
        )
        assert codec_name(other) == "enrolment-refused"
        late = await r.dial()
        assert (
            codec_name(await late.ask(frames.RequestCertificate, "C0", token.secret, csr))
            == "throttled"
        )


async def test_lists_of_one_request(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        ranges = [frames.Range(i, 1) for i in range(LIMITS.ranges_per_frame + 1)]
        assert isinstance(await lab.ask(frames.Ack, "box.FL-LAB", ranges[:-1]), frames.AckConfirmed)
        assert await lab.refused(frames.Ack, "box.FL-LAB", ranges) == "invalid-request"
        assert (
            await lab.refused(frames.Ack, "box.FL-LAB", [frames.Range(1, 0xFFFFFFFF)])
            == "invalid-request"
        )
        queries = [frames.BundleQuery(f"C{i}", 0) for i in range(LIMITS.names_per_frame + 1)]
        assert await lab.refused(frames.GetBundles, queries, []) == "invalid-request"
        assert (
            await lab.refused(frames.Register, bytes(LIMITS.bundle_bytes + 1)) == "bundle-refused"
        )


async def test_connections_in_all(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, connections=2)) as r:
        await r.client("FL-LAB")
        await r.client("CA-RC")
        third = await r.dial(await r.person("NY-RC"), hello=False)
        await third.stream.send_all(
            third.wire.send(frames.Hello(frames.MAGIC, 2, 2, 1 << 20, 30, ""))
        )
        assert codec_name(await third.next()) == "too-many-connections"


def test_a_rate_is_a_bucket_that_fills_evenly() -> None:
    now = 0.0
    rate = Rate(60, "requests", lambda: now)
    for _ in range(60):
        rate.spend("FL-LAB")
    with pytest.raises(Throttled, match=r"more than 60 requests in a minute; ask again in 1 s"):
        rate.spend("FL-LAB")
    rate.spend("CA-RC")  # each has its own
    now = 10.0
    for _ in range(10):
        rate.spend("FL-LAB")
    with pytest.raises(Throttled):
        rate.spend("FL-LAB")
    now = 10_000.0
    for _ in range(60):  # never more than a minute's worth
        rate.spend("FL-LAB")
    with pytest.raises(Throttled):
        rate.spend("FL-LAB")


async def test_sixty_key_requests_a_minute_and_a_batch_counts_once(tmp_path: Path) -> None:
    assert LIMITS.key_requests_per_minute == 60
    async with running(tmp_path / "hq", clock_s=lambda: 0.0) as r:
        lab, other = await r.client("FL-LAB"), await r.client("CA-RC")
        many = [frames.BundleQuery(f"C{i}", 0) for i in range(LIMITS.names_per_frame)]
        for number in range(60):
            asked = many if number == 0 else many[:2]
            answer = await lab.ask(frames.GetBundles, asked, [])
            assert len(answer.answers) == len(asked)
        refused = await lab.ask(frames.GetBundles, many[:1], [])
        assert codec_name(refused) == "throttled"
        assert refused.retryable
        assert (
            "more than 60 requests for keys and certificates in a minute; ask again in"
            in refused.message
        )
        csr = pki.make_csr(pki.new_key(), "FL-LAB")
        assert await lab.refused(frames.Renew, csr) == "throttled"  # of the same minute
        assert await lab.refused(frames.Register, b"") == "throttled"
        assert isinstance(await other.ask(frames.GetBundles, many[:1], []), frames.Bundles)
        # it lives
        assert isinstance(
            await lab.ask(frames.Status, "", bytes(16)), frames.StatusReport | frames.Error
        )


async def test_key_requests_are_a_setting(tmp_path: Path) -> None:
    directory = tmp_path / "hq"
    prepare(directory)
    file = directory / "cipherbox.toml"
    file.write_text(file.read_text().replace("[limits]", "[limits]\nkey_requests_per_minute = 2"))
    async with running(directory, clock_s=lambda: 0.0) as r:
        lab = await r.client("FL-LAB")
        answers = [await lab.ask(frames.GetBundles, [], []) for _ in range(3)]
        assert [type(a) for a in answers] == [frames.Bundles, frames.Bundles, frames.Error]
        assert "more than 2 requests" in answers[2].message


async def test_bundles_that_do_not_fit_into_one_answer(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, frame_bytes=12_000)) as r:
        lab = await r.client("FL-LAB")
        for name in ("CA-RC", "NY-RC", "SF-RC", "TX-RC"):
            person = await r.person(name)
            assert person.identity.bundle is not None
            await r.hq.directory.register(name, person.identity.bundle.raw)
        queries = [
            frames.BundleQuery(name, frames.NEWEST) for name in ("CA-RC", "NY-RC", "SF-RC", "TX-RC")
        ]
        found: dict[str, int] = {}
        for _ in queries:  # what is left out is asked for again; each answer brings one at least
            answer = await lab.ask(
                frames.GetBundles, [q for q in queries if q.client_id not in found], []
            )
            assert sum(len(raw) for a in answer.answers for raw in a.bundles) <= 6_000
            assert all(a.more == (not a.bundles) for a in answer.answers)
            found.update({a.client_id: len(a.bundles) for a in answer.answers if a.bundles})
        assert list(found) == ["CA-RC", "NY-RC", "SF-RC", "TX-RC"]
        hashes = [
            p.identity.bundle.hash for p in [await r.person(n) for n in found] if p.identity.bundle
        ]
        refused = await lab.ask(frames.GetBundles, [], hashes)
        assert codec_name(refused) == "invalid-request"
        assert "ask for fewer at once" in refused.message


async def test_a_long_chain_of_bundles_comes_in_pages(tmp_path: Path) -> None:
    most = LIMITS.bundles_per_answer
    async with running(tmp_path / "hq") as r:
        lab, person = await r.client("FL-LAB"), await r.person("CA-RC")
        bundle = person.identity.bundle
        assert bundle is not None
        for _ in range(most + 3):
            await r.hq.directory.register("CA-RC", bundle.raw)
            bundle = person.identity.make_bundle(
                person.key, person.chain, bundle.created_at, bundle
            )

        async def page(after: int) -> tuple[int, bool]:
            (answer,) = (
                await lab.ask(frames.GetBundles, [frames.BundleQuery("CA-RC", after)], [])
            ).answers
            return len(answer.bundles), answer.more

        assert [await page(n) for n in (frames.NEWEST, 0, 2, 3, most + 1, most + 3)] == [
            (1, False),
            (most, True),
            (most, True),
            (most, False),
            (2, False),
            (0, False),
        ]


async def test_what_hq_hands_out_is_checked(tmp_path: Path) -> None:
    """A row that was swapped for another one of its client, or is not certified, is not handed
    out.
    """
    async with running(tmp_path / "hq") as r:
        lab, person = await r.client("FL-LAB"), await r.person("CA-RC")
        first = person.identity.bundle
        assert first is not None
        second = person.identity.make_bundle(person.key, person.chain, first.created_at + 1, first)
        foreign = attrs.evolve(second, hash=bytes(32))
        directory = r.hq.directory
        for shown, sequence in ((second, 7), (foreign, 2)):
            nonce = bytes(12)
            sealed = directory._aead.encrypt(nonce, first.raw, b"CA-RC")
            row = BundleRow(
                "CA-RC", sequence, shown.hash, sealed[:-16], nonce, sealed[-16:], 1, shown.ends_at
            )
            await r.hq.engine.in_store(r.hq.store.put_bundle, row)
            refused = await lab.ask(
                frames.GetBundles, [frames.BundleQuery("CA-RC", sequence - 1)], []
            )
            assert codec_name(refused) == "damaged"
            assert f"key bundle {sequence} of CA-RC does not match its row" in refused.message
