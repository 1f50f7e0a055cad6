"""Receipts over a real HQ: what short commands must not spoil, and what is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from cipherbox.cli.main import cli
from cipherbox.client.client import Client
from cipherbox.client.receiving import pending_receipts
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.group import TYPE, Unsigned
from cipherbox.envelope.layout import split
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import USE, Leaf
from cipherbox.sealing.body import Message
from tests import soak
from tests.client.real_hq import RealHq
from tests.client.waiting import until


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
            with trio.fail_after(60):
                await Receiver(center).run(count=1)
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(60):
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
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
        with trio.fail_after(60):
            while sum("does not hold" in line for line in said) < 3:
                await trio.sleep(0.01)
        await lab.receipts.settle()
        assert (await lab.sent(confirmation.message_ids[0])).owed == 1
        assert (await lab.timeline(confirmation.message_ids[0])).open_for == ("CA-RC",)


# -- once a second, or immediately -----------------------------------------------------------------


def count(lab: Client, rows: str) -> int:
    assert lab.outbox_sender is not None
    db, _ = lab.outbox_sender.outbox.database
    return int(db.execute(f"SELECT count(*) FROM {rows}").fetchone()[0])


def unsigned(lab: Client) -> int:
    """Return the number of the lab's envelopes that nobody has signed for."""
    return count(lab, "envelopes WHERE owed > 0")


def signatures(lab: Client) -> int:
    return count(lab, "receipts")


@asynccontextmanager
async def one_signed_and_three_pending(
    lab: Client, center: Client, receiver: Receiver, *, handled: bool = False
) -> AsyncIterator[trio.CancelScope]:
    """Receive and sign for a first message, then for no other one for as long as a test lasts."""
    async with trio.open_nursery() as nursery:
        if handled:
            nursery.start_soon(center.process, lambda _handled, _tx: None)
        else:
            await nursery.start(receiver.run)
        await lab.publish("signed for alone", to="CA-RC")
        await until(lambda: signatures(lab) == 1)
        for number in range(3):
            await lab.publish(f"pending {number}", to="CA-RC")
        if not handled:
            await until(lambda: receiver.received == 4)
        assert unsigned(lab) == 3
        yield nursery.cancel_scope
        nursery.cancel_scope.cancel()


@pytest.fixture
def seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending_receipts, "EVERY_S", 3600.0)


@pytest.mark.usefixtures("seldom")
@pytest.mark.parametrize("handled", [False, True])
async def test_one_signature_covers_all_that_wait_as_soon_as_a_sender_waits(
    hq: Any, handled: bool
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            receiver = Receiver(center)
            async with one_signed_and_three_pending(lab, center, receiver, handled=handled):
                sent = await lab.publish("wanted", to="CA-RC", prompt_receipt=True)
                assert await lab.wait_for([sent.envelope_id], "opened", 60)
                await until(lambda: not unsigned(lab))
            # with a handler one for what was pending as it arrived, one when it was handled
            assert signatures(lab) <= 2 + handled


@pytest.mark.usefixtures("seldom")
async def test_a_full_group_waits_for_nothing(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            for number in range(5):
                await lab.publish(f"message {number}", to="CA-RC")
            monkeypatch.setattr(pending_receipts, "MOST_LEAVES", 2)
            async with trio.open_nursery() as nursery:
                await nursery.start(Receiver(center).run)
                await until(lambda: not unsigned(lab))
                nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("seldom")
async def test_what_is_pending_is_sent_before_a_receiver_ends(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            async with one_signed_and_three_pending(lab, center, Receiver(center)) as scope:
                scope.cancel()
            await until(lambda: not unsigned(lab))
            # one that ends without being cancelled
            for number in range(3):
                await lab.publish(f"message {number}", to="CA-RC")
                await Receiver(center).run(count=1)
            await until(lambda: not unsigned(lab))


async def nothing(_: object) -> None:
    """What a killed process does before it ends."""


@pytest.mark.usefixtures("seldom")
async def test_what_a_crash_left_pending_is_sent_after_the_start(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            with monkeypatch.context() as crash:
                crash.setattr(pending_receipts.PendingReceipts, "_finish", nothing)
                async with one_signed_and_three_pending(lab, center, Receiver(center)):
                    pass
            assert unsigned(lab) == 3
            async with trio.open_nursery() as nursery:
                await nursery.start(Receiver(center).run)
                await until(lambda: not unsigned(lab))
                nursery.cancel_scope.cancel()
        assert signatures(lab) == 2


@pytest.mark.usefixtures("seldom")
async def test_an_end_without_hq_delays_nothing(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with trio.fail_after(60):
            async with one_signed_and_three_pending(lab, center, Receiver(center)) as scope:
                await hq.gate.cut()
                await until(lambda: center.connection.current is None)
                began = trio.current_time()
                scope.cancel()
            assert trio.current_time() - began < pending_receipts.END_S


async def test_an_envelope_that_is_sealed_again_still_asks_for_its_receipt(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        for prompt in (False, True):
            sent = await lab.publish("x", to="CA-RC", prompt_receipt=prompt)
            row = await lab.sent(sent.message_ids[0])
            raw = lab.outbox_sender.outbox.bytes_of(row)
            again = await lab.sealer.seal_again(row, raw)
            flags = [split(one).prefix.prompt_receipt for one in (raw, again.raw)]
            assert flags == [prompt, prompt]


async def test_send_asks_for_its_receipt_when_it_waits_until_the_message_was_opened(
    hq: Any,
) -> None:
    words = ["--home", str(hq.home("FL-LAB")), "send", "--to", "CA-RC", "--within", "1s", "--wait"]
    for until_it_is in ("confirmed", "opened"):
        await trio.to_thread.run_sync(CliRunner().invoke, cli, [*words, until_it_is, "hello"])
    async with hq.client("FL-LAB") as lab:
        outbox = lab.outbox_sender.outbox
        raws = [outbox.bytes_of(row) for row in outbox.rows(range(4))]
        assert [split(raw).prefix.prompt_receipt for raw in raws] == [False, True]


async def test_receipts_wait_for_keys_that_are_damaged_here(hq: Any) -> None:
    said: list[Any] = []
    async with hq.client("FL-LAB") as lab:
        await lab.publish("one", to="CA-RC")
        async with hq.client("CA-RC") as center:
            assert await Receiver(center).run(count=1) == 1  # pins the lab's keys
            pin = center.directory.pins.get("FL-LAB").bundle
            path = center.home.path / "certs" / "FL-LAB.bundle"
        await lab.receipts.settle()
        whole = path.read_bytes()
        at = whole.index(pin.encrypt_keys[0].public)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        sent = await lab.publish("two", to="CA-RC")
        async with hq.client("CA-RC", on_event=said.append) as center:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(Receiver(center).run, count=1))
                with trio.fail_after(60):
                    await until(lambda: any("Receipts for FL-LAB wait" in one for one in said))
                await trio.sleep(1.0)  # it is tried again after 0.1 and 0.2 s
                nursery.cancel_scope.cancel()
        assert sum("Receipts for FL-LAB wait" in one for one in said) == 1
        path.write_bytes(whole)
        async with hq.client("CA-RC") as center:
            await Receiver(center).drain()
        with trio.fail_after(60):
            assert await lab.wait_for([sent.envelope_id], "opened", 60)
