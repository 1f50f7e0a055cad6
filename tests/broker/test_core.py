"""Each rule of the core, asked directly."""

from __future__ import annotations

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.exchanges import topic_matches
from cipherbox.broker.model import Acked, Confirmed, Done, ExchangeType, Failed, FetchedEntries, Listed, Routed
from cipherbox.broker.publish import RouteDetail
from cipherbox.limits import LIMITS
from tests.broker.world import SMALL, START, World

HQ = (0, "")
BIG = 1 << 30


def seqs(effects: m.Effects) -> list[int]:
    return [e.seq for h in effects.handed for e in h.entries]


def labs(*more: str) -> World:
    """Three clients, an exchange `labs`, a queue for each center."""
    w = World(LIMITS, "FL-LAB", "CA-RC", "NY-RC", *more)
    w.ok(m.DeclareExchange(*HQ, w.next(), "labs", ExchangeType.TOPIC))
    for rc, key in (("CA-RC", "*.dat"), ("NY-RC", "fl.#")):
        queue = rc.replace("-", "_").lower() + "_queue"
        w.ok(m.DeclareQueue(*HQ, w.next(), queue, rc, ()))
        w.ok(m.Bind(*HQ, w.next(), "labs", queue, key))
    w.ok(m.Grant(*HQ, w.next(), "FL-LAB", "publish", "labs", True))
    return w


def consumer(w: World, client: str, queue: str, envelopes: int = 100, size: int = BIG, tag: int = 1) -> m.Effects:
    c = w.connection_of[client]
    return w.run(m.Consume(c, client, w.next(), tag, queue, envelopes, size))


# -- routing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "key", "takes"),
    [
        ("*", "", False), ("#.*", "", False), ("a.", "a", False), ("*.", "a.", True), ("a.*", "a.", True),
        ("a.b", "a.b", True), ("a.b", "a.c", False), ("*", "a", True), ("*", "a.b", False), ("a.*", "a", False),
        ("#", "", True), ("#", "a.b.c", True), ("a.#", "a", True), ("a.#", "a.b.c", True), ("#.c", "c", True),
        ("#.c", "a.b.c", True), ("a.#.c", "a.c", True), ("a.#.c", "a.b.b.c", True), ("a.#.c", "a.b", False),
        ("*.#.*", "a", False), ("*.#.*", "a.b", True), ("#.#", "a", True), ("", "", True), ("*.b.*", "a.b.c", True),
    ],
)  # fmt: skip
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
    assert w.refused(w.item("FL-LAB", ("CA-RC", "NY-RC", "FL-LAB"), "labs", "fl.dat")) == "route-changed"
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
    assert (answer.queues, answer.missing) == (("box.B",), ("NOBODY",))
    assert w.refused(w.item("A", ("NOBODY",), partial=True)) == "unknown-recipient"


def test_unknown_and_forbidden_exchanges_and_queues() -> None:
    w = labs()
    assert w.refused(w.item("CA-RC", ("NY-RC",), "labs", "x")) == "forbidden"
    assert w.refused(w.item("FL-LAB", ("NY-RC",), "none", "x")) == "not-found"
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "", "ca_rc_queue")) == "not-found"
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "", "missing")) == "not-found"
    w.ok(m.Grant(*HQ, w.next(), "FL-LAB", "publish", "ca_rc_queue", True))
    assert isinstance(w.publish(w.item("FL-LAB", ("CA-RC",), "", "ca_rc_queue")), Confirmed)


# -- ids ----------------------------------------------------------------------------------------------------------


def test_the_same_bytes_again_are_confirmed_and_stored_once_also_in_one_batch_and_after_a_restart() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    effects = w.run(m.Publish(1, "A", [item, item]))
    assert [a.again for a in effects.answers[1]] == [False, True]  # type: ignore[union-attr]
    w.recover()
    w.connect("A")
    answer = w.publish(item)
    assert isinstance(answer, Confirmed)
    assert answer.again
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
    assert answer.again
    assert w.broker.queues["box.B"].depth == 0


def test_an_id_with_other_bytes_is_refused_and_anothers_id_is_free() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    w.publish(item)
    assert w.refused(item._replace(envelope_hash=b"x" * 32)) == "id-reused"
    assert w.refused(item._replace(envelope_hash=b"x" * 32, generation=0)) == "id-reused"
    assert isinstance(w.publish(item._replace(sender="B", recipients=("A",), envelope_hash=b"x" * 32)), Confirmed)


def test_a_higher_generation_replaces_what_waits_and_nothing_that_was_acknowledged() -> None:
    w = World(LIMITS, "A", "B", "C")
    item = w.item("A", ("B", "C"))
    w.publish(item)
    consumer(w, "C", "box.C")
    w.ok(m.Ack(3, "C", w.next(), "box.C", [(1, 1)]))
    newer = item._replace(envelope_hash=b"n" * 32, generation=1, size=150)
    answer = w.publish(newer)
    assert isinstance(answer, Confirmed)
    assert not answer.again
    assert w.store.envelopes[1][2].generation == 1
    assert w.broker.queues["box.B"].size == 150
    assert w.broker.queues["box.C"].depth == 0
    again = w.publish(newer)
    assert isinstance(again, Confirmed)
    assert again.again
    assert w.refused(item._replace(envelope_hash=b"o" * 32)) == "id-reused"
    assert seqs(consumer(w, "B", "box.B")) == [1]


def test_times() -> None:
    w = World(LIMITS, "A", "B")
    w.broker.watermark = START - 1000
    old = (START - 1001 << 80 | 7 << 76 | 2 << 62).to_bytes(16, "big")
    ahead = (START + LIMITS.clock_ahead_ms + 1000 << 80 | 7 << 76 | 2 << 62).to_bytes(16, "big")
    assert w.refused(w.item("A", ("B",), envelope_id=old)) == "too-old"
    assert w.refused(w.item("A", ("B",), envelope_id=ahead)) == "clock-skew"
    last = w.now + 1 + LIMITS.clock_ahead_ms
    for time, refusal in ((START - 1000, ""), (last, ""), (last + 1, "clock-skew")):
        for rest in (1, (1 << 80) - 1):
            answer = w.publish(w.item("A", ("B",), envelope_id=(time << 80 | rest).to_bytes(16, "big")))
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


# -- delivery -----------------------------------------------------------------------------------------------------


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
    assert [e.attempts for h in effects.handed for e in h.entries] == [2, 2]


def test_consumers_take_turns_and_what_returns_goes_to_the_front_in_order() -> None:
    w = World(LIMITS, "A", "B")
    second = max(w.connection_of.values()) + 1
    w.broker.connect(second, "B")
    consumer(w, "B", "box.B")
    w.run(m.Consume(second, "B", w.next(), 5, "box.B", 100, BIG))
    effects = w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(4)]))
    assert {h.connection: [e.seq for e in h.entries] for h in effects.handed} == {2: [1, 3], second: [2, 4]}
    assert [e.delivered_at > 0 for e in effects.changes.entries] == [True] * 4
    effects = w.run(m.Disconnect(2))
    assert [(h.connection, [e.seq for e in h.entries]) for h in effects.handed] == [(second, [1, 3])]
    w.run(m.Disconnect(second))
    w.connect("B")
    assert seqs(consumer(w, "B", "box.B")) == [1, 2, 3, 4]


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
    assert len(w.broker.queues["box.B"].ready) == 4
    answer = w.ok(m.Ack(2, "B", w.next(), "box.B", [(2, 1), (9, 2), (9, 1)]))
    assert answer == Acked(answer.correlation, 3, 1)
    consumer(w, "B", "box.B")
    w.settle()
    assert sorted(w.broker.queues["box.B"].out) == [1, 3, 4, 5, 6, 7, 8, 11, 12]


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
    assert w.broker.queues["box.B"].depth == 0
    assert w.store.bodies == {1, 2}  # kept with the dead letters


def test_expired_and_lost_envelopes_become_dead_letters_with_their_reason() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",), expires_at=w.now + 5))
    w.publish(w.item("A", ("B",)))
    w.now += 10
    w.run(m.Sweep())
    w.run(m.Lost([("box.B", 2)], "damaged"))
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
    queue = w.broker.queues["box.B"]
    assert (len(queue.ready), queue.depth, queue.tail) == (4, 20, True)
    got = seqs(consumer(w, "B", "box.B", envelopes=100))
    got += [e.seq for h in w.settle() for e in h.entries]
    assert got == list(range(1, 21))
    w.recover()
    assert len(w.broker.queues["box.B"].ready) == 4
    w.connect("A")
    w.publish(w.item("A", ("B",), size=1))
    w.connect("B")
    got = seqs(consumer(w, "B", "box.B", envelopes=100))
    got += [e.seq for h in w.settle() for e in h.entries]
    assert got == list(range(1, 22))


# -- rights -------------------------------------------------------------------------------------------------------


def test_only_readers_touch_a_queue_and_unknown_looks_like_forbidden() -> None:
    w = labs()
    c = w.connection_of["FL-LAB"]
    for queue in ("ca_rc_queue", "nothing"):
        for command in (
            m.Consume(c, "FL-LAB", 1, 1, queue, 1, 1), m.Fetch(c, "FL-LAB", 1, queue, 1, 1),
            m.Ack(c, "FL-LAB", 1, queue, [(1, 1)]), m.Nack(c, "FL-LAB", 1, queue, 1, True, 0, ""),
            m.Resend(c, "FL-LAB", 1, queue, "", bytes(16)), m.DeleteQueue(c, "FL-LAB", 1, queue),
        ):  # fmt: skip
            answer = w.ask(command)
            assert isinstance(answer, Failed)
            assert str(answer.error) == f"there is no queue {queue!r} that you may use"


def test_what_needs_an_admin() -> None:
    w = labs()
    c = w.connection_of["CA-RC"]
    for command in (
        m.DeclareExchange(c, "CA-RC", 1, "mine", ExchangeType.DIRECT), m.DeleteExchange(c, "CA-RC", 1, "labs"),
        m.DeclareQueue(c, "CA-RC", 1, "for-ny", "NY-RC", ()), m.DeclareQueue(c, "CA-RC", 1, "shared", "", ("NY-RC",)),
        m.Bind(c, "CA-RC", 1, "labs", "ca_rc_queue", "x"), m.Purge(c, "CA-RC", 1, "ca_rc_queue"),
        m.Grant(c, "CA-RC", 1, "CA-RC", "admin", "", True), m.AddClient(c, "CA-RC", 1, "X", "admin"),
        m.RevokeClient(c, "CA-RC", 1, "NY-RC", ""),
    ):  # fmt: skip
        assert w.fails(command) == "forbidden"
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "bind", "labs", True))
    w.ok(m.Bind(c, "CA-RC", 1, "labs", "ca_rc_queue", "x"))
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "declare", "", True))
    w.ok(m.DeclareExchange(c, "CA-RC", 1, "mine", ExchangeType.DIRECT))
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "admin", "", True))
    w.ok(m.Purge(c, "CA-RC", 1, "ny_rc_queue"))
    assert w.fails(m.Fetch(c, "CA-RC", 1, "ny_rc_queue", 1, 1)) == "not-found"  # an admin reads nobody's queue


def test_a_reader_who_loses_the_right_loses_the_deliveries() -> None:
    w = labs()
    w.ok(m.Grant(*HQ, w.next(), "NY-RC", "read", "ca_rc_queue", True))
    w.publish(w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "pa.dat"))
    assert seqs(consumer(w, "NY-RC", "ca_rc_queue")) == [1]
    w.ok(m.Grant(*HQ, w.next(), "NY-RC", "read", "ca_rc_queue", False))
    assert not w.broker.queues["ca_rc_queue"].out
    assert seqs(consumer(w, "CA-RC", "ca_rc_queue")) == [1]


def test_a_revoked_client_is_cut_off_and_gets_nothing() -> None:
    w = labs()
    effects = w.run(m.RevokeClient(*HQ, w.next(), "CA-RC", "stolen"))
    assert {c: e.name for c, e in effects.closed.items()} == {w.connection_of["CA-RC"]: "revoked"}
    assert w.refused(w.item("FL-LAB", ("CA-RC",))) == "recipient-revoked"
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "labs", "pa.dat")) == "no-route"
    w.ok(m.AddClient(*HQ, w.next(), "CA-RC", "client"))
    assert isinstance(w.publish(w.item("FL-LAB", ("CA-RC",))), Confirmed)


def test_client_ids_are_unique_without_case() -> None:
    w = labs()
    assert w.fails(m.AddClient(*HQ, w.next(), "ca-rc", "client")) == "conflict"


# -- topology -----------------------------------------------------------------------------------------------------


def test_declaring_again() -> None:
    w = labs()
    assert w.ok(m.DeclareExchange(*HQ, 1, "labs", ExchangeType.TOPIC)) == Done(1, 0)
    assert w.fails(m.DeclareExchange(*HQ, 1, "labs", ExchangeType.FANOUT)) == "conflict"
    c = w.connection_of["CA-RC"]
    assert w.ok(m.DeclareQueue(c, "CA-RC", 1, "ca_rc_queue", "", ())) == Done(1, 0)
    assert w.fails(m.DeclareQueue(w.connection_of["NY-RC"], "NY-RC", 1, "ca_rc_queue", "", ())) == "conflict"
    assert w.fails(m.DeclareQueue(c, "CA-RC", 1, "box.CA-RC", "", ())) == "invalid-request"


def test_a_hundred_clients_declare_the_same_queue_at_once() -> None:
    w = World(LIMITS, *[f"C{i}" for i in range(100)])
    effects = w.run(*[m.DeclareQueue(c, name, 1, "q", "", ()) for name, c in w.connection_of.items()])
    answers = [effects.answers[c][0] for c in w.connection_of.values()]
    assert answers[0] == Done(1, 1)
    assert all(isinstance(a, Failed) and a.error.name == "conflict" for a in answers[1:])


@pytest.mark.parametrize("name", ["", "x" * 128, "a\x00b", "a\nb", "a\u200bb", "\u202e"])
def test_names_that_are_none(name: str) -> None:
    w = World(LIMITS, "A")
    w.ok(m.DeclareExchange(*HQ, 1, "e", ExchangeType.DIRECT))
    assert w.fails(m.DeclareExchange(*HQ, 1, name, ExchangeType.DIRECT)) == "invalid-request"
    assert w.fails(m.DeclareQueue(1, "A", 1, name, "", ())) == "invalid-request"
    assert w.fails(m.Bind(*HQ, 1, "e", "box.A", name)) == "invalid-request"
    w.ok(m.DeclareExchange(*HQ, 1, "x" * 127, ExchangeType.DIRECT))


def test_a_queue_with_envelopes_is_not_deleted_and_an_empty_one_goes_with_its_bindings() -> None:
    w = labs()
    w.publish(w.item("FL-LAB", ("CA-RC",), "labs", "pa.dat"))
    assert w.fails(m.DeleteQueue(w.connection_of["CA-RC"], "CA-RC", 1, "ca_rc_queue")) == "conflict"
    w.ok(m.Purge(*HQ, 1, "ca_rc_queue"))
    assert w.store.dead[0].reason.startswith("purged")
    w.ok(m.DeleteQueue(w.connection_of["CA-RC"], "CA-RC", 1, "ca_rc_queue"))
    assert not [b for b in w.store.bindings if b[1] == "ca_rc_queue"]
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "labs", "pa.dat")) == "no-route"


def test_a_client_has_a_bounded_number_of_queues() -> None:
    w = World(attrs.evolve(LIMITS, queues_per_client=2), "A")
    for i in range(2):
        w.ok(m.DeclareQueue(1, "A", 1, f"q{i}", "", ()))
    assert w.fails(m.DeclareQueue(1, "A", 1, "q2", "", ())) == "invalid-request"


def test_lists_show_what_one_may_see_in_pages() -> None:
    w = World(SMALL, *[f"C{i}" for i in range(8)])

    def rows(client: str, what: str, name: str = "") -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        after = ""
        while True:
            answer = w.ok(m.List(w.connection_of.get(client, 0), client, 1, what, name, after))
            assert isinstance(answer, Listed)
            found += answer.rows
            after = answer.after
            if not after:
                return found

    assert [r["name"] for r in rows("C1", "clients")] == [f"C{i}" for i in range(8)]
    assert set(rows("C1", "clients")[0]) == {"name"}
    assert "role" in rows("", "clients")[0]
    assert [r["name"] for r in rows("C1", "queues")] == ["box.C1", "box.C1.bulk", "box.C1.sys"]
    assert len(rows("", "queues")) == 24
    assert len(rows("", "queues", "box.C3")) == 1
    assert w.fails(m.List(1, "C0", 1, "queues", "box.C3", "")) == "not-found"
    assert w.fails(m.List(1, "C0", 1, "secrets", "", "")) == "invalid-request"


def test_the_same_input_gives_the_same_effects() -> None:
    def play() -> list[str]:
        w = labs("SF-RC", "MA-LAB")
        consumer(w, "CA-RC", "ca_rc_queue", 3)
        shown = []
        for i in range(20):
            effects = w.run(m.Publish(1, "FL-LAB", [w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.dat")]))
            shown.append(repr(effects) + str(i))
        return shown

    assert play() == play()
