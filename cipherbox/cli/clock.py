"""`clock`: HQ's clock, and what an admin decides about it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.home import command_here, with_admin
from cipherbox.cli.options import HQ_DIRECTORY, hq_settings, json_option, sure, yes_option
from cipherbox.cli.running import run

if TYPE_CHECKING:
    from datetime import datetime

    from cipherbox.client.client import Client

_DIFFERS_MS = 3_600_000


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def clock(ctx: click.Context, as_json: bool) -> None:
    """Show HQ's clock (admin), and whether HQ doubts it.

    While HQ doubts its clock, it accepts no envelopes, issues no certificates and deletes no
    records; deliveries continue. Set the clock of its machine; only if it is right, confirm it.
    """
    if ctx.invoked_subcommand is not None:
        return
    from cipherbox.cli.output import next_step, print_json, record, say, time_text

    row = with_admin(ctx, _read)
    if as_json:
        print_json(row)
        return
    say(row["doubt"] or "HQ's clock is right.")
    record(
        {
            "HQ's clock shows": time_text(row["shows"]),
            "HQ uses": time_text(row["used"]),
            "newest log entry": time_text(row["newest_entry"]),
            "ids refused before": time_text(row["watermark"]),
        }
    )
    if row["doubt"]:
        next_step(
            f"set the clock of HQ's machine; if it is right: {command_here(ctx)} clock confirm"
        )


@clock.command()
@yes_option
@click.option(
    "--hq",
    type=HQ_DIRECTORY,
    metavar="DIRECTORY",
    help="HQ's directory, on its machine while HQ is stopped: if no admin can connect.",
)
@click.pass_context
def confirm(ctx: click.Context, yes: bool, hq: Path | None) -> None:
    """Confirm that HQ's clock is right (admin), which ends HQ's doubt.

    The signed log records it. If this machine's clock differs by more than an hour, this command
    asks first. With --hq no admin is needed. Run it as HQ's user while HQ is stopped: a wrong time
    that was confirmed may have made certificates for HQ that no client accepts.
    """
    from cipherbox import clock as here
    from cipherbox.cli.output import next_step, say, time_text

    if hq is not None:
        from cipherbox.server.operations.offline import confirm_clock

        sure(f"This machine's clock shows {time_text(here.now_ms())}. Is it right?", yes)
        at = run(confirm_clock, hq_settings(hq))
        say(f"HQ's clock is confirmed: {time_text(at)}.")
        next_step(f"start HQ: cipherbox serve {shlex.quote(str(hq))}")
        return
    row = with_admin(ctx, _read)
    if abs(row["shows"] - here.now_ms()) > _DIFFERS_MS:
        sure(
            f"HQ's clock shows {time_text(row['shows'])}, this machine's "
            f"{time_text(here.now_ms())}. Is HQ's right?",
            yes,
        )
    with_admin(ctx, lambda client: client.confirm_clock())
    say(f"HQ's clock is confirmed: {time_text(row['shows'])}.")


@clock.command()
@click.argument(
    "time", type=click.DateTime(("%Y-%m-%d", "%Y-%m-%dT%H:%M:%S")), metavar="[TIME]", required=False
)
@yes_option
@click.pass_context
def watermark(ctx: click.Context, time: datetime | None, yes: bool) -> None:
    """Set the time (UTC) before which HQ refuses envelope ids as too old (admin).

    It is for an HQ that deleted records while its clock was ahead: since then it refuses every
    envelope as too old. Without TIME it is the time that [retention] metadata_days gives. The
    signed log records it.
    """
    from datetime import UTC

    from cipherbox.cli.output import say, time_text

    sure(
        "Ids since that time whose records HQ has deleted may be accepted a second time; their "
        "recipients drop duplicates that they remember. Set it?",
        yes,
    )
    at = int(time.replace(tzinfo=UTC).timestamp() * 1000) if time is not None else 0

    async def work(client: Client) -> dict[str, Any]:
        await client.set_watermark(at)
        return await _read(client)

    row = with_admin(ctx, work)
    say(f"HQ refuses ids before {time_text(row['watermark'])}.")


async def _read(client: Client) -> dict[str, Any]:
    (row,) = await client.list("clock")
    return row
