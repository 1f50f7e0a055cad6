"""Thousands of small files in one envelope: the work is done for a batch of them, and others'
mail passes between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.inbox import incoming_files as arriving
from cipherbox.client.inbox.hidden import SHARED, SHARED_BYTES
from cipherbox.client.inbox.inbox import Inbox, InboxStorage
from cipherbox.client.inbox.incoming_files import CHECK_FILES
from cipherbox.client.inbox.lines import Received
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message, pack, unpack
from tests import soak
from tests.client.memory import MOST_BYTES, Memory
from tests.client.parties import now_ms
from tests.client.real_hq import real_hq
from tests.client.test_arriving import BOX, IDS, completed, files_below, lines, receipts

MANY = 300


def envelope(count: int, sender: str = "FL-LAB", size: int = 17) -> Received:
    """Content that is no text: each becomes a file."""
    content = [Message(b"\xff" * (size - 4) + number.to_bytes(4, "big")) for number in range(count)]
    return Received(sender, IDS.next(), 0, "box.CA-RC", 1, now_ms(), content)


@contextmanager
def counted_syncs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    done: list[int] = []
    fsync = os.fsync

    def counting(fd: int) -> None:
        done.append(fd)
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        yield done


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("each", [False, True])
def test_recording_many_files_syncs_once_for_all(
    tmp_path: Path, plain: bool, each: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "incoming", BOX, plain=plain))
    batch = [envelope(1) for _ in range(MANY)] if each else [envelope(MANY)]
    inbox.record([envelope(2)])  # what is made once
    with counted_syncs(monkeypatch) as syncs:
        inbox.record(batch)
    assert len(syncs) <= 3  # the file that they share and its directory
    assert len(completed(inbox)) == MANY + 2
    if plain:
        names = files_below(tmp_path / "incoming")
        contents = [(tmp_path / "incoming" / name).read_bytes() for name in names]
        numbers = [0] * MANY if each else list(range(MANY))
        assert sorted(int.from_bytes(content[13:], "big") for content in contents) == sorted(
            [0, 1, *numbers]
        )
    assert not list(tmp_path.rglob(f"{SHARED}/*"))
    assert {receipt for receipt, _ in receipts(inbox).values()} == {None}  # all are owed
    inbox.close()


def test_large_files_have_a_hidden_file_of_their_own(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([envelope(2, size=SHARED_BYTES + 1)])
    assert not list(tmp_path.rglob(f"{SHARED}/*"))
    assert len(completed(inbox)) == 2
    inbox.close()


@pytest.mark.parametrize("plain", [True, False])
def test_what_files_share_outlives_a_crash_and_another_directory(
    tmp_path: Path, plain: bool
) -> None:
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "before", BOX, plain=plain))
    inbox.record([envelope(3)])
    (check, *others) = inbox.ready()
    check.step()  # one is copied, and nothing is recorded of it
    inbox.close()
    for one in (check, *others):
        one.close()
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "after", BOX, plain=plain))
    inbox.tidy()
    assert len(completed(inbox)) == 3
    assert not list(tmp_path.rglob(f"{SHARED}/*"))
    inbox.close()


def test_a_shared_file_that_is_in_use_is_never_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: now_ms())
    inbox = Inbox(tmp_path)
    inbox.record([envelope(3)])
    (shared,) = tmp_path.rglob(f"{SHARED}/*")
    forgotten = shared.with_name("ab" * 16)
    forgotten.write_bytes(b"of a step that was killed")
    for place in (shared, forgotten):
        os.utime(place, (0, 0))
    inbox.tidy()
    assert (shared.exists(), forgotten.exists()) == (True, False)
    assert len(completed(inbox)) == 3
    inbox.close()


def test_a_shared_file_that_was_changed_or_is_gone_refuses_what_lay_there(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([envelope(3)])
    (shared,) = tmp_path.rglob(f"{SHARED}/*")
    shared.write_bytes(b"x" + shared.read_bytes()[1:])
    assert len(completed(inbox)) == 2
    inbox.record([envelope(2)])
    (shared,) = tmp_path.rglob(f"{SHARED}/*")
    shared.unlink()
    assert completed(inbox) == []
    assert len(lines(tmp_path)) == 2
    inbox.close()


def test_files_are_completed_some_at_a_time_and_of_each_sender_in_turn(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.record([envelope(CHECK_FILES * 2, "BAD-LAB")])
    inbox.record([envelope(1, "FL-LAB")])
    checks = inbox.ready()
    assert len(checks) == CHECK_FILES
    assert [check.sender for check in checks[:2]] == ["BAD-LAB", "FL-LAB"]
    for check in checks:
        check.close()
    inbox.close()


def test_more_files_than_are_remembered_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arriving, "MOST_TOUCHED", 10)
    inbox = Inbox(tmp_path)
    inbox.record([envelope(25), envelope(15, "SF-LAB")])
    assert len(completed(inbox)) == 40
    inbox.record([envelope(25)])
    inbox.close()
    inbox = Inbox(tmp_path)
    assert len(completed(inbox)) == 25
    inbox.close()


@pytest.mark.parametrize(
    ("part", "plain"),
    [(4, False), *(pytest.param(1, plain, marks=soak.only) for plain in (False, True))],
)
def test_the_most_files_of_an_envelope_cost_little_memory(
    tmp_path: Path, part: int, plain: bool
) -> None:
    """A quarter of them costs a quarter at most."""
    inbox = Inbox(tmp_path, storage=InboxStorage(tmp_path / "incoming", BOX, plain=plain))
    count = LIMITS.messages // part - 1
    one = envelope(1)._replace(messages=unpack(pack([Message(b"\xff" * 240)] * count), count, 0))
    memory = Memory()
    inbox.record([one])
    assert memory.most() < MOST_BYTES // 2 // part
    checks = inbox.ready()
    for check in checks:
        check.close()
    inbox.close()


def test_a_file_that_cannot_be_made_durable_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(arriving, "AGAIN_MS", 0)
    monkeypatch.setattr(arriving, "AGAIN_MOST_MS", 0)
    inbox = Inbox(tmp_path, say=told.append)
    inbox.record([envelope(3)])
    fsync = os.fsync
    failed: list[int] = []

    def failing(fd: int) -> None:
        if not failed:
            failed.append(fd)
            raise OSError(5, "Input/output error")
        fsync(fd)

    checks = inbox.ready()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        for check in checks:
            while not check.done:
                check.step()
        assert len(inbox.complete(checks)) == 2
    assert "retrying in" in told[0]
    assert len(completed(inbox)) == 1
    inbox.close()


@pytest.mark.parametrize("handled", [False, True])
def test_the_database_works_in_proportion(tmp_path: Path, handled: bool) -> None:
    def steps(count: int) -> int:
        inbox = Inbox(
            tmp_path / str(count), storage=InboxStorage(tmp_path / "in", BOX), keep_contents=handled
        )
        done = [0]

        def step() -> int:
            done[0] += 1
            return 0

        inbox._db.set_progress_handler(step, 100)
        inbox.record([envelope(count)])
        assert len(completed(inbox)) == count
        inbox.close()
        return done[0]

    assert steps(1600) < 6 * steps(400)  # 16 times if each file looked at all others


async def test_everybody_elses_mail_passes_between_many_files(tmp_path: Path) -> None:
    async with real_hq(tmp_path) as hq:
        await hq.join("CA-RC", "FL-LAB", "BAD-LAB")
        many: Any = [Message(b"\xff" * 17)] * 1000
        async with (
            hq.client("CA-RC") as center,
            hq.client("FL-LAB") as lab,
            hq.client("BAD-LAB") as bad,
        ):
            await bad.publish(many, to="CA-RC")
            await lab.publish(
                [Message(b"\xff a file", headers={"filename": "scan.tif"})], to="CA-RC"
            )
            receiver = Receiver(center)
            async with trio.open_nursery() as nursery:
                await nursery.start(receiver.run)
                with trio.fail_after(60):
                    while not (hq.home("CA-RC") / "incoming" / "FL-LAB" / "scan.tif").exists():
                        await trio.sleep(0.01)
                    assert receiver.files < 750
                    while receiver.files < 1001:
                        await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
