"""Topology that changes and is used in one commit, and what was remembered of it is forgotten in
time.
"""

from __future__ import annotations

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Acked, Confirmed, Done, ExchangeType
from cipherbox.broker.routes import CACHED_RECIPIENTS
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, HQ, World, bound


def test_unbound_and_bound_again() -> None:
    w = bound()
    effects = w.run(m.Unbind(*HQ, 1, "e", "q", "k"), m.Bind(*HQ, 2, "e", "q", "k"))
    assert not effects.changes.bindings
    assert not effects.changes.dropped_bindings
    assert w.store.bindings == {("e", "q", "k")}


def test_bound_and_unbound() -> None:
    w = bound()
    effects = w.run(m.Bind(*HQ, 1, "e", "q", "new"), m.Unbind(*HQ, 2, "e", "q", "new"))
    assert not effects.changes.bindings
    assert not effects.changes.dropped_bindings
    assert w.store.bindings == {("e", "q", "k")}


def test_a_right_taken_and_given_again() -> None:
    w = bound()
    w.run(m.Grant(*HQ, 1, "A", "publish", "e", False), m.Grant(*HQ, 2, "A", "publish", "e", True))
    assert w.store.grants == {("A", "publish", "e")}


def test_an_exchange_deleted_and_declared_again_has_neither_bindings_nor_grants() -> None:
    w = bound()
    w.run(m.DeleteExchange(*HQ, 1, "e"), m.DeclareExchange(*HQ, 2, "e", ExchangeType.FANOUT))
    assert (w.store.exchanges, w.store.bindings, w.store.grants) == ({"e": 1}, set(), set())
    assert w.refused(w.item("A", ("B",), "e", "k")) == "forbidden"
    declare = m.DeclareExchange(*HQ, 2, "e", ExchangeType.TOPIC)
    w.run(m.DeleteExchange(*HQ, 1, "e"), declare, m.DeleteExchange(*HQ, 3, "e"))
    assert not w.store.exchanges


def test_grants_stay_while_something_of_that_name_does() -> None:
    w = bound()
    w.ok(m.DeclareExchange(*HQ, 1, "q", ExchangeType.DIRECT))
    w.ok(m.Grant(*HQ, 1, "A", "publish", "q", True))
    w.ok(m.DeleteExchange(*HQ, 1, "q"))
    assert isinstance(w.publish(w.item("A", ("B",), "", "q")), Confirmed)


def test_acknowledged_to_the_end_deleted_and_declared_again() -> None:
    """An old ack that is repeated late must not meet an envelope of the new queue."""
    w = bound()
    for _ in range(3):
        w.publish(w.item("A", ("B",), "e", "k"))
    ack = m.Ack(2, "B", 1, "q", [(1, 3)])
    effects = w.run(ack, m.DeleteQueue(2, "B", 2, "q"), m.DeclareQueue(2, "B", 3, "q", "", ()))
    assert effects.answers[2] == [Acked(1, 3, 0), Done(2, 1), Done(3, 1)]
    w.ok(m.Bind(*HQ, 1, "e", "q", "k"))
    w.publish(w.item("A", ("B",), "e", "k"))
    assert w.ok(ack) == Acked(1, 0, 3)
    assert w.broker.state.queues["q"].depth == 1


def test_numbers_of_a_deleted_queue_are_not_used_after_a_restart() -> None:
    w = bound()
    w.publish(w.item("A", ("B",), "e", "k"))
    w.run(m.Ack(2, "B", 1, "q", [(1, 1)]), m.DeleteQueue(2, "B", 2, "q"))
    w.recover()
    w.ok(m.DeclareQueue(*HQ, 1, "q", "B", ()))
    assert w.broker.state.queues["q"].next == 2


def test_a_deleted_queue_ends_its_consumers() -> None:
    w = bound()
    w.ok(m.Consume(2, "B", 1, 1, "q", 5, BIG))
    w.run(m.DeleteQueue(2, "B", 1, "q"), m.Credit(2, 1, 1, 1))
    assert w.fails(m.Cancel(2, "B", 1, 1)) == "invalid-request"
    w.run(m.Disconnect(2))
    assert not w.broker.state.tags


# -- what was remembered is forgotten in time ------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "then"),
    [
        (m.Grant(*HQ, 1, "A", "publish", "e", False), "forbidden"),
        (m.Unbind(*HQ, 1, "e", "q", "k"), "no-route"),
        (m.DeleteExchange(*HQ, 1, "e"), "not-found"),
        (m.Grant(*HQ, 1, "A", "read", "q", True), "route-changed"),
        (m.RevokeClient(*HQ, 1, "B", ""), "no-route"),
        (m.Bind(*HQ, 1, "e", "box.A", "k"), "route-changed"),
        (m.RevokeClient(*HQ, 1, "A", ""), "revoked"),
    ],
)
def test_the_next_publish_feels_every_change_of_the_route(change: m.AnyCommand, then: str) -> None:
    w = bound()
    assert isinstance(w.publish(w.item("A", ("B",), "e", "k")), Confirmed)
    w.ok(change)
    assert w.refused(w.item("A", ("B",), "e", "k")) == then


def test_a_deleted_queue_takes_nothing_more() -> None:
    w = bound()
    w.ok(m.Grant(*HQ, 1, "A", "publish", "q", True))
    w.publish(w.item("A", ("B",), "", "q"))
    w.run(m.Ack(2, "B", 1, "q", [(1, 1)]), m.DeleteQueue(2, "B", 1, "q"))
    assert w.refused(w.item("A", ("B",), "", "q")) == "not-found"
    w.ok(m.DeclareQueue(*HQ, 1, "q", "B", ()))
    assert w.refused(w.item("A", ("B",), "", "q")) == "not-found"  # the right ended with the queue


def test_the_most_recipients() -> None:
    clients = [f"C{i:03}" for i in range(LIMITS.recipients)]
    w = World(LIMITS, *clients)
    for _ in range(2):
        answer = w.publish(w.item("C000", tuple(clients)))
        assert isinstance(answer, Confirmed)
        assert len(answer.queues) == LIMITS.recipients
    assert all(len(key[3]) <= CACHED_RECIPIENTS for key in w.broker.state.targets)
