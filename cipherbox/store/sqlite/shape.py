"""Check that a database has the tables of its schema version.

Published schema files are never edited, so the version determines the tables.  Before 0.5.0 they
were: such a database may have a current version number and other tables.  The tables of 0.5.0 are
the oldest this program reads.
"""

from __future__ import annotations

import functools
import sqlite3
from contextlib import closing
from pathlib import Path

from cipherbox.errors import SchemaTooOld

OLDEST = 4  # what 0.5.0 wrote
Shape = dict[str, tuple[tuple[str, ...], ...]]


def check_shape(
    db: sqlite3.Connection, path: Path, version: int, steps: tuple[tuple[str, ...], ...]
) -> None:
    """Raise SchemaTooOld unless the database has the tables, views and columns that ``steps``
    create up to ``version``.
    """
    if version >= OLDEST:
        found = _shape(db)
        if all(found.get(name) == columns for name, columns in _promised(steps[:version]).items()):
            return
    raise SchemaTooOld(
        f"{path} was written by a version of CipherBox before 0.5.0, which this program cannot "
        "read; nothing was changed"
    )


@functools.cache  # a process that opens many stores, as tests do, asks once
def _promised(steps: tuple[tuple[str, ...], ...]) -> Shape:
    """Return the shape that these steps create."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in (statement for step in steps for statement in step):
            if not _writes_rows(statement):
                db.execute(statement)
        return _shape(db)


def _writes_rows(statement: str) -> bool:
    """Return whether a statement writes rows, which do not affect the shape and take long."""
    lines = (
        line
        for line in statement.splitlines()
        if line.strip() and not line.lstrip().startswith("--")
    )
    return next(lines, "").lstrip().split(" ")[0].upper() in (
        "INSERT",
        "UPDATE",
        "DELETE",
        "REPLACE",
        "WITH",
    )


def _shape(db: sqlite3.Connection) -> Shape:
    names = db.execute(
        "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE "
        "'sqlite_%'"
    )
    return {name: _columns(db, name) for (name,) in names.fetchall()}


def _columns(db: sqlite3.Connection, name: str) -> tuple[tuple[str, ...], ...]:
    try:
        rows = db.execute(
            "SELECT name, type, pk FROM pragma_table_info(?) ORDER BY cid", (name,)
        ).fetchall()
    except sqlite3.OperationalError:  # a view of missing columns
        return ()
    return tuple(tuple(map(str, row)) for row in rows)
