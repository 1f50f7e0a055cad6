"""The sign of life comes from the engine's own task: a commit that hangs ends it, a store that
is away does not.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from cipherbox.errors import StoreUnavailable
from cipherbox.ops import systemd
from cipherbox.server import app
from tests.server.inline import world


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setenv("WATCHDOG_USEC", "6000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.setattr(systemd, "notify", lambda *lines: found.extend(lines) or True)
    return found


async def test_alive_while_the_engine_turns(
    told: list[str], autojump_clock: trio.testing.MockClock
) -> None:
    engine = SimpleNamespace(turns=0)
    hq: Any = SimpleNamespace(engine=engine, connections={1})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(app.tell_systemd, hq)
        await trio.sleep(0.5)
        for _ in range(10):
            engine.turns += 1
            await trio.sleep(1.0)
        assert told.count("WATCHDOG=1") == 5
        assert told.count("STATUS=serving 1 connection") == 1
        await trio.sleep(3.0)
        told.clear()
        await trio.sleep(60.0)
        assert told == []
        nursery.cancel_scope.cancel()


async def test_an_engine_turns_until_a_commit_hangs(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        before = w.engine.turns
        await trio.sleep(5.0)
        assert w.engine.turns >= before + 4
        w.runner.held = trio.Event()
        await w.publish(a, 1)
        await w.runner.reached.wait()
        before = w.engine.turns
        await trio.sleep(300.0)
        assert w.engine.turns == before
        w.runner.held.set()
        w.runner.held = None


async def test_an_engine_that_waits_for_its_store_turns(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world(tmp_path) as w:
        a = w.peer("A")
        w.runner.fail["commit"] = [StoreUnavailable()]
        w.runner.fail["load"] = [StoreUnavailable()] * 20
        await w.publish(a, 1)
        await a.until(lambda: bool(a.ended))
        before = w.engine.turns
        await trio.sleep(10.0)
        assert w.engine.turns >= before + 5
        await trio.sleep(30.0)
