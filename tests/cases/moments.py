"""Odd moments, one row each: what happens beside a file while the agent sends it.  A new case is
one row.
"""

from __future__ import annotations

import contextlib
import io
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from cipherbox.apps.agent import file_mover, place, scan, sending
from cipherbox.apps.agent.agent import Agent
from cipherbox.cli import main as cli
from cipherbox.client.client import Client
from cipherbox.client.outbox.folder_files import FolderFiles
from cipherbox.client.publishing.files import send_unfinished
from cipherbox.client.receiving.handler import Handlers
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.settings import AgentSettings
from cipherbox.envelope.ids import message_id
from cipherbox.errors import Bad
from tests.cases.play import arrived, digest
from tests.client.real_hq import RealHq
from tests.client.waiting import until


class Killed(BaseException):
    """The agent ends here, as if by SIGKILL."""


@attrs.define
class Scene:
    """An HQ, a lab with its folder, a center; ``patch`` replaces parts of the agent."""

    hq: RealHq
    folder: Path
    patch: Any
    lines: list[str] = attrs.Factory(list)

    def put(self, name: str, content: bytes, to: str = "CA-RC") -> Path:
        path = self.folder / "outgoing" / to / name
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{name}")  # left out until it is whole
        hidden.write_bytes(content)
        os.utime(hidden, (1_700_000_000, 1_700_000_000))
        return hidden.replace(path)

    def at(self, where: str, name: str, to: str = "CA-RC") -> Path:
        return self.folder / where / to / name

    def said(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    @asynccontextmanager
    async def agent(self, **settings: Any) -> AsyncIterator[Agent]:
        options: dict[str, Any] = {
            "keep_trying": True,
            "pause_max_s": 0.1,
            "tries": 1,
            "timeout_s": 2.0,
        }
        chosen = AgentSettings(**{"settle_s": 0.05, **settings})
        async with self.hq.client(
            "FL-LAB", on_event=self.lines.append, agent=chosen, **options
        ) as client:
            async with trio.open_nursery() as nursery:
                agent = Agent(client, self.folder)
                await nursery.start(agent.run)
                yield agent
                nursery.cancel_scope.cancel()

    async def received(self) -> list[str]:
        """Digests of what arrived at the center; each file as often as it came."""
        visible = self.folder.parent / "center-incoming"
        async with self.hq.client("CA-RC") as center:
            await Receiver(center, incoming=visible).drain()
        return list(arrived(self.hq.home("CA-RC"), visible))

    async def command(self, *words: str) -> str:
        """What a command of the lab prints."""
        shown = io.StringIO()

        def run() -> None:
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
                cli.run(["--home", str(self.hq.home("FL-LAB")), *words])

        await trio.to_thread.run_sync(run)
        return " ".join(shown.getvalue().split())

    async def count(self, content: bytes) -> int:
        found = (await self.received()).count(digest(content))
        print(content, found, *self.lines, sep="\n")  # shown when a test fails
        return found


async def until_killed(scene: Scene) -> None:
    with pytest.raises(BaseExceptionGroup) as caught:
        async with scene.agent():
            await trio.sleep(30)
    assert caught.value.split(Killed)[1] is None


Moment = Callable[[Scene], Awaitable[None]]


async def same_again(scene: Scene) -> None:
    async with scene.agent() as agent:
        scene.put("result.csv", b"17,4.2\n")
        await until(lambda: agent.sent == 1)
        scene.put("result.csv", b"18,4.3\n")
        await until(lambda: agent.sent == 2)
    assert scene.at("sent", "result.csv").read_bytes() == b"17,4.2\n"
    assert scene.at("sent", "result (2).csv").read_bytes() == b"18,4.3\n"
    found = await scene.received()
    assert digest(b"17,4.2\n") in found
    assert digest(b"18,4.3\n") in found


async def moved_back(scene: Scene) -> None:
    async with scene.agent() as agent:
        scene.put("result.csv", b"17,4.2\n")
        await until(lambda: agent.sent == 1)
        scene.at("sent", "result.csv").rename(scene.at("outgoing", "result.csv"))
        await until(lambda: agent.sent == 2)
    assert await scene.count(b"17,4.2\n") == 2


async def killed_before_the_move(scene: Scene) -> None:
    def killed(*_: object) -> None:
        raise Killed

    scene.put("kept.txt", b"once\n")
    with scene.patch.context() as patch:
        patch.setattr(file_mover.FileMover, "move", killed)
        await until_killed(scene)
    assert scene.at("outgoing", "kept.txt").exists()
    async with scene.agent() as agent:
        await until(lambda: agent.sent == 1)
    assert await scene.count(b"once\n") == 1


async def killed_after_the_move(scene: Scene) -> None:
    def killed(*_: object) -> None:
        raise Killed

    scene.put("kept.txt", b"once\n")
    with scene.patch.context() as patch:
        patch.setattr(FolderFiles, "settle", killed)
        await until_killed(scene)
    assert scene.at("sent", "kept.txt").exists()
    scene.put("kept.txt", b"more\n")  # of the same size and date
    async with scene.agent() as agent:
        await until(lambda: agent.sent == 2)
    assert await scene.count(b"once\n") == 1
    assert await scene.count(b"more\n") == 1


async def first_contact_while_away(scene: Scene) -> None:
    await scene.hq.stop()
    file = scene.put("first.txt", b"patience\n")
    async with scene.agent() as agent:
        await trio.sleep(1.0)
        assert file.exists()
        assert agent.failed == 0
        await scene.hq.start()
        await until(lambda: agent.sent == 1)
    assert await scene.count(b"patience\n") == 1


async def a_writer_that_pauses(scene: Scene) -> None:
    """Its file stays as it is for longer than the settle time, and is open."""
    async with scene.agent() as agent:
        path = scene.at("outgoing", "half.csv")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(b"first half\n")
            file.flush()
            await until(lambda: scene.said("is being written") == 1)
            await trio.sleep(0.6)
            assert agent.sent == 0
            assert scene.said("is being written") == 1
            file.write(b"second half\n")
        await until(lambda: agent.sent == 1)
    assert await scene.count(b"first half\n") == 0
    assert await scene.count(b"first half\nsecond half\n") == 1


async def a_marker(scene: Scene) -> None:
    async with scene.agent(marker=".ok", settle_s=3600.0) as agent:
        scene.put("a.csv", b"marked\n")
        scene.put("b.csv", b"not marked\n")
        await trio.sleep(0.5)
        assert agent.sent == 0
        scene.put("a.csv.ok", b"")
        await until(lambda: agent.sent == 1)
        await trio.sleep(0.3)
    assert agent.sent == 1
    assert sorted(p.name for p in (scene.folder / "outgoing/CA-RC").iterdir()) == ["b.csv"]
    assert await scene.count(b"marked\n") == 1


async def changed_while_sent(scene: Scene) -> None:
    """It is written between the time it was taken and the time HQ had it."""
    planned = file_mover.FileMover.plan
    done: list[int] = []

    def plan(self: Any, claims: Any) -> Any:
        if claims and not done:
            done.append(1)
            scene.put("x.txt", b"second version\n")
        return planned(self, claims)

    with scene.patch.context() as patch:
        patch.setattr(file_mover.FileMover, "plan", plan)
        async with scene.agent() as agent:
            scene.put("x.txt", b"first\n")
            await until(lambda: agent.sent == 1)
    assert scene.said("x.txt changed while it was sent; it is sent again") == 1
    assert await scene.count(b"first\n") == 1
    assert await scene.count(b"second version\n") == 1


async def another_file_system(scene: Scene) -> None:
    def rename(source: Any, target: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    with scene.patch.context() as patch:
        patch.setattr(place.os, "rename", rename)
        async with scene.agent() as agent:
            file = scene.put("far.txt", b"over there\n")
            await until(lambda: agent.sent == 1)
    assert not file.exists()
    assert scene.at("sent", "far.txt").stat().st_mtime == 1_700_000_000
    assert scene.said("cannot be moved") == 0
    assert await scene.count(b"over there\n") == 1


async def nothing_can_be_moved(scene: Scene) -> None:
    def rename(source: Any, target: Any) -> None:
        raise PermissionError(13, "Permission denied")

    with scene.patch.context() as patch:
        patch.setattr(place.os, "rename", rename)
        async with scene.agent() as agent:
            scene.put("stuck.txt", b"here\n")
            await until(lambda: scene.said("cannot be moved") == 1)
            await trio.sleep(0.5)
            assert scene.said("cannot be moved") == 1
            assert agent.sent == 0
    assert await scene.count(b"here\n") == 1


async def an_unreadable_file(scene: Scene) -> None:
    opened = os.open

    def denied(path: Any, *more: Any, **options: Any) -> int:
        if str(path).endswith("secret.txt"):
            raise PermissionError(13, "Permission denied")
        return opened(path, *more, **options)

    async with scene.agent() as agent:
        with scene.patch.context() as patch:
            patch.setattr(sending.os, "open", denied)
            file = scene.put("secret.txt", b"secret\n")
            scene.put("open.txt", b"open\n")
            await until(lambda: agent.sent == 1 and scene.said("cannot be read") == 1)
            await trio.sleep(0.5)
            assert scene.said("cannot be read") == 1
            assert file.exists()
            assert len(agent.client.outbox().outbox.newest(100)) == 1
            assert agent.failed == 0
        await until(lambda: agent.sent == 2)


async def wrong_case(scene: Scene) -> None:
    async with scene.agent() as agent:
        scene.put("x.txt", b"x", to="ca-rc")
        await until(lambda: agent.failed == 1)
    assert "did you mean CA-RC?" in scene.at("failed", "x.txt.reason.txt", to="ca-rc").read_text()


async def where_nothing_is_sent_from(scene: Scene) -> None:
    async with scene.agent() as agent:
        (scene.folder / "outgoing/lost.txt").write_bytes(b"x")
        await until(lambda: scene.said("lost.txt is not sent") == 1)
        await until(lambda: (scene.folder / "outgoing/CA-RC").is_dir())
        await trio.sleep(0.3)
        assert "CA-RC" in (scene.folder / "outgoing/README.txt").read_text()
    assert scene.said("lost.txt is not sent") == 1
    assert scene.said("README") == 0
    assert agent.sent == 0
    assert not (scene.folder / "outgoing/FL-LAB").exists()
    assert not (scene.folder / "outgoing/admin").exists()


async def cancelled_by_hand(scene: Scene) -> None:
    """Another command of this home cancels what the agent has taken."""

    async def publish_elsewhere(client: Client) -> None:
        post = client.outbox()
        for row in post.outbox.newest(10):
            post.outbox.write(refused=[_cancelled(row)])

    with scene.patch.context() as patch:
        patch.setattr("cipherbox.client.outbox.sender.OutboxSender._send", lambda self, item: None)
        async with scene.agent() as agent:
            scene.put("x.txt", b"never\n")
            await until(lambda: bool(agent.client.outbox().outbox.newest(10)))
            await publish_elsewhere(agent.client)
            await until(lambda: agent.failed == 1)
    assert "cancelled" in scene.at("failed", "x.txt.reason.txt").read_text()
    assert await scene.count(b"never\n") == 0


async def a_slow_look(scene: Scene) -> None:
    """A file is taken while the agent looks: between its question to the outbox and its look at
    the folder.
    """
    asked = FolderFiles.taken

    def taken(self: Any) -> Any:
        found = asked(self)
        threading.Event().wait(0.3)  # in a thread of its own
        return found

    scene.patch.setattr(FolderFiles, "taken", taken)
    async with scene.agent() as agent:
        scene.put("once.txt", b"once\n")
        scene.put("large.bin", b"L" * 300_000)
        await until(lambda: agent.sent == 2)
        assert len(agent.client.outbox().outbox.newest(100)) == 2  # an envelope, and a manifest
    assert await scene.count(b"once\n") == 1


async def refused_by_a_program(scene: Scene) -> None:
    """The center's program gives one of two files up, and takes it after all when a person lets
    it try again.
    """

    def picky(handled: Any, tx: Any) -> None:
        if bad and handled.message.content == b"not a table\n":
            raise Bad("cannot be parsed")

    bad = True
    scene.put("good.csv", b"17,4.2\n")
    scene.put("bad.csv", b"not a table\n")
    async with scene.agent() as agent, scene.hq.client("CA-RC") as center:
        await until(lambda: agent.sent == 2)
        assert (await center.process(picky, tries=1, idle_s=2.0)).parked_count == 1
        await until(lambda: agent.refused == 1)
        assert scene.at("sent", "good.csv").exists()
        assert not scene.at("sent", "bad.csv").exists()
        assert scene.at("refused", "bad.csv").read_bytes() == b"not a table\n"
        reason = scene.at("refused", "bad.csv.reason.txt").read_text()
        assert reason == "CA-RC refused it: handler failed\n"
        assert scene.said("bad.csv: CA-RC refused it: handler failed; it is in refused") == 1

        listed = await scene.command("outbox", "list")
        assert "bad.csv" in listed
        assert "nothing was refused" not in listed
        assert "good.csv" not in listed
        (claim,) = FolderFiles(agent.client.outbox().outbox).refused()
        shown = await scene.command(
            "status", str(message_id(claim.envelope_id or b"", claim.message))
        )
        assert "File bad.csv, message" in shown
        assert "refused by CA-RC: handler failed" in shown
        assert "no receipt yet" not in shown
        assert "bad.csv: CA-RC refused it" in await scene.command("status")
        assert "bad.csv last: CA-RC refused it" in await scene.command("doctor")

        bad = False
        handlers = Handlers(center)
        assert handlers.retry() == 1
        handlers.close()
        await center.process(picky, idle_s=2.0)
        await until(lambda: scene.said("bad.csv was taken after all") == 1)
    assert scene.at("sent", "bad.csv").exists()
    assert not scene.at("refused", "bad.csv").exists()
    assert not scene.at("refused", "bad.csv.reason.txt").exists()


async def folders_without_end(scene: Scene) -> None:
    """A program made folders in folders; everything else goes."""
    deep = scene.folder / "outgoing/CA-RC"
    deep.mkdir(parents=True)
    here = os.open(deep, os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    async with scene.agent() as agent:
        scene.put("x.txt", b"goes\n")
        await until(lambda: agent.sent == 1)
        await until(lambda: scene.said("folders deep") == 1)
    assert await scene.count(b"goes\n") == 1


async def a_look_that_fails(scene: Scene) -> None:
    """Whatever a look raises, the agent continues."""
    look = scan.Scanner.look
    broken = [ValueError("what nobody thought of"), OSError(116, "Stale file handle")]

    def failing(self: Any) -> Any:
        if broken:
            raise broken.pop()
        return look(self)

    scene.patch.setattr(scan.Scanner, "look", failing)
    async with scene.agent() as agent:
        scene.put("x.txt", b"goes\n")
        await until(lambda: agent.sent == 1)
    assert scene.said("Stale file handle; the agent continues when this is fixed") == 1
    assert (
        scene.said("ValueError: what nobody thought of; the agent continues when this is fixed")
        == 1
    )


async def a_large_file_refused(scene: Scene) -> None:
    def picky(handled: Any, tx: Any) -> None:
        raise Bad("no DICOM")

    scene.put("scan.dcm", b"D" * 300_000)
    async with scene.agent() as agent, scene.hq.client("CA-RC") as center:
        await until(lambda: agent.sent == 1)
        assert (await center.process(picky, tries=1, idle_s=2.0)).parked_count == 1
        await until(lambda: agent.refused == 1)
    assert scene.at("refused", "scan.dcm").stat().st_size == 300_000
    assert (
        scene.at("refused", "scan.dcm.reason.txt").read_text()
        == "CA-RC refused it: handler failed\n"
    )


async def another_command_sends(scene: Scene) -> None:
    """`outbox send` of the same home, at the same time, sends what the agent has begun."""
    async with scene.agent() as agent, scene.hq.client("FL-LAB") as other:
        scene.put("scan.dcm", b"D" * 5_000_000)
        scene.put("small.txt", b"small\n")
        await until(lambda: bool(FolderFiles(agent.client.outbox().outbox).taken()))
        await send_unfinished(other)
        await until(lambda: agent.sent == 2)
    assert await scene.count(b"D" * 5_000_000) == 1
    assert await scene.count(b"small\n") == 1


def _cancelled(row: Any) -> Any:
    from cipherbox.client.outbox.rows import CANCELLED, Refused

    return Refused(row.envelope_id, row.generation, 0, "cancelled", CANCELLED)


MOMENTS: dict[str, Moment] = {
    "a second file of the same name, size and date": same_again,
    "a file that is moved back": moved_back,
    "killed when HQ had it": killed_before_the_move,
    "killed when it was moved": killed_after_the_move,
    "the first file for somebody while HQ is away": first_contact_while_away,
    "a writer that pauses": a_writer_that_pauses,
    "marker files": a_marker,
    "a file that changes while it is sent": changed_while_sent,
    "a folder on another file system": another_file_system,
    "nothing can be moved": nothing_can_be_moved,
    "a file that cannot be read": an_unreadable_file,
    "a recipient in lower case": wrong_case,
    "a file beside the folders": where_nothing_is_sent_from,
    "a slow look": a_slow_look,
    "cancelled by another command": cancelled_by_hand,
    "refused by the recipient's program": refused_by_a_program,
    "folders without end": folders_without_end,
    "a look that fails": a_look_that_fails,
    "a large file, refused": a_large_file_refused,
    "another command that sends": another_command_sends,
}
