"""The trial: senders and receivers under load, a calm phase, faults, a time to settle, the report.

Everything is real: processes of this program, mutual TLS, disks, SIGKILL.  Clients reach HQ through
a proxy here.  The calm phase measures how fast this machine is, and limits follow from that.  When
the faults are over, the senders empty their outboxes and the receivers their queues; then the
report is collected, and `checker` judges it.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import trio

import cipherbox
from cipherbox import clock
from cipherbox.classes import define, frozen
from cipherbox.cli.prove import checker, history
from cipherbox.cli.prove.cast import Cast
from cipherbox.cli.prove.database import Database
from cipherbox.cli.prove.faults import ON_DISKS, Faults, skipped
from cipherbox.cli.prove.watch import Standstill, Watch

MEMORY_BYTES, FILES = 512 << 20, 512  # limits of one process; more is a leak under this load
_CALM_S = (0.2, 1.2)  # between two faults
_EXAMPLES = 10
_REFERENCE_S = 3.0  # the calm phase on the machine where the timeouts were chosen
Say = Callable[[str], None]


@frozen
class Plan:
    """What to play: ``rounds`` faults, or as many as fit into ``seconds``."""

    senders: int = 2
    receivers: int = 2
    rounds: int = 12
    seconds: float = 0.0
    seed: int = 0
    kinds: tuple[str, ...] = ()
    patience_s: float | None = None  # None: from the machine's speed
    broken: bool = False  # HQ loses envelopes deliberately
    stop_hq: bool = False  # HQ is stopped and never continued


@define
class Proof:
    """The verdict; the counts are messages for each recipient."""

    good: bool = False
    counts: dict[str, int] = attrs.Factory(dict)
    faults: dict[str, int] = attrs.Factory(dict)
    skipped: dict[str, str] = attrs.Factory(dict)
    standstill: list[str] = attrs.Factory(list)
    examples: list[str] = attrs.Factory(list)
    wrong: int = 0
    rounds: int = 0
    seconds: float = 0.0
    seed: int = 0


class Trial:
    """A trial in ``directory``.  ``say`` gets progress, ``note`` each fault that was played."""

    def __init__(
        self, directory: Path, plan: Plan, say: Say, note: Say, database: Database | None = None
    ) -> None:
        self._plan, self._say, self._note = plan, say, note
        self._began, self._began_at = time.monotonic(), clock.now()
        self.skipped = skipped(plan.kinds, database.faults if database else [])
        self.kinds = [kind for kind in plan.kinds if kind not in self.skipped]
        self.cast = Cast(
            directory,
            plan.senders,
            plan.receivers,
            plan.seed,
            database=database,
            broken=plan.broken,
            disks=any(kind in self.kinds for kind in ON_DISKS),
            seconds=max(plan.seconds, 60.0),
        )
        self.watch = Watch(self.cast, self._began, plan.patience_s)
        self.faults = Faults(self.cast, random.Random(plan.seed), self.kinds, self._began)  # noqa: S311
        self.report: dict[str, Any] = {}
        self._standstill: list[str] = []
        self._calm_s = 0.0
        self._hq: dict[str, Any] | None = None

    async def run(self) -> Proof:
        cast = self.cast
        try:
            async with trio.open_nursery() as nursery:
                for proxy, port in zip(cast.proxies, cast.proxy_ports.values(), strict=True):
                    await nursery.start(proxy.serve, port)
                nursery.start_soon(self.watch.sample)
                try:
                    self._say("enrolling")
                    await cast.begin()
                    await self._play()
                finally:
                    with trio.CancelScope(shield=True):
                        await cast.end()
                nursery.cancel_scope.cancel()
            self._say("comparing")
            self.report = await self._collect()
        finally:
            cast.remove_disks()
        return self._verdict()

    async def _play(self) -> None:
        """Play everything; a standstill ends it early."""
        try:
            self._say("measuring")
            self._calm_s = await self.watch.calm()
            self.cast.slowness = max(1.0, self._calm_s / _REFERENCE_S)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.watch.guard)
                if self._plan.stop_hq:
                    self._stop_hq()
                await self._faults()
                await self._settle()
                nursery.cancel_scope.cancel()
        except* Standstill as group:
            (first, *_) = group.exceptions
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            self._standstill = [str(text) for text in first.args]

    def _stop_hq(self) -> None:
        from cipherbox import portable

        for name in self.cast.hqs:
            portable.stop_process(self.cast.processes[name].pid)

    async def _faults(self) -> None:
        plan, played = self._plan, 0
        began = time.monotonic()
        while played < plan.rounds if not plan.seconds else time.monotonic() - began < plan.seconds:
            await self.watch.confirmed()
            played += 1
            self._say(f"fault {played}")
            line = await self.faults.one()
            self._note(f"{line['at']:8.1f} s  {line['kind']}  {' '.join(line['on'])}".rstrip())
            await trio.sleep(self.faults.chance.uniform(*_CALM_S))

    async def _settle(self) -> None:
        """Let the senders empty their outboxes and the receivers their queues, without faults."""
        cast = self.cast
        self._say("settling")
        await cast.close_inputs()
        while any(cast.processes[name].poll() is None for name in cast.senders):
            await self.watch.look()
        await cast.look_after()
        await cast.drained(0.2)
        await cast.stop(cast.receivers)
        self._hq = await history.hq_seen(cast)
        await cast.stop(cast.hqs)

    # -- the report --------------------------------------------------------------------------------

    async def _collect(self) -> dict[str, Any]:
        cast, plan = self.cast, self._plan
        if self._hq is not None:
            self._hq["deliveries"] = history.deliveries(cast)
        return {
            "format": checker.FORMAT,
            "version": checker.VERSION,
            "program": cipherbox.__version__,
            "began": self._began_at.isoformat(timespec="milliseconds"),
            "seconds": round(time.monotonic() - self._began, 1),
            "seed": plan.seed,
            "store": "sqlite" if cast.database is None else "postgresql",
            "machine": {
                "cpus": os.cpu_count(),
                "system": platform.system(),
                "calm_s": round(self._calm_s, 2),
            },
            "limits": {
                "patience_s": round(self.watch.patience_s, 1),
                "memory_bytes": MEMORY_BYTES,
                "files": FILES,
            },
            "faults": self.faults.timeline,
            "skipped": self.skipped,
            "standstill": self._standstill,
            "senders": {name: await history.sender_seen(cast, name) for name in cast.senders},
            "receivers": {name: history.receiver_lines(cast.home(name)) for name in cast.receivers},
            "hq": self._hq,
            "processes": self.watch.samples,
        }

    def _verdict(self) -> Proof:
        found = checker.check(self.report)
        return Proof(
            good=not found.problems and found.counts["confirmed"] > 0,
            counts=dict(sorted(found.counts.items())),
            faults=dict(sorted(Counter(line["kind"] for line in self.faults.timeline).items())),
            skipped=self.skipped,
            standstill=self._standstill,
            examples=[f"{rule}: {text}" for rule, text in found.problems[:_EXAMPLES]],
            wrong=len(found.problems),
            rounds=len(self.faults.timeline),
            seconds=self.report["seconds"],
            seed=self._plan.seed,
        )
