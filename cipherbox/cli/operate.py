"""`reload` and `drain`: an admin's control of the running HQ, from any machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cipherbox.cli.home import command_here, with_admin
from cipherbox.cli.options import DURATION, json_option, sure, yes_option

if TYPE_CHECKING:
    from cipherbox.client.client import Client

LONGEST_S = 24 * 3600
_LOOK_S = 0.5


@click.command()
@json_option
@click.pass_context
def reload(ctx: click.Context, as_json: bool) -> None:
    """Make HQ reload its settings and certificates (admin). No connection is dropped.

    All or nothing: if a file is incomplete or invalid, HQ keeps its configuration and this command
    reports the error. Settings that need a restart are listed. On HQ's machine SIGHUP does the
    same.
    """
    from cipherbox.cli.output import next_step, print_json, rows_table

    rows = with_admin(ctx, lambda client: client.reload())
    if as_json:
        print_json(rows)
        return
    shown = [{key: str(row[key]) for key in ("name", "was", "now", "effect")} for row in rows]
    rows_table(shown, empty="nothing changed")
    if any(row["effect"] != "now" for row in rows):
        next_step(
            f"for settings that need a restart: {command_here(ctx)} drain, then start HQ again"
        )


@click.command()
@click.option(
    "--most",
    type=DURATION,
    default="5m",
    show_default=True,
    help="Exit after this time in any case.",
)
@click.option("--undo", is_flag=True, help="Cancel draining: HQ accepts publishes again.")
@click.option("--no-wait", is_flag=True, help="Do not wait until HQ has exited.")
@yes_option
@click.pass_context
def drain(ctx: click.Context, most: float, undo: bool, no_wait: bool, yes: bool) -> None:
    """Let HQ finish its work and exit, for an upgrade (admin).

    HQ refuses new publishes (senders keep theirs and send them afterwards), delivers what is
    waiting to connected consumers, and exits. Everything else stays in its store.
    """
    from cipherbox.cli.output import say

    if undo:
        with_admin(ctx, lambda client: client.drain(begin=False))
        say("HQ accepts publishes again.")
        return
    if not 1 <= most <= LONGEST_S:
        raise click.UsageError("--most must be between 1s and 24h.")
    sure("HQ will refuse new publishes and exit when waiting envelopes are delivered. Drain?", yes)

    async def work(client: Client) -> bool:
        count = await client.drain(most_s=int(most))
        say(f"HQ drains: {count} envelope{'' if count == 1 else 's'} may still be delivered.")
        return no_wait or await _ended(client, most)

    if with_admin(ctx, work):
        if not no_wait:
            say("HQ has exited.")
    else:
        say("HQ no longer drains: an admin cancelled it, or HQ was restarted.")


async def _ended(client: Client, most: float) -> bool:
    """Wait until HQ has exited.  Return False if it accepts publishes again."""
    import trio

    from cipherbox.errors import CipherBoxError

    opened = client.connection.opened
    while True:
        await trio.sleep(_LOOK_S)
        if client.connection.current is None or client.connection.opened != opened:
            return True
        try:
            with trio.move_on_after(2.0) as scope:
                (row,) = await client.list("metrics", "cipherbox_draining")
            if not scope.cancelled_caught and not row["value"]:
                return False
        except CipherBoxError:
            return True
