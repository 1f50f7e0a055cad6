"""`--database URL` of demo, bench and prove: a schema of PostgreSQL for one run, dropped when
the run is over.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import click

from cipherbox.cli.options import database_settings

database_option = click.option(
    "--database",
    "url",
    default="",
    metavar="URL",
    help="Store everything in PostgreSQL: postgresql://user@host:port/name; creates a "
    "schema and drops it afterwards.",
)


class Scratch:
    """The PostgreSQL schema of one run.  ``url`` is passed to `init`; empty for SQLite."""

    def __init__(self, url: str) -> None:
        self.url = ""
        if url:
            from cipherbox.server.operations.open_store import target_of

            parts = urlsplit(url)
            query = dict(parse_qsl(parts.query), schema=f"cipherbox_{secrets.token_hex(6)}")
            self.url = parts._replace(query=urlencode(query)).geturl()
            self.target = target_of(database_settings(self.url))

    @property
    def arguments(self) -> list[str]:
        """Return the arguments for `init`."""
        return ["--database", self.url] if self.url else []

    def rows(self, query: str) -> list[list[Any]]:
        """Return the rows of a query over HQ's views."""
        from cipherbox.store.postgres.connect import Connector

        connection = Connector(self.target).writable()
        try:
            return connection.script(query)
        finally:
            connection.close()

    def dump(self, directory: Path) -> None:
        """Write every table to a file of its own, as PostgreSQL outputs it."""
        from cipherbox.store.postgres.connect import Connector
        from cipherbox.store.postgres.driver import quoted

        connection = Connector(self.target).writable()
        try:
            names = connection.run(
                "SELECT tablename FROM pg_tables WHERE schemaname = ?", (self.target.schema,)
            )
            for (name,) in names:
                rows = connection.copy_out(f"SELECT * FROM {quoted(name)}")  # noqa: S608
                (directory / name).write_bytes(
                    b"".join(field or b"" for row in rows for field in row)
                )
        finally:
            connection.close()

    def drop(self) -> None:
        from cipherbox.store.postgres.connect import Connector
        from cipherbox.store.postgres.driver import quoted

        connection = Connector(self.target).writable()
        try:
            connection.script(f"DROP SCHEMA IF EXISTS {quoted(self.target.schema)} CASCADE")
        finally:
            connection.close()


@contextmanager
def scratch(url: str) -> Iterator[Scratch]:
    """Yield a `Scratch`, and drop it at the end."""
    from contextlib import suppress

    from cipherbox.errors import CipherBoxError

    made = Scratch(url)
    try:
        yield made
    finally:
        if made.url:
            with suppress(CipherBoxError):
                made.drop()
