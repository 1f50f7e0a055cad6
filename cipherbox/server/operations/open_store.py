"""Open the store that the configuration names."""

from __future__ import annotations

from cipherbox.config.database_url import parse_hosts
from cipherbox.config.settings import DatabaseSettings, ServerConfig, secret
from cipherbox.errors import ConfigError, StoreError
from cipherbox.store.copying import COPYING, Source
from cipherbox.store.port import INCARNATION, Store
from cipherbox.store.postgres.target import Target
from cipherbox.store.sqlite.copying import SqliteSource
from cipherbox.store.sqlite.store import SqliteStore
from cipherbox.store.sqlite.store import open_store as open_sqlite
from cipherbox.store.waiting import WaitingSession


def target_of(settings: DatabaseSettings) -> Target:
    """Return the PostgreSQL database of the settings."""
    password = settings.password_file

    def read_password() -> str | None:
        return secret(password).decode("utf-8").rstrip("\r\n") if password is not None else None

    return Target(
        hosts=parse_hosts(settings.hosts),
        database=settings.name,
        user=settings.user,
        password=read_password,
        tls=settings.tls,
        tls_ca=settings.tls_ca,
        tls_certificate=settings.tls_certificate,
        tls_key=settings.tls_key,
        schema=settings.schema,
        pool_size=settings.pool_size,
        bodies=settings.bodies,
    )


def is_same_database(one: DatabaseSettings, other: DatabaseSettings) -> bool:
    """Return whether settings name the same database, however it is reached."""
    if one.kind != other.kind:
        return False
    if one.kind == "sqlite":
        return one.path.resolve() == other.path.resolve()
    return (one.hosts, one.name, one.schema) == (other.hosts, other.name, other.schema)


def open_source(config: ServerConfig, *, still: bool = False) -> Source:
    """Open a snapshot of the store, also while HQ is running, unless ``still``: then nobody may
    write it.
    """
    if config.database.kind == "postgresql":
        from cipherbox.store.postgres.copying import PostgresSource

        return PostgresSource(target_of(config.database), config.directory, still=still)
    return SqliteSource(config.database.path.parent, config.database.path.name, still=still)


def open_store(
    config: ServerConfig,
    *,
    create: bool = False,
    upgrade: bool = False,
    kind: type[SqliteStore] = SqliteStore,
    waiting: WaitingSession | None = None,
) -> Store:
    """Open the store; the caller holds the data directory's lock.  Raise StoreLeased while another
    HQ has the database's lease; ``waiting`` keeps the session then.
    """
    if config.database.kind == "postgresql":
        from cipherbox.store.postgres.store import PostgresStore

        target = target_of(config.database)
        return PostgresStore(
            target,
            config.directory,
            create=create,
            upgrade=upgrade,
            limits=config.limits,
            waiting=waiting,
        )
    path = config.database.path
    return open_sqlite(path.parent, create=create, limits=config.limits, kind=kind, name=path.name)


def reach(config: ServerConfig) -> None:
    """Check that PostgreSQL is available and contains this HQ; raise an error if not."""
    from cipherbox.store.postgres import schema
    from cipherbox.store.postgres.connect import Connector

    target = target_of(config.database)
    connection = Connector(target).writable()
    try:
        schema.prepare(connection, target, create=False, upgrade=False)
    finally:
        connection.close()


def empty_for(store: Store, copying: bytes, remedy: str | None = None, killed: bytes = b"") -> None:
    """Mark an empty store as an unfinished copy; one that is, because its copy was killed, is
    emptied first.  ``killed``: the incarnation given by a restore that was killed.  Raise
    ConfigError if it contains an HQ.
    """
    if store.get_setting(COPYING) or (killed and store.get_setting(INCARNATION) == killed):
        store.empty()
    elif store.load(1).clients:
        raise ConfigError("this database already contains an HQ", remedy=remedy)
    store.put_setting(COPYING, copying)


def check_whole(store: Store) -> None:
    """Raise StoreError if the store is an unfinished copy."""
    if store.get_setting(COPYING):
        raise StoreError(
            "this database is an unfinished copy",
            remedy="run the copy or restore again: it starts anew",
        )
