"""The agent over a real HQ: folder to folder, over restarts, with what cannot be sent set aside
and explained.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from cipherbox.apps.agent import agent as module
from cipherbox.apps.agent import guide, scan
from cipherbox.apps.agent.agent import Agent
from cipherbox.apps.agent.file_mover import FileMover
from cipherbox.config.settings import AgentSettings
from cipherbox.errors import StoreLocked
from tests.client.real_hq import RealHq
from tests.client.waiting import until


@pytest.fixture
def hq(hq: RealHq, monkeypatch: pytest.MonkeyPatch) -> RealHq:
    monkeypatch.setattr(module, "LOOK_S", 0.05)
    return hq


@asynccontextmanager
async def running(
    hq: Any, name: str, folder: Path, said: list[Any] | None = None, **settings: Any
) -> AsyncIterator[Agent]:
    listen = said.append if said is not None else None
    agent = AgentSettings(**{"settle_s": 0.1, **settings})
    async with hq.client(
        name, keep_trying=True, pause_max_s=0.2, on_event=listen, agent=agent
    ) as client:
        async with trio.open_nursery() as nursery:
            agent = Agent(client, folder)
            await nursery.start(agent.run)
            yield agent
            nursery.cancel_scope.cancel()


def put(folder: Path, where: str, content: bytes) -> Path:
    path = folder / "outgoing" / where
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}")  # left out until it is whole
    hidden.write_bytes(content)
    return hidden.replace(path)


async def test_from_folder_to_folder(hq: Any, tmp_path: Path) -> None:
    lab, center = tmp_path / "lab", tmp_path / "center"
    put(lab, "CA-RC/before.txt", b"was there")
    put(lab, "CA-RC/.hidden", b"no")
    put(lab, "CA-RC/now.part", b"no")
    async with running(hq, "FL-LAB", lab) as sender, running(hq, "CA-RC", center):
        put(lab, "CA-RC/deep/down/x.bin", b"\0" * 3_000_000)
        put(lab, "CA-RC/empty", b"")
        incoming = center / "incoming" / "FL-LAB"
        await until(
            lambda: all(
                (incoming / name).exists() for name in ("deep/down/x.bin", "empty", "before.txt")
            ),
            30,
        )
        assert (incoming / "before.txt").read_bytes() == b"was there"
        assert (incoming / "deep/down/x.bin").read_bytes() == b"\0" * 3_000_000
        await until(lambda: sender.sent == 3)
    assert (lab / "sent/CA-RC/deep/down/x.bin").exists()
    assert sorted(p.name for p in (lab / "outgoing/CA-RC").iterdir() if p.is_file()) == [
        ".hidden",
        "now.part",
    ]
    assert sorted(p.name for p in incoming.iterdir()) == ["before.txt", "deep", "empty"]


async def test_a_directory_that_was_sent_leaves_no_empty_folders(hq: Any, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    put(lab, "CA-RC/run/deep/down/a.csv", b"a")
    put(lab, "CA-RC/run/b.csv", b"b")
    put(lab, "CA-RC/kept/c.csv", b"c")
    put(lab, "CA-RC/kept/.hidden", b"no")
    (lab / "outgoing/CA-RC/not yet/filled").mkdir(parents=True)
    (lab / "outgoing/CA-RC+SF-RC").mkdir()
    async with running(hq, "FL-LAB", lab) as sender:
        await until(lambda: sender.sent == 3)
        await until(lambda: not (lab / "outgoing/CA-RC/run").exists())
    left = sorted(str(path.relative_to(lab / "outgoing")) for path in (lab / "outgoing").rglob("*"))
    assert left == [
        "CA-RC",
        "CA-RC+SF-RC",
        "CA-RC/kept",
        "CA-RC/kept/.hidden",
        "CA-RC/not yet",
        "CA-RC/not yet/filled",
        "README.txt",
    ]
    assert (lab / "sent/CA-RC/run/deep/down/a.csv").read_bytes() == b"a"


def test_a_folder_that_is_being_filled_stays(tmp_path: Path) -> None:
    mover = FileMover(tmp_path, lambda _: None)
    folder = tmp_path / "outgoing/CA-RC/run"
    for path in (folder, tmp_path / "sent/CA-RC/run"):
        path.mkdir(parents=True)
    mover.clear([folder], 60.0)
    assert folder.exists()
    os.utime(folder, (0, 0))
    put(tmp_path, "CA-RC/run/more.csv", b"more")
    os.utime(folder, (0, 0))
    mover.clear([folder], 60.0)
    assert folder.exists()
    (folder / "more.csv").unlink()
    os.utime(folder, (0, 0))
    mover.clear([folder], 60.0)
    assert not folder.exists()


async def test_hq_away_and_a_restart_send_each_file_once(hq: Any, tmp_path: Path) -> None:
    lab, center = tmp_path / "lab", tmp_path / "center"
    async with hq.client("FL-LAB") as client:
        await client.publish("so that the keys are known", to="CA-RC")
    await hq.stop()
    file = put(lab, "CA-RC/kept.txt", b"patience")
    async with running(hq, "FL-LAB", lab):
        await trio.sleep(0.5)
        assert file.exists()
    await hq.start()
    async with running(hq, "FL-LAB", lab) as sender, running(hq, "CA-RC", center):
        await until(lambda: sender.sent == 1)
        await until(lambda: (center / "incoming/FL-LAB/kept.txt").exists())
        await trio.sleep(0.3)
    assert len(list((center / "incoming/FL-LAB").iterdir())) == 1


async def test_what_cannot_be_sent_is_set_aside_and_explained(hq: Any, tmp_path: Path) -> None:
    lab = tmp_path / "lab"
    said: list[Any] = []
    put(lab, "XX-RC/x.txt", b"nobody")
    put(lab, "no client/x.txt", b"nowhere")
    put(lab, "@labs/all/x.txt", b"no such exchange")
    async with running(hq, "FL-LAB", lab, said) as agent:
        await until(lambda: agent.failed == 2)
        await until(lambda: (lab / "failed/@labs/all/x.txt.reason.txt").exists())
    assert "XX-RC" in (lab / "failed/XX-RC/x.txt.reason.txt").read_text()
    assert (lab / "outgoing/no client/x.txt").exists()
    assert sum("nothing is sent from" in line for line in said) == 1


async def test_a_file_that_grows_is_sent_when_it_is_done(
    hq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, looks, look = 0.0, 0, scan.Scanner.look

    def counted(self: scan.Scanner) -> Any:
        nonlocal looks
        found = look(self)
        looks += 1
        return found

    monkeypatch.setattr(scan.Scanner, "look", counted)
    monkeypatch.setattr(scan, "time", SimpleNamespace(monotonic=lambda: now_s))
    lab, center = tmp_path / "lab", tmp_path / "center"
    async with running(hq, "FL-LAB", lab) as sender:
        path = put(lab, "CA-RC/growing.log", b"")
        for _ in range(10):
            with path.open("ab") as file:
                file.write(b"line\n")
            seen = looks + 2  # one of them begins after the line was written
            await until(lambda seen=seen: looks >= seen)
            now_s += 0.09
        assert sender.sent == 0
        now_s += 1.0
        await until(lambda: sender.sent == 1)
    async with running(hq, "CA-RC", center):
        now_s += 1.0
        arrived = center / "incoming/FL-LAB/growing.log"
        await until(arrived.exists)
    assert arrived.read_bytes() == b"line\n" * 10


async def test_two_agents_on_one_home(hq: Any, tmp_path: Path) -> None:
    async with running(hq, "FL-LAB", tmp_path / "lab"), hq.client("FL-LAB") as client:
        with pytest.raises(BaseExceptionGroup) as caught:
            await Agent(client, tmp_path / "lab").run()
        assert caught.group_contains(StoreLocked)


def test_a_client_list_of_hq_makes_no_folder_elsewhere(tmp_path: Path) -> None:
    top = tmp_path / "home" / "outgoing"
    top.mkdir(parents=True)
    guide.make_folders(top, ["../evil", "/evil", "..", "", "a/b", "NUL", "CA-RC"])
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == [
        "home",
        "home/outgoing",
        "home/outgoing/CA-RC",
    ]
