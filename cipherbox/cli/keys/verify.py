"""`keys verify`: two people compare a number over a channel that HQ has no part in."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, home_of, with_client
from cipherbox.cli.options import CLIENT_ID

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.keys.changes import Change
    from cipherbox.envelope.bundle import KeyBundle

SENT = 1000  # envelopes examined for the advice to reseal


class Offer(NamedTuple):
    """The keys that HQ serves for a client, and the state known here."""

    bundle: KeyBundle  # the newest
    earlier: list[KeyBundle]  # the others, which a person may still read from a screen
    proof: bytes
    own: KeyBundle | None
    change: Change
    unopened: int


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
    from cipherbox.client.keys.pins import PERSON, Pins
    from cipherbox.client.sessions.superseded import retire_sessions
    from cipherbox.envelope.bundle import fingerprint

    own = load_here(ctx).identity
    if own is not None and own.client_id == client_id:
        mine = fingerprint(own.bundle) if own.bundle is not None else "-"
        raise click.UsageError(
            f"{client_id} is this client. Its fingerprint, for others to compare: {mine}. They "
            f"run: cipherbox keys verify {client_id}"
        )
    offer = with_client(ctx, lambda client: _offer(client, client_id))
    bundle, shown = offer.bundle, fingerprint(offer.bundle)
    pins = Pins(home_of(ctx))
    pin = pins.get(client_id)
    if offer.change.text:
        say(offer.change.text)
    if offer.own is not None:
        say(f"Yours, bundle {offer.own.sequence}, to read to {client_id}: {fingerprint(offer.own)}")
    if heard is None:
        heard = click.prompt(
            f"The fingerprint that {client_id} reads to you (bundle {bundle.sequence})", err=True
        )
    if digits(heard) != digits(shown):
        _say_difference(client_id, offer, heard)
        return Exit.REFUSED
    if pin and pin.bundle.hash == bundle.hash:
        pins.mark_verified(client_id)
    else:
        pins.accept(bundle, PERSON, proof=offer.proof)
        # anyone who copied the previous keys may follow the sessions begun with them
        if offer.change.broken:
            retire_sessions(home_of(ctx), client_id)
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
    from cipherbox.envelope.bundle import fingerprint

    bundle = offer.bundle
    old = next((b for b in offer.earlier if digits(fingerprint(b)) == digits(heard)), None)
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


async def _offer(client: Client, client_id: str) -> Offer:
    from cipherbox.client.keys.changes import Change, change_of
    from cipherbox.envelope.bundle import decode_bundle
    from cipherbox.wire import frames

    directory = client.directory
    bundle = await directory.newest_at_hq(client_id)
    proof = directory.log.bundle_proofs.proof(bundle)
    pin = directory.pins.get(client_id)
    (answer,) = await directory.ask(
        [(client_id, pin.bundle.sequence if pin is not None else frames.NEWEST)]
    )
    found = [decode_bundle(raw) for raw in answer.bundles]
    change = (
        change_of(pin, [*found, bundle], directory.log.bundle_proofs.entry(bundle))
        if pin is not None
        else Change()
    )
    unopened = 0
    if client.outbox_sender is not None:
        rows = await client.outbox_sender.store(
            client.outbox_sender.outbox.unopened_by, client_id, SENT
        )
        assert isinstance(rows, list)
        unopened = len(rows)
    own = client.home.identity.bundle if client.home.identity is not None else None
    earlier = [
        b for b in (*found, *([pin.bundle] if pin is not None else [])) if b.hash != bundle.hash
    ]
    return Offer(bundle, earlier, proof, own, change, unopened)


def digits(text: str) -> str:
    """Return the digits in a typed text."""
    return "".join(c for c in text if c.isascii() and c.isdigit())
