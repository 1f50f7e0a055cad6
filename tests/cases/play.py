"""Plays the table of odd files: an HQ, a lab and a center in this process; the lab's agent gets
all files at once, and `send` one after the other.  Each test then looks at its own row.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import attrs
import orjson
import trio

from cipherbox.apps.agent import agent as agent_module
from cipherbox.apps.agent.agent import Agent
from cipherbox.cli import main as cli
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.config.settings import AgentSettings
from tests.cases.table import ARRIVES, FAILS, File
from tests.client.real_hq import RealHq, real_hq
from tests.client.waiting import until

LIMIT_S = 300.0
LOOK_S = 0.05


@attrs.define
class Played:
    """What became of one file: where it is now, relative to the agent's folder; what `send`
    said.
    """

    file: Path
    content: bytes | None
    places: list[str] = attrs.Factory(list)
    reason: str = ""
    code: int = 0
    said: str = ""


@attrs.define
class Outcome:
    """Of all rows: the agent's lines, the bytes that arrived, by both ways."""

    rows: dict[str, Played]
    lines: list[str] = attrs.Factory(list)
    by_agent: set[str] = attrs.Factory(set)
    by_send: set[str] = attrs.Factory(set)


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def arrived(home: Path, *more: Path) -> Iterator[str]:
    """The digest of every file and every text that lies at a recipient."""
    for top in (home / "data", *more):
        for folder, inside, names in os.walk(top):
            inside[:] = [name for name in inside if name != ".partial"]
            for name in names:
                content = Path(folder, name).read_bytes()
                yield digest(content)
                if name.endswith(".jsonl"):
                    texts = [orjson.loads(line)["content"] for line in content.splitlines()]
                    yield from (digest(text.encode()) for text in texts if isinstance(text, str))


async def play(path: Path, files: Sequence[File]) -> Outcome:
    outcome = Outcome({})
    async with real_hq(path) as hq:
        await hq.join("FL-LAB", "CA-RC", "SF-RC")
        with trio.fail_after(LIMIT_S):
            await _agent(hq, path / "lab", files, outcome)
            await _send(hq, path / "sent-by-hand", files, outcome)
            for name, found in (("CA-RC", outcome.by_agent), ("SF-RC", outcome.by_send)):
                visible = path / f"{name}-incoming"
                async with hq.client(name) as center:
                    await Receiver(center, incoming=visible).drain()
                found.update(arrived(hq.home(name), visible))
    return outcome


async def _agent(hq: RealHq, folder: Path, files: Sequence[File], outcome: Outcome) -> None:
    for number, row in enumerate(files):
        here = folder / "outgoing/CA-RC" / f"row {number}"
        here.mkdir(parents=True)
        file = row.make(here)
        content = file.read_bytes() if file.is_file() and os.access(file, os.R_OK) else None
        outcome.rows[row.name] = Played(file, content)
    agent_module.LOOK_S, before = LOOK_S, agent_module.LOOK_S
    settings = AgentSettings(settle_s=0.2, ignore="*.log, *.bak")
    try:
        async with hq.client("FL-LAB", on_event=outcome.lines.append, agent=settings) as client:
            agent = Agent(client, folder)
            async with trio.open_nursery() as nursery:
                await nursery.start(agent.run)
                expected = [sum(row.agent == what for row in files) for what in (ARRIVES, FAILS)]
                with trio.move_on_after(LIMIT_S / 2):
                    await until(lambda: [agent.sent, agent.failed] == expected, LIMIT_S)
                await trio.sleep(LOOK_S * 4)  # nothing more happens
                nursery.cancel_scope.cancel()
    finally:
        agent_module.LOOK_S = before
    await trio.to_thread.run_sync(_places, folder, files, outcome)


def _places(folder: Path, files: Sequence[File], outcome: Outcome) -> None:
    for number, row in enumerate(files):
        played = outcome.rows[row.name]
        for where in ("outgoing", "sent", "failed", "refused"):
            top = folder / where / "CA-RC" / f"row {number}"
            for inner, _, names in os.walk(top):
                for name in names:
                    if name.endswith(".reason.txt"):
                        played.reason = Path(inner, name).read_text("utf-8")
                    else:
                        played.places.append(where)


async def _send(hq: RealHq, folder: Path, files: Sequence[File], outcome: Outcome) -> None:
    for number, row in enumerate(files):
        here = folder / f"row {number}"
        here.mkdir(parents=True)
        file = row.make(here)
        played = outcome.rows[row.name]
        said = io.StringIO()

        def send(file: Path = file, said: io.StringIO = said) -> int:
            words = ["--home", str(hq.home("FL-LAB")), "send", "--to", "SF-RC", "--file", str(file)]
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
                return cli.run(words)

        if file.is_file() and os.access(file, os.R_OK):
            played.content = (played.content or b"") + b"\0both\0" + file.read_bytes()
        with trio.fail_after(60):
            played.code = await trio.to_thread.run_sync(send, abandon_on_cancel=True)
        played.said = said.getvalue()
