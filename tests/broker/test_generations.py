"""The next generation of an envelope: what it replaces, wherever the old one is, and what it
must not touch.
"""

from __future__ import annotations

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Acked, Confirmed, Done, Failed, FetchedEntries, Incoming
from cipherbox.broker.routes import RouteDetail
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, SMALL, World, bound, labs


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


def dead_with_another(w: World, *items: Incoming) -> None:
    """Publish these, dead-letter them in every mailbox, and add an entry that waits in each."""
    for item in items:
        w.publish(item)
    boxes = [f"box.{name}" for name in items[0].recipients]
    for box in boxes:
        w.ok(m.Purge(0, "", w.next(), box))
    w.publish(w.item("A", items[0].recipients))


def test_a_dead_letter_is_counted_once_when_it_is_enqueued_again() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    dead_with_another(w, item)
    assert isinstance(w.publish(newer(item)), Confirmed)
    assert w.store.usage == {("A", "box.B"): (250, 2)}
    w.recover()
    assert w.broker.state.totals.of("A") == (250, 2)


def test_a_discarded_dead_letter_is_counted_from_zero() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    dead_with_another(w, item)
    w.ok(m.RedriveOrDiscard(0, "", 1, "box.B", [(1, 1)], True))
    assert isinstance(w.publish(newer(item)), Confirmed)
    assert w.store.usage == {("A", "box.B"): (250, 2)}


def test_discarded_in_the_same_commit_it_is_counted_from_zero_there_alone() -> None:
    w = World(LIMITS, "A", "B", "C")
    item, other = w.item("A", ("B", "C")), w.item("A", ("B", "C"))
    dead_with_another(w, item, other)
    w.run(
        m.RedriveOrDiscard(0, "", 1, "box.B", [(1, 1)], True),
        m.RedriveOrDiscard(0, "", 1, "box.C", [(2, 1)], True),
        m.Publish(1, "A", [newer(item)]),
    )
    # B: item (new), other (dead), one that waits; C: the same without `other`
    assert w.store.usage == {("A", "box.B"): (350, 3), ("A", "box.C"): (250, 2)}


def test_an_envelope_whose_queue_was_deleted_is_replaced_in_the_others() -> None:
    w = labs()
    item = w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.dat")
    w.publish(item)
    c = w.connection_of["CA-RC"]
    effects = w.run(
        m.Ack(c, "CA-RC", 1, "ca_rc_queue", [(1, 1)]),
        m.DeleteQueue(c, "CA-RC", 2, "ca_rc_queue"),
        m.Publish(1, "FL-LAB", [newer(item, partial=True)]),
    )
    assert effects.answers[c] == [Acked(1, 1, 0), Done(2, 1)]
    again = newer(item, 170, 2, partial=True)
    (answer,) = w.run(m.Publish(1, "FL-LAB", [again])).answers[1]
    assert isinstance(answer, Confirmed)
    assert not answer.duplicate
    assert fetched(w, "NY-RC", "ny_rc_queue") == [(1, 170)]


def test_the_whole_of_what_it_adds_is_checked_against_the_senders_limit() -> None:
    """B's copy grows by 50 bytes; C's was discarded, so all 150 bytes are added there."""
    for most, fits in ((300, True), (299, False)):
        w = World(attrs.evolve(LIMITS, bytes_per_client=most), "A", "B", "C")
        item = w.item("A", ("B", "C"))
        w.publish(item)
        w.ok(m.Purge(0, "", 1, "box.C"))
        w.ok(m.RedriveOrDiscard(0, "", 1, "box.C", [(1, 1)], True))
        assert isinstance(w.publish(newer(item)), Confirmed) is fits
        assert w.broker.state.totals.of("A") == ((300, 2) if fits else (100, 1))


def test_a_generation_published_twice_in_one_commit_is_a_duplicate() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    effects = w.run(m.Publish(1, "A", [item, newer(item), newer(item)]))
    assert [a.duplicate for a in effects.answers[1]] == [False, False, True]  # type: ignore[union-attr]
    assert effects.accepted[1] == [item, newer(item)]
    assert effects.changes.noted == 1


def test_a_commitment_binds_the_next_generation_in_the_same_commit() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    first, second = (newer(item, 150, n, commitment=bytes([n]) * 32) for n in (1, 2))
    effects = w.run(m.Publish(1, "A", [item, first, second]))
    failed = effects.answers[1][-1]
    assert isinstance(failed, Failed)
    assert failed.error.name == "commitment-changed"


def test_a_dead_letter_enqueued_again_is_replaced_in_the_same_commit() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    dead_with_another(w, item)
    w.run(m.Publish(1, "A", [newer(item), newer(item, 170, 2)]))
    assert fetched(w, "B", "box.B") == [(2, 100), (3, 170)]
    assert w.store.usage == {("A", "box.B"): (270, 2)}


def test_a_dead_letter_left_aside_is_counted_with_each_generation_in_one_commit() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.Purge(0, "", 1, "box.C"))
    w.run(m.Publish(1, "A", [newer(item, 150 + n, n, recipients=("B",)) for n in (1, 2)]))
    assert w.store.usage == {("A", "box.B"): (152, 1), ("A", "box.C"): (152, 1)}
    w.run(m.Publish(1, "A", [newer(item, 170, 3, recipients=("B",)), newer(item, 180, 4)]))
    assert w.store.usage == {("A", "box.B"): (180, 1), ("A", "box.C"): (180, 1)}
    assert fetched(w, "C", "box.C") == [(2, 180)]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("drop", [False, True])
def test_a_dead_letter_closed_and_replaced_in_one_commit_becomes_one_entry(
    order: int, drop: bool
) -> None:
    """Two entries would be acknowledged twice, and C's copy would lose its body."""
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.Purge(0, "", 1, "box.B"))
    close = m.RedriveOrDiscard(0, "", 1, "box.B", [(1, 1)], drop)
    effects = w.run(*[close, m.Publish(1, "A", [newer(item)])][::order])
    assert effects.answers[0] == [Done(1, 1 if order == 1 else 0)]
    assert fetched(w, "B", "box.B") == [(2, 150)]
    w.ok(m.Ack(2, "B", 1, "box.B", [(2, 1)]))
    assert w.store.usage == {("A", "box.C"): (150, 1)}


def test_a_redriven_entry_acknowledged_in_the_same_commit_is_not_replaced() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    w.ok(m.Purge(0, "", 1, "box.B"))
    effects = w.run(
        m.RedriveOrDiscard(0, "", 1, "box.B", [(1, 1)], False),
        m.Fetch(2, "B", 1, "box.B", 1, BIG),
        m.Ack(2, "B", 2, "box.B", [(2, 1)]),
        m.Publish(1, "A", [newer(item)]),
    )
    (answer,) = effects.answers[1]
    assert isinstance(answer, Confirmed)
    assert answer.duplicate


def test_refused_and_replaced_without_the_recipient_and_then_with_it_in_one_commit() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    assert fetched(w, "C", "box.C") == [(1, 100)]
    w.run(
        m.Nack(3, "C", 1, "box.C", 1, False, 4, "key missing"),
        m.Publish(1, "A", [newer(item, recipients=("B",)), newer(item, 170, 2)]),
    )
    assert fetched(w, "C", "box.C") == [(2, 170)]
    assert w.store.usage == {("A", "box.B"): (170, 1), ("A", "box.C"): (170, 1)}


@pytest.mark.parametrize("drop", [False, True])
def test_a_dead_letter_left_aside_is_closed_with_its_new_size_in_the_same_commit(
    drop: bool,
) -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    dead_with_another(w, item)
    w.run(
        m.Publish(1, "A", [newer(item, recipients=("B",))]),
        m.RedriveOrDiscard(0, "", 1, "box.C", [(1, 1)], drop),
    )
    assert fetched(w, "C", "box.C") == [(2, 100), *([] if drop else [(3, 150)])]
    assert w.broker.state.totals.of("A") == ((350, 3) if drop else (500, 4))


def test_discarded_replaced_and_displaced_in_one_commit_it_is_kept() -> None:
    w = bound()
    w.ok(m.DeclareQueue(0, "", 1, "q", "B", (), max_length=1))
    items = [w.item("A", ("B",), "e", "k") for _ in range(3)]
    w.publish(items[0])
    w.ok(m.Purge(0, "", 1, "q"))
    w.run(
        m.RedriveOrDiscard(0, "", 1, "q", [(1, 1)], True),
        m.Publish(1, "A", [newer(items[0]), items[1], newer(items[0], 170, 2)]),
    )
    assert w.store.usage == {("A", "q"): (270, 2)}


def test_a_dead_letter_left_aside_is_redriven_with_its_new_expiry_in_the_same_commit() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    dead_with_another(w, item)
    w.run(
        m.Publish(1, "A", [newer(item, recipients=("B",), expires_at=w.now + 50)]),
        m.RedriveOrDiscard(0, "", 1, "box.C", [(1, 1)], False),
    )
    w.now += 100
    w.run(m.Sweep())
    assert [d.seq for d in w.store.dead if d.queue == "box.C" and d.reason == "expired"] == [3]


def test_a_discarded_dead_letter_left_aside_stays_uncounted() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    dead_with_another(w, item)
    w.ok(m.RedriveOrDiscard(0, "", 1, "box.C", [(1, 1)], True))
    w.run(m.Publish(1, "A", [newer(item, 150, n, recipients=("B",)) for n in (1, 2)]))
    assert w.store.usage == {("A", "box.B"): (250, 2), ("A", "box.C"): (100, 1)}
    w.run(m.Publish(1, "A", [newer(item, 150, 3, recipients=("B",)), newer(item, 160, 4)]))
    assert w.store.usage == {("A", "box.B"): (260, 2), ("A", "box.C"): (260, 2)}


def test_a_discarded_copy_needs_room_for_all_of_its_bytes() -> None:
    for quota, fits in ((250, True), (249, False)):
        w = World(attrs.evolve(LIMITS, quota_bytes=quota), "A", "B")
        item = w.item("A", ("B",))
        dead_with_another(w, item)
        w.ok(m.RedriveOrDiscard(0, "", 1, "box.B", [(1, 1)], True))
        assert isinstance(w.publish(newer(item)), Confirmed) is fits


def test_a_dead_letter_that_is_kept_needs_room_for_its_growth_alone() -> None:
    w = World(attrs.evolve(LIMITS, bytes_per_client=250, envelopes_per_client=2), "A", "B")
    item = w.item("A", ("B",))
    dead_with_another(w, item)
    assert isinstance(w.publish(newer(item)), Confirmed)


def test_a_dead_letter_whose_queue_was_deleted_is_passed_over() -> None:
    w = labs()
    item = w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.dat")
    w.publish(item)
    w.ok(m.Purge(0, "", 1, "ca_rc_queue"))
    effects = w.run(
        m.DeleteQueue(0, "", 1, "ca_rc_queue"),
        m.Publish(1, "FL-LAB", [newer(item, recipients=("NY-RC",))]),
    )
    assert effects.answers[0] == [Done(1, 1)]
    assert fetched(w, "NY-RC", "ny_rc_queue") == [(1, 150)]


def test_acknowledged_while_another_dies_in_one_commit_it_is_not_taken_for_dead() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    w.publish(w.item("A", ("B",)))
    fetched(w, "B", "box.B")
    effects = w.run(
        m.Ack(2, "B", 1, "box.B", [(1, 1)]),
        m.Nack(2, "B", 2, "box.B", 2, False, 5, "bad"),
        m.Publish(1, "A", [newer(item)]),
    )
    (answer,) = effects.answers[1]
    assert isinstance(answer, Confirmed)
    assert answer.duplicate


def test_every_confirm_is_listed_for_its_proof() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    effects = w.run(m.Publish(1, "A", [item, item, newer(item), item]))
    assert effects.confirmed[1] == [item, item, newer(item)]
    assert isinstance(effects.answers[1][-1], Failed)


def test_all_unrouted_recipients_are_named_for_a_partial_publish_alone() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    w.ok(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
    for partial, unrouted in ((True, ("X",)), (False, ())):
        answer = w.publish(item._replace(recipients=("B", "C", "X"), partial=partial))
        assert isinstance(answer, Confirmed)
        assert answer.unrouted == unrouted
