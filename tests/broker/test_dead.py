"""Queue limits, and dead letters that return or are dropped: nothing else deletes what nobody
acknowledged.
"""

from __future__ import annotations

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Acked, Done, Failed
from cipherbox.limits import LIMITS
from tests.broker.test_generations import fetched, newer
from tests.broker.world import BIG, HQ, SMALL, World

BOX = "box.B"


def refused(count: int = 1, limits: object = LIMITS) -> World:
    """``count`` envelopes from A, each refused by B."""
    w = World(limits, "A", "B")  # type: ignore[arg-type]
    for _ in range(count):
        w.publish(w.item("A", ("B",)))
    fetched(w, "B", BOX)
    for seq in range(1, count + 1):
        w.ok(m.Nack(2, "B", w.next(), BOX, seq, False, 5, "bad"))
    assert w.store.open_dead(BOX) == list(range(1, count + 1))
    return w


def settle(
    w: World, seqs: list[tuple[int, int]], *, drop: bool = False, who: tuple[int, str] = HQ
) -> m.Answer:
    return w.ask(m.RedriveOrDiscard(*who, w.next(), BOX, seqs, drop))


def test_a_dead_letter_returns_to_the_end_and_is_acknowledged_like_any_other() -> None:
    w = refused(2)
    w.publish(w.item("A", ("B",)))
    assert settle(w, [(1, 1)]) == Done(w.correlation, 1)
    assert fetched(w, "B", BOX) == [(3, 100), (4, 100)]
    assert w.broker.state.queues[BOX].used == {"A": (300, 3)}  # the other dead letter counts too
    w.recover()
    w.connect("A")
    w.connect("B")
    assert w.ok(m.Ack(2, "B", w.next(), BOX, [(1, 4)])) == Acked(w.correlation, 2, 2)
    assert w.store.bodies == {2}  # the other dead letter is kept
    assert w.store.open_dead(BOX) == [2]


def test_twice_in_one_batch_or_later_is_once() -> None:
    w = refused()
    effects = w.run(
        m.RedriveOrDiscard(*HQ, 1, BOX, [(1, 1)], False),
        m.RedriveOrDiscard(*HQ, 2, BOX, [(1, 1)], True),
    )
    assert effects.answers[0] == [Done(1, 1), Done(2, 0)]
    assert settle(w, [(1, 1)]) == Done(w.correlation, 0)
    assert fetched(w, "B", BOX) == [(2, 100)]


def test_dropping_is_an_admins_and_deletes_the_bytes_alone() -> None:
    w = refused(2)
    assert w.fails(m.RedriveOrDiscard(2, "B", w.next(), BOX, [(1, 1)], True)) == "forbidden"
    assert w.fails(m.RedriveOrDiscard(1, "A", w.next(), BOX, [(1, 1)], False)) == "not-found"
    assert w.store.bodies == {1, 2}
    assert settle(w, [(1, 9)], drop=True) == Done(w.correlation, 2)
    assert w.store.bodies == set()
    assert fetched(w, "B", BOX) == []
    assert settle(w, [(1, 9)]) == Done(w.correlation, 0)


def test_one_command_names_a_bounded_number() -> None:
    w = refused(1, attrs.evolve(LIMITS, ack_entries=3))
    assert (
        w.fails(m.RedriveOrDiscard(*HQ, w.next(), BOX, [(1, 2), (9, 2)], False))
        == "invalid-request"
    )
    assert settle(w, [(1, 2), (9, 1)]) == Done(w.correlation, 1)


def test_its_owner_may_redrive() -> None:
    w = refused()
    assert settle(w, [(1, 1)], who=(2, "B")) == Done(w.correlation, 1)
    assert fetched(w, "B", BOX) == [(2, 100)]


def test_the_next_generation_and_a_redrive_do_not_meet() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    fetched(w, "B", BOX)
    w.ok(m.Nack(2, "B", w.next(), BOX, 1, False, 5, "bad"))
    w.publish(newer(item))  # which revives it
    assert settle(w, [(1, 1)]) == Done(w.correlation, 0)
    assert fetched(w, "B", BOX) == [(2, 150)]


def test_what_would_expire_at_once_is_refused() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",), expires_at=w.now + 50))
    w.now += 100
    w.run(m.Sweep())
    assert [d.reason for d in w.store.dead] == ["expired"]
    assert w.fails(m.RedriveOrDiscard(*HQ, w.next(), BOX, [(1, 1)], False)) == "conflict"
    assert settle(w, [(1, 1)], drop=True) == Done(w.correlation, 1)


def limited(**limits: int) -> World:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareExchange(*HQ, w.next(), "x", m.ExchangeType.DIRECT))
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", (), **limits))
    w.ok(m.Bind(*HQ, w.next(), "x", "q", "k"))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "x", True))
    return w


def test_a_queue_keeps_its_newest() -> None:
    w = limited(max_length=2)
    for _ in range(5):
        w.publish(w.item("A", ("B",), "x", "k"))
    assert w.store.open_dead("q") == [1, 2, 3]
    assert w.broker.state.queues["q"].depth == 2
    w.recover()
    w.connect("A")
    w.connect("B")
    w.publish(w.item("A", ("B",), "x", "k"))
    assert w.store.open_dead("q") == [1, 2, 3, 4]
    assert fetched(w, "B", "q") == [(5, 100), (6, 100)]
    w.publish(w.item("A", ("B",), "x", "k"))  # what is out is nobody's to take
    assert w.store.waiting("q") == [5, 6]
    assert w.store.open_dead("q") == [1, 2, 3, 4, 7]


def test_a_dead_letter_that_returns_to_a_full_queue_displaces_the_oldest() -> None:
    w = limited(max_length=2)
    for _ in range(3):
        w.publish(w.item("A", ("B",), "x", "k"))
    assert (w.store.open_dead("q"), w.store.waiting("q")) == ([1], [2, 3])
    assert w.ok(m.RedriveOrDiscard(*HQ, w.next(), "q", [(1, 1)], False)) == Done(w.correlation, 1)
    assert (w.store.open_dead("q"), w.store.waiting("q")) == ([2], [3, 4])


def test_limits_may_change_and_stay_when_they_are_not_named() -> None:
    w = limited(max_length=3)
    for _ in range(3):
        w.publish(w.item("A", ("B",), "x", "k"))
    assert w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", ())) == Done(w.correlation, 0)
    assert w.store.queues["q"].max_length == 3
    assert w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", (), max_length=1)) == Done(w.correlation, 1)
    assert w.store.open_dead("q") == [1, 2]
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", (), max_length=0, ttl_s=5))
    assert (w.store.queues["q"].ttl_s, w.store.queues["q"].max_length) == (5, 0)


def test_what_waits_too_long_becomes_a_dead_letter() -> None:
    w = limited(ttl_s=10)
    w.publish(w.item("A", ("B",), "x", "k"))
    w.now += 5_000
    w.publish(w.item("A", ("B",), "x", "k"))
    w.now += 6_000
    w.run(m.Sweep())
    assert w.store.open_dead("q") == [1]
    assert "time to live" in w.store.dead[0].reason
    assert w.fails(m.RedriveOrDiscard(*HQ, w.next(), "q", [(1, 1)], False)) == "conflict"
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", (), ttl_s=0))
    assert w.ok(m.RedriveOrDiscard(*HQ, w.next(), "q", [(1, 1)], False)) == Done(w.correlation, 1)
    w.now += 100_000
    w.run(m.Sweep())
    assert fetched(w, "B", "q") == [(2, 100), (3, 100)]


def test_a_long_tail_is_not_forgotten() -> None:
    w = refused(3, SMALL)
    for _ in range(8):
        w.publish(w.item("A", ("B",), size=10))
    settle(w, [(1, 3)])
    seen = []
    while taken := fetched(w, "B", BOX):
        seen += [seq for seq, _ in taken]
        w.ok(m.Ack(2, "B", w.next(), BOX, [(seq, 1) for seq, _ in taken]))
        w.settle()
    assert sorted(seen) == list(range(4, 15))
    assert w.store.bodies == set()


def test_the_record_says_redriven_or_discarded_and_by_whom() -> None:
    w = refused(2)
    redriven = w.run(m.RedriveOrDiscard(2, "B", w.next(), BOX, [(1, 1)], False))
    discarded = w.run(m.RedriveOrDiscard(*HQ, w.next(), BOX, [(2, 1)], True))
    records = redriven.changes.closed_dead_letters + discarded.changes.closed_dead_letters
    assert [(one.seq, one.by, one.how) for one in records] == [
        (1, "B", m.REDRIVEN),
        (2, "", m.DISCARDED),
    ]
    assert [(act.by, act.what) for act in redriven.acts] == [("B", "SettleDead")]


def test_a_redriven_dead_letter_begins_with_no_deliveries() -> None:
    w = refused()
    settle(w, [(1, 1)])
    effects = w.run(m.Consume(2, "B", w.next(), 1, BOX, 9, BIG))
    assert [e.attempts for h in effects.deliveries for e in h.entries] == [1]


def test_discarding_one_of_two_copies_keeps_the_body_for_the_other() -> None:
    w = World(LIMITS, "A", "B", "C")
    w.publish(w.item("A", ("B", "C")))
    w.ok(m.Purge(*HQ, w.next(), BOX))
    effects = w.run(m.RedriveOrDiscard(*HQ, w.next(), BOX, [(1, 1)], True))
    assert (effects.changes.finished, effects.changes.released) == ([], [1])
    assert w.store.bodies == {1}
    assert fetched(w, "C", "box.C") == [(1, 100)]


def reason_at(w: World, now: int) -> str:
    """Return why a redrive at this time is refused; "" if it is not."""
    w.now = now - 1
    answer = w.ask(m.RedriveOrDiscard(*HQ, w.next(), "q", [(1, 1)], False))
    return str(answer.error).partition(": ")[2] if isinstance(answer, Failed) else ""


def dead_at_once(ttl_s: int, expires_in: int) -> tuple[World, int]:
    """A dead letter in `q`, and when it was accepted; 0: no expiry."""
    w = limited(ttl_s=ttl_s)
    accepted = w.now + 1
    w.publish(w.item("A", ("B",), "x", "k", expires_at=expires_in and accepted + expires_in))
    w.ok(m.Purge(*HQ, w.next(), "q"))
    return w, accepted


EXPIRED = "its sender's expiry has passed"
TOO_OLD = "it is older than the queue's time to live; set a longer one first"


@pytest.mark.parametrize(
    ("ttl_s", "expires_in", "after", "why"),
    [
        (0, 5_000, 4_999, ""),
        (0, 5_000, 5_000, EXPIRED),
        (10, 0, 9_999, ""),
        (10, 0, 10_000, TOO_OLD),
        (10, 50_000, 10_000, TOO_OLD),
        (10, 50_000, 50_000, EXPIRED),
    ],
)
def test_a_refused_redrive_says_which_expiry_has_passed(
    ttl_s: int, expires_in: int, after: int, why: str
) -> None:
    w, accepted = dead_at_once(ttl_s, expires_in)
    assert reason_at(w, accepted + after) == why


def test_a_range_ends_before_its_last() -> None:
    w = refused(3)
    assert settle(w, [(1, 1), (3, 1)]) == Done(w.correlation, 2)
    assert w.store.open_dead(BOX) == [2]


def test_a_redriven_dead_letter_is_delivered_to_a_waiting_consumer() -> None:
    w = refused()
    w.run(m.Consume(2, "B", w.next(), 1, BOX, 9, BIG))
    effects = w.run(m.RedriveOrDiscard(*HQ, w.next(), BOX, [(1, 1)], False))
    assert [e.seq for h in effects.deliveries for e in h.entries] == [2]


def test_discarded_twice_in_one_batch_is_once() -> None:
    w = refused(2)
    effects = w.run(*[m.RedriveOrDiscard(*HQ, n, BOX, [(1, 1)], True) for n in (1, 2)])
    assert effects.answers[0] == [Done(1, 1), Done(2, 0)]
    assert w.broker.state.queues[BOX].used == {"A": (100, 1)}


def test_each_command_of_a_batch_closes_what_it_names() -> None:
    w = refused(4)
    effects = w.run(
        m.RedriveOrDiscard(*HQ, 1, BOX, [(1, 1)], True),
        m.RedriveOrDiscard(*HQ, 2, BOX, [(2, 2)], False),
        m.RedriveOrDiscard(*HQ, 3, BOX, [(4, 1)], True),
    )
    assert effects.answers[0] == [Done(1, 1), Done(2, 2), Done(3, 1)]
    assert [(s.seq, s.how) for s in effects.changes.closed_dead_letters] == [
        (1, m.DISCARDED),
        (2, m.REDRIVEN),
        (3, m.REDRIVEN),
        (4, m.DISCARDED),
    ]
