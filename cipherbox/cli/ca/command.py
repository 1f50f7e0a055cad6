"""`ca`: HQ's certificates, and the exchange of requests and responses with an offline CA.

See also `keys`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from cipherbox.cli.ca import keys as ca_keys
from cipherbox.cli.home import home_of, with_admin
from cipherbox.cli.options import HQ_DIRECTORY, hq_settings, json_option
from cipherbox.cli.running import run

READABLE = click.Path(path_type=Path, exists=True, dir_okay=False)
ANYTHING = click.Path(path_type=Path)
_HELP = ("-h", "--help")
_OTHERS = 12  # rows of clients that are named one by one


class Ca(click.Group):
    """Run `show` if no command is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if all(arg.startswith("-") and arg not in _HELP for arg in args):
            args = ["show", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or (
            self.commands["show"] if cmd_name.startswith("-") else None
        )


@click.group(cls=Ca)
def ca() -> None:
    """Show and renew HQ's certificates, take keys off this machine, exchange requests with an
    offline CA.

    Without a subcommand, show them. Page `pki` describes what HQ renews automatically.
    """


@ca.command("show")
@json_option
@click.pass_context
def ca_show(ctx: click.Context, as_json: bool) -> None:
    """Show every certificate and revocation list of HQ, where its private key is, when it expires,
    and what is pending (admin).
    """
    from cipherbox.cli.output import next_step, print_json, record, safe, say, time_text, warn

    rows: list[dict[str, Any]] = with_admin(ctx, lambda client: client.list("certificates"))
    if as_json:
        print_json(rows)
        return
    for row in rows:
        shown = {k: v for k, v in row.items() if k not in ("name", "ending", "waiting", "days")}
        if "ends_at" in row:
            shown["days_left"] = f"{row['days']:.0f}"
        say(_TITLES.get(row["name"], safe(row["name"])))
        record({f"  {key}": value for key, value in shown.items()})
        for one in row.get("ending", [])[:_OTHERS]:
            warn(
                f"  {safe(one['client'])} ends on {time_text(one['ends_at'])}, in "
                f"{one['days']:.0f} days"
            )
        for one in row.get("waiting", [])[:_OTHERS]:
            say(f"  {safe(one['client'])}: {safe(one['state'])}, number {safe(one['number'])}")
        say()
    if any(row["name"] == "requests" and row["count"] for row in rows):
        next_step(
            "approve requests that wait for an admin: cipherbox approve; export those that wait "
            "for the CA: cipherbox ca export FILE"
        )


_TITLES = {
    "root": "Root CA",
    "CA between": "CA between",
    "issuing": "Issuing CA",
    "server": "HQ",
    "revocations": "Revocation list that clients get",
    "list": "Revocation list from a file",
    "refused lists": "Revocation lists that were refused",
    "clients": "Certificates of clients",
    "requests": "Requests that wait",
}


@ca.command("export")
@click.argument("file", type=ANYTHING)
@click.option(
    "--pem",
    is_flag=True,
    help="Make FILE a directory with one PKCS#10 request per file, for other tools.",
)
@click.option(
    "--hq",
    type=HQ_DIRECTORY,
    metavar="DIRECTORY",
    help="HQ's directory, if HQ cannot be reached; includes its own request.",
)
@click.pass_context
def ca_export(ctx: click.Context, file: Path, pem: bool, hq: Path | None) -> None:
    """Write the pending signing requests at HQ to FILE."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.portable import write_atomic

    if hq is not None:
        from cipherbox.server.operations import offline as closed

        document = run(closed.export, hq_settings(hq))
    else:
        document = with_admin(ctx, lambda client: client.export_requests())
    if pem:
        _write_pem(file, document)
        next_step(
            "let the CA sign them (cipherbox manual pki), then: cipherbox ca import FILE.pem ..."
        )
        return
    write_atomic(file, document)
    say(f"The pending requests are in {file}.")
    next_step(
        f"carry it to the CA's machine and there: cipherbox ca sign {file.name} signed.json --ca "
        "DIRECTORY"
    )


def _write_pem(directory: Path, document: bytes) -> None:
    from cipherbox.cli.output import say
    from cipherbox.pki.certificates import csr_pem
    from cipherbox.portable import write_atomic
    from cipherbox.server.ca.offline import read_requests

    directory.mkdir(exist_ok=True)
    for request in read_requests(document):
        role, number = "-server" if request.hq else "", request.number.replace(" ", "")
        path = directory / f"{request.client_id}{role}-{number}.csr"
        write_atomic(path, csr_pem(request.csr))
        what = "a server's certificate" if request.hq else "a client's certificate"
        say(
            f"{path}: {what}, common name {request.hq or request.client_id}, number "
            f"{request.number}"
        )


@ca.command("sign")
@click.argument("requests", type=READABLE)
@click.argument("signed", type=click.Path(path_type=Path, dir_okay=False))
@click.option(
    "--ca",
    "directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help="The directory with the CA: of `init --offline-ca`, or `ca take-off --all`.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def ca_sign(ctx: click.Context, requests: Path, signed: Path, directory: Path, yes: bool) -> None:
    """Sign REQUESTS with the CA in its directory; write certificates and revocation list to
    SIGNED.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.portable import write_atomic
    from cipherbox.server.ca.offline import read_requests, sign_offline

    document = requests.read_bytes()
    for request in read_requests(document):
        say(f"{request.client_id}: number {request.number}{' (HQ itself)' if request.hq else ''}")
    if not yes:
        click.confirm("Do the numbers agree with what these clients see?", abort=True, err=True)
    write_atomic(signed, sign_offline(ca_keys.vault_at(ctx, directory), document))
    say(f"Signed: {signed}")
    next_step(f"carry it to HQ's admin and there: cipherbox ca import {signed.name}")


@ca.command("import")
@click.argument("files", type=READABLE, nargs=-1, required=True, metavar="FILE...")
@click.option(
    "--hq",
    type=HQ_DIRECTORY,
    metavar="DIRECTORY",
    help="HQ's directory, if HQ cannot be reached or is not complete yet.",
)
@click.pass_context
def ca_import(ctx: click.Context, files: tuple[Path, ...], hq: Path | None) -> None:
    """Submit FILE, signed by a CA, to HQ: the offline CA's response, or certificates and revocation
    lists in PEM.

    With --hq after `init --org-ca`, it completes HQ, and stores the first admin's certificate in
    --home.
    """
    from cipherbox.cli.output import next_step, say

    parts = [file.read_bytes() for file in files]
    if len(parts) > 1 and not all(b"-----BEGIN" in part for part in parts):
        raise click.UsageError(
            "Several files must all be PEM; import an offline CA's response separately."
        )
    document = b"\n".join(parts)
    if hq is None:
        count = with_admin(ctx, lambda client: client.import_certificates(document))
        say(
            f"HQ imported {count} of them; waiting clients now get theirs."
            if count
            else "HQ already had all of it."
        )
        return
    from cipherbox.server.ca import organization
    from cipherbox.server.ca.credentials import is_waiting
    from cipherbox.server.operations import offline as closed

    config = hq_settings(hq)
    if is_waiting(config):
        organization.finish(config, home_of(ctx), document)
        say(
            f"HQ {config.server.name!r} is ready in {config.directory}. Admin's certificate in "
            f"{home_of(ctx)}."
        )
        next_step(f"start HQ: cipherbox serve {hq}")
        return
    count = run(closed.take, config, document)
    say(
        f"HQ imported {count} of them into {config.directory}."
        if count
        else "HQ already had all of it."
    )
    if organization.runs(config):
        next_step(
            "make HQ reload: cipherbox reload, or if it refuses connections: systemctl reload "
            "cipherbox (SIGHUP)"
        )
    else:
        next_step(f"start HQ: cipherbox serve {hq}")


for command in (ca_keys.take_off, ca_keys.bring_back, ca_keys.renew):
    ca.add_command(command)
