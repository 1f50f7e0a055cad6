"""`contacts`: whom this client takes mail from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.options import CLIENT_ID, home_of, json_option

if TYPE_CHECKING:
    from cipherbox.client.contacts import Lists


@click.group()
def contacts() -> None:
    """Whom you take mail from: everybody certified, until you block some or allow only some."""


@contacts.command("allow")
@click.argument("client_ids", type=CLIENT_ID, nargs=-1)
@click.option("--everybody", is_flag=True, help="Take mail from everybody again who is not blocked.")
@click.pass_context
def contacts_allow(ctx: click.Context, client_ids: tuple[str, ...], everybody: bool) -> None:
    """Take mail from CLIENT_IDS, and from nobody else who is not allowed."""
    from cipherbox.client.contacts import Contacts

    if everybody == bool(client_ids):
        raise click.UsageError("Specify client ids or --everybody.")
    found = Contacts(home_of(ctx))
    _say(found.allow_everybody() if everybody else found.allow(client_ids))


@contacts.command("block")
@click.argument("client_ids", type=CLIENT_ID, nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Block these no longer.")
@click.pass_context
def contacts_block(ctx: click.Context, client_ids: tuple[str, ...], remove: bool) -> None:
    """Refuse mail from CLIENT_IDS; each sender gets a signed receipt that says so."""
    from cipherbox.client.contacts import Contacts

    found = Contacts(home_of(ctx))
    _say(found.unblock(client_ids) if remove else found.block(client_ids))


@contacts.command("list")
@json_option
@click.pass_context
def contacts_list(ctx: click.Context, as_json: bool) -> None:
    """List whom you allow and whom you block."""
    from cipherbox.cli.output import print_json
    from cipherbox.client.contacts import Contacts

    lists = Contacts(home_of(ctx)).lists()
    if as_json:
        print_json({"allowed": list(lists.allowed), "blocked": list(lists.blocked)})
        return
    _say(lists)


def _say(lists: Lists) -> None:
    from cipherbox.cli.output import say

    say(f"allowed: {', '.join(lists.allowed) or 'everybody who is not blocked'}")
    say(f"blocked: {', '.join(lists.blocked) or 'nobody'}")
