"""Envelopes of one Publish are accepted in runs: the outcome is that of one Publish for each."""

from __future__ import annotations

import random

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Failed, Incoming
from cipherbox.broker.queues import Queue
from tests.broker.world import BIG, SMALL, START, World


def world() -> World:
    """A small HQ with waiting envelopes, a queue of bounded length and a reader with credit."""
    w = World(SMALL, "A", "B", "C", "D")
    w.ok(m.DeclareQueue(0, "", 1, "few", "D", (), 0, 3))
    w.ok(m.Grant(0, "", 1, "A", "publish", "few", True))
    w.ok(m.LimitClient(0, "", 2, "A", "envelopes", 14))
    w.run(m.Consume(2, "B", 3, 1, "box.B", 3, BIG))
    for to, key in (("B", ""), ("C", ""), ("D", "few"), ("D", "few")):
        w.publish(w.item("A", (to,), key=key))
    return w


def items(w: World, chance: random.Random) -> list[Incoming]:
    """New envelopes, mostly alike; old and repeated ones, other generations, and invalid ones."""
    made: list[Incoming] = [entry[2] for entry in w.store.envelopes.values()]
    found: list[Incoming] = []
    for _ in range(chance.randint(1, 25)):
        what, old = chance.random(), chance.choice(made)
        if what < 0.7:
            to = chance.choice((("B",), ("B",), ("B",), ("C",), ("D",), ("B", "C"), ("B", "X")))
            one = w.item(
                "A",
                to,
                key="few" if to == ("D",) else "",
                size=chance.choice((1, 50, 300)),
                partial=chance.random() < 0.1,
            )
        elif what < 0.8:
            one = old._replace(correlation=w.next())
        elif what < 0.9:
            one = old._replace(
                correlation=w.next(),
                generation=old.generation + 1,
                envelope_hash=chance.randbytes(32),
                size=chance.choice((1, 400)),
            )
        elif what < 0.95:  # before the newest, and unknown
            late = START - chance.randint(1, 3)
            envelope_id = (late << 80 | 7 << 76 | 2 << 62 | w.ids << 16).to_bytes(16, "big")
            one = w.item("A", ("B",), envelope_id=envelope_id)
        else:
            one = w.item("A", ("B",), expires_at=1)
        made.append(one)
        found.append(one)
    return found


def outcome(w: World, effects: m.Effects) -> list[object]:
    changes, state = effects.changes, w.broker.state
    queues = {
        q.name: (q.depth, q.size, q.next, q.loaded_to, [*q.ready], q.used, [*q.unacknowledged])
        for q in state.queues.values()
    }
    answers = [
        (a.correlation, str(a.error)) if isinstance(a, Failed) else a for a in effects.answers[1]
    ]
    lists = (changes.envelopes, changes.entries, changes.replaced, changes.dead, changes.counters)
    return [
        answers,
        queues,
        effects.accepted,
        effects.confirmed,
        state.next_number,
        state.highest["A"],
        state.totals.of("A"),
        *(sorted(rows, key=repr) for rows in lists),  # type: ignore[arg-type]
        changes.highest,
        changes.usage,
        changes.noted,
        sorted(map(repr, effects.deliveries)),
    ]


@pytest.mark.parametrize("seed", range(40))
def test_one_publish_of_many_is_many_of_one(seed: int) -> None:
    one, many = world(), world()
    for step in range(2):  # the second finds what the first left
        sent = items(one, random.Random(seed * 2 + step))
        assert sent == items(many, random.Random(seed * 2 + step))
        joined = outcome(one, one.run(m.Publish(1, "A", sent)))
        single = outcome(many, many.run(*(m.Publish(1, "A", [item]) for item in sent)))
        assert joined == single


def test_a_run_ends_where_its_quota_ends() -> None:
    w = World(SMALL, "A", "B", "C")
    sizes = [900, 900, 300, 200, 1]  # of 2,000
    sent = [w.item("A", ("B",), size=size) for size in sizes]
    other = w.item("A", ("C",), size=900)
    answers = w.run(m.Publish(1, "A", [*sent, other])).answers[1]
    assert [isinstance(a, Failed) for a in answers] == [False, False, True, False, True, False]
    assert w.broker.state.queues["box.B"].used["A"] == (2000, 3)


def test_new_envelopes_are_routed_and_counted_once_for_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    w = World(SMALL, "A", "B")
    counted = []
    add = Queue.add_used

    def add_used(queue: Queue, sender: str, size: int, envelopes: int) -> None:
        counted.append((sender, size, envelopes))
        add(queue, sender, size, envelopes)

    monkeypatch.setattr(Queue, "add_used", add_used)
    w.run(m.Publish(1, "A", [w.item("A", ("B",), size=10) for _ in range(50)]))
    assert counted == [("A", 500, 50)]
