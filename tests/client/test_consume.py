"""Deliveries against a scripted HQ: what cannot be opened, credit, what comes again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.client.receiving.delivery import ranges
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.envelope.layout import split
from cipherbox.envelope.outcomes import Outcome
from cipherbox.errors import EnvelopeError, Forbidden, MalformedEnvelope
from cipherbox.sealing.body import pack, text_message
from cipherbox.sealing.seal import seal
from cipherbox.wire import frames
from tests.client.parties import Authority, Party, now_ms
from tests.client.scripted import ScriptedHq, client_on, settle
from tests.client.waiting import until

IDS = EnvelopeIds(now_ms)


def sealed(
    sender: Party, recipient: Party, text: str = "hello", envelope_id: bytes | None = None
) -> bytes:
    plain = pack([text_message(text)])
    bundles = [recipient.bundle]
    return seal(
        sender.identity,
        bundles,
        plain,
        1,
        envelope_id=envelope_id or IDS.next(),
        sealed_at=now_ms(),
    ).raw


def changed(raw: bytes, at: int) -> bytes:
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


async def test_what_cannot_be_opened_is_refused_with_its_outcome(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.offer(lab)
    stranger = authority.party("SF-RC")
    good = sealed(lab, center, "good")
    layout = split(good)
    said: list[Any] = []
    bad = {
        1: b"no envelope",
        2: good[:-1],
        3: changed(good, layout.signatures_at + 5),
        4: changed(good, layout.body_at + 3),
        5: changed(good, layout.stanzas_at + 3),
        6: changed(good, 47),  # the generation, in the prefix
        7: sealed(lab, stranger),
    }
    outcomes = {
        1: Outcome.MALFORMED,
        2: Outcome.MALFORMED,
        3: Outcome.SIGNATURE_INVALID,
        4: Outcome.SIGNATURE_INVALID,
        5: Outcome.SIGNATURE_INVALID,
        6: Outcome.SIGNATURE_INVALID,
        7: Outcome.NOT_RECIPIENT,
    }
    async with (
        client_on(scripted, center, tmp_path, monkeypatch, said) as client,
        client.consume() as deliveries,
    ):
        for seq, raw in bad.items():
            await scripted.deliver((seq, 1, now_ms(), raw))
        await scripted.deliver((8, 1, now_ms(), good))
        with trio.fail_after(60):
            delivery = await deliveries.__anext__()
        assert delivery.messages[0].content == b"good"
        assert delivery.seq == 8
    assert {n.seq: n.outcome for n in scripted.nacked} == outcomes
    assert not any(n.requeue for n in scripted.nacked)
    assert all(n.reason for n in scripted.nacked)
    assert len([e for e in said if "becomes a dead letter" in e.text]) == 7
    assert not scripted.acked


async def test_what_may_open_later_goes_back_after_a_pause_that_grows(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    old = Party(authority, "CA-RC")  # a key this machine does not have
    raw = sealed(lab, old)
    async with (
        client_on(scripted, center, tmp_path, monkeypatch) as client,
        client.consume() as deliveries,
    ):
        times = []
        for attempt in (1, 3, 9):
            await scripted.deliver((5, attempt, now_ms(), raw))
            await scripted.deliver((6, attempt, now_ms(), sealed(lab, center)))
            await deliveries.__anext__()
            began = trio.current_time()
            before = len(scripted.nacked)
            await until(lambda count=before: len(scripted.nacked) > count, 100)
            times.append(trio.current_time() - began)
    assert [(n.seq, n.requeue, n.outcome) for n in scripted.nacked] == [
        (5, True, Outcome.KEY_MISSING)
    ] * 3
    assert times == pytest.approx([1, 4, 60], abs=0.2)


async def test_credit_comes_back_in_eighths_when_acknowledged(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.offer(lab)
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        async with client.consume(envelopes=40, size=1 << 20) as deliveries:
            consume = next(e for e in scripted.asked if isinstance(e, frames.Consume))
            assert (consume.queue, consume.envelopes, consume.size) == ("box.CA-RC", 40, 1 << 20)
            await scripted.deliver(
                *((n, 1, now_ms(), sealed(lab, center, str(n))) for n in range(1, 11))
            )
            found = [await deliveries.__anext__() for _ in range(10)]
            assert not scripted.credit  # taken is not acknowledged
            for delivery in found[:4]:
                await client.ack(delivery)
            await settle()
            assert not scripted.credit
            assert await client.ack(found[4:6]) == 2
            await settle()
            assert [envelopes for envelopes, _ in scripted.credit] == [6]  # 5 or more of 40
            assert scripted.credit[0][1] == sum(len(d.raw) for d in found[:6])
            await client.nack(found[6], requeue=True, outcome=9, reason="later")
    assert scripted.acked == [1, 2, 3, 4, 5, 6]
    cancel = [e for e in scripted.asked if isinstance(e, frames.Cancel)]
    assert [c.tag for c in cancel] == [consume.tag]


async def test_a_time_limit_loses_no_delivery(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, center, tmp_path, monkeypatch, tries=1, timeout_s=30) as client:
        async with client.consume() as deliveries:
            original = scripted.script

            async def slow(session: Any, event: Any) -> None:
                if isinstance(event, frames.GetBundles):
                    await released.wait()
                await original(session, event)

            released = trio.Event()
            scripted.script = slow
            await scripted.deliver((1, 1, now_ms(), sealed(lab, center)))
            with trio.move_on_after(0.1) as scope:  # the sender's keys are still being fetched
                await deliveries.__anext__()
            assert scope.cancelled_caught
            scripted.offer(lab)
            released.set()
            with trio.fail_after(60):
                assert (await deliveries.__anext__()).seq == 1


async def test_unopened_deliveries_are_opened_by_hand(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.offer(lab)
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        async with client.consume_unopened("some_queue") as consumer:
            raw = sealed(lab, center)
            await scripted.deliver((1, 2, 5, raw), (2, 1, 5, b"junk"))
            first, second = await consumer.batch()
            assert not first.opened
            assert (first.sender_id, first.count, first.attempt) == ("FL-LAB", 1, 2)
            assert first.envelope_id == split(raw).prefix.envelope_id
            with pytest.raises(EnvelopeError, match="not opened yet"):
                _ = first.messages
            with pytest.raises(EnvelopeError, match="were not valid"):  # HQ claims 1970
                await client.open(first)
            with pytest.raises(MalformedEnvelope):
                _ = second.sender_id
            with pytest.raises(MalformedEnvelope):
                await client.open(second)
    assert not scripted.nacked


async def test_a_receiver_refuses_what_is_tampered_and_keeps_what_is_good(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.offer(lab)
    recorded: list[bytes] = []
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        receiver = Receiver(client, on_lines=recorded.extend)
        good = sealed(lab, center, "good")
        async with trio.open_nursery() as nursery:
            await nursery.start(
                lambda task_status: receiver.run(["box.CA-RC"], task_status=task_status)
            )
            await scripted.deliver(
                (1, 1, now_ms(), changed(good, -1 % len(good))),
                (2, 1, now_ms(), good),
                (3, 1, now_ms(), good),
                (4, 1, now_ms(), b"junk"),
                (5, 1, now_ms(), sealed(lab, center, "too old", EnvelopeIds(lambda: 5).next())),
            )
            await until(lambda: len(scripted.acked) == 3)
            assert receiver.loop is not None
            receiver.loop.recorder.inbox.forget(1000)
            await scripted.deliver(
                (6, 1, now_ms(), sealed(lab, center, "too old", EnvelopeIds(lambda: 6).next()))
            )
            await until(lambda: len(scripted.nacked) == 3)
            nursery.cancel_scope.cancel()
    assert (receiver.received, receiver.duplicates, receiver.refused) == (2, 1, 3)
    assert sorted(scripted.acked) == [2, 3, 5]
    assert {n.seq: n.outcome for n in scripted.nacked} == {
        1: Outcome.SIGNATURE_INVALID,
        4: Outcome.MALFORMED,
        6: Outcome.TOO_OLD,
    }
    assert b"".join(recorded) == (tmp_path / "data" / "received_messages.jsonl").read_bytes()


async def test_a_receiver_stops_at_its_count(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.offer(lab)
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        receiver = Receiver(client)
        async with trio.open_nursery() as nursery:

            async def run(task_status: Any) -> None:
                assert await receiver.run(["box.CA-RC"], count=3, task_status=task_status) == 3

            await nursery.start(run)
            with trio.fail_after(60):
                await scripted.deliver(
                    *((n, 1, now_ms(), sealed(lab, center, str(n))) for n in range(1, 8))
                )
    assert scripted.acked == [1, 2, 3]


async def test_an_admins_home_opens_nothing(
    scripted: ScriptedHq, lab: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        object.__setattr__(client.home, "identity", None)
        with pytest.raises(Forbidden, match="no keys that seal or open"):
            async with client.consume():
                pass
        with pytest.raises(Forbidden):
            await Receiver(client).run()
        with pytest.raises(Forbidden):
            await client.register()


def test_numbers_become_ranges() -> None:
    assert ranges([5, 1, 2, 3, 9, 8, 3]) == [
        frames.Range(1, 3),
        frames.Range(5, 1),
        frames.Range(8, 2),
    ]
    assert ranges([]) == []
