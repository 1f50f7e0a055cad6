"""A worker process that gets one task and reports in lines of JSON."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Self

import orjson
import trio

from cipherbox.harness.failure import StageFailed
from cipherbox.harness.stage import Stage, kill

STALLED_S = 60.0  # a worker that is silent for this long has failed


class WorkerProcess:
    """A process that gets a task and answers with lines of JSON."""

    @classmethod
    async def start(cls, stage: Stage, name: str, *arguments: str) -> Self:
        """Start the program with these arguments; its errors go to the stage's file of ``name``."""
        process = await stage.open(name, *arguments, stdout=subprocess.PIPE)
        return cls(name, process, stage.output(name))

    def __init__(self, name: str, process: trio.Process, log: Path) -> None:
        self.name, self._process, self._log = name, process, log
        self._rest = b""
        self.last: dict[str, Any] = {}

    async def send(self, data: bytes) -> None:
        """Write a line to its standard input."""
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send_all(data + b"\n")
        except trio.BrokenResourceError:
            raise self._failed() from None

    async def receive(self) -> dict[str, Any]:
        """Return its next line.  Raise StageFailed if it ended or was silent for too long."""
        assert self._process.stdout is not None
        while b"\n" not in self._rest:
            with trio.move_on_after(STALLED_S) as scope:
                piece = await self._process.stdout.receive_some(65536)
            if scope.cancelled_caught or not piece:
                raise self._failed()
            self._rest += piece
        line, _, self._rest = self._rest.partition(b"\n")
        self.last = orjson.loads(line)
        return self.last

    async def end(self) -> None:
        """Kill it, if it still runs."""
        await kill(self._process)

    def _failed(self) -> StageFailed:
        text = self._log.read_text("utf-8", "replace").strip().splitlines()
        return StageFailed("\n".join([f"{self.name} failed or stalled:", *text[-12:]]))
