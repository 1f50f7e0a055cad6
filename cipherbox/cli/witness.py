"""`witness`: cosign HQ's log, so that HQ cannot show different logs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import load_here
from cipherbox.cli.running import run_until_stopped

if TYPE_CHECKING:
    from cipherbox.client.log.heads import Head


@click.command()
@click.option(
    "--key",
    is_flag=True,
    help="Print this witness's public key, for the client.toml of others, and exit.",
)
@click.option("--once", is_flag=True, help="Cosign the latest head and exit.")
@click.pass_context
def witness(ctx: click.Context, key: bool, once: bool) -> None:
    """Cosign the heads of HQ's log, after verifying that each extends the previous one.

    Runs until stopped, ideally on a machine that neither HQ nor the senders operate. See `cipherbox
    manual log`.
    """
    from cipherbox.cli.output import say
    from cipherbox.client.client import open_client
    from cipherbox.client.log.witness import Witness, load_key, verifier_key

    home = load_here(ctx, renews=not once)
    if key:
        say(verifier_key(home.config.client_id, load_key(home)).text)
        return

    def cosigned(head: Head) -> None:
        say(f"Cosigned {head.checkpoint.size} entries, root {head.checkpoint.root.hex()[:16]}")

    async def work() -> None:
        async with open_client(home, keep_trying=not once) as client:
            acting = Witness(client, load_key(home))
            if not once:
                await acting.run(cosigned)
            elif (head := await acting.once()) is not None:
                cosigned(head)
            else:
                say("Cosigned already")

    run_until_stopped(work)
