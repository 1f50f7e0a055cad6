"""`send`: seal a text, files or standard input, send it to recipients or an exchange, and wait for
HQ's confirm.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from cipherbox.classes import frozen
from cipherbox.cli.exits import Exit
from cipherbox.cli.home import command_here, suggesting
from cipherbox.cli.options import CLIENT_ID, DURATION, EXCHANGE, KEY, as_record, json_option
from cipherbox.cli.running import run
from cipherbox.cli.send_files import in_parts, progress, send_all
from cipherbox.envelope.stanza_types import STANZAS
from cipherbox.errors import Queued, RecipientRefuses
from cipherbox.limits import LIMITS

if TYPE_CHECKING:
    from cipherbox.client.client import Confirmation
    from cipherbox.client.home import Home
    from cipherbox.sealing.body import Message

TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
WRAPS = {row.option: row.name for row in STANZAS.values()}


@frozen
class SendOptions:
    """The options of `send`."""

    content: str | None
    to: tuple[str, ...]
    exchange: str | None
    key: str | None
    files: tuple[Path, ...]
    compress: bool
    copy: bool
    content_type: str
    headers: tuple[str, ...]
    idempotency_key: str | None
    expires: float | None  # seconds from now
    wrap: str | None
    partial: bool
    until: str  # what to wait for
    within: float  # seconds
    verbose: bool
    as_json: bool

    @property
    def stanza(self) -> str | None:
        """Return the stanza type to seal with; None: the one each recipient prefers."""
        return WRAPS[self.wrap] if self.wrap else None

    @property
    def whom(self) -> str:
        """Return the recipients, or the route, as text."""
        return ", ".join(self.to) if self.to else f"{self.exchange} with {self.key!r}"

    def check(self, large: tuple[Path, ...]) -> None:
        """Raise UsageError if options contradict each other; ``large`` are files sent in parts."""
        if self.key and not self.exchange:
            raise click.UsageError(
                "--key is the routing key of an exchange: specify --exchange NAME, or omit --key. "
                "To prevent duplicates: --idempotency-key TEXT."
            )
        if bool(self.to) == bool(self.exchange):
            raise click.UsageError(
                "Specify the recipients: --to CLIENT_ID, or --exchange NAME with --key KEY."
            )
        if self.exchange and not self.key:
            raise click.UsageError("A route needs its routing key: --key KEY.")
        if self.content is not None and self.files:
            raise click.UsageError("Give the content as an argument or as --file, not both.")
        if self.wrap == "ratchet" and large:
            raise click.UsageError(
                "--wrap ratchet is for messages; large files go outside of sessions."
            )
        if self.idempotency_key is not None and large:
            raise click.UsageError(
                "--idempotency-key goes with messages, and files that fit into one."
            )


class Sent(NamedTuple):
    """The outcome of a send."""

    confirmations: list[Confirmation]
    arrived: bool  # the awaited state was reached
    refused: RecipientRefuses | None

    @property
    def message_ids(self) -> list[str]:
        return [str(one) for confirmation in self.confirmations for one in confirmation.message_ids]


@click.command()
@click.argument("content", required=False)
@click.option("--to", type=CLIENT_ID, multiple=True, help="Client id of a recipient; repeatable.")
@click.option(
    "--exchange", type=EXCHANGE, help="Send by route, to the readers of the queues bound there."
)
@click.option("--key", type=KEY, help="The routing key for --exchange.")
@click.option(
    "--file",
    "files",
    type=click.Path(path_type=Path, exists=True, readable=False),  # our error says more
    multiple=True,
    help="File of any size, or directory, to send; repeatable.",
)
@click.option(
    "--compress", is_flag=True, help="Compress large files before sealing. [manual: files]"
)
@click.option(
    "--copy",
    is_flag=True,
    help="Keep a copy of large files until they are opened; otherwise they must stay in place.",
)
@click.option(
    "--type", "content_type", default="", help="Content type. [default: from the file's name; text]"
)
@click.option(
    "--header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    help="Header, sealed with the message; repeatable.",
)
@click.option(
    "--idempotency-key",
    metavar="TEXT",
    help="Your own name for this message; repeating it sends nothing new. [manual: howto-lab]",
)
@click.option(
    "--expires",
    type=DURATION,
    help="Expire if not received within this time, for example 7d.",
)
@click.option(
    "--wrap",
    type=click.Choice(tuple(WRAPS)),
    help="Seal for keys of this type: post-quantum or classical; ratchet: in a session "
    "with each recipient. [manual: sessions] [default: the type each recipient "
    "prefers]",
)
@click.option(
    "--partial",
    is_flag=True,
    help="Send even if some recipients have no queue or accept no mail from you.",
)
@click.option(
    "--wait",
    "until",
    type=click.Choice(("queued", "confirmed", "delivered", "opened")),
    default="confirmed",
    show_default=True,
    help="What to wait for: stored here, stored by HQ, delivered to all, or opened by all.",
)
@click.option(
    "--within",
    type=DURATION,
    default=60.0,
    help="Timeout for delivered or opened. [default: 60s]",
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Print every step: keys, sealing, HQ's acknowledgements."
)
@json_option
@click.pass_context
@as_record(SendOptions)
def send(ctx: click.Context, options: SendOptions) -> int:
    """Seal CONTENT on this machine and send it. Only the recipients can open it.

    \b
    cipherbox send --to CA-RC 'Sample 17 is ready'
    cipherbox send --to CA-RC --to SF-RC --file results.csv
    cipherbox send --to CA-RC --file run-42/ --file scan.tif
    cipherbox send --exchange lab_reports --key all --file report.hl7
    some-program | cipherbox send --to CA-RC --wait opened

    The sealed message is stored on this machine before the first attempt. If HQ cannot be reached,
    it stays in the outbox, is sent automatically later, and the exit code is 11.
    """
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import print_json

    large = tuple(path for path in options.files if in_parts(path))
    options.check(large)
    small = tuple(path for path in options.files if path not in large)
    messages = _messages(options, small) if small or not large else []
    home = load_here(ctx)
    try:
        sent = run(_send, ctx, options, home, messages, large)
    except Queued as error:
        if options.as_json:
            print_json({"message_ids": error.message_ids, "state": "queued", "reason": str(error)})
        raise
    _print_outcome(ctx, options, sent)
    if sent.refused is not None:
        raise sent.refused
    return Exit.OK if sent.arrived else Exit.QUEUED


async def _send(
    ctx: click.Context,
    options: SendOptions,
    home: Home,
    messages: list[Message],
    large: tuple[Path, ...],
) -> Sent:
    """Publish the messages, then the large files, and wait for the requested state."""
    from cipherbox.cli.output import print_event, print_keys
    from cipherbox.client.client import open_client

    done: list[Confirmation] = []
    on_event = None if options.as_json else print_event if options.verbose else print_keys
    async with (
        open_client(home, on_event=on_event, keep_trying=True, renew=False) as client,
        suggesting(ctx, client),
    ):
        exchange, key = options.exchange or "", options.key or ""
        if messages:
            expires = options.expires
            confirmation = await client.publish(
                messages,
                to=list(options.to) or None,
                exchange=exchange,
                routing_key=key,
                expires_at=client.hq_clock.now_ms() + int(expires * 1000) if expires else 0,
                partial=options.partial,
                stanza=options.stanza,
                wait=options.until != "queued",
                key=options.idempotency_key,
                prompt_receipt=options.until == "opened",
            )
            done.append(confirmation)
        if large:
            recipients = list(options.to) or await client.readers(exchange, key)
            with progress(quiet=options.as_json) as on_progress:
                done += await send_all(
                    client,
                    large,
                    recipients,
                    options.content_type,
                    compress=options.compress,
                    copy=options.copy,
                    stanza=options.stanza,
                    on_progress=on_progress,
                )
        if options.until in ("queued", "confirmed"):
            return Sent(done, True, None)
        envelopes = [envelope for one in done for envelope, _ in one.envelopes]
        try:
            return Sent(done, await client.wait_for(envelopes, options.until, options.within), None)
        except RecipientRefuses as error:
            return Sent(done, False, error)


def _print_outcome(ctx: click.Context, options: SendOptions, sent: Sent) -> None:
    """Print the outcome, as JSON or as text."""
    from cipherbox.cli.output import next_step, print_json, say, warn

    confirmation, ids = sent.confirmations[0], sent.message_ids
    state = options.until if sent.arrived else "confirmed"
    if options.as_json:
        print_json(
            {
                "message_ids": ids,
                "state": "refused" if sent.refused is not None else state,
                "accepted_at": confirmation.accepted_at,
                "queues": list(confirmation.queues),
                "missing": list(confirmation.missing),
                "again": confirmation.again,
                "duplicate": confirmation.duplicate,
            }
        )
    else:
        say(_sentence(confirmation, ids, options.whom, state))
        if confirmation.missing:
            warn(
                "Not reached (they have no queue, or do not accept mail from you): "
                f"{', '.join(confirmation.missing)}"
            )
    if sent.refused is not None:
        return
    if not sent.arrived:
        warn(
            f"HQ has it, but it was not {options.until} by all within {options.within:g} s; it "
            "is delivered automatically."
        )
    if options.verbose and not options.as_json:
        next_step(f"see where it is: {command_here(ctx)} status {ids[0]}")


def _sentence(confirmation: Confirmation, ids: list[str], whom: str, state: str) -> str:
    """Return the outcome in one line."""
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


def _messages(options: SendOptions, files: tuple[Path, ...]) -> list[Message]:
    """Return the messages to send: from files, the argument, or standard input."""
    from cipherbox.client.file_types import guess_type
    from cipherbox.sealing.body import Message

    headers, kind = _headers(options.headers), options.content_type
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
    if options.content is not None:
        return [Message(options.content.encode(), kind or TEXT, headers)]
    if sys.stdin.isatty():
        raise click.UsageError(
            "Nothing to send: give the content as an argument, with --file, or on standard input."
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
