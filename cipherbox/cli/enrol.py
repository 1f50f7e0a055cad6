"""`enroll`, `join`, `approve` and `revoke`: tokens, enrolment and revocation."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cipherbox.classes import frozen
from cipherbox.cli.home import command_here, home_of, with_admin
from cipherbox.cli.options import (
    CLIENT_ID,
    DURATION,
    HQ_DIRECTORY,
    as_record,
    hq_settings,
    sure,
    yes_option,
)
from cipherbox.cli.running import run
from cipherbox.config.settings import SIGNATURES

if TYPE_CHECKING:
    from cipherbox.client.enrol import JoinReport
    from cipherbox.client.keys.local_key import Password

LONGEST_TOKEN_S = 30 * 24 * 3600  # the longer a secret exists, the likelier it leaks
_EMPTY = "The token is empty. The admin makes one with: cipherbox enroll CLIENT_ID"
TOKEN_BYTES = 4096  # far above a token; a wrong file is not read whole


@frozen
class EnrollOptions:
    """The options of `enroll`."""

    client_id: str
    role: str
    approve: bool
    valid: float  # seconds
    replace: bool
    output: Path | None
    hq: Path | None


@click.command()
@click.argument("client_id", type=CLIENT_ID)
@click.option("--role", type=click.Choice(["client", "admin"]), default="client", show_default=True)
@click.option(
    "--approve", is_flag=True, help="Hold back the certificate until: cipherbox approve CLIENT_ID"
)
@click.option(
    "--valid",
    type=DURATION,
    default="24h",
    show_default=True,
    help="Validity of the token, 1m to 30d.",
)
@click.option(
    "--replace",
    is_flag=True,
    help="Permit an id in use: its home is disconnected when the token is used.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the token to this file.",
)
@click.option(
    "--hq",
    type=HQ_DIRECTORY,
    metavar="DIRECTORY",
    help="HQ's directory, while HQ is stopped: if no admin's key is left.",
)
@click.pass_context
@as_record(EnrollOptions)
def enroll(ctx: click.Context, options: EnrollOptions) -> None:
    """Create a one-time token for CLIENT_ID. Send it over a trusted channel.

    An id in use is refused unless --replace is given. Then the keys of CLIENT_ID start over with
    the home that joins, everyone who pinned the previous keys must compare again, and the previous
    home is told that it was replaced.

    With --hq no admin is needed. Run it as HQ's user while HQ is stopped. It is for a new admin
    only, and HQ's signed log records it.
    """
    if options.hq is not None and (options.role != "admin" or options.approve):
        raise click.UsageError(
            "--hq creates an admin without approval: pass --role admin, and omit --approve."
        )
    if not 60 <= options.valid <= LONGEST_TOKEN_S:
        raise click.UsageError("--valid must be between 1m and 30d.")
    from cipherbox.cli.output import next_step, warn

    if not _hand_over(_new_token(ctx, options), options):
        return
    if options.replace:
        warn(f"When it is used, the current home of {options.client_id} is disconnected.")
    next_step(*_steps_to_join(ctx, options))


def _new_token(ctx: click.Context, options: EnrollOptions) -> str:
    """Have HQ make the token, or make it in HQ's directory, with --hq."""
    if options.hq is not None:
        from cipherbox.server.operations.offline import admin_token

        settings = hq_settings(options.hq)
        return run(admin_token, settings, options.client_id, int(options.valid), options.replace)
    return with_admin(
        ctx,
        lambda client: client.enrol(
            options.client_id,
            role=options.role,
            approve=options.approve,
            valid_s=max(1, int(options.valid)),
            replace=options.replace,
        ),
    )


def _hand_over(token: str, options: EnrollOptions) -> bool:
    """Write or print the token.  Return whether that succeeded."""
    from cipherbox.cli.output import say, warn
    from cipherbox.cli.stdout import output_failure
    from cipherbox.portable import write_private

    name, output = options.client_id, options.output
    if output:
        write_private(output, f"{token}\n".encode())
        say(f"The token for {name} is in {output}. It works once, until {_until(token)}.")
        return True
    warn(
        f"The token for {name}. It works once, until {_until(token)}; anyone who has it can enrol "
        "as it:"
    )
    say(token)
    if output_failure() is None:
        return True
    warn(
        f"The token could not be printed. It expires unused; make another: cipherbox enroll {name}"
    )
    return False


def _steps_to_join(ctx: click.Context, options: EnrollOptions) -> list[str]:
    """Return the next steps until the client has joined."""
    name, output, hq = options.client_id, options.output, options.hq
    how = (
        f"join --token-file {shlex.quote(output.name)}"
        if output
        else "join   (it asks for the token)"
    )
    steps = [f"on the machine of {name}: cipherbox {how}"]
    if hq is not None:
        steps = [
            f"start HQ: cipherbox serve {shlex.quote(str(hq))}",
            *steps,
            "from there revoke the owner of the lost key: cipherbox revoke CLIENT_ID",
        ]
    if options.approve:
        here = command_here(ctx)
        steps.append(f"see its short number: {here} clients --pending")
        steps.append(f"compare it with what they see, then: {here} approve {name}")
    return steps


def _until(token: str) -> str:
    """Return a token's expiry in local time."""
    from datetime import datetime

    from cipherbox.wire.token import decode_token

    return f"{datetime.fromtimestamp(decode_token(token).expires_at / 1000):%Y-%m-%d %H:%M}"


@click.command(context_settings={"allow_extra_args": True})
@click.option(
    "--token-file",
    type=click.File("rb", lazy=False),
    help="Read the token from this file; - is standard input.",
)
@click.option(
    "--password",
    "protect",
    is_flag=True,
    help="Encrypt the keys under a password; asks for it twice, or reads --password-file.",
)
@click.option(
    "--signatures",
    type=click.Choice(SIGNATURES),
    help=f"Signature algorithms. [default: {SIGNATURES[0]}, or as in this home]",
)
@click.option(
    "--proxy",
    metavar="URL",
    help="Connect to HQ through this proxy, now and later: http://host:port, "
    "socks5://host:port, or none. [default: $HTTPS_PROXY]",
)
@click.option(
    "--proxy-credentials",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="File with USER:PASSWORD for the proxy, readable by you alone.",
)
@click.pass_context
def join(
    ctx: click.Context,
    token_file: BinaryIO | None,
    protect: bool,
    signatures: str | None,
    proxy: str | None,
    proxy_credentials: Path | None,
) -> None:
    """Enrol this machine with a token from the admin.

    Run it also in a home whose client was revoked or replaced: outbox, received messages and pins
    are kept, and the keys are new. The old keys still open what was sealed to them.

    The token is read from a prompt, standard input or a file, never from an argument: every user of
    the machine can see those.

    The keys are generated in this home. With --password, or --password-file before the command, a
    copy of the home is useless without the password, and every command asks for it. A forgotten
    password cannot be recovered.
    """
    from cipherbox.cli.password import ask, named_password, new_password, prompt_for
    from cipherbox.client.enrol import join as join_hq
    from cipherbox.config.proxies import DIRECT, LineSettings, parse_proxy
    from cipherbox.errors import PasswordNeeded

    if ctx.args:
        raise click.UsageError(
            "join takes no arguments: every user of this machine can see them. If it was a token, "
            "ask the admin for another, run cipherbox join, and enter it at the prompt."
        )
    home = home_of(ctx)
    line = LineSettings(
        proxy or "", proxy_credentials.absolute() if proxy_credentials is not None else None
    )
    if proxy and proxy.lower() != DIRECT:
        parse_proxy(proxy, "--proxy")
    password = named_password(ctx)
    token = _read_token(token_file)
    if protect and password is None:
        password = new_password("cipherbox --password-file FILE join")

    async def attempt(password: Password | None) -> JoinReport:
        return await join_hq(
            home, token, on_number=_show_number, password=password, signatures=signatures, line=line
        )

    try:
        report = run(attempt, password)
    except PasswordNeeded as missing:  # an earlier attempt set one
        earlier = ask(prompt_for(home), missing)
        report = run(attempt, earlier)
    _say_joined(ctx, home, report)


def _show_number(number: str, *, waiting: str = "") -> None:
    from cipherbox.cli.output import safe, say, warn

    if waiting:
        warn(f"{waiting[:1].upper()}{waiting[1:]} ...")
    else:
        say(f"Number of this enrolment: {safe(number)}   (HQ shows the same; compare them)")


def _say_joined(ctx: click.Context, home: Path, report: JoinReport) -> None:
    """Print that the client is enrolled, and its next steps."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.keys.local_key import is_sealed

    under = ", under your password," if is_sealed(home) else ""
    say(
        f"{report.client_id} is enrolled. Its keys are stored in {home}{under} and never leave "
        "this machine."
    )
    here = command_here(ctx)
    if report.role == "admin":
        next_step(f"check HQ: {here} status")
        return
    if report.came_back:
        say("Its outbox, pins and received messages are unchanged; its keys are new.")
        next_step(
            f"each partner compares the new keys with: cipherbox keys verify {report.client_id}",
            f"read them your fingerprint: {here} keys fingerprint",
        )
        return
    alone = "no other client has joined yet; list them" if not report.other else "list the clients"
    next_step(
        f"to receive:  {here} receive",
        f"to send:     {here} send --to {report.other or 'CLIENT_ID'} 'Hello'",
        f"{alone}: {here} clients",
    )


@click.command()
@click.argument("client_id", type=CLIENT_ID)
@click.option("--refuse", is_flag=True, help="Reject it instead.")
@click.pass_context
def approve(ctx: click.Context, client_id: str, refuse: bool) -> None:
    """Approve the pending enrolment of CLIENT_ID. First compare the short number with its user."""
    from cipherbox.cli.output import say

    with_admin(ctx, lambda client: client.approve(client_id, accept=not refuse))
    say(f"{client_id} is {'refused' if refuse else 'approved'}.")


@click.command()
@click.argument("client_id", type=CLIENT_ID)
@click.option(
    "--reason", default="revoked by the admin", show_default=True, help="Reason, for the record."
)
@yes_option
@click.pass_context
def revoke(ctx: click.Context, client_id: str, reason: str, yes: bool) -> None:
    """Revoke every certificate of CLIENT_ID and cut its connections immediately.

    HQ refuses to revoke its last admin.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.config.settings import load_client_config

    if load_client_config(home_of(ctx)).client_id == client_id:
        sure(f"{client_id} is you. Revoke yourself?", yes)
    with_admin(ctx, lambda client: client.revoke(client_id, reason))
    say(f"{client_id} is revoked; its connections are cut.")
    next_step(f"to enrol it again with new keys: {command_here(ctx)} enroll {client_id}")


def _read_token(token_file: BinaryIO | None) -> str:
    if token_file is not None:
        raw = token_file.read(TOKEN_BYTES)
    elif sys.stdin.isatty():
        return _ask_token()
    else:
        raw = sys.stdin.buffer.read(TOKEN_BYTES)
    text: str = raw.decode("utf-8", "replace").strip()
    if not text:
        raise click.UsageError(_EMPTY)
    return text


def _ask_token() -> str:
    """Prompt for the token.  It may be pasted over several lines, since mail breaks long ones; an
    empty line ends it.
    """
    from cipherbox.errors import TokenError
    from cipherbox.wire.token import PREFIX, decode_token

    text = click.prompt("Token", hide_input=True, prompt_suffix=": ", err=True).strip()
    while PREFIX.startswith(text[: len(PREFIX)]) and len(text) < TOKEN_BYTES:
        try:
            decode_token(text)
            break
        except TokenError:
            more = click.prompt(
                "... the rest of it", default="", hide_input=True, show_default=False, err=True
            ).strip()
            if not more:
                break
            text += more
    return text
