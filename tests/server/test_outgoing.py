"""What waits for a peer: order, frames, memory, and a peer that does not take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import trio

from cipherbox.broker import model as m
from cipherbox.concurrency import background
from cipherbox.errors import (
    CipherBoxError,
    DiskFull,
    Fenced,
    FrameTooLarge,
    GoingAway,
    NotFound,
    StoreError,
    StoreUnavailable,
)
from cipherbox.limits import LIMITS, Limits
from cipherbox.server.body_cache import BodyCache
from cipherbox.server.connection.backpressure import BackPressure
from cipherbox.server.connection.outgoing import SendQueue
from cipherbox.server.requests.answers import error_frame
from cipherbox.store.port import Body
from cipherbox.wire import codec, frames
from cipherbox.wire.connection import Deliveries, WireConnection

SMALL = attrs.evolve(LIMITS, deliver_frame_bytes=1000, heartbeat_s=5)


def entry(seq: int, size: int = 100) -> m.Entry:
    return m.Entry(seq, seq, size, 1, 1, "A", seq.to_bytes(16, "big"), 7, 0)


class Peer:
    """Takes bytes, and can stop taking them."""

    def __init__(self) -> None:
        self.wire = WireConnection("client")
        welcome = frames.Welcome(1, 1 << 24, 1 << 24, 5, 1, 1, 1, 1, 1, 1, 1, "B", "client", "")
        self.wire.receive_data(codec.encode(welcome))
        self.wire.events()
        self.events: list[Any] = []
        self.stuck = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        if self.stuck:
            await trio.sleep_forever()
        self.wire.receive_data(bytes(data))
        self.events += self.wire.events()


class PromptPeer(Peer):
    """Takes small frames without a turn of the loop, while it has room for them."""

    def __init__(self, room: int = 1 << 20) -> None:
        super().__init__()
        self.room = room
        self.now = 0  # frames that came so
        self._left = b""

    def send_now(self, data: bytes) -> bool:
        taken, self._left = data[: self.room], data[self.room :]
        self.room -= len(taken)
        self.wire.receive_data(taken)
        self.events += self.wire.events()
        self.now += not self._left
        return not self._left

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        left, self._left = self._left, b""
        await super().send_all(left + bytes(data))


@attrs.define(eq=False)
class Line:
    """An `SendQueue` with everything around it."""

    limits: Limits = SMALL
    peer: Peer = attrs.Factory(Peer)
    stored: dict[int, bytes] = attrs.Factory(dict)
    reads: list[list[int]] = attrs.Factory(list)
    lost: list[int] = attrs.Factory(list)
    returned: list[int] = attrs.Factory(list)
    unused: list[tuple[int, int, int]] = attrs.Factory(list)
    cache_bytes: int = 0
    cut: list[str] = attrs.Factory(list)
    memory: BackPressure = attrs.field(init=False)
    out: SendQueue = attrs.field(init=False)
    bodies: BodyCache = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.memory = BackPressure(self.limits)
        self.bodies = BodyCache(
            self.cache_bytes, self._read, lambda queue, seqs, reason: self.lost.extend(seqs)
        )
        self.out = SendQueue(
            self.peer,
            self.bodies,
            self.limits,
            self.memory.account("B"),
            requeue=self._give_back,
            unused=lambda *credit: self.unused.append(credit),
            drained=lambda: None,
            cut=self.cut.append,
        )

    async def _read(self, numbers: list[int]) -> list[Body | None]:
        self.reads.append(numbers)
        await trio.lowlevel.checkpoint()
        return [Body(n, self.stored[n]) if n in self.stored else None for n in numbers]

    def _give_back(self, queue: str, entries: Sequence[m.Entry]) -> None:
        self.returned += [e.seq for e in entries]

    def store(self, *entries: m.Entry) -> list[m.Entry]:
        self.stored.update({e.number: bytes([e.number % 256]) * e.size for e in entries})
        return list(entries)


async def run_to_end(line: Line) -> None:
    async with background() as nursery:
        await line.out.run(nursery)


async def run_until_stopped_reading(line: Line) -> list[Any]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.out.run, nursery)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return line.peer.events


async def test_deliveries_share_frames_up_to_the_limit_and_keep_their_order() -> None:
    line = Line()
    line.out.put(codec.encode(frames.Ok(1, 0)))
    line.out.push(
        3, "q", line.store(*(entry(i, 300) for i in range(1, 8)), entry(8, 5000), entry(9))
    )
    line.out.put(codec.encode(frames.Ok(2, 0)))
    events = await run_until_stopped_reading(line)
    assert (events[0], events[-1]) == (frames.Ok(1, 0), frames.Ok(2, 0))
    assert [[e[0] for e in d.entries] for d in events[1:-1]] == [
        [1, 2, 3],
        [4, 5, 6],
        [7],
        [8],
        [9],
    ]
    assert {d.tag for d in events[1:-1]} == {3}
    assert all(
        body == bytes([seq]) * len(body) for d in events[1:-1] for seq, _, _, _, body in d.entries
    )
    assert line.out.empty
    assert line.out.size == 0


async def test_what_one_commit_gives_to_a_peer_leaves_in_one_write() -> None:
    line = Line(cache_bytes=1000)
    line.bodies.put(1, 1, b"x" * 100, on_its_way=True)
    writes: list[int] = []

    async def count(data: bytes | bytearray | memoryview) -> None:
        writes.append(len(data))
        await Peer.send_all(line.peer, data)

    line.peer.send_all = count  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.out.run, nursery)
        await trio.testing.wait_all_tasks_blocked()
        line.out.put(codec.encode(frames.Ok(1, 0)))
        line.out.put(codec.encode(frames.Ok(2, 0)))
        line.out.push(1, "q", [entry(1)])
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [type(event) for event in line.peer.events] == [frames.Ok, frames.Ok, Deliveries]
    assert len(writes) == 1


async def test_what_is_small_and_alone_is_sent_at_once() -> None:
    line = Line(peer=PromptPeer(), cache_bytes=100_000)
    line.bodies.put(1, 1, b"x" * 100, on_its_way=True)
    line.store(entry(2), entry(3))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.out.run, nursery)
        await trio.testing.wait_all_tasks_blocked()
        line.out.put(codec.encode(frames.Ok(1, 0)))
        line.out.push(1, "q", [entry(1)._replace(size=150)])
        assert [type(event) for event in line.peer.events] == [frames.Ok, Deliveries]
        assert line.unused == [(1, 0, 50)]  # the body has 100 bytes, and its credit was of 150
        assert line.out.empty
        line.out.push(1, "q", [entry(2)])  # is read from the store
        line.out.put(codec.encode(frames.Ok(2, 0)))  # not before it
        assert len(line.peer.events) == 2
        await trio.testing.wait_all_tasks_blocked()
        line.out.put(codec.encode(frames.Ok(3, 0)))
        line.out.finish(codec.encode(frames.GoingAway(5, "bye")))
        line.out.put(codec.encode(frames.Ok(4, 0)))
    kinds = [frames.Ok, Deliveries, Deliveries, frames.Ok, frames.Ok, frames.GoingAway, frames.Ok]
    assert [type(event) for event in line.peer.events] == kinds
    assert isinstance(line.peer, PromptPeer)
    assert line.peer.now == 3


async def test_what_the_network_does_not_take_at_once_the_task_sends_in_order(
    autojump_clock: trio.testing.MockClock,
) -> None:
    peer = PromptPeer(room=5)
    line = Line(peer=peer)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.out.run, nursery)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(4):
            line.out.put(codec.encode(frames.Ok(number, 0)))
        await trio.testing.wait_all_tasks_blocked()
        assert peer.events == [frames.Ok(number, 0) for number in range(4)]
        peer.room, peer.stuck = 0, True
        line.out.put(codec.encode(frames.Ok(9, 0)))
        await trio.sleep(2 * SMALL.heartbeat_s + 1)
        assert line.out.stuck()  # the rest of a frame is waited for, like any other
        nursery.cancel_scope.cancel()


async def test_bodies_are_read_when_their_turn_has_come_and_not_before() -> None:
    line = Line()
    line.out.push(1, "q", line.store(*(entry(i, 900) for i in range(1, 2000))))
    line.peer.stuck = True
    await run_until_stopped_reading(line)
    assert sum(map(len, line.reads)) < 5
    assert line.out.size == 0


async def test_what_memory_holds_is_not_read() -> None:
    line = Line(cache_bytes=1000)
    line.bodies.put(1, 1, b"x" * 100, on_its_way=True)
    line.out.push(1, "q", [entry(1)])
    (delivery,) = await run_until_stopped_reading(line)
    assert delivery == Deliveries(1, [(1, 1, 7, 1, b"x" * 100)])
    assert line.reads == []


async def test_what_is_lost_is_told_and_not_delivered() -> None:
    line = Line()
    line.store(entry(1), entry(3))
    line.out.push(1, "q", [entry(1), entry(2), entry(3)])
    line.out.push(1, "q", [entry(4)])
    (delivery,) = await run_until_stopped_reading(line)
    assert [e[0] for e in delivery.entries] == [1, 3]
    assert line.lost == [2, 4]
    assert line.unused == [(1, 1, 100), (1, 1, 100)]


@pytest.mark.parametrize("cache_bytes", [0, 1000])
@pytest.mark.parametrize("size", [60, 100, 140])
async def test_a_replaced_envelope_uses_the_credit_of_its_present_size(
    size: int, cache_bytes: int
) -> None:
    line = Line(cache_bytes=cache_bytes)
    line.stored[1] = b"x" * size
    line.bodies.put(1, 1, line.stored[1], on_its_way=True)
    line.out.push(3, "q", [entry(1)])
    await run_until_stopped_reading(line)
    assert line.unused == ([(3, 0, 100 - size)] if size != 100 else [])


async def test_a_fetch_uses_no_credit() -> None:
    line = Line()
    line.out.fetched(m.FetchedEntries(9, "q", 5, [entry(1)]))
    await run_until_stopped_reading(line)
    assert line.lost == [1]
    assert line.unused == []


async def test_the_last_words_go_out_and_deliveries_stay_behind() -> None:
    line = Line()
    line.out.put(codec.encode(frames.Ok(1, 0)))
    line.out.push(1, "q", line.store(entry(1)))
    line.out.finish(codec.encode(frames.GoingAway(5, "bye")))
    line.out.push(1, "q", [entry(1)])
    await run_to_end(line)
    assert line.peer.events == [frames.Ok(1, 0), frames.GoingAway(5, "bye")]


async def test_a_fetch_gives_back_what_its_frame_has_no_room_for() -> None:
    line = Line()
    line.out.frame_bytes = 1000
    line.out.fetched(m.FetchedEntries(9, "q", 5, line.store(*(entry(i, 400) for i in range(1, 6)))))
    (answer,) = await run_until_stopped_reading(line)
    assert (answer.correlation, answer.waiting, [e.seq for e in answer.entries]) == (9, 5, [1, 2])
    assert line.returned == [3, 4, 5]


async def test_an_envelope_above_the_peers_frames_ends_the_connection_in_plain_words() -> None:
    line = Line()
    line.out.frame_bytes = 1000
    line.out.push(1, "box.B", line.store(entry(1, 2000)))
    with pytest.raises(FrameTooLarge, match="2000 bytes waits in"):
        await run_to_end(line)


async def test_a_peer_that_takes_nothing_is_cut_and_a_slow_one_is_not(
    autojump_clock: trio.testing.MockClock,
) -> None:
    slow = Line()

    async def slowly(data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(9)
        await Peer.send_all(slow.peer, data)

    slow.peer.send_all = slowly  # type: ignore[method-assign]
    slow.out.push(1, "q", slow.store(entry(1, 2_000_000)))
    assert not await found_stuck(slow, 1000)
    assert len(slow.peer.events) == 1
    stuck = Line()
    stuck.peer.stuck = True
    stuck.out.put(codec.encode(frames.Ok(1, 0)))
    began = trio.current_time()
    assert await found_stuck(stuck, 1000)
    assert 0.5 <= trio.current_time() - began - 2 * SMALL.heartbeat_s <= 1.0
    waiting = Line()  # nothing is sent, so nothing is waited for
    assert not await found_stuck(waiting, 1000)


async def found_stuck(line: Line, within_s: float) -> bool:
    """Ask twice a second, as sessions do, until the peer is stuck."""
    async with background() as nursery:
        nursery.start_soon(line.out.run, nursery)
        with trio.move_on_after(within_s):
            while not line.out.stuck():
                await trio.sleep(0.5)
            return True
    return False


async def test_the_next_frame_is_read_while_one_is_sent() -> None:
    line = Line()
    line.out.push(1, "q", line.store(*(entry(i, 900) for i in range(1, 5))))
    line.peer.stuck = True
    await run_until_stopped_reading(line)
    assert line.reads == [[1], [2]]


async def test_a_read_ahead_that_fails_ends_the_connection_when_its_turn_has_come() -> None:
    line = Line()
    line.out.push(1, "q", line.store(entry(1, 900), entry(2, 900)))
    read = line.bodies.items

    async def failing(queue: str, entries: Sequence[m.Entry]) -> list[codec.DeliveredItem]:
        if entries[0].seq == 2:
            raise StoreUnavailable
        return await read(queue, entries)

    line.bodies.items = failing  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await run_to_end(line)
    assert [[e[0] for e in d.entries] for d in line.peer.events] == [[1]]


def test_another_hq_is_no_verdict_on_a_request() -> None:
    """A client that was told so would end for good; this HQ goes away, and the client asks the
    other one.
    """
    told = error_frame(7, Fenced())
    assert (told.correlation, told.code, told.retryable) == (7, GoingAway.code, True)
    assert error_frame(7, NotFound("no such queue")).code == NotFound.code


@pytest.mark.parametrize(
    ("kind", "known"),
    [(StoreError, StoreUnavailable), (StoreUnavailable, StoreUnavailable), (DiskFull, DiskFull)],
)
def test_why_the_store_failed_is_for_hqs_log_alone(
    kind: type[CipherBoxError], known: type[CipherBoxError]
) -> None:
    """And it is HQ's store: a StoreError at a client's end would speak of that machine's."""
    told = error_frame(7, kind("PostgreSQL at db1.example.org: /srv/db is full"))
    assert (told.code, told.retryable) == (known.code, True)
    assert "example.org" not in told.message
    assert "/srv" not in told.message
    assert told.message
