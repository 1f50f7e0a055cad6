"""Shared by the measured processes: reports as lines of JSON, and the timed part of the work."""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable, Callable

import orjson
import trio

STAMP = 20  # digits of a time, with which a message begins
SAMPLES = 20_000


def message(stamp: int, size: int) -> str:
    """Return a message that begins with the time it was published."""
    return f"{stamp:020d}".ljust(size, "x")[:size]


def report(**values: object) -> None:
    print(orjson.dumps(values).decode(), flush=True)


async def measured(body: Callable[[], Awaitable[None]]) -> dict[str, float]:
    report(ready=True)
    await trio.to_thread.run_sync(sys.stdin.buffer.readline)
    cpu, began = time.process_time(), time.monotonic_ns()
    await body()
    return {"began": began, "ended": time.monotonic_ns(), "cpu_s": time.process_time() - cpu}


def shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]
