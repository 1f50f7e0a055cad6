"""Whatever becomes of a delivery, its credit returns to HQ exactly once: what is lost of it, HQ
never delivers again on this connection.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from cipherbox.client.client import Client
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.errors import Busy, CipherBoxError, NotFound
from cipherbox.wire import frames
from tests.client.parties import Authority, Party, now_ms
from tests.client.scripted import ScriptedHq, client_on, settle
from tests.client.test_consume import changed, sealed
from tests.client.waiting import until

QUEUE = "box.CA-RC"
CREDIT = 8  # envelopes: each one that is settled is told to HQ
TRIES = 2
LIMIT_S = 100.0  # of virtual time


@attrs.define
class Case:
    """A recipient, its sender and an HQ that gives little credit."""

    hq: ScriptedHq
    lab: Party
    center: Party
    authority: Authority
    pushed: list[bytes] = attrs.Factory(list)

    async def push(self, *envelopes: bytes, attempt: int = 1) -> None:
        first = len(self.pushed) + 1
        self.pushed += envelopes
        items = [(n, attempt, now_ms(), raw) for n, raw in enumerate(envelopes, first)]
        await self.hq.deliver(*items)

    def good(self, *texts: str) -> list[bytes]:
        return [sealed(self.lab, self.center, text) for text in texts]


Outcome = Callable[[Case], Awaitable[None]]
Receive = Callable[[Client, Any], Awaitable[None]]
Played = Callable[[Outcome, Receive], Awaitable[None]]


@pytest.fixture
def played(
    scripted: ScriptedHq,
    lab: Party,
    center: Party,
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Played:
    """Let something become of deliveries, and look what comes back."""
    welcome = attrs.evolve(scripted.welcome(), credit_envelopes=CREDIT)
    monkeypatch.setattr(scripted, "welcome", lambda: welcome)
    scripted.offer(lab)
    case = Case(scripted, lab, center, authority)

    def returned() -> tuple[int, int]:
        return sum(n for n, _ in scripted.credit), sum(size for _, size in scripted.credit)

    async def play(
        outcome: Outcome,
        receive: Receive,
    ) -> None:
        async with client_on(scripted, center, tmp_path, monkeypatch, tries=TRIES) as client:
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: receive(client, task_status))
                await outcome(case)
                await until(lambda: returned()[0] >= len(case.pushed), LIMIT_S)
                await settle()
                assert returned() == (len(case.pushed), sum(map(len, case.pushed)))
                nursery.cancel_scope.cancel()

    return play


async def recorded(case: Case) -> None:
    await case.push(*case.good("a", "b"))
    await until(lambda: len(case.hq.acked) == 2, LIMIT_S)


async def duplicate(case: Case) -> None:
    one, *_ = case.good("a")
    await case.push(one, one)
    await until(lambda: len(case.hq.acked) == 2, LIMIT_S)
    await case.push(one, attempt=2)
    await until(lambda: len(case.hq.acked) == 3, LIMIT_S)


async def refused(case: Case) -> None:
    (one,) = case.good("a")
    await case.push(b"no envelope", changed(one, len(one) // 2), one)
    await until(lambda: len(case.hq.nacked) == 2 and len(case.hq.acked) == 1, LIMIT_S)


async def requeued(case: Case) -> None:
    """A key that this machine does not have: HQ is told after a pause."""
    await case.push(sealed(case.lab, Party(case.authority, "CA-RC")))
    await until(lambda: [n.requeue for n in case.hq.nacked] == [True], LIMIT_S)


async def of_an_unknown_sender(case: Case) -> None:
    await case.push(sealed(case.authority.party("SF-RC"), case.center), *case.good("a"))
    await until(lambda: len(case.hq.nacked) == 1 and len(case.hq.acked) == 1, LIMIT_S)


async def too_old(case: Case) -> None:
    await case.push(*case.good("a"))
    await until(lambda: len(case.hq.acked) == 1, LIMIT_S)
    old = sealed(case.lab, case.center, "old", EnvelopeIds(lambda: 5).next())
    await case.push(old)
    await until(lambda: len(case.hq.acked) + len(case.hq.nacked) == 2, LIMIT_S)


def refuses(error: CipherBoxError) -> Outcome:
    async def ack_refused(case: Case) -> None:
        case.hq.refuse[frames.Ack] = [error.copy() for _ in range(TRIES if error.retryable else 1)]
        await case.push(*case.good("a"))
        await until(lambda: not case.hq.refuse[frames.Ack], LIMIT_S)

    return ack_refused


async def ack_unanswered(case: Case) -> None:
    """HQ may have taken it, and is heard: the connection remains."""
    answer, asked = case.hq.script, []

    async def silent(session: Any, event: Any) -> None:
        if isinstance(event, frames.Ack):
            asked.append(event)
            if len(asked) <= TRIES:
                await session.send(frames.Ping(0, "", 0))
                return
        await answer(session, event)

    case.hq.script = silent
    await case.push(*case.good("a"))
    await until(lambda: len(case.hq.acked) == 1, LIMIT_S)
    assert len(case.hq.sessions) == 1


async def as_a_receiver(client: Client, task_status: Any) -> None:
    await Receiver(client).run([QUEUE], task_status=task_status)


async def as_a_pipe_takes_mail(client: Client, task_status: Any) -> None:
    async with client.consume_unopened(QUEUE) as consumer:
        task_status.started()
        await Receiver(client).take_from(consumer, 64, tolerate=lambda error: None)


async def as_a_pipe_takes_frames(client: Client, task_status: Any) -> None:
    async def sort(deliveries: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        return deliveries, []

    async with client.consume_unopened(QUEUE) as consumer:
        task_status.started()
        await Receiver(client).take_from(consumer, 64, sort, lambda error: None)


ACKS = [
    recorded,
    duplicate,
    pytest.param(refuses(Busy()), id="ack_refused_for_a_moment"),
    pytest.param(refuses(NotFound("no such queue")), id="ack_refused_permanently"),
    ack_unanswered,
]
REFUSALS = [refused, requeued, of_an_unknown_sender, too_old]


@pytest.mark.parametrize("outcome", ACKS)
async def test_frames_of_a_pipe_return_their_credit_once(
    autojump_clock: MockClock, played: Played, outcome: Outcome
) -> None:
    await played(outcome, as_a_pipe_takes_frames)


@pytest.mark.parametrize("receive", [as_a_receiver, as_a_pipe_takes_mail])
@pytest.mark.parametrize("outcome", [*ACKS, *REFUSALS])
async def test_every_end_of_a_delivery_returns_its_credit_once(
    autojump_clock: MockClock,
    played: Played,
    outcome: Outcome,
    receive: Receive,
) -> None:
    await played(outcome, receive)
