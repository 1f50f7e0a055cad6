"""Run one measurement: start HQ, senders and receivers, release them together, collect their
reports.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import orjson
import trio

from cipherbox.classes import frozen
from cipherbox.harness.stage import Stage, free_port
from cipherbox.harness.worker import WorkerProcess
from cipherbox.portable import process_usage

if TYPE_CHECKING:
    from cipherbox.cli.bench.work import Work


@frozen
class Result:
    """The result of a measurement.  MB are 10^6 bytes of messages; CPU in seconds per million
    messages; None: not known.  ``peer``: the other broker that was measured, and its
    ``conditions``.
    """

    work: Work
    messages: int
    seconds: float
    messages_per_s: float
    confirmed_per_s: float  # by the time the senders were done
    mb_per_s: float
    latency_ms: dict[str, float | None]
    hq_peak_rss_mb: float | None
    cpu_s_per_million: dict[str, float | None]
    peer: str = ""
    conditions: str = ""
    rounds: int = 1

    def as_json(self) -> dict[str, object]:
        """Return the fields that `--json` prints."""
        return {
            **attrs.asdict(self, recurse=False),
            "work": self.work.title,
            "options": attrs.asdict(self.work),
        }


def median_of(results: Sequence[Result]) -> Result:
    """Return the median of each figure of several runs of one measurement."""

    def median(values: list[Any]) -> Any:
        if isinstance(values[0], dict):
            return {key: median([value[key] for value in values]) for key in values[0]}
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    figures = {
        field.name: median([getattr(one, field.name) for one in results])
        for field in attrs.fields(Result)
        if field.name not in ("work", "peer", "conditions", "messages", "rounds")
    }
    return attrs.evolve(results[0], **figures, rounds=len(results))


async def play(directory: Path, work: Work, database: list[str]) -> Result:
    """Measure ``work`` in an empty directory; ``database`` are arguments for `init`."""
    stage = Stage(directory)
    names = [f"S{n + 1}" for n in range(work.senders)], [f"R{n + 1}" for n in range(work.receivers)]
    progress = Progress(work)
    workers: list[WorkerProcess] = []
    progress.say("enrolling")
    address = f"127.0.0.1:{free_port()}"
    admin, hq = directory / "admin", directory / "hq"
    await stage.run(
        "HQ",
        "--home",
        str(admin),
        "init",
        str(hq),
        "--address",
        address,
        "--listen",
        address,
        *database,
    )
    server, _ = await stage.start("HQ", "serve", str(hq))
    try:
        await stage.enrol(admin, {name: directory / name for name in (*names[0], *names[1])})
        if work.wrap == "rsa":
            for name in names[1]:
                await stage.run(name, "--home", str(directory / name), "keys", "generate", "--rsa")
        groups = [
            names[1][at : at + work.recipients] for at in range(0, work.receivers, work.recipients)
        ]
        tasks = _tasks(work, names, groups)
        for name, task in tasks.items():
            workers.append(await _start(stage, directory, name, task))
        for worker in workers:
            while "ready" not in await worker.receive():
                progress.say(f"sealing {worker.last['sealed']:,}")
        before = process_usage(server.pid)
        for worker in workers:  # receivers first
            await worker.send(b"go")
        async with trio.open_nursery() as nursery:
            for worker in workers:
                nursery.start_soon(_until_done, worker, workers, progress)
        after = process_usage(server.pid)
    finally:
        progress.end()
        for worker in workers:
            await worker.end()
        await stage.stop(server)
    return result(work, workers, before, after)


def _tasks(
    work: Work, names: tuple[list[str], list[str]], groups: list[list[str]]
) -> dict[str, dict[str, Any]]:
    senders, receivers = names
    same: dict[str, Any] = {
        "size": work.size,
        "batch": work.batch,
        "rate": work.rate / work.senders / len(groups),
        "wrap": work.wrap,
    }
    share, rest = divmod(work.count, work.senders)
    sent = {name: share + (n < rest) for n, name in enumerate(senders)}
    due = dict.fromkeys(receivers, 0)
    for count in sent.values():
        if work.presealed:  # whole envelopes, given to the groups in turn
            envelopes = -(-count // (work.batch or 1))
            parts = [
                (envelopes - n + len(groups) - 1) // len(groups) * (work.batch or 1)
                for n in range(len(groups))
            ]
        else:
            parts = [count // len(groups) + (n < count % len(groups)) for n in range(len(groups))]
        for group, part in zip(groups, parts, strict=True):
            for name in group:
                due[name] += part
    receive = "take" if work.presealed else "receive-files" if work.files else "receive"
    tasks = {n: {**same, "do": receive, "messages": due[n]} for n in receivers}
    for name, count in sent.items():
        do = "send-presealed" if work.presealed else "send-files" if work.files else "send"
        tasks[name] = {**same, "do": do, "messages": count, "groups": groups}
    return tasks


async def _start(stage: Stage, directory: Path, name: str, task: dict[str, Any]) -> WorkerProcess:
    home = str(directory / name)
    worker = await WorkerProcess.start(stage, name, "--home", home, "bench", "--worker")
    await worker.send(orjson.dumps(task))
    return worker


async def _until_done(
    worker: WorkerProcess, workers: list[WorkerProcess], progress: Progress
) -> None:
    while "ended" not in await worker.receive():
        progress.count(sum(w.last.get("received", 0) for w in workers))


def result(
    work: Work,
    workers: list[WorkerProcess],
    before: tuple[float, int] | None,
    after: tuple[float, int] | None,
) -> Result:
    """Return the figures that the workers' last reports and the server's usage give."""
    senders = [w.last for w in workers if w.name.startswith("S")]
    receivers = [w.last for w in workers if w.name.startswith("R")]
    messages = sum(r["received"] for r in receivers) // work.recipients
    seconds = (max(r["ended"] for r in receivers) - min(s["began"] for s in senders)) / 1e9
    sending = (max(s["ended"] for s in senders) - min(s["began"] for s in senders)) / 1e9
    million = messages / 1e6
    took = sorted(t for r in receivers for t in r["took_ms"])
    p50, p99 = (
        round(took[int((len(took) - 1) * part)], 3) if took else None for part in (0.5, 0.99)
    )
    return Result(
        work,
        messages,
        round(seconds, 4),
        round(messages / seconds, 1),
        round(messages / sending, 1),
        round(messages * work.size / seconds / 1e6, 3),
        {"p50": p50, "p99": p99},
        round(after[1] / 1e6, 1) if after else None,
        {
            "sender": round(sum(s["cpu_s"] for s in senders) / million, 3),
            "hq": round((after[0] - before[0]) / million, 3) if before and after else None,
            "receiver": round(sum(r["cpu_s"] for r in receivers) / million, 3),
        },
    )


class Progress:
    """A progress line on a terminal; prints nothing elsewhere."""

    def __init__(self, work: Work) -> None:
        self._title, self._total = work.title, work.count * work.recipients
        self._shown = sys.stderr.isatty()
        self._at = 0.0

    def say(self, text: str) -> None:
        if self._shown:
            print(f"\r\x1b[K{self._title}: {text}", end="", file=sys.stderr, flush=True)

    def count(self, received: int) -> None:
        if self._shown and time.monotonic() - self._at > 0.1:
            self._at = time.monotonic()
            full = 24 * received // max(1, self._total)
            self.say(f"[{'#' * full}{'.' * (24 - full)}] {received:,} of {self._total:,}")

    def end(self) -> None:
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
