"""A delivery queued for a peer has used its consumer's credit: whatever becomes of it before it
is sent, the peer and HQ together return exactly that credit.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.broker.queues import Queue
from cipherbox.sealing.body import pack, text_message
from cipherbox.sealing.seal import choose_keys, seal
from cipherbox.wire import frames
from tests.client.waiting import until
from tests.server.hq import Raw, Running, now_ms, running, two

NAME = "box.CA-RC"
CREDIT, CREDIT_BYTES = 2, 1 << 20
SHORT, LONG = 2, 1  # stanza types: one without a post-quantum key, and one with


@attrs.define(eq=False)
class Queued:
    """Envelopes that use up a consumer's credit and wait to be sent until `gate` is opened."""

    r: Running
    lab: Raw
    center: Raw  # the consumer
    other: Raw  # another connection of the same client
    gate: trio.Event = attrs.Factory(trio.Event)
    sealed: list[dict[str, Any]] = attrs.Factory(list)

    @classmethod
    async def at(cls, r: Running, monkeypatch: pytest.MonkeyPatch) -> Queued:
        here = cls(r, *await two(r), await r.client("CA-RC"))
        for stanza in (SHORT, LONG):
            options = {
                "plain": pack([text_message("x")]),
                "sealed_at": now_ms(),
                "envelope_id": r.people["FL-LAB"].ids.next(),
            }
            here.sealed.append(options)
            assert isinstance(await here.publish(stanza, options), frames.Confirm)
        bodies = r.hq.engine.bodies
        items = bodies.items

        async def later(queue: str, entries: Any) -> Any:
            await here.gate.wait()
            return await items(queue, entries)

        monkeypatch.setattr(bodies, "items", later)
        bodies.clear()
        await here.center.ask(frames.Consume, 1, NAME, CREDIT, CREDIT_BYTES)
        await until(lambda: len(here.queue.unacknowledged) == CREDIT)
        return here

    @property
    def queue(self) -> Queue:
        return self.r.hq.engine.broker.state.queues[NAME]

    async def publish(self, stanza: int, options: dict[str, Any]) -> Any:
        sender, bundles = self.r.people["FL-LAB"].identity, [self.r.people["CA-RC"].identity.bundle]
        keys = choose_keys(bundles, stanza=stanza)  # type: ignore[arg-type]
        return await self.lab.publish(
            seal(sender, bundles, count=1, keys=keys, **options).raw  # type: ignore[arg-type]
        )

    def lacking(self, came: list[Any]) -> tuple[int, int]:
        """What the consumer lacks of its credit once the peer has returned that of what came."""
        (consumer,) = self.queue.consumers
        size = sum(len(item[4]) for item in came)
        return CREDIT - consumer.envelopes - len(came), CREDIT_BYTES - consumer.size - size


async def nothing(q: Queued) -> None:
    pass


async def one_acknowledged(q: Queued) -> None:
    answer = await q.other.ask(frames.Ack, NAME, [frames.Range(1, 1)])
    assert answer == frames.AckConfirmed(answer.correlation, 1, 0)


async def all_acknowledged(q: Queued) -> None:
    answer = await q.other.ask(frames.Ack, NAME, [frames.Range(1, CREDIT)])
    assert answer == frames.AckConfirmed(answer.correlation, CREDIT, 0)


async def one_refused(q: Queued) -> None:
    """It is a dead letter, whose bytes HQ keeps: they are sent, and the peer returns the credit."""
    answer = await q.other.ask(frames.Nack, NAME, 1, False, 2, "for a test")
    assert answer == frames.Ok(answer.correlation, 1)


async def all_damaged(q: Queued) -> None:
    q.r.hq.store.read_bodies = lambda numbers: [None] * len(numbers)  # type: ignore[method-assign]


async def longer(q: Queued) -> None:
    assert isinstance(await q.publish(LONG, {**q.sealed[0], "generation": 1}), frames.Confirm)


async def shorter(q: Queued) -> None:
    assert isinstance(await q.publish(SHORT, {**q.sealed[1], "generation": 1}), frames.Confirm)


@pytest.mark.parametrize(
    ("meanwhile", "sent", "left"),
    [
        (nothing, 2, 2),
        (one_acknowledged, 1, 1),
        (all_acknowledged, 0, 0),
        (one_refused, 2, 1),
        (all_damaged, 0, 0),
        (longer, 2, 2),
        (shorter, 2, 2),
    ],
)
async def test_the_credit_of_what_was_queued_comes_back_whole(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    meanwhile: Callable[[Queued], Awaitable[None]],
    sent: int,
    left: int,
) -> None:
    """A client that reconnects repeats its ACK, which takes what HQ has just queued for it again:
    if that used up the credit, HQ would never send anything more.
    """
    caplog.set_level(logging.ERROR)
    async with running(tmp_path / "hq") as r:
        q = await Queued.at(r, monkeypatch)
        await meanwhile(q)
        q.gate.set()
        came: list[Any] = []
        while len(came) < sent:
            came += (await q.center.next()).entries
        await until(lambda: q.lacking(came) == (0, 0) and q.queue.depth == left)
    # what was acknowledged is not damaged
    assert bool(caplog.records) == (meanwhile is all_damaged)
