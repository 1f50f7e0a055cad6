"""Handlers over a real HQ: once for each message, in one transaction with their result."""

from __future__ import annotations

import hashlib
import json
import shlex
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.apps.agent.agent import Agent
from cipherbox.cli.receive_exec import handler_of
from cipherbox.client.publishing.files import send_file
from cipherbox.client.receiving import attempts as trying
from cipherbox.client.receiving import handler as module
from cipherbox.client.receiving.handler import Handled, Handlers
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.errors import NotFound, RecipientRefuses
from cipherbox.sealing.body import Message
from tests.client.real_hq import RealHq
from tests.client.waiting import until


@pytest.fixture
def hq(hq: RealHq, monkeypatch: pytest.MonkeyPatch) -> RealHq:
    monkeypatch.setattr(trying, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "LOOK_S", 0.02)
    return hq


def results(hq: Any) -> list[str]:
    db = sqlite3.connect(hq.home("CA-RC") / "inbox.sqlite3")
    try:
        return [row[0] for row in db.execute("SELECT text FROM results ORDER BY rowid")]
    finally:
        db.close()


def keep(handled: Handled, tx: sqlite3.Connection) -> None:
    tx.execute("CREATE TABLE IF NOT EXISTS results (text TEXT)")
    tx.execute("INSERT INTO results VALUES (?)", (handled.message.content.decode(),))


async def test_once_for_each_message_with_its_result(hq: Any) -> None:
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish(["one", "two", "three"], to="CA-RC")
        with trio.fail_after(60):
            assert (await center.process(keep, idle_s=2.0)).done == 3
            assert (await center.process(keep, idle_s=0.3)).done == 0
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
    assert results(hq) == ["one", "two", "three"]
    assert [line["content"] for line in hq.lines("CA-RC")] == ["one", "two", "three"]


@pytest.mark.parametrize("idle_s", [None, 5.0])
async def test_a_queue_that_is_not_there_is_said_plainly(hq: Any, idle_s: float | None) -> None:
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60), pytest.raises(NotFound):
            await center.process(keep, queues=["nowhere"], idle_s=idle_s)
        with pytest.raises(NotFound):
            await Receiver(center).keep(["nowhere"])


async def test_what_waits_is_handled_also_while_hq_is_away(hq: Any) -> None:
    handled: list[bytes] = []

    async def once(one: Handled, tx: sqlite3.Connection) -> None:
        handled.append(one.message.content)
        if one.attempt == 1:
            raise ValueError("not yet")

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("here already", to="CA-RC")
        receiver = Receiver(center, keep_contents=True)
        with trio.fail_after(60):
            assert await receiver.run(count=1) == 1
        await hq.stop()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(center.process, once)
                await until(lambda: handled == [b"here already"] * 2)
                nursery.cancel_scope.cancel()


async def test_messages_are_recorded_while_a_handler_waits(hq: Any) -> None:
    """It reads, waits until another one is recorded, and writes: what it had read is old, so it
    begins once more.
    """
    runs: list[tuple[bytes, int]] = []

    async def slow(handled: Handled, tx: sqlite3.Connection) -> None:
        runs.append((handled.message.content, handled.attempt))
        tx.execute("SELECT count(*) FROM envelopes").fetchone()
        if len(runs) == 1:
            await lab.publish("two", to="CA-RC")
            await until(lambda: recorded() == 2)
        keep(handled, tx)

    def recorded() -> int:
        with closing(sqlite3.connect(hq.home("CA-RC") / "inbox.sqlite3")) as db:
            return int(db.execute("SELECT count(*) FROM envelopes").fetchone()[0])

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish("one", to="CA-RC")
        with trio.fail_after(60):
            assert (await center.process(slow, idle_s=2.0)).done == 2
            assert await lab.wait_for([confirmation.envelope_id], "opened", 60)
    assert runs == [(b"one", 1), (b"one", 1), (b"two", 1)]
    assert results(hq) == ["one", "two"]


async def test_a_failure_leaves_nothing_and_is_tried_again(hq: Any) -> None:
    attempts: list[int] = []

    async def twice_wrong(handled: Handled, tx: sqlite3.Connection) -> None:
        keep(handled, tx)
        await trio.lowlevel.checkpoint()
        attempts.append(handled.attempt)
        if handled.message.content == b"hard" and handled.attempt < 3:
            raise ValueError("not yet")

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish(["hard", "easy"], to="CA-RC")
        with trio.fail_after(60):
            await center.process(twice_wrong, idle_s=2.0)
    assert sorted(results(hq)) == ["easy", "hard"]
    assert sorted(attempts) == [1, 1, 2, 3]


async def test_what_fails_for_good_is_set_aside_told_and_can_be_retried(hq: Any) -> None:
    def never(handled: Handled, tx: sqlite3.Connection) -> None:
        if handled.message.content == b"bad":
            raise ValueError("cannot be parsed")
        keep(handled, tx)

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        confirmation = await lab.publish(["bad", "good"], to="CA-RC")
        with trio.fail_after(60):
            assert (await center.process(never, tries=2, idle_s=2.0)).parked_count == 1
            with pytest.raises(RecipientRefuses, match="handler failed"):
                await lab.wait_for([confirmation.envelope_id], "opened", 60)
            (data,) = (await lab.export_receipts(confirmation.message_ids[0])).values()
        assert b'"outcome": "handler-failed"' in data
        handlers = Handlers(center)
        (aside,) = handlers.parked()
        assert (aside.message_id, aside.attempts) == (confirmation.message_ids[0], 2)
        assert "cannot be parsed" in aside.reason
        assert handlers.retry(confirmation.message_ids[1]) == 0
        assert handlers.retry() == 1
        handlers.close()
        with trio.fail_after(60):
            await center.process(keep, idle_s=2.0)
    assert results(hq) == ["good", "bad"]


async def test_a_command_runs_once_for_each_message_and_each_file_of_any_size(
    hq: Any, tmp_path: Path
) -> None:
    large = tmp_path / "scan.nii.gz"
    large.write_bytes(b"\x1f\x8b" + bytes(range(256)) * 20_000)
    script = tmp_path / "handle.py"
    script.write_text(
        "import hashlib, json, os, sys\n"
        "known = {k[10:]: v for k, v in os.environ.items() if k.startswith('CIPHERBOX_')}\n"
        "known['sha256'] = hashlib.sha256(sys.stdin.buffer.read()).hexdigest()\n"
        f"open({str(tmp_path / 'ran')!r}, 'a').write(json.dumps(known) + chr(10))\n"
    )
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        small = Message(b"a,b\n", "text/csv", {"filename": "small.csv"})
        sent = [await lab.publish([small, "a text"], to="CA-RC")]
        sent.append(await send_file(lab, large, [large.name], ["CA-RC"], "application/gzip"))
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(script))}"
        with trio.fail_after(60):
            assert (await center.process(handler_of(command), idle_s=2.0)).done == 3
            assert await lab.wait_for([one.envelope_id for one in sent], "opened", 60)
    ran = [json.loads(line) for line in (tmp_path / "ran").read_text().splitlines()]
    files = {one["FILENAME"]: one for one in ran if "FILE" in one}
    assert len(ran) == 3
    assert files.keys() == {"small.csv", "scan.nii.gz"}
    for name, content in (("small.csv", b"a,b\n"), ("scan.nii.gz", large.read_bytes())):
        path = hq.home("CA-RC") / "incoming" / "FL-LAB" / name
        assert files[name]["FILE"] == str(path)
        assert path.read_bytes() == content
        assert files[name]["sha256"] == hashlib.sha256(content).hexdigest()
        assert files[name]["SENDER_ID"] == "FL-LAB"
    (text,) = [one for one in ran if "FILE" not in one]
    assert text["sha256"] == hashlib.sha256(b"a text").hexdigest()
    assert len(hq.lines("CA-RC")) == 3


async def test_an_agent_calls_a_handler_too(hq: Any, tmp_path: Path) -> None:
    got: list[tuple[str, bytes]] = []

    def handle(handled: Handled, tx: sqlite3.Connection) -> None:
        got.append(
            (
                handled.filename,
                handled.file.read_bytes() if handled.file else handled.message.content,
            )
        )

    async with hq.client("FL-LAB") as lab, hq.client("CA-RC", keep_trying=True) as center:
        await lab.publish(["hello", Message(b"1", "text/csv", {"filename": "a.csv"})], to="CA-RC")
        agent = Agent(center, tmp_path / "folder", handler=handle)
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            await until(lambda: len(got) == 2)
            nursery.cancel_scope.cancel()
    assert sorted(got) == [("", b"hello"), ("a.csv", b"1")]
    assert (tmp_path / "folder" / "incoming" / "FL-LAB" / "a.csv").exists()
