"""`install` and `uninstall`: make the one file a service or a command of this machine, and remove
it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.classes import frozen
from cipherbox.cli.home import home_of
from cipherbox.cli.options import as_record, sure, yes_option

if TYPE_CHECKING:
    from cipherbox.cli.install.places import Places
    from cipherbox.cli.install.schemas import Finding
    from cipherbox.cli.install.steps import Step

_root = click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("/"),
    help="Install everything below this directory and leave users and services alone, "
    "for a package or an image.",
)
_client = click.option(
    "--client", is_flag=True, help="Only what a client needs; without root, for this user only."
)
_dry = click.option("--dry-run", is_flag=True, help="Show what would be done, without doing it.")


@frozen
class InstallOptions:
    """The options of `install`."""

    client: bool
    address: str
    rollback: bool
    no_systemd: bool
    python: Path | None
    root: Path
    dry_run: bool


@frozen
class Version:
    """The version to install: its directory's name and files, the steps that create it, and the
    findings about this machine's data.
    """

    name: str
    files: dict[str, bytes]
    steps: list[Step]
    findings: list[Finding]


@click.command()
@_client
@click.option(
    "--address",
    default="",
    help="Also create HQ, which clients reach at this host:port, and start it.",
)
@click.option("--rollback", is_flag=True, help="Return to the previous version.")
@click.option("--no-systemd", is_flag=True, help="Install no units; you start HQ yourself.")
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    help="The Python interpreter that runs it. [default: this one]",
)
@_root
@_dry
@click.pass_context
@as_record(InstallOptions)
def install(ctx: click.Context, options: InstallOptions) -> None:
    """Install or upgrade HQ on this machine, as root; with --client, the command and the agent's
    unit.

    The file is unpacked into a directory of its version, which only its owner can change. An
    upgrade keeps the previous version, and --rollback returns to it. A file that is older than the
    data is refused.
    """
    from cipherbox.cli.install import steps
    from cipherbox.cli.install.checks import base_python, check, runs_systemd
    from cipherbox.cli.install.places import CLIENT, SERVER, read_pointer
    from cipherbox.cli.install.service import make_hq, start_service
    from cipherbox.cli.output import say, warn

    client, dry_run = options.client, options.dry_run
    places = _places(ctx, client, options.root)
    if options.address and (client or not places.real):
        raise click.UsageError(
            "--address creates HQ on this machine; it cannot be combined with --client or --root."
        )
    before = read_pointer(places.at(places.current))
    parts = steps.parts_of(places, CLIENT if client else SERVER)
    server = steps.is_server(parts)
    systemd = not options.no_systemd and (not client or runs_systemd() or not places.real)
    program = options.python or base_python()
    check(places, server=server, python=program, systemd=systemd)
    version = (
        _version_before(places, before)
        if options.rollback
        else _version_here(places, before, parts, program, systemd)
    )
    for finding in version.findings:
        warn(finding.text)
    name = version.name
    todo = [*version.steps, *steps.file_steps(places, name, version.files)]
    todo += steps.pointer_steps(places, name)
    if not options.rollback:
        todo += steps.old_steps(places, name)
    if server:
        todo += steps.server_steps(places)
    changed = _take(todo, dry_run)
    moved = _take(steps.listen_steps(places), dry_run) if server and systemd else 0
    if dry_run:
        return
    if server and places.real:
        if options.address:
            make_hq(places, options.address)
        if systemd:
            ready = not any(one.outdated for one in version.findings)
            done = {"changed": bool(changed), "moved": bool(moved), "first": not before}
            start_service(places, ready=ready, start=bool(options.address), **done)
    outcome = "is installed." if changed + moved else "was installed already."
    say(f"CipherBox {name} {outcome}")
    _advise(places, server, systemd)


def _homes(places: Places) -> list[Path]:
    """Return the directories whose data a version must be able to read."""
    from cipherbox.cli.install.places import AGENTS

    return [places.at(places.data), *(places.at(AGENTS).glob("*") if places.system else ())]


def _schemas(places: Places, version: str) -> dict[str, int]:
    from cipherbox.cli.install import steps

    found = steps.manifest_of(places.at(places.base) / version) if version else {}
    return dict(found.get("schemas", {}))


def _version_before(places: Places, current: str) -> Version:
    """Return the installed version before the current one.  Raise ConfigError if there is none."""
    from cipherbox.cli.install import steps
    from cipherbox.cli.install.places import read_pointer
    from cipherbox.cli.install.schemas import check_schemas
    from cipherbox.errors import ConfigError

    base = places.at(places.base)
    name = read_pointer(places.at(places.previous))
    older = steps.manifest_of(base / name) if name else {}
    if not older:
        raise ConfigError(
            f"no previous version is installed in {places.base}",
            remedy="install an older file instead",
        )
    title = f"CipherBox {older['version']}"
    found = check_schemas(_homes(places), older["schemas"], title, _schemas(places, current))
    return Version(name, steps.files_of(base / name), [], found)


def _version_here(
    places: Places, current: str, parts: list[str], python: Path, systemd: bool
) -> Version:
    """Return the version of this program: the installed one, or one to copy."""
    from cipherbox.cli.install import steps
    from cipherbox.cli.install.files import outside
    from cipherbox.cli.install.schemas import check_schemas, known_schemas
    from cipherbox.cli.install.source import program_source

    base = places.at(places.base)
    installed = bool(current and steps.manifest_of(base / current))
    if installed and Path(sys.argv[0]).resolve().is_relative_to(base.resolve()):
        return Version(current, steps.files_of(base / current), [], [])
    source = program_source(Path(sys.argv[0]).absolute(), python)
    known = known_schemas()
    found = check_schemas(_homes(places), known, "this program", _schemas(places, current))
    files = outside(places, parts, units=systemd)
    made = steps.tree_step(places, source, python, parts, files)
    return Version(source.name, files, [made], found)


@click.command()
@_client
@click.option(
    "--purge",
    is_flag=True,
    help="Also remove the data: HQ's, or with --client this client's --home.",
)
@_root
@_dry
@yes_option
@click.pass_context
def uninstall(
    ctx: click.Context, client: bool, purge: bool, root: Path, dry_run: bool, yes: bool
) -> None:
    """Remove what `install` installed; data, keys and settings stay unless --purge is given."""
    from cipherbox.cli.install import steps
    from cipherbox.cli.install.checks import check
    from cipherbox.cli.install.places import AGENTS, SOCKETS, read_pointer
    from cipherbox.cli.install.service import forget_service, stop_service
    from cipherbox.cli.output import say
    from cipherbox.errors import ConfigError

    places = _places(ctx, client, root)
    check(places, server=not client, python=None, systemd=False)
    manifest = steps.manifest_of(
        places.at(places.base) / (read_pointer(places.at(places.current)) or "none")
    )
    # without a manifest the rest is what a killed `uninstall` left
    if not manifest and not purge and not places.at(places.base).exists():
        raise ConfigError(f"nothing is installed in {places.base}")
    server = places.system and (steps.is_server(manifest.get("parts", [])) or not client)
    if server and client:
        raise ConfigError(
            "this machine is also an HQ", remedy="to remove both, run: cipherbox uninstall"
        )
    data = places.data if server or not places.system else AGENTS
    if purge and not dry_run:
        sure(f"Permanently remove {data} with all keys and messages in it?", yes)
    if server and places.real and not dry_run:
        stop_service(places)
    removed = [Path("/", path) for path in manifest.get("files", ())]
    removed += [places.units / f"{unit}.d" / "listen.conf" for unit in SOCKETS] if server else []
    removed += [places.command, places.base]
    if purge:
        removed += [data, places.settings] if server else [data]
    _take([steps.removal_step(places, path) for path in removed], dry_run)
    if dry_run:
        return
    if server and places.real:
        forget_service(user=purge)
    say("CipherBox is removed." if purge else f"CipherBox is removed; {data} is unchanged.")


def _places(ctx: click.Context, client: bool, root: Path) -> Places:
    from cipherbox.cli.install.places import own_places, system_places
    from cipherbox.errors import ConfigError
    from cipherbox.portable import WINDOWS, is_root

    root = root.absolute()
    if client and (WINDOWS or not is_root()):
        return own_places(root, home_of(ctx))
    if WINDOWS:
        raise ConfigError(
            "HQ runs on Linux only", remedy="on this machine, run: cipherbox install --client"
        )
    return system_places(root)


def _take(todo: Iterable[Step], dry_run: bool) -> int:
    """Take the steps that are not done yet, and print each with its outcome.  Return the number of
    steps taken.
    """
    from cipherbox.cli.output import say

    taken = 0
    for step in todo:
        done = step.done()
        if not done and not dry_run:
            step.do()
        say(f"  {'kept ' if done else 'would' if dry_run else 'done '} {step.what}")
        taken += not done
    return taken


def _advise(places: Places, server: bool, systemd: bool) -> None:
    from cipherbox.cli.install.places import USER
    from cipherbox.cli.output import next_step, warn
    from cipherbox.config.settings import SERVER_FILE

    if not places.real:
        return
    if not server:
        if str(places.command.parent) not in os.environ.get("PATH", "").split(os.pathsep):
            warn(f"{places.command.parent} is not in $PATH; add it, or call {places.command}")
        next_step("cipherbox join")
    elif not (places.data / SERVER_FILE).exists():
        more = "" if systemd else " --no-systemd"
        next_step(
            f"create HQ{' and start it' * systemd}: sudo cipherbox install{more} --address "
            "hq.example.org:7443"
        )
    elif not systemd:
        next_step(f"start HQ as user {USER}: cipherbox serve {places.data}")
    else:
        admin = places.data / "admin"
        next_step(
            "systemctl status cipherbox", f"sudo -u {USER} cipherbox --home {admin} enroll FL-LAB"
        )
