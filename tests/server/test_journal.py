"""The log's lines about envelopes: the predecessors' words, and not one per message under load."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import trio
import trio.testing

from cipherbox.broker import model as m
from cipherbox.envelope.ids import message_id
from cipherbox.server.operations.event_log import FEW
from tests.server.inline import world
from tests.store.suite import incoming

LOGGER = "cipherbox.server.operations.event_log"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, LOGGER)
    return caplog


def said(lines: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in lines.records if r.name == LOGGER]


async def test_few_envelopes_have_a_line_each(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, 1)
        await b.until(lambda: bool(b.handed))
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, 1)]))
        await b.until(lambda: len(b.answers) == 2)
    first = message_id(incoming(1).envelope_id, 0)
    assert said(lines) == [
        f"Published message {first} to queue 'box.B' via exchange ''",
        f"Message {first} acknowledged by client, removed from queues and status",
    ]
    record = next(r for r in lines.records if r.name == LOGGER)
    assert (record.__dict__["client"], record.__dict__["messages"]) == ("A", 3)
    for record, peer in zip([r for r in lines.records if r.name == LOGGER], (a, b), strict=True):
        assert record.__dict__["message_id"] == first
        assert (record.__dict__["client"], record.__dict__["connection"]) == (
            peer.client,
            peer.connection,
        )


async def test_a_batch_is_logged_after_it_was_sent_even_if_hq_ends_meanwhile(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    seen: list[tuple[str, int]] = []

    async def send(what: str, sent: trio.Event) -> None:
        """As a connection's writer: woken by what it is to send."""
        await sent.wait()
        seen.append((what, len(said(lines))))

    async with trio.open_nursery() as writers, world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await b.until(lambda: bool(b.answers))
        writers.start_soon(send, "confirm", a.news)
        writers.start_soon(send, "delivery", b.news)
        await trio.testing.wait_all_tasks_blocked()
        await w.publish(a, 1)
        await a.until(lambda: bool(a.answers))  # and the engine is cancelled
    assert sorted(seen) == [("confirm", 0), ("delivery", 0)]
    assert len(said(lines)) == 1


async def test_what_was_fetched_is_acknowledged_by_its_name(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.publish(a, 1)
        await a.until(lambda: bool(a.answers))
        await w.engine.submit(m.Fetch(b.connection, "B", 1, "box.B", 10, 1 << 20))
        await b.until(lambda: len(b.answers) == 1)
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, 1)]))
        await b.until(lambda: len(b.answers) == 2)
    first = message_id(incoming(1).envelope_id, 0)
    assert said(lines)[1:] == [
        f"Message {first} acknowledged by client, removed from queues and status"
    ]


async def test_at_debug_every_message_has_a_line(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    lines.set_level(logging.DEBUG, LOGGER)
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, 1)
        await b.until(lambda: bool(b.handed))
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, 1)]))
        await b.until(lambda: len(b.answers) == 2)
    names = [message_id(incoming(1).envelope_id, i) for i in range(3)]
    published = [f"Published message {n} to queue 'box.B' via exchange ''" for n in names]
    assert said(lines) == published + [
        f"Message {n} acknowledged by client, removed from queues and status" for n in names
    ]


async def test_many_envelopes_have_one_line_together(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, *range(1, FEW + 2))
        await b.until(lambda: bool(b.handed))
        await w.engine.submit(m.Ack(b.connection, "B", 2, "box.B", [(1, FEW + 1)]))
        await b.until(lambda: len(b.answers) == 2)
    assert said(lines) == [
        f"Published {3 * (FEW + 1)} messages in {FEW + 1} envelopes",
        f"{FEW + 1} envelopes acknowledged by clients, removed from queues and status",
    ]
    published, acked = (r.__dict__ for r in lines.records if r.name == LOGGER)
    assert published["message_id"] == message_id(incoming(1).envelope_id, 0)
    assert published["last_message_id"] == message_id(incoming(FEW + 1).envelope_id, 2)
    assert (published["clients"], published["connections"], acked["clients"]) == (
        ["A"],
        [a.connection],
        ["B"],
    )


async def test_a_dead_letter_is_never_silent(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    async with world(tmp_path) as w:
        a, b = w.peer("A"), w.peer("B")
        await w.consume(b)
        await w.publish(a, 1)
        await b.until(lambda: bool(b.handed))
        await w.engine.submit(m.Nack(b.connection, "B", 2, "box.B", 1, False, 1, "malformed"))
        await b.until(lambda: len(b.answers) == 2)
    assert said(lines)[-1] == "Dead letter 1 of queue 'box.B': malformed"
    assert lines.records[-1].levelno == logging.WARNING
