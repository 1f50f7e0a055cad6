"""`receive` and `fetch`: store each message once in data/received_messages.jsonl and each file once
in one directory, then acknowledge.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import command_here, home_of
from cipherbox.cli.incoming import announce_incoming, incoming_option, ordered_option
from cipherbox.cli.options import DURATION, QUEUE, json_option
from cipherbox.cli.receive_exec import execute
from cipherbox.cli.running import run

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.receiving.receiver import Receiver

    Work = Callable[[Client, Receiver], Awaitable[None]]

_queue_option = click.option(
    "--queue",
    "queues",
    type=QUEUE,
    multiple=True,
    help="Only this queue; repeatable. [default: all that you read]",
)


@click.command()
@_queue_option
@incoming_option
@click.option("--count", type=click.IntRange(min=1), help="Stop after this many messages.")
@click.option(
    "--idle", type=DURATION, help="Stop after this time without a message, for example 30s."
)
@click.option(
    "--exec",
    "command",
    help="Run this command for each message and file, its content on standard input.",
)
@ordered_option
@json_option
@click.pass_context
def receive(
    ctx: click.Context,
    queues: tuple[str, ...],
    incoming: Path | None,
    count: int | None,
    idle: float | None,
    command: str | None,
    ordered: bool,
    as_json: bool,
) -> None:
    """Receive messages and files until Ctrl-C; HQ pushes them.

    Files and directories of any size arrive under their names in SENDER/ below the directory of
    incoming files. Every message and every file is one line in data/received_messages.jsonl of your
    home, exactly once. With --json these lines are printed, and nothing else.

    With --exec, a command runs for each message and each complete file. Its environment contains
    CIPHERBOX_MESSAGE_ID, CIPHERBOX_SENDER_ID, CIPHERBOX_CONTENT_TYPE and CIPHERBOX_ATTEMPT, for a
    file also CIPHERBOX_FILE (its path) and CIPHERBOX_FILENAME (its sender's name for it). Exit code
    0 means done. 75 means "later", for example because the system behind it is unavailable: the
    message is retried indefinitely, with back-off up to five minutes. Any other code means that the
    message is bad: it is tried five times in all, then parked: cipherbox inbox list --parked. After
    a crash the command runs again.
    """
    if command is not None:
        if count is not None or as_json:
            raise click.UsageError("--exec cannot be combined with --count or --json.")
        execute(ctx, command, list(queues) or None, idle, incoming, ordered=ordered)
        return
    if ordered:
        raise click.UsageError("--ordered requires --exec.")
    from cipherbox.cli.output import say, warn

    async def work(client: Client, receiver: Receiver) -> None:
        await client.connection.ready()
        if not unlimited:
            await receiver.run(list(queues) or None, count=count, idle_s=idle)
            return
        if not as_json:
            warn("Waiting for messages; Ctrl-C stops.")
        await receiver.keep(list(queues) or None)

    # without an end of its own it waits for HQ indefinitely
    unlimited = count is None and idle is None
    receiver = _with_receiver(ctx, as_json, work, incoming, keep_trying=unlimited)
    if not as_json:
        say(f"{receiver.received} message(s) received{_where(ctx, receiver)}")
    _warn_of_refusals(receiver)


@click.command()
@_queue_option
@incoming_option
@click.option("--count", type=click.IntRange(min=1), help="At most this many messages.")
@json_option
@click.pass_context
def fetch(
    ctx: click.Context,
    queues: tuple[str, ...],
    incoming: Path | None,
    count: int | None,
    as_json: bool,
) -> None:
    """Receive what is waiting now, as `receive` does, then exit."""
    from cipherbox.cli.output import next_step, say

    async def work(_: Client, receiver: Receiver) -> None:
        await receiver.drain(list(queues) or None, count=count)

    receiver = _with_receiver(ctx, as_json, work, incoming)
    if not as_json:
        say(f"{receiver.received} message(s) received{_where(ctx, receiver)}")
        if not receiver.received:
            next_step(f"wait for messages as they come: {command_here(ctx)} receive")
    _warn_of_refusals(receiver)


def _where(ctx: click.Context, receiver: Receiver) -> str:
    plain = receiver.storage.plain
    return (
        f": {home_of(ctx) / 'data' / 'received_messages.jsonl'}"
        if plain
        else ", kept under this home's key"
    )


def _with_receiver(
    ctx: click.Context,
    as_json: bool,
    work: Work,
    incoming: Path | None,
    *,
    keep_trying: bool = False,
) -> Receiver:
    """Open client and receiver and do the work, until it ends or a signal stops it."""
    import trio

    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import print_event, print_raw
    from cipherbox.cli.stdout import output_failure
    from cipherbox.client.client import open_client
    from cipherbox.client.receiving.receiver import Receiver
    from cipherbox.portable import stop_signals

    def print_lines(lines: list[bytes]) -> None:
        for line in lines:
            print_raw(line)
        if output_failure() is not None:
            raise BrokenPipeError  # the reader is gone; what was received is in the file

    home = load_here(ctx, renews=keep_trying)
    if not as_json:
        announce_incoming(home, incoming)

    async def main() -> Receiver:
        with trio.open_signal_receiver(*stop_signals()) as signals:
            on_event = None if as_json else print_event
            async with open_client(
                home, on_event=on_event, keep_trying=keep_trying, renew=keep_trying
            ) as client:
                receiver = Receiver(
                    client, on_lines=print_lines if as_json else None, incoming=incoming
                )
                async with trio.open_nursery() as nursery:

                    async def until_stopped() -> None:
                        async for _ in signals:
                            nursery.cancel_scope.cancel()

                    nursery.start_soon(until_stopped)
                    await work(client, receiver)
                    nursery.cancel_scope.cancel()
                return receiver

    return run(main)


def _warn_of_refusals(receiver: Receiver) -> None:
    from cipherbox.cli.output import safe, warn

    if receiver.duplicates:
        warn(f"{receiver.duplicates} envelope(s) came again and were not written twice.")
    if receiver.refused:
        warn(
            f"Refused {receiver.refused} time(s), counting what came again; HQ has the reasons, "
            "too:"
        )
        for (sender, reason), count in receiver.refusals.most_common():
            warn(f"  {count} from {safe(sender)}: {safe(reason)}")
        if rest := receiver.refused - receiver.refusals.total():
            warn(f"  {rest} more; see: cipherbox inbox list --refused")
