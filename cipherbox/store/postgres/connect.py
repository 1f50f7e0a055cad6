"""Find the writable PostgreSQL server (the primary).

All hosts are queried.  A server in recovery is a standby and is skipped; of several writable ones
the one with the highest timeline is right: a promoted standby begins a new timeline, while an old
primary that returns still has its old one.  A timeline lower than one seen before is never
accepted: while only the old primary is reachable, nothing is written.
"""

from __future__ import annotations

import ssl

from cipherbox.errors import CipherBoxError, StoreError, StoreUnavailable
from cipherbox.store.postgres.driver import PostgresConnection, tls_context
from cipherbox.store.postgres.target import Target

OLDEST = 14
_REMEDY = (
    "check that PostgreSQL runs there, is reachable, and accepts this user in pg_hba.conf; "
    "see: cipherbox manual howto-hq"
)
_SERVER_FACTS = """
SELECT pg_is_in_recovery(), current_setting('server_version_num'), current_setting('fsync'),
    current_setting('full_page_writes'), current_setting('synchronous_commit'),
    pg_encoding_to_char(encoding)
FROM pg_database WHERE datname = current_database()
"""


class Connector:
    """Open connections to the writable server of a target."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._newest = ""  # timeline
        self._context: ssl.SSLContext | None = tls_context(target)

    def writable(self) -> PostgresConnection:
        """Return a connection to the primary; raise StoreError if all servers are unsuitable as
        configured, else StoreUnavailable.
        """
        password = self.target.password()
        found: list[tuple[str, PostgresConnection]] = []
        wrong: list[CipherBoxError] = []
        try:
            for host, port in self.target.hosts:
                try:
                    connection = PostgresConnection(
                        self.target, host, port, password, self._context
                    )
                except (StoreUnavailable, StoreError) as error:
                    wrong.append(error)
                    continue
                found.append(("", connection))
                found[-1] = (self._timeline(connection), connection)
            best = max(found, key=lambda f: f[0], default=("", None))
            if best[0] and best[1] is not None and best[0] >= self._newest:
                self._newest = best[0]
                found.remove((best[0], best[1]))
                return best[1]
        finally:
            for _, connection in found:
                connection.close()
        if wrong and all(isinstance(error, StoreError) for error in wrong):
            raise wrong[0]
        why = [str(error) for error in wrong]
        for timeline, connection in found:
            role = "an old primary" if timeline else "a standby"
            why.append(f"{connection.host}:{connection.port} is {role}")
        raise StoreUnavailable("no writable PostgreSQL: " + "; ".join(why), remedy=_REMEDY)

    def _timeline(self, connection: PostgresConnection) -> str:
        """Return the timeline, empty for a standby; raise StoreError for an unsuitable server."""
        recovery, version, fsync, pages, synchronous, encoding = connection.script(_SERVER_FACTS)[0]
        where = f"PostgreSQL at {connection.host}:{connection.port}"
        if int(version) < OLDEST * 10_000:
            raise StoreError(
                f"{where} has version {int(version) // 10_000}; CipherBox needs {OLDEST} or newer"
            )
        if encoding != "UTF8":
            raise StoreError(
                f"{where}: database {self.target.database} has the encoding {encoding}",
                remedy="create it with UTF8",
            )
        if recovery:
            return ""
        if fsync != "on" or pages != "on":
            raise StoreError(
                f"{where} runs with fsync or full_page_writes off, so its commits are not durable",
                remedy="turn them on",
            )
        if synchronous in ("off", "local"):
            connection.script("SET synchronous_commit = on")
        timeline: str = connection.script(
            "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)"
        )[0][0]
        return timeline
