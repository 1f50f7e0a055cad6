"""A conversation over a real HQ: lines, their states, and an inbox that others of the same home
may fill.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio

from cipherbox.apps.chat import conversation as module
from cipherbox.apps.chat import lines as chat_lines
from cipherbox.apps.chat.conversation import (
    AT_HQ,
    OPENED,
    SEALED,
    Chat,
    ChatLine,
    reachable_clients,
)
from cipherbox.apps.chat.lines import ChatLines, ReceivedLine
from cipherbox.client.receiving import inbox_lock
from cipherbox.client.receiving.contacts import Contacts
from cipherbox.client.receiving.contacts_upload import ContactsUploader
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.layout import split
from cipherbox.errors import RecipientRevoked, TooLarge
from tests import soak
from tests.client.real_hq import RealHq
from tests.client.waiting import until


@pytest.fixture
async def hq(hq: RealHq, monkeypatch: pytest.MonkeyPatch) -> RealHq:
    monkeypatch.setattr(module, "OTHER_S", 0.1)
    await hq.join("NY-RC")
    return hq


class Talk:
    """One side: what it saw, and its lines' states."""

    def __init__(self, chat: Chat, lines: ChatLines) -> None:
        self.chat, self._lines = chat, lines
        self.seen: list[ReceivedLine] = []

    def texts(self) -> list[str]:
        self.seen += self._lines.new()
        return [said.text for said in self.seen]


@asynccontextmanager
async def talking(
    hq: Any, name: str, *others: str, states: list[Any] | None = None
) -> AsyncIterator[Talk]:
    async with hq.client(name, keep_trying=True, pause_max_s=0.2) as client:

        def note(line: ChatLine) -> None:
            if states is not None:
                states.append((line.text, line.state))

        chat = Chat(client, others, note)
        lines = ChatLines(client.home.path, others)
        lines.last()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chat.watch)
            nursery.start_soon(chat.receive)
            yield Talk(chat, lines)
            nursery.cancel_scope.cancel()


def inbox(hq: Any, name: str) -> list[dict[str, Any]]:
    file = hq.home(name) / "data" / "received_messages.jsonl"
    return (
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    )


async def test_two_people_and_what_became_of_each_line(hq: Any) -> None:
    states: list[Any] = []
    async with talking(hq, "FL-LAB", "CA-RC", states=states) as here:
        line = await here.chat.send("hello")
        outbox = here.chat.client.outbox().outbox
        row = outbox.find(line.envelopes[0])
        assert row is not None
        assert split(outbox.bytes_of(row) or b"").prefix.prompt_receipt  # its state is watched
        await until(lambda: ("hello", AT_HQ) in states)
        async with talking(hq, "CA-RC", "FL-LAB") as there:
            await until(lambda: there.texts() == ["hello"])
            await until(lambda: ("hello", OPENED) in states)
            await there.chat.send("good morning")
            await until(lambda: here.texts() == ["good morning"])
    assert states == [("hello", SEALED), ("hello", AT_HQ), ("hello", OPENED)]
    assert here.seen[0].sender_id == "CA-RC"
    assert here.seen[0].to == "FL-LAB"
    assert [line["content"] for line in inbox(hq, "CA-RC")] == ["hello"]
    assert [said.text for said in ChatLines(hq.home("CA-RC"), ["FL-LAB"]).last()] == ["hello"]
    assert ChatLines(hq.home("CA-RC"), ["NY-RC"]).last() == []


async def test_lines_to_several_keep_their_order(hq: Any) -> None:
    async with (
        talking(hq, "FL-LAB", "CA-RC", "NY-RC") as here,
        talking(hq, "CA-RC", "FL-LAB") as one,
        talking(hq, "NY-RC", "FL-LAB") as two,
    ):
        wanted = [f"line {number}" for number in range(40)]
        for text in wanted:
            await here.chat.send(text)
        assert await here.chat.settled(20)
        await until(lambda: one.texts() == wanted and two.texts() == wanted)
        assert one.seen[0].to == "CA-RC, NY-RC"


async def test_beside_a_receiver_of_the_same_home(hq: Any) -> None:
    """Before, while and after one runs: every message is recorded once, and shown once."""
    async with talking(hq, "FL-LAB", "CA-RC") as here, talking(hq, "CA-RC", "FL-LAB") as there:
        await here.chat.send("first")
        await until(lambda: there.texts() == ["first"])
        async with hq.client("CA-RC") as beside:
            async with trio.open_nursery() as nursery:
                await nursery.start(Receiver(beside).run)
                for number in range(10):
                    await here.chat.send(f"beside {number}")
                await until(lambda: len(there.texts()) == 11)
                nursery.cancel_scope.cancel()
        await here.chat.send("last")
        await until(lambda: there.texts()[-1] == "last")
    assert len(there.seen) == 12
    ids = [line["message_id"] for line in inbox(hq, "CA-RC")]
    assert len(ids) == len(set(ids)) == 12


async def test_lines_wait_while_hq_is_away(hq: Any) -> None:
    states: list[Any] = []
    async with (
        talking(hq, "FL-LAB", "CA-RC", states=states) as here,
        talking(hq, "CA-RC", "FL-LAB") as there,
    ):
        await here.chat.send("before")
        await until(lambda: there.texts() == ["before"])
        await hq.stop()
        await here.chat.send("meanwhile")
        assert not await here.chat.settled(0.5)
        assert here.chat.waiting == 1
        await hq.start()
        await until(lambda: there.texts() == ["before", "meanwhile"])
        await until(lambda: ("meanwhile", OPENED) in states)


async def test_everybody_and_who_went_away(hq: Any) -> None:
    async with hq.client("FL-LAB") as client:
        assert await reachable_clients(client) == (["CA-RC", "NY-RC"], {})
        to_all = Chat(client, ["CA-RC", "NY-RC"], to_all=True)
        to_two = Chat(client, ["CA-RC", "NY-RC"])
        async with hq.admin() as admin:
            await admin.revoke("NY-RC", "")
        client.directory.refresh("NY-RC")
        with pytest.raises(RecipientRevoked, match="NY-RC"):
            await to_two.send("who is there?")
        await to_all.send("who is there?")
        assert to_all.others == ["CA-RC"]
        async with hq.client("CA-RC") as center, center.consume() as deliveries:
            delivery = await deliveries.__anext__()
            assert delivery.messages[0].headers == {"chat": "CA-RC"}
            assert delivery.messages[0].content_type == module.TYPE


async def test_a_line_to_everybody_goes_on_for_those_who_take_it(hq: Any) -> None:
    Contacts(hq.home("NY-RC")).block(["FL-LAB"])
    async with hq.client("NY-RC") as refusing, hq.client("FL-LAB") as client:
        await ContactsUploader(refusing).upload()
        chat = Chat(client, ["CA-RC", "NY-RC"], to_all=True)
        await chat.send("who takes it?")
        async with hq.client("CA-RC") as center, center.consume() as deliveries:
            with trio.fail_after(60):
                assert (await deliveries.__anext__()).messages[0].content == b"who takes it?"


async def test_a_line_is_no_file(hq: Any) -> None:
    async with talking(hq, "FL-LAB", "CA-RC") as here:
        with pytest.raises(TooLarge, match="send it as a file"):
            await here.chat.send("x" * (module.LINE_BYTES + 1))


class File:
    """A readable file of an inbox, as a receiver writes it."""

    def __init__(self, home: Path) -> None:
        self.path = home / "data" / "received_messages.jsonl"
        self.path.parent.mkdir()

    def add(self, number: int, sender: str = "CA-RC", text: str | None = None, **more: Any) -> None:
        line = {
            "message_id": f"id-{number}",
            "sender_id": sender,
            "sent_timestamp": "2025-10-08T07:03:00.123Z",
            "content": text or f"line {number}",
            "headers": {"chat": "FL-LAB"},
            **more,
        }
        with self.path.open("ab") as file:
            file.write(orjson.dumps(line) + b"\n")

    def write(self, raw: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(raw)


def texts(found: list[ReceivedLine]) -> list[str]:
    return [said.text for said in found]


@pytest.mark.parametrize("block", [7, 100, 1 << 20])
def test_the_last_lines_and_the_new_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(chat_lines, "BLOCK", max(block, 7))
    monkeypatch.setattr(chat_lines, "LOOK_BACK", 1 << 20)
    assert ChatLines(tmp_path, None).last() == ChatLines(tmp_path, None).new() == []
    file = File(tmp_path)
    for number in range(30):
        file.add(number)
        file.add(100 + number, sender="NY-RC")
        file.add(200 + number, headers={"subject": "no chat"})
    lines = ChatLines(tmp_path, ["CA-RC"])
    assert texts(lines.last(5)) == [f"line {number}" for number in range(25, 30)]
    assert len(texts(ChatLines(tmp_path, ["CA-RC"]).last(1000))) == 30
    assert len(texts(ChatLines(tmp_path, None).last(1000))) == 60
    if block < 1000:
        return
    assert lines.new() == []
    file.add(30)
    file.write(b'{"half')
    assert texts(lines.new()) == ["line 30"]
    assert lines.new() == []


def test_a_file_that_is_cut_back_moved_or_full_of_other_things(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = File(tmp_path)
    lines = ChatLines(tmp_path, None)
    file.add(1)
    size = file.path.stat().st_size
    file.add(2)
    assert texts(lines.last()) == ["line 1", "line 2"]
    with file.path.open("r+b") as cut:
        cut.truncate(size)
    assert lines.new() == []
    file.add(2)
    file.add(3)
    assert texts(lines.new()) == ["line 3"], "what was shown is not shown again"
    for raw in (
        b"\n",
        b"null\n",
        b'{"headers":{"chat":1}}\n',
        b'{"headers":null}\n',
        b'\xff"headers":\n',
    ):
        file.write(raw)
    file.add(4, content={"file": "x"})
    file.add(5)
    assert texts(lines.new()) == ["line 5"]
    file.path.rename(tmp_path / "old")
    assert lines.new() == []
    file.add(6)
    assert texts(lines.new()) == ["line 6"]
    monkeypatch.setattr(chat_lines, "BLOCK", 1000)
    file.add(7, text="x" * 5000)
    file.add(8)
    found = [text for _ in range(20) for text in texts(lines.new())]
    assert found == ["line 8"], "nobody typed the long one"


@soak.more
async def test_a_receiver_that_starts_waits_for_the_moment_of_a_recording(
    hq: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_lock, "PATIENCE_S", 60.0)  # on a machine that does much else
    async with talking(hq, "CA-RC", "FL-LAB"), talking(hq, "FL-LAB", "CA-RC") as here:
        async with trio.open_nursery() as nursery:

            async def keep_saying() -> None:
                for number in range(1000):
                    await here.chat.send(f"{number}")
                    await trio.sleep(0.01)  # not all that a machine can do meanwhile

            nursery.start_soon(keep_saying)
            for _ in range(soak.of(20)):
                async with hq.client("CA-RC") as client:
                    await Receiver(client).drain()
            nursery.cancel_scope.cancel()
    ids = [line["message_id"] for line in inbox(hq, "CA-RC")]
    assert len(ids) == len(set(ids)) > 0
