"""The PostgreSQL to use, and how to connect to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import attrs

TLS = ("verify", "unverified", "off")


@attrs.frozen
class Target:
    """A PostgreSQL database.  ``hosts`` are (name or socket directory, port), of which the writable
    one is used; ``password`` is called for each connection, so a change takes effect immediately.
    """

    hosts: tuple[tuple[str, int], ...]
    database: str = "cipherbox"
    user: str = "cipherbox"
    password: Callable[[], str | None] = lambda: None
    tls: str = "verify"
    tls_ca: Path | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    schema: str = "cipherbox"
    pool_size: int = 3
    bodies: str = "database"

    def __str__(self) -> str:
        places = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"PostgreSQL at {places}, database {self.database}, schema {self.schema}"
