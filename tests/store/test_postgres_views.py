"""The suite of views on PostgreSQL, the manual's queries and their plans, and retention by
months.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import attrs
import pytest

from cipherbox import clock
from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.store.postgres import schema
from cipherbox.store.postgres.driver import PostgresConnection
from cipherbox.store.postgres.store import PostgresStore
from tests import postgres
from tests.store.suite import AT, bodies_of, incoming, published
from tests.store.suite_views import Views, fill

FINDERS = {"message_metadata": "find_message", "message_deliveries": "find_deliveries"}


@attrs.frozen
class PostgresTool:
    connection: PostgresConnection

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in self.connection.script(query)]

    def columns(self, view: str) -> list[str]:
        rows = self.rows(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = "
            f"current_schema() AND table_name = '{view}' ORDER BY ordinal_position"
        )
        return [name for (name,) in rows]

    def find(self, view: str, message_id: uuid.UUID) -> list[tuple[Any, ...]]:
        return self.rows(f"SELECT * FROM {FINDERS[view]}('{message_id}')")

    def id(self, value: uuid.UUID) -> uuid.UUID:
        return value

    def time(self, ms: int) -> datetime:
        return datetime.fromtimestamp((AT + ms) / 1000, UTC)


@pytest.fixture
def store(tmp_path: Path, postgresql: postgres.Server) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres.target(postgresql, postgres.schema()), tmp_path, create=True)
    fill(store)
    yield store
    store.close()


@pytest.fixture
def tool(store: PostgresStore, postgresql: postgres.Server) -> Iterator[PostgresTool]:
    with closing(postgres.connect(postgresql, store.target.schema)) as connection:
        yield PostgresTool(connection)


class TestViews(Views):
    pass


def manual_queries() -> list[str]:
    page = resources.files("cipherbox").joinpath("manual", "store.md").read_text("utf-8")
    return [part.split("```")[0].strip() for part in page.split("```postgresql\n")[1:]]


def test_the_manuals_queries_run_and_use_indexes(store: PostgresStore, tool: PostgresTool) -> None:
    """Judged as with a large store: where there is an index, it is taken."""
    for month in range(schema.month_of(AT) - 3, schema.month_of(AT) + 1):
        schema.make_month(tool.connection, month)
    tool.connection.script("SET enable_seqscan = off")
    assert len(manual_queries()) >= 8
    for query in manual_queries():
        tool.connection.script(query)
        plan = "\n".join(row[0] for row in tool.connection.script(f"EXPLAIN {query.rstrip(';')}"))
        for table in ("envelopes", "deliveries", "entries", "bodies"):
            assert f"Seq Scan on {table}" not in plan, f"{query}\n{plan}"
        if "sent_time DESC" in query or "find_" in query:
            assert "->  Sort" not in plan, f"{query}\n{plan}"


def month(store: PostgresStore, ms: int) -> None:
    assert schema.make_month(store._writer(), schema.month_of(ms))


def test_a_month_goes_as_a_whole_and_what_waits_stays(
    store: PostgresStore, tool: PostgresTool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a month of their own: one acknowledged, one that waits, one dead letter that nobody
    settled.
    """
    past = AT - 90 * 86_400_000
    monkeypatch.setattr(clock, "now_ms", lambda: AT + 10 * 86_400_000)
    month(store, past)
    changes = published(10, b"a", b"b", b"c")
    changes.envelopes = [e._replace(accepted_at=past) for e in changes.envelopes]
    store.commit(changes, store.epoch)
    marks = [m.SeqRun("box.B", 10, 10, past, "B")]
    dead = [m.Dead("box.B", 12, 12, past, "bad", "")]
    store.commit(Changes(acked=marks, finished=[10], dead=dead), store.epoch)
    ends = schema.ends_at_ms(schema.month_of(past))
    assert not store.retention_due(m.Cutoffs(ends - 1, 0, 0))
    cutoffs = m.Cutoffs(ends, 0, 0)
    assert store.retention_due(cutoffs)
    store.commit(Changes(retention=cutoffs, watermark=ends), store.epoch)
    assert not store.retention_due(cutoffs)
    name = schema.name_of("envelopes", schema.month_of(past))
    assert tool.connection.script(f"SELECT to_regclass('{name}')") == [[None]]
    assert store.trace("A", incoming(10).envelope_id) is None
    for number, body in ((11, b"b"), (12, b"c")):
        assert store.trace("A", incoming(number).envelope_id) is not None
        assert bodies_of(store, [number]) == [body]
    store.commit(Changes(acked=[m.SeqRun("box.B", 11, 11, AT, "B")], finished=[11]), store.epoch)
    assert store.retention_due(cutoffs)
    store.commit(Changes(retention=cutoffs), store.epoch)
    assert store.trace("A", incoming(11).envelope_id) is None
    assert store.trace("A", incoming(12).envelope_id) is not None
    assert store.trace("A", incoming(1).envelope_id) is not None


def test_a_month_without_a_partition_goes_to_the_others(
    store: PostgresStore, tool: PostgresTool
) -> None:
    assert tool.connection.script("SELECT count(*) FROM envelopes_other") == [[2]]
    # rows of it are there already
    assert not schema.make_month(store._writer(), schema.month_of(AT))
    store.commit(published(3), store.epoch)
    assert tool.connection.script("SELECT count(*) FROM envelopes_other") == [[3]]
