"""The predecessors' tables in PostgreSQL, the manual's queries and their plans, and retention by months."""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.store.port import BundleRow
from cipherbox.store.postgres import retention, schema
from cipherbox.store.postgres.driver import Link
from cipherbox.store.postgres.store import PostgresStore
from tests import postgres
from tests.store.suite import AT, incoming, published


@pytest.fixture
def store(tmp_path: Path, postgresql: postgres.Server) -> Iterator[PostgresStore]:
    """Two envelopes of three messages: the first in two queues, the second in one."""
    store = PostgresStore(postgres.target(postgresql, postgres.schema()), tmp_path, create=True)
    changes = published(1, b"one", b"two", queue="box.B")
    changes.queues.append(m.QueueRow("shared", "", ("C", "D")))
    changes.entries.append(m.NewEntry("shared", 1, 1, 0, ""))
    changes.envelopes[0] = changes.envelopes[0]._replace(
        fan=2, incoming=incoming(1)._replace(exchange="labs", routing_key="ca.data")
    )
    store.commit(changes, store.epoch)
    yield store
    store.close()


@pytest.fixture
def tool(store: PostgresStore, postgresql: postgres.Server) -> Iterator[Link]:
    link = postgres.connect(postgresql, store.target.schema)
    yield link
    link.close()


def ids(index: int) -> list[uuid.UUID]:
    return [uuid.UUID(bytes=incoming(index).envelope_id[:14] + i.to_bytes(2, "big")) for i in range(3)]


def at(ms: int) -> datetime:
    return datetime.fromtimestamp((AT + ms) / 1000, UTC)


def test_the_columns_are_the_predecessors(tool: Link) -> None:
    rows = tool.script(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = current_schema() "
        "AND table_name IN ('message_metadata', 'message_deliveries', 'public_keys') "
        "ORDER BY table_name, ordinal_position"
    )
    found: dict[str, list[str]] = {}
    for table, column in rows:
        found.setdefault(table, []).append(column)
    assert found == {
        "message_metadata": [
            "message_id", "client_id", "exchange_name", "routing_key", "sent_time", "delivered_time",
            "acknowledged_time",
        ],
        "message_deliveries": [
            "message_id", "queue_name", "client_id", "delivered_time", "acknowledged_time", "state",
        ],
        "public_keys": ["client_id", "public_key_ciphertext", "nonce", "tag"],
    }  # fmt: skip


def metadata(tool: Link, index: int) -> list[tuple[Any, ...]]:
    rows = tool.script("SELECT * FROM message_metadata ORDER BY message_id")
    rows = [row for row in rows if row[0] in ids(index)]
    assert [row[0] for row in rows] == ids(index)
    for row in rows:
        assert tool.script(f"SELECT * FROM find_message('{row[0]}')") == [row]
    return [tuple(row)[1:] for row in rows]


def test_times_are_those_of_the_last_recipient(store: PostgresStore, tool: Link) -> None:
    def commit(**lists: object) -> None:
        store.commit(Changes(**lists), store.epoch)  # type: ignore[arg-type]

    head = ("A", "labs", "ca.data", at(0))
    assert metadata(tool, 1) == [(*head, None, None)] * 3
    assert metadata(tool, 2) == [("A", "", "", at(0), None, None)] * 3
    commit(delivered=[m.Mark("box.B", 1, 1, AT + 5, "B")])
    assert metadata(tool, 1) == [(*head, None, None)] * 3
    commit(delivered=[m.Mark("shared", 1, 1, AT + 7, "C")])
    assert metadata(tool, 1) == [(*head, at(7), None)] * 3
    commit(acked=[m.Mark("box.B", 1, 1, AT + 20, "B")], released=[1])
    assert metadata(tool, 1) == [(*head, at(7), None)] * 3
    commit(acked=[m.Mark("shared", 1, 1, AT + 21, "C")], released=[1])
    assert metadata(tool, 1) == [(*head, at(7), at(21))] * 3
    assert store.read_bodies([1]) == [None]


def test_deliveries_are_one_row_for_each_queue(store: PostgresStore, tool: Link) -> None:
    store.commit(
        Changes(
            delivered=[m.Mark("shared", 1, 1, AT + 7, "D")], acked=[m.Mark("box.B", 1, 1, AT + 9, "B")],
            dead=[m.Dead("box.B", 2, 2, AT + 9, "expired", "")],
        ),
        store.epoch,
    )  # fmt: skip
    rows = [tuple(row) for row in tool.script("SELECT * FROM message_deliveries ORDER BY message_id, queue_name")]
    assert rows[:6] == [
        row
        for message in ids(1)
        for row in (
            (message, "box.B", "B", at(9), at(9), "acknowledged"), (message, "shared", "D", at(7), None, "delivered")
        )
    ]  # fmt: skip
    assert rows[6] == (ids(2)[0], "box.B", "B", None, None, "dead letter")
    assert len(rows) == 9
    found = tool.script(f"SELECT * FROM find_deliveries('{ids(2)[0]}')")
    assert [tuple(row) for row in found] == [rows[6]]


def test_a_dead_letter_that_came_again_counts_as_its_second_entry(store: PostgresStore, tool: Link) -> None:
    store.commit(Changes(dead=[m.Dead("box.B", 2, 2, AT + 1, "key missing", "B")]), store.epoch)
    rows = f"SELECT DISTINCT state FROM message_deliveries WHERE message_id = '{ids(2)[0]}'"
    assert tool.script(rows) == [["dead letter"]]
    store.commit(Changes(entries=[m.NewEntry("box.B", 3, 2, AT + 5, "B")]), store.epoch)
    assert tool.script(rows) == [["delivered"]]
    store.commit(Changes(acked=[m.Mark("box.B", 3, 3, AT + 6, "B")], finished=[2]), store.epoch)
    assert metadata(tool, 2) == [("A", "", "", at(0), at(5), at(6))] * 3


def test_public_keys_are_the_newest_bundles_in_base64(store: PostgresStore, tool: Link) -> None:
    for client, sequence in (("A", 1), ("A", 3), ("A", 2), ("B", 1)):
        digest, ciphertext = f"{client}{sequence}".encode(), b"\xff\x00%d" % sequence
        store.put_bundle(BundleRow(client, sequence, digest, ciphertext, b"n" * 12, b"t" * 16, 1, 2))
    rows = [tuple(row) for row in tool.script("SELECT * FROM public_keys ORDER BY client_id")]
    nonce, tag = base64.b64encode(b"n" * 12).decode(), base64.b64encode(b"t" * 16).decode()
    assert rows == [
        (client, base64.b64encode(b"\xff\x00%d" % sequence).decode(), nonce, tag)
        for client, sequence in (("A", 3), ("B", 1))
    ]


def manual_queries() -> list[str]:
    page = resources.files("cipherbox").joinpath("manual", "store.md").read_text("utf-8")
    return [part.split("```")[0].strip() for part in page.split("```postgresql\n")[1:]]


def test_the_manuals_queries_run_and_use_indexes(store: PostgresStore, tool: Link) -> None:
    """Judged as with a large store: where there is an index, it is taken."""
    for month in range(schema.month_of(AT) - 3, schema.month_of(AT) + 1):
        schema.make_month(tool, month)
    tool.script("SET enable_seqscan = off")
    assert len(manual_queries()) >= 8
    for query in manual_queries():
        tool.script(query)
        plan = "\n".join(row[0] for row in tool.script(f"EXPLAIN {query.rstrip(';')}"))
        for table in ("envelopes", "deliveries", "entries", "bodies"):
            assert f"Seq Scan on {table}" not in plan, f"{query}\n{plan}"
        if "sent_time DESC" in query or "find_" in query:
            assert "->  Sort" not in plan, f"{query}\n{plan}"


def month(store: PostgresStore, ms: int) -> None:
    assert schema.make_month(store._writer(), schema.month_of(ms))


def test_a_month_goes_as_a_whole_and_what_waits_stays(
    store: PostgresStore, tool: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a month of their own: one acknowledged, one that waits, one dead letter that nobody settled."""
    past = AT - 90 * 86_400_000
    monkeypatch.setattr(retention, "time", Later)
    month(store, past)
    changes = published(10, b"a", b"b", b"c")
    changes.envelopes = [e._replace(accepted_at=past) for e in changes.envelopes]
    store.commit(changes, store.epoch)
    marks = [m.Mark("box.B", 10, 10, past, "B")]
    dead = [m.Dead("box.B", 12, 12, past, "bad", "")]
    store.commit(Changes(acked=marks, finished=[10], dead=dead), store.epoch)
    ends = schema.ends_at_ms(schema.month_of(past))
    assert not store.older_than(m.Cutoffs(ends - 1, 0, 0))
    cutoffs = m.Cutoffs(ends, 0, 0)
    assert store.older_than(cutoffs)
    store.commit(Changes(retention=cutoffs, watermark=ends), store.epoch)
    assert not store.older_than(cutoffs)
    name = schema.name_of("envelopes", schema.month_of(past))
    assert tool.script(f"SELECT to_regclass('{name}')") == [[None]]
    assert store.trace("A", incoming(10).envelope_id) is None
    for number, body in ((11, b"b"), (12, b"c")):
        assert store.trace("A", incoming(number).envelope_id) is not None
        assert store.read_bodies([number]) == [body]
    store.commit(Changes(acked=[m.Mark("box.B", 11, 11, AT, "B")], finished=[11]), store.epoch)
    assert store.older_than(cutoffs)
    store.commit(Changes(retention=cutoffs), store.epoch)
    assert store.trace("A", incoming(11).envelope_id) is None
    assert store.trace("A", incoming(12).envelope_id) is not None
    assert store.trace("A", incoming(1).envelope_id) is not None


class Later:
    """A clock that stands after the suite's times."""

    @staticmethod
    def time_ns() -> int:
        return (AT + 10 * 86_400_000) * 1_000_000


def test_a_month_without_a_partition_goes_to_the_others(store: PostgresStore, tool: Link) -> None:
    assert tool.script("SELECT count(*) FROM envelopes_other") == [[2]]
    assert not schema.make_month(store._writer(), schema.month_of(AT))  # rows of it are there already
    store.commit(published(3), store.epoch)
    assert tool.script("SELECT count(*) FROM envelopes_other") == [[3]]
