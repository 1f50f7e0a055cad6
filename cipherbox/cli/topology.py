"""`exchange`, `queue`, `binding`, `grant` and `grants`: routes and the rights on them."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.home import command_here, with_admin, with_client
from cipherbox.cli.options import (
    CLIENT_ID,
    DURATION,
    EXCHANGE,
    KEY,
    QUEUE,
    ClientId,
    json_option,
    sure,
    yes_option,
)

if TYPE_CHECKING:
    from cipherbox.client.client import Client

RIGHTS = ("publish", "bind", "read", "declare", "admin")
TYPES = ("direct", "fanout", "topic")
_ROUTES = {
    "direct": "a binding matches an equal routing key",
    "fanout": "every binding matches, whatever the routing key",
    "topic": "a binding matches a pattern, where * is one word between dots and # any number",
}


class ClientOrAll(ClientId):
    """A client id, or ``*`` for every client."""

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return value if value == "*" else super().convert(value, param, ctx)


def _list(ctx: click.Context, what: str, as_json: bool, empty: str) -> None:
    from cipherbox.cli.output import print_json, rows_table

    rows = with_client(ctx, lambda client: client.list(what))
    if as_json:
        print_json(rows)
    else:
        rows_table(rows, empty=empty)


def show_parts(
    thing: dict[str, Any], parts: dict[str, list[dict[str, Any]]], as_json: bool
) -> None:
    """Print a record with its related rows: as JSON, or as lines and small tables."""
    from cipherbox.cli.output import print_json, record, rows_table, say

    if as_json:
        print_json({**thing, **parts})
        return
    record(thing)
    for title, rows in parts.items():
        say()
        say(f"{title.replace('_', ' ')}:")
        rows_table(rows, empty="none")


async def _grants_on(client: Client, name: str) -> list[dict[str, Any]]:
    return [
        {"client": row["name"], "right": row["right"]}
        for row in await client.list("grants")
        if row["resource"] == name
    ]


# -- exchanges -------------------------------------------------------------------------------------


@click.group()
def exchange() -> None:
    """Declare, show, list and delete exchanges, to which senders publish."""


@exchange.command("declare")
@click.argument("name", type=EXCHANGE)
@click.option("--type", "kind", type=click.Choice(TYPES), default="direct", show_default=True)
@click.pass_context
def exchange_declare(ctx: click.Context, name: str, kind: str) -> None:
    """Declare exchange NAME; an existing one must be equal."""
    from cipherbox.cli.output import next_step, say

    with_client(ctx, lambda client: client.declare_exchange(name, kind))
    say(f"Exchange {name!r} of type {kind} is declared: {_ROUTES[kind]}.")
    next_step(f"bind a queue to it: {command_here(ctx)} binding declare {name} QUEUE KEY")


@exchange.command("show")
@click.argument("name", type=EXCHANGE)
@json_option
@click.pass_context
def exchange_show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show exchange NAME, its bindings, and the rights on it."""

    async def work(client: Client) -> None:
        (row,) = await client.list("exchanges", name)
        bindings = [
            {"queue": b["queue"], "routing_key": b["routing_key"]}
            for b in await client.list("bindings")
            if b["exchange"] == name
        ]
        show_parts(
            {**row, "bindings": len(bindings)},
            {"leads_to": bindings, "rights": await _grants_on(client, name)},
            as_json,
        )

    with_client(ctx, work)


@exchange.command("delete")
@click.argument("name", type=EXCHANGE)
@yes_option
@click.pass_context
def exchange_delete(ctx: click.Context, name: str, yes: bool) -> None:
    """Delete exchange NAME, its bindings and the rights on it. Envelopes in queues stay there."""
    from cipherbox.cli.output import say

    sure(f"Delete exchange {name!r} with its bindings and rights?", yes)
    with_client(ctx, lambda client: client.delete_exchange(name))
    say(f"Exchange {name!r} is deleted.")


@exchange.command("list")
@json_option
@click.pass_context
def exchange_list(ctx: click.Context, as_json: bool) -> None:
    """List the exchanges you may publish to; an admin sees all."""
    _list(ctx, "exchanges", as_json, "no exchange that you may publish to")


# -- queues ----------------------------------------------------------------------------------------


@click.group()
def queue() -> None:
    """Declare, show, list, purge and delete queues, in which envelopes wait for their readers."""


@queue.command("declare")
@click.argument("name", type=QUEUE)
@click.option("--owner", type=CLIENT_ID, help="Its owner (admin). [default: you]")
@click.option(
    "--reader", "readers", type=CLIENT_ID, multiple=True, help="Additional reader; repeatable."
)
@click.option(
    "--ttl",
    type=DURATION,
    help="Time to live, for example 7d; then a dead letter; 0: unlimited.",
)
@click.option(
    "--max-length",
    type=click.IntRange(0, 2**32 - 2),
    help="Maximum length; the oldest beyond it become dead letters; 0: unlimited.",
)
@click.pass_context
def queue_declare(
    ctx: click.Context,
    name: str,
    owner: str | None,
    readers: tuple[str, ...],
    ttl: float | None,
    max_length: int | None,
) -> None:
    """Declare queue NAME; an existing one must be equal, but given limits are changed.

    Everything in it is sealed for its owner and readers.
    """
    from cipherbox.cli.output import next_step, say

    ttl_s = None if ttl is None else int(ttl)

    async def work(client: Client) -> str:
        if not owner and client.home.identity is None:
            raise click.UsageError(
                "An admin cannot open messages, so it cannot own a queue: specify the owner with "
                "--owner CLIENT_ID."
            )
        await client.declare_queue(
            name, owner=owner or "", readers=readers, ttl_s=ttl_s, max_length=max_length
        )
        return owner or client.client_id

    whose = with_client(ctx, work)
    say(
        f"Queue {name!r} is declared; {', '.join(dict.fromkeys([whose, *readers]))} "
        f"read{'' if readers else 's'} it."
    )
    next_step(f"bind it to an exchange: {command_here(ctx)} binding declare EXCHANGE {name} KEY")


@queue.command("show")
@click.argument("name", type=QUEUE)
@json_option
@click.pass_context
def queue_show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show queue NAME: what is waiting and since when, its readers, its bindings."""

    async def work(client: Client) -> None:
        (row,) = await client.list("queues", name)
        bindings = [
            {"exchange": b["exchange"], "routing_key": b["routing_key"]}
            for b in await client.list("bindings")
            if b["queue"] == name
        ]
        show_parts(row, {"led_to_by": bindings, "rights": await _grants_on(client, name)}, as_json)

    with_client(ctx, work)


@queue.command("delete")
@click.argument("name", type=QUEUE)
@yes_option
@click.pass_context
def queue_delete(ctx: click.Context, name: str, yes: bool) -> None:
    """Delete the empty queue NAME, its bindings and the rights on it.

    A queue with waiting envelopes is not deleted: receive them, or purge it first.
    """
    from cipherbox.cli.output import say

    sure(f"Delete queue {name!r} with its bindings and rights?", yes)
    with_client(ctx, lambda client: client.delete_queue(name))
    say(f"Queue {name!r} is deleted.")


@queue.command("purge")
@click.argument("name", type=QUEUE)
@yes_option
@click.pass_context
def queue_purge(ctx: click.Context, name: str, yes: bool) -> None:
    """Dead-letter everything waiting in queue NAME (admin).

    HQ keeps the dead letters with envelope, reason and actor; they are not delivered any more.
    """
    from cipherbox.cli.output import say
    from cipherbox.portable import can_ask

    what = "everything that waits"
    if not yes and can_ask():
        (row,) = with_admin(ctx, lambda client: client.list("queues", name))
        what = f"the {row['waiting'] + row['unacknowledged']} envelopes that wait"
    sure(f"Move {what} in {name!r} to the dead letters?", yes)
    count = with_admin(ctx, lambda client: client.purge(name))
    say(f"{count} envelope{'' if count == 1 else 's'} of {name!r} went to the dead letters.")


@queue.command("list")
@json_option
@click.pass_context
def queue_list(ctx: click.Context, as_json: bool) -> None:
    """List your queues and what is waiting in them; an admin sees all."""
    _list(ctx, "queues", as_json, "no queue")


# -- bindings --------------------------------------------------------------------------------------


@click.group()
def binding() -> None:
    """Declare, show, list and delete bindings of queues to exchanges."""


@binding.command("declare")
@click.argument("exchange", type=EXCHANGE)
@click.argument("queue", type=QUEUE)
@click.argument("key", type=KEY)
@click.pass_context
def binding_declare(ctx: click.Context, exchange: str, queue: str, key: str) -> None:
    """Bind QUEUE to EXCHANGE under KEY; on a topic exchange * is one word and # any number."""
    from cipherbox.cli.output import next_step, say, warn
    from cipherbox.errors import NotFound

    async def work(client: Client) -> str:
        await client.bind(exchange, queue, key)
        with suppress(NotFound):
            (row,) = await client.list("exchanges", exchange)
            return str(row["type"])
        return ""

    kind = with_client(ctx, work)
    say(f"Queue {queue!r} is bound to {exchange!r} with key {key!r}.")
    if doubt := _misfit(exchange, kind, key):
        warn(doubt)
    next_step(
        f"each sender needs the right:  cipherbox grant CLIENT_ID publish {exchange}   (admin)",
        f"and permits its recipients:   cipherbox route allow {exchange} CLIENT_ID...   (sender)",
    )


def _misfit(exchange: str, kind: str, key: str) -> str:
    """Return a warning if the key does not mean on this exchange what it looks like; else an empty
    text.
    """
    if kind == "fanout" and key:
        return f"{exchange!r} is of type fanout: the queue gets every key, not only {key!r}."
    if not set(key) & set("*#"):
        return ""
    if kind == "direct":
        return (
            f"{exchange!r} is of type direct, where {key!r} is an ordinary key, not a pattern. "
            "Patterns need an exchange declared with --type topic."
        )
    odd = [word for word in key.split(".") if len(word) > 1 and set(word) & set("*#")]
    return (
        f"{odd[0]!r} in {key!r} is taken literally: * and # stand for whole words between dots."
        if odd
        else ""
    )


@binding.command("show")
@click.argument("name", type=QUEUE)
@json_option
@click.pass_context
def binding_show(ctx: click.Context, name: str, as_json: bool) -> None:
    """Show the bindings of the exchange or queue NAME."""
    from cipherbox.cli.output import print_json, rows_table
    from cipherbox.errors import NotFound

    rows = with_client(ctx, lambda client: client.list("bindings"))
    found = [row for row in rows if name in (row["exchange"], row["queue"])]
    if not found:
        raise NotFound(f"no binding of {name!r} that you may see")
    if as_json:
        print_json(found)
    else:
        rows_table([{k: row[k] for k in ("exchange", "queue", "routing_key")} for row in found])


@binding.command("delete")
@click.argument("exchange", type=EXCHANGE)
@click.argument("queue", type=QUEUE)
@click.argument("key", type=KEY)
@click.pass_context
def binding_delete(ctx: click.Context, exchange: str, queue: str, key: str) -> None:
    """Delete a binding. Envelopes in the queue stay there."""
    from cipherbox.cli.output import say

    with_client(ctx, lambda client: client.unbind(exchange, queue, key))
    say(f"Queue {queue!r} is no longer bound to {exchange!r} with key {key!r}.")


@binding.command("list")
@json_option
@click.pass_context
def binding_list(ctx: click.Context, as_json: bool) -> None:
    """List the bindings of your queues; an admin sees all."""
    _list(ctx, "bindings", as_json, "no binding")


# -- rights ----------------------------------------------------------------------------------------


@click.command()
@click.argument("client_id", type=ClientOrAll())
@click.argument("right", type=click.Choice(RIGHTS))
@click.argument("resource", default="")
@click.option("--take", is_flag=True, help="Revoke the right instead.")
@click.pass_context
def grant(ctx: click.Context, client_id: str, right: str, resource: str, take: bool) -> None:
    """Grant CLIENT_ID (* for all) a right: publish or bind on an exchange, read on a queue,
    declare, admin.

    RESOURCE is the exchange or queue. For the model see `cipherbox manual permissions`.
    """
    from cipherbox.cli.output import next_step, say

    needs = {"publish": "an exchange", "bind": "an exchange", "read": "a queue"}.get(right)
    if needs and not resource:
        raise click.UsageError(
            f"The right {right!r} needs {needs}: cipherbox grant {client_id} {right} NAME"
        )
    with_admin(ctx, lambda client: client.grant(client_id, right, resource, give=not take))
    on = f" on {resource!r}" if resource else ""
    say(f"{client_id} {'no longer has' if take else 'has'} {right!r}{on}.")
    if right == "publish" and not take:
        next_step(
            f"the sender permits its recipients: cipherbox route allow {resource} CLIENT_ID..."
        )


@click.command()
@click.argument("client_id", type=ClientOrAll(), required=False)
@json_option
@click.pass_context
def grants(ctx: click.Context, client_id: str | None, as_json: bool) -> None:
    """List the granted rights, or those of CLIENT_ID. You see your own and those of all clients
    (*); an admin sees everything.

    For the readers of a queue: cipherbox queue show NAME
    """
    from cipherbox.cli.output import print_json, rows_table

    async def work(client: Client) -> list[dict[str, Any]]:
        if client_id not in (None, "*"):
            # raises NotFound for an unknown client; one without rights has an empty list
            await client.list("clients", client_id)
        return await client.list("grants")

    rows = with_client(ctx, work)
    found = [
        {"client": row["name"], "right": row["right"], "resource": row["resource"]}
        for row in rows
        if client_id is None or row["name"] == client_id
    ]
    if as_json:
        print_json(found)
    else:
        rows_table(found, empty="no rights granted")
