"""Receipts over a real HQ: what short commands must not spoil, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.group import TYPE, Unsigned
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import USE, Leaf
from cipherbox.sealing.body import Message
from tests import soak
from tests.client.real_hq import RealHq


@pytest.fixture
async def hq(hq: RealHq) -> RealHq:
    await hq.join("SF-RC")
    return hq


@soak.more
async def test_many_short_commands_take_receipts_in_and_spoil_none(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        for number in range(25 if soak.ON else 8):
            async with hq.client("FL-LAB") as lab:
                confirmation = await lab.publish(f"message {number}", to="CA-RC")
            with trio.fail_after(20):
                await Receiver(center).run(count=1)
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(20):
            assert await lab.wait_for([confirmation.envelope_id], "opened", 10)
        await lab.receipts.settle()
        assert lab.outbox_sender.outbox.unsigned(100) == []
    async with hq.admin() as admin:
        assert await admin.dead_letters() == []


async def test_a_receipt_from_somebody_else_changes_nothing(hq: Any) -> None:
    said: list[Any] = []
    async with hq.client("FL-LAB", on_event=said.append) as lab, hq.client("SF-RC") as stranger:
        confirmation = await lab.publish("for CA-RC", to="CA-RC")
        row = await lab.sent(confirmation.message_ids[0])
        identity = stranger.home.identity
        leaf = Leaf("FL-LAB", row.envelope_id, 0, row.envelope_hash, 1, Outcome.OPENED)
        for name in ("SF-RC", "CA-RC"):  # as itself, and as if it were the recipient
            unsigned = Unsigned.over(
                name, confirmation.accepted_at, identity.bundle.hash, identity.suite, [leaf]
            )
            group = unsigned.group(identity.sign(USE, unsigned.digest), "FL-LAB")
            await stranger.publish(
                [Message(group, TYPE), Message(group[:-1], TYPE)], to="FL-LAB", box="sys"
            )
        with trio.fail_after(20):
            while sum("does not hold" in line for line in said) < 3:
                await trio.sleep(0.01)
        await lab.receipts.settle()
        assert (await lab.sent(confirmation.message_ids[0])).owed == 1
        assert (await lab.timeline(confirmation.message_ids[0])).open_for == ("CA-RC",)
