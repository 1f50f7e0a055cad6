"""Where the command line starts trio: a piece of work, run to its end or until it is stopped."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def run(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Runs an async function to its end."""
    import trio

    from cipherbox.portable import keep_heap

    keep_heap()
    gc.freeze()  # what was imported stays
    # batches are tuples without cycles: looking through them is a tenth of the work
    gc.set_threshold(50_000, 20, 50)
    result: T = trio.run(work, *arguments)
    return result


def run_until_stopped(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """As `run`; Ctrl-C and SIGTERM end it in order, so that what it started ends too.  Then
    KeyboardInterrupt.
    """
    import trio

    from cipherbox.portable import stop_signals

    async def main() -> list[T]:
        found: list[T] = []
        with trio.open_signal_receiver(*stop_signals()) as signals:
            async with trio.open_nursery() as nursery:

                async def until_stopped() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                nursery.start_soon(until_stopped)
                found.append(await work(*arguments))
                nursery.cancel_scope.cancel()
        return found

    done = run(main)
    if not done:
        raise KeyboardInterrupt
    return done[0]
