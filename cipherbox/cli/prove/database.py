"""The database of a trial, and its faults."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs

from cipherbox.cli.scratch import Scratch, scratch
from cipherbox.harness.postgres_servers import PAUSE, Server, find_programs, new_server

LOCAL = "local"
SESSIONS, KILL, FAILOVER = "database sessions", "database kill", "failover"


class Database:
    """An existing PostgreSQL, whose fault is the end of HQ's sessions."""

    def __init__(self, database: Scratch) -> None:
        self._scratch = database
        self.arguments = database.arguments
        self.faults = [SESSIONS]

    def rows(self, query: str) -> list[list[Any]]:
        """Return the rows of a query over HQ's views."""
        return self._scratch.rows(query)

    def fault(self, what: str, down_s: float) -> None:
        from cipherbox.errors import CipherBoxError

        with suppress(CipherBoxError):
            self._scratch.rows(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = "
                "current_user AND application_name LIKE 'cipherbox%' AND pid <> pg_backend_pid()"
            )


class LocalDatabase(Database):
    """A primary and a synchronous standby of our own; after a failover the old primary is rebuilt
    as the standby.
    """

    def __init__(self, programs: Path) -> None:
        self.primary = new_server(programs).start()
        self.spare: Server | None = None
        try:
            self._follow()
            hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self.primary, self._standby))
            super().__init__(Scratch(f"postgresql://cipherbox@{hosts}/postgres?tls=off"))
        except BaseException:
            self.remove()
            raise
        self.faults = [SESSIONS, KILL, FAILOVER]

    @property
    def _standby(self) -> Server:
        assert self.spare is not None
        return self.spare

    def _follow(self) -> None:
        old = self.spare
        self.spare = self.primary.standby()
        if old is not None:
            self.spare.port = old.port  # where HQ knows it
            old.remove()
        self.spare.start()
        self.primary.synchronous()

    def fault(self, what: str, down_s: float) -> None:
        if what == KILL:
            self.primary.kill()
            PAUSE.wait(down_s)
            self.primary.start()
        elif what == FAILOVER:
            self._caught_up()
            self.primary.kill()
            PAUSE.wait(down_s)
            self.primary, self.spare = self._standby, self.primary
            self.primary.synchronous("")  # it copied the setting, and has no standby yet
            self.primary.promote()
            self._follow()
        else:
            super().fault(what, down_s)

    def _caught_up(self) -> None:
        """Wait until the standby is synchronous: after its start it has to catch up first."""
        for _ in range(500):
            if self.primary.sql("SELECT 1 FROM pg_stat_replication WHERE sync_state = 'sync'"):
                return
            PAUSE.wait(0.02)

    def remove(self) -> None:
        for server in (self.primary, self.spare):
            if server is not None:
                server.remove()


@contextmanager
def database_for(url: str, programs: Path | None) -> Iterator[Database | None]:
    """Yield the trial's database; None for SQLite."""
    if url == LOCAL:
        local = LocalDatabase(find_programs(programs))
        try:
            yield local
        finally:
            local.remove()
    elif url:
        with scratch(url) as made:
            yield Database(made)
    else:
        yield None


def another_hq(first: Path, second: Path, listen: str) -> None:
    """Copy the first HQ's directory for a second one with its own address to listen on."""
    from cipherbox.config.settings import load_server_config, write_server_config

    shutil.copytree(first, second)
    config = load_server_config(second)
    write_server_config(attrs.evolve(config, server=attrs.evolve(config.server, listen=listen)))
