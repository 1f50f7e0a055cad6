"""`--exec` of `receive` and `agent`: run the user's command for each message and each file."""

from __future__ import annotations

import os
import shlex
import shutil
import sqlite3
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING

import click
import trio

from cipherbox.cli.home import command_here
from cipherbox.cli.running import run_until_stopped
from cipherbox.errors import Bad, Later
from cipherbox.portable import escape_text, stop_signals

if TYPE_CHECKING:
    from cipherbox.client.receiving.handler import Handled, Handler, Handlers

SIGKILL = 9  # by its number: not every system has the name
LATER = 75  # EX_TEMPFAIL of sysexits.h: try again later
# shell operators, as words of their own
_SHELL = frozenset([">", ">>", "<", "|", "||", "&&", ";", "&", "2>", "2>&1"])
_NAME_MOST = 4096  # bytes of a sender's name for a file, in the environment


def handler_of(command: str) -> Handler:
    """Return a handler that runs the command with the content on standard input and the metadata in
    its environment.
    """
    words = _words(command)

    async def handle(handled: Handled, _: sqlite3.Connection) -> None:
        environment = {
            **os.environ,
            "CIPHERBOX_MESSAGE_ID": str(handled.message_id),
            "CIPHERBOX_SENDER_ID": handled.sender_id,
            "CIPHERBOX_CONTENT_TYPE": escape_text(handled.message.content_type),
            "CIPHERBOX_ATTEMPT": str(handled.attempt),
        }
        with ExitStack() as stack:
            content: bytes | int | IO[bytes] = handled.message.content
            if handled.file is not None:
                environment["CIPHERBOX_FILE"] = str(handled.file)
                environment["CIPHERBOX_FILENAME"] = escape_text(handled.filename, _NAME_MOST)
                file = handled.file
                content = (
                    stack.enter_context(file.open("rb")) if file.is_file() else subprocess.DEVNULL
                )
            done = await trio.run_process(words, check=False, env=environment, stdin=content)
        if done.returncode == LATER or -done.returncode in stop_numbers():
            raise Later(f"{words[0]} ended with {done.returncode}")
        if done.returncode:
            raise Bad(f"{words[0]} ended with {done.returncode}")

    return handle


def _words(command: str) -> list[str]:
    """Return the program and its arguments.  Mistakes are reported immediately, not when the first
    message waits for the program.
    """
    from cipherbox.cli.output import warn

    try:
        words = shlex.split(command)
    except ValueError as error:
        raise click.UsageError(
            f"--exec {command!r} cannot be read as a command: {error}."
        ) from None
    if not words:
        raise click.UsageError("--exec needs a command.")
    if shutil.which(words[0]) is None:
        why = "may not be run (chmod +x)" if Path(words[0]).is_file() else "is no program here"
        warn(f"--exec: {words[0]} {why}; what comes waits until it can be run.")
    if found := [word for word in words[1:] if word in _SHELL]:
        warn(
            f"--exec runs a program, and no shell reads {found[0]!r}; if it is meant for one: "
            "--exec \"sh -c '...'\""
        )
    return words


def stop_numbers() -> set[int]:
    """Return the signals that end a program because of the machine, not because of its input."""
    return {*map(int, stop_signals()), SIGKILL}


def execute(
    ctx: click.Context,
    command: str,
    queues: list[str] | None,
    idle_s: float | None,
    incoming: Path | None,
    *,
    ordered: bool = False,
) -> None:
    """Receive and run the command until stopped; print the number of messages at the end."""
    from cipherbox.cli.home import load_here
    from cipherbox.cli.incoming import announce_incoming
    from cipherbox.cli.output import next_step, print_event, say
    from cipherbox.client.client import open_client

    handle = handler_of(command)
    service = idle_s is None
    home = load_here(ctx, renews=service)
    announce_incoming(home, incoming)

    async def main() -> Handlers:
        async with open_client(
            home, on_event=print_event, keep_trying=service, renew=service
        ) as client:
            return await client.process(
                handle, queues=queues, idle_s=idle_s, incoming=incoming, ordered=ordered
            )

    handlers = run_until_stopped(main)
    say(f"{handlers.done} message(s) handled.")
    if handlers.parked_count:
        parked = f"{handlers.parked_count} were parked"
        next_step(f"{parked}; see: {command_here(ctx)} inbox list --parked")
