"""Many commands in one commit, and what a command costs: changes say what is different at the
end, and no more.
"""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import Acked, Done, ExchangeType, Failed, FetchedEntries
from cipherbox.limits import LIMITS
from tests.broker.world import BIG, HQ, SMALL, World, bound


def names(answer: m.Answer) -> str:
    return answer.error.name if isinstance(answer, Failed) else "ok"


# -- deliveries in one commit ----------------------------------------------------------------------


def test_delivered_twice_in_the_commit_of_its_publish_counts_twice() -> None:
    w = World(LIMITS, "A", "B")
    w.run(
        m.Publish(1, "A", [w.item("A", ("B",))]),
        m.Fetch(2, "B", 1, "box.B", 1, BIG),
        m.Nack(2, "B", 2, "box.B", 1, True, 0, ""),
        m.Fetch(2, "B", 3, "box.B", 1, BIG),
    )
    assert w.store.entries[("box.B", 1)][1] == 2
    assert w.broker.state.queues["box.B"].unacknowledged[1].entry.attempts == 2


def test_published_delivered_and_acknowledged_at_once() -> None:
    w = World(LIMITS, "A", "B")
    effects = w.run(
        m.Publish(1, "A", [w.item("A", ("B",))]),
        m.Fetch(2, "B", 1, "box.B", 1, BIG),
        m.Ack(2, "B", 2, "box.B", [(1, 1)]),
    )
    assert effects.changes.finished == [1]
    assert w.store.entries[("box.B", 1)][2] == "acked"


def test_runs_become_one_mark_each() -> None:
    w = World(LIMITS, "A", "B")
    w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(10)]))
    effects = w.run(m.Consume(2, "B", 1, 1, "box.B", 100, BIG))
    assert [(d.first, d.last, d.client) for d in effects.changes.delivered] == [(1, 10, "B")]
    effects = w.run(m.Ack(2, "B", 1, "box.B", [(8, 3), (1, 2), (2, 3)]))
    assert effects.answers[2] == [Acked(1, 7, 1)]
    assert [(d.first, d.last) for d in effects.changes.acked] == [(1, 4), (8, 10)]


def test_what_changes_nothing_costs_no_commit() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",)))
    w.ok(m.Fetch(2, "B", 1, "box.B", 1, BIG))
    w.ok(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
    for command in (
        m.Ack(2, "B", 1, "box.B", [(1, 1)]),
        m.Consume(2, "B", 1, 1, "box.B", 5, 5),
        m.Credit(2, 1, 5, 5),
        m.Cancel(2, "B", 1, 1),
        m.Resend(2, "B", 1, "", "", bytes(16)),
        m.Sweep(),
        m.Disconnect(2),
        m.Resolve(1, "A", 1, "", "box.B"),
        m.List(1, "A", 1, "queues", "", ""),
        m.Fetch(1, "A", 1, "box.A", 1, 1),
    ):
        assert not w.run(command).changes


def test_twenty_deliveries_also_when_a_restart_lies_between() -> None:
    w = World(SMALL, "A", "B")
    w.publish(w.item("A", ("B",)))
    for _ in range(SMALL.deliveries):
        w.recover()
        w.connect("B")
        answer = w.ok(m.Fetch(1, "B", 1, "box.B", 1, BIG))
        assert isinstance(answer, FetchedEntries)
        assert len(answer.entries) == 1
    w.recover()
    w.connect("B")
    answer = w.ok(m.Fetch(1, "B", 1, "box.B", 1, BIG))
    assert isinstance(answer, FetchedEntries)
    assert not answer.entries
    assert "5 times" in w.store.dead[0].reason


def test_the_last_envelope_may_pass_the_window_of_a_fetch() -> None:
    w = World(LIMITS, "A", "B")
    w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(3)]))
    answer = w.ok(m.Fetch(2, "B", 1, "box.B", 9, 101))
    assert isinstance(answer, FetchedEntries)
    assert ([e.seq for e in answer.entries], answer.waiting) == ([1, 2], 1)


def test_an_ack_of_what_is_out_and_what_waits_between() -> None:
    w = World(LIMITS, "A", "B")
    w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(5)]))
    w.run(m.Consume(2, "B", 1, 1, "box.B", 4, BIG))
    for seq in (1, 3):
        w.ok(m.Nack(2, "B", 1, "box.B", seq, True, 0, ""))
    effects = w.run(m.Ack(2, "B", 1, "box.B", [(1, 5)]))
    assert effects.answers[2] == [Acked(1, 5, 0)]
    assert [(d.first, d.last) for d in effects.changes.acked] == [(1, 5)]


def test_acknowledged_twice_from_the_store_in_one_commit() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(9):
        w.publish(w.item("A", ("B",), size=1))
    acks = [m.Ack(2, "B", i, "box.B", [(3, 6)]) for i in (1, 2)]
    assert w.broker.required_facts(acks[:1]).entries == [("box.B", 5, 4)]
    assert w.run(*acks).answers[2] == [Acked(1, 6, 0), Acked(2, 0, 6)]
    assert w.broker.state.queues["box.B"].depth == 3


def test_paging_ends_when_the_last_of_the_tail_was_acknowledged_meanwhile() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(9):
        w.publish(w.item("A", ("B",), size=1))
    w.ok(m.Ack(2, "B", 1, "box.B", [(7, 3)]))
    w.run(m.Consume(2, "B", 1, 1, "box.B", 100, BIG))
    for _ in range(3):
        w.run()
    assert not w.pages
    assert not w.broker.state.queues["box.B"].tail
    w.publish(w.item("A", ("B",), size=1))
    assert sorted(w.broker.state.queues["box.B"].unacknowledged) == [1, 2, 3, 4, 5, 6, 10]


def test_two_fetches_of_one_commit_ask_for_one_page() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(9):
        w.publish(w.item("A", ("B",), size=1))
    queue = w.broker.state.queues["box.B"]
    fetch = m.Fetch(2, "B", 1, "box.B", 9, BIG)
    w.broker.handle([fetch], m.Facts(), w.now)
    queue.paging = False
    assert w.broker.required_facts([fetch, fetch]).pages == [("box.B", 4)]
    queue.paging = True  # on its way already
    assert not w.broker.required_facts([fetch]).pages


def test_a_fetch_brings_what_lies_in_the_store() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(9):
        w.publish(w.item("A", ("B",), size=1))
    got: list[int] = []
    for _ in range(9):
        answer = w.ok(m.Fetch(2, "B", 1, "box.B", 2, BIG))
        assert isinstance(answer, FetchedEntries)
        got += [e.seq for e in answer.entries]
    assert got == list(range(1, 10))


def test_a_purge_takes_the_whole_queue_and_answers_when_it_is_done() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(20):
        w.publish(w.item("A", ("B",), size=1))
    w.ok(m.Fetch(2, "B", 1, "box.B", 2, BIG))
    assert w.run(m.Purge(*HQ, 9, "box.B")).answers[0] == []
    w.publish(w.item("A", ("B",), size=1))  # after the purge: it stays
    answers: list[m.Answer] = []
    while w.pages:
        answers += w.run().answers.get(0, [])
    assert answers == [Done(9, 20)]
    assert {d.reason for d in w.store.dead} == {"purged by HQ"}
    assert w.store.waiting("box.B") == [21]


# -- revoked ---------------------------------------------------------------------------------------


def test_a_revoked_client_gets_and_does_nothing_more_not_even_in_the_same_commit() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.Consume(2, "B", 1, 1, "box.B", 9, BIG))
    w.publish(w.item("A", ("B",)))
    effects = w.run(
        m.RevokeClient(*HQ, 1, "B", "stolen"),
        m.Fetch(2, "B", 2, "box.B", 9, BIG),
        m.Credit(2, 1, 9, 9),
        m.Publish(2, "B", [w.item("B", ("A",))]),
        m.Ack(2, "B", 3, "box.B", [(1, 1)]),
    )
    assert [names(a) for a in effects.answers[2]] == ["revoked"] * 3
    assert not effects.deliveries
    assert effects.closed.keys() == {2}
    assert [names(a) for a in w.run(m.Fetch(2, "B", 2, "box.B", 9, BIG)).answers[2]] == ["revoked"]
    assert w.store.waiting("box.B") == [1]


def test_what_was_published_just_before_is_not_handed_to_a_revoked_client() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.Consume(2, "B", 1, 1, "box.B", 9, BIG))
    effects = w.run(m.Publish(1, "A", [w.item("A", ("B",))]), m.RevokeClient(*HQ, 1, "B", "stolen"))
    assert not effects.deliveries
    assert not w.broker.state.consumers


def test_a_reader_who_loses_the_right_also_gives_back_what_it_fetched() -> None:
    w = bound()
    w.ok(m.Grant(*HQ, 1, "A", "read", "q", True))
    w.publish(w.item("A", ("A", "B"), "e", "k"))
    w.ok(m.Fetch(1, "A", 1, "q", 9, BIG))
    w.ok(m.Grant(*HQ, 1, "A", "read", "q", False))
    answer = w.ok(m.Fetch(2, "B", 1, "q", 9, BIG))
    assert isinstance(answer, FetchedEntries)
    assert [e.attempts for e in answer.entries] == [2]


# -- bounds ----------------------------------------------------------------------------------------


def test_an_ack_costs_what_is_there_whatever_it_names() -> None:
    w = World(LIMITS, "A", "B")
    w.run(m.Publish(1, "A", [w.item("A", ("B",)) for _ in range(100)]))
    w.ok(m.Ack(2, "B", 1, "box.B", [(1, 99)]))
    huge = (1 << 64) - 1
    answer = w.ok(m.Ack(2, "B", 1, "box.B", [(0, huge), (huge, huge)] * 2048))
    assert answer == Acked(1, 1, huge * 4096 - 1)


def test_an_ack_names_a_bounded_number_of_what_can_be_waiting() -> None:
    w = World(LIMITS, "A", "B")
    item = w.item("A", ("B",))
    for at in range(0, LIMITS.ack_entries + 1, 1 << 15):
        n = min(1 << 15, LIMITS.ack_entries + 1 - at)
        ids = [
            (w.now << 80 | 7 << 76 | 2 << 62 | i + at + 2 << 16).to_bytes(16, "big")
            for i in range(n)
        ]
        w.run(m.Publish(1, "A", [item._replace(envelope_id=i, size=1) for i in ids]))
    over = m.Ack(2, "B", 1, "box.B", [(1, LIMITS.ack_entries + 1)])
    assert not w.broker.required_facts([over]).entries
    assert w.fails(over) == "invalid-request"
    answer = w.ok(m.Ack(2, "B", 1, "box.B", [(1, LIMITS.ack_entries)]))
    assert answer == Acked(1, LIMITS.ack_entries, 0)
    assert w.store.waiting("box.B") == [LIMITS.ack_entries + 1]


def test_expired_ones_behind_others_are_swept_and_the_rest_stays_in_order() -> None:
    w = World(LIMITS, "A", "B")
    w.run(
        m.Publish(
            1, "A", [w.item("A", ("B",), expires_at=w.now + 9 if i % 2 else 0) for i in range(3000)]
        )
    )
    w.now += 20
    effects = w.run(m.Sweep())
    assert len(effects.changes.dead) == 1500
    assert w.broker.state.queues["box.B"].earliest_expiry == 0  # nothing is left to look for
    assert not w.run(m.Sweep()).changes
    answer = w.ok(m.Fetch(2, "B", 1, "box.B", 5, BIG))
    assert isinstance(answer, FetchedEntries)
    assert [e.seq for e in answer.entries] == [1, 3, 5, 7, 9]


def test_expired_heads_of_a_queue_nobody_reads_are_followed_by_their_tail() -> None:
    w = World(SMALL, "A", "B")
    for _ in range(11):
        w.publish(w.item("A", ("B",), size=1, expires_at=w.now + 50))
    w.now += 100
    for _ in range(8):
        w.run(m.Sweep())
    assert len(w.store.dead) == 11
    assert w.broker.state.queues["box.B"].depth == 0


def test_an_exchange_type_that_is_none() -> None:
    w = World(LIMITS)
    assert w.fails(m.DeclareExchange(*HQ, 1, "e", 3)) == "invalid-request"  # type: ignore[arg-type]


def test_lists_of_many_bindings_and_grants_come_in_pages_without_gap_or_repeat() -> None:
    w = World(SMALL, "A", "B")
    keys = [f"{i:02}" for i in range(12)]
    for name in ("e", "f"):
        w.ok(m.DeclareExchange(*HQ, 1, name, ExchangeType.DIRECT))
        w.ok(m.Grant(*HQ, 1, "*", "publish", name, True))
        for key in keys:
            w.ok(m.Bind(*HQ, 1, name, "box.A", key))

    def rows(connection: int, client: str, what: str, name: str = "") -> list[dict[str, object]]:
        found, after = [], ""
        while True:
            answer = w.ok(m.List(connection, client, 1, what, name, after))
            assert isinstance(answer, m.ListedRows)
            assert len(answer.rows) <= SMALL.names_per_frame
            found += answer.rows
            after = answer.after
            if not after:
                return found

    assert [(r["exchange"], r["routing_key"]) for r in rows(1, "A", "bindings")] == [
        (e, k) for e in "ef" for k in keys
    ]
    assert [r["routing_key"] for r in rows(*HQ, "bindings", "f")] == keys
    assert w.fails(m.List(2, "B", 1, "bindings", "f", "")) == "not-found"
    assert [r["resource"] for r in rows(2, "B", "grants")] == ["e", "f"]
    assert [r["bindings"] for r in rows(2, "B", "exchanges")] == [12, 12]
