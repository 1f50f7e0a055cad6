"""The idempotent steps of `install`, its `--rollback` and `uninstall`, each with a description.

A version is one folder: `site/` with the modules, `bin/cipherbox`, and `files/` with the files
installed elsewhere (units, man page, completion), under their paths there.  `current` and
`previous` name two of these folders.  So a rollback switches a pointer, and the files of an
installation are known.
"""

from __future__ import annotations

import compileall
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

import cipherbox
from cipherbox.classes import frozen
from cipherbox.cli.install.places import (
    MANIFEST,
    SERVER,
    SOCKETS,
    USER,
    Places,
    read_pointer,
    write_pointer,
)
from cipherbox.cli.install.programs import call
from cipherbox.cli.install.schemas import known_schemas
from cipherbox.cli.install.source import ProgramSource
from cipherbox.errors import ConfigError
from cipherbox.ops.unpack import sync_files
from cipherbox.portable import WINDOWS, give_to, ids_of, sync_directory, write_atomic

LAUNCHER = """#!{python} -Ps
import os, sys
here = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
sys.path.insert(0, os.path.join(here, "site"))
from cipherbox.__main__ import main
main()
"""
WINDOWS_LAUNCHER = '@"{python}" -Ps "{script}" %*\r\n'


@frozen
class Step:
    """One step; ``do`` is called unless ``done`` returns True."""

    what: str
    done: Callable[[], bool]
    do: Callable[[], object]


def manifest_of(tree: Path) -> dict[str, Any]:
    """Return the manifest of an installed version; empty if there is none."""
    try:
        found: dict[str, Any] = orjson.loads((tree / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def tree_step(
    places: Places, source: ProgramSource, python: Path, parts: list[str], extra: dict[str, bytes]
) -> Step:
    """Return the step that makes the tree of this version; it gets its name when it is complete."""
    name = source.name
    tree = places.at(places.base / name)

    def done() -> bool:
        found = manifest_of(tree)
        return (found.get("parts"), found.get("python")) == (parts, str(python)) and files_of(
            tree
        ) == extra

    def do() -> None:
        _directories(tree.parent)
        part = Path(tempfile.mkdtemp(prefix=".part-", dir=tree.parent))
        try:
            source.copy_to(part / "site")
            compileall.compile_dir(
                part / "site", quiet=2, stripdir=str(part), prependdir=str(places.base / name)
            )
            _write(part / "bin" / "cipherbox", LAUNCHER.format(python=python).encode())
            for path, data in extra.items():
                _write(part / "files" / path, data)
            manifest = {
                "version": cipherbox.__version__,
                "parts": parts,
                "python": str(python),
                "files": sorted(extra),
            }
            _write(
                part / MANIFEST,
                orjson.dumps({**manifest, "schemas": known_schemas()}, option=orjson.OPT_INDENT_2),
            )
            _readable(part)
            (part / "bin" / "cipherbox").chmod(0o755)
            sync_files(part)
            old = tree.with_name(f".part-old-{name}")
            shutil.rmtree(old, ignore_errors=True)
            if tree.exists():
                tree.rename(old)
            part.rename(tree)
            sync_directory(tree.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    return Step(f"{places.base / name}: the program, for its owner alone to change", done, do)


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _readable(tree: Path) -> None:
    """Make the tree readable by all and writable by its owner only, whatever the umask."""
    for folder, _, files in os.walk(tree):
        os.chmod(folder, 0o755)  # noqa: S103 - that is the point
        for name in files:
            os.chmod(os.path.join(folder, name), 0o644)


def file_steps(places: Places, name: str, files: dict[str, bytes]) -> Iterator[Step]:
    """Yield the steps for files outside of the tree, and for removing those of the previous version
    only.
    """
    for path, data in sorted(files.items()):
        yield _file_step(places, Path("/", path), data)
    before = places.at(places.base / (read_pointer(places.at(places.current)) or "none"))
    for path in sorted(set(manifest_of(before).get("files", ())) - set(files)):
        yield removal_step(places, Path("/", path))


def _file_step(places: Places, path: Path, data: bytes) -> Step:
    target = places.at(path)

    def do() -> None:
        _directories(target.parent)
        write_atomic(target, data, 0o644)

    return Step(str(path), lambda: target.is_file() and target.read_bytes() == data, do)


def _directories(path: Path) -> None:
    """Create missing directories, accessible to all, whatever the umask."""
    missing = [folder for folder in [path, *path.parents] if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)


def files_of(tree: Path) -> dict[str, bytes]:
    """Return the files of a version outside of its tree, by path without the first slash."""
    top = tree / "files"
    return {
        path.relative_to(top).as_posix(): path.read_bytes()
        for path in top.rglob("*")
        if path.is_file()
    }


def pointer_steps(places: Places, name: str) -> Iterator[Step]:
    """Yield the steps for `current` and `previous`, and for the command."""
    current, previous = places.at(places.current), places.at(places.previous)

    def do() -> None:
        before = read_pointer(current)
        if before and (current.parent / before).is_dir():
            write_pointer(previous, before)
        write_pointer(current, name)
        sync_directory(current.parent)

    yield Step(f"{places.current} -> {name}", lambda: read_pointer(current) == name, do)
    command = places.at(places.command)
    if WINDOWS:
        script = places.base / name / "bin" / "cipherbox"
        text = WINDOWS_LAUNCHER.format(python=sys.executable, script=script).encode()
        yield _file_step(places, places.command, text)
        return
    wanted = str(places.current / "bin" / "cipherbox")
    yield _link_step(str(places.command), command, wanted, lambda: read_pointer(command) == wanted)


def _link_step(what: str, link: Path, wanted: str, done: Callable[[], bool]) -> Step:
    def do() -> None:
        _directories(link.parent)
        write_pointer(link, wanted)

    return Step(what, done, do)


def old_steps(places: Places, name: str) -> Iterator[Step]:
    """Yield the steps that remove versions before the previous one, and remains of 0.4 and
    older.
    """
    base = places.at(places.base)
    kept = {name, read_pointer(places.at(places.current)), "current", "previous"}
    if read_pointer(places.at(places.current)) == name:
        kept.add(read_pointer(places.at(places.previous)))
    for path in sorted(base.iterdir()) if base.is_dir() else []:
        if path.name not in kept:
            yield removal_step(places, places.base / path.name)


def removal_step(places: Places, path: Path) -> Step:
    """Return the step that removes a file or a folder."""
    target = places.at(path)

    def do() -> None:
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        else:
            target.unlink(missing_ok=True)

    return Step(f"{path}: removed", lambda: not os.path.lexists(target), do)


def server_steps(places: Places) -> Iterator[Step]:
    """Yield the steps for HQ's user, its data directory, and a link to its settings in /etc."""
    if places.real:
        yield Step(f"user {USER}", lambda: ids_of(USER) is not None, lambda: _make_user(places))
    data, settings = places.at(places.data), places.at(places.settings)

    def make_data() -> None:
        _directories(data.parent)
        data.mkdir(mode=0o700, exist_ok=True)
        data.chmod(0o700)
        ids = ids_of(USER) if places.real else None
        if ids is not None:
            give_to(data, ids)

    def data_done() -> bool:
        ids = ids_of(USER) if places.real else None
        return data.is_dir() and (
            ids is None or (data.stat().st_uid == ids[0] and data.stat().st_mode & 0o077 == 0)
        )

    yield Step(f"{places.data}: HQ's data, for {USER} alone", data_done, make_data)
    link, wanted = settings / "cipherbox.toml", str(places.data / "cipherbox.toml")
    what = f"{places.settings / 'cipherbox.toml'} -> {wanted}"
    yield _link_step(what, link, wanted, lambda: os.path.lexists(link))


def _make_user(places: Places) -> None:
    shells = ("/usr/sbin/nologin", "/sbin/nologin", "/bin/false")
    shell = next((s for s in shells if os.path.exists(s)), "/bin/false")
    if shutil.which("useradd"):
        options = [
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            str(places.data),
            "--shell",
            shell,
        ]
        commands = [["useradd", *options, USER]]
    elif shutil.which("adduser") and shutil.which("addgroup"):  # of busybox
        options = ["-S", "-D", "-H", "-h", str(places.data), "-s", shell, "-G", USER]
        commands = [["addgroup", "-S", USER], ["adduser", *options, USER]]
    else:
        raise ConfigError(
            "this machine has neither useradd nor adduser",
            remedy=f"create a system user {USER}, then install again",
        )
    for command in commands:
        call(command)


def listen_steps(places: Places) -> Iterator[Step]:
    """Yield the steps that make systemd's sockets listen as cipherbox.toml says.  Raise ConfigError
    if another process occupies a new port.
    """
    from cipherbox.config.settings import SERVER_FILE, load_server_config, parse_listen
    from cipherbox.server.operations.port_check import taken

    if not (places.at(places.data) / SERVER_FILE).exists():
        return
    server = load_server_config(places.at(places.data)).server
    for unit, setting in SOCKETS.items():
        addresses = parse_listen(getattr(server, setting))
        path = places.units / f"{unit}.d" / "listen.conf"
        if addresses:
            lines = [
                f"ListenStream={f'[{host}]' if ':' in host else host}:{port}"
                for host, port in addresses
            ]
            before = (
                places.at(path).read_text("utf-8").splitlines()
                if places.at(path).exists()
                else lines
            )
            for line, (host, port) in zip(lines, addresses, strict=True):
                if line not in before and places.real and (why := taken(host, port)):
                    raise ConfigError(
                        f"{SERVER_FILE}: [server] {setting}: {why.what}; HQ still listens on its "
                        "previous addresses",
                        remedy=why.remedy or None,
                    )
            text = "\n".join(
                [f"# [server] {setting} of cipherbox.toml", "[Socket]", "ListenStream=", *lines, ""]
            )
            yield _file_step(places, path, text.encode())
        elif places.at(path).exists():
            yield removal_step(places, path)


def parts_of(places: Places, wanted: str) -> list[str]:
    """Return the parts to install: the wanted one, and those that the system has already."""
    before = manifest_of(
        places.at(places.base / (read_pointer(places.at(places.current)) or "none"))
    ).get("parts", [])
    return sorted({wanted, *before} if places.system else {wanted})


def is_server(parts: list[str]) -> bool:
    return SERVER in parts
