"""Counted bounds of a running HQ."""

from __future__ import annotations

from pathlib import Path

import attrs

from cipherbox import pki
from cipherbox.limits import LIMITS
from cipherbox.wire import frames
from cipherbox.wire.token import decode_token
from tests.server.hq import codec_name, running


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
        other = await nobody.ask(frames.RequestCertificate, "C0", token.secret, pki.make_csr(pki.new_key(), "C0"))
        assert codec_name(other) == "enrolment-refused"
        late = await r.dial()
        assert codec_name(await late.ask(frames.RequestCertificate, "C0", token.secret, csr)) == "throttled"


async def test_lists_of_one_request(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab = await r.client("FL-LAB")
        ranges = [frames.Range(i, 1) for i in range(LIMITS.ranges_per_frame + 1)]
        assert isinstance(await lab.ask(frames.Ack, "box.FL-LAB", ranges[:-1]), frames.AckConfirmed)
        assert await lab.refused(frames.Ack, "box.FL-LAB", ranges) == "invalid-request"
        assert await lab.refused(frames.Ack, "box.FL-LAB", [frames.Range(1, 0xFFFFFFFF)]) == "invalid-request"
        queries = [frames.BundleQuery(f"C{i}", 0) for i in range(LIMITS.names_per_frame + 1)]
        assert await lab.refused(frames.GetBundles, queries, []) == "invalid-request"
        assert await lab.refused(frames.Register, bytes(LIMITS.bundle_bytes + 1)) == "bundle-refused"


async def test_connections_in_all(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, connections=2)) as r:
        await r.client("FL-LAB")
        await r.client("CA-RC")
        third = await r.dial(await r.person("NY-RC"), hello=False)
        await third.stream.send_all(third.wire.send(frames.Hello(frames.MAGIC, 1, 1, 1 << 20, 30, "")))
        assert codec_name(await third.next()) == "too-many-connections"
