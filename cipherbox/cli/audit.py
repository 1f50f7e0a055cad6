"""`audit`: HQ's signed log, verified entry by entry, or read."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, BinaryIO

import attrs
import click

from cipherbox.cli.exits import Exit
from cipherbox.cli.home import home_of, load_here, with_admin
from cipherbox.cli.options import json_option, sure, yes_option
from cipherbox.cli.running import run

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.wire.frames import LogEntry

_WHOLE = 4000  # characters of a line: an admin's signed statement is shown whole
Entries = AsyncIterator[tuple["LogEntry", int]]


@click.group()
def audit() -> None:
    """Read and verify HQ's signed log: what it accepted, delivered and dead-lettered, and who
    changed what.
    """


@audit.command("verify")
@click.option(
    "--key", help="The log key in hexadecimal. [default: the one that HQ's certificate certifies]"
)
@json_option
@click.pass_context
def audit_verify(ctx: click.Context, key: str | None, as_json: bool) -> int:
    """Read the whole log from HQ; check every entry, the tree over them, and that entries read
    before still exist.

    Exit code 1 if an entry was changed, is missing or was moved, if the latest head does not match,
    or if two entries name different key bundles of one client under one number. The entry is named.
    """
    from cipherbox.cli.output import fail, print_json, say
    from cipherbox.client.log.audit import Audit, verify_log
    from cipherbox.errors import InvalidRequest

    async def work(client: Client) -> Audit:
        await client.connection.ready(client.connection.tries)
        try:
            log_key = bytes.fromhex(key) if key else client.log.key
        except ValueError:
            raise InvalidRequest("a log key is 64 hexadecimal digits") from None
        with _progress(as_json) as report:
            return await verify_log(client, log_key, report)

    found = with_admin(ctx, work)
    if as_json:
        print_json(attrs.asdict(found))
    else:
        for one in found.wrong:
            fail(f"Entry {one['entry']}: {one['reason']}.")
        if not found.wrong:
            say(
                f"{found.entries} entries, {found.first} to {found.last}: all signed, whole and "
                "in order."
            )
            if found.remembered:
                say(f"{found.remembered} of them were read here before, and are the same.")
            if found.old_entries:
                say(
                    f"Before them, {found.old_entries} entries in the format used before 0.6, "
                    "complete as well."
                )
            say(f"Log key: {found.key}")
            say(f"Root: {found.root}")
    return Exit.REFUSED if found.wrong else Exit.OK


@audit.command("show")
@click.option("--after", type=click.IntRange(min=0), help="Entries after this one.")
@click.option(
    "--last",
    type=click.IntRange(1, 100_000),
    default=20,
    show_default=True,
    help="Number of latest entries.",
)
@json_option
@click.pass_context
def audit_show(ctx: click.Context, after: int | None, last: int, as_json: bool) -> None:
    """Print the log, one line per act: entry, time, who, what.

    `audit verify` checks whether the log is complete.
    """
    from cipherbox.cli.audit_lines import events, lines
    from cipherbox.cli.output import explain, print_json, safe, say, time_text
    from cipherbox.envelope.transparency_log import decode_groups, decode_record

    async def work(client: Client) -> None:
        newest = (await client.read_log(0, 1)).last
        start = max(0, newest - last) if after is None else after
        shown = 0
        async for entry, _ in _entries(client, start):
            head, groups = decode_record(entry.record), decode_groups(entry.body)
            if as_json:
                found = [event for group in groups for event in events(group)]
                print_json(
                    {"entry": head.index, "at": head.at, "root": head.root.hex(), "events": found}
                )
            else:
                for who, what in [line for group in groups for line in lines(group)] or [
                    ("HQ", "nothing to tell")
                ]:
                    at = f"{head.index:>{len(str(newest))}}  {time_text(head.at)}"
                    explain(f"{at}  {safe(who)}  ", safe(what, _WHOLE))
            shown += 1
            if after is not None and shown >= last:
                return
        if not shown and not as_json:
            say(f"The log has {newest} entries, and none after {start}.")

    with_admin(ctx, work)


@audit.command("evidence")
@click.argument("file", type=click.File("rb"))
@json_option
@click.pass_context
def audit_evidence(ctx: click.Context, file: BinaryIO, as_json: bool) -> int:
    """Verify a file of evidence against HQ's log: offline, on any machine, with no home.

    Exit code 0: its two signed heads contradict each other. 1: they do not, or HQ may still explain
    them.
    """
    from cipherbox.cli.output import fail, print_json, say, time_text
    from cipherbox.envelope.evidence import CONSISTENT, FORK, ROLLBACK, verify_file

    found = verify_file(file.read())
    if as_json:
        heads = [
            {"origin": h.origin, "entries": h.size, "root": h.root.hex(), "at": h.at}
            for h in found[1:3]
        ]
        print_json(
            {
                "kind": found.kind,
                "says": found.words,
                "hq": found.hq,
                "first": heads[0],
                "second": heads[1],
            }
        )
        return Exit.OK if found.kind in (FORK, ROLLBACK) else Exit.REFUSED
    for name, head in (("First", found.first), ("Then", found.second)):
        say(
            f"{name}: {head.size} entries, root {head.root.hex()}, signed {time_text(head.at)}, "
            f"{head.origin}"
        )
    say(f"Both are signed with the log key that the certificate of {found.hq} certifies.")
    if found.kind in (FORK, ROLLBACK):
        say(f"Proven ({found.kind}): {found.words}.")
        return Exit.OK
    remedy = (
        ""
        if found.kind == CONSISTENT
        else "HQ has not proved that one extends the other; ask its admin for the proof."
    )
    fail(f"Not proven by this file alone ({found.kind}): {found.words}.", remedy)
    return Exit.REFUSED


@audit.command("restored")
@yes_option
@click.pass_context
def audit_restored(ctx: click.Context, yes: bool) -> None:
    """Sign, as an admin, that HQ was restored from a backup, so that its clients continue.

    HQ's log states what the restored store continues from. Check it, and sign only a restore of
    your own: clients that saw later entries accept your statement that these are lost.
    """
    from cipherbox.cli.output import next_step, say
    from cipherbox.client.log.restores import attest_restored

    def ask(text: str) -> None:
        say(text)
        sure("Sign that?", yes)

    run(attest_restored, load_here(ctx), ask)
    next_step("stopped clients continue at their next start; see: cipherbox audit show --last 5")


@audit.command("accept")
@yes_option
@click.pass_context
def audit_accept(ctx: click.Context, yes: bool) -> None:
    """Forget a contradiction that was found, and trust the log that HQ shows next.

    Use it when you know what happened. The file of evidence is kept.
    """
    from contextlib import closing

    from cipherbox.cli.output import say
    from cipherbox.client.log.heads import Heads

    with closing(Heads(home_of(ctx))) as heads:
        known = heads.contradiction()
        if known is None:
            say("No contradiction of HQ's log is known here.")
            return
        say(f"{known[0]}. Evidence: {known[1] or 'none; HQ sent it to this client only'}")
        sure("Continue with this HQ, and forget the log heads seen here?", yes)
        heads.forget()
    say("Forgotten. The next head that HQ shows counts as the first.")


async def _entries(client: Client, after: int = 0) -> Entries:
    while True:
        page = await client.read_log(after)
        if not page.entries:
            return
        for entry in page.entries:
            yield entry, page.last
        after = max(after + 1, _number(page.entries[-1]) or after + len(page.entries))


def _number(entry: LogEntry) -> int:
    from cipherbox.envelope.transparency_log import decode_record
    from cipherbox.errors import EnvelopeError

    try:
        return decode_record(entry.record).index
    except EnvelopeError:  # a damaged record: continue after it
        return 0


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

            def report(number: int, newest: int) -> None:
                shown.update(task, completed=number, total=newest)

            yield report

    return bar()
