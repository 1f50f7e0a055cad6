"""Under a password: what was received is kept encrypted, and the commands open it."""

from __future__ import annotations

import hashlib
import sqlite3
from pathlib import Path
from typing import Any

import attrs
import orjson
import pytest
import trio

from cipherbox.apps.chat.conversation import HEADER
from cipherbox.apps.chat.lines import open_lines
from cipherbox.cli.incoming import announce_incoming
from cipherbox.client.client import open_client
from cipherbox.client.home import Home, load_home
from cipherbox.client.inbox.encrypting import lock_all
from cipherbox.client.inbox.inspect import looking
from cipherbox.client.keys.local_key import put_local_key
from cipherbox.client.outbox.transfers import LOCKED_COPY, Transfers
from cipherbox.client.publishing.files import FileSender, send_directory, send_file
from cipherbox.client.receiving.handler import Handled
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.sealing import key_file as keyfile
from cipherbox.sealing.body import TEXT, Message
from tests.client.real_hq import RealHq

PASSWORD = "correct horse battery staple"
SECRET = b"potassium 17.3 mmol/l"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyfile, "MEMORY_KIB", 64)
    monkeypatch.setattr(keyfile, "PASSES", 1)


@pytest.fixture
def home(hq: RealHq, cheap: None) -> Home:
    where = hq.home("CA-RC")
    put_local_key(where, (where / "local.key").read_bytes(), PASSWORD)
    return load_home(where, password=PASSWORD)


def readable(top: Path) -> list[Path]:
    return [path for path in top.rglob("*") if path.is_file() and SECRET in path.read_bytes()]


async def send(hq: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.txt"
    large.write_bytes(SECRET * 200_000)
    async with hq.client("FL-LAB") as lab:
        small = Message(SECRET, "text/plain", {"filename": "small.txt"})
        await lab.publish([SECRET.decode(), small], to="CA-RC")
        await send_file(lab, large, ["large.txt"], ["CA-RC"], "text/plain")


async def test_nothing_that_was_received_lies_readable(hq: Any, home: Home, tmp_path: Path) -> None:
    await send(hq, tmp_path)
    async with open_client(home) as center:
        with trio.fail_after(60):
            assert await Receiver(center).run(count=3) == 3
    assert readable(home.path) == []
    assert list(home.path.glob("incoming")) == []
    with looking(home) as look:
        entries = {one.filename: one for one in look.shelf.oldest()}
        assert entries.keys() == {"", "small.txt", "large.txt"}
        assert entries[""].text == SECRET.decode()
        for name, content in (("small.txt", SECRET), ("large.txt", SECRET * 200_000)):
            assert (
                entries[name].document["content"]["sha256"] == hashlib.sha256(content).hexdigest()
            )
            assert look.save(entries[name], tmp_path / f"saved {name}").read_bytes() == content


async def test_a_handler_gets_a_file_for_its_call_and_nothing_is_left(
    hq: Any, home: Home, tmp_path: Path
) -> None:
    got: dict[str, bytes] = {}

    def handle(handled: Handled, tx: sqlite3.Connection) -> None:
        got[handled.filename] = (
            handled.file.read_bytes() if handled.file else handled.message.content
        )

    await send(hq, tmp_path)
    async with open_client(home) as center:
        with trio.fail_after(60):
            assert (await center.process(handle, idle_s=2.0)).done == 3
    assert got == {"": SECRET, "small.txt": SECRET, "large.txt": SECRET * 200_000}
    assert readable(home.path) == []


async def test_plain_says_that_it_lies_readable_all_the_same(
    hq: Any, home: Home, tmp_path: Path
) -> None:
    plain = attrs.evolve(
        home, config=attrs.evolve(home.config, inbox=attrs.evolve(home.config.inbox, plain=True))
    )
    await send(hq, tmp_path)
    async with open_client(plain) as center:
        with trio.fail_after(60):
            assert await Receiver(center).run(count=3) == 3
    names = {path.name for path in readable(home.path)}
    assert names == {"received_messages.jsonl", "small.txt", "large.txt"}


async def test_what_lay_readable_before_is_encrypted_when_it_is_asked_for(
    hq: Any, cheap: None, tmp_path: Path
) -> None:
    """Of this version and of 0.5.0, which put files below data/ and named them from there."""
    await send(hq, tmp_path)
    where = hq.home("CA-RC")
    async with hq.client("CA-RC") as center:
        with trio.fail_after(60):
            await Receiver(center).run(count=3)
    old = where / "data" / "files" / "FL-LAB" / "01a229e3-053a-7015-8320-4608b3490000"
    old.parent.mkdir(parents=True)
    old.write_bytes(SECRET)
    content = {
        "file": f"files/FL-LAB/{old.name}",
        "size": len(SECRET),
        "sha256": "",
        "content_type": "image/png",
    }
    line = {"message_id": old.name, "sender_id": "FL-LAB", "sent_timestamp": "", "content": content}
    with (where / "data" / "received_messages.jsonl").open("ab") as file:
        file.write(orjson.dumps(line) + b"\n")
    put_local_key(where, (where / "local.key").read_bytes(), PASSWORD)
    home = load_home(where, password=PASSWORD)
    assert len(readable(where)) == 4
    done = lock_all(home)
    assert (done.files, done.left) == (3, [])
    assert readable(where) == []
    with looking(home) as look:
        entries = list(look.shelf.oldest())
        assert len(entries) == 4
        for entry in entries:
            saved = look.save(entry, tmp_path / f"saved {entry.message_id}")
            assert saved.read_bytes() == (
                SECRET * 200_000 if entry.filename == "large.txt" else SECRET
            )
    assert (lock_all(home).lines, lock_all(home).files) == (0, 0)


async def test_a_copy_that_waits_to_be_sent_is_encrypted(
    hq: Any, home: Home, tmp_path: Path
) -> None:
    file = tmp_path / "large.txt"
    file.write_bytes(SECRET * 300_000)
    async with open_client(home) as center:
        transfers = Transfers(center.outbox().outbox)
        transfer = transfers.begin(
            file, ["large.txt"], ["FL-LAB"], "text/plain", compress=False, copy=True
        )
        file.unlink()
        assert transfer.copied == LOCKED_COPY
        assert readable(home.path) == []
        await FileSender(center, transfer).run()
    async with hq.client("FL-LAB") as lab:
        with trio.fail_after(60):
            await Receiver(lab).run(count=1)
    assert (hq.home("FL-LAB") / "incoming" / "CA-RC" / "large.txt").read_bytes() == SECRET * 300_000


async def test_a_directory_is_kept_and_saved_as_one(hq: Any, home: Home, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "a.txt").write_bytes(SECRET)
    (folder / "b.txt").write_bytes(SECRET * 2)
    got: list[dict[str, bytes]] = []

    def handle(handled: Handled, tx: sqlite3.Connection) -> None:
        assert handled.file is not None
        got.append(
            {path.name: path.read_bytes() for path in handled.file.rglob("*") if path.is_file()}
        )

    async with hq.client("FL-LAB") as lab:
        await send_directory(lab, folder, ["CA-RC"])
    async with open_client(home) as center:
        with trio.fail_after(60):
            assert (await center.process(handle, idle_s=2.0)).done == 1
    assert got == [{"a.txt": SECRET, "b.txt": SECRET * 2}]
    assert readable(home.path) == []
    with looking(home) as look:
        (entry,) = look.shelf.oldest()
        saved = look.save(entry, tmp_path / "saved")
    assert (saved / "deep" / "a.txt").read_bytes() == SECRET


async def test_a_conversation_shows_what_is_kept(hq: Any, home: Home) -> None:
    lines = open_lines(home, ["FL-LAB"])
    async with hq.client("FL-LAB") as lab, open_client(home) as center:
        await lab.publish(Message(b"first", TEXT, {HEADER: "CA-RC"}), to="CA-RC")
        with trio.fail_after(60):
            await Receiver(center).run(count=1)
        assert [said.text for said in lines.last()] == ["first"]
        assert lines.new() == []
        await lab.publish(
            [Message(b"second", TEXT, {HEADER: "CA-RC"}), "no line of a chat"], to="CA-RC"
        )
        with trio.fail_after(60):
            await Receiver(center).run(count=2)
        assert [said.text for said in lines.new()] == ["second"]


async def test_what_lies_readable_from_before_is_said(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    announce_incoming(home, None)
    assert "inbox lock" not in capsys.readouterr().err
    (home.path / "data").mkdir(exist_ok=True)
    (home.path / "data" / "received_messages.jsonl").write_bytes(b"{}\n")
    announce_incoming(home, None)
    assert "cipherbox inbox lock" in capsys.readouterr().err
