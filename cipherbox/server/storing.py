"""Opens the store that the configuration names."""

from __future__ import annotations

from pathlib import Path

from cipherbox.config import DatabaseSettings, ServerConfig, secret
from cipherbox.databaseurl import parse_hosts
from cipherbox.store.port import Store
from cipherbox.store.postgres.target import Target
from cipherbox.store.sqlite.store import SqliteStore
from cipherbox.store.sqlite.store import open_store as open_sqlite


def target_of(settings: DatabaseSettings) -> Target:
    """Where PostgreSQL is."""
    password = settings.password_file

    def asked() -> str | None:
        return secret(password).decode("utf-8").rstrip("\r\n") if password is not None else None

    return Target(
        hosts=parse_hosts(settings.hosts), database=settings.name, user=settings.user,
        password=asked, tls=settings.tls,
        tls_ca=settings.tls_ca, tls_certificate=settings.tls_certificate, tls_key=settings.tls_key,
        schema=settings.schema, pool_size=settings.pool_size, bodies=settings.bodies,
    )  # fmt: skip


def open_store(
    config: ServerConfig, *, create: bool = False, upgrade: bool = False, kind: type[SqliteStore] = SqliteStore
) -> Store:
    """The caller holds the data directory's lock.  StandbyOnly while another HQ writes this database."""
    if config.database.kind == "postgresql":
        from cipherbox.store.postgres.store import PostgresStore

        target = target_of(config.database)
        return PostgresStore(target, config.directory, create=create, upgrade=upgrade, limits=config.limits)
    path: Path = config.database.path
    return open_sqlite(path.parent, create=create, limits=config.limits, kind=kind, name=path.name)
