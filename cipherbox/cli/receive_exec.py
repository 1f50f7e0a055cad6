"""`receive --exec`: a command of the user's for each message."""

from __future__ import annotations

import os
import shlex
import sqlite3
from typing import TYPE_CHECKING

import click
import trio

from cipherbox.cli.options import command_here, run_until_stopped

if TYPE_CHECKING:
    from cipherbox.client.inbox.handler import Handled, Handlers


def execute(ctx: click.Context, command: str, queues: list[str] | None, idle_s: float | None) -> None:
    """Receives and runs the command until stopped; says at the end how many it was."""
    from cipherbox.cli.output import next_step, print_event, say
    from cipherbox.cli.password import load_here
    from cipherbox.client.api import open_client

    words = shlex.split(command)
    if not words:
        raise click.UsageError("--exec needs a command.")
    service = idle_s is None
    home = load_here(ctx, renews=service)

    async def handle(handled: Handled, _: sqlite3.Connection) -> None:
        environment = {
            **os.environ,
            "CIPHERBOX_MESSAGE_ID": str(handled.message_id),
            "CIPHERBOX_SENDER_ID": handled.sender_id,
            "CIPHERBOX_CONTENT_TYPE": handled.message.content_type,
            "CIPHERBOX_ATTEMPT": str(handled.attempt),
        }
        done = await trio.run_process(words, stdin=handled.message.content, check=False, env=environment)
        if done.returncode:
            raise RuntimeError(f"{words[0]} ended with {done.returncode}")

    async def main() -> Handlers:
        async with open_client(home, on_event=print_event, keep_trying=service, renew=service) as client:
            return await client.process(handle, queues=queues, idle_s=idle_s)

    handlers = run_until_stopped(main)
    say(f"{handlers.done} message(s) handled.")
    if handlers.aside:
        next_step(f"{handlers.aside} were set aside; see: {command_here(ctx)} inbox list")
