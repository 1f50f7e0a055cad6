"""`ca`: requests are carried to an offline CA by file, certificates are carried back."""

from __future__ import annotations

from pathlib import Path

import click

from cipherbox.cli.options import with_admin

READABLE = click.Path(path_type=Path, exists=True, dir_okay=False)
WRITABLE = click.Path(path_type=Path, dir_okay=False)


@click.group()
def ca() -> None:
    """Carry requests to the offline CA and certificates back (after: cipherbox init --offline-ca)."""


@ca.command("export")
@click.argument("file", type=WRITABLE)
@click.pass_context
def ca_export(ctx: click.Context, file: Path) -> None:
    """Write the signing requests that wait at HQ to FILE."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.portable import write_atomic

    document = with_admin(ctx, lambda client: client.export_requests())
    write_atomic(file, document)
    say(f"The waiting requests are in {file}.")
    next_step(f"carry it to the CA's machine and there: cipherbox ca sign {file.name} signed.json --ca DIRECTORY")


@ca.command("sign")
@click.argument("requests", type=READABLE)
@click.argument("signed", type=WRITABLE)
@click.option(
    "--ca",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The directory `init --offline-ca` made.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
def ca_sign(requests: Path, signed: Path, directory: Path, yes: bool) -> None:
    """Sign REQUESTS with the CA in its directory; write certificates and revocation list to SIGNED."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.portable import write_atomic
    from cipherbox.server.setup import read_requests, sign_offline

    document = requests.read_bytes()
    for request in read_requests(document):
        say(f"{request.client_id}: number {request.number}")
    if not yes:
        click.confirm("Do the numbers agree with what these clients see?", abort=True, err=True)
    write_atomic(signed, sign_offline(directory, document))
    say(f"Signed: {signed}")
    next_step(f"carry it to HQ's admin and there: cipherbox ca import {signed.name}")


@ca.command("import")
@click.argument("file", type=READABLE)
@click.pass_context
def ca_import(ctx: click.Context, file: Path) -> None:
    """Hand FILE, which the offline CA signed, to HQ."""
    from cipherbox.cli.output import say

    with_admin(ctx, lambda client: client.import_certificates(file.read_bytes()))
    say("HQ has the certificates; clients that wait get theirs now.")
