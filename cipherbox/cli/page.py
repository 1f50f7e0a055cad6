"""`page`: this client in the browser of this machine; for an admin, the console of HQ."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cipherbox.cli.exits import leaf
from cipherbox.cli.home import home_of, keep_loaded
from cipherbox.cli.running import run_until_stopped
from cipherbox.errors import ConfigError

if TYPE_CHECKING:
    from cipherbox.apps.page.door import Address
    from cipherbox.apps.page.view import Finding, Helpers, LogLine
    from cipherbox.cli.top import Snapshot
    from cipherbox.client.client import Client
    from cipherbox.client.home import Home

AGAIN_S = 15.0
_LEAST_S = 1.0  # between the two samples of a rate


@click.command()
@click.option("--listen", help="Loopback host:port. [default: listen of [page], else a free port]")
@click.option("--no-browser", is_flag=True, help="Only print the address, and open no browser.")
@click.pass_context
def page(ctx: click.Context, listen: str | None, no_browser: bool) -> None:
    """Open this client in the browser of this machine, until Ctrl-C.

    Read and write messages, send files by drag and drop, compare keys, and see what needs a person;
    with an admin's home also HQ's console. The page is served on loopback by this program, under a
    name that changes with each start. Keys under a password ask for it in the page; without one the
    browser is opened with a code that works once. If the page of this home runs already, a browser
    is opened for it.
    """
    from cipherbox.apps.page.door import LOCK, read_address
    from cipherbox.client.home import visible_folder
    from cipherbox.config.settings import load_client_config
    from cipherbox.config.toml_file import check_loopback
    from cipherbox.portable import is_locked

    config = load_client_config(home_of(ctx))
    if is_locked(config.home / LOCK):
        address = read_address(config.home)
        if address is not None:
            announce(address, visible_folder(config.home), opens=not no_browser)
            return
    if listen is not None:
        check_loopback("--listen", listen)
    where = listen or config.page.listen

    async def main() -> None:
        import trio

        from cipherbox.apps.page.page import ANYWHERE, Page
        from cipherbox.cli.output import print_trouble, warn

        served = Page(config, helpers(ctx), on_event=print_trouble)
        async with trio.open_nursery() as nursery:
            await nursery.start(served.run, where or ANYWHERE)
            address = read_address(config.home)
            if address is None:
                raise ConfigError(f"{config.home} does not keep what is written to it")
            warn("The page is open; Ctrl-C ends it.")
            # a browser that was not running may keep its starter waiting
            await trio.to_thread.run_sync(
                partial(announce, address, served.folder, opens=not no_browser),
                abandon_on_cancel=True,
            )

    run_until_stopped(main)


async def serve_page(ctx: click.Context, client: Client) -> None:
    """Serve the page of a client that is open and receives, on its `[page] listen`.  An error of
    the page, such as a port in use, ends nothing else: it is served again after a pause.
    """
    import trio

    from cipherbox.apps.page.page import Page
    from cipherbox.cli.output import warn

    config = client.home.config
    while True:
        try:
            await Page(config, helpers(ctx), client=client).run(config.page.listen)
        except (Exception, BaseExceptionGroup) as error:
            if isinstance(error, BaseExceptionGroup) and error.split(Exception)[1] is not None:
                raise
            warn(f"The page is not served: {leaf(error)}; trying again every {AGAIN_S:g} s")
        await trio.sleep(AGAIN_S)


def announce(address: Address, folder: Path, *, opens: bool) -> None:
    """Print where the page is, and open a browser with a file, so that neither name nor code is in
    the list of processes.
    """
    from cipherbox.apps.page.door import write_opener
    from cipherbox.cli.output import say
    from cipherbox.portable import has_screen

    say(f"Page: {address.url}")
    if address.code:
        say(f"Code: {address.code}  (works once)")
    if opens:
        import webbrowser

        folder.mkdir(mode=0o700, exist_ok=True)
        file = write_opener(address, folder)
        if not (has_screen() and webbrowser.open(file.as_uri())):
            say(f"No browser was found; open this file with one: {file}")


def helpers(ctx: click.Context) -> Helpers:
    """Return what the page shows and only the command line knows."""
    from cipherbox.apps.page.view import Helpers
    from cipherbox.cli.doctor.client import look
    from cipherbox.cli.manual import manual_pages

    def diagnose(home: Home) -> list[Finding]:
        keep_loaded(ctx, home)
        return list[Any](look(ctx, home.path))

    return Helpers(diagnose, HqReport().take, log_lines, manual_pages, _say_bug)


async def log_lines(client: Client, most: int) -> list[LogLine]:
    """Return the acts in the latest entries of HQ's signed log, newest first (admin)."""
    from cipherbox.apps.page.view import LogLine
    from cipherbox.cli.audit_lines import lines
    from cipherbox.envelope.transparency_log import decode_groups, decode_record

    newest = (await client.read_log(0, 1)).last
    page = await client.read_log(max(0, newest - most), most)
    found = []
    for entry in page.entries:
        head = decode_record(entry.record)
        for group in decode_groups(entry.body):
            found += [LogLine(head.index, head.at, who, what) for who, what in lines(group)]
    return found[::-1]


def _say_bug(error: Exception) -> None:
    """Print where an internal error happened, without values: they may be of a message."""
    import traceback

    from cipherbox.cli.output import fail

    places = traceback.extract_tb(error.__traceback__)[-3:]
    where = ", ".join(f"{Path(one.filename).name}:{one.lineno}" for one in places)
    fail(f"Internal error of the page ({type(error).__name__} in {where})", "Please report it.")


class HqReport:
    """Reports on HQ for its admin, with rates since the one before."""

    def __init__(self) -> None:
        self._before: Snapshot | None = None

    async def take(self, client: Client) -> dict[str, Any]:
        """Return a report as `cipherbox top` shows it."""
        import trio

        from cipherbox.cli.top import take_snapshot

        if self._before is None:
            self._before = await take_snapshot(client)
            await trio.sleep(_LEAST_S)
        now, before = await take_snapshot(client), self._before
        begun = "process_start_time_seconds"
        if now.values[begun] != before.values[begun]:
            before = now  # another process counts from 0
        if time.monotonic() - before.at >= _LEAST_S:
            self._before = now
        return now.report(before)
