"""`prove`: check on this machine that nothing promised is lost, duplicated, changed or reordered,
whatever fails.
"""

from __future__ import annotations

import json
import secrets
import sys
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import click

from cipherbox.classes import frozen
from cipherbox.cli.exits import Exit
from cipherbox.cli.home import home_of
from cipherbox.cli.options import as_record, json_option
from cipherbox.cli.running import run, run_until_stopped

if TYPE_CHECKING:
    from cipherbox.cli.prove.play import Proof

_MINUTE_S = 60.0


@frozen
class ProveOptions:
    """The options of `prove`."""

    rounds: int
    seconds: float
    minutes: float
    kinds: tuple[str, ...]
    senders: int
    receivers: int
    seed: int | None
    url: str
    postgres_bin: Path | None
    report: Path | None
    checked: Path | None
    checker: bool
    as_json: bool
    worker: bool
    broken_store: bool
    stop_hq: bool
    patience: float | None


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100_000),
    default=12,
    show_default=True,
    help="Number of faults.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0),
    default=0.0,
    help="Instead of --rounds: duration of the faults, for example 480 for a night.",
)
@click.option("--seconds", type=click.FloatRange(0), default=0.0, help="The same in seconds.")
@click.option(
    "--fault",
    "kinds",
    metavar="KIND",
    multiple=True,
    help="Only this kind of fault, as named on page `reliability`; repeatable. "
    "[default: all that this machine can play]",
)
@click.option("--senders", type=click.IntRange(1, 20), default=2, show_default=True)
@click.option("--receivers", type=click.IntRange(1, 20), default=2, show_default=True)
@click.option("--seed", type=int, help="Seed of the faults, as printed by an earlier run.")
@click.option(
    "--database",
    "url",
    metavar="URL|local",
    default="",
    help="Run HQ and a standby on PostgreSQL: at URL, whose sessions are cut; or local: "
    "two servers of its own, which are killed and fail over.",
)
@click.option(
    "--postgres-bin",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="Directory of PostgreSQL's programs, for local. [default: searched for]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write what everybody saw to this file, as JSON.",
)
@click.option(
    "--check",
    "checked",
    metavar="REPORT",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Play nothing; check the report of an earlier run.",
)
@click.option(
    "--checker",
    is_flag=True,
    help="Print the program that checks a report. It needs Python alone, and shares no code with "
    "this one.",
)
@json_option
@click.option("--worker", is_flag=True, hidden=True)
@click.option("--broken-store", is_flag=True, hidden=True)
@click.option("--stop-hq", is_flag=True, hidden=True)
@click.option("--patience", type=float, hidden=True)
@click.pass_context
@as_record(ProveOptions)
def prove(ctx: click.Context, options: ProveOptions) -> int:
    """Prove that nothing promised is lost, duplicated, changed or reordered, whatever fails.

    Starts an HQ, senders and receivers as processes here, puts them under load, and plays faults:
    kills (SIGKILL), also of two at once and during recovery, stopped processes, wrong clocks, cut,
    partitioned and slow connections; as root on Linux also power cuts and full disks. Then it waits
    until everything is delivered and compares what senders, receivers and HQ saw: order, receipts,
    files, HQ's signed log and metadata, memory. Exit code 1 if anything is wrong, or if nothing
    happens for too long. The same seed gives the same faults; their timing still differs a little.
    """
    if options.worker:
        from cipherbox.cli.prove.worker import work

        return run(work, home_of(ctx))
    if options.checker:
        from cipherbox.cli.output import say

        say(resources.files(__package__).joinpath("checker.py").read_text("utf-8").rstrip())
        return Exit.OK
    if options.checked is not None:
        return _check(options.checked)
    from cipherbox.cli.output import print_json

    proof = _trial(options)
    if options.as_json:
        print_json(attrs.asdict(proof))
    else:
        _say(proof, options.url)
    return Exit.OK if proof.good else Exit.REFUSED


def _check(path: Path) -> int:
    """Check a report and print what is wrong."""
    from cipherbox.cli.output import fail, say
    from cipherbox.cli.prove.checker import check
    from cipherbox.errors import FileError

    try:
        found = check(json.loads(path.read_bytes()))
    except ValueError as error:
        raise FileError(f"{path}: {error}") from None
    say(_counts(found.counts))
    for rule, text in found.problems[:20]:
        fail(f"{rule}: {text}")
    return Exit.REFUSED if found.problems or not found.counts["confirmed"] else Exit.OK


def _trial(options: ProveOptions) -> Proof:
    """Run the trial in a directory of its own, with a progress line on a terminal."""
    from cipherbox.cli.output import warn
    from cipherbox.cli.prove.database import database_for
    from cipherbox.cli.prove.faults import KINDS
    from cipherbox.cli.prove.play import Plan, Trial
    from cipherbox.harness.workplace import workplace
    from cipherbox.portable import write_atomic

    shown = sys.stderr.isatty() and not options.as_json
    unknown = [kind for kind in options.kinds if kind not in KINDS]
    if unknown:
        raise click.UsageError(f"--fault is one of {', '.join(KINDS)}, not {unknown[0]}.")

    def tell(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def line(text: str) -> None:
        if not options.as_json:
            tell("")
            warn(text)

    plan = Plan(
        senders=options.senders,
        receivers=options.receivers,
        rounds=options.rounds,
        seconds=options.seconds or options.minutes * _MINUTE_S,
        seed=secrets.randbelow(1_000_000) if options.seed is None else options.seed,
        kinds=options.kinds or KINDS,
        patience_s=options.patience,
        broken=options.broken_store,
        stop_hq=options.stop_hq,
    )
    with (
        workplace("cipherbox-prove-") as directory,
        database_for(options.url, options.postgres_bin) as database,
    ):
        trial = Trial(directory, plan, tell, line, database)
        proof = run_until_stopped(trial.run)
    tell("")
    if options.report is not None:
        write_atomic(options.report, json.dumps(trial.report, indent=1).encode())
    return proof


def _counts(counts: dict[str, int]) -> str:
    first = ("confirmed", "lost", "duplicated", "unexpected", "changed", "disordered", "recovered")
    rest = sorted(what for what in counts if what not in first)
    return ", ".join(f"{what} {counts.get(what, 0)}" for what in (*first, *rest))


def _say(proof: Proof, url: str) -> None:
    from cipherbox.cli.output import fail, say, warn

    say(_counts(proof.counts))
    for kind, why in proof.skipped.items():
        warn(f"Not played: {kind} ({why}).")
    again = f"--seed {proof.seed}" + (f" --database '{url}'" if url else "")
    played = ", ".join(f"{kind} {count}" for kind, count in proof.faults.items())
    warn(f"{proof.rounds} faults ({played}), {proof.seconds:g} s; again: cipherbox prove {again}")
    for example in proof.examples:
        fail(example)
    if proof.wrong > len(proof.examples):
        fail(f"and {proof.wrong - len(proof.examples)} more")
