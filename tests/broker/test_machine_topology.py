"""The core against its store, driven by Hypothesis: topology, many commands in one commit,
restarts in any order.
"""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import Confirmed, ExchangeType, Failed, FetchedEntries
from cipherbox.contact_lists import ContactLists
from tests import soak
from tests.broker.world import SMALL, World, durable

NAMES = st.sampled_from(["q1", "q2"])
# a grant on q1 is one on the exchange and on the queue
EXCHANGES = st.sampled_from(["e1", "e2", "q1"])
KEYS = st.sampled_from(["k", "a.b", "*.b", "#"])
WHO = st.sampled_from(["A", "B", "C"])
TOPOLOGY = st.one_of(
    st.builds(
        m.DeclareExchange,
        st.just(0),
        st.just(""),
        st.just(1),
        EXCHANGES,
        st.sampled_from(ExchangeType),
    ),
    st.builds(m.DeleteExchange, st.just(0), st.just(""), st.just(1), EXCHANGES),
    st.builds(
        m.DeclareQueue,
        st.just(0),
        st.just(""),
        st.just(1),
        NAMES,
        WHO,
        st.lists(WHO, max_size=2, unique=True).map(tuple),
    ),
    st.builds(m.DeleteQueue, st.just(0), st.just(""), st.just(1), NAMES),
    st.builds(m.Bind, st.just(0), st.just(""), st.just(1), EXCHANGES, NAMES, KEYS),
    st.builds(m.Unbind, st.just(0), st.just(""), st.just(1), EXCHANGES, NAMES, KEYS),
    st.builds(
        m.Grant,
        st.just(0),
        st.just(""),
        st.just(1),
        WHO,
        st.sampled_from(["publish", "bind", "read"]),
        EXCHANGES,
        st.booleans(),
    ),
    st.builds(m.RevokeClient, st.just(0), st.just(""), st.just(1), WHO, st.just("")),
    st.builds(
        m.TellContacts,
        st.just(0),
        WHO,
        st.just(1),
        st.builds(
            ContactLists, st.just(()), st.lists(st.sampled_from(["Y", "Z"]), max_size=2).map(tuple)
        ),
    ),
    st.builds(m.AddClient, st.just(0), st.just(""), st.just(1), WHO, st.just("client")),
)


class Topology(RuleBasedStateMachine):
    """Anything declared, bound, granted and deleted in any order, many in one commit: the disk
    must say the same.
    """

    @initialize()
    def begin(self) -> None:
        self.w = World(SMALL, "A", "B", "C")
        self.places: set[tuple[str, int]] = set()

    @rule(commands=st.lists(TOPOLOGY, min_size=1, max_size=8))
    def many_in_one_commit(self, commands: list[m.AnyCommand]) -> None:
        effects = self.w.run(*commands)
        assert len(effects.answers[0]) == len(commands)

    @rule(client=WHO, queue=NAMES)
    def publish_and_take(self, client: str, queue: str) -> None:
        """No (queue, seq) comes twice, however often the queue was deleted and declared again."""
        found = self.w.broker.state.queues.get(queue)
        readers = self.w.broker.state.rights.readers(found) if found else ()
        if found is None or client not in readers:
            return
        c = self.w.connection_of.get(client) or self.w.connect(client)
        answer = self.w.publish(self.w.item(client, readers, "", queue))
        assert isinstance(answer, Confirmed)
        fetched = self.w.ok(m.Fetch(c, client, 1, queue, 100, 1 << 30))
        assert isinstance(fetched, FetchedEntries)
        for entry in fetched.entries:
            assert (queue, entry.seq) not in self.places
            self.places.add((queue, entry.seq))
            self.w.ok(m.Ack(c, client, 1, queue, [(entry.seq, 1)]))

    @rule(queue=NAMES, again=st.booleans())
    def a_queue_is_used_up_deleted_and_made_again_in_one_commit(
        self, queue: str, again: bool
    ) -> None:
        if queue not in self.w.broker.state.queues:
            return
        commands: list[m.AnyCommand] = [m.Purge(0, "", 1, queue), m.DeleteQueue(0, "", 1, queue)]
        readers = self.w.broker.state.rights.readers(self.w.broker.state.queues[queue])
        if readers:
            c = self.w.connection_of.get(readers[0]) or self.w.connect(readers[0])
            item = self.w.item(readers[0], readers, "", queue)
            seq = self.w.broker.state.queues[queue].next
            self.places.add((queue, seq))
            commands[:0] = [
                m.Publish(c, readers[0], [item]),
                m.Ack(c, readers[0], 1, queue, [(seq, 1)]),
            ]
        if again:
            commands.append(m.DeclareQueue(0, "", 1, queue, "A", ()))
        effects = self.w.run(*commands)
        assert not [a for a in effects.answers[0] if isinstance(a, Failed)]

    @rule()
    def kill_hq(self) -> None:
        self.w.recover()

    @invariant()
    def a_core_from_the_store_knows_the_same(self) -> None:
        again = Broker(self.w.store.load(SMALL.head_entries), SMALL)
        assert durable(again) == durable(self.w.broker)

    @invariant()
    def nothing_dangles(self) -> None:
        broker = self.w.broker
        for exchange in broker.state.exchanges.values():
            for queue, key in exchange.bindings:
                assert (exchange.name, key) in broker.state.queues[queue].bindings
        for _, _, resource in broker.state.rights.grants:
            assert resource in broker.state.exchanges or resource in broker.state.queues


TestTopology = Topology.TestCase
TestTopology.pytestmark = [soak.more]
TestTopology.settings = settings(max_examples=soak.of(100), stateful_step_count=25)
