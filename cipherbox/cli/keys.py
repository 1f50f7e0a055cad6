"""`keys`: what this machine believes of other parties' keys, and how a person makes sure of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.options import CLIENT_ID, home_of, json_option, with_client

if TYPE_CHECKING:
    from cipherbox.client.api import Client
    from cipherbox.envelope.bundle import KeyBundle


@click.group()
def keys() -> None:
    """Other parties' keys: list, compare by telephone, pin."""


@keys.command("list")
@json_option
@click.pass_context
def keys_list(ctx: click.Context, as_json: bool) -> None:
    """List the pinned keys: whose, since when, and on whose word."""
    from cipherbox.cli.output import next_step, print_json, table, time_text
    from cipherbox.client.pins import Pins

    pins = Pins(home_of(ctx)).entries()
    if as_json:
        print_json(
            [
                {
                    "client_id": pin.bundle.client_id,
                    "fingerprint": pin.fingerprint,
                    "sequence": pin.bundle.sequence,
                    "how": pin.how,
                    "pinned_at": pin.pinned_at,
                    "verified_at": pin.verified_at,
                    "ends_at": pin.bundle.ends_at,
                }
                for pin in pins
            ]
        )
        return
    table(
        ("client", "fingerprint", "bundle", "pinned", "by", "compared", "ends"),
        [
            (
                pin.bundle.client_id,
                pin.fingerprint,
                pin.bundle.sequence,
                time_text(pin.pinned_at),
                pin.how,
                time_text(pin.verified_at) if pin.verified_at else "no",
                time_text(pin.bundle.ends_at),
            )
            for pin in pins
        ],
        empty="no key is pinned yet: the first message to a client pins its key, or: cipherbox keys pin CLIENT_ID",
    )
    if any(not pin.verified_at for pin in pins):
        next_step("compare by telephone what matters: cipherbox keys verify CLIENT_ID")


@keys.command("fingerprint")
@click.argument("client_id", type=CLIENT_ID, required=False)
@click.pass_context
def keys_fingerprint(ctx: click.Context, client_id: str | None) -> None:
    """Print the fingerprint of CLIENT_ID's keys, or your own to read to the other by telephone."""
    from cipherbox.cli.output import say
    from cipherbox.client.pins import Pins
    from cipherbox.envelope.bundle import fingerprint
    from cipherbox.errors import NotFound

    home = home_of(ctx)
    if client_id is not None:
        pin = Pins(home).get(client_id)
        say(pin.fingerprint if pin else fingerprint(with_client(ctx, lambda client: _offered(client, client_id))))
        return
    from cipherbox.client.home import load_home

    identity = load_home(home).identity
    if identity is None or identity.bundle is None:
        raise NotFound("this client has no keys of its own: an admin opens nothing, so there is nothing to compare")
    say(fingerprint(identity.bundle))


@keys.command("pin")
@click.argument("client_id", type=CLIENT_ID)
@click.pass_context
def keys_pin(ctx: click.Context, client_id: str) -> None:
    """Fetch CLIENT_ID's keys from HQ and pin them, or follow them when they changed as they should.

    A change that the old key did not sign is refused: see `keys verify`.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.pins import Pins

    async def work(client: Client) -> None:
        await client.directory.recipients([client_id])

    with_client(ctx, work)
    pin = Pins(home_of(ctx)).get(client_id)
    assert pin is not None
    say(f"Pinned for {client_id}: {pin.fingerprint}")
    if not pin.verified_at:
        next_step(f"first contact is as good as HQ's word; compare by telephone: cipherbox keys verify {client_id}")


@keys.command("verify")
@click.argument("client_id", type=CLIENT_ID)
@click.option("--fingerprint", "heard", help="What the other reads to you; asked for when not given.")
@click.pass_context
def keys_verify(ctx: click.Context, client_id: str, heard: str | None) -> int:
    """Compare the keys HQ shows for CLIENT_ID with what CLIENT_ID says, and pin them as compared.

    Call the other by a way HQ has no part in, and let them run: cipherbox keys fingerprint
    """
    from cipherbox.cli.output import fail, say
    from cipherbox.client.pins import PERSON, Pins
    from cipherbox.envelope.bundle import fingerprint

    bundle = with_client(ctx, lambda client: _offered(client, client_id))
    shown = fingerprint(bundle)
    pins = Pins(home_of(ctx))
    pin = pins.get(client_id)
    if pin and pin.fingerprint != shown:
        say(f"The keys of {client_id} changed, and the old key did not sign the new one.")
        say(f"Pinned here:   {pin.fingerprint}")
    if heard is None:
        heard = click.prompt(f"The fingerprint that {client_id} reads to you", err=True)
    if _digits(heard) != _digits(shown):
        fail(
            f"They differ. HQ shows {shown} for {client_id}.",
            "Read once more. If it still differs, send nothing and tell the admin: somebody shows you a wrong key.",
        )
        return Exit.REFUSED
    if pin and pin.bundle.hash == bundle.hash:
        pins.mark_verified(client_id)
    else:
        pins.accept(bundle, PERSON)
    say(f"They agree. The keys of {client_id} are pinned as compared: {shown}")
    return Exit.OK


async def _offered(client: Client, client_id: str) -> KeyBundle:
    return await client.directory.offered(client_id)


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isdigit())
