"""The steps of receiving, one by one and without HQ: one sender's envelopes hold up nobody else's,
and what is held for one sender is bounded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from cipherbox.client.inbox import incoming_files
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving import classify, refusals
from cipherbox.client.receiving.classify import Classifier
from cipherbox.client.receiving.loop import BATCH_BYTES, BULK_ENVELOPES, ReceiveLoop
from cipherbox.client.receiving.progress import Progress
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.client.receiving.recorder import Recorder
from cipherbox.client.receiving.refusals import Refusals
from cipherbox.contact_lists import ContactLists
from cipherbox.envelope.ids import EnvelopeIds
from cipherbox.errors import Busy, MalformedEnvelope, NotFound, StoreError
from cipherbox.sealing.body import text_message
from tests.client.parties import Party, now_ms
from tests.client.scripted import ScriptedHq, client_on
from tests.client.test_many_files import envelope as with_files

IDS = EnvelopeIds(now_ms)
EVENTS: Any = SimpleNamespace(emit=lambda *a, **k: None, messages=lambda *a, **k: None)
MAKE = 1_000_000  # a size in bytes


def opened(sender: str = "FL-LAB", size: int = 5) -> Received:
    content = [text_message("x" * size)]
    return Received(sender, IDS.next(), 0, "box.CA-RC", 1, now_ms(), content)


# -- refusals --------------------------------------------------------------------------------------


class Refused:
    """A delivery that is refused."""

    def __init__(self, *, lost: bool = False) -> None:
        self.released = 0
        self.lost = lost

    def release(self) -> None:
        self.released += 1


class Told:
    """What HQ is told."""

    def __init__(self) -> None:
        self.nacks: list[tuple[Any, bool, str]] = []
        self.most = self.now = 0

    async def nack(self, delivery: Any, requeue: bool, outcome: int, reason: str) -> None:
        self.now += 1
        self.most = max(self.most, self.now)
        await trio.sleep(0.01)
        self.now -= 1
        self.nacks.append((delivery, requeue, reason))


def put(to: Refusals, sender: str = "BAD-LAB", pause_s: float = 30, **more: bool) -> Any:
    one: Any = Refused(lost=more.pop("lost", False))
    back = to.put(
        one,
        sender,
        requeue=more.get("requeue", True),
        outcome=1,
        reason="no key",
        pause_s=pause_s,
    )
    return one, back


async def test_of_one_sender_a_bounded_number_of_refusals_waits(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "OF_SENDER", 3)
    told = Told()
    waiting = Refusals(told.nack, EVENTS, nursery)
    assert [put(waiting)[1] for _ in range(5)] == [True] * 3 + [False] * 2
    assert put(waiting, "FL-LAB")[1]  # nobody else's
    await trio.sleep(1)
    assert [(requeue, "too many" in reason) for _, requeue, reason in told.nacks] == [
        (False, True)
    ] * 2
    await trio.sleep(30)
    assert [requeue for _, requeue, _ in told.nacks] == [False] * 2 + [True] * 4
    assert [put(waiting)[1] for _ in range(4)] == [True] * 3 + [False]  # they count no more


async def test_what_is_refused_holds_neither_bytes_nor_credit_while_it_waits(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    waiting = Refusals(Told().nack, EVENTS, nursery)
    later, _ = put(waiting)
    final, _ = put(waiting, requeue=False, pause_s=0)
    assert (later.released, final.released) == (1, 1)


async def test_a_final_refusal_overtakes_those_that_wait_and_few_are_told_side_by_side(
    nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    told = Told()
    waiting = Refusals(told.nack, EVENTS, nursery)
    slow, _ = put(waiting, pause_s=60)
    for _ in range(refusals.CONCURRENT * 2):
        put(waiting, requeue=False, pause_s=0)
    await waiting.flush()
    assert len(told.nacks) == refusals.CONCURRENT * 2
    assert told.most == refusals.CONCURRENT
    await trio.sleep(60.1)
    assert told.nacks[-1][0] is slow


async def test_hq_is_not_told_of_what_it_has_back_and_its_answer_ends_nothing(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refusals, "OF_SENDER", 1)
    told: list[Any] = []

    async def nack(delivery: Any, requeue: bool, outcome: int, reason: str) -> None:
        told.append(delivery)
        raise NotFound("it is not out any more")

    waiting = Refusals(nack, EVENTS, nursery)
    put(waiting, pause_s=0, lost=True)
    await trio.sleep(1)
    assert told == []
    one, back = put(waiting, pause_s=0)
    assert back
    await trio.sleep(1)
    assert told == [one]
    assert put(waiting)[1]


async def test_a_refusal_that_hq_cannot_take_now_is_repeated_until_the_connection_ends(
    nursery: trio.Nursery, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HQ has the envelope as delivered, and would keep it so."""
    monkeypatch.setattr(refusals, "OF_SENDER", 1)
    told: list[Any] = []

    async def nack(delivery: Any, requeue: bool, outcome: int, reason: str) -> None:
        told.append(delivery)
        if len(told) < 3:
            raise Busy

    waiting = Refusals(nack, EVENTS, nursery)
    one, _ = put(waiting, pause_s=0)
    await trio.sleep(refusals.REPEAT_S + 0.1)
    assert told == [one] * 2
    assert not put(waiting, pause_s=60)[1]  # it still counts
    await trio.sleep(10)
    assert told[3:] == [one]
    told.clear()
    cut, _ = put(waiting, pause_s=0)
    await trio.sleep(0.1)
    cut.lost = True
    await trio.sleep(60)
    assert told == [cut]
    assert put(waiting)[1]


# -- opening ---------------------------------------------------------------------------------------


def delivery(sender: str = "BAD-LAB") -> Any:
    prefix = SimpleNamespace(
        sender=sender,
        envelope_id=IDS.next(),
        generation=0,
        sealed_at=1,
        signature_suite=1,
        message_count=1,
        prompt_receipt=False,
    )
    return SimpleNamespace(
        sender_id=sender,
        envelope_id=prefix.envelope_id,
        commitment=b"",
        queue="box.CA-RC",
        quiet=False,
        accepted_at=1,
        log_entry=0,
        messages=[text_message("x")],
        size=MAKE,
        consumer=None,
        parsed=SimpleNamespace(
            layout=SimpleNamespace(prefix=prefix), hashes=SimpleNamespace(envelope_hash=bytes(32))
        ),
        drop_raw=lambda: None,
        drop_messages=lambda: None,
    )


class Opener:
    """Opens what is opened; ``trouble``: by sender."""

    def __init__(self, takes_s: float = 0.0, **trouble: Exception) -> None:
        self._takes_s, self._trouble = takes_s, trouble

    def expect(self, deliveries: Sequence[Any]) -> None: ...

    def contact_lists(self) -> ContactLists:
        return ContactLists()

    def _work(self) -> None:
        threading.Event().wait(self._takes_s)  # holds the thread, as opening does

    async def open(self, one: Any, *, later: bool, lists: ContactLists) -> None:
        self._work()
        error = self._trouble.get(one.sender_id)
        if error is not None:
            raise error


class Refusing:
    """The refuser of a batch."""

    def __init__(self) -> None:
        self.refused: list[tuple[str, str]] = []

    def add(self, one: Any, error: Exception, outcome: object = None) -> None:
        self.refused.append((one.sender_id, str(error)))

    def send(self) -> None: ...


def classifier(opener: Opener, tmp_path: Path) -> tuple[Classifier, Refusing, Inbox]:
    refusing, inbox = Refusing(), Inbox(tmp_path)
    parts: list[Any] = [opener, inbox, refusing, Progress(), EVENTS]
    return Classifier(*parts), refusing, inbox


async def test_costly_envelopes_are_opened_for_a_short_time_and_the_rest_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classify, "TURN_S", 0.01)
    steps, _, inbox = classifier(Opener(0.02), tmp_path)
    many = [delivery() for _ in range(3)]
    rest = many
    for left in (2, 1, 0):  # at least one in each turn
        new, done, rest = await steps.open_new(rest)
        assert (len(new), len(done), len(rest)) == (1, 1, left)
    inbox.close()


@pytest.mark.parametrize(
    "error", [MalformedEnvelope("no"), OverflowError("too large"), RecursionError("too deep")]
)
async def test_what_one_sender_causes_ends_with_its_envelope(
    tmp_path: Path, error: Exception
) -> None:
    steps, refusing, inbox = classifier(Opener(**{"BAD-LAB": error}), tmp_path)
    new, done, rest = await steps.open_new([delivery(), delivery("FL-LAB"), delivery()])
    assert [one.sender for one in new] == ["FL-LAB"]
    assert ([one.sender_id for one in done], rest) == (["FL-LAB"], [])
    assert [sender for sender, _ in refusing.refused] == ["BAD-LAB", "BAD-LAB"]
    assert all(str(error) in reason for _, reason in refusing.refused)
    inbox.close()


async def test_what_is_wrong_with_this_machine_is_raised(tmp_path: Path) -> None:
    opener = Opener(**{"BAD-LAB": StoreError("the disk is full")})
    steps, refusing, inbox = classifier(opener, tmp_path)
    with pytest.raises(StoreError):
        await steps.open_new([delivery("FL-LAB"), delivery()])
    assert refusing.refused == []
    inbox.close()


# -- recording -------------------------------------------------------------------------------------


class Disk:
    """An inbox that notes what it is asked for; ``bad``: a sender that it cannot record."""

    def __init__(self, bad: str = "") -> None:
        self.calls: list[list[str]] = []
        self.file_counts: dict[Any, int] = {}
        self._bad = bad
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def record(self, batch: Sequence[Received], heard: object) -> list[bytes]:
        self.calls.append([one.sender for one in batch])
        if any(one.sender == self._bad for one in batch):
            raise OverflowError("a number that no database holds")
        if len(batch) == 1 and len(self.calls) == 2:
            self.begun.set()
            self.go_on.wait(60)
        return [b"line\n" for _ in batch]

    def ready(self) -> list[Any]:
        self.calls.append(["files"])
        return []


def recorder(disk: Disk) -> Recorder:
    receipts: Any = SimpleNamespace(notify=lambda prompt: None)
    inbox: Any = disk
    return Recorder(inbox, receipts, None, Progress(), EVENTS, on_lines=None, stored="Stored {}")


async def test_a_batch_is_recorded_in_one_step() -> None:
    disk = Disk()
    assert await recorder(disk).record([opened() for _ in range(50)], None) == {}
    assert disk.calls == [["FL-LAB"] * 50]


async def test_a_batch_with_a_bad_one_is_recorded_in_many_steps_and_files_have_their_turn() -> None:
    disk = Disk("BAD-LAB")
    steps = recorder(disk)
    batch = [opened(), opened("BAD-LAB"), *(opened() for _ in range(8))]
    failed: dict[Any, Any] = {}

    async def record() -> None:
        failed.update(await steps.record(batch, None))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(record)
        while not disk.begun.is_set():  # the first one alone
            await trio.sleep(0.001)
        nursery.start_soon(steps.complete_now)
        await trio.testing.wait_all_tasks_blocked()
        disk.go_on.set()
    assert list(failed) == [("BAD-LAB", batch[1].envelope_id)]
    assert disk.calls[1:3] == [["FL-LAB"], ["files"]]
    assert disk.calls[3:] == [["BAD-LAB"], *[["FL-LAB"]] * 8]


def test_the_whole_files_that_are_remembered_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming_files, "MOST_TOUCHED", 10)
    inbox = Inbox(tmp_path)
    inbox.record([with_files(25)])
    inbox.record([with_files(25, "SF-LAB")])
    remembered = inbox._arriving._touched  # nothing outside tells it from the database's list
    assert {sender: len(own) for sender, own in remembered.items()} == {"FL-LAB": 10, "SF-LAB": 10}
    inbox.close()


# -- the loop --------------------------------------------------------------------------------------


class Source:
    """A consumer that has large deliveries."""

    queue = "box.CA-RC.bulk"
    waiting = 0

    def __init__(self, sizes: list[int]) -> None:
        self.sizes = sizes
        self.asked: list[tuple[int, int]] = []

    async def __aenter__(self) -> Source:
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def take_batch(self, most: int, size: int) -> list[Any]:
        self.asked.append((most, size))
        if not self.sizes:
            await trio.sleep_forever()
        one = delivery("FL-LAB")
        one.size = self.sizes.pop(0)
        return [one]

    def in_order(self, taken: list[Any]) -> list[Any]:
        return taken

    def requeue(self, rest: Sequence[Any]) -> None: ...


async def test_two_large_batches_are_never_in_memory_side_by_side(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = Source([BATCH_BYTES, BATCH_BYTES + 1, 10])
    order: list[str] = []

    class Opens(Opener):
        lookups = SimpleNamespace(busy=False)

        def ready(self, one: Any) -> bool:
            return True

        async def open(self, one: Any, *, later: bool, lists: ContactLists) -> None:
            order.append(f"open {one.size}")

    class Records:
        inbox = Inbox(tmp_path)
        receipts = None
        completing = False

        async def record(self, new: Sequence[Received], heard: object) -> dict[Any, Any]:
            order.append("record")
            await trio.sleep(1)
            order.append("recorded")
            return {}

    async def nothing(*_: object) -> None: ...

    client: Any = SimpleNamespace(
        opener=Opens(),
        events=EVENTS,
        revocations=SimpleNamespace(ensure=nothing),
        consume_unopened=lambda queue, size: source,
        sessions=None,
        ack=nothing,
    )
    records: Any = Records()
    loop = ReceiveLoop(client, records, Progress())
    with trio.move_on_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(loop.consume, source.queue, MAKE, nursery)
    large, larger, small = (
        order.index(f"open {size}") for size in (BATCH_BYTES, BATCH_BYTES + 1, 10)
    )
    first, second, _ = (at for at, step in enumerate(order) if step == "recorded")
    assert large < first < larger
    assert larger < small < second  # a small one is opened meanwhile
    assert set(source.asked) == {(BULK_ENVELOPES, BATCH_BYTES)}
    Records.inbox.close()


async def test_another_receiver_has_its_turn_while_messages_come_without_end(
    scripted: ScriptedHq,
    center: Party,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: MockClock,
) -> None:
    """A conversation takes one batch after the other, each under the lock of the home."""
    async with client_on(scripted, center, tmp_path, monkeypatch) as client:
        conversation, other = Receiver(client), Receiver(client)

        async def take(deliveries: object) -> None:
            with conversation.locked():
                await trio.sleep(0.3)

        async def batch(*_: object) -> list[Any]:
            return [object()]

        conversation.take = take  # type: ignore[method-assign]
        consumer: Any = SimpleNamespace(batch=batch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.take_from, consumer, 1)
            for _ in range(5):
                await trio.sleep(1.0)
                async with other.locked_soon():
                    pass
            nursery.cancel_scope.cancel()
