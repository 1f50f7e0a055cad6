"""`receipt`: a recipient's signed receipt, as a file that anyone can verify."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import home_of, with_client_offline
from cipherbox.cli.options import CLIENT_ID, json_option
from cipherbox.cli.status import MessageId
from cipherbox.errors import ConfigError, NotFound

if TYPE_CHECKING:
    from cipherbox.client.client import Client


@click.group()
def receipt() -> None:
    """Export and verify proofs that a recipient opened or refused a message."""


@receipt.command("export")
@click.argument("message_id", type=MessageId())
@click.option("--recipient", type=CLIENT_ID, help="Only this recipient's receipt. [default: all]")
@click.option(
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file, for one recipient. [default: MESSAGE_ID-RECIPIENT.receipt.json here]",
)
@click.pass_context
def receipt_export(
    ctx: click.Context, message_id: uuid.UUID, recipient: str | None, output: Path | None
) -> None:
    """Export the receipts for MESSAGE_ID as files, with everything needed to verify them."""
    from cipherbox.cli.output import next_step, say
    from cipherbox.portable import write_atomic

    async def work(client: Client) -> dict[str, bytes]:
        found = await client.export_receipts(message_id)
        if recipient is None:
            return found
        row = await client.sent(message_id)
        if recipient not in found and row is not None and recipient not in row.recipients:
            raise NotFound(
                f"message {message_id} was not sent to {recipient}, but to "
                f"{', '.join(row.recipients)}"
            )
        return {name: data for name, data in found.items() if name == recipient}

    found = with_client_offline(ctx, work)
    if not found:
        text = f"{recipient} has not signed" if recipient else "nobody has signed"
        raise NotFound(f"{text} for message {message_id} yet")
    if output is not None and len(found) > 1:
        raise click.UsageError(f"Specify --recipient: {', '.join(found)} have signed.")
    for name, data in found.items():
        path = output or Path(f"{message_id}-{name}.receipt.json")
        write_atomic(path, data)
        say(str(path))
    next_step(f"anyone can verify it with: cipherbox receipt verify {path}")


@receipt.command("verify")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="The root certificate (PEM).",
)
@click.option("--fingerprint", help="Its SHA-256 in hexadecimal, from HQ's admin.")
@json_option
@click.pass_context
def receipt_verify(
    ctx: click.Context, file: BinaryIO, root: Path | None, fingerprint: str | None, as_json: bool
) -> int:
    """Verify the receipt in FILE, offline.

    The trust anchor is the root certificate of this machine's home, of --root, or the one with
    --fingerprint. Without any of these the file is checked, its root's fingerprint is shown for
    comparison, and the exit code is 7.
    """
    from cipherbox.cli.output import fail, print_json, safe, say, time_text, warn
    from cipherbox.envelope.receipt_file import verify_file

    wanted = _wanted(ctx, root, fingerprint)
    statement = verify_file(file.read())
    trusted = wanted == statement.root_sha256
    if as_json:
        import attrs

        print_json({**attrs.asdict(statement), "root_trusted": trusted})
    elif wanted and not trusted:
        fail(f"The receipt is signed under another root: SHA-256 {statement.root_sha256}.")
    else:
        did = "opened" if statement.outcome == "opened" else f"refused ({safe(statement.outcome)})"
        say(
            f"{safe(statement.recipient)} {did} message {statement.message_id} of "
            f"{safe(statement.sender)}."
        )
        say(
            f"Signed {time_text(statement.signed_at)}; HQ accepted the message "
            f"{time_text(statement.accepted_at)}."
        )
        say(f"SHA-256 of the envelope: {statement.envelope_sha256}")
        say(f"Root certificate, SHA-256: {statement.root_sha256}")
        if not trusted:
            warn(
                "No trusted root was given: compare the fingerprint with HQ's, or pass --root or "
                "--fingerprint."
            )
    return Exit.OK if trusted else Exit.KEYS


def _wanted(ctx: click.Context, root: Path | None, fingerprint: str | None) -> str:
    from cipherbox import pki
    from cipherbox.client.home import ROOT

    if fingerprint is not None:
        return fingerprint.replace(":", "").replace(" ", "").lower()
    path = root or home_of(ctx) / ROOT
    try:
        return pki.fingerprint(pki.load_pem(path.read_bytes(), str(path))[0]).hex()
    except OSError as error:
        if root is not None:
            raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from None
        return ""
