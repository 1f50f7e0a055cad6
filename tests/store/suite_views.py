"""The predecessors' tables, as any SQL tool sees them: `Views` runs on each database its
subclass opens.
"""

from __future__ import annotations

import base64
import uuid
from typing import Any, Protocol

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.store.port import BundleRow, Store
from tests.store.suite import AT, bodies_of, incoming, published

VIEWS = ("message_metadata", "message_deliveries", "public_keys")


class Tool(Protocol):
    """A tool at the store's database, with the database's own idea of ids and times."""

    def rows(self, query: str) -> list[tuple[Any, ...]]: ...

    def columns(self, view: str) -> list[str]: ...

    def find(self, view: str, message_id: Any) -> list[tuple[Any, ...]]:
        """By the way that the manual recommends."""

    def id(self, value: uuid.UUID) -> Any: ...

    def time(self, ms: int) -> Any:
        """So long after the suite's time."""


def fill(store: Store) -> None:
    """Two envelopes of three messages: the first in two queues, the second in one."""
    changes = published(1, b"one", b"two", queue="box.B")
    changes.queues.append(m.QueueRow("shared", "", ("C", "D")))
    changes.entries.append(m.NewEntry("shared", 1, 1, 0, ""))
    changes.envelopes[0] = changes.envelopes[0]._replace(
        references=2, incoming=incoming(1)._replace(exchange="labs", routing_key="ca.data")
    )
    store.commit(changes, store.epoch)


def ids(tool: Tool, index: int) -> list[Any]:
    head = incoming(index).envelope_id[:14]
    return [tool.id(uuid.UUID(bytes=head + i.to_bytes(2, "big"))) for i in range(3)]


def metadata(tool: Tool, index: int) -> list[tuple[Any, ...]]:
    """All columns of an envelope's messages but the id, which is checked here."""
    rows = tool.rows("SELECT * FROM message_metadata ORDER BY message_id")
    rows = [row for row in rows if row[0] in ids(tool, index)]
    assert [row[0] for row in rows] == ids(tool, index)
    for row in rows:
        assert tool.find("message_metadata", row[0]) == [row]
    return [row[1:] for row in rows]


class Views:
    """Subclasses give the fixtures `store`, filled by `fill`, and `tool`."""

    def test_the_columns_are_the_predecessors(self, tool: Tool) -> None:
        assert {view: tool.columns(view) for view in VIEWS} == {
            "message_metadata": [
                "message_id",
                "client_id",
                "exchange_name",
                "routing_key",
                "sent_time",
                "delivered_time",
                "acknowledged_time",
            ],
            "message_deliveries": [
                "message_id",
                "queue_name",
                "client_id",
                "delivered_time",
                "acknowledged_time",
                "state",
            ],
            "public_keys": ["client_id", "public_key_ciphertext", "nonce", "tag"],
        }

    def test_times_are_those_of_the_last_recipient(self, store: Store, tool: Tool) -> None:
        def commit(**lists: object) -> None:
            store.commit(Changes(**lists), store.epoch)  # type: ignore[arg-type]

        head = ("A", "labs", "ca.data", tool.time(0))
        assert metadata(tool, 1) == [(*head, None, None)] * 3
        assert metadata(tool, 2) == [("A", "", "", tool.time(0), None, None)] * 3
        commit(delivered=[m.SeqRun("box.B", 1, 1, AT + 5, "B")])
        assert metadata(tool, 1) == [(*head, None, None)] * 3
        commit(delivered=[m.SeqRun("shared", 1, 1, AT + 7, "C")])
        assert metadata(tool, 1) == [(*head, tool.time(7), None)] * 3
        commit(acked=[m.SeqRun("box.B", 1, 1, AT + 20, "B")], released=[1])
        assert metadata(tool, 1) == [(*head, tool.time(7), None)] * 3
        commit(acked=[m.SeqRun("shared", 1, 1, AT + 21, "C")], released=[1])
        assert metadata(tool, 1) == [(*head, tool.time(7), tool.time(21))] * 3
        assert bodies_of(store, [1]) == [None]

    def test_deliveries_are_one_row_for_each_queue(self, store: Store, tool: Tool) -> None:
        store.commit(
            Changes(
                delivered=[m.SeqRun("shared", 1, 1, AT + 7, "D")],
                acked=[m.SeqRun("box.B", 1, 1, AT + 9, "B")],
                dead=[m.Dead("box.B", 2, 2, AT + 9, "expired", "")],
            ),
            store.epoch,
        )
        rows = tool.rows("SELECT * FROM message_deliveries ORDER BY message_id, queue_name")
        seven, nine = tool.time(7), tool.time(9)
        assert rows[:6] == [
            row
            for message in ids(tool, 1)
            for row in (
                (message, "box.B", "B", nine, nine, "acknowledged"),
                (message, "shared", "D", seven, None, "delivered"),
            )
        ]
        assert rows[6] == (ids(tool, 2)[0], "box.B", "B", None, None, "dead letter")
        assert len(rows) == 9
        assert tool.find("message_deliveries", ids(tool, 2)[0]) == [rows[6]]

    def test_a_dead_letter_that_came_again_counts_as_its_second_entry(
        self, store: Store, tool: Tool
    ) -> None:
        store.commit(Changes(dead=[m.Dead("box.B", 2, 2, AT + 1, "key missing", "B")]), store.epoch)
        rows = (
            f"SELECT DISTINCT state FROM message_deliveries WHERE message_id = '{ids(tool, 2)[0]}'"
        )
        assert tool.rows(rows) == [("dead letter",)]
        store.commit(Changes(entries=[m.NewEntry("box.B", 3, 2, AT + 5, "B")]), store.epoch)
        assert tool.rows(rows) == [("delivered",)]
        store.commit(
            Changes(acked=[m.SeqRun("box.B", 3, 3, AT + 6, "B")], finished=[2]), store.epoch
        )
        assert metadata(tool, 2) == [("A", "", "", tool.time(0), tool.time(5), tool.time(6))] * 3

    def test_the_waiting_have_the_queues_owner_and_a_shared_queue_nobody_yet(
        self, store: Store, tool: Tool
    ) -> None:
        rows = set(tool.rows("SELECT queue_name, client_id, state FROM message_deliveries"))
        assert rows == {("box.B", "B", "waiting"), ("shared", None, "waiting")}

    def test_public_keys_are_the_newest_bundles_in_base64(self, store: Store, tool: Tool) -> None:
        for client, sequence in (("A", 1), ("A", 3), ("A", 2), ("B", 1)):
            digest, ciphertext = f"{client}{sequence}".encode(), b"\xff\x00%d" % sequence
            store.put_bundle(
                BundleRow(client, sequence, digest, ciphertext, b"n" * 12, b"t" * 16, 1, 2)
            )
        nonce, tag = base64.b64encode(b"n" * 12).decode(), base64.b64encode(b"t" * 16).decode()
        assert tool.rows("SELECT * FROM public_keys ORDER BY client_id") == [
            (client, base64.b64encode(b"\xff\x00%d" % sequence).decode(), nonce, tag)
            for client, sequence in (("A", 3), ("B", 1))
        ]
