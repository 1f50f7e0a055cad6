"""Every odd moment of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.apps.agent import agent as agent_module
from cipherbox.apps.agent import pauses, sending
from tests.cases.moments import MOMENTS, Scene
from tests.client.conftest import empty_hq, hq

__all__ = ["empty_hq", "hq"]


@pytest.mark.parametrize("name", MOMENTS)
async def test_the_agent_and(
    name: str, hq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "LOOK_S", 0.05)
    monkeypatch.setattr(pauses, "FIRST_S", 0.2)
    monkeypatch.setattr(sending, "SMALL_BYTES", 256 * 1024)
    with trio.fail_after(60):
        await MOMENTS[name](Scene(hq, tmp_path / "lab", monkeypatch))
