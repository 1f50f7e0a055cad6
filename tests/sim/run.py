"""`python -m tests.sim.run FIRST:COUNT`: play seeds one after the other, print what failed, and at
the end which fault met which state.  ``--stop``: at the first failure.

For nights, and for `make mutate SIM=50`: it starts faster than pytest, and goes on after a failure.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.sim import faults
from tests.sim.test_sim import make_template, play_seed
from tests.sim.world import World

EVERY = 50  # seeds between two lines that say how far it is


def problem_of(error: BaseException) -> str:
    """Return what is wrong, in one line."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}".splitlines()[0][:600]


def main() -> int:
    """Play them; return 1 if one failed."""
    options = argparse.ArgumentParser(description="Seeds of the simulation.")
    options.add_argument("seeds", help="FIRST:COUNT")
    options.add_argument("--stop", action="store_true", help="at the first failure")
    options.add_argument("--calm", type=int, default=0, help="seeds without faults, before")
    chosen = options.parse_args()
    first, count = map(int, chosen.seeds.split(":"))
    logging.disable(logging.CRITICAL)
    lines: list[str] = []
    failed = 0
    with tempfile.TemporaryDirectory() as place:
        template = make_template(Path(place) / "template")
        for seed in [*range(-chosen.calm, 0), *range(first, first + count)]:
            path = Path(place) / str(seed)
            path.mkdir()
            with pytest.MonkeyPatch.context() as patch:
                try:
                    met = play_seed(World(path, template, seed), seed, patch)
                    lines.append(faults.line_of(met))
                except Exception as error:
                    failed += 1
                    played = ", ".join(f"{kind} / {state}" for kind, state in faults.aims(seed))
                    told = f"seed {seed} ({played or 'no faults'}) failed: {problem_of(error)}"
                    print(told, flush=True)
            shutil.rmtree(path)
            if failed and chosen.stop:
                return 1
            if (seed - first + 1) % EVERY == 0 < seed:
                print(f"{seed - first + 1} seeds, {failed} failed", flush=True)
    print(faults.table(lines))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
