"""The lasting connection against scripted HQs, on a clock that jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.client.connection.confirm_window import PendingPublish
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import Events
from cipherbox.concurrency import background
from cipherbox.errors import (
    CredentialsError,
    DiskFull,
    GoingAway,
    NetworkError,
    NotFound,
    Revoked,
    RouteChanged,
    TimedOut,
    TooLarge,
    VersionMismatch,
)
from cipherbox.net import connecting as transport
from cipherbox.wire import frames
from cipherbox.wire.connection import SendBatch
from tests.client.fake_hq import UNREACHABLE, FakeHq, Session, no_context


@pytest.fixture
def said() -> list[str]:
    return []


@asynccontextmanager
async def connected_to(
    hq: FakeHq, monkeypatch: pytest.MonkeyPatch, said: list[str] | None = None, **options: Any
) -> AsyncIterator[ReconnectingConnection]:
    monkeypatch.setattr(transport, "connect", hq.connect)
    listener = said.append if said is not None else None
    async with background() as nursery:
        connection = ReconnectingConnection("hq:1", no_context, Events(listener), **options)
        nursery.start_soon(connection.run, nursery)
        yield connection


class Outcome:
    """An envelope on its way, and a place to wait for what becomes of it."""

    def __init__(self, connection: ReconnectingConnection, raw: bytes = b"envelope") -> None:
        self.done = trio.Event()
        self.count = 0
        self.item = PendingPublish(raw, bytes(16), 1, self._settled)
        connection.window.add(self.item)

    def _settled(self, item: PendingPublish) -> None:
        self.count += 1
        self.done.set()

    async def wait(self) -> PendingPublish:
        with trio.fail_after(3600):
            await self.done.wait()
        return self.item


async def answer_ok(session: Session, event: Any) -> None:
    if isinstance(event, SendBatch):
        await session.confirm([c for c, *_ in event.items])
    elif isinstance(event, frames.Ping):
        await session.send(frames.Pong(event.correlation))
    elif hasattr(event, "correlation"):
        await session.send(frames.Ok(event.correlation, 7))


async def test_a_request_gets_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def backwards(session: Session, event: Any) -> None:
        held.append(event)
        if len(held) == 3:
            for request in reversed(held):
                await session.send(frames.Ok(request.correlation, len(request.queue)))

    held: list[Any] = []
    found: dict[str, int] = {}
    async with connected_to(FakeHq(backwards), monkeypatch) as connection:

        async def ask(queue: str) -> None:
            found[queue] = (await connection.request(frames.Purge, queue=queue)).count

        async with trio.open_nursery() as nursery:
            for name in ("a", "bb", "ccc"):
                nursery.start_soon(ask, name)
    assert found == {"a": 1, "bb": 2, "ccc": 3}
    assert sorted(request.correlation for request in held) == [1, 2, 3]


async def test_a_refusal_is_raised_once_and_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no(session: Session, event: Any) -> None:
        await session.send(frames.Error(event.correlation, NotFound.code, False, "no queue x", b""))

    hq = FakeHq(no)
    async with connected_to(hq, monkeypatch) as connection:
        with pytest.raises(NotFound, match="no queue x"):
            await connection.request(frames.Purge, queue="x")
    assert len(hq.seen) == 1


async def test_a_retryable_refusal_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def later(session: Session, event: Any) -> None:
        if len(hq.seen) < 3:
            await session.send(frames.Error(event.correlation, DiskFull.code, True, "full", b""))
        else:
            await session.send(frames.Ok(event.correlation, 1))

    hq = FakeHq(later)
    async with connected_to(hq, monkeypatch) as connection:
        assert (await connection.request(frames.Purge, queue="x")).count == 1
    assert len(hq.seen) == 3


async def test_silence_is_tried_so_often_and_then_said(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hq = FakeHq()
    async with connected_to(hq, monkeypatch, tries=3, timeout_s=10.0) as connection:
        began = trio.current_time()
        with pytest.raises(TimedOut):
            await connection.request(frames.Purge, queue="x")
        assert 20 < trio.current_time() - began <= 31
    assert len([e for e in hq.seen if isinstance(e, frames.Purge)]) == 3
    assert len(hq.sessions) >= 2  # a silent connection is given up, not asked again


async def test_credentials_are_never_tried_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hq = FakeHq()
    hq.refusals = [CredentialsError("it has expired")]
    async with connected_to(hq, monkeypatch) as connection:
        with pytest.raises(CredentialsError, match="expired"):
            await connection.ready()
        await trio.sleep(1000)
        with pytest.raises(CredentialsError, match="expired"):
            await connection.request(frames.Ping)
    assert not hq.sessions


async def test_a_revoked_client_is_told_and_stops(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def revoke(session: Session, event: Any) -> None:
        await session.send(frames.Error(0, Revoked.code, False, "revoked by the admin", b""))

    hq = FakeHq(revoke)
    async with connected_to(hq, monkeypatch) as connection:
        outcome = Outcome(connection)
        item = await outcome.wait()
        assert isinstance(item.error, Revoked)
        await trio.sleep(1000)
    assert len(hq.sessions) == 1


async def test_no_common_version_is_final(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hq = FakeHq()
    hq.refusals = [VersionMismatch("HQ speaks version 9")]
    async with connected_to(hq, monkeypatch) as connection:
        with pytest.raises(VersionMismatch):
            await connection.ready()


async def test_pauses_grow_to_their_bound_and_never_end(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, said: list[str]
) -> None:
    hq = FakeHq(answer_ok)
    hq.refusals = [UNREACHABLE] * 40
    async with connected_to(hq, monkeypatch, said) as connection:
        await connection.ready()
        took = trio.current_time()
        assert connection.attempts == 0
    # ten doublings from 0.1 s reach the bound; thirty more of 30 to 60 s follow
    assert 900 < took < 2000
    waits = [float(text.rsplit(" in ", 1)[1].split()[0]) for text in said if "trying again" in text]
    assert waits[0] <= 0.1
    assert max(waits) <= 60
    assert len(set(waits[12:])) > 5  # by chance, so that many clients do not come at once


async def test_the_first_connection_gives_up_after_its_tries(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    hq = FakeHq()
    hq.refusals = [UNREACHABLE] * 40
    async with connected_to(hq, monkeypatch) as connection:
        with pytest.raises(NetworkError, match="cannot be reached"):
            await connection.ready(3)


async def test_what_is_unconfirmed_goes_again_in_its_order_and_is_settled_once(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def cut_the_first(session: Session, event: Any) -> None:
        if len(hq.sessions) == 1:
            if len(hq.sent()) == 3:
                await session.cut()
        else:
            await session.confirm([c for c, *_ in event.items], 1)

    hq = FakeHq(cut_the_first)
    async with connected_to(hq, monkeypatch) as connection:
        await connection.ready()
        outcomes = [Outcome(connection, bytes([n]) * 50) for n in range(3)]
        for outcome in outcomes:
            item = await outcome.wait()
            assert item.result is not None
            assert item.result.again
            assert item.result.queues == ("q",)
    assert [raw[0] for *_, raw in hq.sent()] == [0, 1, 2, 0, 1, 2]
    assert [o.count for o in outcomes] == [1, 1, 1]
    assert [o.item.tries for o in outcomes] == [2, 2, 2]


async def test_a_lost_confirm_is_asked_for_again_over_the_same_line(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def forget_one(session: Session, event: Any) -> None:
        if isinstance(event, frames.Ping):
            await session.send(frames.Pong(event.correlation))
        elif len(hq.sent()) > 1:
            await session.confirm([event.items[0][0]], 1)

    hq = FakeHq(forget_one, heartbeat_s=3)
    async with connected_to(hq, monkeypatch) as connection:
        outcome = Outcome(connection, b"same bytes")
        assert (await outcome.wait()).result is not None
    first, second = hq.sent()
    assert first[3] == second[3] == b"same bytes"
    assert second[0] > first[0]
    assert len(hq.sessions) == 1
    assert outcome.count == 1


async def test_a_full_disk_holds_the_envelope_back(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def full_at_first(session: Session, event: Any) -> None:
        for correlation, *_ in event.items:
            if trio.current_time() < 5:
                await session.send(
                    frames.Error(correlation, DiskFull.code, True, "the disk is full", b"")
                )
            else:
                await session.confirm([correlation])

    hq = FakeHq(full_at_first)
    async with connected_to(hq, monkeypatch) as connection:
        outcomes = [Outcome(connection, bytes([n]) * 9) for n in range(4)]
        for outcome in outcomes:
            assert (await outcome.wait()).result is not None
    order = [raw[0] for *_, raw in hq.sent()]
    assert order[-4:] == [0, 1, 2, 3]
    assert len(order) < 60  # with pauses, not in a storm


async def test_a_refused_envelope_is_the_outcome(monkeypatch: pytest.MonkeyPatch) -> None:
    async def changed(session: Session, event: Any) -> None:
        await session.send(
            frames.Error(event.items[0][0], RouteChanged.code, False, "changed", b"detail")
        )

    async with connected_to(FakeHq(changed), monkeypatch) as connection:
        item = await Outcome(connection).wait()
    assert isinstance(item.error, RouteChanged)
    assert item.error.detail == b"detail"


async def test_the_window_bounds_what_is_unconfirmed(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    most = 0

    async def slow(session: Session, event: Any) -> None:
        nonlocal most
        most = max(most, len(connection.window.unconfirmed))
        await trio.sleep(0.1)
        await session.confirm([c for c, *_ in event.items])

    async with connected_to(FakeHq(slow, window=4), monkeypatch) as connection:
        await connection.ready()
        outcomes = [Outcome(connection) for _ in range(20)]
        assert connection.window.full
        for outcome in outcomes:
            await outcome.wait()
        assert connection.window.idle
    assert most == 4


async def test_too_large_for_hq_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with connected_to(FakeHq(), monkeypatch) as connection:
        await connection.ready()
        with pytest.raises(TooLarge, match="HQ takes 16777216"):
            Outcome(connection, bytes((16 << 20) + 1))


async def test_the_heartbeat_is_kept_and_watched(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def pong_until_50(session: Session, event: Any) -> None:
        if trio.current_time() < 50:
            await session.send(frames.Pong(event.correlation))

    hq = FakeHq(pong_until_50, heartbeat_s=9)
    async with connected_to(hq, monkeypatch) as connection:
        await trio.sleep(49)
        assert len(hq.sessions) == 1
        assert len([e for e in hq.seen if isinstance(e, frames.Ping)]) >= 49 // 9
        await trio.sleep(40)
        assert len(hq.sessions) >= 2
        assert connection.failure is None


async def test_hq_may_ask_whether_we_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    async def remember(session: Session, event: Any) -> None:
        answered.set()

    answered = trio.Event()
    hq = FakeHq(remember)
    async with connected_to(hq, monkeypatch) as connection:
        await connection.ready()
        await hq.sessions[0].send(frames.Ping(77))
        with trio.fail_after(60):
            await answered.wait()
    assert frames.Pong(77) in hq.seen


async def test_going_away_is_waited_for_as_hq_asked(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock, said: list[str]
) -> None:
    async def going(session: Session, event: Any) -> None:
        if len(hq.sessions) == 1:
            await session.send(frames.GoingAway(20_000, "an update"))
            await session.cut()
        else:
            await answer_ok(session, event)

    hq = FakeHq(going)
    async with connected_to(hq, monkeypatch, said, tries=5) as connection:
        await connection.request(frames.Purge, queue="x")
        assert trio.current_time() >= 20
    assert any("an update" in text for text in said)


async def test_going_away_with_a_request_says_so(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def going(session: Session, event: Any) -> None:
        await session.send(frames.GoingAway(0, "the end"))
        await session.cut()

    async with connected_to(FakeHq(going), monkeypatch, tries=1) as connection:
        with pytest.raises(GoingAway, match="the end"):
            await connection.request(frames.Purge, queue="x")


async def test_a_cut_in_the_middle_of_a_frame_is_a_network_error(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def half(session: Session, event: Any) -> None:
        await session.stream.send_all(session.wire.send(frames.Ok(event.correlation, 1))[:7])
        await session.cut()

    async with connected_to(FakeHq(half), monkeypatch, tries=1) as connection:
        with pytest.raises(NetworkError, match="closed the connection"):
            await connection.request(frames.Purge, queue="x")
