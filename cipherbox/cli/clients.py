"""`clients`: the enrolled and connected clients, their rights and limits; cut a connection."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.home import command_here, with_admin, with_client
from cipherbox.cli.options import CLIENT_ID, json_option

if TYPE_CHECKING:
    from cipherbox.client.client import Client

_HELP = ("-h", "--help")
ROLES = ("client", "admin")
WHAT = ("bytes", "envelopes", "queues", "bundles", "certificates", "prekeys")


class Clients(click.Group):
    """Run `list` for `clients` alone, and `show` for `clients FL-LAB`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        words = [word for word in args if not word.startswith("-")]
        if len(args) > 1 and words[:2] == args[:2] and words[0] not in self.commands:
            ctx.fail(f"No such command {words[0]!r}.")
        if not any(word in args for word in _HELP) and not (words and words[0] in self.commands):
            args = ["show" if words else "list", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return (
            super().get_command(ctx, cmd_name)
            or self.commands["list" if cmd_name.startswith("-") else "show"]
        )


@click.group(cls=Clients)
def clients() -> None:
    """List enrolled clients; `clients CLIENT_ID` shows one."""


@clients.command("list")
@click.option(
    "--pending", is_flag=True, help="Enrolments that are pending approval or the CA (admin)."
)
@click.option("--connected", is_flag=True, help="Current connections (admin).")
@json_option
@click.pass_context
def clients_list(ctx: click.Context, pending: bool, connected: bool, as_json: bool) -> None:
    """List enrolled clients; with --pending, open enrolments; with --connected, each connection and
    its latest request.
    """
    from cipherbox.cli.output import next_step, print_json, rows_table

    if pending and connected:
        raise click.UsageError("Either --pending or --connected.")
    what = "pending" if pending else "connections" if connected else "clients"
    rows = (with_client if what == "clients" else with_admin)(
        ctx, lambda client: _listed(client, what, as_json)
    )
    if as_json:
        print_json(rows)
        return
    rows_table(rows, empty="nobody waits" if pending else "nobody is enrolled yet")
    if any(row["state"] == "waiting" for row in rows if pending):
        next_step(f"compare the number with them, then: {command_here(ctx)} approve CLIENT_ID")


async def _listed(client: Client, what: str, as_json: bool) -> list[dict[str, Any]]:
    """Return the rows; for an admin's JSON with all totals, which do not fit the table."""
    rows = await client.list(what)
    if as_json and what == "clients" and rows and "role" in rows[0]:
        totals = {row["name"]: row for row in await client.list("totals")}
        return [row | totals.get(row["name"], {}) for row in rows]
    return rows


@clients.command("show")
@click.argument("client_id", type=CLIENT_ID)
@json_option
@click.pass_context
def clients_show(ctx: click.Context, client_id: str, as_json: bool) -> None:
    """Show CLIENT_ID with its rights and queues."""
    from cipherbox.cli.topology import show_parts

    async def work(client: Client) -> None:
        (row,) = await client.list("clients", client_id)
        rights = [
            {"right": r["right"], "resource": r["resource"]}
            for r in await client.list("grants")
            if r["name"] == client_id
        ]
        queues = [
            {"queue": q["name"], "owner": q["owner"], "waiting": q["waiting"]}
            for q in await client.list("queues")
            if client_id == q["owner"] or client_id in q["readers"]
        ]
        parts = {"rights": rights, "queues": queues}
        if "role" in row:  # only admins get it
            (totals,) = await client.list("totals", client_id)
            has = {what: totals[what] for what in WHAT}
            row |= {what: count for what, count in has.items() if what not in row}
            parts["totals"] = [
                {"what": what, "has": n, "at_most": totals[f"{what}_most"]}
                for what, n in has.items()
            ]
        show_parts(row, parts, as_json)

    with_client(ctx, work)


@clients.command("roles")
@click.argument("client_id", type=CLIENT_ID, required=False)
@click.argument("role", type=click.Choice(ROLES), required=False)
@json_option
@click.pass_context
def clients_roles(
    ctx: click.Context, client_id: str | None, role: str | None, as_json: bool
) -> None:
    """Show admins and rights (admin); with ROLE, make CLIENT_ID an admin, or a client again.

    A client enrolled as an admin remains one until it is revoked: cipherbox revoke
    """
    from cipherbox.cli.output import print_json, rows_table, say
    from cipherbox.errors import Conflict, NotFound

    async def change(client: Client) -> None:
        assert client_id is not None
        (row,) = await client.list("clients", client_id)
        if role == "client" and row["role"] == "admin":
            raise Conflict(
                f"{client_id} is an admin by its enrolment",
                remedy=f"to end that: cipherbox revoke {client_id}, then enroll anew",
            )
        await client.grant(client_id, "admin", give=role == "admin")
        say(
            f"{client_id} is {'an admin' if role == 'admin' else 'a client'}, from its next "
            "connection on."
        )

    if role is not None:
        with_admin(ctx, change)
        return
    rows = [row for row in with_admin(ctx, _roles) if client_id in (None, row["client"])]
    if client_id is not None and not rows:
        raise NotFound(f"no client {client_id!r}", remedy="see: cipherbox clients list")
    if as_json:
        print_json(rows)
    else:
        rows_table(rows, empty="nobody is enrolled yet")


async def _roles(client: Client) -> list[dict[str, Any]]:
    rights: dict[str, list[str]] = {}
    for row in await client.list("grants"):
        rights.setdefault(row["name"], []).append(f"{row['right']} {row['resource']}".strip())
    found = []
    for row in await client.list("clients"):
        own = rights.get(row["name"], [])
        is_admin = row["role"] == "admin" or "admin" in own
        role = "revoked" if row["revoked_at"] else "admin" if is_admin else "client"
        found.append(
            {"client": row["name"], "role": role, "rights": [r for r in own if r != "admin"]}
        )
    everybody = [{"client": "*", "role": "-", "rights": rights["*"]}] if "*" in rights else []
    return [*found, *everybody]


@clients.command("limit")
@click.argument("client_id", type=CLIENT_ID)
@click.argument("what", type=click.Choice(WHAT), metavar="WHAT")
@click.argument("most", type=click.IntRange(0), required=False)
@click.option("--default", "default", is_flag=True, help="Return to the limit in HQ's settings.")
@click.pass_context
def clients_limit(
    ctx: click.Context, client_id: str, what: str, most: int | None, default: bool
) -> None:
    """Limit WHAT of CLIENT_ID at HQ to MOST (admin), overriding the settings.

    WHAT is bytes, envelopes, queues, bundles, certificates or prekeys. bytes and envelopes count
    what it sent and is not acknowledged yet, including dead letters, in each queue separately. A
    limit deletes nothing; it prevents additions. Usage: cipherbox clients show CLIENT_ID
    """
    from cipherbox.cli.output import say

    if (most is None) != default:
        raise click.UsageError("Specify MOST or --default.")
    with_admin(ctx, lambda client: client.limit(client_id, what, most))
    limit = "the default of HQ's settings" if most is None else f"{most} {what}"
    say(f"Limit for {client_id}: {limit}.")


@clients.command("kick")
@click.argument("client_id", type=CLIENT_ID)
@click.option(
    "--connection",
    type=click.IntRange(1),
    help="Only this one; see: cipherbox clients list --connected",
)
@click.option("--reason", default="", help="Reason, shown to the client.")
@click.pass_context
def clients_kick(ctx: click.Context, client_id: str, connection: int | None, reason: str) -> None:
    """Close the connections of CLIENT_ID (admin). Nothing is lost; it may reconnect immediately.

    To keep it out: cipherbox revoke
    """
    from cipherbox.cli.output import say

    count = with_admin(ctx, lambda client: client.kick(client_id, connection or 0, reason))
    say(f"{count} connection{'' if count == 1 else 's'} of {client_id} cut.")
