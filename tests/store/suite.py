"""What every store is asked: `Suite` runs on each store its subclass opens."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.core import Broker
from cipherbox.broker.model import Changes, EntryState, Facts, Incoming, Wanted
from cipherbox.errors import Conflict, Fenced
from cipherbox.limits import LIMITS
from cipherbox.store.port import BundleRow, CertificateRow, Enrolment, Store

AT = 1_800_000_000_000
Opener = Callable[[], Store]


def incoming(index: int, body: bytes = b"body", to: tuple[str, ...] = ("B",), generation: int = 0) -> Incoming:
    envelope_id = (AT << 80 | 7 << 76 | 2 << 62 | index << 16).to_bytes(16, "big")
    return Incoming(
        index, False, 0, "A", envelope_id, generation, 3, hashlib.sha256(b"e" + body).digest(),
        hashlib.sha256(body).digest(), "", "", to, AT, 0, len(body), body,
    )  # fmt: skip


class Driver:
    """A broker over the store under test, as the engine drives it."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.broker = Broker(store.load(LIMITS.head_entries))
        for n, name in ((1, "A"), (2, "B"), (3, "C")):
            self.broker.connect(n, name)

    def run(self, *commands: m.AnyCommand) -> m.Effects:
        facts = self.store.facts(self.broker.wanted(commands), LIMITS.page_entries)
        effects = self.broker.handle(commands, facts, AT + 1)
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
        assert (snapshot.next_number, snapshot.clients, snapshot.queues, snapshot.heads) == (1, [], [], {})

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
        assert before.usage[("A", "box.B")] == 100_004
        assert [q.readers for q in before.queues if q.name == "q"] == [("C",)]
        assert again.read_bodies([2, 1, 99]) == [b"x" * 100_000, b"body", None]

    def test_only_the_head_is_loaded_and_pages_bring_the_rest(self, opener: Opener) -> None:
        store = opener()
        Driver(store).clients().publish(*[incoming(i) for i in range(1, 60)])
        assert [e.seq for e in store.load(10).heads["box.B"]] == list(range(1, 11))
        facts = store.facts(Wanted(pages=[("box.B", 10)]), 20)
        assert [e.seq for e in facts.pages["box.B"]] == list(range(11, 31))

    def test_an_acknowledged_envelope_loses_its_body_and_keeps_its_record(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1), incoming(2, b"y" * 70_000), incoming(3, to=("B", "C")))
        driver.consume()
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 3)]))
        assert store.read_bodies([1, 2, 3]) == [None, None, b"body"]
        driver.consume("C", 3)
        driver.run(m.Ack(3, "C", 1, "box.C", [(1, 1)]))
        assert store.read_bodies([3]) == [None]
        report = store.trace("A", incoming(3).envelope_id)
        assert report is not None
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
        item = incoming(1, to=("B", "C"))
        driver.publish(item)
        driver.consume()
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
        facts = store.facts(Wanted(known=[("A", item.envelope_id), ("B", item.envelope_id)]), 10)
        (known,) = facts.known.values()
        assert (known.number, known.envelope_hash) == (1, item.envelope_hash)
        assert known.queues == ("box.B", "box.C")
        assert known.waiting == (("box.C", 1),)

    def test_entries_for_acks_of_the_tail(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(*[incoming(i) for i in range(1, 6)])
        driver.run(m.Ack(2, "B", 1, "box.B", [(3, 1)]))
        facts = store.facts(Wanted(entries=[("box.B", 2, 3), ("missing", 1, 1)]), 10)
        assert sorted(facts.entries["box.B"]) == [2, 4]

    @pytest.mark.parametrize("size", [10, 70_000])
    def test_the_next_generation_replaces_body_and_hash(self, opener: Opener, size: int) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1, b"o" * 70_000))
        driver.publish(incoming(1, b"n" * size, generation=1))
        store.close()
        again = opener()
        assert again.read_bodies([1]) == [b"n" * size]
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
        assert store.read_bodies([1]) == [b"body"]
        report = store.trace("A", incoming(1).envelope_id)
        assert report is not None
        assert (report.traces[0].state, report.traces[0].reason) == (EntryState.DEAD, "bad signature")
        assert store.load(10).heads == {}

    def test_a_dropped_queue_and_one_of_the_same_name_are_two(self, opener: Opener) -> None:
        driver = Driver(opener()).clients()
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", ()), m.Grant(0, "", 2, "A", "publish", "q", True))
        driver.run(m.Grant(0, "", 2, "A", "publish", "q", True))
        item = incoming(1)._replace(routing_key="q")
        driver.publish(item)
        driver.run(m.Ack(2, "B", 1, "q", [(1, 1)]))
        driver.run(m.DeleteQueue(2, "B", 1, "q"))
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", ()))
        driver.run(m.Grant(0, "", 2, "A", "publish", "q", True))
        driver.publish(incoming(2)._replace(routing_key="q"))
        driver.store.close()
        again = opener()
        assert [e.number for e in again.load(10).heads["q"]] == [2]
        assert again.trace("A", item.envelope_id) is not None

    def test_acknowledged_and_dropped_in_one_commit(self, opener: Opener) -> None:
        driver = Driver(opener()).clients()
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", ()), m.Grant(0, "", 2, "A", "publish", "q", True))
        driver.publish(incoming(1)._replace(routing_key="q"))
        driver.run(m.Ack(2, "B", 1, "q", [(1, 1)]), m.DeleteQueue(2, "B", 2, "q"))
        assert "q" not in {row.name for row in driver.store.load(10).queues}
        assert driver.store.read_bodies([1]) == [None]
        driver.run(m.DeclareQueue(0, "", 1, "r", "B", ()), m.DeleteQueue(2, "B", 2, "r"))
        assert "r" not in {row.name for row in driver.store.load(10).queues}

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
        assert store.facts(Wanted(), 10) == Facts()

    # -- the registry -----------------------------------------------------------------------------------------------

    def test_bundles(self, opener: Opener) -> None:
        store = opener()
        rows = [BundleRow("A", n, bytes([n]) * 32, b"c", b"n" * 12, b"t" * 16, AT, AT + 1) for n in (1, 2, 3)]
        for row in rows:
            store.put_bundle(row)
        assert store.bundles("A", 1) == rows[1:]
        assert store.bundles("B", 0) == []
        assert store.bundle_by_hash(bytes([2]) * 32) == rows[1]
        assert store.bundle_by_hash(bytes(32)) is None
        with pytest.raises(Conflict):
            store.put_bundle(rows[0])

    def test_enrolments_certificates_and_settings(self, opener: Opener) -> None:
        store = opener()
        row = Enrolment(b"s" * 32, "A", "client", True, AT, AT + 1)
        store.put_enrolment(row)
        row.state, row.csr, row.chain = "issued", b"csr", (b"leaf", b"issuing")
        store.put_enrolment(row)
        assert store.enrolment(b"s" * 32) == row
        assert store.enrolment(b"x" * 32) is None
        assert store.enrolments(("issued",)) == [row]
        assert store.enrolments(("open",)) == []
        certificate = CertificateRow("f" * 40, "A", AT, AT + 1, 0, b"der")
        store.put_certificate(certificate)
        assert store.revoke_certificates("A", AT + 5) == [certificate._replace(revoked_at=AT + 5)]
        assert store.revoke_certificates("A", AT + 9)[0].revoked_at == AT + 5
        assert store.certificates("B") == []
        store.put_setting("crl", b"\x00\x01")
        assert store.get_setting("crl") == b"\x00\x01"
        assert store.get_setting("none") is None
