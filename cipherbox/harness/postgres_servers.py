"""PostgreSQL servers of our own for trials and tests: create, start, kill, replicate, promote.

They need PostgreSQL's programs (`initdb`, `postgres`, `pg_basebackup`): from a given directory, the
PATH, or the usual directories of distributions.  PostgreSQL refuses to run as root; then it runs as
`nobody`.
"""

from __future__ import annotations

import os
import select
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from cipherbox.classes import define
from cipherbox.errors import CipherBoxError, ConfigError
from cipherbox.harness.stage import free_port
from cipherbox.harness.workplace import POSTGRES, PROCESSES, holding
from cipherbox.portable import other_user, passed_lock, remove_shared_memory, stop_process

PATIENCE_S = 30.0
FAST, AT_ONCE, _KILL = 2, 3, 9  # SIGINT and SIGQUIT as PostgreSQL understands them, and SIGKILL
PLACES = (
    "/usr/lib/postgresql/*/bin",
    "/usr/pgsql-*/bin",
    "/usr/local/pgsql/bin",
    "/opt/homebrew/opt/postgresql@*/bin",
)
MODEST = (
    "shared_buffers=32MB",
    "max_connections=40",
    "log_min_messages=fatal",
    "wal_keep_size=64MB",
    "max_wal_senders=6",
    "unix_socket_permissions=0777",
    "dynamic_shared_memory_type=mmap",  # in its directory, where a killed server leaves it
)
_MEMORY_LINE = 6  # of postmaster.pid: key and number (LOCK_FILE_LINE_SHMEM_KEY in miscadmin.h)
PAUSE = threading.Event()  # never set


def find_programs(named: Path | None = None) -> Path:
    """Return the directory that contains `postgres`.  Raise ConfigError if there is none."""
    found = shutil.which("postgres")
    candidates: Iterable[Path] = (
        [named]
        if named
        else [
            *([Path(found).parent] if found else []),
            *(path for place in PLACES for path in sorted(Path("/").glob(place[1:]), reverse=True)),
        ]
    )
    for path in candidates:
        if (path / "postgres").exists() and (path / "pg_basebackup").exists():
            return path
    raise ConfigError(
        "PostgreSQL's programs were not found",
        remedy="install PostgreSQL, or specify their directory with --postgres-bin",
    )


def _as_user() -> dict[str, Any]:
    return {"cwd": "/", **other_user()}


@define(eq=False)
class Server:
    """One server in a directory of its own, reached by the socket there and by a port."""

    programs: Path
    directory: Path
    port: int
    lock: ExitStack
    process: subprocess.Popen[bytes] | None = None

    @property
    def data(self) -> Path:
        return self.directory / "data"

    def start(self, *settings: str) -> Server:
        """Start it and wait until it answers."""
        options = [part for setting in (*MODEST, *settings) for part in ("-c", setting)]
        with (
            (self.directory / "log").open("ab") as log,
            passed_lock(self.directory / PROCESSES / POSTGRES) as lock,
        ):
            self.process = subprocess.Popen(
                [
                    self.programs / "postgres",
                    "-D",
                    self.data,
                    "-k",
                    self.directory,
                    "-h",
                    "127.0.0.1",
                    "-p",
                    str(self.port),
                    *options,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock,),
                **_as_user(),
            )
            os.write(lock, str(self.process.pid).encode())
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                self.sql("SELECT 1")
                return self
            except CipherBoxError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise ConfigError((self.directory / "log").read_text()[-2000:]) from None
            PAUSE.wait(0.02)

    def sql(self, statement: str) -> list[Any]:
        """Run statements as the superuser and return their rows."""
        from cipherbox.store.postgres.driver import PostgresConnection
        from cipherbox.store.postgres.target import Target

        target = Target((), database="postgres", user="cipherbox", tls="off", schema="public")
        connection = PostgresConnection(target, str(self.directory), self.port, None, None)
        try:
            return connection.script(statement)
        finally:
            connection.close()

    def stop(self, number: int = FAST) -> None:
        """Stop it.  FAST: in order; AT_ONCE: immediately, as after a crash."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(PATIENCE_S)
        self.process = None

    def kill(self) -> None:
        """Send SIGKILL to the server and all its sessions, and wait until all have ended."""
        assert self.process is not None
        stop_process(self.process.pid)  # so that it starts no session that would be missed
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
        with ExitStack() as ends:
            waits = []
            for pid in pids:
                with suppress(ProcessLookupError):
                    waits.append(os.pidfd_open(pid))
                    ends.callback(os.close, waits[-1])
            for pid in (self.process.pid, *pids):
                with suppress(ProcessLookupError):
                    os.kill(pid, _KILL)
            for wait in waits:  # a session that still dies would hold the shared memory
                select.select([wait], [], [], PATIENCE_S)
        self.process.wait(PATIENCE_S)
        self.process = None
        self._free_memory()
        (self.data / "postmaster.pid").unlink(missing_ok=True)

    def _free_memory(self) -> None:
        """Remove the shared memory of a killed server, which stays until a next one starts in its
        directory, or for ever; its file of the process id has the number.
        """
        with suppress(OSError, IndexError, ValueError):
            lines = (self.data / "postmaster.pid").read_text().splitlines()
            remove_shared_memory(int(lines[_MEMORY_LINE].split()[1]))

    def standby(self, name: str = "standby1") -> Server:
        """Return a standby of this server, not started."""
        other = _directory(self.programs)
        subprocess.run(
            [
                self.programs / "pg_basebackup",
                "-h",
                self.directory,
                "-p",
                str(self.port),
                "-U",
                "cipherbox",
                "-D",
                other.data,
                "-R",
                "-c",
                "fast",
                "-X",
                "stream",
            ],
            check=True,
            capture_output=True,
            **_as_user(),
        )
        own = (
            f"\nprimary_conninfo = 'host={self.directory} port={self.port} user=cipherbox "
            f"application_name={name}'\n"
        )
        with (other.data / "postgresql.auto.conf").open("a") as conf:
            conf.write(own)
        return other

    def synchronous(self, name: str = "standby1") -> None:
        """Make commits wait for that standby; '' for none."""
        self.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{name}'")
        self.sql("SELECT pg_reload_conf()")

    def promote(self) -> None:
        """Promote a standby and wait until it is the primary."""
        self.sql("SELECT pg_promote(true, 20)")
        deadline = time.monotonic() + PATIENCE_S
        while self.sql("SELECT pg_is_in_recovery()") != [[False]]:
            if time.monotonic() > deadline:
                raise ConfigError("the standby was not promoted in time")
            PAUSE.wait(0.02)

    def remove(self) -> None:
        self.stop(AT_ONCE)
        self.lock.close()


def _directory(programs: Path) -> Server:
    # a short path: sockets have few characters for theirs
    directory = Path(tempfile.mkdtemp(prefix="cbx-pg-"))
    user = other_user()
    if user:
        os.chown(directory, user["user"], user["group"])
    directory.chmod(0o755)
    lock = ExitStack()
    lock.enter_context(holding(directory))
    return Server(programs, directory, free_port(), lock)


def new_server(programs: Path, like: Server | None = None) -> Server:
    """Return an empty server, not started; its superuser is `cipherbox`, without a password, for
    this machine only.

    ``like``: a server that was never started, to copy, which is faster.
    """
    server = _directory(programs)
    if like is not None:
        command: list[str | Path] = ["cp", "-a", like.data, server.data]
    else:
        command = [programs / "initdb", "-D", server.data, "-U", "cipherbox", "--auth=trust"]
        command += ["--encoding=UTF8", "--no-locale", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, **_as_user())
    return server
