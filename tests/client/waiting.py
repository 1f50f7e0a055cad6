"""Waiting for what another task, thread or process does."""

from __future__ import annotations

from collections.abc import Callable

import trio


async def until(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    """Returns as soon as the condition holds; fails after the limit."""
    with trio.fail_after(limit_s):
        while True:
            if condition():
                return
            await trio.sleep(0.01)
