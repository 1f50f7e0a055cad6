"""`send`: seal a text, files or standard input for recipients or for an exchange, and wait for
HQ's confirm.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, suggesting
from cipherbox.cli.options import CLIENT_ID, DURATION, EXCHANGE, KEY, json_option
from cipherbox.cli.running import run
from cipherbox.cli.send_files import in_parts, progress, send_all
from cipherbox.envelope.stanza_types import STANZAS
from cipherbox.errors import Queued, RecipientRefuses
from cipherbox.limits import LIMITS

if TYPE_CHECKING:
    from cipherbox.client.client import Confirmation
    from cipherbox.sealing.body import Message

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
WRAPS = {row.option: row.name for row in STANZAS.values()}


@click.command()
@click.argument("content", required=False)
@click.option("--to", type=CLIENT_ID, multiple=True, help="A recipient's client id; repeatable.")
@click.option(
    "--exchange", type=EXCHANGE, help="Send by route: to whoever reads what is bound there."
)
@click.option("--key", type=KEY, help="The routing key for --exchange.")
@click.option(
    "--file",
    "files",
    type=click.Path(path_type=Path, exists=True),
    multiple=True,
    help="Send this file, of any size, or directory; repeatable.",
)
@click.option(
    "--compress", is_flag=True, help="Compress large files before sealing. [manual: files]"
)
@click.option(
    "--copy",
    is_flag=True,
    help="Keep a copy of large files until they are opened; else they must stay.",
)
@click.option(
    "--type", "content_type", default="", help="Content type. [default: from the file's name; text]"
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    help="A header, sealed too; repeatable.",
)
@click.option(
    "--idempotency-key",
    "once",
    metavar="TEXT",
    help="A name of your own for this message: sent again with it, the message goes once. "
    "[manual: howto-lab]",
)
@click.option(
    "--expires",
    type=DURATION,
    help="Give up what was not received within this time, for example 7d.",
)
@click.option(
    "--wrap",
    type=click.Choice(tuple(WRAPS)),
    help="Seal for keys of this kind: post-quantum, or classical; ratchet: in a session with each "
    "recipient. [manual: sessions] [default: the kind each recipient prefers]",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Send although some recipients have no queue, or take no mail from you.",
)
@click.option(
    "--wait",
    "until",
    type=click.Choice(("queued", "confirmed", "delivered", "opened")),
    default="confirmed",
    show_default=True,
    help="What to wait for: kept here, on HQ's disk, delivered to all, or signed for by all.",
)
@click.option(
    "--within",
    type=DURATION,
    default=60.0,
    help="How long to wait for delivered or opened. [default: 60s]",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Say every step: keys, sealing, HQ's acknowledgements."
)
@json_option
@click.pass_context
def send(
    ctx: click.Context,
    content: str | None,
    to: tuple[str, ...],
    exchange: str | None,
    key: str | None,
    files: tuple[Path, ...],
    compress: bool,
    copy: bool,
    content_type: str,
    headers: tuple[str, ...],
    once: str | None,
    expires: float | None,
    wrap: str | None,
    partial: bool,
    until: str,
    within: float,
    verbose: bool,
    as_json: bool,
) -> int:
    """Seal CONTENT on this machine and send it: only the recipients can open it.

    \b
    cipherbox send --to CA-RC 'Sample 17 is ready'
    cipherbox send --to CA-RC --to SF-RC --file results.csv
    cipherbox send --to CA-RC --file run-42/ --file scan.tif
    cipherbox send --exchange lab_reports --key all --file report.hl7
    some-program | cipherbox send --to CA-RC --wait opened

    The sealed message is on this machine's disk before the first try.  When HQ cannot be reached it
    stays in the outbox, goes out by itself later, and the exit code is 11.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import next_step, print_event, print_json, print_keys, say, warn

    if key and not exchange:
        raise click.UsageError(
            "--key is the routing key of an exchange: name it with --exchange NAME, or leave --key "
            "out. Against sending twice: --idempotency-key TEXT."
        )
    if bool(to) == bool(exchange):
        raise click.UsageError(
            "Say who receives it: --to CLIENT_ID, or --exchange NAME with --key KEY."
        )
    if exchange and not key:
        raise click.UsageError("A route needs its routing key: --key KEY.")
    if content is not None and files:
        raise click.UsageError("Give the content as an argument or as --file, not both.")
    large = tuple(path for path in files if in_parts(path))
    files = tuple(path for path in files if path not in large)
    if wrap == "ratchet" and large:
        raise click.UsageError(
            "--wrap ratchet is for messages; large files go outside of sessions."
        )
    if once is not None and large:
        raise click.UsageError("--idempotency-key goes with messages, and files that fit into one.")
    messages = (
        _messages(content, files, content_type, _headers(headers)) if files or not large else []
    )
    expires_at = int((time.time() + expires) * 1000) if expires else 0
    stanza = WRAPS[wrap] if wrap else None

    home = load_here(ctx)

    async def main() -> tuple[list[Confirmation], bool, RecipientRefuses | None]:
        from cipherbox.client.client import open_client

        done: list[Confirmation] = []
        on_event = None if as_json else print_event if verbose else print_keys
        async with (
            open_client(home, on_event=on_event, keep_trying=True, renew=False) as client,
            suggesting(ctx, client),
        ):
            where = {"to": list(to) or None, "exchange": exchange or "", "routing_key": key or ""}
            if messages:
                more = {
                    "expires_at": expires_at,
                    "partial": partial,
                    "stanza": stanza,
                    "wait": until != "queued",
                    "key": once,
                }
                done.append(await client.publish(messages, **where, **more))  # type: ignore[arg-type]
            if large:
                recipients = list(to) or await client.readers(exchange or "", key or "")
                with progress(quiet=as_json) as tell:
                    done += await send_all(
                        client,
                        large,
                        recipients,
                        content_type,
                        compress=compress,
                        copy=copy,
                        stanza=stanza,
                        on_progress=tell,
                    )
            if until in ("queued", "confirmed"):
                return done, True, None
            envelopes = [envelope for one in done for envelope, _ in one.envelopes]
            try:
                return done, await client.wait_for(envelopes, until, within), None
            except RecipientRefuses as error:
                return done, False, error

    try:
        confirmations, arrived, refused = run(main)
    except Queued as error:
        if as_json:
            print_json({"message_ids": error.message_ids, "state": "queued", "reason": str(error)})
        raise
    confirmation = confirmations[0]
    ids = [str(message_id) for one in confirmations for message_id in one.message_ids]
    if as_json:
        print_json(
            {
                "message_ids": ids,
                "state": until if arrived else "refused" if refused is not None else "confirmed",
                "accepted_at": confirmation.accepted_at,
                "queues": list(confirmation.queues),
                "missing": list(confirmation.missing),
                "again": confirmation.again,
                "duplicate": confirmation.duplicate,
            }
        )
    else:
        whom = ", ".join(to) if to else f"{exchange} with {key!r}"
        say(_sentence(confirmation, ids, whom, until if arrived else "confirmed"))
    if confirmation.missing and not as_json:
        warn(
            "Not reached, for they have no queue or take no mail from you: "
            f"{', '.join(confirmation.missing)}"
        )
    if refused is not None:
        raise refused
    if not arrived:
        warn(f"HQ has it, but it was not {until} by all within {within:g} s; it goes on by itself.")
    if verbose and not as_json:
        next_step(f"see where it is: {command_here(ctx)} status {ids[0]}")
    return Exit.OK if arrived else Exit.QUEUED


def _sentence(confirmation: Confirmation, ids: list[str], whom: str, state: str) -> str:
    """What became of it, in one line."""
    more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
    if confirmation.duplicate:
        return (
            f"Sent before to {whom} with this idempotency key, nothing was sent again  "
            f"{ids[0]}{more}"
        )
    if not confirmation.accepted_at:
        return f"Kept for {whom}; it goes out with the next command, or by an agent  {ids[0]}{more}"
    done = {"delivered": "delivered to all", "opened": "opened and signed for by all"}.get(
        state, "confirmed by HQ"
    )
    return f"Sent to {whom}, {done}  {ids[0]}{more}"


def _messages(
    content: str | None, files: tuple[Path, ...], kind: str, headers: dict[str, str]
) -> list[Message]:
    from cipherbox.client.file_types import guess_type
    from cipherbox.sealing.body import Message

    if files:
        return [
            Message(
                path.read_bytes(),
                kind or guess_type(path),
                {
                    "filename": path.name,
                    "modified_at": str(path.stat().st_mtime_ns // 1_000_000),
                    **headers,
                },
            )
            for path in files
        ]
    if content is not None:
        return [Message(content.encode(), kind or TEXT, headers)]
    if sys.stdin.isatty():
        raise click.UsageError(
            "What shall be sent? Give it as an argument, with --file, or on standard input."
        )
    raw = sys.stdin.buffer.read(LIMITS.envelope_bytes + 1)
    try:
        raw.decode()
    except UnicodeDecodeError:
        return [Message(raw, kind or BINARY, headers)]
    return [Message(raw, kind or TEXT, headers)]


def _headers(pairs: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise click.UsageError(f"A header is NAME=VALUE, not {pair!r}.")
        headers[name] = value
    return headers
