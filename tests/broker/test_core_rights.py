"""The core: who may do what, and topology."""

from __future__ import annotations

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Confirmed, Done, ExchangeType, Failed, ListedRows
from cipherbox.limits import LIMITS
from tests.broker.test_generations import fetched
from tests.broker.world import HQ, SMALL, World, consumer, labs, seqs


def test_only_readers_touch_a_queue_and_unknown_looks_like_forbidden() -> None:
    w = labs()
    c = w.connection_of["FL-LAB"]
    for queue in ("ca_rc_queue", "nothing"):
        for command in (
            m.Consume(c, "FL-LAB", 1, 1, queue, 1, 1),
            m.Fetch(c, "FL-LAB", 1, queue, 1, 1),
            m.Ack(c, "FL-LAB", 1, queue, [(1, 1)]),
            m.Nack(c, "FL-LAB", 1, queue, 1, True, 0, ""),
            m.Resend(c, "FL-LAB", 1, queue, "", bytes(16)),
            m.DeleteQueue(c, "FL-LAB", 1, queue),
        ):
            answer = w.ask(command)
            assert isinstance(answer, Failed)
            assert (
                str(answer.error)
                == f"no queue {queue!r} that you may use; see: cipherbox queue list"
            )


def test_what_needs_an_admin() -> None:
    w = labs()
    c = w.connection_of["CA-RC"]
    for command in (
        m.DeclareExchange(c, "CA-RC", 1, "mine", ExchangeType.DIRECT),
        m.DeleteExchange(c, "CA-RC", 1, "labs"),
        m.DeclareQueue(c, "CA-RC", 1, "for-ny", "NY-RC", ()),
        m.DeclareQueue(c, "CA-RC", 1, "shared", "", ("NY-RC",)),
        m.Bind(c, "CA-RC", 1, "labs", "ca_rc_queue", "x"),
        m.Purge(c, "CA-RC", 1, "ca_rc_queue"),
        m.Grant(c, "CA-RC", 1, "CA-RC", "admin", "", True),
        m.AddClient(c, "CA-RC", 1, "X", "admin"),
        m.RevokeClient(c, "CA-RC", 1, "NY-RC", ""),
    ):
        assert w.fails(command) == "forbidden"
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "bind", "labs", True))
    w.ok(m.Bind(c, "CA-RC", 1, "labs", "ca_rc_queue", "x"))
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "declare", "", True))
    w.ok(m.DeclareExchange(c, "CA-RC", 1, "mine", ExchangeType.DIRECT))
    w.ok(m.Grant(*HQ, w.next(), "CA-RC", "admin", "", True))
    w.ok(m.Purge(c, "CA-RC", 1, "ny_rc_queue"))
    # an admin reads nobody's queue
    assert w.fails(m.Fetch(c, "CA-RC", 1, "ny_rc_queue", 1, 1)) == "not-found"


def test_a_reader_who_loses_the_right_loses_the_deliveries() -> None:
    w = labs()
    w.ok(m.Grant(*HQ, w.next(), "NY-RC", "read", "ca_rc_queue", True))
    w.publish(w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "pa.dat"))
    assert seqs(consumer(w, "NY-RC", "ca_rc_queue")) == [1]
    w.ok(m.Grant(*HQ, w.next(), "NY-RC", "read", "ca_rc_queue", False))
    assert not w.broker.state.queues["ca_rc_queue"].unacknowledged
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


# -- topology --------------------------------------------------------------------------------------


def test_declaring_again() -> None:
    w = labs()
    assert w.ok(m.DeclareExchange(*HQ, 1, "labs", ExchangeType.TOPIC)) == Done(1, 0)
    assert w.fails(m.DeclareExchange(*HQ, 1, "labs", ExchangeType.FANOUT)) == "conflict"
    c = w.connection_of["CA-RC"]
    assert w.ok(m.DeclareQueue(c, "CA-RC", 1, "ca_rc_queue", "", ())) == Done(1, 0)
    assert (
        w.fails(m.DeclareQueue(w.connection_of["NY-RC"], "NY-RC", 1, "ca_rc_queue", "", ()))
        == "conflict"
    )
    assert w.fails(m.DeclareQueue(c, "CA-RC", 1, "box.CA-RC", "", ())) == "invalid-request"


def test_a_hundred_clients_declare_the_same_queue_at_once() -> None:
    w = World(LIMITS, *[f"C{i}" for i in range(100)])
    effects = w.run(
        *[m.DeclareQueue(c, name, 1, "q", "", ()) for name, c in w.connection_of.items()]
    )
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
    assert w.fails(m.DeleteQueue(w.connection_of["CA-RC"], "CA-RC", 1, "ca_rc_queue")) == "conflict"
    w.ok(m.DeleteQueue(*HQ, 1, "ca_rc_queue"))
    assert w.broker.state.totals.of("FL-LAB") == (0, 0)
    assert not [b for b in w.store.bindings if b[1] == "ca_rc_queue"]
    assert w.refused(w.item("FL-LAB", ("CA-RC",), "labs", "pa.dat")) == "no-route"


def test_a_client_has_a_bounded_number_of_queues() -> None:
    w = World(attrs.evolve(LIMITS, queues_per_client=2), "A")
    for i in range(2):
        w.ok(m.DeclareQueue(1, "A", 1, f"q{i}", "", ()))
    assert w.fails(m.DeclareQueue(1, "A", 1, "q2", "", ())) == "limit-reached"


def test_lists_show_what_one_may_see_in_pages() -> None:
    w = World(SMALL, *[f"C{i}" for i in range(8)])

    def rows(client: str, what: str, name: str = "") -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        after = ""
        while True:
            answer = w.ok(m.List(w.connection_of.get(client, 0), client, 1, what, name, after))
            assert isinstance(answer, ListedRows)
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
            effects = w.run(
                m.Publish(1, "FL-LAB", [w.item("FL-LAB", ("CA-RC", "NY-RC"), "labs", "fl.dat")])
            )
            shown.append(repr(effects) + str(i))
        return shown

    assert play() == play()


def test_a_right_that_is_given_or_taken_twice_changes_once() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareExchange(*HQ, w.next(), "x", ExchangeType.DIRECT))
    for give in (True, False):
        for changed in (1, 0):
            effects = w.run(m.Grant(*HQ, w.next(), "A", "publish", "x", give))
            assert effects.answers[0] == [Done(w.correlation, changed)]
            rows = effects.changes.grants if give else effects.changes.dropped_grants
            assert len(rows) == changed


def test_an_admin_is_one_by_role_or_by_right_and_nobody_else_is() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.AddClient(*HQ, w.next(), "ROOT", "admin"))
    w.connect("ROOT")

    def sees_roles(client: str) -> bool:
        answer = w.ok(m.List(w.connection_of.get(client, 0), client, w.next(), "clients", "", ""))
        assert isinstance(answer, m.ListedRows)
        return "role" in answer.rows[0]

    assert [sees_roles(name) for name in ("ROOT", "A", "B")] == [True, False, False]
    w.ok(m.Grant(*HQ, w.next(), "A", "admin", "", True))
    assert [sees_roles(name) for name in ("ROOT", "A", "B")] == [True, True, False]


def test_a_client_is_listed_as_connected_until_its_last_connection_ends() -> None:
    w = World(LIMITS, "A")
    first = w.connection_of["A"]
    second = w.connect("A")

    def connected() -> object:
        answer = w.ok(m.List(*HQ, w.next(), "clients", "A", ""))
        assert isinstance(answer, m.ListedRows)
        return answer.rows[0]["connected"]

    assert connected() is True
    w.run(m.Disconnect(first))
    assert connected() is True
    w.run(m.Disconnect(second))
    assert connected() is False


def test_who_has_nothing_at_hq_is_not_among_the_largest() -> None:
    w = World(LIMITS, "A", "B")
    w.publish(w.item("A", ("B",)))
    totals = w.broker.state.totals
    assert [(name, used.envelopes) for name, used in totals.largest(5)] == [("A", 1)]
    fetched(w, "B", "box.B")
    w.ok(m.Ack(w.connection_of["B"], "B", w.next(), "box.B", [(1, 1)]))
    assert totals.largest(5) == []


def test_the_admins_are_those_by_role_or_by_right_that_are_not_revoked() -> None:
    w = World(LIMITS, "A", "B", "C")
    admins = w.broker.state.rights.admins
    assert admins() == set()
    for name in ("ROOT", "OLD"):
        w.ok(m.AddClient(*HQ, w.next(), name, "admin"))
    w.ok(m.Grant(*HQ, w.next(), "A", "admin", "", True))
    w.ok(m.Grant(*HQ, w.next(), "B", "declare", "", True))
    assert admins() == {"ROOT", "OLD", "A"}
    for name in ("OLD", "A"):
        w.ok(m.RevokeClient(*HQ, w.next(), name, "stolen"))
    assert admins() == {"ROOT"}


def test_an_act_records_what_the_command_said_and_nothing_of_its_connection() -> None:
    w = World(LIMITS, "A", "B")
    acts = w.run(m.Grant(*HQ, w.next(), "A", "admin", "", True)).acts
    assert acts == [
        m.Act("", "Grant", {"target": "A", "right": "admin", "resource": "", "give": True})
    ]


def test_retention_is_recorded_and_needs_the_dead_letters_that_it_takes() -> None:
    w = World(LIMITS, "A")
    retain = m.Retain(*HQ, w.next(), m.Cutoffs(1, 2, 3))
    assert w.broker.required_facts([retain]).retired == retain.cutoffs.dead_letters > 0
    assert w.run(retain).acts == [m.Act("", "Retain", retain.cutoffs._asdict())]


def test_an_act_that_changes_nothing_here_is_recorded() -> None:
    w = World(LIMITS, "A", "B")
    home = w.connection_of["A"]
    for command in (
        m.EnrolHere(*HQ, w.next(), "A", "client"),
        m.Enrol(*HQ, w.next(), "A", "client", True),
        m.KeysAnew(*HQ, w.next(), "A", 3, "00"),
        m.ReplaceClient(*HQ, w.next(), "A"),
    ):
        effects = w.run(command)
        assert effects.answers[0] == [Done(command.correlation, 1)]
        assert effects.changes.noted == 1
        (act,) = effects.acts
        assert (act.by, act.what) == ("", type(command).__name__)
        assert set(act.detail) == {
            name for name in attrs.asdict(command) if name not in attrs.asdict(m.Command(0, "", 0))
        }
        replaced = {home: "replaced"} if isinstance(command, m.ReplaceClient) else {}
        assert {c: e.name for c, e in effects.closed.items()} == replaced


def test_an_unknown_right_is_refused_and_reading_is_granted_once() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", ()))
    assert w.fails(m.Grant(*HQ, w.next(), "A", "fly", "q", True)) == "invalid-request"
    for give in (True, False):
        for changed in (1, 0):
            answer = w.ok(m.Grant(*HQ, w.next(), "A", "read", "q", give))
            assert answer == Done(w.correlation, changed)


def test_an_exchange_is_listed_for_those_that_may_use_it() -> None:
    w = World(LIMITS, "A", "B", "C")
    w.ok(m.DeclareExchange(*HQ, w.next(), "e", ExchangeType.DIRECT))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "e", True))
    w.ok(m.Grant(*HQ, w.next(), "B", "bind", "e", True))
    seen = {}
    for name, connection in w.connection_of.items():
        answer = w.ok(m.List(connection, name, w.next(), "exchanges", "", ""))
        assert isinstance(answer, ListedRows)
        seen[name] = [row["name"] for row in answer.rows]
    assert seen == {"A": ["e"], "B": ["e"], "C": []}


def test_every_list_shows_whole_rows_and_each_client_its_own() -> None:
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareExchange(*HQ, w.next(), "e", ExchangeType.DIRECT))
    w.ok(m.DeclareQueue(*HQ, w.next(), "q", "B", ()))
    w.ok(m.Bind(*HQ, w.next(), "e", "q", "k"))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "e", True))
    w.publish(w.item("B", ("A",)))
    w.ok(m.RevokeClient(*HQ, w.next(), "A", "lost"))

    def rows(what: str, name: str = "", who: tuple[int, str] = HQ) -> list[dict[str, object]]:
        answer = w.ok(m.List(*who, w.next(), what, name, ""))
        assert isinstance(answer, ListedRows)
        return answer.rows

    assert rows("exchanges") == [{"name": "e", "type": "direct", "bindings": 1}]
    bound = {"name": "e", "exchange": "e", "queue": "q", "routing_key": "k"}
    assert rows("bindings") == [bound]
    assert rows("grants") == [{"name": "A", "right": "publish", "resource": "e"}]
    b = (w.connection_of["B"], "B")
    assert rows("grants", who=b) == []
    assert rows("clients", who=b) == [{"name": "B"}]
    (shown,) = rows("clients", "B")
    added, revoked = (w.store.clients[name] for name in "BA")
    assert shown == {
        "name": "B",
        "role": "client",
        "added_at": added.added_at,
        "revoked_at": 0,
        "reason": "",
        "connected": True,
        "bytes": 100,
        "envelopes": 1,
        "queues": 1,
    }
    (gone,) = rows("clients", "A")
    assert (gone["revoked_at"], gone["reason"]) == (revoked.revoked_at, "lost")
    assert rows("queues", "q")[0]["oldest_at"] == 0
