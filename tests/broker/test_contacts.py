"""HQ refuses what a recipient has told that it refuses: named recipients, routes, queues of
several, receipts.
"""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import Confirmed, Done, ExchangeType, Failed
from cipherbox.contact_lists import ContactLists
from cipherbox.limits import LIMITS
from tests.broker.world import HQ, World


def tell(w: World, client: str, **lists: tuple[str, ...]) -> m.Effects:
    effects = w.run(
        m.TellContacts(w.connection_of[client], client, w.next(), ContactLists(**lists))
    )
    assert isinstance(effects.answers[w.connection_of[client]][0], Done)
    return effects


def refusal(w: World, *to: str) -> str:
    answer = w.publish(w.item("A", to))
    assert isinstance(answer, Failed), answer
    assert answer.error.name == "recipient-refuses"
    return str(answer.error)


def test_a_client_speaks_for_itself_and_hq_keeps_it() -> None:
    w = World(LIMITS, "A", "B", "C")
    effects = tell(w, "B", blocked=("a",))
    assert effects.answers[w.connection_of["B"]] == [Done(w.correlation, 1)]
    (act,) = effects.acts
    assert (act.by, act.what, act.detail) == ("B", "TellContacts", {"allowed": 0, "blocked": 1})
    again = tell(w, "B", blocked=("a",))
    assert again.answers[w.connection_of["B"]] == [Done(w.correlation, 0)]
    assert not again.changes
    assert not again.acts
    assert refusal(w, "B") == "B takes no mail from A"
    w.recover()
    for name in ("A", "B", "C"):
        w.connect(name)
    assert refusal(w, "B", "C") == "B takes no mail from A"
    assert isinstance(w.publish(w.item("A", ("C",))), Confirmed)
    assert isinstance(w.publish(w.item("C", ("B",))), Confirmed)
    tell(w, "B")
    assert isinstance(w.publish(w.item("A", ("B", "C"))), Confirmed)
    assert w.broker.state.rights.contacts == w.store.load(4).contacts == {}


def test_as_soon_as_one_is_allowed_only_those_are_taken() -> None:
    w = World(LIMITS, "A", "B", "C", "D")
    tell(w, "B", allowed=("D",))
    tell(w, "C", allowed=("A", "D"), blocked=("A",))
    assert refusal(w, "B", "C", "D") == "B, C take no mail from A"
    assert isinstance(w.publish(w.item("D", ("B", "C"))), Confirmed)


def test_a_partial_publish_goes_on_for_the_others() -> None:
    w = World(LIMITS, "A", "B", "C")
    assert isinstance(w.publish(w.item("A", ("B", "C"))), Confirmed)  # where it goes is remembered
    tell(w, "B", blocked=("A",))
    item = w.item("A", ("B", "C"))._replace(partial=True)
    found = w.publish(item)
    assert isinstance(found, Confirmed)
    assert (found.queues, found.unrouted) == (("box.C",), ("B",))
    assert w.publish(item) == found._replace(duplicate=True)
    alone = w.publish(w.item("A", ("B",))._replace(partial=True))
    assert isinstance(alone, Failed)
    assert alone.error.detail == b"\0\0\0\1\1B"


def test_receipts_are_taken_and_files_are_not() -> None:
    w = World(LIMITS, "A", "B")
    tell(w, "B", blocked=("A",))
    assert isinstance(w.publish(w.item("A", ("B",), key=".sys")), Confirmed)
    answer = w.publish(w.item("A", ("B",), key=".bulk"))
    assert isinstance(answer, Failed)
    assert answer.error.name == "recipient-refuses"


def test_one_reader_of_a_route_or_a_queue_keeps_the_envelope_from_nobody_else() -> None:
    w = World(LIMITS, "A", "B", "C")
    w.ok(m.DeclareExchange(*HQ, w.next(), "e", ExchangeType.FANOUT))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "e", True))
    for name in ("B", "C"):
        w.ok(m.DeclareQueue(*HQ, w.next(), f"q{name}", name, ()))
        w.ok(m.Bind(*HQ, w.next(), "e", f"q{name}", ""))
    w.ok(m.DeclareQueue(*HQ, w.next(), "both", "", ("B", "C")))
    w.ok(m.Grant(*HQ, w.next(), "A", "publish", "both", True))
    tell(w, "B", blocked=("A",))
    for key in ("k", "", ".bulk"):  # the last two are a mailbox's without an exchange
        found = w.publish(w.item("A", ("B", "C"), exchange="e", key=key))
        assert isinstance(found, Confirmed)
        assert found.queues == ("qB", "qC")
    partial = w.publish(w.item("A", ("B", "C"), exchange="e", key="k")._replace(partial=True))
    assert isinstance(partial, Confirmed)
    assert (partial.queues, partial.unrouted) == (("qC",), ("B",))
    assert isinstance(w.publish(w.item("A", ("B", "C"), key="both")), Confirmed)
    tell(w, "C", blocked=("A",))
    for item in (
        w.item("A", ("B", "C"), exchange="e", key="k"),
        w.item("A", ("B", "C"), key="both"),
    ):
        answer = w.publish(item)
        assert isinstance(answer, Failed)
        assert str(answer.error) == "B, C take no mail from A"


def test_a_dead_letter_is_not_brought_back_by_a_generation_of_a_blocked_sender() -> None:
    w = World(LIMITS, "A", "B", "C")
    first = w.item("A", ("B", "C"))
    w.publish(first)
    w.ok(m.Consume(w.connection_of["B"], "B", w.next(), 1, "box.B", 10, 1 << 20))
    w.ok(m.Nack(w.connection_of["B"], "B", w.next(), "box.B", 1, False, 5, "not-accepted"))
    tell(w, "B", blocked=("A",))
    second = w.publish(first._replace(generation=1, envelope_hash=b"2" * 32, correlation=w.next()))
    assert isinstance(second, Confirmed)
    assert not second.duplicate
    assert not w.store.waiting("box.B")
    assert w.store.waiting("box.C")
    assert isinstance(w.publish(w.item("C", ("B",))), Confirmed)


def test_who_is_revoked_takes_no_mail_and_leaves_no_lists() -> None:
    w = World(LIMITS, "A", "B")
    tell(w, "B", blocked=("A",))
    w.ok(m.RevokeClient(*HQ, w.next(), "B", "lost"))
    assert w.broker.state.rights.contacts == w.store.load(4).contacts == {}
