"""`keys rotate` and `keys renew`: new keys, and a new certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, with_client
from cipherbox.config.settings import SIGNATURES

if TYPE_CHECKING:
    pass


@click.command()
@click.option(
    "--signatures",
    type=click.Choice(SIGNATURES),
    help="Sign this way from now on. [default: [keys] in client.toml]",
)
@click.pass_context
def rotate(ctx: click.Context, signatures: str | None) -> None:
    """Generate new keys and publish them, signed by your current keys.

    The old keys still open what was sealed to them; they are destroyed when nothing sealed to them
    can arrive any more. Partners follow automatically and need not compare again. Running programs
    continue.

    With ed25519+mldsa65 everything you sign has both signatures, and both must verify.
    """
    import attrs

    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import say, time_text
    from cipherbox.config.settings import write_client_config
    from cipherbox.envelope.bundle import fingerprint

    home = load_here(ctx)
    identity = with_client(ctx, lambda client: client.key_lifecycle.rotate(signatures))
    if signatures is not None and signatures != home.config.signatures:
        write_client_config(attrs.evolve(home.config, signatures=signatures))
    assert identity.bundle is not None
    say(
        f"Key bundle {identity.bundle.sequence} of {identity.client_id} is published; it ends on "
        f"{time_text(identity.bundle.ends_at)}."
    )
    say(f"Fingerprint: {fingerprint(identity.bundle)}")
    if identity.retired:
        say(
            f"{len(identity.retired)} old keys open what was sealed to them, for "
            f"{home.config.keep_old_days} days."
        )


@click.command()
@click.pass_context
def renew(ctx: click.Context) -> int:
    """Renew your certificate now. `agent` and `receive` do so automatically at two thirds of its
    lifetime.

    The new certificate has a new key. Your other keys stay, and your bundle is published under it.
    """
    from cipherbox.cli.output import next_step, say, time_text

    found = with_client(ctx, lambda client: client.key_lifecycle.renew())
    if found.ends_at:
        say(f"The certificate is renewed; it ends on {time_text(found.ends_at)}.")
        return Exit.OK
    say(
        "The request is pending until it has been carried to the offline CA and back; its number "
        f"there is {found.number}."
    )
    next_step(f"when that is done: {command_here(ctx)} keys renew   (an agent asks automatically)")
    return Exit.QUEUED
