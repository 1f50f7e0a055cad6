"""HQ's own two commands: `init` makes its directory, `serve` runs it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from cipherbox.cli.home import command_here, home_of
from cipherbox.cli.options import CLIENT_ID, HQ_DIRECTORY, database_settings
from cipherbox.cli.running import run
from cipherbox.config.settings import DEFAULT_PORT, SERVER_FILE
from cipherbox.errors import CipherBoxError, ConfigError

_DNS_S = 3.0


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--address",
    default=f"127.0.0.1:{DEFAULT_PORT}",
    show_default=True,
    help="Where clients find HQ: host:port or wss://host:port/, several separated by commas.",
)
@click.option(
    "--listen",
    help="What HQ listens on. [default: 127.0.0.1 for a local address, else every interface]",
)
@click.option("--websocket-listen", default="", help="host:port for the same inside WebSocket.")
@click.option("--name", default="DC-HQ", show_default=True, help="What HQ calls itself.")
@click.option(
    "--admin-id",
    type=CLIENT_ID,
    default="admin",
    show_default=True,
    help="The first admin's client id.",
)
@click.option(
    "--offline-ca",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the CA's keys in this directory, to be carried off this machine.",
)
@click.option(
    "--org-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Let an organization's CA certify HQ's: its root certificate (PEM). Writes a request for "
    "it to sign.",
)
@click.option(
    "--org-issues",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Let an organization's CA certify HQ and every client: that CA, then those up to the "
    "root (PEM).",
)
@click.option(
    "--database",
    "url",
    default="",
    metavar="URL",
    help="Keep everything in PostgreSQL: postgresql://user@host:port/name?password_file=FILE. "
    "[default: SQLite]",
)
@click.pass_context
def init(
    ctx: click.Context,
    directory: Path,
    address: str,
    listen: str | None,
    websocket_listen: str,
    name: str,
    admin_id: str,
    offline_ca: Path | None,
    org_ca: Path | None,
    org_issues: Path | None,
    url: str,
) -> None:
    """Make HQ's data directory DIRECTORY, its certification authority and the first admin.

    The admin's certificate goes into --home, so that the admin's commands work on this machine at
    once.
    """
    from cipherbox.cli.output import explain, next_step, say, warn
    from cipherbox.server.operations.setup import init_hq

    _check_address(address)
    if sum(x is not None for x in (offline_ca, org_ca, org_issues)) > 1:
        raise click.UsageError("One of --offline-ca, --org-ca and --org-issues.")
    options: dict[str, Any] = {
        "address": address,
        "name": name,
        "listen": listen
        if listen is not None
        else _listen_for(address, websocket_only=bool(websocket_listen)),
        "websocket_listen": websocket_listen,
        "admin_id": admin_id,
        "admin_home": home_of(ctx),
        "database": database_settings(url) if url else None,
    }
    if (organization := org_ca or org_issues) is not None:
        from cipherbox.server.ca.organization import ask

        for path in ask(directory, org=organization, issues=org_issues is not None, **options):
            explain(
                "", f"{path}: let the organization's CA sign this request (cipherbox manual pki)."
            )
        here = f"{command_here(ctx)} ca import FILE.pem --hq {shlex.quote(str(directory))}"
        next_step(f"with what it signed, and the CAs between it and the root: {here}")
        return
    if why := run(_unknown_names, address):
        warn(
            f"{why} Clients look for HQ there: every token carries this address. If it is wrong, "
            f"change [server] address in {directory / SERVER_FILE} before you make tokens."
        )
    report = init_hq(directory, offline_ca=offline_ca, **options)
    say(f"HQ {name!r} is ready in {directory}.")
    say(f"Admin {admin_id!r}: certificate in {home_of(ctx)}.")
    say(f"Root certificate, SHA-256: {report.root_fingerprint}")
    if offline_ca:
        warn(f"The CA's keys are in {offline_ca}. Carry this directory off this machine now.")
    next_step(
        f"start HQ, here or under systemd:      cipherbox serve {shlex.quote(str(directory))}",
        f"then make a token for each client:    {command_here(ctx)} enroll CLIENT_ID   (its "
        "name, for example FL-LAB)",
    )


@click.command()
@click.argument("directory", type=HQ_DIRECTORY)
@click.option("--broken-store", is_flag=True, hidden=True)
def serve(directory: Path, broken_store: bool) -> None:
    """Run HQ on its data directory DIRECTORY until it is told to stop (Ctrl-C or SIGTERM), or has
    drained.

    SIGHUP, like `cipherbox reload`, reads settings and certificates again.
    """
    import trio

    from cipherbox.cli.output import next_step, say
    from cipherbox.config.settings import ServerConfig, load_server_config
    from cipherbox.ops.logs import get_logger, setup_logging
    from cipherbox.ops.systemd import notify, reloading
    from cipherbox.portable import can_ask, reload_signals, stop_signals
    from cipherbox.server.app import Served
    from cipherbox.server.app import serve as serve_hq

    config: ServerConfig = load_server_config(directory)
    setup_logging(config.logging)
    log = get_logger(__name__)
    at_terminal = can_ask()
    running: list[Served] = []

    def waiting(why: str) -> None:
        say(f"{config.server.name} waits: {why}. Ctrl-C stops it.")
        notify("READY=1", f"STATUS=waiting: {why}")

    async def main() -> None:
        with trio.open_signal_receiver(*stop_signals(), *reload_signals()) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(heed, signals, nursery.cancel_scope)

                async def start(*, task_status: trio.TaskStatus[Served]) -> None:
                    await serve_hq(
                        config, broken_store=broken_store, waiting=waiting, task_status=task_status
                    )
                    nursery.cancel_scope.cancel()  # it ended by itself: it had drained

                try:
                    served = await nursery.start(start)
                except RuntimeError:
                    if nursery.cancel_scope.cancel_called:
                        return
                    raise
                listening = ", ".join(
                    f"{host}:{port}" for host, port in [*served.addresses, *served.websocket]
                )
                say(f"{config.server.name} listens on {listening}. Ctrl-C stops it.")
                if sys.stdout.isatty():
                    next_step(
                        "in another terminal: cipherbox enroll CLIENT_ID   (its name, for "
                        "example FL-LAB)"
                    )
                notify("READY=1", f"STATUS=listening on {listening}")
                running.append(served)

    async def heed(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        async for got in signals:
            # its terminal was closed
            if got not in reload_signals() or (at_terminal and not can_ask()):
                break
            if running:
                reloading()
                with suppress(CipherBoxError):  # the log has it, and everything is as before
                    running[0].reload()
                notify("READY=1")
            else:
                log.info("HQ waits for its store; settings are read again once it serves")
        log.info("Stopping")
        notify("STOPPING=1")
        scope.cancel()

    run(main)


def _check_address(address: str) -> None:
    from cipherbox.config.toml_file import check_address

    parts = [part.strip() for part in address.split(",")]
    for part in parts:
        try:
            check_address("--address", part)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None


async def _unknown_names(address: str) -> str:
    """Which of the names are not known on this machine, in a sentence; waits for DNS a moment
    only.
    """
    import trio

    from cipherbox.net.connecting import parse_address

    unknown = []
    for host in dict.fromkeys(parse_address(part.strip())[0] for part in address.split(",")):
        with trio.move_on_after(_DNS_S) as waited:
            try:
                await trio.socket.getaddrinfo(host, None)
            except OSError:
                unknown.append(host)
        if waited.cancelled_caught:
            unknown.append(host)
    return f"The name {' and '.join(unknown)} is not known on this machine." if unknown else ""


def _listen_for(address: str, *, websocket_only: bool) -> str:
    """What to listen on for an address: loopback stays loopback, anything else means every
    interface.
    """
    from cipherbox.config.settings import parse_listen

    plain = [part.strip() for part in address.split(",") if "://" not in part]
    if not plain:
        return "" if websocket_only else f"0.0.0.0:{DEFAULT_PORT}"
    found = []
    for host, port in parse_listen(",".join(plain)):
        local = host == "localhost" or host.startswith("127.")
        entry = (
            f"127.0.0.1:{port}"
            if local
            else f"[::1]:{port}"
            if host == "::1"
            else f"0.0.0.0:{port}"
        )
        if entry not in found:
            found.append(entry)
    return ",".join(found)
