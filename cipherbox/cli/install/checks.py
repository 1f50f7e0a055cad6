"""Preconditions of `install`, checked before it changes anything: all problems with remedies."""

from __future__ import annotations

import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from cipherbox.cli.install.places import USER, Places
from cipherbox.errors import ConfigError, Problem
from cipherbox.portable import ids_of, is_root, owner_of, unwritable

SPACE = 200_000_000  # for a tree with its compiled modules, beside the previous one


def check(places: Places, *, server: bool, python: Path | None, systemd: bool) -> None:
    """Raise ConfigError with every problem found; without ``python`` nothing new is installed."""
    found = list(_problems(places, server=server, python=python, systemd=systemd))
    if found:
        raise ConfigError.of(found, "; ")


def _problems(
    places: Places, *, server: bool, python: Path | None, systemd: bool
) -> Iterator[Problem]:
    if places.system and places.real and not is_root():
        yield Problem(
            "this changes the system and needs root",
            "run it with sudo, or for this user alone: install --client",
        )
        return
    if server and systemd and places.real and not runs_systemd():
        yield Problem(
            "this machine does not run systemd, so nothing would start HQ",
            "pass --no-systemd to install everything but the units, and let your own init run as "
            f"user {USER}: {places.command} serve {places.data}",
        )
    if places.system and places.real and python is not None and not usable_by_all(python):
        yield Problem(
            f"the service could not run {python}, which is in a private directory",
            "run this with /usr/bin/python3",
        )
    wanted = [places.base, places.command.parent, places.share, places.units]
    for path in [*wanted, places.data, places.settings] if server else wanted:
        yield from place_problems(
            places.at(path), SPACE if python is not None and path == places.base else 0
        )
    command = places.at(places.command)
    if (
        command.is_file()
        and not command.is_symlink()
        and b"cipherbox" not in command.read_bytes()[:4096]
    ):
        yield Problem(f"{command} is another program", "move it away")
    if places.system and places.real:
        yield from _foreign(places, server=server)


def runs_systemd() -> bool:
    """Return whether systemd manages this machine."""
    return Path("/run/systemd/system").is_dir() and shutil.which("systemctl") is not None


def usable_by_all(program: Path) -> bool:
    """Return whether every user may run it, and sandboxed services, which see no homes."""
    real = program.resolve()
    if any(real.is_relative_to(private) for private in ("/root", "/home", "/run/user")):
        return False
    return all(parent.stat().st_mode & stat.S_IXOTH for parent in [real, *real.parents])


def place_problems(path: Path, room: int) -> Iterator[Problem]:
    """Check that the directory exists or can be created, and has room."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        yield Problem(f"{existing} is not a directory", "move it away")
    elif why := unwritable(existing):
        yield why
    elif shutil.disk_usage(existing).free < room:
        yield Problem(f"the disk of {existing} is full: {room // 1_000_000} MB must be free")


def _foreign(places: Places, *, server: bool) -> Iterator[Problem]:
    """Check the owners: that of the tree can change HQ's program, that of the data read HQ's
    keys.
    """
    base = places.base
    while base != base.parent:
        if base.exists():
            found = base.stat()
            if found.st_uid != 0 or (found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX):
                yield Problem(
                    f"{base} belongs to {owner_of(base)} or can be written by others, who could "
                    "change what HQ runs",
                    f"run: chown root:root {base} && chmod 755 {base}",
                )
        base = base.parent
    ids = ids_of(USER)
    if (
        server
        and places.data.exists()
        and owner_of(places.data) not in (USER, "root" if ids is None else USER)
    ):
        yield Problem(
            f"{places.data} belongs to {owner_of(places.data)}",
            f"if it is HQ's data, run: chown -R {USER}: {places.data}",
        )


def base_python() -> Path:
    """Return the Python that runs this program, outside of any virtual environment."""
    return Path(getattr(sys, "_base_executable", "") or sys.executable)
