"""`inbox`: messages whose handler failed for good."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING

import click

from cipherbox.cli.options import command_here, home_of, json_option
from cipherbox.cli.outbox import _offline
from cipherbox.cli.status import MessageId
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.client.api import Client
    from cipherbox.client.inbox.handler import SetAside


@click.group()
def inbox() -> None:
    """Messages that were received and whose handler failed again and again."""


@inbox.command("list")
@json_option
@click.pass_context
def inbox_list(ctx: click.Context, as_json: bool) -> None:
    """List what was set aside, with the reason."""
    from cipherbox.cli.output import next_step, print_json, safe, table
    from cipherbox.client.inbox.handler import Handlers

    async def work(client: Client) -> list[SetAside]:
        handlers = Handlers(client)
        try:
            return handlers.set_aside()
        finally:
            handlers.close()

    rows = _offline(ctx, work)
    if as_json:
        import attrs

        print_json([{**attrs.asdict(row), "message_id": str(row.message_id)} for row in rows])
        return
    table(
        ("message", "from", "attempts", "reason"),
        [(str(r.message_id), safe(r.sender_id), r.attempts, safe(r.reason)) for r in rows],
        empty="nothing was set aside",
    )
    if rows:
        next_step(f"try all again, with the next receive --exec: {command_here(ctx)} inbox retry")


@inbox.command("retry")
@click.argument("message_id", type=MessageId(), required=False)
@click.pass_context
def inbox_retry(ctx: click.Context, message_id: uuid.UUID | None) -> None:
    """Let the handler try MESSAGE_ID again, or everything that was set aside."""
    from cipherbox.cli.output import say
    from cipherbox.client.inbox.handler import Handlers

    async def work(client: Client) -> int:
        handlers = Handlers(client)
        try:
            return handlers.retry(message_id)
        finally:
            handlers.close()

    count = _offline(ctx, work)
    if message_id is not None and not count:
        raise NotFound(f"message {message_id} was not set aside in {home_of(ctx)}")
    say(f"{count} message(s) will be tried again by the next: cipherbox receive --exec COMMAND")
