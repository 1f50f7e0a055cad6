"""`contacts`: the senders this client accepts mail from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import home_of
from cipherbox.cli.options import CLIENT_ID, json_option

if TYPE_CHECKING:
    from cipherbox.contact_lists import ContactLists


@click.group()
def contacts() -> None:
    """Set whose mail you accept: every certified client's unless you allow or block some."""


@contacts.command("allow")
@click.argument("client_ids", type=CLIENT_ID, nargs=-1)
@click.option(
    "--everybody", is_flag=True, help="Accept mail from every client that is not blocked."
)
@click.pass_context
def contacts_allow(ctx: click.Context, client_ids: tuple[str, ...], everybody: bool) -> None:
    """Accept mail from CLIENT_IDS, and only from allowed clients."""
    from cipherbox.client.receiving.contacts import Contacts

    if everybody == bool(client_ids):
        raise click.UsageError("Specify client ids or --everybody.")
    found = Contacts(home_of(ctx))
    _changed(ctx, found.allow_everybody() if everybody else found.allow(client_ids), client_ids)


@contacts.command("block")
@click.argument("client_ids", type=CLIENT_ID, nargs=-1, required=True)
@click.option("--remove", is_flag=True, help="Unblock these.")
@click.pass_context
def contacts_block(ctx: click.Context, client_ids: tuple[str, ...], remove: bool) -> None:
    """Refuse mail from CLIENT_IDS; each sender is told by HQ or by a signed receipt."""
    from cipherbox.client.receiving.contacts import Contacts

    found = Contacts(home_of(ctx))
    _changed(
        ctx,
        found.unblock(client_ids) if remove else found.block(client_ids),
        () if remove else client_ids,
    )


@contacts.command("list")
@json_option
@click.pass_context
def contacts_list(ctx: click.Context, as_json: bool) -> None:
    """List allowed and blocked clients."""
    from cipherbox.cli.output import print_json
    from cipherbox.client.receiving.contacts import Contacts

    lists = Contacts(home_of(ctx)).lists()
    if as_json:
        print_json({"allowed": list(lists.allowed), "blocked": list(lists.blocked)})
        return
    _say(lists)


def _say(lists: ContactLists) -> None:
    from cipherbox.cli.output import say

    only = f"{', '.join(lists.allowed)}; everybody else is refused (undo with --everybody)"
    say(f"allowed: {only if lists.allowed else 'everybody who is not blocked'}")
    say(f"blocked: {', '.join(lists.blocked) or 'nobody'}")


def _changed(ctx: click.Context, lists: ContactLists, named: tuple[str, ...]) -> None:
    """Print the lists, which are in force here already, and send them to HQ now or on the next
    connection.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import say, warn
    from cipherbox.cli.running import run
    from cipherbox.client.client import open_client
    from cipherbox.client.receiving.contacts_upload import ContactsUploader
    from cipherbox.client.suggest import nearest
    from cipherbox.errors import CipherBoxError
    from cipherbox.limits import LIMITS

    async def main() -> None:
        async with open_client(home, renew=False, tries=1) as client:
            await ContactsUploader(client).upload()
            known = [row["name"] for row in await client.list("clients")] if named else []
        for name in named:
            if name not in known:
                near = nearest(name, known)
                hint = f"; did you mean {near}?" if near else "."
                warn(f"HQ does not know a client {name} yet{hint}")

    _say(lists)
    try:
        home = load_here(ctx)
        run(main)
    except CipherBoxError as error:
        warn(f"In force here. The lists are sent to HQ on the next connection: {error}")
        return
    if not home.config.contacts.tell_hq:
        say("HQ does not get these lists ([contacts] tell_hq).")
    elif len(lists) > LIMITS.names_per_frame:
        say(
            f"HQ does not get these lists: it keeps at most {LIMITS.names_per_frame:,} names per "
            "client."
        )
    else:
        say("HQ has these lists, and refuses mail on your behalf.")
