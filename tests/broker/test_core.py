"""Each rule of the core, asked directly."""

from __future__ import annotations

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.exchanges import topic_matches
from cipherbox.broker.model import Acked, Confirmed, ExchangeType, Failed, FetchedEntries, Routed
from cipherbox.broker.routes import RouteDetail
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, HQ, SMALL, START, World, consumer, labs, seqs

# -- routing ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "key", "takes"),
    [
        ("*", "", False),
        ("#.*", "", False),
        ("a.", "a", False),
        ("*.", "a.", True),
        ("a.*", "a.", True),
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("*", "a", True),
        ("*", "a.b", False),
        ("a.*", "a", False),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("a.#", "a", True),
        ("a.#", "a.b.c", True),
        ("#.c", "c", True),
        ("#.c", "a.b.c", True),
        ("a.#.c", "a.c", True),
        ("a.#.c", "a.b.b.c", True),
        ("a.#.c", "a.b", False),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("#.#", "a", True),
        ("", "", True),
        ("*.b.*", "a.b.c", True),
    ],
)
def test_topic_patterns(pattern: str, key: str, takes: bool) -> None:
    assert topic_matches(pattern, key) is takes


def test_a_hostile_pattern_takes_no_time() -> None:
    assert not topic_matches("#.a." * 30 + "b", "a." * 60 + "c")


def test_resolve_names_queues_and_readers_and_publish_reaches_each_once() -> None:
    w = labs()
    c = w.connection_of["FL-LAB"]
    route = w.ok(m.Resolve(c, "FL-LAB", w.next(), "labs", "fl.dat"))
    assert isinstance(route, Routed)
    assert route.queues == (("ca_rc_queue", ("CA-RC",)), ("ny_rc_queue", ("NY-RC",)))
    answer = w.publish(w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.dat"))
    assert isinstance(answer, Confirmed)
    assert answer.queues == ("ca_rc_queue", "ny_rc_queue")
    assert w.store.pending == {1: 2}


def test_an_envelope_goes_only_where_every_reader_can_open_it() -> None:
    w = labs()
    answer = w.publish(w.item("FL-LAB", ("CA-RC",), "labs", "fl.dat"))
    assert isinstance(answer, Failed)
    assert answer.error.name == "route-changed"
    assert isinstance(answer.error.__cause__, RouteDetail)
    assert answer.error.__cause__.routed.queues[0] == ("ca_rc_queue", ("CA-RC",))
    assert (
        w.refused(w.item("FL-LAB", ("CA-RC", "NY-RC", "FL-LAB"), "labs", "fl.dat"))
        == "route-changed"
    )
    assert not w.store.envelopes


def test_a_reader_added_since_the_route_was_resolved_stops_the_publish() -> None:
    w = labs("SF-RC")
    w.ok(m.Grant(*HQ, w.next(), "SF-RC", "read", "ca_rc_queue", True))
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "labs", "pa.dat")) == "route-changed"
    assert isinstance(w.publish(w.item("FL-LAB", ("CA-RC", "SF-RC"), "labs", "pa.dat")), Confirmed)


def test_overlapping_queues() -> None:
    w = labs()
    w.ok(m.DeclareQueue(*HQ, w.next(), "both", "CA-RC", ("NY-RC",)))
    w.ok(m.Bind(*HQ, w.next(), "labs", "both", "fl.rpt"))
    w.ok(m.DeclareQueue(*HQ, w.next(), "also", "NY-RC", ()))
    w.ok(m.Bind(*HQ, w.next(), "labs", "also", "fl.rpt"))
    assert w.refused(w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.rpt")) == "ambiguous-route"
    w.ok(m.Unbind(*HQ, w.next(), "labs", "also", "fl.rpt"))
    answer = w.publish(w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.rpt"))
    assert isinstance(answer, Confirmed)
    assert answer.queues == ("both",)  # ny_rc_queue's only reader is reached already


def test_direct_and_fanout() -> None:
    w = World(LIMITS, "A", "B", "C")
    for name, kind in (("d", ExchangeType.DIRECT), ("f", ExchangeType.FANOUT)):
        w.ok(m.DeclareExchange(*HQ, w.next(), name, kind))
        w.ok(m.Grant(*HQ, w.next(), "*", "publish", name, True))
        for client in ("B", "C"):
            w.ok(m.Bind(*HQ, w.next(), name, f"box.{client}", f"to.{client}"))
    answer = w.publish(w.item("A", ("B",), "d", "to.B"))
    assert isinstance(answer, Confirmed)
    assert answer.queues == ("box.B",)
    answer = w.publish(w.item("A", ("B", "C"), "f", "whatever"))
    assert isinstance(answer, Confirmed)
    assert answer.queues == ("box.B", "box.C")
    assert w.refused(w.item("A", ("B",), "d", "to.D")) == "no-route"


def test_mailboxes_need_no_right_and_all_or_nothing_unless_partial() -> None:
    w = World(LIMITS, "A", "B")
    for suffix in ("", ".bulk", ".sys"):
        answer = w.publish(w.item("A", ("B",), "", suffix))
        assert isinstance(answer, Confirmed)
        assert answer.queues == (f"box.B{suffix}",)
    answer = w.publish(w.item("A", ("B", "NOBODY")))
    assert isinstance(answer, Failed)
    assert answer.error.name == "unknown-recipient"
    assert answer.error.detail == b"\x00\x00\x00\x01\x06NOBODY"
    assert len(w.store.envelopes) == 3
    answer = w.publish(w.item("A", ("B", "NOBODY"), partial=True))
    assert isinstance(answer, Confirmed)
    assert (answer.queues, answer.unrouted) == (("box.B",), ("NOBODY",))
    assert w.refused(w.item("A", ("NOBODY",), partial=True)) == "unknown-recipient"


def test_unknown_and_forbidden_exchanges_and_queues() -> None:
    w = labs()
    assert w.refused(w.item("CA-RC", ("NY-RC",), "labs", "x")) == "forbidden"
    assert w.refused(w.item("FL-LAB", ("NY-RC",), "none", "x")) == "not-found"
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "", "ca_rc_queue")) == "not-found"
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "", "missing")) == "not-found"
    w.ok(m.Grant(*HQ, w.next(), "FL-LAB", "publish", "ca_rc_queue", True))
    assert isinstance(w.publish(w.item("FL-LAB", ("CA-RC",), "", "ca_rc_queue")), Confirmed)


# -- ids -------------------------------------------------------------------------------------------


def test_the_same_bytes_again_are_confirmed_and_stored_once_in_one_batch_and_after_a_restart() -> (
    None
):
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    effects = w.run(m.Publish(1, "A", [item, item]))
    assert [a.duplicate for a in effects.answers[1]] == [False, True]  # type: ignore[union-attr]
    w.recover()
    w.connect("A")
    answer = w.publish(item)
    assert isinstance(answer, Confirmed)
    assert answer.duplicate
    assert answer.queues == ("box.B",)
    assert len(w.store.entries) == 1


def test_the_same_bytes_again_after_the_ack_are_never_delivered_again() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    consumer(w, "B", "box.B")
    w.ok(m.Ack(2, "B", w.next(), "box.B", [(1, 1)]))
    answer = w.publish(item)
    assert isinstance(answer, Confirmed)
    assert answer.duplicate
    assert w.broker.state.queues["box.B"].depth == 0


def test_an_id_with_other_bytes_is_refused_and_anothers_id_is_free() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    assert w.refused(item._replace(envelope_hash=b"x" * 32)) == "id-reused"
    assert w.refused(item._replace(envelope_hash=b"x" * 32, generation=0)) == "id-reused"
    assert isinstance(
        w.publish(item._replace(sender="B", recipients=("A",), envelope_hash=b"x" * 32)), Confirmed
    )


def test_a_higher_generation_replaces_what_waits_and_nothing_that_was_acknowledged() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    consumer(w, "C", "box.C")
    w.ok(m.Ack(3, "C", w.next(), "box.C", [(1, 1)]))
    newer = item._replace(envelope_hash=b"n" * 32, generation=1, size=150)
    answer = w.publish(newer)
    assert isinstance(answer, Confirmed)
    assert not answer.duplicate
    assert w.store.envelopes[1][2].generation == 1
    assert w.broker.state.queues["box.B"].size == 150
    assert w.broker.state.queues["box.C"].depth == 0
    again = w.publish(newer)
    assert isinstance(again, Confirmed)
    assert again.duplicate
    assert w.refused(item._replace(envelope_hash=b"o" * 32)) == "id-reused"
    assert seqs(consumer(w, "B", "box.B")) == [1]


def test_times() -> None:
    w = World(LIMITS, "A", "B")
    w.broker.state.watermark = START - 1000
    old = (START - 1001 << 80 | 7 << 76 | 2 << 62).to_bytes(16, "big")
    ahead = (START + LIMITS.clock_ahead_ms + 1000 << 80 | 7 << 76 | 2 << 62).to_bytes(16, "big")
    assert w.refused(w.item("A", ("B",), envelope_id=old)) == "too-old"
    assert w.refused(w.item("A", ("B",), envelope_id=ahead)) == "clock-skew"
    last = w.now + 1 + LIMITS.clock_ahead_ms
    for time, refusal in ((START - 1000, ""), (last, ""), (last + 1, "clock-skew")):
        for rest in (1, (1 << 80) - 1):
            answer = w.publish(
                w.item("A", ("B",), envelope_id=(time << 80 | rest).to_bytes(16, "big"))
            )
            assert refusal == (answer.error.name if isinstance(answer, Failed) else "")
            w.now -= 1
    assert w.refused(w.item("A", ("B",), expires_at=START)) == "invalid-request"
    assert isinstance(w.publish(w.item("A", ("B",))), Confirmed)


def test_quota_counts_what_waits() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(2):
        w.publish(w.item("A", ("B",), size=1000))
    assert w.refused(w.item("A", ("B",), size=1)) == "quota-exceeded"
    assert isinstance(w.publish(w.item("B", ("B",), size=1)), Confirmed)
    consumer(w, "B", "box.B")
    w.ok(m.Ack(2, "B", w.next(), "box.B", [(1, 1)]))
    assert isinstance(w.publish(w.item("A", ("B",), size=1000)), Confirmed)


# -- delivery --------------------------------------------------------------------------------------


def test_credit_in_envelopes_and_bytes() -> None:
    w = World(LIMITS, "A", "B")
    for _ in range(6):
        w.publish(w.item("A", ("B",)))
    assert seqs(consumer(w, "B", "box.B", envelopes=2)) == [1, 2]
    assert seqs(w.run(m.Credit(2, 1, 1, BIG))) == [3]
    assert seqs(w.run(m.Credit(2, 7, 9, 9))) == []  # a tag that is gone
    w.ok(m.Cancel(2, "B", w.next(), 1))
    effects = consumer(w, "B", "box.B", envelopes=100, size=150)
    assert seqs(effects) == [1, 2]  # the second passes the bytes, as one may
    assert [e.attempts for h in effects.deliveries for e in h.entries] == [2, 2]


def test_consumers_take_turns_and_what_returns_goes_to_the_front_in_order() -> None:
    w = World(LIMITS, "A", "B", "C")
    w.ok(m.DeclareExchange(*HQ, w.next(), "e", ExchangeType.DIRECT))
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "", ("B", "C")))
    w.ok(m.Bind(*HQ, w.next(), "e", "q", "k"))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "e", True))
    consumer(w, "B", "q")
    consumer(w, "C", "q", tag=5)
    items = [w.item("A", ("B", "C"), exchange="e", key="k") for _ in range(4)]
    effects = w.run(m.Publish(1, "A", items))
    assert {h.connection: [e.seq for e in h.entries] for h in effects.deliveries} == {
        2: [1, 3],
        3: [2, 4],
    }
    assert [e.delivered_at > 0 for e in effects.changes.entries] == [True] * 4
    effects = w.run(m.Disconnect(2))
    assert [(h.connection, [e.seq for e in h.entries]) for h in effects.deliveries] == [(3, [1, 3])]
    w.run(m.Disconnect(3))
    w.connect("B")
    assert seqs(consumer(w, "B", "q")) == [1, 2, 3, 4]


@pytest.mark.parametrize("new", ["consumer", "fetch"])
@pytest.mark.parametrize("old", ["consumer", "fetch"])
@pytest.mark.parametrize("suffix", ["", ".bulk"])
def test_a_clients_new_connection_takes_over_what_a_dead_one_has(
    suffix: str, old: str, new: str
) -> None:
    """So what arrives meanwhile does not overtake it."""
    w = World(LIMITS, "A", "B")
    queue = f"box.B{suffix}"
    for _ in range(2):
        w.publish(w.item("A", ("B",), key=suffix))
    if old == "consumer":
        assert seqs(consumer(w, "B", queue)) == [1, 2]
    else:
        w.ok(m.Fetch(2, "B", w.next(), queue, 2, BIG))
    again = w.connect("B")
    w.publish(w.item("A", ("B",), key=suffix))
    if new == "consumer":
        assert seqs(consumer(w, "B", queue)) == [1, 2, 3]
    else:
        assert [e.seq for e in w.ok(m.Fetch(again, "B", w.next(), queue, 9, BIG)).entries] == [
            1,
            2,
            3,
        ]
    w.run(m.Disconnect(2))  # HQ notices
    assert sorted(w.broker.state.queues[queue].unacknowledged) == [1, 2, 3]


def test_an_older_connection_waits_until_the_newer_one_ends() -> None:
    w = World(LIMITS, "A", "B")
    consumer(w, "B", "box.B")
    again = w.connect("B")
    consumer(w, "B", "box.B")
    w.run(m.Consume(2, "B", w.next(), 7, "box.B", 9, BIG))  # it was late
    effects = w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(2)]))
    assert [h.connection for h in effects.deliveries] == [again]
    effects = w.run(m.Disconnect(again))
    assert {h.connection for h in effects.deliveries} == {2}
    assert sorted(seqs(effects)) == [1, 2]


def test_a_refused_consume_takes_nothing_over() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",)))
    consumer(w, "B", "box.B")
    again = w.connect("B")
    assert w.fails(m.Consume(again, "B", w.next(), 0, "box.B", 9, BIG)) == "conflict"
    w.publish(w.item("A", ("B",)))
    taken = w.broker.state.queues["box.B"].unacknowledged
    assert {seq: (out.connection, out.entry.attempts) for seq, out in taken.items()} == {
        1: (2, 1),
        2: (2, 1),
    }


def test_all_programs_of_a_client_read_its_receipts() -> None:
    w = World(LIMITS, "A", "B")
    consumer(w, "B", "box.B.sys")
    again = w.connect("B")
    consumer(w, "B", "box.B.sys")
    effects = w.run(m.Publish(1, "A", [w.item("A", ("B",), key=".sys") for _ in range(2)]))
    assert sorted(h.connection for h in effects.deliveries) == [2, again]


def test_acks_one_many_twice_unknown_and_from_another_connection() -> None:
    w = World(LIMITS, "A", "B")
    for _ in range(5):
        w.publish(w.item("A", ("B",)))
    consumer(w, "B", "box.B", envelopes=3)
    answer = w.ok(m.Ack(2, "B", w.next(), "box.B", [(1, 1), (3, 2), (50, 2)]))
    assert answer == Acked(answer.correlation, 3, 2)
    answer = w.ok(m.Ack(2, "B", w.next(), "box.B", [(1, 1)]))
    assert answer == Acked(answer.correlation, 0, 1)
    w.recover()
    w.connect("B")
    answer = w.ok(m.Ack(w.connection_of["B"], "B", w.next(), "box.B", [(2, 1)]))
    assert answer == Acked(answer.correlation, 1, 0)
    assert w.store.waiting("box.B") == [5]
    assert w.store.bodies == {5}


def test_an_ack_of_what_lies_in_the_store_only() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(12):
        w.publish(w.item("A", ("B",), size=1))
    assert len(w.broker.state.queues["box.B"].ready) == 4
    answer = w.ok(m.Ack(2, "B", w.next(), "box.B", [(2, 1), (9, 2), (9, 1)]))
    assert answer == Acked(answer.correlation, 3, 1)
    consumer(w, "B", "box.B")
    w.settle()
    assert sorted(w.broker.state.queues["box.B"].unacknowledged) == [1, 3, 4, 5, 6, 7, 8, 11, 12]


def test_fetch_takes_what_waits_and_returns_it_when_the_connection_ends() -> None:
    w = World(LIMITS, "A", "B")
    for _ in range(3):
        w.publish(w.item("A", ("B",)))
    answer = w.ok(m.Fetch(2, "B", w.next(), "box.B", 2, BIG))
    assert isinstance(answer, FetchedEntries)
    assert ([e.seq for e in answer.entries], answer.waiting) == ([1, 2], 1)
    w.run(m.Disconnect(2))
    w.connect("B")
    answer = w.ok(m.Fetch(w.connection_of["B"], "B", w.next(), "box.B", 9, BIG))
    assert isinstance(answer, FetchedEntries)
    assert [(e.seq, e.attempts) for e in answer.entries] == [(1, 2), (2, 2), (3, 1)]
    answer = w.ok(m.Fetch(w.connection_of["B"], "B", w.next(), "box.B", 9, BIG))
    assert isinstance(answer, FetchedEntries)
    assert answer.entries == []


def test_nack_and_too_many_deliveries_make_dead_letters() -> None:
    w = World(SMALL, "A", "B")
    w.publish(w.item("A", ("B",)))
    w.publish(w.item("A", ("B",)))
    consumer(w, "B", "box.B")
    w.ok(m.Nack(2, "B", w.next(), "box.B", 1, False, 5, "bad signature"))
    assert [(d.seq, d.reason, d.by) for d in w.store.dead] == [(1, "bad signature", "B")]
    for _ in range(5):
        w.ok(m.Nack(2, "B", w.next(), "box.B", 2, True, 0, ""))
    assert w.store.dead[-1].seq == 2
    assert "5 times" in w.store.dead[-1].reason
    assert w.broker.state.queues["box.B"].depth == 0
    assert w.store.bodies == {1, 2}  # kept with the dead letters


def test_expired_and_lost_envelopes_become_dead_letters_with_their_reason() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",), expires_at=w.now + 5))
    w.publish(w.item("A", ("B",)))
    w.now += 10
    w.run(m.Sweep())
    w.run(m.LostBodies([("box.B", 2)], "damaged"))
    assert [(d.seq, d.reason) for d in w.store.dead] == [(1, "expired"), (2, "damaged")]


def test_resend_delivers_again_what_is_unacknowledged() -> None:
    w = World(LIMITS, "A", "B")
    items = [w.item("A", ("B",)) for _ in range(3)]
    for item in items:
        w.publish(item)
    consumer(w, "B", "box.B")
    effects = w.run(m.Resend(2, "B", w.next(), "box.B", "", bytes(16)))
    assert seqs(effects) == [1, 2, 3]
    effects = w.run(m.Resend(2, "B", w.next(), "", "A", items[1].envelope_id))
    assert seqs(effects) == [2]


def test_a_long_queue_keeps_its_head_in_memory_alone_and_pages() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(20):
        w.publish(w.item("A", ("B",), size=1))
    queue = w.broker.state.queues["box.B"]
    assert (len(queue.ready), queue.depth, queue.tail) == (4, 20, True)
    got = seqs(consumer(w, "B", "box.B", envelopes=100))
    got += [e.seq for h in w.settle() for e in h.entries]
    assert got == list(range(1, 21))
    w.recover()
    assert len(w.broker.state.queues["box.B"].ready) == 4
    w.connect("A")
    w.publish(w.item("A", ("B",), size=1))
    w.connect("B")
    got = seqs(consumer(w, "B", "box.B", envelopes=100))
    got += [e.seq for h in w.settle() for e in h.entries]
    assert got == list(range(1, 22))


def test_an_older_id_does_not_hide_a_newer_one() -> None:
    w = World(LIMITS, "A", "B")
    older, newest = w.item("A", ("B",)), w.item("A", ("B",))
    for item in (newest, older):
        assert isinstance(w.publish(item), Confirmed)
    for _ in range(2):
        answer = w.publish(newest)
        assert isinstance(answer, Confirmed)
        assert answer.duplicate
        w.recover()
        w.connect("A")


def test_an_envelope_that_expires_as_it_arrives_is_refused() -> None:
    w = World(LIMITS, "A", "B")
    assert w.refused(w.item("A", ("B",), expires_at=w.now + 1)) == "invalid-request"
    assert isinstance(w.publish(w.item("A", ("B",), expires_at=w.now + 2)), Confirmed)
