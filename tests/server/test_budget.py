"""Every kind of request has a cost, and every client a budget of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import trio

from cipherbox.limits import LIMITS
from cipherbox.server.connection.budget import COSTS, FLOW, REQUESTS, Budgets, Rate
from cipherbox.wire import frames
from cipherbox.wire.connection import SendBatch
from cipherbox.wire.fields import TABLE
from tests.server.hq import codec_name, running


def test_every_frame_that_a_client_may_send_has_a_cost() -> None:
    sent = {spec.cls for spec in TABLE.values() if spec.sender != "server"}
    assert sent == set(COSTS)
    assert all(cost.why and (cost.points or kind is frames.Hello) for kind, cost in COSTS.items())


async def test_declaring_and_deleting_queues_has_a_budget_and_others_keep_theirs(
    tmp_path: Path,
) -> None:
    limits = attrs.evolve(LIMITS, requests_per_minute=10 * COSTS[frames.DeclareQueue].points)
    async with running(tmp_path / "hq", limits=limits) as r:
        evil, lab = await r.client("EVIL"), await r.client("FL-LAB")
        said: list[Any] = []
        for _ in range(6):
            said.append(await evil.ask(frames.DeclareQueue, "q", "", []))
            said.append(await evil.ask(frames.DeleteQueue, "q"))
        refused = [a for a in said if isinstance(a, frames.Error)]
        assert {codec_name(a) for a in refused} == {"throttled"}
        assert 1 <= len(refused) <= 2
        assert "ask again in" in refused[0].message
        other = await r.client("EVIL")  # another connection has the same budget
        assert await other.refused(frames.DeclareQueue, "q", "", []) == "throttled"
        assert isinstance(await lab.ask(frames.DeclareQueue, "mine", "", []), frames.Ok)
        assert isinstance(
            await evil.publish(r.people["EVIL"].seal(r.people["FL-LAB"]).raw), frames.Confirm
        )
        assert r.hq.budgets.throttled >= 2


async def test_an_admin_sets_up_what_a_client_may_not(tmp_path: Path) -> None:
    limits = attrs.evolve(LIMITS, requests_per_minute=COSTS[frames.DeclareQueue].points)
    async with running(tmp_path / "hq", limits=limits) as r:
        boss = await r.dial(await r.person("BOSS", role="admin"))
        said = [await boss.ask(frames.DeclareExchange, f"e{n}", 0) for n in range(15)]
        assert {type(a) for a in said} == {frames.Ok}


class Somebody:
    client, role, address = "FL-LAB", "client", "192.0.2.1"


async def test_the_flow_waits_and_is_never_refused(autojump_clock: Any) -> None:
    budgets = Budgets(attrs.evolve(LIMITS, flow_per_minute=600), trio.current_time)
    who: Any = Somebody()
    began = trio.current_time()
    for _ in range(60):
        assert await budgets.charge(who, SendBatch([(1, 0, 0, b"")] * 20)) is None
    # 1,200 points at 600 a minute, of which the first 600 were there
    assert 55 < trio.current_time() - began <= 61
    ranges = [frames.Range(1, 256 * 100)]
    before = trio.current_time()
    await budgets.charge(who, frames.Ack(1, "q", ranges))
    assert 9 < trio.current_time() - before < 11
    who = Somebody()
    who.client = ""  # without a certificate: its address's
    before = trio.current_time()
    await budgets.charge(who, frames.Ping(1))
    assert trio.current_time() == before


def test_the_budgets_are_what_the_manual_says() -> None:
    assert {cost.budget for cost in COSTS.values()} == {
        FLOW,
        REQUESTS,
        "keys",
        "prekeys",
        "enrolment",
        "connections",
    }


def test_a_rate_forgets_who_came_long_ago(monkeypatch: Any) -> None:
    from cipherbox.server.connection import budget

    monkeypatch.setattr(budget, "NAMES", 10)
    now = 0.0
    rate = Rate(60, "requests", lambda: now)
    rate.spend("EVIL", 60)
    for n in range(50):  # many names within the minute: the newest are kept, and so is who spends
        now += 0.1
        rate.spend(f"C{n}")
    assert len(rate._spent) <= 11
    now = 200.0
    rate.spend("D")
    for n in range(9):
        rate.spend(f"E{n}")
    assert "C49" not in rate._spent
    assert {"D", "E8"} <= set(rate._spent)


async def test_proofs_cost_by_what_they_are_of(tmp_path: Path) -> None:
    """5,000 points would otherwise keep the store busy for minutes: an entry is read whole for
    each envelope.
    """
    limits = attrs.evolve(LIMITS, requests_per_minute=1_000)
    # all of it in one minute, however busy the machine is
    async with running(tmp_path / "hq", limits=limits, clock_s=lambda: 0.0) as r:
        evil, lab = await r.client("EVIL"), await r.client("FL-LAB")
        names = [frames.EnvelopeName("EVIL", n.to_bytes(16, "big")) for n in range(180)]
        assert isinstance(await evil.ask(frames.Prove, names, [], False), frames.Proven)
        assert await evil.refused(frames.Prove, names, [], False) == "throttled"
        assert isinstance(await lab.ask(frames.Prove, names[:1], [], False), frames.Proven)
        said = [await lab.ask(frames.GetHeads, list(range(1, 257))) for _ in range(40)]
        refused = [one for one in said if isinstance(one, frames.Error)]
        assert {codec_name(one) for one in refused} == {"throttled"}
        assert isinstance(said[0], frames.Heads)
