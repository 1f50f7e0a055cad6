"""The next generation of an envelope: what it replaces, wherever the old one is, and what it
must not touch.
"""

from __future__ import annotations

import attrs

from cipherbox.broker import model as m
from cipherbox.broker.model import Acked, Confirmed, Done, Failed, FetchedEntries, Incoming
from cipherbox.broker.routes import RouteDetail
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, SMALL, World


def newer(item: Incoming, size: int = 150, generation: int = 1, **more: object) -> Incoming:
    fresh = item._replace(generation=generation, envelope_hash=bytes([generation]) * 32, size=size)
    return fresh._replace(**more)  # type: ignore[arg-type]


def fetched(w: World, client: str, queue: str) -> list[tuple[int, int]]:
    answer = w.ok(m.Fetch(w.connection_of[client], client, 1, queue, 100, BIG))
    assert isinstance(answer, FetchedEntries)
    return [(e.seq, e.size) for e in answer.entries]


def test_it_takes_the_place_of_one_that_waits() -> None:
    w = World(LIMITS, "A", "B")
    items = [w.item("A", ("B",)) for _ in range(3)]
    for item in items:
        w.publish(item)
    assert isinstance(w.publish(newer(items[1])), Confirmed)
    assert fetched(w, "B", "box.B") == [(1, 100), (2, 150), (3, 100)]
    assert w.broker.state.queues["box.B"].size == 350
    assert w.store.usage == {("A", "box.B"): (350, 3)}


def test_who_holds_the_old_one_gets_the_new_one_again() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    w.run(m.Consume(2, "B", 1, 1, "box.B", 100, BIG))
    effects = w.run(m.Publish(1, "A", [newer(item)]))
    assert [(e.seq, e.size, e.attempts) for h in effects.deliveries for e in h.entries] == [
        (1, 150, 2)
    ]


def test_one_that_lies_in_the_store_alone_keeps_the_sums_right() -> None:
    w = World(SMALL, "A", "B")
    items = [w.item("A", ("B",), size=10) for _ in range(8)]
    for item in items:
        w.publish(item)
    queue = w.broker.state.queues["box.B"]
    assert queue.loaded_to == 4
    assert isinstance(w.publish(newer(items[7], size=25)), Confirmed)
    assert (queue.size, queue.used) == (95, {"A": (95, 8)})
    answer = w.ok(m.Ack(2, "B", 1, "box.B", [(1, 8)]))
    assert answer == Acked(1, 8, 0)
    assert (queue.depth, queue.size, queue.used) == (0, 0, {})


def test_replaced_in_the_store_and_acknowledged_in_one_commit() -> None:
    w = World(SMALL, "A", "B")
    items = [w.item("A", ("B",), size=10) for _ in range(8)]
    for item in items:
        w.publish(item)
    w.run(m.Publish(1, "A", [newer(items[7], size=25)]), m.Ack(2, "B", 1, "box.B", [(8, 1)]))
    queue = w.broker.state.queues["box.B"]
    assert (queue.depth, queue.size, queue.used) == (7, 70, {"A": (70, 7)})


def test_acknowledged_in_the_same_commit_it_replaces_nothing() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    effects = w.run(m.Ack(2, "B", 1, "box.B", [(1, 1)]), m.Publish(1, "A", [newer(item)]))
    (answer,) = effects.answers[1]
    assert isinstance(answer, Confirmed)
    assert answer.duplicate
    assert not effects.changes.replaced


def test_acknowledged_from_the_store_in_the_same_commit_it_replaces_nothing() -> None:
    w = World(SMALL, "A", "B")
    items = [w.item("A", ("B",), size=10) for _ in range(8)]
    for item in items:
        w.publish(item)
    effects = w.run(m.Ack(2, "B", 1, "box.B", [(8, 1)]), m.Publish(1, "A", [newer(items[7])]))
    (answer,) = effects.answers[1]
    assert isinstance(answer, Confirmed)
    assert answer.duplicate
    assert w.broker.state.queues["box.B"].used == {"A": (70, 7)}


def test_a_dead_letter_waits_again_as_a_new_entry() -> None:
    """The recipient refused it because its key was gone; the sender sealed it for the new one."""
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.Ack(3, "C", 1, "box.C", [(1, 1)]))
    w.run(m.Consume(2, "B", 1, 1, "box.B", 100, BIG))
    w.ok(m.Nack(2, "B", 1, "box.B", 1, False, 4, "key missing"))
    effects = w.run(m.Publish(1, "A", [newer(item)]))
    (answer,) = effects.answers[1]
    assert isinstance(answer, Confirmed)
    assert not answer.duplicate
    assert answer.queues == ("box.B", "box.C")
    assert [
        (h.queue, e.seq, e.size, e.references) for h in effects.deliveries for e in h.entries
    ] == [("box.B", 2, 150, 2)]
    w.ok(m.Ack(2, "B", 1, "box.B", [(2, 1)]))
    assert not w.store.bodies
    again = w.publish(newer(item, generation=2))
    assert isinstance(again, Confirmed)
    assert again.duplicate  # everybody has acknowledged now


def test_refused_and_sealed_again_in_one_commit() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    assert fetched(w, "B", "box.B") == [(1, 100)]
    w.run(m.Nack(2, "B", 1, "box.B", 1, False, 4, "key missing"), m.Publish(1, "A", [newer(item)]))
    assert fetched(w, "B", "box.B") == [(2, 150)]


def test_two_generations_in_one_commit() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.run(m.Publish(1, "A", [item, newer(item), newer(item, 170, 2), newer(item, 150, 1)]))
    assert w.store.envelopes[1][2].generation == 2
    assert fetched(w, "B", "box.B") == [(1, 170)]


def test_it_never_reaches_who_is_no_recipient_of_it() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    answer = w.publish(newer(item, recipients=("B",)))
    assert isinstance(answer, Failed)
    assert answer.error.name == "route-changed"
    assert isinstance(answer.error.__cause__, RouteDetail)
    assert answer.error.__cause__.routed.queues == (("box.B", ("B",)), ("box.C", ("C",)))
    # A would never get it
    assert w.refused(newer(item, recipients=("A", "B", "C"))) == "route-changed"
    answer = w.publish(newer(item, recipients=("A", "B", "C"), partial=True))
    assert isinstance(answer, Confirmed)
    assert answer.unrouted == ("A",)


def test_without_a_revoked_recipient() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.RevokeClient(0, "", 1, "C", "stolen"))
    assert isinstance(w.publish(newer(item, recipients=("B",))), Confirmed)
    assert fetched(w, "B", "box.B") == [(1, 150)]


def test_a_dead_letter_of_who_is_no_recipient_any_more_stays_dead() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.Purge(0, "", 1, "box.C"))
    assert isinstance(w.publish(newer(item, recipients=("B",))), Confirmed)
    assert w.broker.state.queues["box.C"].depth == 0
    assert w.broker.state.queues["box.B"].depth == 1


def test_its_new_size_and_its_new_expiry_count() -> None:
    w = World(attrs.evolve(LIMITS, quota_bytes=200), "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    assert w.refused(newer(item, size=201)) == "quota-exceeded"
    over = w.now + 10
    assert isinstance(w.publish(newer(item, size=200, expires_at=over)), Confirmed)
    w.now += 20
    w.run(m.Sweep())
    assert [d.reason for d in w.store.dead] == ["expired"]


def test_the_same_bytes_again_tell_who_was_left_out() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B", "NOBODY"), partial=True)
    w.publish(item)
    answer = w.publish(item)
    assert isinstance(answer, Confirmed)
    assert (answer.duplicate, answer.unrouted) == (True, ("NOBODY",))
    assert w.ok(m.Ack(2, "B", 1, "box.B", [(1, 1)])) == Acked(1, 1, 0)
    assert w.ok(m.Nack(2, "B", 1, "box.B", 1, True, 0, "")) == Done(1, 0)


def test_one_id_has_one_text_in_every_generation() -> None:
    """Generation 0 to one recipient, generation 1 with another text to another: refused,
    wherever the first one is.
    """
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"), commitment=b"1" * 32)
    w.publish(item)
    for wrong in (b"2" * 32, b""):
        assert w.refused(newer(item, recipients=("C",), commitment=wrong)) == "commitment-changed"
    w.ok(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
    w.recover()
    for name in ("A", "B", "C"):
        w.connect(name)
    assert w.refused(newer(item, recipients=("C",), commitment=b"2" * 32)) == "commitment-changed"
    assert fetched(w, "C", "box.C") == [(1, 100)]
    assert isinstance(
        w.publish(newer(item, recipients=("B", "C"), commitment=b"1" * 32)), Confirmed
    )
    w.ok(m.Ack(3, "C", 1, "box.C", [(1, 1)]))
    assert w.refused(newer(item, generation=2, commitment=b"2" * 32)) == "commitment-changed"


def test_what_0_5_0_sealed_gets_its_commitment_with_the_next_generation() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    assert isinstance(w.publish(newer(item, commitment=b"1" * 32)), Confirmed)
    assert w.refused(newer(item, generation=2, commitment=b"2" * 32)) == "commitment-changed"
    assert isinstance(w.publish(newer(item, generation=3, commitment=b"1" * 32)), Confirmed)
