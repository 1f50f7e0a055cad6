"""`keys verify`: two people compare a number over a channel that HQ has no part in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, home_of, with_client
from cipherbox.cli.options import CLIENT_ID

if TYPE_CHECKING:
    from cipherbox.client.keys.comparing import Offer


@click.command()
@click.argument("client_id", type=CLIENT_ID)
@click.option(
    "--fingerprint",
    "heard",
    help="The fingerprint that the owner reads to you. [default: a prompt]",
)
@click.pass_context
def verify(ctx: click.Context, client_id: str, heard: str | None) -> int:
    """Compare CLIENT_ID's keys from HQ with the fingerprint its owner reads to you, and pin them as
    compared.

    Call the owner over a channel that HQ has no part in, and ask them to run: cipherbox keys
    fingerprint. Compare all thirty digits. They identify one key bundle and change with each new
    one: read what the screen shows now.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.keys.comparing import accept_offer, agrees, offer_of
    from cipherbox.envelope.bundle import fingerprint

    own = load_here(ctx).identity
    if own is not None and own.client_id == client_id:
        mine = fingerprint(own.bundle) if own.bundle is not None else "-"
        raise click.UsageError(
            f"{client_id} is this client. Its fingerprint, for others to compare: {mine}. They "
            f"run: cipherbox keys verify {client_id}"
        )
    offer = with_client(ctx, lambda client: offer_of(client, client_id))
    bundle, shown = offer.bundle, fingerprint(offer.bundle)
    if offer.change.text:
        say(offer.change.text)
    if offer.own is not None:
        say(f"Yours, bundle {offer.own.sequence}, to read to {client_id}: {fingerprint(offer.own)}")
    if heard is None:
        heard = click.prompt(
            f"The fingerprint that {client_id} reads to you (bundle {bundle.sequence})", err=True
        )
    if not agrees(heard, bundle):
        _say_difference(client_id, offer, heard)
        return Exit.REFUSED
    accept_offer(home_of(ctx), offer)
    say(f"They agree. Key bundle {bundle.sequence} of {client_id} is pinned as compared: {shown}")
    if offer.change.text and offer.unopened:
        next_step(
            f"reseal what {client_id} has not opened: {command_here(ctx)} outbox reseal --to "
            f"{client_id}"
        )
    return Exit.OK


def _say_difference(client_id: str, offer: Offer, heard: str) -> None:
    """Print that the numbers differ, and whether it is the number of an earlier bundle."""
    from cipherbox.cli.output import fail
    from cipherbox.client.keys.changes import day
    from cipherbox.client.keys.comparing import agrees
    from cipherbox.envelope.bundle import fingerprint

    bundle = offer.bundle
    old = next((b for b in offer.earlier if agrees(heard, b)), None)
    if old is None:
        fail(
            f"They differ. HQ shows {fingerprint(bundle)} for {client_id}, bundle "
            f"{bundle.sequence}.",
            "Compare once more. If it still differs, send nothing and tell the admin: this may be "
            "a man-in-the-middle attack.",
        )
        return
    fail(
        f"{client_id} reads the number of its key bundle {old.sequence}; HQ shows bundle "
        f"{bundle.sequence}, made on {day(bundle.created_at)}. Nothing was marked as compared.",
        f"Ask {client_id} to run this now and to read again: cipherbox keys fingerprint. "
        f"If it is still bundle {old.sequence}, {client_id} did not make the newer one: send "
        "nothing and tell the admin.",
    )
