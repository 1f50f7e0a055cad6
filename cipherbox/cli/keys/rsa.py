"""`keys generate --rsa`, and the PEM files of `keys import` and `keys export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import command_here, with_client
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.envelope.bundle import KeyBundle
    from cipherbox.sealing.identity import DecryptKey

BITS = ("2048", "3072", "4096")


@click.command("generate")
@click.option(
    "--rsa", is_flag=True, required=True, help="Generate an RSA key, for stanzas rsa-oaep."
)
@click.option(
    "--bits", type=click.Choice(BITS), default="3072", show_default=True, help="Its size."
)
@click.pass_context
def keys_generate(ctx: click.Context, rsa: bool, bits: str) -> None:
    """Generate another key on this machine and publish it in your next key bundle.

    It follows your other keys: senders use it only on request (send --wrap rsa). An RSA key that it
    replaces still opens what was sealed to it. Unlike your first key, RSA does not resist a quantum
    computer.
    """
    del rsa  # the only kind so far, required so that others can follow
    from cipherbox.cli.output import warn
    from cipherbox.envelope.stanza_types import StanzaType
    from cipherbox.sealing.identity import DecryptKey
    from cipherbox.sealing.rsa import generate

    warn(f"Making an RSA key of {bits} bits ...")
    publish(ctx, DecryptKey.from_seed(StanzaType.RSA_OAEP, generate(int(bits))))


def publish(ctx: click.Context, key: DecryptKey, file: Path | None = None) -> None:
    """Publish the key in the next bundle and print the outcome; ``file``: the imported one."""
    from cipherbox.cli.output import next_step, say

    added = with_client(ctx, lambda client: client.add_key(key))
    bundle, here = added.bundle, command_here(ctx)
    if added.already_published:
        say(f"This RSA key is in key bundle {bundle.sequence} of {bundle.client_id} already.")
        return
    say(
        f"The RSA key {key.key_id.hex()} is in key bundle {bundle.sequence} of "
        f"{bundle.client_id}, and HQ has it."
    )
    steps = [
        "back up this home again: the private key exists only in its keys.cbk"
        if file is None
        else f"delete {file}, or keep it where only you can read it: it opens what is sealed to it",
        f"others seal to it with: cipherbox send --wrap rsa --to {bundle.client_id} ...",
        f"other programs need it as PEM: {here} keys export --rsa FILE",
    ]
    next_step(*steps)


def import_private(ctx: click.Context, file: Path, data: bytes, password_file: Path | None) -> None:
    """Import the RSA private key of a PEM file as this client's own."""
    from cipherbox.cli.output import warn
    from cipherbox.client.keys.strength import weakness
    from cipherbox.envelope.stanza_types import StanzaType
    from cipherbox.portable import others_may_read
    from cipherbox.sealing.identity import DecryptKey
    from cipherbox.sealing.rsa import import_pem

    given: list[bytes] = []

    def asked() -> bytes:
        given.append(_password(file, password_file))
        return given[-1]

    seed = import_pem(data, str(file), asked)
    if given and (why := weakness(given[-1])):
        warn(
            f"The password of {file} is easy to guess: {why}. Here the key is encrypted under "
            f"this home's own; delete {file}."
        )
    if others_may_read(file):
        warn(
            f"Other users of this machine may read {file}; if one did, make a new key: cipherbox "
            "keys generate --rsa"
        )
    publish(ctx, DecryptKey.from_seed(StanzaType.RSA_OAEP, seed), file)


def export_public(bundle: KeyBundle, file: Path) -> None:
    """Write the bundle's RSA key as PEM."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.envelope.stanza_types import StanzaType
    from cipherbox.portable import write_atomic
    from cipherbox.sealing.rsa import public_pem

    key = next((k for k in bundle.encrypt_keys if k.algorithm == StanzaType.RSA_OAEP), None)
    if key is None:
        raise NotFound(
            f"{bundle.client_id} has no RSA key",
            remedy="make one with: cipherbox keys generate --rsa",
        )
    write_atomic(file, public_pem(key.public))
    say(f"The RSA public key {key.key_id.hex()} of {bundle.client_id} is in {file}.")
    next_step(f"look at it with: openssl pkey -pubin -in {file} -noout -text")


def _password(file: Path, password_file: Path | None) -> bytes:
    from cipherbox.cli.password import ask
    from cipherbox.config.settings import secret

    if password_file is not None:
        return secret(password_file.absolute()).removesuffix(b"\n").removesuffix(b"\r")
    missing = click.UsageError(
        f"{file} is encrypted. Cannot prompt (not a terminal); pass --pem-password-file FILE."
    )
    return ask(f"Password of {file}", missing).encode()
