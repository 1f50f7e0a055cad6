"""What a consumer and a receiver wait out, and what ends them."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.apps.pipe import mail
from cipherbox.cli.exits import advice
from cipherbox.client.keys import pins, revocations
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.client.receiving.recorder import Recorder
from cipherbox.client.receiving.supervised import PAUSE_MAX_S, PAUSE_S, keep_running
from cipherbox.errors import (
    CipherBoxError,
    Forbidden,
    ListOverdue,
    NotFound,
    NotRecipient,
    Revoked,
    StoreError,
    StoreUnavailable,
    Throttled,
    VersionMismatch,
)
from cipherbox.wire import frames
from tests.client.parties import Party, now_ms
from tests.client.scripted import ScriptedHq, client_on, inline
from tests.client.test_consume import sealed
from tests.client.waiting import until

QUEUES = ["box.CA-RC"]


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jumping clock does not wait for them."""
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def test_a_subscription_that_hq_cannot_take_now_is_made_later(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    scripted.refuse[frames.Consume] = [StoreUnavailable("the store is away"), Throttled()]
    said: list[Any] = []
    async with (
        client_on(scripted, center, tmp_path, monkeypatch, said) as client,
        client.consume() as deliveries,
    ):
        assert len([e for e in said if "HQ cannot deliver box.CA-RC now" in e.text]) == 2
        await scripted.deliver((1, 1, now_ms(), sealed(lab, center, "one")))
        assert (await deliveries.__anext__()).messages[0].content == b"one"
        scripted.refuse[frames.Consume] = [StoreUnavailable("the store is away")]
        await scripted.sessions[-1].cut()  # and when it subscribes again on the next link
        await until(lambda: not scripted.refuse[frames.Consume] and len(scripted.sessions) == 2)
        await until(lambda: _subscriptions(scripted) == 5)
        await scripted.deliver((2, 1, now_ms(), sealed(lab, center, "two")))
        assert (await deliveries.__anext__()).messages[0].content == b"two"


async def test_a_subscription_that_hq_never_takes_says_why(
    scripted: ScriptedHq,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.refuse[frames.Consume] = [StoreUnavailable("the store is away")] * 100
    async with client_on(scripted, center, tmp_path, monkeypatch, tries=2, timeout_s=5) as client:
        began = trio.current_time()
        with pytest.raises(StoreUnavailable, match="the store is away"):
            async with client.consume():
                pass
        assert trio.current_time() - began == pytest.approx(10, abs=0.5)
        scripted.refuse[frames.Consume] = [NotFound("no such queue")]
        with pytest.raises(NotFound, match="no such queue"):
            async with client.consume("elsewhere"):
                pass


async def test_a_delivery_that_could_not_be_verified_now_is_given_next(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    async with (
        client_on(scripted, center, tmp_path, monkeypatch) as client,
        client.consume() as deliveries,
    ):
        scripted.refuse[frames.GetBundles] = [StoreUnavailable("the store is away")] * 3
        await scripted.deliver((1, 1, now_ms(), sealed(lab, center)))
        assert (await deliveries.__anext__()).seq == 1  # HQ was asked again
        assert not scripted.refuse[frames.GetBundles]
        scripted.refuse[frames.Nack] = [NotFound("it is not here any more")] * 2
        await scripted.deliver((2, 1, now_ms(), b"junk"), (3, 1, now_ms(), sealed(lab, center)))
        assert (await deliveries.__anext__()).seq == 3  # what HQ says to a refusal changes nothing


async def test_a_pipe_asks_again_for_its_peers_keys(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    async with (
        client_on(scripted, center, tmp_path, monkeypatch) as client,
        client.consume_unopened() as consumer,
    ):
        await scripted.deliver(
            (1, 1, now_ms(), sealed(lab, center)), (2, 1, now_ms(), sealed(center, lab))
        )
        good, bad = await consumer.batch()
        # three are one try
        scripted.refuse[frames.GetBundles] = [StoreUnavailable("the store is away")] * 4
        await mail._open(client, good)
        assert good.opened
        assert not scripted.refuse[frames.GetBundles]
        with pytest.raises(NotRecipient):
            await mail._open(client, bad)


async def test_a_lasting_receiver_waits_out_what_passes_with_pauses_that_grow(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    said: list[Any] = []
    async with client_on(scripted, center, tmp_path, monkeypatch, said) as client:
        ensure = client.revocations.ensure

        async def away(number: int = 0) -> None:
            if len(_pauses(said)) < 6:  # however many of the three queues ask before each pause
                raise StoreUnavailable("the store is away")
            await ensure(number)

        client.revocations.ensure = away
        async with trio.open_nursery() as nursery:
            await nursery.start(Receiver(client).keep, QUEUES)
            await until(lambda: len(_pauses(said)) == 6, 100)
            await _deliver_at(scripted, 1, 1, sealed(lab, center, "hello"))
            await until(lambda: bool(scripted.acked))
            nursery.cancel_scope.cancel()
    assert _pauses(said) == [1, 2, 4, 8, 16, 30]
    assert scripted.acked == [1]
    (line,) = (tmp_path / "data" / "received_messages.jsonl").read_text().splitlines()
    assert json.loads(line)["content"] == "hello"


def _subscriptions(scripted: ScriptedHq) -> int:
    return sum(isinstance(event, frames.Consume) for event in scripted.asked)


async def _deliver_at(scripted: ScriptedHq, subscription: int, attempt: int, raw: bytes) -> None:
    """Hands out one envelope as soon as the client has subscribed so many times."""
    await until(lambda: _subscriptions(scripted) == subscription, 2 * PAUSE_MAX_S)
    await scripted.deliver((1, attempt, now_ms(), raw))


def _pauses(said: list[Any]) -> list[int]:
    return [int(e.text.split()[-2]) for e in said if "retrying in" in e.text]


@pytest.mark.parametrize(
    ("error", "passing", "waits"),
    [
        (StoreUnavailable(), (), True),
        (ListOverdue("it ended yesterday"), (), True),
        (NotFound(), (), False),
        (NotFound(), (NotFound,), True),
        (StoreError("no space left"), (NotFound,), False),
        (StoreError("no space left"), (CipherBoxError,), True),
        (Revoked(), (CipherBoxError,), False),
    ],
)
async def test_what_passes(
    scripted: ScriptedHq,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
    error: CipherBoxError,
    passing: tuple[type[CipherBoxError], ...],
    waits: bool,
) -> None:
    calls: list[int] = []

    async def work() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise error
        await trio.sleep_forever()

    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        with trio.move_on_after(100), nullcontext() if waits else pytest.raises(type(error)):
            await keep_running(work, client, passing)
    assert len(calls) == 1 + waits


@pytest.mark.parametrize(
    "error", [Forbidden("it is not yours"), NotFound("no such queue"), Revoked("on the list")]
)
async def test_a_lasting_receiver_ends_with_what_does_not_pass(
    scripted: ScriptedHq,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: CipherBoxError,
    autojump_clock: MockClock,
) -> None:
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        scripted.refuse[frames.Consume] = [error]
        with trio.fail_after(60), pytest.raises(type(error), match=str(error)):
            await Receiver(client).keep(QUEUES)
        with Receiver(client).locked():
            pass  # it is free again


async def test_trouble_of_this_machine_is_waited_out_only_when_asked_to(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    scripted.offer(lab)
    said: list[Any] = []
    async with client_on(scripted, center, tmp_path, monkeypatch, said) as client:

        async def failing(recorder: Recorder, *arguments: Any) -> Any:
            if len(_pauses(said)) < 2:
                raise StoreError("no space left on device")
            return await record(recorder, *arguments)

        record = Recorder.record
        monkeypatch.setattr(Recorder, "record", failing)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_deliver_at, scripted, 1, 1, sealed(lab, center))
            with pytest.raises(StoreError, match="no space left"):
                await Receiver(client).keep(QUEUES)
        async with trio.open_nursery() as nursery:
            receiver = Receiver(client)
            await nursery.start(
                lambda task_status: receiver.keep(QUEUES, own_trouble=True, task_status=task_status)
            )
            for count in range(2, 5):
                await _deliver_at(scripted, count, count, sealed(lab, center))
            await until(lambda: scripted.acked == [1])
            nursery.cancel_scope.cancel()
    assert _pauses(said) == [PAUSE_S, 2 * PAUSE_S]


async def test_a_disk_that_takes_no_list_and_no_pin_is_an_error_of_ours(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        for module in (revocations, pins):
            monkeypatch.setattr(module, "write_atomic", full)
        for work in (
            lambda: client.revocations.ensure(2),
            lambda: _at_once(client.directory.pins.accept, lab.bundle, "first"),
            lambda: _at_once(client.directory.pins.remember_log_key, bytes(32)),
        ):
            with pytest.raises(StoreError, match="No space left on device") as found:
                await work()
            assert "Make room" in advice(found.value)


async def _at_once(call: Callable[..., Any], *arguments: Any) -> None:
    call(*arguments)


async def test_a_connection_that_failed_permanently_ends_a_receiver_that_waits_out_everything(
    scripted: ScriptedHq,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:

        async def work() -> None:
            client.connection.failure = VersionMismatch("another version")
            raise StoreError("no space left")

        with trio.fail_after(100), pytest.raises((VersionMismatch, StoreError)):
            await keep_running(work, client, (CipherBoxError,))
