"""What a client has at HQ: shown, bounded, refused with the number, and never slower for how
much there ever was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest

from cipherbox import clock, pki
from cipherbox.config.settings import ClockSettings
from cipherbox.limits import LIMITS
from cipherbox.server.clock_guard import ClockGuard, Recorded
from cipherbox.server.directory.trust import Trust
from cipherbox.store.port import CertificateRow
from cipherbox.wire import frames
from tests.server.hq import Raw, Running, codec_name, running

AS_SET = (1 << 64) - 1


async def rows(raw: Raw, what: str, name: str = "") -> list[dict[str, Any]]:
    answer = await raw.ask(frames.List, what, name, "")
    assert isinstance(answer, frames.Listing), answer
    found: list[dict[str, Any]] = orjson.loads(answer.rows)
    return found


async def admin(r: Running) -> Raw:
    return await r.dial(await r.person("BOSS", role="admin"))


async def test_totals_are_listed_for_admins_and_for_nobody_else(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, lab = await admin(r), await r.client("FL-LAB")
        await r.person("CA-RC")
        for _ in range(3):
            await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
        bundle = r.people["FL-LAB"].identity.bundle
        assert bundle is not None
        await lab.ask(frames.Register, bundle.raw)
        (row,) = await rows(boss, "totals", "FL-LAB")
        assert (
            row["envelopes"],
            row["queues"],
            row["bundles"],
            row["certificates"],
            row["prekeys"],
        ) == (3, 0, 1, 1, 0)
        assert row["bytes"] > 1000
        assert row["bytes_most"] == LIMITS.bytes_per_client
        (client,) = await rows(boss, "clients", "FL-LAB")
        assert (client["bytes"], client["envelopes"], client["queues"]) == (row["bytes"], 3, 0)
        assert {r["name"] for r in await rows(boss, "totals")} >= {"BOSS", "CA-RC", "FL-LAB"}
        assert await lab.refused(frames.List, "totals", "", "") == "forbidden"
        assert list((await rows(lab, "clients", "CA-RC"))[0]) == ["name"]


async def test_a_limit_of_one_client_counts_at_once_and_after_a_restart(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        boss, lab = await admin(r), await r.client("FL-LAB")
        await r.person("CA-RC")
        raw = r.people["FL-LAB"].seal(r.people["CA-RC"]).raw
        assert isinstance(
            await boss.ask(frames.LimitClient, "FL-LAB", "bytes", len(raw)), frames.Ok
        )
        assert isinstance(await lab.publish(raw), frames.Confirm)
        refused = await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)
        assert codec_name(refused) == "quota-exceeded"
        assert f"FL-LAB has {len(raw)} bytes at HQ" in refused.message
        person = r.people["FL-LAB"]
    async with running(tmp_path / "hq") as r:
        r.people["FL-LAB"] = person
        boss, lab = await admin(r), await r.client("FL-LAB")
        await r.person("CA-RC")
        assert codec_name(await lab.publish(person.seal(r.people["CA-RC"]).raw)) == "quota-exceeded"
        assert (await rows(boss, "totals", "FL-LAB"))[0]["bytes_most"] == len(raw)
        await boss.ask(frames.LimitClient, "FL-LAB", "bytes", AS_SET)
        assert isinstance(await lab.publish(person.seal(r.people["CA-RC"]).raw), frames.Confirm)
        await lab.send(frames.LimitClient(99, "FL-LAB", "bytes", 1))  # an admin's frame
        assert codec_name(await lab.next()) == "unexpected-frame"


async def test_key_bundles_of_one_client_are_bounded(tmp_path: Path) -> None:
    async with running(tmp_path / "hq", limits=attrs.evolve(LIMITS, bundles_per_client=2)) as r:
        lab, person = await r.client("FL-LAB"), await r.person("FL-LAB")
        first = person.identity.bundle
        assert first is not None
        bundles = [first]
        for n in range(2):
            bundles.append(
                person.identity.make_bundle(
                    person.key, person.chain, first.created_at + 1 + n, bundles[-1]
                )
            )
        said = [await lab.ask(frames.Register, bundle.raw) for bundle in bundles]
        assert [type(a) for a in said] == [frames.Ok, frames.Ok, frames.Error]
        assert codec_name(said[2]) == "limit-reached"
        assert "FL-LAB has 2 key bundles, of at most 2" in said[2].message
        boss = await admin(r)
        await boss.ask(frames.LimitClient, "FL-LAB", "bundles", 3)
        assert isinstance(await lab.ask(frames.Register, bundles[2].raw), frames.Ok)


async def test_certificates_of_one_client_are_bounded(tmp_path: Path) -> None:
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, certificates_per_client=3)
    ) as r:
        lab = await r.client("FL-LAB")
        said = [
            await lab.ask(frames.Renew, pki.make_csr(pki.new_key(), "FL-LAB")) for _ in range(3)
        ]
        assert [type(a) for a in said] == [frames.Certificate, frames.Certificate, frames.Error]
        assert codec_name(said[2]) == "limit-reached"
        assert "FL-LAB has 3 valid certificates, of at most 3" in said[2].message
        assert isinstance(await lab.ask(frames.Resolve, "", "box.FL-LAB"), frames.Route)


async def test_renewals_that_wait_for_an_offline_ca_are_bounded(tmp_path: Path) -> None:
    async with running(
        tmp_path / "hq", limits=attrs.evolve(LIMITS, certificates_per_client=2)
    ) as r:
        lab = await r.client("FL-LAB")
        r.hq.trust.authority = None
        csr = pki.make_csr(pki.new_key(), "FL-LAB")
        assert (await lab.ask(frames.Renew, csr)).state == 2
        assert (await lab.ask(frames.Renew, csr)).state == 2  # the same again
        await r.hq.engine.in_store(r.hq.store.revoke_certificates, "OTHER", 1)
        assert (await lab.ask(frames.Renew, pki.make_csr(pki.new_key(), "FL-LAB"))).state == 2
        assert (
            await lab.refused(frames.Renew, pki.make_csr(pki.new_key(), "FL-LAB"))
            == "limit-reached"
        )


class Unwalked(dict[str, CertificateRow]):
    """A table that nobody may walk through."""

    def values(self) -> Any:
        raise AssertionError("this walks through all certificates there ever were")

    items = __iter__ = values  # type: ignore[assignment]


async def test_a_key_request_costs_the_same_however_many_certificates_there_were(
    tmp_path: Path,
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, trust = await r.client("FL-LAB"), r.hq.trust
        for n in range(300):
            trust.put(CertificateRow(f"{n:x}", "MANY", n, n + 1, 0, b""))
        trust._rows = Unwalked(trust._rows)
        assert trust.revoked_at("MANY") == 0
        assert trust._of["MANY"] == {}  # those that ended were looked at once
        queries = [frames.BundleQuery("MANY", 0) for _ in range(LIMITS.names_per_frame)]
        answer = await lab.ask(frames.GetBundles, queries, [])
        assert len(answer.answers) == LIMITS.names_per_frame


@pytest.mark.parametrize("order", [1, -1])
def test_the_newest_certificate_says_whether_a_client_is_revoked(order: int) -> None:
    """As a walk through all of them would say: a good one of the same moment counts more than a
    revoked one.
    """

    def walked(trust: Trust, client: str) -> int:
        found = [r for r in trust._rows.values() if r.client == client]
        if any(not r.revoked_at and r.expires_at > pki.ms(clock.now()) for r in found):
            return 0
        newest = max(
            found, key=lambda r: (r.issued_at, not r.revoked_at, r.revoked_at), default=None
        )
        return newest.revoked_at if newest is not None else 0

    trust = Trust.__new__(Trust)
    trust.clock = ClockGuard(ClockSettings, Recorded(None, 0), clock.now_ms, clock.elapsed_s, "")
    trust._rows, trust._of, trust._newest = {}, {}, {}
    made = [
        CertificateRow("a", "C", 1, 1 << 60, 0, b""),
        CertificateRow("b", "C", 2, 1 << 60, 0, b""),
        CertificateRow("c", "C", 2, 1 << 60, 5, b""),
        CertificateRow("d", "D", 3, 1 << 60, 0, b""),
        CertificateRow("e", "D", 2, 1 << 60, 0, b""),
    ]
    for row in made[::order]:
        trust.put(row)
        assert trust.revoked_at("C") == walked(trust, "C")
    for serial, at in (("b", 7), ("c", 0), ("c", 8), ("a", 9), ("d", 4), ("e", 5)):
        trust.put_revoked([trust._rows[serial]._replace(revoked_at=at)])
        for client in ("C", "D", "NOBODY"):
            assert trust.revoked_at(client) == walked(trust, client)
