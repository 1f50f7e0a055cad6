"""Starting trio: run an async function to its end, or until a signal stops it."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


def run(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Run an async function to its end and return its result."""
    import trio

    from cipherbox.portable import keep_heap

    keep_heap()
    gc.freeze()  # what was imported stays
    # batches are tuples without cycles: collecting them would take a tenth of the CPU time
    gc.set_threshold(50_000, 20, 50)
    result: T = trio.run(work, *arguments)
    return result


def run_until_stopped(work: Callable[..., Awaitable[T]], *arguments: object) -> T:
    """Like `run`, but Ctrl-C, SIGTERM and a closed terminal cancel it, so that it can stop what it
    started; then raise KeyboardInterrupt.

    Further signals meanwhile change nothing: `timeout` sends two, and one that nobody has taken
    would end the program before its caller has removed its directories.
    """
    import trio

    from cipherbox.portable import hang_up_signals, stop_signals

    async def main() -> list[T]:
        found: list[T] = []
        with trio.open_signal_receiver(*stop_signals(), *hang_up_signals()) as signals:
            async with trio.open_nursery() as nursery:
                scope = trio.CancelScope()

                async def until_stopped() -> None:
                    async for _ in signals:
                        scope.cancel()

                nursery.start_soon(until_stopped)
                with scope:
                    found.append(await work(*arguments))
                nursery.cancel_scope.cancel()
        return found

    done = run(main)
    if not done:
        raise KeyboardInterrupt
    return done[0]
