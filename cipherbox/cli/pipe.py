"""`pipe`: standard input here to standard output there, and back."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import suggesting
from cipherbox.cli.options import CLIENT_ID, DURATION
from cipherbox.cli.running import run_until_stopped

IDLE_S = 60.0
SHORTEST_S = 2.0


class StandardEnds:
    """Standard input and output of this process.  Blocking calls run in threads that may be
    abandoned.
    """

    async def read(self, most: int) -> bytes:
        import trio

        return await trio.to_thread.run_sync(os.read, 0, most, abandon_on_cancel=True)

    async def write(self, data: bytes) -> None:
        import trio

        view = memoryview(data)
        while view:
            view = view[await trio.to_thread.run_sync(os.write, 1, view, abandon_on_cancel=True) :]

    async def close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)


async def _until_stopped(work: Callable[[float], Awaitable[None]], within_s: float) -> None:
    """Do the work until a signal, which ends the pipe but not yet the connection, so that the other
    end is notified.
    """
    import trio

    from cipherbox.concurrency import background
    from cipherbox.portable import stop_signals

    with trio.open_signal_receiver(*stop_signals()) as signals, trio.CancelScope() as scope:
        async with background() as nursery:

            async def until_stopped() -> None:
                async for _ in signals:
                    scope.cancel()

            nursery.start_soon(until_stopped)
            await work(within_s)
    if scope.cancelled_caught:
        raise KeyboardInterrupt


@click.command()
@click.argument("client_id", metavar="CLIENT", type=CLIENT_ID)
@click.option("--listen", is_flag=True, help="Wait until CLIENT calls, instead of calling it.")
@click.option(
    "--within",
    type=DURATION,
    help="Give up if CLIENT does not answer, or call, within this time. [default: 60s; "
    "--listen: never]",
)
@click.option(
    "--idle",
    type=DURATION,
    default=IDLE_S,
    help="Give up if CLIENT is silent for this time; 0: never. [default: 60s]",
)
@click.pass_context
def pipe(
    ctx: click.Context, client_id: str, listen: bool, within: float | None, idle: float
) -> int:
    """Connect standard input and output to another client's, sealed: netcat between two clients.

    \b
    cipherbox pipe FL-LAB --listen </dev/null | tar x     at CA-RC
    tar c run-42 | cipherbox pipe CA-RC                   at FL-LAB

    Any bytes, in order, each once; a slow reader slows down the writer. The end of the input is
    transmitted, and the command exits with 0 when both inputs have ended and everything is written
    out. It waits for cut connections and restarts of HQ. If the other end breaks off or falls
    silent, the exit code is 3. Nothing else may receive for this client meanwhile: stop `receive`
    and the agent first. [manual: tools]
    """
    from cipherbox.apps.pipe.pipe import Pipe
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import next_step, print_trouble, warn
    from cipherbox.client.client import open_client

    if 0 < idle < SHORTEST_S:
        raise click.UsageError(f"--idle must be at least {SHORTEST_S:g}s, or 0.")
    if within is not None and within <= 0:
        raise click.UsageError("--within must be positive, for example 60s, 15m or 12h.")
    home = load_here(ctx)
    if home.config.client_id == client_id:
        raise click.UsageError("A pipe has two ends: name the other client.")

    async def main() -> None:
        async with open_client(home, on_event=print_trouble) as client, suggesting(ctx, client):
            made = Pipe(client, client_id, StandardEnds(), idle_s=idle)
            if not listen:
                await _until_stopped(made.call, within if within is not None else IDLE_S)
                return
            if sys.stderr.isatty():
                next_step(f"there: cipherbox pipe {client.client_id}")
            await _until_stopped(made.listen, within if within is not None else float("inf"))

    code = Exit.OK
    try:
        run_until_stopped(main)
    except* BrokenPipeError:
        warn(f"Standard output is no longer read; {client_id} was notified.")
        code = Exit.OUTPUT
    return code
