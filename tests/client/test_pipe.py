"""A pipe over a real HQ: bytes, both ways, over cut lines and restarts, with ends that stall,
break off or vanish.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from cipherbox.apps.pipe import pipe as module
from cipherbox.apps.pipe.frames import Frame, Kind, read_frame
from cipherbox.apps.pipe.pipe import Pipe
from cipherbox.errors import (
    MalformedEnvelope,
    PeerGone,
    ProtocolError,
    StoreLocked,
    UnknownRecipient,
)
from tests.client.real_hq import RealHq
from tests.client.waiting import until


class Memory:
    """An input that is given piece by piece, and an output that can be held up."""

    def __init__(self, *given: bytes, end: bool = True) -> None:
        self.send, self._given = trio.open_memory_channel[bytes](1000)
        self.closed = False
        self.flowing = trio.Event()
        self.flowing.set()
        self.taken = self.size = 0
        self.digest = hashlib.sha256()
        self.head = b""
        for data in given:
            self.send.send_nowait(data)
        if end:
            self.send.close()

    async def read(self, most: int) -> bytes:
        data = await self._receive()
        assert len(data) <= most
        self.taken += len(data)
        return data

    async def _receive(self) -> bytes:
        try:
            return await self._given.receive()
        except trio.EndOfChannel:
            return b""

    async def write(self, data: bytes) -> None:
        await self.flowing.wait()
        assert not self.closed
        self.size += len(data)
        self.digest.update(data)
        self.head = (self.head + data)[:100]

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
async def hq(hq: RealHq) -> RealHq:
    await hq.join("NY-RC")
    return hq


@asynccontextmanager
async def end(hq: Any, name: str, peer: str, ends: Memory, **options: Any) -> AsyncIterator[Pipe]:
    async with hq.client(name, pause_max_s=0.2, **options.pop("client", {})) as client:
        yield Pipe(client, peer, ends, **options)


async def joined(hq: Any, here: Memory, there: Memory, **options: Any) -> None:
    async with (
        end(hq, "FL-LAB", "CA-RC", here, **options) as caller,
        end(hq, "CA-RC", "FL-LAB", there, **options) as listener,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.listen)
            nursery.start_soon(caller.call)


def pieces(seed: int, count: int, largest: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.randbytes(chance.randint(1, largest)) for _ in range(count)]


@pytest.mark.parametrize("kind", list(Kind))
def test_frames_are_read_as_written(kind: Kind) -> None:
    frame = Frame(kind, b"p" * 16, 7, 1 << 40, b"\0data")
    assert read_frame(frame.message().content) == frame


@pytest.mark.parametrize(
    "raw", [b"", b"\1" * 33, b"\2\3" + bytes(32), b"\1\0" + bytes(32), b"\1\7" + bytes(32)]
)
def test_what_is_no_frame(raw: bytes) -> None:
    with pytest.raises(MalformedEnvelope):
        read_frame(raw)


async def test_both_ways_at_once(hq: Any) -> None:
    out, back = pieces(1, 200, 4000), pieces(2, 30, 200_000)
    here, there = Memory(*out), Memory(*back)
    with trio.fail_after(60):
        await joined(hq, here, there)
    assert there.digest.digest() == hashlib.sha256(b"".join(out)).digest()
    assert here.digest.digest() == hashlib.sha256(b"".join(back)).digest()
    assert here.closed
    assert there.closed
    for name in ("FL-LAB", "CA-RC"):
        assert not (hq.home(name) / "data" / "files").exists()
        assert list((hq.home(name) / "outbox").iterdir()) == []
        async with hq.client(name) as client:
            assert client.outbox().outbox.newest(1000) == [], (
                "the frames of a pipe that ended are no history"
            )


async def test_one_end_closes_first(hq: Any) -> None:
    here, there = Memory(), Memory(b"still talking", end=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joined, hq, here, there)
        await until(lambda: there.closed and here.head == b"still talking")
        there.send.send_nowait(b" and done")
        there.send.close()
        with trio.fail_after(60):
            await until(lambda: here.closed)
    assert here.head == b"still talking and done"


async def test_a_reader_that_stalls_stalls_the_writer(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WINDOW", 400_000)
    monkeypatch.setattr(module, "CHUNK", 100_000)
    given = pieces(3, 60, 99_000)
    here, there = Memory(*given), Memory()
    there.flowing = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joined, hq, here, there)
        await until(lambda: here.taken > 400_000)
        await trio.sleep(2.5)
        assert here.taken <= 400_000 + 4 * 100_000
        assert here.taken < sum(map(len, given))
        there.flowing.set()
        with trio.fail_after(60):
            await until(lambda: there.closed)
    assert there.digest.digest() == hashlib.sha256(b"".join(given)).digest()


async def test_cut_lines_and_a_restart_in_the_middle(hq: Any) -> None:
    given = pieces(4, 150, 60_000)
    here, there = Memory(*given[:50], end=False), Memory()

    async def feed() -> None:
        for number, data in enumerate(given[50:]):
            await here.send.send(data)
            if number % 25 == 10:
                await hq.gate.cut()
            if number == 50:
                await hq.restart()
            await trio.sleep(0.01)
        here.send.close()

    with trio.fail_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joined, hq, here, there)
            nursery.start_soon(feed)
    assert there.digest.digest() == hashlib.sha256(b"".join(given)).digest()


async def test_an_end_that_vanishes_is_noticed(hq: Any) -> None:
    killed = trio.CancelScope()
    async with end(hq, "CA-RC", "FL-LAB", Memory(end=False), idle_s=5.0) as here:

        async def there() -> None:
            async with end(hq, "FL-LAB", "CA-RC", Memory(end=False), idle_s=5.0) as pipe:
                pipe._peer_aborted = True  # as SIGKILL: no last word
                with killed:
                    await pipe.call()

        async def kill() -> None:
            await here._opened.wait()
            await trio.sleep(6.0)
            assert here._failure is None, "an end without data says that it is there"
            killed.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(there)
            nursery.start_soon(kill)
            with (
                pytest.raises(PeerGone, match=r"nothing came from FL-LAB for 5 s"),
                trio.fail_after(60),
            ):
                await here.listen()


async def test_an_end_that_stops_says_so(hq: Any) -> None:
    async with end(hq, "CA-RC", "FL-LAB", Memory(end=False)) as here:
        async with end(hq, "FL-LAB", "CA-RC", Memory(end=False)) as there:
            async with trio.open_nursery() as nursery:

                async def stop() -> None:
                    with trio.CancelScope() as scope:
                        async with trio.open_nursery() as inner:
                            inner.start_soon(there.call)
                            await here._opened.wait()
                            scope.cancel()

                nursery.start_soon(stop)
                with (
                    pytest.raises(PeerGone, match="FL-LAB broke off: it was stopped"),
                    trio.fail_after(60),
                ):
                    await here.listen()


async def test_an_output_that_is_closed_ends_both(hq: Any) -> None:
    class Closed(Memory):
        async def write(self, data: bytes) -> None:
            raise BrokenPipeError(32, "Broken pipe")

    async with end(hq, "CA-RC", "FL-LAB", Closed(end=False)) as here:
        async with end(hq, "FL-LAB", "CA-RC", Memory(b"x", end=False)) as there:
            async with trio.open_nursery() as nursery:

                async def other() -> None:
                    with pytest.raises(PeerGone, match=r"CA-RC broke off: .*Broken pipe"):
                        await there.call()

                nursery.start_soon(other)
                with pytest.raises(BrokenPipeError), trio.fail_after(60):
                    await here.listen()


async def test_nobody_answers_and_nobody_calls(hq: Any) -> None:
    async with end(hq, "FL-LAB", "CA-RC", Memory()) as caller:
        with pytest.raises(
            PeerGone, match=r"did not answer within 0.5 s; .*cipherbox pipe FL-LAB --listen"
        ):
            await caller.call(0.5)
    async with end(hq, "FL-LAB", "CA-RC", Memory()) as listener:
        with pytest.raises(PeerGone, match="CA-RC did not call within"):
            await listener.listen(0.5)
    async with end(hq, "FL-LAB", "XX-LAB", Memory()) as caller:
        with pytest.raises(UnknownRecipient):
            await caller.call()


async def test_both_call(hq: Any) -> None:
    async with (
        end(hq, "FL-LAB", "CA-RC", Memory()) as here,
        end(hq, "CA-RC", "FL-LAB", Memory()) as there,
    ):
        async with trio.open_nursery() as nursery:
            for pipe in (here, there):

                async def one(pipe: Pipe = pipe) -> None:
                    with pytest.raises(PeerGone, match="one of the two ends needs --listen"):
                        await pipe.call(6.0)  # in which both calls have arrived

                nursery.start_soon(one)


async def test_another_client_is_not_let_in(hq: Any) -> None:
    said: list[Any] = []
    here, there = Memory(b"for CA-RC"), Memory()
    async with end(hq, "CA-RC", "FL-LAB", there, client={"on_event": said.append}) as listener:
        async with end(hq, "NY-RC", "CA-RC", Memory(b"let me in")) as stranger:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.listen)
                with pytest.raises(PeerGone, match="did not answer"):
                    await stranger.call(2.0)
                async with end(hq, "FL-LAB", "CA-RC", here) as caller:
                    await caller.call()
    assert there.head == b"for CA-RC"
    assert any("NY-RC called; this end is for FL-LAB alone" in line for line in said)


async def test_a_call_given_up_does_not_hold_the_next(hq: Any) -> None:
    async with end(hq, "FL-LAB", "CA-RC", Memory()) as first:
        with trio.move_on_after(1.0):
            await first.call()
    there = Memory()
    async with (
        end(hq, "CA-RC", "FL-LAB", there) as listener,
        end(hq, "FL-LAB", "CA-RC", Memory(b"again")) as second,
    ):
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listener.listen)
                nursery.start_soon(second.call)
    assert there.head == b"again"


async def test_an_end_that_was_killed_calls_again(hq: Any) -> None:
    """The listener ends at once, and the call waits for whoever listens next."""
    there = Memory()
    async with trio.open_nursery() as nursery:

        async def lost() -> None:
            async with end(hq, "FL-LAB", "CA-RC", Memory(end=False)) as pipe:
                pipe._peer_aborted = True  # as SIGKILL: no last word
                with trio.CancelScope() as killed:
                    async with trio.open_nursery() as inner:
                        inner.start_soon(pipe.call)
                        await pipe._opened.wait()
                        await trio.sleep(0.5)
                        killed.cancel()
            async with end(hq, "FL-LAB", "CA-RC", Memory(b"here I am again")) as pipe:
                await pipe.call()

        nursery.start_soon(lost)
        with trio.fail_after(60):
            async with end(hq, "CA-RC", "FL-LAB", Memory(end=False)) as first:
                with pytest.raises(PeerGone, match="FL-LAB began another pipe"):
                    await first.listen()
            async with end(hq, "CA-RC", "FL-LAB", there) as second:
                await second.listen()
    assert there.head == b"here I am again"


async def test_other_messages_enter_the_inbox(hq: Any) -> None:
    here, there = Memory(end=False), Memory()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(joined, hq, here, there)
        async with hq.client("NY-RC") as other:
            confirmation = await other.publish("by the way", to=["CA-RC"])
            lines = hq.home("CA-RC") / "data" / "received_messages.jsonl"
            await until(lambda: lines.exists() and '"by the way"' in lines.read_text())
            with trio.fail_after(60):
                await other.wait_for([confirmation.envelope_id], "opened", 60)
        here.send.close()
    async with hq.client("CA-RC") as client:
        assert await client.fetch() == []


async def test_one_receiver_at_a_time(hq: Any) -> None:
    from cipherbox.client.receiving.receiver import Receiver

    async with hq.client("CA-RC") as client:
        with Receiver(client).locked():
            async with end(hq, "CA-RC", "FL-LAB", Memory()) as pipe:
                with pytest.raises(StoreLocked):
                    await pipe.listen()


async def test_more_than_was_agreed_is_refused(hq: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = Memory(end=False)
    there.flowing = trio.Event()
    async with (
        end(hq, "CA-RC", "FL-LAB", there) as listener,
        end(hq, "FL-LAB", "CA-RC", Memory(end=False)) as caller,
    ):
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                with pytest.raises(PeerGone, match="sends more than was agreed"):
                    await caller.call()

            nursery.start_soon(flood)

            async def shrink() -> None:
                await listener._opened.wait()
                monkeypatch.setattr(module, "WINDOW_FRAMES", 5)
                for _ in range(10):
                    await caller._post(Kind.DATA, b"x")

            nursery.start_soon(shrink)
            with pytest.raises(ProtocolError), trio.fail_after(60):
                await listener.listen()


async def test_receive_keeps_no_stray_frames(hq: Any) -> None:
    from cipherbox.client.receiving.receiver import Receiver

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish(Frame(Kind.OPEN, b"p" * 16).message(), to=["CA-RC"])
        await lab.publish("a message", to=["CA-RC"])
        receiver = Receiver(center)
        assert await receiver.drain() == 1
        lines = (hq.home("CA-RC") / "data" / "received_messages.jsonl").read_text().splitlines()
        assert len(lines) == 1
        assert await receiver.drain() == 0
