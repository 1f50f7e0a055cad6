"""The stage: this same program, started as several processes, each stopped by its pid.  They end
with the run whose directory they are in (`workplace`).

The output of each process goes to a file of its own; an error quotes the end of that file.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO

import trio

from cipherbox.harness.failure import StageFailed
from cipherbox.harness.workplace import told
from cipherbox.ops.unpack import CACHE_VARIABLE

STOP_S = 15.0
LIMIT_S = 120.0  # for a command, on a busy machine
LOWEST_PORT, PORTS = 12_000, 20_000


def program() -> list[str]:
    """Return the command that starts this program: the built file, the installed version, or the
    package.
    """
    started = Path(sys.argv[0] if sys.argv else "").resolve()
    if zipfile.is_zipfile(started):
        return [sys.executable, str(started)]
    if (started.parent.parent / "site" / "cipherbox").is_dir():
        return [sys.executable, "-I", str(started)]
    return [sys.executable, "-m", "cipherbox"]


def free_port() -> int:
    """Return a loopback port that is free now, and not given again while this process runs.

    It is outside of the ephemeral range: while its server is down, anyone's connection could
    otherwise get that port, and the server could not bind it again.  Until the server listens and
    whenever it is down, this process holds the UDP port of that number, so that the others that
    ask here, such as another worker of the tests, get another one.
    """
    while True:
        port = LOWEST_PORT + secrets.randbelow(PORTS)
        with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as claim:
            try:
                probe.bind(("127.0.0.1", port))
                claim.bind(("127.0.0.1", port))
            except OSError:
                continue
            claim.detach()  # open until this process ends
            return port


class Stage:
    """Starts processes of the program, with their output below ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._logs = directory / "output"
        self._logs.mkdir()
        self.environment = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith("CIPHERBOX_") or k == CACHE_VARIABLE
        }
        self.environment["PYTHONIOENCODING"] = "utf-8"
        self.environment |= told(directory)
        self.additions: dict[str, dict[str, str]] = {}  # to the environment of one process alone

    def output(self, name: str) -> Path:
        """Return the file of a process's output."""
        return self._logs / f"{name}.log"

    async def run(
        self, name: str, *arguments: str, stdin: bytes = b"", limit_s: float = LIMIT_S
    ) -> str:
        """Run one command to its end and return its output.  Raise StageFailed if it fails."""
        code, output = await self._ran(name, arguments, stdin, limit_s, both=False)
        if code:
            raise StageFailed(f"{name}: {' '.join(arguments)} ended with {code}{self._tail(name)}")
        return output

    async def ran(self, name: str, *arguments: str, limit_s: float = LIMIT_S) -> tuple[int, str]:
        """Run one command to its end, whether or not it fails.  Return its exit code and all its
        output, as a user sees it.
        """
        return await self._ran(name, arguments, b"", limit_s, both=True)

    async def _ran(
        self, name: str, arguments: tuple[str, ...], stdin: bytes, limit_s: float, *, both: bool
    ) -> tuple[int, str]:
        with self.output(name).open("ab") as log:
            with trio.move_on_after(limit_s) as scope:
                done = await trio.run_process(
                    [*program(), *arguments],
                    stdin=stdin,
                    capture_stdout=True,
                    stderr=subprocess.STDOUT if both else log,
                    check=False,
                    env=self.environment,
                )
            if scope.cancelled_caught:
                raise StageFailed(
                    f"{name}: {' '.join(arguments)} took longer than {limit_s:.0f} "
                    f"s{self._tail(name)}"
                )
            log.write(done.stdout)
        return done.returncode, bytes(done.stdout).decode()

    async def start(
        self, name: str, *arguments: str, limit_s: float = LIMIT_S
    ) -> tuple[trio.Process, str]:
        """Start a long-running command and wait for its first line of output."""
        log: IO[bytes] = self.output(name).open("ab")
        with log:
            process = await trio.lowlevel.open_process(
                [*program(), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment | self.additions.get(name, {}),
            )
        line = b""
        try:
            with trio.move_on_after(limit_s):
                assert process.stdout is not None
                while not line.endswith(b"\n"):
                    piece = await process.stdout.receive_some(4096)
                    if not piece:
                        break
                    line += piece
        except trio.Cancelled:  # no other code can stop it yet
            await self.stop(process)
            raise
        if not line.endswith(b"\n"):
            await self.stop(process)
            raise StageFailed(f"{name} did not start{self._tail(name)}")
        return process, line.decode().strip()

    async def open(
        self, name: str, *arguments: str, stdout: int = subprocess.DEVNULL
    ) -> trio.Process:
        """Start a command that reads its task from standard input."""
        with self.output(name).open("ab") as log:
            return await trio.lowlevel.open_process(
                [*program(), *arguments],
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=log,
                env=self.environment | self.additions.get(name, {}),
            )

    async def enrol(self, admin: Path, homes: Mapping[str, Path]) -> None:
        """Enrol a client of each name in its home, with tokens of this admin's."""
        from cipherbox.client.client import open_client

        # on a slow machine all together would wait too long for one another
        turns = trio.CapacityLimiter(os.cpu_count() or 1)

        async def join(name: str, home: Path, token: str) -> None:
            async with turns:
                await self.run(name, "--home", str(home), "join", stdin=token.encode())

        async with open_client(admin) as client, trio.open_nursery() as nursery:
            for name, home in homes.items():
                nursery.start_soon(join, name, home, await client.enrol(name))

    def check(self, name: str, process: trio.Process) -> None:
        """Raise StageFailed if the process ended with an error."""
        code = process.poll()
        if code:
            raise StageFailed(f"{name} ended with {code}{self._tail(name)}")

    async def stop(self, process: trio.Process) -> int:
        """Terminate one process, and kill it if it does not end in time.  Return its exit code."""
        if process.poll() is None:
            process.terminate()
        with trio.move_on_after(STOP_S, shield=True):
            return await process.wait()
        process.kill()
        with trio.move_on_after(STOP_S, shield=True):
            return await process.wait()
        return -1

    def _tail(self, name: str) -> str:
        text = self.output(name).read_text("utf-8", "replace") if self.output(name).exists() else ""
        return ":\n" + "\n".join(text.strip().splitlines()[-12:]) if text.strip() else ""


async def kill(process: trio.Process) -> None:
    """Kill a process, if it still runs, and wait for its end."""
    if process.poll() is None:
        process.kill()
    with trio.CancelScope(shield=True):
        await process.wait()
