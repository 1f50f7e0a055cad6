"""Sessions under load, through a real HQ: both directions at once, several programs of one home,
keys that change.
"""

from __future__ import annotations

import sqlite3
from typing import Any

import pytest
import trio

from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.inbox.lines_file import LinesFile
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.settings import SessionTable
from cipherbox.envelope import layout as layouts
from cipherbox.errors import StoreError
from cipherbox.sealing.ratchet import session
from tests import soak
from tests.client.test_sessions import hq, received
from tests.client.waiting import until

__all__ = ["hq"]


def sealed_again(hq: Any, client_id: str) -> int:
    """How many envelopes did not open at the other end."""
    db = sqlite3.connect(hq.home(client_id) / "outbox.sqlite3")
    (count,) = db.execute("SELECT count(*) FROM generations").fetchone()
    db.close()
    return int(count)


def keep_all(hq: Any, *names: str) -> None:
    """Receipts let bytes go; here they stay, to be looked at."""
    for name in names:
        db = sqlite3.connect(hq.home(name) / "outbox.sqlite3", isolation_level=None)
        db.execute("CREATE TABLE IF NOT EXISTS kept (data BLOB)")
        db.execute(
            "CREATE TRIGGER IF NOT EXISTS keep AFTER INSERT ON envelopes BEGIN"
            " INSERT INTO kept VALUES (NEW.data); END"
        )
        db.close()


def said(hq: Any, name: str) -> list[tuple[bytes, bytes, int]]:
    """Session, ratchet key and number of every envelope that was in an outbox."""
    db = sqlite3.connect(hq.home(name) / "outbox.sqlite3")
    found = []
    for (raw,) in db.execute("SELECT data FROM kept"):
        parsed = session.parse(layouts.stanza(raw, layouts.split(raw), 0))
        found.append((parsed.session_id, parsed.header.key, parsed.header.number))
    db.close()
    return found


@pytest.mark.parametrize(
    "trouble", ["rotation", *(pytest.param(one, marks=soak.only) for one in ("none", "keys"))]
)
async def test_both_directions_with_two_programs_each(hq: Any, trouble: str) -> None:
    count = 300
    table = SessionTable(rotation_s=0 if trouble == "rotation" else 86400)
    names = ("FL-LAB", "CA-RC")
    async with hq.client("FL-LAB") as lab:
        await lab.offer_prekeys()
    keep_all(hq, *names)

    async def speak(client: Any, to: str, what: str) -> None:
        async with client.publisher(to=to, stanza="ratchet", batch=1) as publisher:
            for number in range(count):
                await publisher.send(f"{what}{number}")

    async def single(client: Any, to: str) -> None:
        for number in range(30):
            await client.publish(f"single{number}", to=to, stanza="ratchet")

    async def change(client: Any) -> None:
        for _ in range(3):
            await trio.sleep(0.2)
            await client.key_lifecycle.rotate()
            await client.offer_prekeys()

    async with (
        hq.client("FL-LAB", sessions=table) as lab,
        hq.client("FL-LAB", sessions=table) as lab_2,
        hq.client("CA-RC", sessions=table) as center,
        hq.client("CA-RC", sessions=table) as center_2,
        trio.open_nursery() as nursery,
    ):
        for client in (lab, center):
            nursery.start_soon(Receiver(client).run)
        async with trio.open_nursery() as speakers:
            for client, to in ((lab, "CA-RC"), (center, "FL-LAB")):
                speakers.start_soon(speak, client, to, "many")
            for client, to in ((lab_2, "CA-RC"), (center_2, "FL-LAB")):
                speakers.start_soon(single, client, to)
            if trouble == "keys":
                speakers.start_soon(change, center)
        for name in names:
            await until(lambda name=name: len(hq.lines(name)) >= count + 30)
        nursery.cancel_scope.cancel()
    wanted = sorted([*(f"many{i}" for i in range(count)), *(f"single{i}" for i in range(30))])
    for name in names:
        assert sorted(line["content"] for line in hq.lines(name)) == wanted
        numbers = said(hq, name)
        assert len(set(numbers)) == len(numbers)
        assert sealed_again(hq, name) == 0
        if trouble != "rotation":
            assert len({place[0] for place in numbers}) <= 4  # all four began at once


async def test_a_receiver_whose_disk_was_full_goes_on_in_the_same_client(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with hq.client("FL-LAB") as lab:
        async with lab.publisher(to="CA-RC", stanza="ratchet", batch=1) as publisher:
            for number in range(20):
                await publisher.send(f"{number}")
    async with hq.client("CA-RC") as center:
        receiver = Receiver(center)
        for kind, method in ((Inbox, "_insert"), (LinesFile, "append"), (Inbox, "_commit")):

            def full(*_: Any) -> None:
                raise OSError(28, "No space left on device")

            with monkeypatch.context() as patch:
                patch.setattr(kind, method, full)
                with pytest.raises(StoreError, match="No space left"):
                    await receiver.run(idle_s=5)
        with trio.fail_after(60):
            await receiver.run(count=20)
    assert sorted(int(line["content"]) for line in hq.lines("CA-RC")) == list(range(20))
    assert sealed_again(hq, "FL-LAB") == 0


async def test_a_receiver_that_is_cancelled_anywhere_runs_again(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the n-th step of trio after it began, for every n of the first many."""
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        receiver = Receiver(center)
        for turn in range(40):
            async with lab.publisher(to="CA-RC", stanza="ratchet", batch=1) as publisher:
                for number in range(3):
                    await publisher.send(f"{turn}.{number}")
            with trio.move_on_after(10):
                async with trio.open_nursery() as nursery:
                    await nursery.start(receiver.run)
                    for _ in range(turn):
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
        with trio.fail_after(60):
            while len(hq.lines("CA-RC")) < 120:
                await receiver.run(idle_s=0.2)
    texts = [line["content"] for line in hq.lines("CA-RC")]
    assert sorted(texts) == sorted(f"{t}.{n}" for t in range(40) for n in range(3))
    assert sealed_again(hq, "FL-LAB") == 0


@soak.more
async def test_many_sessions_in_one_envelope(hq: Any) -> None:
    names = [f"RC-{i}" for i in range(12 if soak.ON else 4)]
    await hq.join(*names)
    for name in names:
        async with hq.client(name) as client:
            await client.offer_prekeys()
    async with hq.client("FL-LAB") as lab:
        for text in ("1", "2", "3"):
            await lab.publish(text, to=names, stanza="ratchet")
    for name in names:
        assert await received(hq, name, 3) == ["1", "2", "3"]
