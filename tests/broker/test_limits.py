"""Counted bounds of the core: the last that fits, and one over."""

from __future__ import annotations

import attrs

from cipherbox.broker import model as m
from cipherbox.broker.exchanges import Exchange
from cipherbox.broker.model import Done, ExchangeType
from cipherbox.limits import LIMITS
from tests.broker.world import World

SMALL = attrs.evolve(LIMITS, bindings_per_queue=2, consumers_per_queue=2, exchanges=2, queues=8)


def world() -> World:
    w = World(SMALL, "A", "B")
    w.ok(m.DeclareExchange(0, "", 1, "e", ExchangeType.DIRECT))
    return w


def test_bindings_of_a_queue() -> None:
    w = world()
    for key in ("1", "2"):
        w.ok(m.Bind(0, "", 1, "e", "box.A", key))
    assert w.fails(m.Bind(0, "", 1, "e", "box.A", "3")) == "invalid-request"
    assert w.ok(m.Unbind(0, "", 1, "e", "box.A", "1")) == Done(1, 1)
    w.ok(m.Bind(0, "", 1, "e", "box.A", "3"))
    assert w.fails(m.Unbind(0, "", 1, "e", "box.A", "none")) == "not-found"


def test_consumers_of_a_queue_and_tags_of_a_connection() -> None:
    w = world()
    w.ok(m.Consume(1, "A", 1, 1, "box.A", 1, 1))
    assert w.fails(m.Consume(1, "A", 1, 1, "box.A", 1, 1)) == "conflict"
    assert w.fails(m.Consume(1, "A", 1, 0, "box.A", 1, 1)) == "conflict"
    w.ok(m.Consume(1, "A", 1, 2, "box.A", 1, 1))
    assert w.fails(m.Consume(1, "A", 1, 3, "box.A", 1, 1)) == "invalid-request"
    w.ok(m.Cancel(1, "A", 1, 2))
    assert w.fails(m.Cancel(1, "A", 1, 2)) == "invalid-request"
    w.ok(m.Consume(1, "A", 1, 3, "box.A", 1, 1))


def test_exchanges_and_queues_in_all() -> None:
    w = world()
    w.ok(m.DeclareExchange(0, "", 1, "f", ExchangeType.DIRECT))
    assert w.fails(m.DeclareExchange(0, "", 1, "g", ExchangeType.DIRECT)) == "invalid-request"
    for name in ("q1", "q2"):
        w.ok(m.DeclareQueue(0, "", 1, name, "A", ()))
    assert w.fails(m.DeclareQueue(0, "", 1, "q3", "A", ())) == "invalid-request"


def test_credit_is_cut_to_the_largest() -> None:
    w = World(attrs.evolve(LIMITS, credit_envelopes=3, credit_bytes=1000), "A", "B")
    for _ in range(6):
        w.publish(w.item("A", ("B",), size=10))
    effects = w.run(m.Consume(2, "B", 1, 1, "box.B", 1 << 31, 1 << 62))
    assert [e.seq for h in effects.deliveries for e in h.entries] == [1, 2, 3]
    answer = w.ok(m.Fetch(2, "B", 1, "box.B", 1 << 31, 1 << 62))
    assert [e.seq for e in answer.entries] == [4, 5, 6]  # type: ignore[union-attr]


def test_a_direct_exchange_knows_no_patterns() -> None:
    exchange = Exchange("e", ExchangeType.DIRECT)
    assert exchange.bind("q", "a.*")
    assert exchange.route("a.*") == ("q",)
    assert exchange.route("a.b") == ()


def test_a_binding_is_made_and_removed_once() -> None:
    for kind, key in ((ExchangeType.DIRECT, "a"), (ExchangeType.TOPIC, "a.*")):
        exchange = Exchange("e", kind)
        assert [exchange.bind("q", key), exchange.bind("q", key)] == [True, False]
        assert not exchange.unbind("other", key)
        assert [exchange.unbind("q", key), exchange.unbind("q", key)] == [True, False]


def test_each_entry_expires_at_its_own_time() -> None:
    w = World(LIMITS, "A", "B")
    start = w.now
    for after in (10, 20):
        w.publish(w.item("A", ("B",), expires_at=start + after))
    for after, dead in ((15, [1]), (25, [1, 2])):
        w.now = start + after
        w.run(m.Sweep())
        assert w.store.open_dead("box.B") == dead


def test_a_new_time_to_live_counts_for_what_waits() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareQueue(2, "B", 1, "q", "", ()))
    w.ok(m.Grant(0, "", 1, "A", "publish", "q", True))
    w.publish(w.item("A", ("B",), "", "q"))
    w.ok(m.DeclareQueue(2, "B", 1, "q", "", (), ttl_s=10))
    w.now += 11_000
    w.run(m.Sweep())
    assert w.store.open_dead("q") == [1]


def test_a_page_that_arrives_after_its_queue_was_deleted_is_dropped() -> None:
    w = World(attrs.evolve(LIMITS, head_entries=2, page_entries=2), "A", "B")
    w.ok(m.DeclareQueue(2, "B", 1, "q", "", ()))
    w.ok(m.Grant(0, "", 1, "A", "publish", "q", True))
    for _ in range(6):
        w.publish(w.item("A", ("B",), "", "q"))
    w.run(m.Consume(2, "B", 1, 1, "q", 100, 1 << 30))
    late, w.pages = w.pages, []
    assert late
    w.run(m.Ack(2, "B", 1, "q", [(1, 6)]))
    w.ok(m.DeleteQueue(2, "B", 1, "q"))
    w.pages = late
    assert not w.run().deliveries


def test_a_time_to_live_is_the_same_after_a_restart() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareQueue(2, "B", 1, "q", "", (), ttl_s=10))
    w.ok(m.Grant(0, "", 1, "A", "publish", "q", True))
    w.recover()
    w.connect("A")
    w.connect("B")
    w.publish(w.item("A", ("B",), "", "q"))
    accepted = w.now
    for after, dead in ((9_999, []), (10_000, [1])):
        w.now = accepted + after - 1
        w.run(m.Sweep())
        assert w.store.open_dead("q") == dead


def test_a_queue_is_listed_with_its_limits_and_its_numbers() -> None:
    w = World(LIMITS, "A", "B", "C")
    w.ok(m.DeclareQueue(0, "", 1, "q", "B", ("C", "A"), ttl_s=10, max_length=7))
    w.ok(m.Grant(0, "", 1, "A", "publish", "q", True))
    first = w.now + 1
    for _ in range(3):
        w.publish(w.item("A", ("A", "B", "C"), "", "q"))

    def row() -> dict[str, object]:
        answer = w.ok(m.List(0, "", 1, "queues", "q", ""))
        assert isinstance(answer, m.ListedRows)
        return answer.rows[0]

    listed: dict[str, object] = {
        "name": "q",
        "owner": "B",
        "readers": ["A", "C"],
        "waiting": 3,
        "unacknowledged": 0,
        "bytes": 300,
        "consumers": 0,
        "oldest_at": first,
        "ttl_s": 10,
        "max_length": 7,
    }
    assert row() == listed
    w.run(m.Consume(2, "B", 1, 1, "q", 1, 1 << 30))
    assert row() == listed | {"waiting": 2, "unacknowledged": 1, "consumers": 1}
    w.ok(m.Ack(2, "B", 1, "q", [(1, 1)]))
    assert row() == listed | {"waiting": 2, "bytes": 200, "consumers": 1, "oldest_at": first + 1}
