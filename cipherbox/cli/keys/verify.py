"""`keys verify`: two people compare a number by a way HQ has no part in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.options import CLIENT_ID, command_here, home_of, with_client

if TYPE_CHECKING:
    from cipherbox.client.api import Client
    from cipherbox.client.keys.pins import Pin
    from cipherbox.envelope.bundle import KeyBundle

SENT = 1000  # envelopes that are looked at for the advice to seal again


@click.command()
@click.argument("client_id", type=CLIENT_ID)
@click.option("--fingerprint", "heard", help="What the other reads to you; asked for when not given.")
@click.pass_context
def verify(ctx: click.Context, client_id: str, heard: str | None) -> int:
    """Compare the keys HQ shows for CLIENT_ID with what CLIENT_ID says, and pin them as compared.

    Call the other by a way HQ has no part in, and let them run: cipherbox keys fingerprint.  Thirty digits: read all.
    """
    from cipherbox.cli.output import fail, next_step, say
    from cipherbox.cli.password import load_here
    from cipherbox.client.keys.pins import PERSON, Pins
    from cipherbox.envelope.bundle import fingerprint

    async def work(client: Client) -> tuple[KeyBundle, bytes, str, int]:
        bundle = await client.directory.offered(client_id)
        pin = client.directory.pins.get(client_id)
        change = await _change(client, pin, bundle) if pin is not None else ""
        unopened = 0
        if client.post is not None:
            rows = await client.post.store(client.post.outbox.unopened_by, client_id, SENT)
            assert isinstance(rows, list)
            unopened = len(rows)
        return bundle, client.directory.witness.proof(bundle), change, unopened

    bundle, proof, change, unopened = with_client(ctx, work)
    shown = fingerprint(bundle)
    pins = Pins(home_of(ctx))
    pin = pins.get(client_id)
    if change:
        say(change)
    own = load_here(ctx).identity
    if own is not None and own.bundle is not None:
        say(f"Yours, to read to {client_id}: {fingerprint(own.bundle)}")
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
        pins.accept(bundle, PERSON, proof=proof)
    say(f"They agree. The keys of {client_id} are pinned as compared: {shown}")
    if change and unopened:
        next_step(f"seal again what {client_id} has not opened: {command_here(ctx)} outbox reseal --to {client_id}")
    return Exit.OK


async def _change(client: Client, pin: Pin, bundle: KeyBundle) -> str:
    """What happened to the keys since they were pinned, in words; empty: nothing."""
    from cipherbox.client.keys.directory import day
    from cipherbox.envelope.bundle import check_succession, decode_bundle
    from cipherbox.errors import BundleError

    if pin.bundle.hash == bundle.hash:
        return ""
    name = bundle.client_id
    (answer,) = await client.directory.ask([(name, pin.bundle.sequence)])
    entry = client.directory.witness.entry(bundle)
    logged = f", in entry {entry} of HQ's log" if entry else ""
    try:
        check_succession(pin.bundle, [decode_bundle(raw) for raw in answer.bundles])
    except BundleError:
        compared = f"compared on {day(pin.verified_at)}" if pin.verified_at else "never compared"
        return (
            f"The keys of {name} changed, and the old key did not sign the new one.\n"
            f"Pinned here:  bundle {pin.bundle.sequence}, {compared}: {pin.fingerprint}\n"
            f"HQ shows:     bundle {bundle.sequence}, made on {day(bundle.created_at)}{logged}\n"
            f"Either {name} lost its keys and joined again, or somebody shows you a wrong key. Ask {name} which it is."
        )
    return f"{name} has new keys since then, signed by the ones pinned here: bundle {bundle.sequence}{logged}."


def _digits(text: str) -> str:
    return "".join(c for c in text if c.isascii() and c.isdigit())
