"""HQ's own two commands: `init` creates its directory, `serve` runs it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cipherbox.classes import frozen
from cipherbox.cli.home import command_here, home_of
from cipherbox.cli.options import CLIENT_ID, HQ_DIRECTORY, as_record, database_settings
from cipherbox.cli.running import run
from cipherbox.config.settings import DEFAULT_PORT, SERVER_FILE
from cipherbox.errors import CipherBoxError, ConfigError

if TYPE_CHECKING:
    import trio

    from cipherbox.config.settings import ServerConfig
    from cipherbox.server.app import Served

_DNS_S = 3.0


@frozen
class InitOptions:
    """The options of `init`."""

    directory: Path
    address: str
    listen: str | None
    websocket_listen: str
    name: str
    admin_id: str
    offline_ca: Path | None
    org_ca: Path | None
    org_issues: Path | None
    url: str


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--address",
    default=f"127.0.0.1:{DEFAULT_PORT}",
    show_default=True,
    help="Where clients reach HQ: host:port or wss://host:port/; separate several with commas.",
)
@click.option(
    "--listen",
    help="Addresses HQ listens on. [default: 127.0.0.1 for a local address, else all interfaces]",
)
@click.option("--websocket-listen", default="", help="host:port for WebSocket inside TLS.")
@click.option(
    "--name", default="DC-HQ", show_default=True, help="HQ's name, in logs and for clients."
)
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
    help="Write the CA's keys to this directory, to be kept off this machine.",
)
@click.option(
    "--org-ca",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Have an organization's CA certify HQ's CA; give its root certificate (PEM). "
    "Writes a request for it to sign.",
)
@click.option(
    "--org-issues",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Have an organization's CA certify HQ and every client; give that CA, then "
    "those up to the root (PEM).",
)
@click.option(
    "--database",
    "url",
    default="",
    metavar="URL",
    help="Store everything in PostgreSQL: "
    "postgresql://user@host:port/name?password_file=FILE. [default: SQLite]",
)
@click.pass_context
@as_record(InitOptions)
def init(ctx: click.Context, options: InitOptions) -> None:
    """Create HQ's data directory DIRECTORY, its certification authority and the first admin.

    The admin's certificate is stored in --home, so the admin's commands work on this machine
    immediately.
    """
    from cipherbox.cli.output import next_step, say, warn
    from cipherbox.server.operations.setup import init_hq

    _check_address(options.address)
    authorities = (options.offline_ca, options.org_ca, options.org_issues)
    if sum(x is not None for x in authorities) > 1:
        raise click.UsageError("One of --offline-ca, --org-ca and --org-issues.")
    settings = _settings_of(ctx, options)
    directory = options.directory
    if (organization := options.org_ca or options.org_issues) is not None:
        _ask_organization(ctx, options, organization, settings)
        return
    if why := run(_unknown_names, options.address):
        warn(
            f"{why} Clients look for HQ there: every token carries this address. If it is wrong, "
            f"change [server] address in {directory / SERVER_FILE} before you make tokens."
        )
    report = init_hq(directory, offline_ca=options.offline_ca, **settings)
    say(f"HQ {options.name!r} is ready in {directory}.")
    say(f"Admin {options.admin_id!r}: certificate in {home_of(ctx)}.")
    say(f"Root certificate, SHA-256: {report.root_fingerprint}")
    if options.offline_ca:
        warn(
            f"The CA's keys are in {options.offline_ca}. Carry this directory off this machine now."
        )
    next_step(
        f"start HQ, here or under systemd:      cipherbox serve {shlex.quote(str(directory))}",
        f"then make a token for each client:    {command_here(ctx)} enroll CLIENT_ID   (its "
        "name, for example FL-LAB)",
    )


def _settings_of(ctx: click.Context, options: InitOptions) -> dict[str, Any]:
    """Return the settings common to both kinds of CA."""
    listen = options.listen
    if listen is None:
        listen = _listen_for(options.address, websocket_only=bool(options.websocket_listen))
    return {
        "address": options.address,
        "name": options.name,
        "listen": listen,
        "websocket_listen": options.websocket_listen,
        "admin_id": options.admin_id,
        "admin_home": home_of(ctx),
        "database": database_settings(options.url) if options.url else None,
    }


def _ask_organization(
    ctx: click.Context, options: InitOptions, organization: Path, settings: dict[str, Any]
) -> None:
    """Create HQ's directory and the requests that an organization's CA has to sign."""
    from cipherbox.cli.output import explain, next_step
    from cipherbox.server.ca.organization import ask

    issues = options.org_issues is not None
    for path in ask(options.directory, org=organization, issues=issues, **settings):
        explain("", f"{path}: let the organization's CA sign this request (cipherbox manual pki).")
    here = f"{command_here(ctx)} ca import FILE.pem --hq {shlex.quote(str(options.directory))}"
    next_step(f"with what it signed, and the CAs between it and the root: {here}")


@click.command()
@click.argument("directory", type=HQ_DIRECTORY)
@click.option("--broken-store", is_flag=True, hidden=True)
def serve(directory: Path, broken_store: bool) -> None:
    """Run HQ on its data directory DIRECTORY until Ctrl-C or SIGTERM, or until it has drained.

    SIGHUP reloads settings and certificates, like `cipherbox reload`.
    """
    from cipherbox.config.settings import load_server_config
    from cipherbox.ops.logs import setup_logging

    config = load_server_config(directory)
    setup_logging(config.logging)
    run(_Service(config, broken_store).run)


class _Service:
    """HQ as a process: its output, its notifications to systemd, and its signals."""

    def __init__(self, config: ServerConfig, broken_store: bool) -> None:
        from cipherbox.ops.logs import get_logger
        from cipherbox.portable import can_ask

        self._config, self._broken_store = config, broken_store
        self._log = get_logger(__name__)
        self._at_terminal = can_ask()
        self._served: Served | None = None  # once it listens

    async def run(self) -> None:
        """Serve until HQ has drained or a signal stops it."""
        import trio

        from cipherbox.portable import reload_signals, stop_signals

        with trio.open_signal_receiver(*stop_signals(), *reload_signals()) as signals:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._handle_signals, signals, nursery.cancel_scope)
                try:
                    self._listening(await nursery.start(self._serve, nursery.cancel_scope))
                except RuntimeError:
                    if not nursery.cancel_scope.cancel_called:
                        raise

    async def _serve(
        self, scope: trio.CancelScope, *, task_status: trio.TaskStatus[Served]
    ) -> None:
        from cipherbox.server.app import serve as serve_hq

        await serve_hq(
            self._config,
            broken_store=self._broken_store,
            waiting=self._waiting,
            task_status=task_status,
        )
        scope.cancel()  # it has drained

    def _waiting(self, why: str) -> None:
        from cipherbox.cli.output import say
        from cipherbox.ops.systemd import notify

        say(f"{self._config.server.name} waits: {why}. Ctrl-C stops it.")
        notify("READY=1", f"STATUS=waiting: {why}")

    def _listening(self, served: Served) -> None:
        from cipherbox.cli.output import next_step, say
        from cipherbox.ops.systemd import notify

        addresses = [*served.addresses, *served.websocket]
        listening = ", ".join(f"{host}:{port}" for host, port in addresses)
        say(f"{self._config.server.name} listens on {listening}. Ctrl-C stops it.")
        if sys.stdout.isatty():
            next_step(
                "in another terminal: cipherbox enroll CLIENT_ID   (its name, for example FL-LAB)"
            )
        notify("READY=1", f"STATUS=listening on {listening}")
        self._served = served

    async def _handle_signals(self, signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
        from cipherbox.ops.systemd import notify
        from cipherbox.portable import can_ask, reload_signals

        async for received in signals:
            # SIGHUP stops an HQ whose terminal was closed
            if received not in reload_signals() or (self._at_terminal and not can_ask()):
                break
            self._reload()
        self._log.info("Stopping")
        notify("STOPPING=1")
        scope.cancel()

    def _reload(self) -> None:
        from cipherbox.ops.systemd import notify, reloading

        if self._served is None:
            self._log.info("HQ waits for its store; settings are read again once it serves")
            return
        reloading()
        with suppress(CipherBoxError):  # it is logged, and the configuration is unchanged
            self._served.reload()
        notify("READY=1")


def _check_address(address: str) -> None:
    from cipherbox.config.toml_file import check_address

    parts = [part.strip() for part in address.split(",")]
    for part in parts:
        try:
            check_address("--address", part)
        except ConfigError as error:
            raise click.UsageError(str(error)) from None


async def _unknown_names(address: str) -> str:
    """Return a sentence with the names that cannot be resolved here, or an empty text; wait for DNS
    only briefly.
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
    """Return the addresses to listen on for an address: loopback stays loopback, anything else
    means every interface.
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
