"""When the outbox writes what became of an envelope."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from cipherbox.client.outbox import outcomes as module
from cipherbox.client.outbox.outbox import Outbox
from tests.client.waiting import until


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Record how many envelopes and how many confirms each write of an outbox had."""
    found: list[tuple[int, int]] = []
    real = Outbox.write

    def counted(
        self: Outbox, fresh: Any = (), confirmed: Any = (), *more: Any, **options: Any
    ) -> Any:
        found.append((len(fresh), len(confirmed)))
        return real(self, fresh, confirmed, *more, **options)

    monkeypatch.setattr(Outbox, "write", counted)
    return found


async def test_outcomes_are_written_together_and_the_last_ones_at_the_end(
    hq: Any, writes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 3600)
    async with hq.client("FL-LAB") as lab, lab.publisher(to="CA-RC", batch=1) as publisher:
        for _ in range(3):
            await publisher.send("x")
            await publisher.flush()
    assert writes == [(1, 0), (1, 0), (1, 0), (0, 3)]


async def test_an_outcome_that_no_envelope_follows_is_written_once_after_a_moment(
    hq: Any, writes: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
        with trio.fail_after(20):
            await until(lambda: len(writes) == 2)
        await trio.sleep(0.1)  # ten pauses
        assert writes == [(1, 0), (0, 1)]
