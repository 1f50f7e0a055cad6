"""`route`: the readers behind an exchange and key, and the sender's allow-list for it."""

from __future__ import annotations

import click

from cipherbox.cli.home import command_here, home_of, with_client
from cipherbox.cli.options import CLIENT_ID, EXCHANGE, KEY, json_option


@click.group()
def route() -> None:
    """Set who may receive what you send to an exchange: HQ names the readers, you permit them."""


@route.command("allow")
@click.argument("exchange", type=EXCHANGE)
@click.argument("client_ids", type=CLIENT_ID, nargs=-1)
@click.option("--any", "anybody", is_flag=True, help="Every client that this HQ's CA certified.")
@click.option("--remove", is_flag=True, help="Remove these from the list instead.")
@click.pass_context
def route_allow(
    ctx: click.Context, exchange: str, client_ids: tuple[str, ...], anybody: bool, remove: bool
) -> None:
    """Permit CLIENT_IDS as recipients of what you send to EXCHANGE."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.publishing.allow_list import AllowList

    if anybody == bool(client_ids):
        raise click.UsageError("Specify client ids or --any.")
    lists = AllowList(home_of(ctx))
    if remove:
        lists.remove(exchange, None if anybody else client_ids)
    else:
        lists.allow(exchange, None if anybody else client_ids)
    say(f"{exchange}: {_words(lists.entries().get(exchange))}")
    if not remove:
        next_step(f"see who would get it now: {command_here(ctx)} route resolve {exchange} KEY")


@route.command("list")
@json_option
@click.pass_context
def route_list(ctx: click.Context, as_json: bool) -> None:
    """List the recipients you permit, by exchange."""
    from cipherbox.cli.output import print_json, table
    from cipherbox.client.publishing.allow_list import AllowList

    entries = AllowList(home_of(ctx)).entries()
    if as_json:
        print_json(entries)
        return
    rows = [(name, _words(allowed)) for name, allowed in sorted(entries.items())]
    table(
        ("exchange", "permitted recipients"),
        rows,
        empty="no exchange has a list: cipherbox route allow",
    )


@route.command("resolve")
@click.argument("exchange", type=EXCHANGE)
@click.argument("key", type=KEY)
@json_option
@click.pass_context
def route_resolve(ctx: click.Context, exchange: str, key: str, as_json: bool) -> None:
    """Show the current readers of what is sent to EXCHANGE with KEY."""
    from cipherbox.cli.output import print_json, safe, table
    from cipherbox.client.publishing.allow_list import AllowList

    found = with_client(ctx, lambda client: client.resolve(exchange, key))
    allowed = AllowList(home_of(ctx)).entries().get(exchange, [])
    queues = [(queue.queue, list(queue.readers)) for queue in found.queues]
    if as_json:
        print_json(
            {"version": found.version, "queues": [{"queue": q, "readers": r} for q, r in queues]}
        )
        return
    rows = [
        (safe(queue), safe(reader), "yes" if allowed == "*" or reader in allowed else "no")
        for queue, readers in queues
        for reader in readers
    ]
    table(
        ("queue", "reader", "permitted"),
        rows,
        empty="no queue with a reader is bound to this route",
    )


def _words(allowed: object) -> str:
    if allowed == "*":
        return "anybody certified"
    return ", ".join(allowed) if isinstance(allowed, list | tuple) and allowed else "nobody"
