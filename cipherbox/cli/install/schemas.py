"""Check that the program to be installed can read this machine's data, by the schema of each
database.

A newer schema than the program's is refused before anything is changed.  Two findings about
PostgreSQL are printed and stop nothing: it does not answer now (HQ itself refuses a newer schema at
its start), or its schema is older, and `cipherbox store upgrade` must be run before HQ starts.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from cipherbox.cli.install.places import USER
from cipherbox.config.settings import SERVER_FILE, ServerConfig, load_server_config
from cipherbox.errors import CipherBoxError, ConfigError, SchemaTooNew, StoreError
from cipherbox.portable import as_user

DATABASES = {"cipherbox.sqlite3": "hq", "inbox.sqlite3": "inbox", "outbox.sqlite3": "outbox"}


class Finding(NamedTuple):
    """A note for the admin; ``outdated``: HQ must not start before its store is upgraded."""

    text: str
    outdated: bool


def known_schemas() -> dict[str, int]:
    """Return the newest schema of each database that this program can use."""
    from cipherbox.client.inbox import schema as inbox
    from cipherbox.client.outbox import outbox
    from cipherbox.store.postgres import schema
    from cipherbox.store.sqlite import database

    return {
        "hq": len(database.scripts()),
        "postgresql": len(schema.scripts()),
        "inbox": len(inbox.STEPS),
        "outbox": len(outbox.STEPS),
    }


def check_schemas(
    homes: list[Path], known: Mapping[str, int], whose: str, current: Mapping[str, int]
) -> list[Finding]:
    """Return the findings.  Raise SchemaTooNew if a newer program than ``whose`` wrote the data.

    ``current`` holds the schemas of the installed program: it stands in for a PostgreSQL that does
    not answer.
    """
    found = []
    for data in homes:
        config = _config(data)
        paths = {data / name: kind for name, kind in DATABASES.items()}
        if config is not None and config.database.kind == "sqlite":
            paths[config.database.path] = "hq"
        for path, kind in paths.items():
            _check_file(path, known.get(kind, 0), whose)
        if config is not None and config.database.kind == "postgresql":
            newest = known.get("postgresql", 0)
            found += _check_postgresql(
                config, newest, whose, older=newest < current.get("postgresql", 0)
            )
    return found


def _check_file(path: Path, newest: int, whose: str) -> None:
    written = schema_of(path)
    if written > newest:
        older = path.with_name(f"{path.name}.schema{newest}")
        way = f" A copy from before the upgrade is {older}." if older.exists() else ""
        raise SchemaTooNew(
            f"{path} was written by a newer program (schema {written}; {whose} knows "
            f"{newest}): nothing was changed",
            remedy=f"install the newer file.{way}",
        )


def schema_of(path: Path) -> int:
    """Return the number of a database's schema; 0 if there is no database."""
    try:
        if not path.is_file():
            return 0
        log = path.with_name(f"{path.name}-wal")
        # without a WAL the header has it; opening the database would create files beside it
        if not log.exists() or not log.stat().st_size:
            with path.open("rb") as file:
                return int.from_bytes(file.read(64)[60:64], "big")
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            return int(db.execute("PRAGMA user_version").fetchone()[0])
        finally:
            db.close()
    except (OSError, sqlite3.Error) as error:
        raise StoreError(
            f"{path} cannot be read, so its schema is not known: {error}; nothing was changed"
        ) from None


def _config(data: Path) -> ServerConfig | None:
    """Return HQ's settings; None if there are none, or HQ could not start with them."""
    try:
        return load_server_config(data) if (data / SERVER_FILE).exists() else None
    except ConfigError:
        return None


def _check_postgresql(
    config: ServerConfig, newest: int, whose: str, *, older: bool
) -> list[Finding]:
    where = f"HQ's PostgreSQL ({config.database.hosts}, schema {config.database.schema})"
    try:
        written = as_user(USER, _ask, config)
    except (CipherBoxError, OSError) as error:
        if older:
            raise SchemaTooNew(
                f"{where} cannot be asked for its schema ({error}), and {whose} knows an "
                "older one than the installed program: nothing was changed",
                remedy="install the newer file, or let PostgreSQL answer first",
            ) from None
        text = (
            f"{where} cannot be asked for its schema: {error}. If it is newer than {whose} knows, "
            "HQ will not start"
        )
        return [Finding(f"{text} and nothing is changed: then install the newer file", False)]
    if written > newest:
        raise SchemaTooNew(
            f"{where} was written by a newer program (version {written}; {whose} knows "
            f"{newest}): nothing was changed",
            remedy="install the newer file",
        )
    if 0 < written < newest:
        text = (
            f"{where} is of the older version {written}, and {whose} needs {newest}: HQ keeps "
            "running unchanged. Stop it"
        )
        command = f"sudo -u {USER} cipherbox store upgrade {config.directory}"
        return [Finding(f"{text} and any standby, then run: {command}; then start HQ", True)]
    return []


def _ask(config: ServerConfig) -> int:
    from cipherbox.server.operations.open_store import target_of
    from cipherbox.store.postgres.inspect import inspect_store

    return inspect_store(target_of(config.database)).schema or 0
