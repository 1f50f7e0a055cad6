"""Inspect a database without changing it, also while HQ has it open."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from cipherbox.errors import SchemaTooNew, StoreError
from cipherbox.store.port import TIMES
from cipherbox.store.sqlite.database import APPLICATION_ID, check_age, scripts, translated

_CHECK_BYTES = 256 * 1024 * 1024  # up to this size all pages are checked: a second or two


class Inspection(NamedTuple):
    schema: int
    size: int
    newest_at: int  # of the signed log, ms since 1970; 0: it has no entry
    problem: str  # empty: none found
    times: dict[str, bytes]  # the settings about time: `port.TIMES`


def inspect_store(path: Path, *, pages: bool = True) -> Inspection:
    """Return what was found; raise StoreError if this program cannot open the database.  ``pages``:
    look for damage, too.
    """
    if not path.exists():
        raise StoreError(f"no database {path}", remedy="run: cipherbox init")
    with (
        translated(),
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as db,
    ):
        db.execute("PRAGMA busy_timeout = 5000")
        schema: int = db.execute("PRAGMA user_version").fetchone()[0]
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise StoreError(f"{path} belongs to another program")
        if schema > len(scripts()):
            raise SchemaTooNew(
                f"{path} was written by a newer program (schema {schema})",
                remedy="use that program",
            )
        check_age(db, path, schema)
        size = path.stat().st_size
        newest = db.execute("SELECT at FROM log ORDER BY entry DESC LIMIT 1").fetchone()
        marks = ", ".join("?" * len(TIMES))
        query = f"SELECT name, value FROM settings WHERE name IN ({marks})"  # marks only
        times = {str(name): bytes(value) for name, value in db.execute(query, TIMES)}
        problem = ""
        if pages and size <= _CHECK_BYTES:
            verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
            problem = "" if verdict == "ok" else f"the database is damaged: {verdict}"
    return Inspection(schema, size, newest[0] if newest else 0, problem, times)
