"""`inbox`: list, show, save and search received messages, with the refused and the parked ones."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox import clock
from cipherbox.cli.home import command_here, home_of, with_client_offline
from cipherbox.cli.options import CLIENT_ID, DURATION, json_option
from cipherbox.cli.status import MessageId
from cipherbox.envelope.suites import SUITE_NAMES
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.inbox.encrypted_lines import Entry
    from cipherbox.client.inbox.inspect import InboxInspection

_SHOWN = 60  # characters of a text in a list
last_option = click.option(
    "--last", type=click.IntRange(1, 100_000), default=50, show_default=True, help="Maximum number."
)
since_option = click.option(
    "--since", type=DURATION, help="Only what was received within this time, for example 7d."
)
sender_option = click.option("--from", "sender", type=CLIENT_ID, help="Only what this client sent.")


@click.group()
def inbox() -> None:
    """List, show, save and search what this home has received, also while a receiver runs and
    without HQ.
    """


@inbox.command("list")
@last_option
@since_option
@sender_option
@click.option("--refused", is_flag=True, help="What was refused, with the reasons.")
@click.option(
    "--parked", is_flag=True, help="Messages whose handler failed permanently, with the reasons."
)
@json_option
@click.pass_context
def inbox_list(
    ctx: click.Context,
    last: int,
    since: float | None,
    sender: str | None,
    refused: bool,
    parked: bool,
    as_json: bool,
) -> None:
    """List what was received, latest last: time, sender, content, and how it was signed."""
    if refused and parked:
        raise click.UsageError("Specify either --refused or --parked.")
    with inspect_inbox(ctx) as inspection:
        if refused:
            _refused(inspection, last, as_json)
        elif parked:
            _parked(ctx, inspection, as_json)
        else:
            newest = inspection.shelf.newest(since_ms(since), sender or "")
            _entries(ctx, reversed(list(islice(newest, last))), as_json)


@inbox.command("search")
@click.argument("text")
@last_option
@since_option
@sender_option
@json_option
@click.pass_context
def inbox_search(
    ctx: click.Context, text: str, last: int, since: float | None, sender: str | None, as_json: bool
) -> None:
    """List what contains TEXT: in a message, its headers, a file's name, an id. Contents of files
    are not searched.
    """
    from cipherbox.client.inbox.encrypted_lines import matches

    with inspect_inbox(ctx) as inspection:
        found = (
            one
            for one in inspection.shelf.newest(since_ms(since), sender or "")
            if matches(one, text)
        )
        _entries(ctx, reversed(list(islice(found, last))), as_json)


@inbox.command("show")
@click.argument("message_id", type=MessageId())
@sender_option
@json_option
@click.pass_context
def inbox_show(
    ctx: click.Context, message_id: uuid.UUID, sender: str | None, as_json: bool
) -> None:
    """Show the details of MESSAGE_ID, and the text of a message."""
    from cipherbox.cli.output import print_raw, record, safe, say

    with inspect_inbox(ctx) as inspection:
        entry = _found(ctx, inspection, message_id, sender)
    if as_json:
        print_raw(entry.line)
        return
    headers = [f"{name}={value}" for name, value in entry.document.get("headers", {}).items()]
    record({**_record(entry), "sent": entry.document["sent_timestamp"], "headers": headers})
    if entry.text is not None:
        say()
        for line in entry.text.splitlines():
            say(safe(line, len(line)))


@inbox.command("save")
@click.argument("message_id", type=MessageId())
@click.argument("target", type=click.Path(path_type=Path), default=".")
@sender_option
@click.pass_context
def inbox_save(ctx: click.Context, message_id: uuid.UUID, target: Path, sender: str | None) -> None:
    """Save MESSAGE_ID, a message or a file, in readable form to TARGET: a directory, or the name of
    a new file.
    """
    from cipherbox.cli.output import say

    with inspect_inbox(ctx) as inspection:
        entry = _found(ctx, inspection, message_id, sender)
        say(str(inspection.save(entry, target).absolute()))


@inbox.command("retry")
@click.argument("message_id", type=MessageId(), required=False)
@click.pass_context
def inbox_retry(ctx: click.Context, message_id: uuid.UUID | None) -> None:
    """Retry the handler for MESSAGE_ID, or for everything that is parked."""
    from cipherbox.cli.output import explain
    from cipherbox.client.receiving.handler import Handlers

    async def work(client: Client) -> int:
        handlers = Handlers(client)
        try:
            return handlers.retry(message_id)
        finally:
            handlers.close()

    count = with_client_offline(ctx, work)
    if message_id is not None and not count:
        raise NotFound(f"message {message_id} is not parked in {home_of(ctx)}")
    explain(
        "",
        f"{count} message(s) will be retried by the next: {command_here(ctx)} receive --exec "
        "COMMAND",
    )


# -- inside ----------------------------------------------------------------------------------------


@contextmanager
def inspect_inbox(ctx: click.Context) -> Iterator[InboxInspection]:
    from cipherbox.cli.home import load_here
    from cipherbox.client.inbox.inspect import looking

    with looking(load_here(ctx)) as inspection:
        yield inspection


def since_ms(since: float | None) -> int:
    return int((clock.now_s() - since) * 1000) if since else 0


def _found(
    ctx: click.Context, inspection: InboxInspection, message_id: uuid.UUID, sender: str | None
) -> Entry:
    from cipherbox.client.inbox.inspect import find

    entry = find(inspection, message_id, sender or "")
    if entry is None:
        raise NotFound(
            f"message {message_id} is not in the inbox of {home_of(ctx)}, or older than [inbox] "
            "keep_days"
        )
    return entry


def _entries(ctx: click.Context, entries: Iterable[Entry], as_json: bool) -> None:
    from cipherbox.cli.output import next_step, print_json, safe, size_text, table, time_text

    rows = list(entries)
    if as_json:
        print_json([_record(one) for one in rows])
        return
    table(
        ("received", "from", "type", "size", "signature", "what", "message"),
        [
            (
                time_text(one.received_at),
                safe(one.sender_id),
                safe(one.content_type.partition(";")[0]),
                size_text(one.size),
                SUITE_NAMES.get(one.suite, "-"),
                _what(one),
                one.message_id,
            )
            for one in rows
        ],
        empty="nothing was received, or nothing matches",
        drop=("signature", "size", "type"),
    )
    if rows:
        next_step(f"look at one: {command_here(ctx)} inbox show {rows[-1].message_id}")


def _what(one: Entry) -> str:
    from cipherbox.cli.output import safe

    if one.text is None:
        return safe(one.file or one.filename)
    text = one.text.strip().partition("\n")[0]
    return safe(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _record(one: Entry) -> dict[str, object]:
    return {
        "message_id": one.message_id,
        "sender_id": one.sender_id,
        "received_at": one.received_at,
        "content_type": one.content_type,
        "bytes": one.size,
        "signature": SUITE_NAMES.get(one.suite, ""),
        "filename": one.filename,
        "file": one.file,
        "kept": bool(one.kept),
    }


def _refused(inspection: InboxInspection, last: int, as_json: bool) -> None:
    import attrs

    from cipherbox.cli.output import print_json, safe, table, time_text

    rows = inspection.refused(last)
    if as_json:
        print_json([attrs.asdict(row) for row in rows])
        return
    table(
        ("refused", "from", "why", "reason", "message"),
        [
            (time_text(r.at), safe(r.sender_id), r.outcome, safe(r.reason), r.message_id)
            for r in rows
        ],
        empty="nothing was refused",
        drop=("why",),
    )


def _parked(ctx: click.Context, inspection: InboxInspection, as_json: bool) -> None:
    import attrs

    from cipherbox.cli.output import next_step, print_json, safe, table

    rows = inspection.parked()
    if as_json:
        print_json([attrs.asdict(row) for row in rows])
        return
    table(
        ("message", "from", "attempts", "reason"),
        [(r.message_id, safe(r.sender_id), r.attempts, safe(r.reason)) for r in rows],
        empty="nothing is parked",
    )
    if rows:
        next_step(f"try all again, with the next receive --exec: {command_here(ctx)} inbox retry")
