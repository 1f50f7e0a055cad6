"""The trial: senders and receivers under load, while HQ, senders and receivers are killed and
connections cut.

Everything is real: processes of this program, mutual TLS, disks, SIGKILL.  Clients reach HQ through
a proxy here, which can cut or freeze their connections.  At the end the faults stop, everything
gets time to settle, and the messages that the senders logged as confirmed are compared with the
receivers' files.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs
import orjson
import trio

from cipherbox.classes import define
from cipherbox.cli.exits import Exit
from cipherbox.cli.prove.database import Database, another_hq
from cipherbox.cli.prove.worker import CONFIRMED, LOG, read_content, read_log
from cipherbox.errors import CipherBoxError
from cipherbox.harness.failure import StageFailed
from cipherbox.harness.fault_proxy import FaultProxy
from cipherbox.harness.stage import Stage, free_port, kill

SETTLE_S, BROKEN_SETTLE_S = 60.0, 10.0
_CALM_S = (0.2, 1.2)  # between two faults
_LOOK_S = 0.2
_DOWN_S = (0.0, 0.6)  # between a kill and the restart
Say = Callable[[str], None]


@define
class Proof:
    """The result of the comparison; the counts are messages for each recipient."""

    confirmed: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    recovered: int = 0  # arrived, although the sender was killed before the confirm
    kills: int = 0
    cuts: int = 0
    database_faults: int = 0
    rounds: int = 0
    seconds: float = 0.0
    seed: int = 0
    examples: list[str] = attrs.Factory(list)

    @property
    def good(self) -> bool:
        return not (self.lost or self.duplicated or self.unexpected) and self.confirmed > 0


class Trial:
    """A trial with ``rounds`` faults, or as many as fit into ``seconds``."""

    def __init__(
        self,
        directory: Path,
        *,
        senders: int,
        receivers: int,
        rounds: int,
        seconds: float,
        seed: int,
        broken: bool,
        say: Say,
        database: Database | None = None,
    ) -> None:
        self.stage = Stage(directory)
        self._directory, self._say, self._broken = directory, say, broken
        self._senders = [f"S{n + 1}" for n in range(senders)]
        self._receivers = [f"R{n + 1}" for n in range(receivers)]
        self._rounds, self._seconds = rounds, seconds
        self._chance = random.Random(seed)  # noqa: S311
        self._database = database
        # the second one is the standby
        self._hqs = ["HQ"] if database is None else ["HQ", "HQ2"]
        self._ports = {name: free_port() for name in self._hqs}
        self._proxy_ports = {name: free_port() for name in self._hqs}
        self._proxies = [FaultProxy(self._ports[name]) for name in self._hqs]
        self.processes: dict[str, trio.Process] = {}
        self.proof = Proof(seed=seed)

    async def run(self) -> Proof:
        began = time.monotonic()
        async with trio.open_nursery() as nursery:
            for proxy, port in zip(self._proxies, self._proxy_ports.values(), strict=True):
                await nursery.start(proxy.serve, port)
            try:
                await self._begin()
                await self._faults(began)
                await self._settle()
            finally:
                with trio.CancelScope(shield=True):
                    for process in self.processes.values():
                        await kill(process)
            nursery.cancel_scope.cancel()
        self.proof.seconds = round(time.monotonic() - began, 1)
        self._compare()
        return self.proof

    # -- processes ---------------------------------------------------------------------------------

    async def _begin(self) -> None:
        stage, directory = self.stage, self._directory
        self._say("enrolling")
        hq, admin = str(directory / "HQ"), str(directory / "admin")
        address = ",".join(f"127.0.0.1:{port}" for port in self._proxy_ports.values())
        addresses = ("--address", address, "--listen", f"127.0.0.1:{self._ports['HQ']}")
        database = self._database.arguments if self._database else []
        await stage.run("HQ", "--home", admin, "init", hq, *addresses, *database)
        for name in self._hqs[1:]:
            another_hq(directory / "HQ", directory / name, f"127.0.0.1:{self._ports[name]}")
        for name in self._hqs:
            await self._start(name)
        homes = [directory / name for name in (*self._senders, *self._receivers)]
        await stage.enrol(directory / "admin", homes)
        for name in (*self._receivers, *self._senders):
            await self._start(name)

    async def _start(self, name: str) -> None:
        stage, home = self.stage, ("--home", str(self._directory / name))
        if name in self._hqs:
            broken = ["--broken-store"] if self._broken else []
            for attempt in range(3):
                try:
                    self.processes[name], _ = await stage.start(
                        name, "serve", str(self._directory / name), *broken
                    )
                    return
                except StageFailed:
                    if attempt == 2:
                        raise
                    await trio.sleep(0.5)
        arguments = ["prove", "--worker"] if name in self._senders else ["receive", "--json"]
        process = await stage.open(name, *home, *arguments)
        self.processes[name] = process
        if name in self._senders:
            assert process.stdin is not None
            task = {"recipients": self._receivers, "seed": self._chance.random()}
            await process.stdin.send_all(orjson.dumps(task) + b"\n")

    # -- faults ------------------------------------------------------------------------------------

    async def _faults(self, began: float) -> None:
        proof, chance = self.proof, self._chance
        while (
            proof.rounds < self._rounds
            if not self._seconds
            else time.monotonic() - began < self._seconds
        ):
            await self._confirms()
            proof.rounds += 1
            victims = [
                *self._hqs,
                self._hqs[0],
                chance.choice(self._senders),
                chance.choice(self._receivers),
                "cut",
                "freeze",
            ]
            if self._database is not None:
                victims += self._database.faults
            victim = chance.choice(victims)
            self._say(
                f"round {proof.rounds}: {'killing ' if victim in self.processes else ''}{victim}"
            )
            if victim == "cut":
                await self._each_proxy(FaultProxy.cut)
                proof.cuts += 1
            elif victim == "freeze":
                for proxy in self._proxies:
                    proxy.freeze()
                await trio.sleep(chance.uniform(*_CALM_S))
                await self._each_proxy(FaultProxy.cut)
                for proxy in self._proxies:
                    proxy.thaw()
                proof.cuts += 1
            elif self._database is not None and victim in self._database.faults:
                await trio.to_thread.run_sync(
                    self._database.fault, victim, chance.uniform(*_DOWN_S)
                )
                proof.database_faults += 1
            else:
                await kill(self.processes[victim])
                proof.kills += 1
                await trio.sleep(chance.uniform(*_DOWN_S))
                await self._start(victim)
            await trio.sleep(chance.uniform(*_CALM_S))

    async def _confirms(self) -> None:
        """Wait until HQ has confirmed something since the last fault, so that the next one can lose
        it, also on a slow machine.
        """
        logs = [self._directory / name / LOG for name in self._senders]
        known = [log.stat().st_size if log.exists() else 0 for log in logs]
        with trio.move_on_after(SETTLE_S):
            while True:
                await self.look_after()
                for log, size in zip(logs, known, strict=True):
                    if log.exists() and CONFIRMED in log.read_bytes()[size:]:
                        return
                await trio.sleep(_LOOK_S)

    async def _each_proxy(self, act: Callable[[FaultProxy], Awaitable[None]]) -> None:
        for proxy in self._proxies:
            await act(proxy)

    async def _settle(self) -> None:
        """Let the senders empty their outboxes and the receivers their queues, without faults."""
        self._say("settling")
        limit_s = BROKEN_SETTLE_S if self._broken else SETTLE_S
        with trio.move_on_after(limit_s) as scope:
            for name in self._senders:
                process = self.processes[name]
                assert process.stdin is not None
                await process.stdin.aclose()
            while any(self.processes[name].poll() is None for name in self._senders):
                await self.look_after()
                await trio.sleep(_LOOK_S)
            await self.look_after()
            await self._drained()
        if scope.cancelled_caught:
            self.proof.examples.append(
                f"after {limit_s:.0f} s without faults not everything had arrived"
            )
        for name in self._receivers:
            await self.stage.stop(self.processes[name])
        await self.stage.run("HQ", "--home", str(self._directory / "admin"), "audit", "verify")
        for name in self._hqs:
            await self.stage.stop(self.processes[name])

    async def look_after(self) -> None:
        """Raise StageFailed if a process ended, whatever HQ and the network went through.  An HQ
        whose database another one took over does end, and is restarted, as systemd does.
        """
        for name, process in list(self.processes.items()):
            if len(self._hqs) > 1 and name in self._hqs and process.poll() == Exit.STORE:
                await self._start(name)
            elif name in self._receivers and process.poll() == Exit.OK:
                raise StageFailed(f"{name} ended unexpectedly")
            else:
                self.stage.check(name, process)

    async def _drained(self) -> None:
        from cipherbox.client.client import open_client

        async with open_client(self._directory / "admin", keep_trying=True) as admin:
            names = {f"box.{name}" for name in self._receivers}
            while True:
                try:
                    rows = [r for r in await admin.list("queues") if r["name"] in names]
                    if not any(r["waiting"] + r["unacknowledged"] for r in rows):
                        return
                except CipherBoxError as error:
                    if not error.retryable:  # the last fault may not be over yet
                        raise
                await self.look_after()
                await trio.sleep(_LOOK_S)

    # -- the comparison ----------------------------------------------------------------------------

    def _compare(self) -> None:
        proof = self.proof
        logs = {name: read_log(self._directory / name / LOG) for name in self._senders}
        for receiver in self._receivers:
            found: Counter[tuple[str, int]] = Counter()
            ids: Counter[str] = Counter()
            for line in _lines(self._directory / receiver / "data" / "received_messages.jsonl"):
                ids[line["message_id"]] += 1
                what = read_content(line["content"]) if isinstance(line["content"], str) else None
                begun = logs.get(what[0], ({}, set()))[0] if what is not None else {}
                if (
                    what is None
                    or line["sender_id"] != what[0]
                    or receiver not in begun.get(what[1], [])
                ):
                    self._found(
                        "unexpected",
                        f"{receiver} has message {line['message_id']}, which was not sent to it",
                    )
                    continue
                found[what] += 1
            for what, count in found.items():
                if count > 1:
                    self._found(
                        "duplicated",
                        f"{receiver} has number {what[1]} of {what[0]} {count} times",
                        count - 1,
                    )
            for message_id, count in ids.items():
                if count > 1 and not proof.duplicated:
                    self._found(
                        "duplicated",
                        f"{receiver} has message {message_id} {count} times",
                        count - 1,
                    )
            for sender, (begun, confirmed) in logs.items():
                for number, to in begun.items():
                    if receiver not in to:
                        continue
                    arrived = (sender, number) in found
                    if number in confirmed:
                        proof.confirmed += 1
                        if not arrived:
                            self._found(
                                "lost",
                                f"{receiver} never got number {number} of {sender}, which HQ "
                                "confirmed",
                            )
                    else:
                        proof.recovered += arrived

    def _found(self, what: str, text: str, count: int = 1) -> None:
        setattr(self.proof, what, getattr(self.proof, what) + count)
        if len(self.proof.examples) < 10:
            self.proof.examples.append(text)


def _lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []
