"""`agent`: the folder service of a lab or center machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.cli.incoming import announce_incoming, incoming_option, ordered_option
from cipherbox.cli.receive_exec import handler_of
from cipherbox.cli.running import run

if TYPE_CHECKING:
    from cipherbox.apps.agent.agent import Agent
    from cipherbox.client.home import Home


@click.command()
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory of the folders. [default: your --home; ~/CipherBox for ~/.cipherbox]",
)
@incoming_option
@click.option(
    "--exec",
    "command",
    help="Run this command for each message and file, like `receive --exec`.",
)
@ordered_option
@click.pass_context
def agent(
    ctx: click.Context,
    folder: Path | None,
    incoming: Path | None,
    command: str | None,
    ordered: bool,
) -> None:
    """Send files placed in one folder and receive into another, until Ctrl-C.

    \b
    outgoing/CA-RC/           files here go to CA-RC; CA-RC+SF-RC goes to both
    outgoing/@EXCHANGE/KEY/   files here go to the readers of that route
    sent/                     files that HQ has stored
    failed/                   files that cannot be sent, with NAME.reason.txt
    refused/                  files that a recipient refused, likewise
    incoming/FL-LAB/          received files, named when they are complete

    Messages are recorded in data/received_messages.jsonl as by `receive`. What other commands left
    in the outbox is sent, too. A file is sent when it has not changed for ten seconds and no
    program has it open for writing ([agent] in client.toml sets other times, marker files, names to
    ignore). The agent recovers automatically from an unreachable HQ, cut connections and restarts.
    With [page] listen it also serves the page: cipherbox page.
    """
    import trio

    from cipherbox.apps.agent.agent import Agent
    from cipherbox.cli.home import load_here
    from cipherbox.cli.output import print_event, warn
    from cipherbox.cli.page import serve_page
    from cipherbox.client.client import open_client
    from cipherbox.ops.systemd import notify
    from cipherbox.portable import stop_signals

    handler = handler_of(command) if command is not None else None
    home = load_here(ctx, renews=True)
    where = (folder or _folder(home)).absolute()

    async def main() -> Agent:
        with trio.open_signal_receiver(*stop_signals()) as signals:
            async with open_client(home, on_event=print_event, keep_trying=True) as client:
                service = Agent(client, where, incoming=incoming, handler=handler, ordered=ordered)
                async with trio.open_nursery() as nursery:

                    async def until_stopped() -> None:
                        async for _ in signals:
                            nursery.cancel_scope.cancel()

                    nursery.start_soon(until_stopped)
                    await nursery.start(service.run)
                    if home.config.page.listen:
                        nursery.start_soon(serve_page, ctx, client)
                    warn(f"Watching {where / 'outgoing'}; Ctrl-C stops.")
                    received = incoming or home.config.inbox.incoming or where / "incoming"
                    announce_incoming(home, received)
                    notify("READY=1")
                return service

    service = run(main)
    _end(service)


def _end(service: Agent) -> None:
    from cipherbox.cli.output import say

    refused = f"{service.refused} refused, " if service.refused else ""
    text = f"{service.sent} file(s) sent, {service.failed} failed, {refused}"
    say(text + f"{service.receiver.received} message(s) received.")


def _folder(home: Home) -> Path:
    """Return the folder to watch; homes set up before 0.6.0 keep theirs."""
    return home.path if (home.path / "outgoing").is_dir() else home.folder
