"""The part of the store suite about what outlives an envelope: the signed log, dead letters, the
registry.
"""

from __future__ import annotations

import time

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import LogRow, RequiredFacts
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope import merkle_tree as tree
from cipherbox.errors import Conflict, Damaged, Fenced, InvalidRequest, StoreError
from cipherbox.store.log_table import FIRST
from cipherbox.store.port import BundleRow, CertificateRow, Enrolment
from tests.store.suite import AT, Driver, Opener, bodies_of, incoming, published


def logged(index: int, number: int) -> m.Changes:
    changes = published(number, queue="q")
    return attrs.evolve(
        changes, log=LogRow(index, AT, b"head%d" % index, bytes(index * 100), b"n" * 32, bytes(16))
    )


class Records:
    """Mixed into the classes that have the fixture `opener`."""

    @pytest.mark.parametrize("size", [10, 70_000])
    def test_an_envelope_is_read_back_with_its_place_in_the_log(
        self, opener: Opener, size: int
    ) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(incoming(1))  # of a time before the log
        driver.log = LogRow(7, AT, b"head", b"", b"", bytes(16))
        driver.publish(incoming(2, b"x" * size), incoming(3, b"y" * size))
        driver.log = LogRow(9, AT, b"head", b"", b"", bytes(16))
        driver.publish(incoming(3, b"n" * size, generation=1))
        store.close()
        again = opener()
        assert again.read_bodies([1, 2, 3]) == [(0, b"body"), (7, b"x" * size), (9, b"n" * size)]
        for index, entry in ((1, 0), (2, 7), (3, 9)):
            known = again.acceptance("A", incoming(index).envelope_id)
            assert known is not None
            assert known.entry == entry

    def test_the_log_is_written_with_its_commit(self, opener: Opener) -> None:
        store = opener()
        assert store.last_log() is None
        for index in (1, 2, 3):
            store.commit(logged(index, index), store.epoch)
        try:
            store.commit(logged(4, 3), store.epoch)  # an envelope number that is taken
        except StoreError:
            pass
        except Exception as error:
            assert type(error).__name__ == "StoreUnavailable"  # noqa: PT017
        try:
            store.commit(logged(4, 4), store.epoch + 1)
        except Fenced:
            pass
        store.close()
        store = opener()
        last = store.last_log()
        assert last is not None
        assert (last.index, last.record, last.body) == (3, b"head3", bytes(300))
        assert [row.index for row in store.log(1, 10, 1 << 20)] == [2, 3]
        assert [row.index for row in store.log(0, 2, 1 << 20)] == [1, 2]
        assert [row.index for row in store.log(0, 10, 1)] == [1]  # never none while there is one
        assert store.log(3, 10, 1) == []

    def test_dead_letters_are_listed_settled_and_listed_no_more(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(*[incoming(i) for i in range(1, 6)])
        driver.consume()
        for seq in (1, 2, 3):
            driver.run(m.Nack(2, "B", seq, "box.B", seq, False, 5, f"bad {seq}"))
        rows, after = store.dead_letters("box.B", "", 2, False)
        assert [(r["queue"], r["seq"], r["reason"], r["by"]) for r in rows] == [
            ("box.B", 1, "bad 1", "B"),
            ("box.B", 2, "bad 2", "B"),
        ]
        assert (rows[0]["sender"], rows[0]["deliveries"], rows[0]["last_client"]) == ("A", 1, "B")
        more, end = store.dead_letters("box.B", after, 2, False)
        assert ([r["seq"] for r in more], end) == ([3], "")
        assert store.dead_letters("box.A", "", 10, False) == ([], "")
        for cursor in ("x", "1/x", "-1/0", f"{1 << 31}/0", f"0/{1 << 63}"):
            with pytest.raises(InvalidRequest, match="invalid cursor"):
                store.dead_letters("box.B", cursor, 10, False)
        assert set(store.facts(RequiredFacts(dead=[("box.B", 2, 5)]), 10).dead["box.B"]) == {2, 3}
        driver.run(
            m.RedriveOrDiscard(0, "", 9, "box.B", [(1, 1)], False),
            m.RedriveOrDiscard(0, "", 9, "box.B", [(2, 1)], True),
        )
        assert [r["seq"] for r in store.dead_letters("", "", 10, False)[0]] == [3]
        settled = [(r["seq"], r["settled"]) for r in store.dead_letters("", "", 10, True)[0]]
        assert settled == [(1, "redriven"), (2, "dropped"), (3, "")]
        assert bodies_of(store, [1, 2, 3]) == [b"body", None, b"body"]
        store.close()
        store = opener()
        assert [e.seq for e in store.load(10).heads["box.B"]] == [4, 5, 6]

    def test_limits_of_a_queue(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", (), 60, 5))
        driver.run(m.DeclareQueue(0, "", 1, "q", "B", (), max_length=7))
        store.close()
        (row,) = [q for q in opener().load(10).queues if q.name == "q"]
        assert (row.ttl_s, row.max_length) == (60, 7)

    def test_what_is_old_goes_and_what_waits_stays(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.publish(*[incoming(i) for i in range(1, 6)])
        driver.consume()
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 2)]))
        driver.run(m.Nack(2, "B", 2, "box.B", 3, False, 5, "bad"))
        later = AT + 10_000
        nothing = m.Cutoffs(AT - 1, AT - 1, 0)
        assert not store.retention_due(nothing)
        # of each kind, the oldest day; in PostgreSQL the oldest month, whose end counts
        far = AT + 90 * m.DAY_MS
        step = store.retention_due(m.Cutoffs(far, far, far))
        assert step is not None
        assert AT < step.dead_letters <= AT + m.DAY_MS + 10_000
        assert step.log <= AT + m.DAY_MS + 10_000
        assert AT < step.metadata <= AT + 40 * m.DAY_MS
        metadata = m.Cutoffs(later, 0, 0)
        assert store.retention_due(metadata)
        driver.run(m.Retain(0, "", 3, metadata))
        assert not store.retention_due(metadata)
        assert store.trace("A", incoming(1).envelope_id) is None
        assert store.trace("A", incoming(3).envelope_id) is not None  # a dead letter nobody settled
        assert store.trace("A", incoming(4).envelope_id) is not None
        assert store.load(10).watermark == later
        dead = m.Cutoffs(0, later, 0)
        assert store.retention_due(dead)
        driver.run(m.Retain(0, "", 4, dead))
        (row,) = store.dead_letters("", "", 10, True)[0]
        assert (row["settled"], row["settled_by"]) == ("dropped", "retention")
        assert bodies_of(store, [3, 4]) == [None, b"body"]
        store.close()
        assert [e.seq for e in opener().load(10).heads["box.B"]] == [4, 5]

    def test_what_each_client_has_outlives_everything(self, opener: Opener) -> None:
        """Waiting, dead, redriven, dropped, sealed again, gone with its time: the sums are right
        after each opening.
        """
        store = opener()
        driver = Driver(store).clients()
        driver.publish(
            *[incoming(i, bytes(10 * i)) for i in range(1, 7)],
            incoming(7, bytes(70), to=("B", "C")),
        )
        driver.consume()

        def sums() -> dict[tuple[str, str], tuple[int, int]]:
            nonlocal store, driver
            found = {key: tuple(used) for key, used in store.load(10).usage.items()}
            store.close()
            store = opener()
            driver = Driver(store)
            driver.consume()
            assert driver.broker.state.totals.of("A") == tuple(
                map(sum, zip(*found.values(), strict=True))
            )
            return found

        assert sums() == {("A", "box.B"): (280, 7), ("A", "box.C"): (70, 1)}
        for seq in (1, 2, 3, 4):
            driver.run(m.Nack(2, "B", seq, "box.B", seq, False, 5, "bad"))
        assert sums()[("A", "box.B")] == (280, 7)
        driver.run(
            m.RedriveOrDiscard(0, "", 9, "box.B", [(1, 1)], False),
            m.RedriveOrDiscard(0, "", 9, "box.B", [(2, 1)], True),
        )
        assert sums()[("A", "box.B")] == (260, 6)
        # a dead letter's next generation takes its place
        again = incoming(3, bytes(35), generation=1)
        dropped = incoming(2, bytes(25), generation=1)  # and one that was dropped comes back
        driver.run(m.Publish(1, "A", [again, dropped]))
        assert sums()[("A", "box.B")] == (290, 7)
        driver.run(m.Retain(0, "", 3, m.Cutoffs(0, AT + 10_000, 0)))  # takes the fourth
        assert sums()[("A", "box.B")] == (250, 6)
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 100)]))
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, 100)]))
        assert sums() == {("A", "box.C"): (70, 1)}

    @pytest.mark.parametrize("together", [False, True])
    def test_a_discarded_copy_that_is_enqueued_again_is_acknowledged_for_itself_alone(
        self, opener: Opener, together: bool
    ) -> None:
        """The body stays until C has acknowledged its own copy."""
        for to in (("B", "C"), ("B",)):
            number = 3 - len(to)
            store = opener()
            driver = Driver(store).clients()
            driver.publish(incoming(number, to=to))
            driver.run(m.Purge(0, "", 1, "box.B"))
            discard = m.RedriveOrDiscard(0, "", 9, "box.B", [(1, 99)], True)
            again = m.Publish(1, "A", [incoming(number, b"again", to=to, generation=1)])
            for commands in [[discard, again]] if together else [[discard], [again]]:
                driver.run(*commands)
            assert bodies_of(store, [number]) == [b"again"]
            driver.run(m.Ack(2, "B", 1, "box.B", [(1, 100)]))
            assert bodies_of(store, [number]) == [b"again" if "C" in to else None]
            driver.run(m.Ack(3, "C", 1, "box.C", [(1, 100)]))
            assert bodies_of(store, [number]) == [None]
            store.close()

    def test_limits_of_one_client(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.run(
            m.LimitClient(0, "", 1, "A", "bytes", 5),
            m.LimitClient(0, "", 2, "A", "queues", 1 << 70),
        )
        driver.run(
            m.LimitClient(0, "", 1, "A", "bytes", 7), m.LimitClient(0, "", 1, "B", "bytes", 9)
        )
        driver.run(m.LimitClient(0, "", 1, "B", "bytes", -1))
        store.close()
        assert opener().load(10).client_limits == {
            ("A", "bytes"): 7,
            ("A", "queues"): (1 << 63) - 1,
        }

    def test_contacts_of_clients(self, opener: Opener) -> None:
        store = opener()
        driver = Driver(store).clients()
        driver.run(
            m.TellContacts(0, "A", 1, ContactLists(("B", "C"))),
            m.TellContacts(0, "B", 2, ContactLists((), ("A",))),
        )
        driver.run(
            m.TellContacts(0, "A", 1, ContactLists(("B",), ("C",))),
            m.TellContacts(0, "B", 2, ContactLists()),
        )
        driver.run(
            m.TellContacts(0, "C", 3, ContactLists((), tuple(f"LAB-{n}" for n in range(1024))))
        )
        store.close()
        found = opener().load(10).contacts
        assert found.pop("C").blocked[-1] == "LAB-1023"
        assert found == {"A": ContactLists(("B",), ("C",))}

    def test_the_log_keeps_its_newest_entry(self, opener: Opener) -> None:
        store, edge = opener(), tree.RightEdge()
        for index in range(1, 5):
            nodes = b"".join(edge.append(tree.leaf_hash(b"h%d" % index)))
            row = LogRow(index, AT + index, b"h%d" % index, b"b", nodes, bytes([index > 2]) * 16)
            store.commit(attrs.evolve(logged(index, index), log=row), store.epoch)
        assert [store.first_of(bytes([new]) * 16) for new in (0, 1)] == [0, 3]
        cutoffs = m.Cutoffs(0, 0, AT + 3)
        assert store.retention_due(cutoffs)
        store.commit(m.Changes(retention=cutoffs), store.epoch)
        assert [row.index for row in store.log(0, 10, 1 << 20)] == [3, 4]
        everything = m.Cutoffs(0, 0, AT + 100)
        store.commit(m.Changes(retention=everything), store.epoch)
        assert [row.index for row in store.log(0, 10, 1 << 20)] == [4]
        assert not store.retention_due(everything)
        assert store.log(0, 1, 1)[0].record == b"h4"
        assert tree.root_at(4, store.log_nodes) == edge.root()  # proofs of old heads hold on
        with pytest.raises(Damaged):
            store.log_nodes([(0, 4)])

    # -- the registry ------------------------------------------------------------------------------

    def test_bundles(self, opener: Opener) -> None:
        store = opener()
        rows = [
            BundleRow("A", n, bytes([n]) * 32, b"c", b"n" * 12, b"t" * 16, AT, AT + 1)
            for n in (1, 2, 3)
        ]
        for row in rows:
            store.put_bundle(row)
        assert store.bundles("A", 1) == rows[1:]
        assert store.bundles("B", 0) == []
        assert store.bundle_by_hash(bytes([2]) * 32) == rows[1]
        assert store.bundle_by_hash(bytes(32)) is None
        with pytest.raises(Conflict):
            store.put_bundle(rows[0])

    def test_prekeys_are_handed_out_once(self, opener: Opener) -> None:
        store = opener()
        assert store.take_prekeys("A", True) == (b"", b"")
        assert store.put_prekeys("A", b"", [], 3, False) == 0
        assert store.put_prekeys("A", b"signed", [(2, b"two"), (1, b"one")], 3, False) == 2
        assert store.put_prekeys("A", b"", [(3, b"three")], 3, False) == 3
        with pytest.raises(Conflict):
            store.put_prekeys("A", b"other", [(4, b"four")], 3, False)
        assert store.take_prekeys("A", False) == (b"signed", b"")
        assert store.take_prekeys("A", True) == (b"signed", b"one")
        store.close()
        store = opener()
        assert store.take_prekeys("A", True) == (b"signed", b"two")
        assert store.take_prekeys("B", True) == (b"", b"")
        assert store.put_prekeys("A", b"again", [(9, b"nine")], 3, True) == 1
        assert store.take_prekeys("A", True) == (b"again", b"nine")
        assert store.take_prekeys("A", True) == (b"again", b"")

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
        store.put_setting("number", b"7")
        assert (store.get_number("number"), store.get_number("none")) == (7, 0)
        # only a server has a clock of its own
        assert store.database_ms() == 0 or abs(store.database_ms() / 1000 - time.time()) < 600

    def test_damaged_numbers_are_named(self, opener: Opener) -> None:
        store = opener()
        for name, read in (
            ("crl_number", lambda: store.get_number("crl_number")),
            (FIRST, lambda: store.log(0, 10, 100)),
            ("bindings_version", lambda: store.load(1)),
        ):
            store.put_setting(name, b"1\xb2")
            with pytest.raises(Damaged, match="is damaged in the database"):
                read()
