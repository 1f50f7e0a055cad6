"""`dead`: list, show, redrive and drop dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.home import command_here, with_client
from cipherbox.cli.options import json_option, sure
from cipherbox.errors import NotFound

if TYPE_CHECKING:
    from cipherbox.client.client import Client

Where = tuple[str, int]


class Letter(click.ParamType[Where]):
    """A dead letter as QUEUE/SEQ, as `dead list` prints it."""

    name = "queue/seq"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> Where:
        queue, slash, seq = str(value).rpartition("/")
        if not slash or not seq.isdigit():
            self.fail(
                f"invalid dead letter {value!r}: use for example box.CA-RC/17; list them with: "
                "cipherbox dead list",
                param,
                ctx,
            )
        return queue, int(seq)


LETTER = Letter()


@click.group()
def dead() -> None:
    """List, show, redrive and drop dead letters: envelopes that are not delivered any more."""


@dead.command("list")
@click.argument("queue", required=False)
@click.option("--all", "settled", is_flag=True, help="Include those that were redriven or dropped.")
@json_option
@click.pass_context
def dead_list(ctx: click.Context, queue: str | None, settled: bool, as_json: bool) -> None:
    """List the dead letters of QUEUE, which you read; without QUEUE, of all queues (admin)."""
    from cipherbox.cli.output import next_step, print_json, safe, table, time_text

    rows = with_client(ctx, lambda client: client.dead_letters(queue or "", settled=settled))
    if as_json:
        print_json(rows)
        return
    table(
        ("dead letter", "from", "message", "more", "dead", "reason", "settled"),
        [
            (
                safe(f"{r['queue']}/{r['seq']}"),
                safe(r["sender"]),
                r["message_id"],
                r["messages"] - 1,
                time_text(r["dead_at"]),
                safe(r["reason"]),
                safe(_settled(r)) or "-",
            )
            for r in rows
        ],
        empty="no dead letters",
    )
    if rows and not settled:
        first = safe(f"{rows[0]['queue']}/{rows[0]['seq']}")
        next_step(
            f"what happened to one: {command_here(ctx)} dead show {first}",
            f"deliver it again:     {command_here(ctx)} dead redrive {first}",
        )


@dead.command("show")
@click.argument("letter", type=LETTER)
@json_option
@click.pass_context
def dead_show(ctx: click.Context, letter: Where, as_json: bool) -> None:
    """Show one dead letter with its origin and history."""
    from cipherbox.cli.output import print_json, record

    async def work(client: Client) -> dict[str, Any]:
        for row in await client.dead_letters(letter[0], settled=True):
            if row["seq"] == letter[1]:
                return row
        raise NotFound(f"no dead letter {letter[0]}/{letter[1]} that you may see")

    row = with_client(ctx, work)
    if as_json:
        print_json(row)
    else:
        record(row)


@dead.command("redrive")
@click.argument("letters", type=LETTER, nargs=-1)
@click.option("--queue", help="All dead letters of this queue.")
@click.pass_context
def dead_redrive(ctx: click.Context, letters: tuple[Where, ...], queue: str | None) -> None:
    """Return LETTERS (QUEUE/SEQ), or all of a queue, to the end of their queue."""
    from cipherbox.cli.output import say

    count = with_client(ctx, lambda client: _settle(client, letters, queue, drop=False))
    say(f"{count} dead letter(s) are back in their queue.")


@dead.command("drop")
@click.argument("letters", type=LETTER, nargs=-1)
@click.option("--queue", help="All dead letters of this queue.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def dead_drop(ctx: click.Context, letters: tuple[Where, ...], queue: str | None, yes: bool) -> None:
    """Discard LETTERS (QUEUE/SEQ), or all of a queue, permanently (admin). Their record is kept."""
    from cipherbox.cli.output import say

    what = f"all dead letters of {queue}" if queue else f"{len(letters)} dead letter(s)"
    if letters or queue:
        sure(f"Permanently delete {what}? Nobody has received them.", yes)
    count = with_client(ctx, lambda client: _settle(client, letters, queue, drop=True))
    say(f"{count} dead letter(s) dropped; HQ's log records by whom.")


async def _settle(
    client: Client, letters: tuple[Where, ...], queue: str | None, *, drop: bool
) -> int:
    if bool(letters) == bool(queue):
        raise click.UsageError("Specify dead letters (QUEUE/SEQ) or --queue.")
    wanted: dict[str, list[int]] = {}
    if queue:
        wanted[queue] = [row["seq"] for row in await client.dead_letters(queue)]
    for name, seq in letters:
        wanted.setdefault(name, []).append(seq)
    count = 0
    for name, seqs in wanted.items():
        count += await client.settle_dead(name, seqs, drop=drop)
    if letters and count < len(letters):
        raise NotFound(
            f"{len(letters) - count} of them do not exist or are settled already; {count} "
            "were settled"
        )
    return count


def _settled(row: dict[str, Any]) -> str:
    return f"{row['settled']} by {row['settled_by']}" if row["settled"] else ""
