"""The core against a simple model, driven by Hypothesis: publishers, consumers, acks, cuts,
restarts in any order.

The oracle keeps for every (queue, seq) what became of it and who holds it, and knows each
consumer's window.  What must hold at every moment: confirmed means waiting, out, or dead with a
reason; acknowledged means never again; a queue is handed out in order, what came back first; a
window is never passed but by the bytes of one envelope; a publish is all or nothing; nobody who has
credit waits for what is there; the counters are the oracle's; and a core loaded from the store
knows the same as the one that runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import (
    Acked,
    Confirmed,
    Done,
    ExchangeType,
    Failed,
    FetchedEntries,
    Incoming,
)
from tests import soak
from tests.broker.world import SMALL, World, durable

CLIENTS = ("A", "B", "C")
SHARED = "shared"  # read by B and C, bound to exchange x
QUEUES = (*(f"box.{c}" for c in CLIENTS), SHARED)
READERS = {**{f"box.{c}": (c,) for c in CLIENTS}, SHARED: ("B", "C")}
LIVE, ACKED, DEAD = "live", "acked", "dead"
Place = tuple[str, int]


class Deliveries(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.w = World(SMALL, *CLIENTS)
        for command in (
            m.DeclareExchange(0, "", 1, "x", ExchangeType.TOPIC),
            m.DeclareQueue(0, "", 2, SHARED, "B", ("C",)),
            m.Bind(0, "", 3, "x", SHARED, "k.#"),
            m.Grant(0, "", 4, "*", "publish", "x", True),
        ):
            self.w.ok(command)
        self.sent: dict[tuple[str, bytes], Incoming] = {}  # confirmed, in its last generation
        self.refused: list[Incoming] = []
        self.where: dict[tuple[str, bytes], list[Place]] = {}
        self.state: dict[Place, str] = {}
        self.of: dict[Place, tuple[str, bytes]] = {}
        self.attempts: dict[Place, int] = {}
        self.holder: dict[Place, tuple[int, int]] = {}  # connection and tag
        self.window: dict[tuple[int, int], list[int]] = {}  # envelopes, bytes
        self.reads: dict[tuple[int, int], str] = {}

    # -- the oracle --------------------------------------------------------------------------------

    def connection(self, client: str) -> int:
        return self.w.connection_of.get(client) or self.w.connect(client)

    def live(self, queue: str) -> list[int]:
        return sorted(seq for (q, seq), state in self.state.items() if q == queue and state == LIVE)

    def item(self, place: Place) -> Incoming:
        return self.sent[self.of[place]]

    def used(self, sender: str, queue: str) -> int:
        return sum(self.item(p).size for p in self.held(queue) if self.of[p][0] == sender)

    def held(self, queue: str) -> list[Place]:
        """What waits, and dead letters whose next generation has not come."""
        newest = {key: s for (q, s), key in sorted(self.of.items()) if q == queue}
        return [
            (q, s)
            for (q, s), state in self.state.items()
            if q == queue and (state == LIVE or (state == DEAD and newest[self.of[(q, s)]] == s))
        ]

    def run(self, command: m.AnyCommand | None = None) -> m.Effects:
        effects = self.w.run(*([command] if command is not None else []))
        for dead in effects.changes.dead:
            place = (dead.queue, dead.seq)
            assert self.state[place] == LIVE
            self.state[place] = DEAD
            self.holder.pop(place, None)
            if dead.reason == "expired":
                assert 0 < self.item(place).expires_at <= self.w.now
            elif dead.reason.startswith("delivered"):
                assert self.attempts[place] >= SMALL.deliveries
            else:
                assert dead.reason in ("bad", "purged by HQ", "damaged")
        return effects

    def after(self, effects: m.Effects) -> None:
        """Checks and notes what was handed out, once the oracle knows what the command itself
        did.
        """
        best: dict[str, int] = {}
        for handed in effects.deliveries:
            window = self.window[(handed.connection, handed.tag)]
            assert handed.queue == self.reads[(handed.connection, handed.tag)]
            for entry in handed.entries:
                assert window[0] > 0
                assert window[1] > 0
                window[0] -= 1
                window[1] -= entry.size
                self.hand(handed.queue, entry, handed.connection, handed.tag)
            seqs = [e.seq for e in handed.entries]
            assert seqs == sorted(seqs)
            best[handed.queue] = max(best.get(handed.queue, 0), seqs[-1])
        for queue, highest in best.items():
            assert all((queue, s) in self.holder for s in self.live(queue) if s < highest)

    def hand(self, queue: str, entry: m.Entry, connection: int, tag: int) -> None:
        place = (queue, entry.seq)
        assert self.state[place] == LIVE
        assert place not in self.holder
        item = self.item(place)
        assert (entry.sender, entry.envelope_id, entry.size) == (
            item.sender,
            item.envelope_id,
            item.size,
        )
        assert not 0 < entry.expires_at <= self.w.now
        self.attempts[place] += 1
        assert entry.attempts == self.attempts[place] <= SMALL.deliveries
        self.holder[place] = (connection, tag)

    def release(self, held: Sequence[Place]) -> None:
        for place in held:
            del self.holder[place]

    # -- publishing --------------------------------------------------------------------------------

    @rule(
        sender=st.sampled_from(CLIENTS),
        to=st.sets(st.sampled_from(CLIENTS), min_size=1),
        route=st.booleans(),
        size=st.sampled_from([1, 20, 900]),
        life=st.sampled_from([0, 0, 5, 100]),
        count=st.integers(1, 6),
    )
    def publish(
        self, sender: str, to: set[str], route: bool, size: int, life: int, count: int
    ) -> None:
        c = self.connection(sender)
        where = ("x", "k.1") if route else ("", "")
        over = self.w.now + 1 + life if life else 0
        names = tuple(sorted(to))
        items = [
            self.w.item(sender, names, *where, size=size, expires_at=over) for _ in range(count)
        ]
        queues = (SHARED,) if route else tuple(f"box.{x}" for x in names)
        used = {q: self.used(sender, q) for q in queues}
        effects = self.run(m.Publish(c, sender, items))
        new = {(q, e.number): e.seq for e in effects.changes.entries for q in [e.queue]}
        numbers = iter(sorted({e.number for e in effects.changes.entries}))
        for item, answer in zip(items, effects.answers[c], strict=True):
            if route and to != {"B", "C"}:
                assert isinstance(answer, Failed)
                assert answer.error.name == "route-changed"
                self.refused.append(item)
            elif any(used[q] + size > SMALL.quota_bytes for q in queues):
                assert isinstance(answer, Failed)
                assert answer.error.name == "quota-exceeded"
                self.refused.append(item)
            else:
                assert answer == Confirmed(item.correlation, False, queues, (), self.w.now)
                number = next(numbers)
                self.sent[(sender, item.envelope_id)] = item
                self.note((sender, item.envelope_id), [(q, new.pop((q, number))) for q in queues])
                for q in queues:
                    used[q] += size
        assert not new
        self.after(effects)

    def note(self, key: tuple[str, bytes], places: list[Place]) -> None:
        self.where.setdefault(key, []).extend(places)
        for place in places:
            assert place not in self.state
            self.state[place], self.of[place], self.attempts[place] = LIVE, key, 0

    @rule(data=st.data())
    def publish_again(self, data: st.DataObject) -> None:
        if self.sent:
            item = self.sent[data.draw(st.sampled_from(sorted(self.sent)))]
            c = self.connection(item.sender)
            effects = self.run(m.Publish(c, item.sender, [item, item]))
            for answer in effects.answers[c]:
                assert isinstance(answer, Confirmed)
                assert answer.duplicate
            assert not effects.changes.envelopes
            assert not effects.changes.entries
            assert not effects.changes.replaced
            self.after(effects)

    @rule(data=st.data(), size=st.sampled_from([1, 20, 30]), step=st.integers(0, 1))
    def publish_the_next_generation(self, data: st.DataObject, size: int, step: int) -> None:
        if not self.sent:
            return
        key = data.draw(st.sampled_from(sorted(self.sent)))
        old = self.sent[key]
        self.w.ids += 1
        item = old._replace(
            generation=old.generation + step,
            envelope_hash=self.w.ids.to_bytes(32, "big"),
            size=size,
            expires_at=0,
        )
        c = self.connection(item.sender)
        places = self.where[key]
        waiting = [p for p in places if self.state[p] == LIVE]
        dead = sorted({q for q, _ in places} - {q for q, s in places if self.state[(q, s)] != DEAD})
        over = any(
            self.used(item.sender, q) + size - old.size > SMALL.quota_bytes
            for q in [*(q for q, _ in waiting), *dead]
        )
        effects = self.run(m.Publish(c, item.sender, [item]))
        (answer,) = effects.answers[c]
        if not step:
            assert isinstance(answer, Failed)
            assert answer.error.name == "id-reused"
        elif over:
            assert isinstance(answer, Failed)
            assert answer.error.name == "quota-exceeded"
        else:
            assert isinstance(answer, Confirmed)
            assert answer.duplicate == (not waiting and not dead)
            assert bool(effects.changes.replaced) == bool(waiting or dead)
            # a dead letter waits again
            assert sorted(e.queue for e in effects.changes.entries) == dead
            if waiting or dead:
                self.sent[key] = item
                self.release([p for p in waiting if p in self.holder])
                self.note(key, [(e.queue, e.seq) for e in effects.changes.entries])
        self.after(effects)

    # -- consuming ---------------------------------------------------------------------------------

    @rule(
        data=st.data(),
        tag=st.integers(1, 2),
        credit=st.integers(1, 5),
        size=st.sampled_from([1, 50, 1 << 20]),
    )
    def consume_or_credit(self, data: st.DataObject, tag: int, credit: int, size: int) -> None:
        queue = data.draw(st.sampled_from(QUEUES))
        client = data.draw(st.sampled_from(READERS[queue]))
        c = self.connection(client)
        window = self.window.setdefault((c, tag), [0, 0])
        window[0] += credit
        window[1] += size
        if (c, tag) in self.reads:
            self.after(self.run(m.Credit(c, tag, credit, size)))
        else:
            self.reads[(c, tag)] = queue
            self.after(self.run(m.Consume(c, client, 1, tag, queue, credit, size)))

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.reads:
            c, tag = data.draw(st.sampled_from(sorted(self.reads)))
            held = [p for p, h in self.holder.items() if h == (c, tag)]
            client = next(name for name, number in self.w.connection_of.items() if number == c)
            effects = self.run(m.Cancel(c, client, 1, tag))
            assert effects.answers[c] == [Done(1, len(held))]
            self.release([p for p in held if p in self.holder])
            del self.reads[(c, tag)], self.window[(c, tag)]
            self.after(effects)

    @rule(queue=st.sampled_from(QUEUES), room=st.integers(0, 6), size=st.sampled_from([1, 1 << 20]))
    def fetch(self, queue: str, room: int, size: int) -> None:
        client = READERS[queue][-1]
        c = self.connection(client)
        free = [s for s in self.live(queue) if (queue, s) not in self.holder]
        effects = self.run(m.Fetch(c, client, 1, queue, room, size))
        (answer,) = effects.answers[c]
        assert isinstance(answer, FetchedEntries)
        assert len(answer.entries) <= room
        assert size > 1 or len(answer.entries) <= 1
        for entry in answer.entries:
            self.hand(queue, entry, c, 0)
        left = [s for s in free if self.state[(queue, s)] == LIVE and (queue, s) not in self.holder]
        assert not left or not answer.entries or answer.entries[-1].seq < left[0]
        # all that was at hand had expired: ask again
        assert answer.entries or not left or not room or self.w.pages
        assert answer.waiting == len(left)
        self.after(effects)

    @rule(data=st.data(), queue=st.sampled_from(QUEUES))
    def ack(self, data: st.DataObject, queue: str) -> None:
        """Any reader, from any connection, anything: held or not, in memory or not, twice."""
        client = data.draw(st.sampled_from(READERS[queue]))
        c = self.connection(client)
        known = st.sampled_from(sorted(s for q, s in self.state if q == queue) or [1])
        ranges = data.draw(st.lists(st.tuples(known, st.integers(0, 3)), min_size=1, max_size=4))
        named = {s for first, count in ranges for s in range(first, first + count)}
        hit = [s for s in self.live(queue) if s in named]
        effects = self.run(m.Ack(c, client, 1, queue, ranges))
        assert effects.answers[c] == [Acked(1, len(hit), sum(n for _, n in ranges) - len(hit))]
        for seq in hit:
            self.state[(queue, seq)] = ACKED
            self.holder.pop((queue, seq), None)
        self.after(effects)

    @rule(data=st.data(), requeue=st.booleans())
    def nack(self, data: st.DataObject, requeue: bool) -> None:
        if self.holder:
            queue, seq = data.draw(st.sampled_from(sorted(self.holder)))
            client = READERS[queue][0]
            c = self.connection(client)
            effects = self.run(m.Nack(c, client, 1, queue, seq, requeue, 5, "bad"))
            assert effects.answers[c] == [Done(1, 1)]
            assert requeue or self.state[(queue, seq)] == DEAD
            self.holder.pop((queue, seq), None)
            self.after(effects)

    @rule(client=st.sampled_from(CLIENTS))
    def resend(self, client: str) -> None:
        c = self.connection(client)
        held = [p for p, (conn, _) in self.holder.items() if conn == c]
        effects = self.run(m.Resend(c, client, 1, "", "", bytes(16)))
        assert effects.answers[c] == [Done(1, len(held))]
        self.release([p for p in held if p in self.holder])
        self.after(effects)

    # -- what happens ------------------------------------------------------------------------------

    @rule(client=st.sampled_from(CLIENTS))
    def cut(self, client: str) -> None:
        c = self.w.connection_of.pop(client, None)
        if c is not None:
            effects = self.run(m.Disconnect(c))
            self.release([p for p, (conn, _) in self.holder.items() if conn == c])
            for key in [k for k in self.reads if k[0] == c]:
                del self.reads[key], self.window[key]
            self.after(effects)

    @rule()
    def kill_hq(self) -> None:
        self.w.recover()
        self.holder.clear()
        self.reads.clear()
        self.window.clear()

    @rule(jump=st.sampled_from([1, 50, 1000]))
    def time_passes(self, jump: int) -> None:
        self.w.now += jump
        self.after(self.run(m.Sweep()))

    @rule(queue=st.sampled_from(QUEUES))
    def purge(self, queue: str) -> None:
        waiting = [p for p in self.state if p[0] == queue and self.state[p] == LIVE]
        effects = self.run(m.Purge(0, "", 77, queue))
        answers = list(effects.answers[0])
        self.after(effects)
        while self.w.pages:
            effects = self.run()
            answers += effects.answers.get(0, [])
            self.after(effects)
        assert answers == [Done(77, len(waiting))]
        assert all(self.state[p] == DEAD for p in waiting)

    @rule(data=st.data())
    def lose_a_body(self, data: st.DataObject) -> None:
        if self.holder:
            place = data.draw(st.sampled_from(sorted(self.holder)))
            self.after(self.run(m.LostBodies([place], "damaged")))
            assert self.state[place] == DEAD

    @rule()
    def bring_pages(self) -> None:
        while self.w.pages:
            self.after(self.run())

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def the_store_has_what_the_oracle_says(self) -> None:
        store = self.w.store
        states = {"waiting": LIVE, "acked": ACKED, "dead": DEAD}
        assert {
            place: states[state] for place, (_, _, state) in store.entries.items()
        } == self.state
        assert {
            place: attempts for place, (_, attempts, _) in store.entries.items()
        } == self.attempts
        assert {(i.sender, i.envelope_id): i for _, _, i in store.envelopes.values()} == self.sent
        needed = set()
        for number, (_, _, item) in store.envelopes.items():
            last = {
                q: self.state[(q, s)]
                for q, s in sorted(self.where[(item.sender, item.envelope_id)])
            }
            if set(last.values()) != {ACKED}:
                needed.add(number)
        assert store.bodies == needed

    @invariant()
    def counters_and_memory_are_right(self) -> None:
        for name in QUEUES:
            queue = self.w.broker.state.queues[name]
            live = self.live(name)
            assert queue.depth == len(live)
            assert queue.size == sum(self.item((name, s)).size for s in live)
            assert {c: used.size for c, used in queue.used.items()} == {
                c: n for c in CLIENTS if (n := self.used(c, name))
            }
            assert {
                (name, seq): (out.connection, out.tag) for seq, out in queue.unacknowledged.items()
            } == {p: h for p, h in self.holder.items() if p[0] == name}
            ready = [e.seq for e in queue.ready]
            assert ready == [
                s for s in live if s <= queue.loaded_to and s not in queue.unacknowledged
            ]
            assert not live or self.w.store.counters[name].first <= live[0]
            assert all(
                queue.earliest_expiry and queue.earliest_expiry <= e.expires_at
                for e in queue.ready
                if e.expires_at
            )

    @invariant()
    def nobody_with_credit_waits_in_vain(self) -> None:
        for key, queue in self.reads.items():
            if min(self.window[key]) > 0 and queue not in [name for name, _ in self.w.pages]:
                assert all((queue, s) in self.holder for s in self.live(queue))

    @invariant()
    def what_was_refused_left_nothing(self) -> None:
        assert not any((i.sender, i.envelope_id) in self.sent for i in self.refused)

    @invariant()
    def a_core_from_the_store_knows_the_same(self) -> None:
        again = Broker(self.w.store.load(SMALL.head_entries), SMALL)
        assert durable(again) == durable(self.w.broker)


TestDeliveries = Deliveries.TestCase
TestDeliveries.pytestmark = [soak.more]
TestDeliveries.settings = settings(max_examples=soak.of(120), stateful_step_count=40)
