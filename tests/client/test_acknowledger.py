"""What is recorded is acknowledged once a second, or sooner; never before, and never not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from cipherbox.client.client import Client
from cipherbox.client.outbox.tracking import ACKNOWLEDGED, DELIVERED
from cipherbox.client.receiving import acknowledger
from cipherbox.client.receiving.receiver import Receiver
from tests.client.waiting import until


@pytest.fixture(autouse=True)
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acknowledger, "EVERY_S", 3600.0)


class Sent:
    """Messages of a lab to CA-RC, and what became of them at HQ."""

    def __init__(self, lab: Client) -> None:
        self._lab = lab
        self._ids: list[Any] = []

    async def one(self, text: str = "x") -> None:
        self._ids += (await self._lab.publish(text, to="CA-RC")).message_ids

    async def states(self) -> list[int]:
        reports = [await self._lab.status(one) for one in self._ids]
        return [trace.state for report in reports for trace in report.traces]

    async def become(self, *states: int) -> None:
        with trio.fail_after(60):
            while await self.states() != [*states]:
                await trio.sleep(0.01)


@asynccontextmanager
async def one_acknowledged_and_two_due(
    lab: Client, receiver: Receiver
) -> AsyncIterator[tuple[Sent, trio.CancelScope]]:
    async with trio.open_nursery() as nursery:
        await nursery.start(receiver.run)
        sent = Sent(lab)
        await sent.one()
        await sent.become(ACKNOWLEDGED)
        await sent.one()
        await sent.one()
        await until(lambda: receiver.received == 3)
        assert await sent.states() == [ACKNOWLEDGED, DELIVERED, DELIVERED]
        yield sent, nursery.cancel_scope
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("name", "most"), [("MOST", 3), ("MOST_BYTES", 6000)])
async def test_the_first_ack_and_a_full_one_wait_for_nothing(
    hq: Any, monkeypatch: pytest.MonkeyPatch, name: str, most: int
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with one_acknowledged_and_two_due(lab, Receiver(center)) as (sent, _):
            monkeypatch.setattr(acknowledger, name, most)
            await sent.one("x" * 4000)
            await sent.become(*[ACKNOWLEDGED] * 4)


@pytest.mark.parametrize("due", [1, 4])
async def test_an_ack_for_a_part_of_the_credit_waits_for_nothing(
    hq: Any, monkeypatch: pytest.MonkeyPatch, due: int
) -> None:
    """HQ would stop delivering once the credit is used up, until the next ACK."""
    monkeypatch.setattr("cipherbox.client.receiving.receiver.CREDIT_BYTES", due * 40_000)
    monkeypatch.setattr("cipherbox.client.receiving.receiver.LEAST_BYTES", 20_000)
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        receiver = Receiver(center)
        async with one_acknowledged_and_two_due(lab, receiver) as (sent, _):
            await sent.one("x" * 10_000)
            if due == 1:  # of a queue's share of 20,000
                await sent.become(*[ACKNOWLEDGED] * 4)
            else:
                await until(lambda: receiver.received == 4)
                assert await sent.states() == [ACKNOWLEDGED, DELIVERED, DELIVERED, DELIVERED]


async def test_what_is_due_is_acknowledged_before_a_receiver_ends(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with one_acknowledged_and_two_due(lab, Receiver(center)) as (sent, scope):
            scope.cancel()
        assert await sent.states() == [ACKNOWLEDGED] * 3
        # one that ends without being cancelled
        await sent.one()
        await sent.one()
        assert await Receiver(center).run(count=2) == 2
        assert await sent.states() == [ACKNOWLEDGED] * 5


async def test_after_a_cut_what_was_due_is_delivered_again_and_recognised(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        receiver = Receiver(center)
        async with one_acknowledged_and_two_due(lab, receiver) as (sent, scope):
            await hq.gate.cut()
            await until(lambda: receiver.duplicates == 2)
            scope.cancel()
        assert receiver.received == 3
        assert await sent.states() == [ACKNOWLEDGED] * 3


async def test_an_end_without_hq_delays_nothing(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        async with one_acknowledged_and_two_due(lab, Receiver(center)) as (_, scope):
            await hq.stop()
            await until(lambda: center.connection.current is None)
            began = trio.current_time()
            scope.cancel()
        assert trio.current_time() - began < acknowledger.END_S
