"""The tables of the predecessors, as any SQLite tool sees them, and the manual's queries."""

from __future__ import annotations

import base64
import sqlite3
import uuid
from importlib import resources
from pathlib import Path

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.store.port import BundleRow
from cipherbox.store.sqlite.store import DATABASE, SqliteStore
from tests.store.faults import opened
from tests.store.suite import AT, incoming, published


@pytest.fixture
def store(tmp_path: Path) -> SqliteStore:
    """Two envelopes of three messages: the first in two queues, the second in one."""
    store = opened(tmp_path)
    changes = published(1, b"one", b"two", queue="box.B")
    changes.queues.append(m.QueueRow("shared", "", ("C", "D")))
    changes.entries.append(m.NewEntry("shared", 1, 1, 0, ""))
    changes.envelopes[0] = changes.envelopes[0]._replace(
        fan=2, incoming=incoming(1)._replace(exchange="labs", routing_key="ca.data")
    )
    store.commit(changes, store.epoch)
    return store


@pytest.fixture
def tool(store: SqliteStore, tmp_path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{tmp_path / DATABASE}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    return db


def message_ids(index: int) -> list[str]:
    return [str(uuid.UUID(bytes=incoming(index).envelope_id[:14] + i.to_bytes(2, "big"))) for i in range(3)]


def iso(ms: int) -> str:
    return f"2027-01-15T08:00:00.{ms:03d}Z"  # AT + ms


def test_the_columns_are_the_predecessors(tool: sqlite3.Connection) -> None:
    columns = {
        view: [row["name"] for row in tool.execute(f"PRAGMA table_info({view})")]
        for view in ("message_metadata", "message_deliveries", "public_keys")
    }
    assert columns == {
        "message_metadata": [
            "message_id", "client_id", "exchange_name", "routing_key", "sent_time", "delivered_time",
            "acknowledged_time",
        ],
        "message_deliveries": [
            "message_id", "queue_name", "client_id", "delivered_time", "acknowledged_time", "state",
        ],
        "public_keys": ["client_id", "public_key_ciphertext", "nonce", "tag"],
    }  # fmt: skip


def metadata(tool: sqlite3.Connection, index: int) -> list[tuple[str | None, ...]]:
    """All columns of an envelope's messages but the id, which is checked here."""
    rows = tool.execute("SELECT * FROM message_metadata ORDER BY message_id").fetchall()
    rows = [row for row in rows if row["message_id"] in message_ids(index)]
    assert [row["message_id"] for row in rows] == message_ids(index)
    return [tuple(row)[1:] for row in rows]


def test_times_are_those_of_the_last_recipient(store: SqliteStore, tool: sqlite3.Connection) -> None:
    def commit(**lists: object) -> None:
        store.commit(Changes(**lists), store.epoch)  # type: ignore[arg-type]

    head = ("A", "labs", "ca.data", iso(0))
    assert metadata(tool, 1) == [(*head, None, None)] * 3
    assert metadata(tool, 2) == [("A", "", "", iso(0), None, None)] * 3
    commit(delivered=[m.Mark("box.B", 1, 1, AT + 5, "B")])
    assert metadata(tool, 1) == [(*head, None, None)] * 3
    commit(delivered=[m.Mark("shared", 1, 1, AT + 7, "C")])
    assert metadata(tool, 1) == [(*head, iso(7), None)] * 3
    commit(acked=[m.Mark("box.B", 1, 1, AT + 20, "B")], released=[1])
    assert metadata(tool, 1) == [(*head, iso(7), None)] * 3
    commit(acked=[m.Mark("shared", 1, 1, AT + 21, "C")], released=[1])
    assert metadata(tool, 1) == [(*head, iso(7), iso(21))] * 3
    assert store.read_bodies([1]) == [None]


def test_deliveries_are_one_row_for_each_queue(store: SqliteStore, tool: sqlite3.Connection) -> None:
    store.commit(
        Changes(
            delivered=[m.Mark("shared", 1, 1, AT + 7, "D")], acked=[m.Mark("box.B", 1, 1, AT + 9, "B")],
            dead=[m.Dead("box.B", 2, 2, AT + 9, "expired", "")],
        ),
        store.epoch,
    )  # fmt: skip
    rows = [tuple(row) for row in tool.execute("SELECT * FROM message_deliveries ORDER BY message_id, queue_name")]
    assert rows[:6] == [
        row
        for message in message_ids(1)
        for row in (
            (message, "box.B", "B", iso(9), iso(9), "acknowledged"), (message, "shared", "D", iso(7), None, "delivered")
        )
    ]  # fmt: skip
    assert rows[6] == (message_ids(2)[0], "box.B", "B", None, None, "dead letter")
    assert len(rows) == 9


def test_a_dead_letter_that_came_again_counts_as_its_second_entry(
    store: SqliteStore, tool: sqlite3.Connection
) -> None:
    store.commit(Changes(dead=[m.Dead("box.B", 2, 2, AT + 1, "key missing", "B")]), store.epoch)
    rows = "SELECT DISTINCT state FROM message_deliveries WHERE message_id = ?"
    assert [tuple(r) for r in tool.execute(rows, message_ids(2)[:1])] == [("dead letter",)]
    store.commit(Changes(entries=[m.NewEntry("box.B", 3, 2, AT + 5, "B")]), store.epoch)
    assert [tuple(r) for r in tool.execute(rows, message_ids(2)[:1])] == [("delivered",)]
    store.commit(Changes(acked=[m.Mark("box.B", 3, 3, AT + 6, "B")], finished=[2]), store.epoch)
    assert metadata(tool, 2) == [("A", "", "", iso(0), iso(5), iso(6))] * 3


def test_all_values_are_text_or_null(store: SqliteStore, tool: sqlite3.Connection) -> None:
    for view in ("message_metadata", "message_deliveries"):
        for row in tool.execute(f"SELECT * FROM {view}"):
            assert all(isinstance(value, str | None) for value in row)


def test_the_waiting_have_the_queues_owner_and_a_shared_queue_nobody_yet(tool: sqlite3.Connection) -> None:
    rows = {tuple(row) for row in tool.execute("SELECT queue_name, client_id, state FROM message_deliveries")}
    assert rows == {("box.B", "B", "waiting"), ("shared", None, "waiting")}


def test_public_keys_are_the_newest_bundles_in_base64(store: SqliteStore, tool: sqlite3.Connection) -> None:
    for client, sequence in (("A", 1), ("A", 3), ("A", 2), ("B", 1)):
        digest, ciphertext = f"{client}{sequence}".encode(), b"\xff\x00%d" % sequence
        store.put_bundle(BundleRow(client, sequence, digest, ciphertext, b"n" * 12, b"t" * 16, 1, 2))
    rows = [tuple(row) for row in tool.execute("SELECT * FROM public_keys ORDER BY client_id")]
    nonce, tag = base64.b64encode(b"n" * 12).decode(), base64.b64encode(b"t" * 16).decode()
    assert rows == [
        (client, base64.b64encode(b"\xff\x00%d" % sequence).decode(), nonce, tag)
        for client, sequence in (("A", 3), ("B", 1))
    ]


def manual_queries() -> list[str]:
    page = resources.files("cipherbox").joinpath("manual", "store.md").read_text("utf-8")
    return [part.split("```")[0] for part in page.split("```sql\n")[1:]]


def test_the_manuals_queries_run(tool: sqlite3.Connection) -> None:
    queries = manual_queries()
    assert len(queries) >= 5
    for query in queries:
        tool.execute(query).fetchall()


def test_the_manuals_lookups_use_an_index(tool: sqlite3.Connection) -> None:
    lookups = [query for query in manual_queries() if "envelope_id = x'" in query]
    assert lookups
    for query in lookups:
        plan = " ".join(row["detail"] for row in tool.execute(f"EXPLAIN QUERY PLAN {query}"))
        assert "envelopes_by_id" in plan
        assert "SCAN" not in plan
        mine = query.replace(query.split("x'")[1].split("'")[0], incoming(1).envelope_id.hex())
        found = tool.execute(mine).fetchall()
        assert found


def test_the_manuals_list_of_the_newest_reads_only_those(tool: sqlite3.Connection) -> None:
    (query,) = [query for query in manual_queries() if "LIMIT 100" in query]
    plan = " ".join(row["detail"] for row in tool.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "TEMP B-TREE" not in plan
