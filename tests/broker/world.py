"""A broker with a model of a store behind it: applies changes, rebuilds a snapshot at any point."""

from __future__ import annotations

import attrs

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import (
    Changes,
    Entry,
    ExchangeType,
    Facts,
    Incoming,
    RequiredFacts,
    Snapshot,
)
from cipherbox.contact_lists import ContactLists
from cipherbox.limits import LIMITS, Limits

SMALL = attrs.evolve(
    LIMITS, head_entries=4, page_entries=4, deliveries=5, quota_bytes=2000, names_per_frame=5
)
START = 1_800_000_000_000
HQ = (0, "")
BIG = 1 << 30


class ModelStore:
    """What the port promises, in dictionaries."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self.clients: dict[str, m.ClientRow] = {}
        self.exchanges: dict[str, int] = {}
        self.queues: dict[str, m.QueueRow] = {}
        self.bindings: set[tuple[str, str, str]] = set()
        self.grants: set[tuple[str, str, str]] = set()
        self.counters: dict[str, m.Counters] = {}
        self.envelopes: dict[int, tuple[int, int, Incoming]] = {}
        self.bodies: set[int] = set()
        self.pending: dict[int, int] = {}
        # (queue, seq) -> (number, attempts, state)
        self.entries: dict[tuple[str, int], tuple[int, int, str]] = {}
        self.dead: list[m.Dead] = []
        self.settled: dict[tuple[str, int], str] = {}
        self.highest: dict[str, bytes] = {}
        self.usage: dict[tuple[str, str], tuple[int, int]] = {}
        self.client_limits: dict[tuple[str, str], int] = {}
        self.contacts: dict[str, ContactLists] = {}
        self.version = 1
        self.first_seq = 1

    def commit(self, c: Changes) -> None:
        self.clients.update({r.name: r for r in c.clients})
        self.exchanges.update(dict(c.exchanges))
        for row in c.queues:
            self.queues[row.name] = row
            self.counters.setdefault(row.name, m.Counters(row.name, 0, 0, 1, 1))
        self.bindings |= set(c.bindings)
        self.grants |= set(c.grants)
        self.grants -= set(c.dropped_grants)
        self.bindings -= set(c.dropped_bindings)
        for name in c.dropped_exchanges:
            self.exchanges.pop(name, None)
        for number, at, references, incoming in c.envelopes:
            assert number not in self.envelopes
            self.envelopes[number] = (at, references, incoming)
            self.bodies.add(number)
            self.pending[number] = references
        for queue, seq, number, delivered_at, _ in c.entries:
            assert (queue, seq) not in self.entries
            self.entries[(queue, seq)] = (number, 1 if delivered_at else 0, "waiting")
        for number, incoming in c.replaced:
            at, references, _ = self.envelopes[number]
            self.envelopes[number] = (at, references, incoming)
        for mark in c.delivered:
            for seq in range(mark.first, mark.last + 1):
                number, attempts, state = self.entries[(mark.queue, seq)]
                assert state == "waiting"
                self.entries[(mark.queue, seq)] = (number, attempts + 1, state)
        for mark in c.acked:
            for seq in range(mark.first, mark.last + 1):
                number, attempts, state = self.entries[(mark.queue, seq)]
                assert state == "waiting", "acknowledged twice"
                self.entries[(mark.queue, seq)] = (number, attempts, "acked")
        for dead in c.dead:
            number, attempts, state = self.entries[(dead.queue, dead.seq)]
            assert state == "waiting"
            self.entries[(dead.queue, dead.seq)] = (number, attempts, "dead")
        self.dead += c.dead
        for one in c.closed_dead_letters:
            assert self.entries[(one.queue, one.seq)][2] == "dead"
            assert (one.queue, one.seq) not in self.settled, "settled twice"
            self.settled[(one.queue, one.seq)] = one.how
        for number in c.finished:
            assert self.envelopes[number][1] == 1
            self.pending[number] -= 1
        for number in c.released:
            assert self.envelopes[number][1] > 1
            self.pending[number] -= 1
        for number, _ in c.replaced:  # counted anew, as a discarded copy may be enqueued again
            self.bodies.add(number)
            self.pending[number] = sum(
                self.entries[(queue, seq)][0] == number
                for queue in {queue for queue, _ in self.entries}
                for seq in (*self.waiting(queue), *self.open_dead(queue))
            )
        self.bodies = {n for n in self.bodies if self.pending[n] > 0}
        for row_c in c.counters:
            if row_c.queue in self.queues:
                self.counters[row_c.queue] = row_c
        for name in c.dropped_queues:
            assert not self.waiting(name)
            self.first_seq = max(self.first_seq, self.counters[name].next)
            del self.queues[name], self.counters[name]
        self.highest.update(c.highest)
        self.usage = {key: tuple(used) for key, used in (self.usage | c.usage).items() if used[1]}
        self.usage = {key: used for key, used in self.usage.items() if key[1] in self.queues}
        assert self.usage == self.counted()
        for queue in self.queues:
            needed = (*self.waiting(queue), *self.open_dead(queue))
            assert self.bodies.issuperset(self.entries[(queue, seq)][0] for seq in needed)
        self.client_limits |= c.client_limits
        self.contacts |= c.contacts
        if c.bindings_version is not None:
            self.version = c.bindings_version

    def counted(self) -> dict[tuple[str, str], tuple[int, int]]:
        """What `usage` has to say: of each sender in each queue, waiting or kept as dead
        letters.
        """
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for queue in self.queues:
            for seq in (*self.waiting(queue), *self.open_dead(queue)):
                incoming = self.envelopes[self.entries[(queue, seq)][0]][2]
                size, count = found.get((incoming.sender, queue), (0, 0))
                found[(incoming.sender, queue)] = (size + incoming.size, count + 1)
        return found

    def entry(self, queue: str, seq: int) -> Entry:
        number, attempts, _ = self.entries[(queue, seq)]
        at, references, i = self.envelopes[number]
        return Entry(
            seq, number, i.size, attempts, references, i.sender, i.envelope_id, at, i.expires_at
        )

    def waiting(self, queue: str) -> list[int]:
        return sorted(
            s for (q, s), (_, _, state) in self.entries.items() if q == queue and state == "waiting"
        )

    def open_dead(self, queue: str) -> list[int]:
        """Dead letters that nobody settled and whose next generation has not come."""
        newest = {
            number: seq for (q, seq), (number, _, _) in sorted(self.entries.items()) if q == queue
        }
        return sorted(
            s
            for (q, s), (number, _, state) in self.entries.items()
            if q == queue and state == "dead" and (q, s) not in self.settled and newest[number] == s
        )

    def load(self, head: int) -> Snapshot:
        return Snapshot(
            next_number=max(self.envelopes, default=0) + 1,
            bindings_version=self.version,
            watermark=0,
            first_seq=self.first_seq,
            clients=list(self.clients.values()),
            exchanges=list(self.exchanges.items()),
            queues=list(self.queues.values()),
            bindings=sorted(self.bindings),
            grants=sorted(self.grants),
            counters=list(self.counters.values()),
            heads={q: [self.entry(q, s) for s in self.waiting(q)[:head]] for q in self.queues},
            highest=dict(self.highest),
            usage=dict(self.usage),
            client_limits={key: most for key, most in self.client_limits.items() if most >= 0},
            contacts={name: lists for name, lists in self.contacts.items() if lists},
        )

    def facts(self, wanted: RequiredFacts, page: int) -> Facts:
        facts = Facts()
        for sender, envelope_id in wanted.known:
            for number, (at, _, i) in self.envelopes.items():
                if (i.sender, i.envelope_id) == (sender, envelope_id):
                    places = sorted((q, s) for (q, s), e in self.entries.items() if e[0] == number)
                    left = tuple(p for p in places if self.entries[p][2] == "waiting")
                    queues = tuple(dict.fromkeys(q for q, _ in places))
                    alive = {
                        q
                        for q, _ in places
                        if any(self.entries[p][2] != "dead" for p in places if p[0] == q)
                    }
                    dead = tuple(q for q in queues if q not in alive)
                    facts.known[(sender, envelope_id)] = m.KnownEnvelope(
                        number,
                        i.generation,
                        i.envelope_hash,
                        at,
                        queues,
                        left,
                        i.size,
                        dead,
                        i.commitment,
                        tuple(
                            q
                            for q in dead
                            if any(
                                n == number and (q, s) not in self.settled
                                for (x, s), (n, _, _) in self.entries.items()
                                if x == q
                            )
                        ),
                    )
        for queue, first, count in wanted.entries:
            found = {
                s: self.entry(queue, s) for s in self.waiting(queue) if first <= s < first + count
            }
            facts.entries.setdefault(queue, {}).update(found)
        for queue, first, count in wanted.dead:
            found = {
                s: self.entry(queue, s) for s in self.open_dead(queue) if first <= s < first + count
            }
            facts.dead.setdefault(queue, {}).update(found)
        for queue, after in wanted.pages:
            facts.pages[queue] = [self.entry(queue, s) for s in self.waiting(queue) if s > after][
                :page
            ]
        return facts


class World:
    """Runs commands as the engine does: wanted, facts, handle, commit."""

    def __init__(self, limits: Limits = LIMITS, *clients: str) -> None:
        self.limits = limits
        self.store = ModelStore()
        self.broker = Broker(self.store.load(limits.head_entries), limits)
        self.now = START
        self.correlation = 0
        self.ids = 0
        self.pages: list[tuple[str, int]] = []
        self.connection_of: dict[str, int] = {}
        for name in clients:
            self.ok(m.AddClient(0, "", self.next(), name, "client"))
            self.connect(name)

    def next(self) -> int:
        self.correlation += 1
        return self.correlation

    def connect(self, client: str) -> int:
        number = self.connection_of[client] = max(self.connection_of.values(), default=0) + 1
        self.broker.connect(number, client)
        return number

    def run(self, *commands: m.AnyCommand) -> m.Effects:
        self.now += 1
        wanted = self.broker.required_facts(commands)
        wanted.pages += self.pages
        effects = self.broker.handle(
            commands, self.store.facts(wanted, self.limits.page_entries), self.now
        )
        self.pages = effects.pages
        self.store.commit(effects.changes)
        return effects

    def settle(self) -> list[m.Delivery]:
        """Brings the pages the core asked for until it asks for none."""
        handed: list[m.Delivery] = []
        while self.pages:
            handed += self.run().deliveries
        return handed

    def recover(self) -> None:
        """HQ was killed: a new core from the store."""
        self.broker = Broker(self.store.load(self.limits.head_entries), self.limits)
        self.pages = []
        self.connection_of = {}

    def ask(self, command: m.AnyCommand) -> m.Answer:
        connection = command.connection  # type: ignore[union-attr]
        return self.run(command).answers[connection][0]

    def ok(self, command: m.AnyCommand) -> m.Answer:
        answer = self.ask(command)
        assert not isinstance(answer, m.Failed), answer
        return answer

    def fails(self, command: m.AnyCommand) -> str:
        """The name of the error it is refused with."""
        answer = self.ask(command)
        assert isinstance(answer, m.Failed), answer
        return answer.error.name

    def item(
        self, sender: str, to: tuple[str, ...], exchange: str = "", key: str = "", **more: object
    ) -> Incoming:
        self.ids += 1
        envelope_id = (self.now << 80 | 7 << 76 | 2 << 62 | self.ids << 16).to_bytes(16, "big")
        values: dict[str, object] = {
            "correlation": self.next(),
            "partial": False,
            "route_version": 0,
            "sender": sender,
            "envelope_id": envelope_id,
            "generation": 0,
            "count": 1,
            "envelope_hash": self.ids.to_bytes(32, "big"),
            "stored_hash": bytes(32),
            "exchange": exchange,
            "routing_key": key,
            "recipients": to,
            "sealed_at": 1,
            "expires_at": 0,
            "size": 100,
            "body": b"",
            **more,
        }
        return Incoming(**values)  # type: ignore[arg-type]

    def publish(self, item: Incoming) -> m.Answer:
        return self.ask(m.Publish(self.connection_of[item.sender], item.sender, [item]))

    def refused(self, item: Incoming) -> str:
        answer = self.publish(item)
        assert isinstance(answer, m.Failed), answer
        return answer.error.name


def seqs(effects: m.Effects) -> list[int]:
    return [e.seq for h in effects.deliveries for e in h.entries]


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


def consumer(
    w: World, client: str, queue: str, envelopes: int = 100, size: int = BIG, tag: int = 1
) -> m.Effects:
    c = w.connection_of[client]
    return w.run(m.Consume(c, client, w.next(), tag, queue, envelopes, size))


def bound() -> World:
    """A publishes by exchange `e` into queue `q` of B."""
    w = World(LIMITS, "A", "B")
    w.ok(m.DeclareExchange(*HQ, 1, "e", ExchangeType.DIRECT))
    w.ok(m.DeclareQueue(*HQ, 1, "q", "B", ()))
    w.ok(m.Bind(*HQ, 1, "e", "q", "k"))
    w.ok(m.Grant(*HQ, 1, "A", "publish", "e", True))
    return w


def durable(broker: Broker) -> dict[str, object]:
    """What a core must know again after a restart."""
    return {
        "queues": {
            q.name: (
                q.owner,
                q.readers,
                q.depth,
                q.size,
                q.next,
                {s: n for s, n in q.used.items() if n},
                q.bindings,
            )
            for q in broker.state.queues.values()
        },
        "exchanges": {e.name: (e.kind, e.bindings) for e in broker.state.exchanges.values()},
        "routes": {
            e.name: [e.route(key) for key in ("k", "a.b", "")]
            for e in broker.state.exchanges.values()
        },
        "grants": broker.state.rights.grants,
        "clients": broker.state.rights.clients,
        "contacts": broker.state.rights.contacts,
        "highest": broker.state.highest,
        "numbers": (broker.state.next_number, broker.state.bindings_version),
        "reads": {client: names for client, names in broker.state.reads.items() if names},
    }
