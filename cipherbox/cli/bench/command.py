"""`bench`: this machine's speed end to end, from the first publish to the last confirmed
acknowledgement.

Sender, HQ and receiver are processes of this same program; everything is durable, sealed, signed
and over mutual TLS, and the receiver writes its messages to disk before it acknowledges.  This file
is the command and its table; `work` describes a measurement, `play` runs it, and `worker` and
`files` run in the measured processes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cipherbox.classes import frozen
from cipherbox.cli.bench.work import LARGEST, LARGEST_FILE, STANDARD, Work, size_words
from cipherbox.cli.exits import Exit
from cipherbox.cli.options import as_record, json_option
from cipherbox.cli.running import run, run_until_stopped
from cipherbox.cli.scratch import database_option, scratch
from cipherbox.cli.send import WRAPS

if TYPE_CHECKING:
    from cipherbox.cli.bench.peers import Peer
    from cipherbox.cli.bench.play import Result


class Size(click.ParamType[int]):
    """A size such as ``100``, ``1KiB``, ``64k`` or ``4GiB``, converted to bytes."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        found = re.fullmatch(r"(\d+)\s*(?:([kmg])(?:i?b)?|b)?", str(value).strip().lower())
        if not found:
            self.fail(f"invalid size {value!r}: use for example 100, 64KiB or 1MiB", param, ctx)
        size = int(found[1]) * {"k": 1024, "m": 1024**2, "g": 1024**3}.get(found[2] or "", 1)
        if not 1 <= size <= LARGEST_FILE:
            most = size_words(LARGEST_FILE)
            self.fail(f"invalid size {value!r}: must be from 1 byte to {most}", param, ctx)
        return size


class Batch(click.ParamType[int]):
    """The number of messages per envelope, or ``auto``, which is converted to 0."""

    name = "batch"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        if str(value) == "auto":
            return 0
        if not str(value).isdigit() or not 1 <= int(str(value)) <= 65_536:
            self.fail(f"invalid batch {value!r}: must be auto, or 1 to 65536", param, ctx)
        return int(str(value))


@frozen
class BenchOptions:
    """The options of `bench`; None and False: not given."""

    size: int | None
    messages: int | None
    batch: int | None
    senders: int | None
    receivers: int | None
    recipients: int | None
    presealed: bool
    rate: float | None
    directory: Path | None
    wrap: str | None
    files: bool
    rounds: int
    compare: tuple[str, ...]
    url: str
    as_json: bool
    worker: bool

    @property
    def names_one(self) -> bool:
        """Return whether one measurement was requested, instead of the standard ones."""
        counts = (self.size, self.messages, self.batch, self.senders, self.receivers)
        given = (*counts, self.recipients, self.rate, self.wrap)
        return self.presealed or self.files or any(value is not None for value in given)

    def work(self) -> Work:
        """Return the one measurement.  Raise UsageError if its options contradict each other."""
        batch = self.batch
        if batch is None:
            batch = 1 if self.presealed or self.rate else 0
        recipients = self.recipients or 1
        receivers = self.receivers or recipients
        if receivers % recipients:
            raise click.UsageError(
                "--receivers must be a multiple of --recipients: each message goes to one group."
            )
        if self.presealed and self.rate:
            raise click.UsageError(
                "--presealed measures HQ's capacity; it cannot be combined with --rate."
            )
        if self.presealed and self.wrap:
            raise click.UsageError(
                "--presealed measures HQ, which sees no difference; it cannot be combined with "
                "--wrap."
            )
        if self.files and (self.presealed or self.rate or batch or self.wrap):
            raise click.UsageError(
                "--files measures agents; it cannot be combined with --presealed, --rate, --batch "
                "or --wrap."
            )
        if not self.files and (self.size or 0) > LARGEST:
            raise click.UsageError(
                f"A message has at most {size_words(LARGEST)}; --files measures larger ones."
            )
        if self.files and recipients > 1:
            raise click.UsageError("--files requires --recipients 1: each file is for one center.")
        return Work(
            size=self.size or 100,
            messages=self.messages or 0,
            batch=batch,
            senders=self.senders or 1,
            receivers=receivers,
            recipients=recipients,
            presealed=self.presealed,
            rate=self.rate or 0.0,
            wrap=self.wrap or "",
            files=self.files,
        )


@click.command()
@click.option(
    "--size",
    type=Size(),
    help="Bytes of one message or file, for example 100, 1MiB, 4GiB. [default: 100]",
)
@click.option(
    "--messages", type=click.IntRange(1), help="Total number. [default: enough for some seconds]"
)
@click.option("--batch", type=Batch(), help="Messages per envelope, or auto. [default: auto]")
@click.option("--senders", type=click.IntRange(1, 64), help="Sending processes. [default: 1]")
@click.option(
    "--receivers", type=click.IntRange(1, 64), help="Receiving processes. [default: --recipients]"
)
@click.option(
    "--recipients", type=click.IntRange(1, 64), help="Receivers that get each message. [default: 1]"
)
@click.option(
    "--presealed", is_flag=True, help="HQ alone: envelopes are sealed beforehand and not opened."
)
@click.option("--files", is_flag=True, help="Files in an agent's folder, instead of messages.")
@click.option(
    "--rate",
    type=click.FloatRange(0.1, 100_000),
    help="Messages per second: measures latency at this rate.",
)
@click.option(
    "--wrap",
    type=click.Choice(tuple(WRAPS)),
    help="Wrap keys like `send --wrap`.",
)
@click.option(
    "--directory",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Measure on this directory's disk. [default: the system's temporary directory]",
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 99),
    default=1,
    show_default=True,
    help="Run everything this many times, in turn, and print the median of each figure.",
)
@click.option(
    "--compare",
    type=click.Choice(("nats", "nats-sync", "redis")),
    multiple=True,
    help="Also measure another broker, if its server is installed; may be given more than once.",
)
@database_option
@json_option
@click.option("--worker", is_flag=True, hidden=True)
@click.pass_context
@as_record(BenchOptions)
def bench(ctx: click.Context, options: BenchOptions) -> int:
    """Measure this machine with sender, HQ and receiver as separate processes, always durable and
    end to end.

    Without options it runs six measurements, in about a minute; with any of --size to --rate only
    that one.  Page `performance` says what bounds each, and how to compare.

    \b
    cipherbox bench
    cipherbox bench --size 1KiB
    cipherbox bench --size 100 --batch 1 --rate 200
    cipherbox bench --files --messages 3000 --size 17
    cipherbox bench --size 1MiB --rounds 5 --compare nats --compare redis
    """
    if options.worker:
        from cipherbox.cli.bench.worker import work

        return run(work, ctx.find_root().obj)
    works = (options.work(),) if options.names_one else STANDARD
    return _measure(works, options)


def _measure(works: tuple[Work, ...], options: BenchOptions) -> int:
    """Run all measurements in turn, ``rounds`` times, and print the median of each."""
    from cipherbox.cli.bench.play import median_of
    from cipherbox.cli.output import explain, print_json, table
    from cipherbox.harness.workplace import workplace

    todo = measurements(works, options.compare, options.url)
    results: list[list[Result]] = [[] for _ in todo]
    medians: list[Result] = []
    for number in range(1, options.rounds + 1):
        for measurement, found in zip(todo, results, strict=True):
            with workplace("cipherbox-bench-", options.directory) as place:
                found.append(measurement(place))
            if number == options.rounds:
                medians.append(median_of(found))
                if options.as_json:
                    print_json(medians[-1].as_json())
    if not options.as_json:
        table(HEADS, [_row(result) for result in medians])
        for text in dict.fromkeys(f"{one.peer}: {one.conditions}" for one in medians if one.peer):
            explain("", text)
    return Exit.OK


def measurements(
    works: tuple[Work, ...], compare: tuple[str, ...], url: str
) -> list[Callable[[Path], Result]]:
    """Return what to measure: each work, and beside it the same with each peer that is here."""
    from cipherbox.cli.bench.peers import PEERS, comparable
    from cipherbox.cli.bench.play import play
    from cipherbox.cli.output import warn

    peers = []
    for name in dict.fromkeys(compare):
        peer = PEERS[name]
        path = peer.path()
        if path is None:
            warn(f"skipping {name}: {peer.program} is not on PATH")
        else:
            peers.append((peer, path))

    def ours(place: Path, work: Work) -> Result:
        with scratch(url) as database:
            return run_until_stopped(play, place, work, database.arguments)

    found: list[Callable[[Path], Result]] = []
    for work in works:
        found.append(partial(ours, work=work))
        if comparable(work):
            found += [partial(_with_peer, work=work, peer=peer, path=path) for peer, path in peers]
        elif peers:
            warn(f"{work.title}: no peer does this")
    return found


def _with_peer(place: Path, work: Work, peer: Peer, path: str) -> Result:
    from cipherbox.cli.bench.peers import play_peer

    return run_until_stopped(play_peer, place, work, peer, path)


HEADS = (
    "work",
    "messages/s",
    "MB/s",
    "p50 ms",
    "p99 ms",
    "HQ peak MB",
    "CPU s per million: sender",
    "HQ",
    "receiver",
)


def _row(result: Result) -> list[object]:
    cpu = result.cpu_s_per_million
    numbers = [
        f"{result.messages_per_s:,.0f}",
        f"{result.mb_per_s:,.1f}",
        _number(result.latency_ms["p50"]),
        _number(result.latency_ms["p99"]),
        _number(result.hq_peak_rss_mb),
        *map(_number, cpu.values()),
    ]
    title = result.work.title
    return [f"{result.peer}: {title}" if result.peer else title, *numbers]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.1f}"
