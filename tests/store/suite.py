"""What every store is asked: `Suite` runs on each store its subclass opens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import Changes, EntryState, Facts, Incoming, RequiredFacts
from cipherbox.errors import Fenced, InvalidRequest
from cipherbox.limits import LIMITS
from cipherbox.store.port import BundleRow, Store

AT = 1_800_000_000_000
Opener = Callable[[], Store]


def incoming(
    index: int,
    body: bytes = b"body",
    to: tuple[str, ...] = ("B",),
    generation: int = 0,
    commitment: bytes = b"",
) -> Incoming:
    envelope_id = (AT << 80 | 7 << 76 | 2 << 62 | index << 16).to_bytes(16, "big")
    return Incoming(
        index,
        False,
        0,
        "A",
        envelope_id,
        generation,
        3,
        hashlib.sha256(b"e" + body).digest(),
        hashlib.sha256(body).digest(),
        "",
        "",
        to,
        AT,
        0,
        len(body),
        body,
        commitment,
    )


def bodies_of(store: Store, numbers: Sequence[int]) -> list[bytes | None]:
    """The bytes alone of what `read_bodies` finds."""
    return [body and body.data for body in store.read_bodies(numbers)]


def published(number: int, *bodies: bytes, queue: str = "box.B") -> Changes:
    """A commit as the core makes it: envelopes from ``number`` on, in one queue that it
    declares, one seq for each.
    """
    changes = Changes(queues=[m.QueueRow(queue, "B", ())])
    for at, body in enumerate(bodies or (b"body",), number):
        changes.envelopes.append(m.NewEnvelope(at, AT, 1, incoming(at, body)))
        changes.entries.append(m.NewEntry(queue, at, at, 0, ""))
    changes.counters = [m.Counters(queue, at, 0, 1, at + 1)]
    return changes


def acknowledged(*numbers: int, queue: str = "box.B") -> Changes:
    """A commit that acknowledges entries whose seqs are their envelopes' numbers."""
    return Changes(
        acked=[m.SeqRun(queue, n, n, AT + 1, "B") for n in numbers], finished=list(numbers)
    )


class Driver:
    """A broker over the store under test, as the engine drives it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.broker = Broker(store.load(LIMITS.head_entries))
        self.log: m.LogRow | None = None  # of the next commit
        for n, name in ((1, "A"), (2, "B"), (3, "C")):
            self.broker.connect(n, name)

    def run(self, *commands: m.AnyCommand) -> m.Effects:
        facts = self.store.facts(self.broker.required_facts(commands), LIMITS.page_entries)
        effects = self.broker.handle(commands, facts, AT + 1)
        effects.changes.log, self.log = self.log, None
        self.store.commit(effects.changes, self.store.epoch)
        return effects

    def clients(self) -> Driver:
        self.run(*[m.AddClient(0, "", i, name, "client") for i, name in enumerate("ABC")])
        return self

    def publish(self, *items: Incoming) -> m.Effects:
        return self.run(m.Publish(1, "A", list(items)))

    def consume(self, client: str = "B", connection: int = 2) -> m.Effects:
        return self.run(m.Consume(connection, client, 1, 1, f"box.{client}", 1000, 1 << 30))


class Suite:
    """Subclasses give the fixture `opener`: every call opens the same store again."""

    def test_an_empty_store_loads_as_nothing(self, opener: Opener) -> None:
        snapshot = opener().load(10)
        assert (snapshot.next_number, snapshot.clients, snapshot.queues, snapshot.heads) == (
            1,
            [],
            [],
            {},
        )

    def test_what_was_committed_is_there_after_opening_again(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.run(m.DeclareExchange(0, "", 1, "e", m.ExchangeType.TOPIC))
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", ("C",)), m.Bind(0, "", 1, "e", "q", "a.#"))
        driver.run(m.Grant(0, "", 1, "A", "publish", "e", True))
        driver.publish(incoming(1, to=("B", "C")), incoming(2, b"x" * 100_000))
        before = store.load(10)
        store.close()
        again = opener()
        assert again.load(10) == before
        assert before.bindings == [("e", "q", "a.#")]
        assert before.heads["box.B"][1].size == 100_000
        assert before.highest == {"A": incoming(2).envelope_id}
        assert before.usage[("A", "box.B")] == (100_004, 2)
        assert [q.readers for q in before.queues if q.name == "q"] == [("C",)]
        assert bodies_of(again, [2, 1, 99]) == [b"x" * 100_000, b"body", None]

    def test_only_the_head_is_loaded_and_pages_bring_the_rest(self, opener: Opener) -> None:
        store = opener()
        Driver(store).clients().publish(*[incoming(i) for i in range(1, 60)])
        assert [e.seq for e in store.load(10).heads["box.B"]] == list(range(1, 11))
        facts = store.facts(RequiredFacts(pages=[("box.B", 10)]), 20)
        assert [e.seq for e in facts.pages["box.B"]] == list(range(11, 31))

    def test_an_acknowledged_envelope_loses_its_body_and_keeps_its_record(
        self, opener: Opener
    ) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1), incoming(2, b"y" * 70_000), incoming(3, to=("B", "C")))
        driver.consume()
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 3)]))
        assert bodies_of(store, [1, 2, 3]) == [None, None, b"body"]
        driver.consume("C", 3)
        driver.run(m.Ack(3, "C", 1, "box.C", [(1, 1)]))
        assert bodies_of(store, [3]) == [None]
        report = store.trace("A", incoming(3).envelope_id)
        assert report is not None
        assert report.messages == incoming(3).count
        assert [(t.queue, t.client, t.state) for t in report.traces] == [
            ("box.B", "B", EntryState.ACKNOWLEDGED),
            ("box.C", "C", EntryState.ACKNOWLEDGED),
        ]
        assert all(t.acknowledged_at == AT + 1 for t in report.traces)
        assert store.load(10).heads == {}
        assert store.load(10).usage == {}

    def test_known_ids_say_where_they_went_and_what_still_waits(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        item = incoming(1, to=("B", "C"), commitment=b"c" * 32)
        driver.publish(item)
        driver.consume()
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
        facts = store.facts(
            RequiredFacts(known=[("A", item.envelope_id), ("B", item.envelope_id)]), 10
        )
        (known,) = facts.known.values()
        assert (known.number, known.envelope_hash, known.size) == (1, item.envelope_hash, item.size)
        assert (known.dead, known.commitment) == ((), b"c" * 32)
        assert known.queues == ("box.B", "box.C")
        assert known.waiting == (("box.C", 1),)

    def test_entries_for_acks_of_the_tail(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(*[incoming(i) for i in range(1, 6)])
        driver.run(m.Ack(2, "B", 1, "box.B", [(3, 1)]))
        facts = store.facts(RequiredFacts(entries=[("box.B", 2, 3), ("missing", 1, 1)]), 10)
        assert sorted(facts.entries["box.B"]) == [2, 4]

    @pytest.mark.parametrize("size", [10, 70_000])
    def test_the_next_generation_replaces_body_and_hash(self, opener: Opener, size: int) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1, b"o" * 70_000))
        driver.publish(incoming(1, b"n" * size, generation=1))
        store.close()
        again = opener()
        assert bodies_of(again, [1]) == [b"n" * size]
        assert again.load(10).heads["box.B"][0].size == size

    def test_attempts_are_counted_and_survive(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1))
        driver.consume()
        driver.run(m.Disconnect(2))
        store.close()
        assert opener().load(10).heads["box.B"][0].attempts == 1

    def test_dead_letters_keep_body_reason_and_who(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1))
        driver.consume()
        driver.run(m.Nack(2, "B", 1, "box.B", 1, False, 5, "bad signature"))
        assert bodies_of(store, [1]) == [b"body"]
        report = store.trace("A", incoming(1).envelope_id)
        assert report is not None
        assert (report.traces[0].state, report.traces[0].reason) == (
            EntryState.DEAD,
            "bad signature",
        )
        assert store.load(10).heads == {}

    def test_a_dead_letter_waits_again_as_a_second_entry(self, opener: Opener) -> None:
        store = opener()
        wanted = RequiredFacts(known=[("A", incoming(1).envelope_id)])
        changes = published(1)
        changes.entries.append(m.NewEntry("other", 1, 1, 0, ""))
        changes.queues.append(m.QueueRow("other", "C", ()))
        changes.envelopes = [changes.envelopes[0]._replace(references=2)]
        store.commit(changes, store.epoch)
        store.commit(Changes(dead=[m.Dead("box.B", 1, 1, AT + 1, "key missing", "B")]), store.epoch)
        (known,) = store.facts(wanted, 10).known.values()
        assert (known.queues, known.waiting, known.dead) == (
            ("box.B", "other"),
            (("other", 1),),
            ("box.B",),
        )
        changes = Changes(entries=[m.NewEntry("box.B", 2, 1, 0, "")])
        changes.replaced = [(1, incoming(1, b"next", generation=1, commitment=b"d" * 32))]
        changes.counters = [m.Counters("box.B", 1, 4, 2, 3)]
        store.commit(changes, store.epoch)
        (known,) = store.facts(wanted, 10).known.values()
        assert (known.queues, known.dead, known.generation) == (("box.B", "other"), (), 1)
        assert known.commitment == b"d" * 32
        assert known.waiting == (("box.B", 2), ("other", 1))
        assert [(e.seq, e.number) for e in store.load(10).heads["box.B"]] == [(2, 1)]
        report = store.trace("A", incoming(1).envelope_id)
        assert report is not None
        assert [(t.queue, t.state, t.reason) for t in report.traces] == [
            ("box.B", EntryState.DEAD, "key missing"),
            ("box.B", EntryState.WAITING, ""),
            ("other", EntryState.WAITING, ""),
        ]

    def test_new_queues_begin_above_every_dropped_one(self, opener: Opener) -> None:
        store = opener()
        assert store.load(10).first_seq == 1
        store.commit(published(41, queue="q"), store.epoch)
        assert store.load(10).first_seq == 1
        changes = acknowledged(41, queue="q")
        changes.counters, changes.dropped_queues = [m.Counters("q", 0, 0, 77, 77)], ["q"]
        store.commit(changes, store.epoch)
        store.close()
        assert opener().load(10).first_seq == 77

    def test_acknowledged_and_dropped_in_one_batch(self, opener: Opener) -> None:
        driver = Driver(opener()).clients()
        driver.run(
            m.DeclareQueue(0, "", 1, "q", "B", ()), m.Grant(0, "", 2, "A", "publish", "q", True)
        )
        driver.publish(incoming(1)._replace(routing_key="q"))
        driver.run(m.Ack(2, "B", 1, "q", [(1, 1)]), m.DeleteQueue(2, "B", 2, "q"))
        assert "q" not in {row.name for row in driver.store.load(10).queues}
        assert bodies_of(driver.store, [1]) == [None]
        driver.run(m.DeclareQueue(0, "", 1, "r", "B", ()), m.DeleteQueue(2, "B", 2, "r"))
        assert "r" not in {row.name for row in driver.store.load(10).queues}

    def test_a_dropped_queue_and_one_of_the_same_name_are_two(self, opener: Opener) -> None:
        store = opener()
        store.commit(published(1, queue="q"), store.epoch)
        store.commit(acknowledged(1, queue="q"), store.epoch)
        store.commit(Changes(dropped_queues=["q"]), store.epoch)
        assert store.load(10).queues == []
        store.commit(published(2, queue="q"), store.epoch)
        store.close()
        again = opener()
        assert [(e.seq, e.number) for e in again.load(10).heads["q"]] == [(2, 2)]
        assert again.trace("A", incoming(1).envelope_id) is not None

    def test_a_queue_may_go_in_the_commit_that_empties_it(self, opener: Opener) -> None:
        store = opener()
        changes = published(1, queue="q")
        changes.usage[("A", "q")] = (4, 1)
        store.commit(changes, store.epoch)
        changes = acknowledged(1, queue="q")
        changes.dropped_queues = ["q"]
        store.commit(changes, store.epoch)
        assert (store.load(10).queues, store.load(10).usage) == ([], {})
        assert bodies_of(store, [1]) == [None]
        # made and dropped in one batch
        changes = Changes(queues=[m.QueueRow("q", "B", ())], dropped_queues=["q"])
        store.commit(changes, store.epoch)
        assert store.load(10).queues == []

    @pytest.mark.parametrize("count", [1, 49, 50, 51, 123])
    def test_commits_of_many_envelopes(self, opener: Opener, count: int) -> None:
        store = opener()
        bodies = [b"%d" % i for i in range(count)]
        store.commit(published(1, *bodies), store.epoch)
        assert bodies_of(store, range(1, count + 1)) == bodies
        head = store.load(1000).heads["box.B"]
        assert [(e.seq, e.number, e.size, e.envelope_id) for e in head] == [
            (i + 1, i + 1, len(body), incoming(i + 1).envelope_id) for i, body in enumerate(bodies)
        ]
        store.commit(acknowledged(*range(1, count + 1, 2)), store.epoch)
        assert bodies_of(store, range(1, count + 1)) == [
            b if i % 2 else None for i, b in enumerate(bodies)
        ]

    @pytest.mark.parametrize("size", [10, 70_000])
    def test_published_replaced_and_acknowledged_in_one_commit(
        self, opener: Opener, size: int
    ) -> None:
        store = opener()
        body = b"b" * size
        changes = published(1, body, body)
        changes.acked, changes.finished = [m.SeqRun("box.B", 2, 2, AT, "B")], [2]
        changes.replaced = [(1, incoming(1, b"n" * size, generation=1))]
        store.commit(changes, store.epoch)
        assert bodies_of(store, [1, 2]) == [b"n" * size, None]
        changes = acknowledged(1)
        changes.replaced = [(1, incoming(1, body, generation=2))]
        store.commit(changes, store.epoch)
        assert bodies_of(store, [1, 2]) == [None, None]

    def test_large_bodies_of_one_commit_go_one_by_one(self, opener: Opener) -> None:
        store = opener()
        bodies = [
            bytes([i]) * size
            for i, size in enumerate((70_000, 2_000_000, 10, 3_000_000, 70_001, 70_002))
        ]
        store.commit(published(1, *bodies), store.epoch)
        left = dict(enumerate(bodies, 1))
        for gone in (2, 6, 1, 4, 3):
            store.commit(acknowledged(gone), store.epoch)
            left.pop(gone)
            assert bodies_of(store, range(1, 7)) == [left.get(n) for n in range(1, 7)]
        store.close()
        assert bodies_of(opener(), [5]) == [bodies[4]]

    def test_several_queues_keep_a_body_until_the_last_lets_go(self, opener: Opener) -> None:
        store = opener()
        changes = published(1, queue="a")
        for name in ("b", "c"):
            changes.queues.append(m.QueueRow(name, "", ()))
            changes.entries.append(m.NewEntry(name, 1, 1, 0, ""))
        changes.envelopes = [changes.envelopes[0]._replace(references=3)]
        store.commit(changes, store.epoch)
        store.commit(
            Changes(acked=[m.SeqRun(n, 1, 1, AT, "B") for n in "ab"], released=[1, 1]), store.epoch
        )
        assert bodies_of(store, [1]) == [b"body"]
        store.commit(Changes(acked=[m.SeqRun("c", 1, 1, AT, "B")], released=[1]), store.epoch)
        assert bodies_of(store, [1]) == [None]

    def test_an_acknowledged_entry_is_not_delivered_again_and_keeps_its_time(
        self, opener: Opener
    ) -> None:
        store = opener()
        store.commit(published(1), store.epoch)
        store.commit(acknowledged(1), store.epoch)
        late = m.SeqRun("box.B", 1, 1, AT + 9, "C")
        store.commit(Changes(delivered=[late], acked=[late]), store.epoch)
        report = store.trace("A", incoming(1).envelope_id)
        assert report is not None
        (trace,) = report.traces
        assert (trace.state, trace.acknowledged_at, trace.client) == (
            EntryState.ACKNOWLEDGED,
            AT + 1,
            "B",
        )

    def test_topology_goes_as_it_came(self, opener: Opener) -> None:
        store = opener()
        before = store.load(10)
        made = Changes(
            clients=[m.ClientRow("A", "client", 1, 2, "lost")],
            exchanges=[("e", 2)],
            queues=[m.QueueRow("q", "", ("A", "B"))],
            bindings=[("e", "q", "k"), ("e", "q", "l")],
            grants=[("A", "publish", "e")],
            bindings_version=7,
        )
        store.commit(made, store.epoch)
        store.close()
        store = opener()
        after = store.load(10)
        assert (after.clients, after.exchanges, after.queues) == (
            made.clients,
            made.exchanges,
            made.queues,
        )
        assert (sorted(after.bindings), after.grants, after.bindings_version) == (
            made.bindings,
            made.grants,
            7,
        )
        store.commit(
            Changes(queues=[m.QueueRow("q", "A", ())], dropped_bindings=[("e", "q", "k")]),
            store.epoch,
        )
        assert store.load(10).queues == [m.QueueRow("q", "A", ())]
        assert store.load(10).bindings == [("e", "q", "l")]
        gone = Changes(
            dropped_exchanges=["e"],
            dropped_queues=["q"],
            dropped_bindings=[("e", "q", "l")],
            dropped_grants=[("A", "publish", "e")],
        )
        store.commit(gone, store.epoch)
        after = store.load(10)
        assert (after.exchanges, after.queues, after.bindings, after.grants) == (
            [],
            [],
            [],
            before.grants,
        )

    def test_numbers_that_clients_choose_may_be_of_any_size(self, opener: Opener) -> None:
        """They travel as u64; no database integer holds the largest."""
        store = opener()
        most = (1 << 64) - 1
        changes = published(1)
        huge = incoming(1)._replace(sealed_at=most, expires_at=most, generation=(1 << 32) - 1)
        changes.envelopes = [changes.envelopes[0]._replace(incoming=huge)]
        store.commit(changes, store.epoch)
        assert store.load(10).heads["box.B"][0].expires_at > 1 << 62
        store.commit(Changes(replaced=[(1, huge)]), store.epoch)
        wanted = RequiredFacts(
            entries=[("box.B", most, 1), ("box.B", 1, most), ("box.B", most - 1, most)]
        )
        assert list(store.facts(wanted, 10).entries["box.B"]) == [1]
        assert store.bundles("A", most) == []
        with pytest.raises(InvalidRequest):
            store.put_bundle(BundleRow("A", most, bytes(32), b"c", b"n", b"t", AT, AT))
        store.put_bundle(BundleRow("A", 1, bytes(32), b"c", b"n", b"t", AT, most))

    def test_one_envelope_of_a_queue_by_its_id(self, opener: Opener) -> None:
        store = opener()
        store.commit(published(1, b"a", b"b"), store.epoch)
        asked = [
            ("box.B", "A", incoming(2).envelope_id),
            ("box.B", "X", incoming(1).envelope_id),
            ("none", "A", b""),
        ]
        assert list(store.facts(RequiredFacts(envelopes=asked), 10).entries["box.B"]) == [2]
        store.commit(acknowledged(2), store.epoch)
        assert store.facts(RequiredFacts(envelopes=asked), 10).entries["box.B"] == {}

    def test_another_epoch_writes_nothing(self, opener: Opener) -> None:
        first = opener()
        Driver(first).clients()
        second = opener()
        assert second.epoch > first.epoch
        changes = Changes(clients=[m.ClientRow("LATE", "client", 1)])
        for store, epoch in ((first, first.epoch), (second, first.epoch)):
            with pytest.raises(Fenced):
                store.commit(changes, epoch)
        assert "LATE" not in {c.name for c in second.load(10).clients}
        second.commit(changes, second.epoch)

    def test_trace_knows_only_its_sender(self, opener: Opener) -> None:
        store = opener()
        Driver(store).clients().publish(incoming(1))
        assert store.trace("B", incoming(1).envelope_id) is None
        assert store.facts(RequiredFacts(), 10) == Facts()
