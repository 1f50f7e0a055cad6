"""`chat`: write to one, several or all, line by line, and read what they write."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from cipherbox.cli.exits import Exit, exit_code
from cipherbox.cli.home import suggesting
from cipherbox.cli.options import CLIENT_ID, DURATION, json_option
from cipherbox.cli.running import run_until_stopped

if TYPE_CHECKING:
    from cipherbox.apps.chat.conversation import Chat
    from cipherbox.cli.chat_screen import Screen
    from cipherbox.client.client import Client

LAST = 20
LEAVE_S = 5.0  # for the last line to reach HQ, while a user waits for the prompt


@click.command()
@click.argument("clients", metavar="CLIENT...", nargs=-1, type=CLIENT_ID)
@click.option(
    "--all",
    "to_all",
    is_flag=True,
    help="With every client that HQ lists now and whose keys you trust.",
)
@click.option(
    "--last",
    type=click.IntRange(0, 1000),
    default=LAST,
    show_default=True,
    help="Number of earlier lines to show.",
)
@click.option(
    "--stay",
    type=DURATION,
    default=0.0,
    help="Keep listening for this time after the end of the input, for example 30s.",
)
@json_option
@click.pass_context
def chat(
    ctx: click.Context,
    clients: tuple[str, ...],
    to_all: bool,
    last: int,
    stay: float,
    as_json: bool,
) -> int:
    """Exchange messages with CLIENT, or several, line by line, until Ctrl-D.

    \b
    cipherbox chat CA-RC
    cipherbox chat CA-RC SF-RC
    cipherbox chat --all
    echo 'Sample 17 is ready' | cipherbox chat CA-RC --stay 30s --json

    Each line is sealed and sent immediately, and stays in the outbox while HQ is unreachable. The
    others' lines are in your inbox like every message; `receive` or the agent may run at the same
    time. On a terminal, a note shows the state of your latest line: with HQ, opened. Exit code 11:
    a line is still waiting in the outbox. [manual: tools]
    """
    from cipherbox.apps.chat.conversation import Chat
    from cipherbox.cli.chat_screen import Screen
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import warn
    from cipherbox.client.client import open_client

    if bool(clients) == to_all:
        raise click.UsageError("Specify client ids or --all.")
    home = load_here(ctx)
    interactive = sys.stdin.isatty() and not as_json
    screen = Screen(as_json=as_json, interactive=interactive)

    async def main() -> int:
        async with (
            open_client(home, on_event=screen.event, keep_trying=True) as client,
            suggesting(ctx, client),
        ):
            others = list(dict.fromkeys(clients)) or await _reachable(client)
            await client.bundles(others)
            talk = Chat(client, others, screen.state, to_all=to_all)
            senders = None if to_all else others
            patience_s = (
                LEAVE_S if interactive else client.connection.tries * client.connection.timeout_s
            )
            code = await _talk(talk, screen, senders, last, patience_s, stay)
            if talk.waiting:
                warn(
                    f"{talk.waiting} line(s) wait in the outbox; the next command of this client "
                    "sends them."
                )
                return code or Exit.QUEUED
            return code

    return run_until_stopped(main)


async def _reachable(client: Client) -> list[str]:
    from cipherbox.apps.chat.conversation import reachable_clients
    from cipherbox.cli.output import safe, warn
    from cipherbox.errors import UnknownRecipient

    found, reasons = await reachable_clients(client)
    for name, error in reasons.items():
        warn(f"Left out: {name}: {safe(str(error))}")
    if not found:
        raise UnknownRecipient("no other client can be written to")
    return found


async def _talk(
    talk: Chat, screen: Screen, senders: list[str] | None, last: int, patience_s: float, stay: float
) -> int:
    import trio

    from cipherbox.apps.chat.lines import open_lines
    from cipherbox.cli.chat_screen import lines_of_input
    from cipherbox.concurrency import background

    lines = open_lines(talk.client.home, senders)
    before = lines.last(max(1, last))
    for received in before if last else ():
        screen.received(received, history=True)
    screen.begin(talk.client.client_id, talk.others)
    async with background() as nursery:
        nursery.start_soon(talk.watch)
        nursery.start_soon(screen.notes)
        nursery.start_soon(screen.follow, lines)
        nursery.start_soon(talk.receive)
        code = 0
        async for text in lines_of_input():
            code = await _say(talk, screen, text) or code
        await talk.settled(patience_s)
        await trio.sleep(stay)
    return code


async def _say(talk: Chat, screen: Screen, text: str | None) -> int:
    """Send a line.  Return 0, or the exit code if it could not be sent."""
    from cipherbox.apps.chat.conversation import LINE_BYTES
    from cipherbox.errors import CipherBoxError, CredentialsError, StoreError

    if text is None:
        screen.note(
            f"not sent: a line is UTF-8 text of at most {LINE_BYTES} bytes; send files with: "
            "cipherbox send"
        )
        return Exit.USAGE
    if not text.strip():
        return 0
    try:
        await talk.send(text)
    except (CredentialsError, StoreError):
        raise
    except CipherBoxError as error:
        screen.note(f"not sent: {error}")
        return exit_code(error)
    return 0
