"""What one client may have at HQ in all: bytes, envelopes and queues, refused with the number."""

from __future__ import annotations

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Confirmed, Done, Failed
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, HQ, World

LOW = attrs.evolve(LIMITS, bytes_per_client=1000, envelopes_per_client=15, quota_bytes=800)
MANY = tuple(f"C{n}" for n in range(20))


def refusal(w: World, *to: str, size: int = 100, sender: str = "A") -> str:
    answer = w.publish(w.item(sender, to, size=size))
    assert isinstance(answer, Failed)
    return str(answer.error)


def test_one_client_cannot_fill_the_disk_through_many_mailboxes() -> None:
    w = World(LOW, "A", *MANY)
    for name in MANY[:10]:
        assert isinstance(w.publish(w.item("A", (name,))), Confirmed)
    assert (
        refusal(w, MANY[10])
        == "A has 1000 bytes at HQ, in all queues and dead letters, of at most 1000"
    )
    assert isinstance(w.publish(w.item("C0", ("A",))), Confirmed)  # others go on
    w.ok(m.Ack(w.connection_of["C0"], "C0", w.next(), "box.C0", [(1, 1)]))
    assert isinstance(w.publish(w.item("A", (MANY[10],))), Confirmed)


def test_small_envelopes_are_counted_too() -> None:
    w = World(LOW, "A", *MANY)
    for name in MANY[:15]:
        assert isinstance(w.publish(w.item("A", (name,), size=1)), Confirmed)
    assert (
        refusal(w, MANY[15], size=1)
        == "A has 15 envelopes at HQ, in all queues and dead letters, of at most 15"
    )


def test_an_envelope_counts_in_each_of_its_queues_and_is_refused_whole() -> None:
    w = World(LOW, "A", *MANY)
    assert isinstance(w.publish(w.item("A", MANY[:4])), Confirmed)
    assert w.broker.state.totals.of("A") == (400, 4)
    assert "400 bytes" in refusal(w, *MANY[:7])
    assert w.broker.state.totals.of("A") == (400, 4)


def test_dead_letters_count_until_somebody_drops_them() -> None:
    """Else whoever lets its envelopes expire would have the disk for nothing."""
    w = World(LOW, "A", "B")
    for _ in range(8):
        w.publish(w.item("A", ("B",), expires_at=w.now + 10))
    w.now += 20
    w.run(m.Sweep())
    assert w.broker.state.queues["box.B"].depth == 0
    assert "A has 800 bytes in box.B" in refusal(w, "B")
    w.recover()
    w.connect("A")
    w.connect("B")
    assert "A has 800 bytes in box.B" in refusal(w, "B")
    assert w.ok(m.RedriveOrDiscard(*HQ, w.next(), "box.B", [(1, 3)], True)) == Done(
        w.correlation, 3
    )
    assert w.broker.state.totals.of("A") == (500, 5)
    assert isinstance(w.publish(w.item("A", ("B",))), Confirmed)


def test_a_recipient_costs_its_senders_what_one_queue_may_hold_and_no_more() -> None:
    """Whoever refuses everything it gets fills its own queue's share, and its sender reaches all
    others.
    """
    w = World(LOW, "A", "B", "C")
    for n in range(8):
        w.publish(w.item("A", ("B",)))
        w.ok(m.Nack(w.connection_of["B"], "B", w.next(), "box.B", n + 1, False, 5, "no"))
    assert "box.B" in refusal(w, "B")
    assert isinstance(w.publish(w.item("A", ("C",))), Confirmed)


def test_a_queue_with_dead_letters_is_not_deleted_by_its_owner() -> None:
    w = World(LOW, "A", "B")
    w.ok(m.DeclareQueue(1, "A", w.next(), "q", "", ()))
    w.publish(w.item("A", ("A",), "", "q"))
    w.ok(m.Nack(1, "A", w.next(), "q", 1, False, 5, "no"))
    assert w.fails(m.DeleteQueue(1, "A", w.next(), "q")) == "conflict"
    w.ok(m.RedriveOrDiscard(1, "A", w.next(), "q", [(1, 1)], False))
    w.ok(m.Ack(1, "A", w.next(), "q", [(2, 1)]))
    w.ok(m.DeleteQueue(1, "A", w.next(), "q"))
    assert w.broker.state.totals.of("A") == (0, 0)


def test_an_admin_gives_one_client_more_or_less() -> None:
    w = World(LOW, "A", "B", *MANY)
    assert w.fails(m.LimitClient(1, "A", w.next(), "A", "bytes", BIG)) == "forbidden"
    assert w.fails(m.LimitClient(*HQ, w.next(), "NOBODY", "bytes", 1)) == "not-found"
    assert w.fails(m.LimitClient(*HQ, w.next(), "A", "friends", 1)) == "invalid-request"
    assert w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", 2000)) == Done(w.correlation, 1)
    assert w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", 2000)) == Done(w.correlation, 0)
    for name in MANY[:12]:
        assert isinstance(w.publish(w.item("A", (name,))), Confirmed)
    w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", 0))  # what is there stays
    w.recover()
    for name in ("A", "B", *MANY):
        w.connect(name)
    assert "1200 bytes" in refusal(w, "B")
    w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", -1))
    assert "at most 1000" in refusal(w, "B")
    assert isinstance(w.publish(w.item("B", ("A",))), Confirmed)
    acts = [a.what for a in w.run(m.LimitClient(*HQ, w.next(), "A", "queues", 1)).acts]
    assert acts == ["LimitClient"]
    w.ok(m.DeclareQueue(w.connection_of["A"], "A", w.next(), "q", "", ()))
    assert (
        w.fails(m.DeclareQueue(w.connection_of["A"], "A", w.next(), "r", "", ())) == "limit-reached"
    )


@pytest.mark.parametrize("size", [50, 200])
def test_the_next_generation_counts_what_it_adds(size: int) -> None:
    w = World(LOW, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    newer = item._replace(generation=1, envelope_hash=bytes(32), size=size, correlation=w.next())
    w.run(m.Publish(1, "A", [newer]))
    assert w.broker.state.totals.of("A") == (2 * size, 2)
    huge = item._replace(
        generation=2, envelope_hash=bytes([1]) * 32, size=600, correlation=w.next()
    )
    (answer,) = w.run(m.Publish(1, "A", [huge])).answers[1]
    assert isinstance(answer, Failed)
    assert "at most 1000" in str(answer.error)


def test_asking_for_dead_letters_that_are_not_there_leaves_no_line_in_the_log() -> None:
    w = World(LOW, "A", "B")
    effects = w.run(
        m.RedriveOrDiscard(2, "B", w.next(), "box.B", [(n, 1) for n in range(1, 400)], False)
    )
    assert effects.acts == []
    assert not effects.changes


def test_one_reader_leaves_the_others_places_at_a_shared_queue() -> None:
    w = World(attrs.evolve(LIMITS, consumers_per_queue=8), "A", "B")
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "A", ("B",)))
    for tag in (1, 2):
        w.ok(m.Consume(1, "A", w.next(), tag, "q", 1, BIG))
    assert w.fails(m.Consume(1, "A", w.next(), 3, "q", 1, BIG)) == "invalid-request"
    w.ok(m.Consume(2, "B", w.next(), 1, "q", 1, BIG))


def test_the_largest_are_sorted_by_bytes_and_then_by_name() -> None:
    w = World(LIMITS, "A", "B", "C", "D")
    for sender, sizes in (("A", [100]), ("B", [200]), ("C", [100]), ("D", [30, 30])):
        for size in sizes:
            w.publish(w.item(sender, ("B",), size=size))
    largest = [("B", (200, 1)), ("C", (100, 1)), ("A", (100, 1)), ("D", (60, 2))]
    assert w.broker.state.totals.largest(9) == largest
    assert w.broker.state.totals.largest(2) == largest[:2]


def test_a_limit_of_zero_is_a_limit_and_one_that_is_not_set_is_not_removed() -> None:
    w = World(LOW, "A", "B")
    assert w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", -1)) == Done(w.correlation, 0)
    assert w.ok(m.LimitClient(*HQ, w.next(), "A", "bytes", 0)) == Done(w.correlation, 1)
    assert "at most 0" in refusal(w, "B", size=1)
