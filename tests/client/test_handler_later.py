"""Handlers whose receiving system is away, and handlers that keep the order of each sender."""

from __future__ import annotations

import sqlite3
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.cli.receive_exec import handler_of
from cipherbox.client.local_database import open_database
from cipherbox.client.receiving import attempts as trying
from cipherbox.client.receiving import handler as module
from cipherbox.client.receiving.attempts import Failure, HandlerBackoff, is_later
from cipherbox.client.receiving.handler import Handled, Handlers
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import Bad, InvalidRequest, Later, NetworkError
from cipherbox.sealing.body import Message
from tests.client.real_hq import RealHq
from tests.client.waiting import until


@pytest.fixture
def hq(hq: RealHq, monkeypatch: pytest.MonkeyPatch) -> RealHq:
    monkeypatch.setattr(trying, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    return hq


async def running(client: Any, handler: Any, until_so: Callable[[], bool], **options: Any) -> None:
    """Runs the handler until something is so."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: client.process(handler, **options))
            await until(until_so)
            nursery.cancel_scope.cancel()


async def test_a_system_that_is_down_parks_nothing_and_is_told_once(hq: Any) -> None:
    said: list[str] = []
    calls: list[str] = []
    done: list[str] = []
    down = True

    async def deliver(handled: Handled, tx: sqlite3.Connection) -> None:
        text = handled.message.content.decode()
        calls.append(text)
        if down:
            raise Later("the LIS does not answer")
        done.append(text)

    texts = [f"OUT{n}" for n in range(1, 8)]
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC", on_event=said.append) as center:
        confirmation = await lab.publish(texts, to="CA-RC")
        await running(center, deliver, lambda: len(calls) > 8, tries=2)
        handlers = Handlers(center)
        assert handlers.parked() == []
        handlers.close()
        assert sum("the LIS does not answer" in line for line in said) == 1
        assert not any("Stored" in line for line in said)
        assert sum("Kept" in line and "for the handler" in line for line in said) == len(texts)
        down = False
        await running(center, deliver, lambda: sorted(done) == texts, tries=2)
        # another process was told of the trouble
        assert sum("is available again" in line for line in said) == 0
        await Receiver(center).drain()  # signs what is owed
        assert await lab.wait_for([confirmation.envelope_id], "opened", 60)


async def test_what_is_told_at_the_end(hq: Any) -> None:
    said: list[str] = []
    done: list[int] = []

    async def third_time(handled: Handled, tx: sqlite3.Connection) -> None:
        if handled.attempt < 3:
            raise ConnectionRefusedError(111, "Connection refused")
        done.append(handled.attempt)

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC", on_event=said.append) as center:
        await lab.publish(["a", "b"], to="CA-RC")
        await running(center, third_time, lambda: len(done) == 2, tries=1)
        await until(lambda: any("is available again" in line for line in said))
    assert sum("is unavailable: ConnectionRefusedError" in line for line in said) == 1
    assert sum("is available again" in line for line in said) == 1


async def test_one_that_waits_does_not_hold_up_the_others(hq: Any) -> None:
    done: list[str] = []

    async def picky(handled: Handled, tx: sqlite3.Connection) -> None:
        text = handled.message.content.decode()
        if text.startswith("unknown patient"):
            raise Later("not registered yet")
        done.append(text)

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish([f"unknown patient {n}" for n in range(5)] + ["x", "y", "z"], to="CA-RC")
        await running(center, picky, lambda: done == ["x", "y", "z"])


async def test_ordered_the_head_of_a_senders_line_waits(hq: Any) -> None:
    """OUT3 comes after OUT1 and OUT2, whatever fails; another sender is not held up."""
    done: list[str] = []
    await hq.join("NY-LAB")

    async def first_fails(handled: Handled, tx: sqlite3.Connection) -> None:
        text = handled.message.content.decode()
        if text == "OUT1" and handled.attempt < 4:
            raise Later("down") if handled.attempt % 2 else Bad("odd")
        done.append(text)

    async with (
        hq.client("FL-LAB") as lab,
        hq.client("NY-LAB") as other,
        hq.client("CA-RC") as center,
    ):
        for text in ("OUT1", "OUT2", "OUT3"):
            await lab.publish(text, to="CA-RC")
        await other.publish("NY1", to="CA-RC")
        await Receiver(center, keep_contents=True).run(count=4)
        await running(center, first_fails, lambda: len(done) == 4, ordered=True)
    assert [text for text in done if text.startswith("OUT")] == ["OUT1", "OUT2", "OUT3"]


async def test_ordered_what_is_parked_is_passed(hq: Any) -> None:
    done: list[str] = []

    async def bad(handled: Handled, tx: sqlite3.Connection) -> None:
        text = handled.message.content.decode()
        if text == "OUT1":
            raise Bad("no segment PID")
        done.append(text)

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish(["OUT1", "OUT2"], to="CA-RC")
        await running(center, bad, lambda: done == ["OUT2"], ordered=True, tries=2)
        handlers = Handlers(center)
        (parked,) = handlers.parked()
        handlers.close()
    assert (parked.attempts, parked.reason) == (2, "no segment PID")


@pytest.mark.parametrize(
    ("error", "later"),
    [
        (Later("x"), True),
        (Bad("x"), False),
        (ConnectionRefusedError(), True),
        (TimeoutError(), True),
        (OSError(28, "No space left on device"), True),
        (FileNotFoundError(2, "no such program"), True),
        (trio.TooSlowError(), True),
        (NetworkError("x"), True),
        (InvalidRequest("x"), False),
        (ValueError("x"), False),
        (KeyError("PID"), False),
        (sqlite3.OperationalError("no such table"), False),
    ],
    ids=repr,
)
def test_what_counts_as_later(error: Exception, later: bool) -> None:
    assert is_later(error) == later


def test_pauses_double_up_to_five_minutes_and_tries_up_to_one() -> None:
    failure, pauses = Failure(), []
    for _ in range(12):
        failure = failure.after(later=True)
        pauses.append(round(failure.pause_s))
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300, 300]
    assert (failure.attempts, failure.later) == (0, 12)
    for _ in range(8):
        failure = failure.after(later=False)
    assert (failure.attempts, round(failure.pause_s)) == (8, 60)


def test_a_handler_that_is_away_is_asked_seldom_and_told_of_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1_000
    monkeypatch.setattr("cipherbox.clock.elapsed_s", lambda: now)
    said: list[str] = []
    backoff = HandlerBackoff(said.append)
    for number in range(2):
        backoff.later(number, 0, "down")
        assert not backoff.waits
    tries = 0
    for _ in range(3600):
        if not backoff.waits:
            backoff.later(2, 0, "down")
            tries += 1
        now += 1
    assert 9 <= tries <= 22
    assert len(said) == 1
    for number in (2, 1, 0):
        backoff.over(number, 0)
        assert not backoff.waits
    assert [text.partition(":")[0] for text in said] == [
        "The handler is unavailable",
        "The handler is available again",
    ]


def test_one_that_waits_for_long_does_not_hide_that_the_system_went_down_later() -> None:
    said: list[str] = []
    backoff = HandlerBackoff(said.append)
    for _ in range(5):
        backoff.later(1, 0, "patient 17 is not registered")
        backoff.over(2, 0)
    assert len(said) == 1
    for number in (3, 4, 5, 6):
        backoff.later(number, 0, "down")
    assert len(said) == 2
    assert "down" in said[1]
    backoff.over(3, 0)
    assert said[2] == "The handler is available again"


def command(code: str) -> str:
    return f'{sys.executable} -c "{code}"'


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("import sys; sys.exit(75)", Later),
        ("import sys; sys.exit(1)", Bad),
        ("import os; os.kill(os.getpid(), 15)", Later),
        ("import os; os.kill(os.getpid(), 9)", Later),
        ("import os; os.kill(os.getpid(), 6)", Bad),
    ],
)
async def test_what_an_exit_code_says(code: str, kind: type[Exception], tmp_path: Path) -> None:
    db = open_database(tmp_path / "x.sqlite3", ())
    handled = Handled(uuid.uuid4(), "FL-LAB", 0, Message(b"x"), 1)
    with pytest.raises(kind):
        await handler_of(command(code))(handled, db)  # type: ignore[misc]
    db.close()


async def test_a_program_that_is_not_there_is_later(tmp_path: Path) -> None:
    handled = Handled(uuid.uuid4(), "FL-LAB", 0, Message(b"x"), 1)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        await handler_of(str(tmp_path / "nothing"))(handled, sqlite3.connect(":memory:"))  # type: ignore[misc]
    assert is_later(caught.value)
