"""`prove`: check on this machine that no confirmed message is lost or duplicated, whatever is
killed.
"""

from __future__ import annotations

import secrets
import sys
import tempfile
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


@frozen
class ProveOptions:
    """The options of `prove`."""

    rounds: int
    seconds: float
    senders: int
    receivers: int
    seed: int | None
    url: str
    postgres_bin: Path | None
    as_json: bool
    worker: bool
    broken_store: bool


@click.command()
@click.option(
    "--rounds",
    type=click.IntRange(1, 100_000),
    default=12,
    show_default=True,
    help="Number of faults.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(0),
    default=0.0,
    help="Instead of --rounds: duration of the faults in seconds.",
)
@click.option("--senders", type=click.IntRange(1, 20), default=2, show_default=True)
@click.option("--receivers", type=click.IntRange(1, 20), default=2, show_default=True)
@click.option("--seed", type=int, help="Seed of the order of faults, as printed by an earlier run.")
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
@json_option
@click.option("--worker", is_flag=True, hidden=True)
@click.option("--broken-store", is_flag=True, hidden=True)
@click.pass_context
@as_record(ProveOptions)
def prove(ctx: click.Context, options: ProveOptions) -> int:
    """Prove that no confirmed message is lost or duplicated, whatever is killed.

    Starts an HQ, senders and receivers as processes here, puts them under load, kills them
    (SIGKILL) and cuts their connections at random, waits until everything is delivered, and
    compares what HQ confirmed with what arrived. It also verifies HQ's signed log completely. Exit
    code 1 if anything is wrong. The same seed gives the same order of faults; their timing still
    differs a little.
    """
    if options.worker:
        from cipherbox.cli.prove.worker import work

        return run(work, home_of(ctx))
    from cipherbox.cli.output import print_json

    proof = _trial(options)
    if options.as_json:
        print_json(attrs.asdict(proof))
    else:
        _say(proof, options.url)
    return Exit.OK if proof.good else Exit.REFUSED


def _trial(options: ProveOptions) -> Proof:
    """Run the trial in a directory of its own, with a progress line on a terminal."""
    from cipherbox.cli.prove.database import database_for
    from cipherbox.cli.prove.play import Trial

    shown = sys.stderr.isatty() and not options.as_json

    def tell(text: str) -> None:
        if shown:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    place = tempfile.TemporaryDirectory(prefix="cipherbox-prove-", ignore_cleanup_errors=True)
    with place as directory, database_for(options.url, options.postgres_bin) as database:
        trial = Trial(
            Path(directory),
            senders=options.senders,
            receivers=options.receivers,
            rounds=options.rounds,
            seconds=options.seconds,
            seed=secrets.randbelow(1_000_000) if options.seed is None else options.seed,
            broken=options.broken_store,
            say=tell,
            database=database,
        )
        proof = run_until_stopped(trial.run)
    tell("")
    return proof


def _say(proof: Proof, url: str) -> None:
    from cipherbox.cli.output import fail, say, warn

    say(
        f"confirmed {proof.confirmed}, lost {proof.lost}, duplicated {proof.duplicated}, "
        f"unexpected {proof.unexpected}, recovered {proof.recovered}"
    )
    faults = f" and {proof.database_faults} faults of PostgreSQL" if url else ""
    again = f"--seed {proof.seed}" + (f" --database '{url}'" if url else "")
    warn(
        f"{proof.kills} kills, {proof.cuts} cuts{faults} in {proof.rounds} rounds, "
        f"{proof.seconds:g} s; again with: cipherbox prove {again}"
    )
    for example in proof.examples:
        fail(example)
