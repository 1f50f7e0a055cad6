"""The processes of a trial: HQ, senders and receivers, and what belongs to each."""

from __future__ import annotations

import random
import time
from pathlib import Path

import orjson
import trio

from cipherbox import clock
from cipherbox.cli.exits import Exit
from cipherbox.cli.prove.database import Database, another_hq
from cipherbox.errors import CipherBoxError
from cipherbox.harness.disk import Disk
from cipherbox.harness.failure import StageFailed
from cipherbox.harness.fault_proxy import FaultProxy
from cipherbox.harness.stage import Stage, free_port, kill

_STARTS = 3  # of an HQ, whose port or database may not be free yet
_DISK = 4 << 30  # bytes; the file takes only what is used
# Of content, in all: a receiver has a line, an encrypted copy and records of each byte, so between
# a half and two thirds of its disk are used in the end, however long the trial is.
_CONTENT = 1 << 30
_TIMEOUT_S = 5.0


class Cast:
    """Everyone in a trial of ``seconds``, by name.  ``disks``: whether each has a disk of its own,
    to be cut off or filled.
    """

    def __init__(
        self,
        directory: Path,
        senders: int,
        receivers: int,
        seed: int,
        *,
        database: Database | None = None,
        broken: bool = False,
        disks: bool = False,
        seconds: float = 60.0,
    ) -> None:
        self.directory, self.stage = directory, Stage(directory)
        self.senders = [f"S{n + 1}" for n in range(senders)]
        self.receivers = [f"R{n + 1}" for n in range(receivers)]
        self.hqs = ["HQ"] if database is None else ["HQ", "HQ2"]  # the second is the standby
        self.database = database
        self.ports = {name: free_port() for name in self.hqs}
        self.proxy_ports = {name: free_port() for name in self.hqs}
        self.proxies = [FaultProxy(self.ports[name]) for name in self.hqs]
        self.processes: dict[str, trio.Process] = {}
        self.start_s = 1.0  # how long HQ takes to start here
        self.slowness = 1.0  # of this machine; more than 1: timeouts of clients are longer
        self.disks: dict[str, Disk] = {}
        self.filled: dict[str, bool] = {}  # clients whose disk was full: each may end once for it
        for name in self.names:
            self.stage.additions[name] = {clock.SWITCH: str(self.clock_file(name))}
        self._broken, self._with_disks, self._seconds = broken, disks, seconds
        self._chance = random.Random(seed)  # noqa: S311

    @property
    def names(self) -> list[str]:
        return [*self.hqs, *self.senders, *self.receivers]

    def home(self, name: str) -> Path:
        """Return HQ's directory or a client's home."""
        return self.disks[name].place / "home" if name in self.disks else self.directory / name

    def clock_file(self, name: str) -> Path:
        """Return the file of the seconds by which a process's time of day is wrong."""
        return self.directory / f"{name}.clock"

    def notes(self, name: str) -> Path:
        """Return the directory of a sender's log and files, on a disk that never fails."""
        return self.directory / f"{name}.notes"

    async def begin(self) -> None:
        """Create HQ and the clients, and start them all."""
        stage, admin = self.stage, str(self.directory / "admin")
        if self._with_disks:
            await trio.to_thread.run_sync(self._make_disks)
        address = ",".join(f"127.0.0.1:{port}" for port in self.proxy_ports.values())
        addresses = ("--address", address, "--listen", f"127.0.0.1:{self.ports['HQ']}")
        database = self.database.arguments if self.database else []
        hq = str(self.home("HQ"))
        await stage.run("HQ", "--home", admin, "init", hq, *addresses, *database)
        for name in self.hqs[1:]:
            another_hq(self.home("HQ"), self.home(name), f"127.0.0.1:{self.ports[name]}")
        for name in self.hqs:
            began = time.monotonic()
            await self.start(name)
            self.start_s = time.monotonic() - began
        clients = (*self.senders, *self.receivers)
        await stage.enrol(self.directory / "admin", {name: self.home(name) for name in clients})
        for name in (*self.receivers, *self.senders):
            await self.start(name)

    def _make_disks(self) -> None:
        for name in self.names:
            if name in self.hqs and self.database is not None:
                continue  # its data is in PostgreSQL
            place = self.directory / f"{name}.disk"
            self.disks[name] = Disk(self.directory / f"{name}.image", place, _DISK)

    async def start(self, name: str) -> None:
        """Start one; an HQ is ready when this returns."""
        if name not in self.hqs:
            self.processes[name] = await self._open_client(name)
            return
        for attempt in range(_STARTS):
            try:
                self.processes[name], _ = await self.stage.start(name, *self._serve(name))
                return
            except StageFailed:
                if attempt == _STARTS - 1:
                    raise
                await trio.sleep(0.5)

    async def start_briefly(self, name: str, seconds: float) -> None:
        """Start one and kill it after ``seconds``, most likely before it is ready."""
        if name in self.hqs:
            process = await self.stage.open(name, *self._serve(name))
        else:
            process = await self._open_client(name)
        self.processes[name] = process
        await trio.sleep(seconds)
        await kill(process)

    def _serve(self, name: str) -> list[str]:
        return ["serve", str(self.home(name)), *(["--broken-store"] if self._broken else [])]

    async def _open_client(self, name: str) -> trio.Process:
        home = ("--home", str(self.home(name)))
        if name in self.receivers:
            return await self.stage.open(
                name, *home, "receive", "--json", "--incoming", str(self.home(name) / "incoming")
            )
        self.notes(name).mkdir(exist_ok=True)
        process = await self.stage.open(name, *home, "prove", "--worker")
        assert process.stdin is not None
        task = {
            "recipients": self.receivers,
            "seed": self._chance.random(),
            "notes": str(self.notes(name)),
            "timeout_s": _TIMEOUT_S * self.slowness,
            "bytes_per_s": _CONTENT / len(self.senders) / self._seconds,
        }
        try:
            await process.stdin.send_all(orjson.dumps(task) + b"\n")
        except trio.BrokenResourceError:
            self.stage.check(name, process)
        return process

    async def look_after(self) -> None:
        """Raise StageFailed if a process ended, whatever HQ and the network went through.  An HQ
        whose database another one took over does end, and a client whose disk was full; they are
        restarted, as systemd does.
        """
        for name, process in list(self.processes.items()):
            ended = process.poll()
            if ended == Exit.STORE and (
                (len(self.hqs) > 1 and name in self.hqs) or self.filled.pop(name, False)
            ):
                await self.start(name)
            elif name in self.receivers and process.poll() == Exit.OK:
                raise StageFailed(f"{name} ended unexpectedly")
            else:
                self.stage.check(name, process)

    async def close_inputs(self) -> None:
        """Let the senders finish."""
        for name in self.senders:
            stdin = self.processes[name].stdin
            assert stdin is not None
            await stdin.aclose()

    async def drained(self, look_s: float) -> None:
        """Wait until HQ has nothing more for the receivers."""
        from cipherbox.client.client import open_client

        async with open_client(self.directory / "admin", keep_trying=True) as admin:
            names = {f"box.{name}{box}" for name in self.receivers for box in ("", ".bulk")}
            while True:
                try:
                    rows = [r for r in await admin.list("queues") if r["name"] in names]
                    if not any(r["waiting"] + r["unacknowledged"] for r in rows):
                        return
                except CipherBoxError as error:
                    if not error.retryable:  # the last fault may not be over yet
                        raise
                await self.look_after()
                await trio.sleep(look_s)

    async def stop(self, names: list[str]) -> None:
        for name in names:
            await self.stage.stop(self.processes[name])

    async def end(self) -> None:
        """Kill every process that runs, also a stopped one."""
        for process in self.processes.values():
            await kill(process)

    def remove_disks(self) -> None:
        for disk in self.disks.values():
            disk.remove()
