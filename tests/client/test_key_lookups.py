"""The bounds of `Lookups`, one by one, against a directory that counts and a clock that jumps.

`test_isolation.py` has the same with a real HQ, where a bound that is missing may hide behind
another one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from cipherbox.client.receiving import consumer as consumer_module
from cipherbox.client.receiving import lookups
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.lookups import IN_ALL, MISS_S, OF_SENDER, PER_SENDER, Lookups
from cipherbox.client.receiving.loop import ReceiveLoop
from cipherbox.client.receiving.opening import Opener
from cipherbox.errors import (
    BundleError,
    BundleUnknown,
    CipherBoxError,
    NetworkError,
    SenderNotValid,
    StoreError,
    Throttled,
)

NUMBERS = count(1)  # of a queue
HASHES = (number.to_bytes(32, "big") for number in count(1))


class Directory:
    """HQ's answers: it has the bundles that ``known`` lists, and ``answer`` may raise."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.cached: set[bytes] = set()
        self.asked: list[dict[str, list[bytes]]] = []
        self.answer: Callable[[dict[str, list[bytes]]], None] = lambda wanted: None

    def has_sender(self, bundle_hash: bytes) -> bool:
        return bundle_hash in self.cached

    async def look_up(
        self, wanted: dict[str, list[bytes]]
    ) -> dict[tuple[str, bytes], Exception | None]:
        await trio.lowlevel.checkpoint()
        self.asked.append(wanted)
        self.answer(wanted)
        found: dict[tuple[str, bytes], Exception | None] = {}
        for sender, hashes in wanted.items():
            for one in hashes:
                found[sender, one] = None if one in self.known else BundleUnknown()
                self.cached |= {one} & self.known
        return found

    async def sender(
        self, sender: str, bundle_hash: bytes, accepted_at: int, log_entry: int = 0
    ) -> Any:
        self.asked.append({sender: [bundle_hash]})
        if bundle_hash in self.known:
            return "a bundle"
        raise SenderNotValid("HQ does not have it") from BundleUnknown()

    def asked_for(self, sender: str) -> int:
        """Return how often HQ was asked for keys of a sender."""
        return sum(sender in wanted for wanted in self.asked)


@pytest.fixture
def directory() -> Directory:
    return Directory()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
async def lookup(directory: Directory, said: list[str], nursery: trio.Nursery) -> Lookups:
    events: Any = SimpleNamespace(emit=lambda tag, text, **more: said.append(text))
    made: Any = directory
    return Lookups(made, events, nursery)


def envelope(
    sender: str, bundle_hash: bytes | None = None, *, lost: bool = False, size: int = 1
) -> Any:
    prefix = SimpleNamespace(bundle_hash=bundle_hash or next(HASHES), sender=sender)
    return SimpleNamespace(
        seq=next(NUMBERS),
        size=size,
        sender_id=sender,
        queue="box.CA-RC",
        parsed=SimpleNamespace(layout=SimpleNamespace(prefix=prefix)),
        connection=SimpleNamespace(error=NetworkError("cut") if lost else None),
        lost=lost,
    )


def named(delivery: Any) -> bytes:
    found: bytes = delivery.parsed.layout.prefix.bundle_hash
    return found


async def test_what_hq_does_not_have_is_remembered_for_a_time(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    one = envelope("BAD-LAB")
    ((_, error),) = await lookup.settle([one])
    assert isinstance(error, BundleUnknown)
    assert lookup.missed("BAD-LAB", named(one))
    assert not lookup.missed("FL-LAB", named(one))
    for _ in range(5):  # redelivered: its opener refuses it without a question
        assert await lookup.settle([one]) == [(one, None)]
    assert len(directory.asked) == 1
    await trio.sleep(MISS_S + 1)
    assert not lookup.missed("BAD-LAB", named(one))
    directory.known.add(named(one))
    assert await lookup.settle([one]) == [(one, None)]
    assert len(directory.asked) == 2
    assert directory.has_sender(named(one))


async def test_a_sender_that_names_many_keys_gets_few_requests_of_few_hashes(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    many = [envelope("BAD-LAB") for _ in range(OF_SENDER * PER_SENDER * 2)]
    found = await lookup.settle(many)
    assert directory.asked_for("BAD-LAB") == PER_SENDER
    assert all(len(wanted["BAD-LAB"]) <= OF_SENDER for wanted in directory.asked)
    assert sum(isinstance(error, BundleUnknown) for _, error in found) == OF_SENDER * PER_SENDER
    refused = [error for _, error in found if isinstance(error, SenderNotValid)]
    assert len(refused) == OF_SENDER * PER_SENDER
    assert all("asked for too often" in str(error) for error in refused)
    directory.known.add(honest := next(HASHES))
    ((_, error),) = await lookup.settle([envelope("FL-LAB", honest)])
    assert error is None
    await trio.sleep(60)
    await lookup.settle([envelope("BAD-LAB")])
    assert directory.asked_for("BAD-LAB") == PER_SENDER + 1


async def test_all_senders_together_get_so_many_requests_a_minute(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    began = trio.current_time()
    for number in range(IN_ALL * 2):
        await lookup.settle([envelope(f"LAB-{number}")])
        if trio.current_time() - began < 1:
            assert len(directory.asked) <= IN_ALL
    assert trio.current_time() - began >= 50
    assert len(directory.asked) == IN_ALL * 2  # none was refused, they waited


async def test_many_senders_go_into_one_request(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    await lookup.settle([envelope(f"LAB-{number}") for number in range(lookups.SENDERS + 1)])
    assert sorted(map(len, directory.asked)) == [1, lookups.SENDERS]


async def test_keys_that_a_receipt_names_have_the_same_bounds(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    wrong = next(HASHES)
    with pytest.raises(SenderNotValid):
        await lookup.bundle("BAD-LAB", wrong, 1)
    with pytest.raises(BundleUnknown):  # remembered
        await lookup.bundle("BAD-LAB", wrong, 1)
    for _ in range(PER_SENDER * 2):
        with pytest.raises(SenderNotValid):
            await lookup.bundle("BAD-LAB", next(HASHES), 1)
    assert directory.asked_for("BAD-LAB") == PER_SENDER
    directory.known.add(right := next(HASHES))
    assert await lookup.bundle("FL-LAB", right, 1) == "a bundle"
    for number in range(IN_ALL - len(directory.asked)):
        with pytest.raises(SenderNotValid):
            await lookup.bundle(f"LAB-{number}", next(HASHES), 1)
    with pytest.raises(Throttled):  # it waits: nothing is wrong with it
        await lookup.bundle("FL-LAB", next(HASHES), 1)
    assert len(directory.asked) == IN_ALL
    directory.cached.add(right)  # what is here costs no request
    assert await lookup.bundle("FL-LAB", right, 1) == "a bundle"


async def test_what_is_remembered_of_senders_is_bounded(
    lookup: Lookups,
    directory: Directory,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookups, "MISSES", 3)
    monkeypatch.setattr(lookups, "NAMES", 2)
    many = [envelope("BAD-LAB") for _ in range(4)]
    await lookup.settle(many)
    assert [lookup.missed("BAD-LAB", named(one)) for one in many] == [False, True, True, True]
    others = [envelope(f"LAB-{number}") for number in range(2)]
    for one in others:
        await lookup.settle([one])
    assert [lookup.missed(one.sender_id, named(one)) for one in others] == [True, True]
    assert not any(lookup.missed("BAD-LAB", named(one)) for one in many)
    assert len(lookup._buckets) == 2


async def test_keys_that_spoil_an_answer_are_asked_for_alone(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    def answer(wanted: dict[str, list[bytes]]) -> None:
        if "BAD-LAB" in wanted:
            raise BundleError("the bundle is malformed")

    directory.answer = answer
    good, bad = envelope("FL-LAB"), envelope("BAD-LAB")
    directory.known.add(named(good))
    found = {one.sender_id: error for one, error in await lookup.settle([bad, good])}
    assert found["FL-LAB"] is None
    assert isinstance(found["BAD-LAB"], BundleError)
    assert directory.asked_for("FL-LAB") == 2


async def test_what_hq_cannot_answer_now_is_asked_for_again_and_counts_no_request(
    lookup: Lookups, directory: Directory, said: list[str], autojump_clock: MockClock
) -> None:
    tries = PER_SENDER * 2

    def answer(wanted: dict[str, list[bytes]]) -> None:
        if len(directory.asked) < tries:
            raise NetworkError("HQ is not reachable")

    directory.answer = answer
    one = envelope("FL-LAB")
    directory.known.add(named(one))
    assert await lookup.settle([one]) == [(one, None)]
    assert len(directory.asked) == tries
    assert len(said) == tries - 1
    assert not lookup.busy


async def test_an_error_of_ours_goes_to_whoever_waits(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    def answer(wanted: dict[str, list[bytes]]) -> None:
        raise StoreError("the disk is full")

    directory.answer = answer
    ((_, error),) = await lookup.settle([envelope("FL-LAB")])
    assert isinstance(error, CipherBoxError)
    directory.answer = lambda wanted: None
    await lookup.settle([envelope("FL-LAB")])  # and the next one is asked for


async def test_what_came_over_a_connection_that_ended_asks_nothing(
    lookup: Lookups, directory: Directory, autojump_clock: MockClock
) -> None:
    lost, other = envelope("FL-LAB", lost=True), envelope("FL-LAB")
    directory.known.add(named(other))
    with trio.fail_after(60):
        found = await lookup.settle([lost, other])
    assert [error for _, error in found] == [None, None]
    assert directory.asked == [{"FL-LAB": [named(other)]}]


# -- the order of a sender's deliveries ------------------------------------------------------------


READY: Any = SimpleNamespace(ready=lambda delivery: True)  # an opener that needs no look-up


def consumer_of(*deliveries: Any) -> Consumer:
    """Return a consumer to which HQ pushed these over its connection."""
    consumer = Consumer(READY, READY, "box.CA-RC", 10, 1 << 20)
    consumer._current = next(iter(deliveries)).connection
    for delivery in deliveries:
        delivery.connection = consumer._current
    return consumer


async def test_a_delivery_that_was_parked_is_not_overtaken_by_its_senders_next_one() -> None:
    """The look-up ended while the next batch, with a later envelope of the same sender, waited for
    the revocation lists: that one was opened first.
    """
    first, second, other = envelope("FL-LAB"), envelope("FL-LAB"), envelope("PA-LAB")
    consumer = consumer_of(first, second, other)

    async def ensure() -> None:
        await trio.lowlevel.checkpoint()
        consumer.looked_up(first, None)

    client = SimpleNamespace(revocations=SimpleNamespace(ensure=ensure), opener=READY)
    loop: Any = SimpleNamespace(_client=client)
    assert await ReceiveLoop._ready(loop, consumer, [second, other]) == [other]
    assert await consumer.batch() == [first, second]


async def test_more_than_a_batch_that_was_parked_is_taken_in_order_and_once() -> None:
    """What the batch had no room for was sent later: it does not hold the batch back."""
    early, *parked = [envelope("FL-LAB") for _ in range(6)]
    consumer = consumer_of(early, *parked)
    for delivery in parked:
        consumer.looked_up(delivery, None)
    taken = await consumer.batch(2)
    assert consumer.in_order(taken) == parked[:2]
    taken = await consumer.batch(2)
    consumer.looked_up(early, None)
    assert consumer.in_order(taken) == []
    assert await consumer.batch() == [early, *parked[2:]]


async def test_what_returned_and_had_no_room_is_not_overtaken_by_what_returns_later() -> None:
    """A later envelope of the same sender, under other keys, was looked up after it."""
    first, second, third = [envelope("FL-LAB") for _ in range(3)]
    consumer = consumer_of(first, second, third)
    consumer.looked_up(first, None)
    consumer.looked_up(second, None)
    taken = await consumer.batch(1)
    consumer.looked_up(third, None)
    assert consumer.in_order(taken) == [first]
    assert await consumer.batch() == [second, third]


async def test_keys_that_are_found_in_another_order_change_no_order() -> None:
    first, second, third = [envelope("FL-LAB") for _ in range(3)]
    consumer = consumer_of(first, second, third)
    consumer.looked_up(first, None)
    consumer.looked_up(third, None)
    consumer.looked_up(second, None)
    assert await consumer.batch() == [first, second, third]


async def test_what_returned_and_has_no_room_is_not_overtaken_by_what_was_pushed() -> None:
    first, large = envelope("FL-LAB", size=5), envelope("FL-LAB", size=10)
    consumer = consumer_of(first, large)
    consumer.looked_up(first, None)
    consumer.looked_up(large, None)
    consumer.take([(large.seq + 1, 1, 0, 0, b"1")])
    assert await consumer.batch(10, 7) == [first]
    returned, pushed = await consumer.batch(10, 11)
    assert returned == large
    assert pushed.seq == large.seq + 1


SENDERS = ("FL-LAB", "PA-LAB")
MANY = 16  # envelopes of a life


class Life:
    """A receiver's life by chance: HQ pushes, look-ups end early or late, or fail at first, batches
    have room for few, and some of what was taken returns for lack of time.
    """

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self.opened: list[Any] = []
        self.pushed: list[Any] = []
        self._hashes = [next(HASHES) for _ in range(4)]
        self._cuts = chance.randint(0, 2)  # left: while HQ is away nothing is looked up

    def _wait(self) -> float:
        return self._chance.choice([0.0, 0.0, 0.01, 0.1, 1.0])

    async def look_up(self, wanted: dict[str, list[bytes]]) -> None:
        await trio.sleep(self._wait())
        if self._cuts:
            self._cuts -= 1
            raise NetworkError("cut")

    async def play(self) -> None:
        directory: Any = Directory()
        directory.known = {*self._hashes}
        found = directory.look_up

        async def look_up(wanted: dict[str, list[bytes]]) -> Any:
            await self.look_up(wanted)
            return await found(wanted)

        directory.look_up = look_up
        events: Any = SimpleNamespace(emit=lambda *a, **more: None)
        async with trio.open_nursery() as nursery:
            opener: Any = SimpleNamespace(lookups=Lookups(directory, events, nursery))
            opener.ready = lambda one: (
                not opener.lookups.holds_earlier(one) and directory.has_sender(named(one))
            )
            consumer = Consumer(opener, opener, "box.CA-RC", 10, 1 << 20)
            consumer._current = envelope("HQ").connection
            nursery.start_soon(self._push, consumer)
            await self._receive(consumer, opener)
            assert not opener.lookups.busy
            assert not consumer.waiting

    async def _push(self, consumer: Consumer) -> None:
        for _ in range(MANY):
            keys = self._chance.choice(self._hashes)
            one = envelope(self._chance.choice(SENDERS), keys, size=self._chance.randint(1, 3))
            one.connection = consumer._current
            self.pushed.append(one)
            made: Any = [one]
            consumer.take(made)
            await trio.sleep(self._wait())

    async def _receive(self, consumer: Consumer, opener: Any) -> None:
        async def ensure() -> None:
            await trio.sleep(self._wait())

        client = SimpleNamespace(revocations=SimpleNamespace(ensure=ensure), opener=opener)
        loop: Any = SimpleNamespace(_client=client)
        for _ in range(MANY * 20):  # each takes something: a loop that spins ends here
            if len(self.opened) == MANY:
                return
            some = self._chance.randint
            taken = await consumer.batch(some(1, 4), some(1, 6))
            ready = await ReceiveLoop._ready(loop, consumer, taken)
            await trio.sleep(self._wait())
            done = some(1, 4)
            self.opened += ready[:done]
            consumer.requeue(ready[done:])
        raise AssertionError(f"{len(self.opened)} of {MANY} were opened: it spins")


@given(chance=st.randoms(use_true_random=True))
@settings(max_examples=100)
def test_whatever_returns_when_each_senders_order_stays(chance: random.Random) -> None:
    life = Life(chance)

    async def play() -> None:
        with trio.fail_after(600):  # of virtual time: it stands still
            await life.play()

    with pytest.MonkeyPatch.context() as made:
        made.setattr(consumer_module, "Delivery", lambda queue, item, *_: item)
        trio.run(play, clock=MockClock(autojump_threshold=0))
    assert sorted(map(id, life.opened)) == sorted(map(id, life.pushed))
    for sender in SENDERS:
        own = [one.seq for one in life.opened if one.sender_id == sender]
        assert own == sorted(own)


@pytest.mark.parametrize(
    ("queue", "later", "waits"),
    [("box.CA-RC", 1, True), ("box.CA-RC", -1, False), ("box.CA-RC.bulk", 1, False)],
)
async def test_a_delivery_waits_behind_earlier_ones_of_its_queue(
    lookup: Lookups, directory: Directory, queue: str, later: int, waits: bool
) -> None:
    """One that returned from its look-up was parked again, behind a later one."""
    parked, other = envelope("FL-LAB"), envelope("FL-LAB")
    other.connection, other.queue, other.seq = parked.connection, queue, parked.seq + later
    directory.cached.add(named(other))
    opener: Any = SimpleNamespace(lookups=lookup, _directory=directory, _accepts=lambda one: True)
    lookup.park(parked, lambda delivery, error: None)
    assert Opener.ready(opener, other) is not waits
