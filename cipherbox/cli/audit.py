"""`audit`: HQ's signed log, verified entry by entry, or read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

import click
import orjson

from cipherbox.cli.exits import Exit
from cipherbox.cli.options import json_option, with_admin

if TYPE_CHECKING:
    from cipherbox.client.api import Client
    from cipherbox.envelope.log import Group, LoggedBundle
    from cipherbox.wire.frames import LogEntry

Entries = AsyncIterator[tuple["LogEntry", int]]


@click.group()
def audit() -> None:
    """HQ's signed log: what it took, delivered and gave up, and who changed what."""


@audit.command("verify")
@click.option("--key", help="The log key in hexadecimal. [default: what this HQ's certificate stands behind]")
@json_option
@click.pass_context
def audit_verify(ctx: click.Context, key: str | None, as_json: bool) -> int:
    """Read the whole log from HQ and check every entry: its signature, its content, and that none is missing.

    Exit code 1 when an entry was changed, is missing or stands in another place, or when two entries name different key
    bundles of one client under one number; it is named.
    """
    from cipherbox.cli.output import fail, print_json, say
    from cipherbox.envelope.log import head_hash, verify_entry
    from cipherbox.errors import EnvelopeError, InvalidRequest

    async def work(client: Client) -> dict[str, Any]:
        link = await client.line.ready(client.line.tries)
        try:
            log_key = bytes.fromhex(key) if key else link.log_key
        except ValueError:
            raise InvalidRequest("a log key is 64 hexadecimal digits") from None
        found: dict[str, Any] = {"entries": 0, "first": 0, "last": 0, "wrong": [], "key": log_key.hex()}
        before: tuple[int, bytes] | None = None
        bundles: dict[tuple[str, int], bytes] = {}
        with _progress(as_json) as tell:
            async for entry, newest in _entries(client):
                number = before[0] + 1 if before is not None else 1
                try:
                    head = verify_entry(entry.head, entry.signature, entry.body, log_key, before)
                    number = head.index
                except EnvelopeError as error:
                    found["wrong"].append({"entry": number, "reason": str(error)})
                    before = _skip(entry)
                else:
                    before = (head.index, head_hash(entry.head, entry.signature))
                    for one in _bundles(entry):
                        if bundles.setdefault((one.client_id, one.sequence), one.bundle_hash) != one.bundle_hash:
                            reason = f"another key bundle {one.sequence} of {one.client_id} than an entry before"
                            found["wrong"].append({"entry": number, "reason": reason})
                found["first"] = found["first"] or number
                found["last"] = number
                found["entries"] += 1
                tell(number, newest)
        return found

    found = with_admin(ctx, work)
    if as_json:
        print_json(found)
    else:
        for one in found["wrong"]:
            fail(f"Entry {one['entry']}: {one['reason']}.")
        if not found["wrong"]:
            say(f"{found['entries']} entries, {found['first']} to {found['last']}: all signed, whole and in order.")
            say(f"Log key: {found['key']}")
    return Exit.REFUSED if found["wrong"] else Exit.OK


@audit.command("show")
@click.option("--after", type=click.IntRange(min=0), help="Entries after this one.")
@click.option("--last", type=click.IntRange(1, 100_000), default=20, show_default=True, help="The newest so many.")
@json_option
@click.pass_context
def audit_show(ctx: click.Context, after: int | None, last: int, as_json: bool) -> None:
    """Read the log in plain words.  `audit verify` says whether it is whole."""
    from cipherbox.cli.output import print_json, safe, say, time_text
    from cipherbox.envelope.log import decode_groups, decode_head

    async def work(client: Client) -> None:
        start = after
        if start is None:
            start = max(0, (await client.read_log(0, 1)).last - last)
        shown = 0
        async for entry, _ in _entries(client, start):
            head, groups = decode_head(entry.head), decode_groups(entry.body)
            if as_json:
                events = [event for group in groups for event in _events(group)]
                print_json({"entry": head.index, "at": head.at, "root": head.root.hex(), "events": events})
            else:
                say(f"{head.index}  {time_text(head.at)}")
                for group in groups:
                    for line in _lines(group):
                        say(f"    {safe(line)}")
            shown += 1
            if after is not None and shown >= last:
                return

    with_admin(ctx, work)


async def _entries(client: Client, after: int = 0) -> Entries:
    from cipherbox.envelope.log import decode_head

    while True:
        page = await client.read_log(after)
        if not page.entries:
            return
        for entry in page.entries:
            yield entry, page.last
        try:
            after = max(after + 1, decode_head(page.entries[-1].head).index)
        except Exception:  # a damaged head: go on behind it
            after += len(page.entries)


def _skip(entry: LogEntry) -> tuple[int, bytes] | None:
    """What the entry after a damaged one has to follow, as far as that can still be read."""
    from cipherbox.envelope.log import decode_head, head_hash
    from cipherbox.errors import EnvelopeError

    try:
        return decode_head(entry.head).index, head_hash(entry.head, entry.signature)
    except EnvelopeError:
        return None


def _bundles(entry: LogEntry) -> list[LoggedBundle]:
    """The key bundles an entry names."""
    from cipherbox.envelope.log import BUNDLE, decode_groups, read_bundle

    return [read_bundle(group.payload) for group in decode_groups(entry.body) if group.kind == BUNDLE]


def _events(group: Group) -> list[dict[str, Any]]:
    from cipherbox.envelope.ids import message_id
    from cipherbox.envelope.log import ACCEPTED, ACTS, BUNDLE, DEAD, DROPPED, KIND_NAMES, read_accepted, read_bundle

    name = KIND_NAMES[group.kind]
    if group.kind == BUNDLE:
        one = read_bundle(group.payload)
        return [{"what": name, "client": one.client_id, "sequence": one.sequence, "hash": one.bundle_hash.hex()}]
    if group.kind == ACCEPTED:
        sender, _, envelopes = read_accepted(group.payload)
        return [
            {"what": name, "sender": sender, "message_id": str(message_id(e.envelope_id, 0)),
             "generation": e.generation, "envelope_sha256": e.envelope_hash.hex()}
            for e in envelopes
        ]  # fmt: skip
    rows = orjson.loads(group.payload)
    if group.kind == ACTS:
        return [{"what": name, "by": by or "HQ", "act": act, **detail} for by, act, detail in rows]
    if group.kind == DEAD:
        keys: tuple[str, ...] = ("queue", "seq", "number", "reason", "by")
    elif group.kind == DROPPED:
        keys = ("queue", "seq", "number", "by")
    else:
        keys = ("queue", "first", "last", "client")
    return [{"what": name, **dict(zip(keys, row, strict=False))} for row in rows]


def _lines(group: Group) -> list[str]:
    from cipherbox.envelope.log import ACCEPTED, ACTS, BUNDLE, DEAD, DROPPED

    events = _events(group)
    if group.kind == BUNDLE:
        return [f"key bundle {e['sequence']} of {e['client']}, {e['hash'][:16]}" for e in events]
    if group.kind == ACCEPTED:
        first = events[0]
        more = f" and {len(events) - 1} more" if len(events) > 1 else ""
        return [f"accepted {first['message_id']}{more} from {first['sender']}"]
    if group.kind == ACTS:
        return [f"{e['by']}: {e['act']} {_words(e)}" for e in events]
    if group.kind == DROPPED:
        return [f"dropped {e['queue']}/{e['seq']}, by {e['by'] or 'HQ'}" for e in events]
    if group.kind == DEAD:
        return [f"dead letter {e['queue']}/{e['seq']}: {e['reason']}" for e in events]
    return [f"{e['what']} {e['queue']} {e['first']} to {e['last']}, {e['client']}" for e in events]


def _words(event: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in event.items() if k not in ("what", "by", "act") and v not in ("", None))


def _progress(quiet: bool) -> Any:
    import sys
    from contextlib import contextmanager

    @contextmanager
    def bar() -> Any:
        if quiet or not sys.stderr.isatty():
            yield lambda number, newest: None
            return
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as shown:
            task = shown.add_task("Verifying", total=None)
            tell: Callable[[int, int], None] = lambda n, newest: shown.update(task, completed=n, total=newest)  # noqa: E731
            yield tell

    return bar()
