"""The suite of views on SQLite, and the manual's queries and their plans."""

from __future__ import annotations

import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import pytest

from cipherbox.store.sqlite.store import DATABASE, SqliteStore
from tests.store.faults import opened
from tests.store.suite import incoming
from tests.store.suite_views import Views, fill


@attrs.frozen
class SqliteTool:
    db: sqlite3.Connection

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.db.execute(query)]

    def columns(self, view: str) -> list[str]:
        return [row["name"] for row in self.db.execute(f"PRAGMA table_info({view})")]

    def find(self, view: str, message_id: str) -> list[tuple[Any, ...]]:
        return self.rows(f"SELECT * FROM {view} WHERE message_id = '{message_id}'")

    def id(self, value: uuid.UUID) -> str:
        return str(value)

    def time(self, ms: int) -> str:
        return f"2027-01-15T08:00:00.{ms:03d}Z"


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    store = opened(tmp_path)
    fill(store)
    return store


@pytest.fixture
def tool(store: SqliteStore, tmp_path: Path) -> Iterator[SqliteTool]:
    with closing(sqlite3.connect(f"file:{tmp_path / DATABASE}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        yield SqliteTool(db)


class TestViews(Views):
    pass


def test_all_values_are_text_or_null(tool: SqliteTool) -> None:
    for view in ("message_metadata", "message_deliveries"):
        for row in tool.db.execute(f"SELECT * FROM {view}"):
            assert all(isinstance(value, str | None) for value in row)


def manual_queries() -> list[str]:
    page = resources.files("cipherbox").joinpath("manual", "store.md").read_text("utf-8")
    return [part.split("```")[0] for part in page.split("```sql\n")[1:]]


def test_the_manuals_queries_run(tool: SqliteTool) -> None:
    queries = manual_queries()
    assert len(queries) >= 5
    for query in queries:
        tool.db.execute(query).fetchall()


def test_the_manuals_lookups_use_an_index(tool: SqliteTool) -> None:
    lookups = [query for query in manual_queries() if "envelope_id = x'" in query]
    assert lookups
    for query in lookups:
        plan = " ".join(row["detail"] for row in tool.db.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "envelopes_by_id" in plan
        assert "SCAN" not in plan
        mine = query.replace(query.split("x'")[1].split("'")[0], incoming(1).envelope_id.hex())
        found = tool.db.execute(mine).fetchall()
        assert found


def test_the_manuals_list_of_the_newest_reads_only_those(tool: SqliteTool) -> None:
    (query,) = [query for query in manual_queries() if "LIMIT 100" in query]
    plan = " ".join(row["detail"] for row in tool.db.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "TEMP B-TREE" not in plan
