"""The publisher: batches by itself, waits under backpressure, loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cipherbox.client.outbox import sender
from cipherbox.envelope.layout import split
from cipherbox.errors import (
    Busy,
    Forbidden,
    TimedOut,
    TooLarge,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message
from cipherbox.wire import frames
from tests.client.parties import Authority, Party
from tests.client.scripted import ScriptedHq, client_on, opened, settle


async def test_one_message_goes_at_once_and_a_busy_publisher_batches(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.confirm_at_once = False
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            assert publisher.put(b"first")
            await settle()
            assert scripted.counts() == [1]
            assert publisher.put(b"second")
            await settle()
            assert scripted.counts() == [1, 1]
            for n in range(100):  # two are out: these gather
                assert publisher.put(bytes([n]))
            await settle()
            assert scripted.counts() == [1, 1]
            assert publisher.unconfirmed == 102
            await scripted.release(1)
            await settle()
            assert scripted.counts() == [1, 1, 100]
            assert publisher.put(b"last")
            await scripted.release()
            await settle()
            assert scripted.counts() == [1, 1, 100, 1]
            await scripted.release()
            await publisher.flush()
            assert (publisher.confirmed, publisher.unconfirmed, publisher.envelopes) == (103, 0, 4)
    found = [m.content for raw in scripted.envelopes for m in opened(raw, lab, center)]
    assert found == [b"first", b"second", *(bytes([n]) for n in range(100)), b"last"]


async def test_full_batches_go_at_once_by_count_and_by_bytes(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.confirm_at_once = False
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            for n in range(2 + 2 * LIMITS.batch_messages + 5):
                publisher.put(b"%d" % n)
            await settle()
            assert scripted.counts() == [1, 1, LIMITS.batch_messages, LIMITS.batch_messages]
            for _ in range(4):
                publisher.put(bytes(LIMITS.batch_bytes // 2))
            await settle()
            assert scripted.counts()[4:] == [7, 2]
            await scripted.release()
            await settle()
            await scripted.release()
            await publisher.flush()
    total = sum(scripted.counts())
    assert total == 2 + 2 * LIMITS.batch_messages + 9


async def test_kinds_of_messages_mix_in_a_batch(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.confirm_at_once = False
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            publisher.put("1")
            publisher.put("2")
            publisher.put("three")
            publisher.put(b"four")
            publisher.put(Message(b"five", "text/csv", {"a": "b"}))
            publisher.put("six")
            await settle()
            await scripted.release()
            await settle()
            await scripted.release()
    mixed = opened(scripted.envelopes[2], lab, center)
    assert [(m.content, m.content_type.split(";")[0], m.headers) for m in mixed] == [
        (b"three", "text/plain", {}),
        (b"four", "application/octet-stream", {}),
        (b"five", "text/csv", {"a": "b"}),
        (b"six", "text/plain", {}),
    ]


async def test_a_publisher_without_room_waits_and_loses_nothing(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.confirm_at_once = False
    scripted.window = 3
    monkeypatch.setattr(
        "cipherbox.client.publishing.publisher.LIMITS",
        type(
            "Small",
            (),
            {
                "batch_messages": 10,
                "batch_bytes": 1 << 20,
                "open_batches": 2,
                "recipients": 256,
            },
        )(),
    )
    taken = 0
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            while publisher.put(b"%d" % taken):
                taken += 1
            taken += 1
            # three envelopes in the window, one full batch behind them
            assert taken == 1 + 1 + 10 + 10
            with pytest.raises(Busy, match="await room"):
                publisher.put(b"too many")
            waited = False

            async def wait() -> None:
                nonlocal waited
                await publisher.room()
                waited = True

            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await settle()
                assert not waited
                await scripted.release(1)
            assert waited
            scripted.confirm_at_once = True
            await scripted.release()
            for _ in range(50):
                await publisher.send(b"%d" % taken)
                taken += 1
    found = [m.content for raw in scripted.envelopes for m in opened(raw, lab, center)]
    assert found == [b"%d" % n for n in range(taken)]


@pytest.mark.parametrize(("name", "most"), [("AHEAD", 4), ("AHEAD_BYTES", 5000)])
async def test_a_publisher_lets_others_run_before_it_has_filled_the_window(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    most: int,
) -> None:
    monkeypatch.setattr(sender, name, most)
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC", batch=1) as publisher:
            assert [publisher.put(b"x") for _ in range(5)] == [True] * 4 + [False]
            assert publisher.envelopes == 4
            for _ in range(20):
                await publisher.send(b"x")
    assert scripted.counts() == [1] * 25


async def test_two_publishers_share_the_window(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted.confirm_at_once = False
    scripted.window = 1
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as one, client.publisher(to="CA-RC") as two:
            one.put(b"one")
            await settle()
            # the window is full with the other's: it must go when that is confirmed
            two.put(b"two")
            await settle()
            assert scripted.counts() == [1]
            scripted.confirm_at_once = True
            await scripted.release()
            await two.flush()
            assert two.confirmed == 1


async def test_a_publisher_follows_a_changed_route(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted.offer(authority.party("SF-RC"))
    scripted.readers = ["CA-RC"]
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        client.allow.allow("labs", ["CA-RC", "SF-RC"])
        async with client.publisher(exchange="labs", routing_key="k") as publisher:
            await publisher.send("one")
            await publisher.flush()
            scripted.change_route("CA-RC", "SF-RC", refused=2)
            await publisher.send("two")
            await publisher.send("three")
            await publisher.flush()
            assert publisher.confirmed == 3
    assert [len(split(raw).prefix.recipients) for raw in scripted.envelopes] == [1, 2, 2]
    assert len({split(raw).prefix.envelope_id for *_, raw in scripted.sent()}) == 5


async def test_a_refused_batch_is_raised_and_handed_back(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        async with client.publisher(to="CA-RC") as publisher:
            scripted.refuse_sends = [Forbidden("no")]
            publisher.put("lost?")
            with pytest.raises(Forbidden, match="1 messages were not published"):
                await publisher.flush()
            ((messages, error),) = publisher.refused
            assert [m.content for m in messages] == [b"lost?"]
            assert isinstance(error, Forbidden)
            await publisher.send("and on it goes")
            await publisher.flush()
            assert (publisher.confirmed, publisher.unconfirmed) == (1, 0)
            with pytest.raises(TooLarge):
                publisher.put(bytes(LIMITS.envelope_bytes))


async def test_a_publisher_flush_is_bounded_and_can_be_repeated(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.confirm_at_once = False
    async with client_on(scripted, lab, tmp_path, monkeypatch, tries=2, timeout_s=2.0) as client:
        async with client.publisher(to="CA-RC") as publisher:
            publisher.put("x")
            with pytest.raises(TimedOut, match="1 messages wait"):
                await publisher.flush()
            scripted.confirm_at_once = True
            await publisher.flush()
            assert publisher.confirmed == 1
    assert len({raw for *_, raw in scripted.sent()}) == 1


async def test_an_error_of_the_block_stays_what_it_was(
    scripted: ScriptedHq, lab: Party, center: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: BaseException | None = None
    scripted.confirm_at_once = False
    try:
        async with (
            client_on(scripted, lab, tmp_path, monkeypatch) as client,
            client.publisher(to="CA-RC") as publisher,
        ):
            publisher.put("x")
            raise KeyError("mine")
    except BaseException as error:
        caught = error
    assert type(caught) is KeyError


async def test_pings_are_answered(
    scripted: ScriptedHq, lab: Party, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with client_on(scripted, lab, tmp_path, monkeypatch) as client:
        await client.ping()
        assert client.hq is not None
        assert (client.client_id, client.role, client.hq.software) == ("FL-LAB", "client", "fake")
    assert any(isinstance(event, frames.Ping) for event in scripted.asked)
