"""`make fuzz [MINUTES=10] [TARGETS="bundle frames"]`: every parser for its share of the time.

With atheris each target is guided by coverage, and what it found interesting stays in build/fuzz
for the next run.  Without it inputs are mutated blindly, from another beginning each time.  What
breaks the rule is written to tests/fuzz/regressions, where `make test` finds it from then on; the
exit code is 1 then.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import random
import subprocess
import sys
import time
from pathlib import Path

from tests.fuzz.check import GROWTH_BYTES, KEPT, RuleBroken, check, kept, peak_bytes
from tests.fuzz.mutate import mutated
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path("build") / "fuzz"
MEMORY_MB, ONE_S, LARGEST = 2048, 20, 64 * 1024


def covered(target: Target, seconds: float) -> bool:
    """A process of its own with bounds on memory and time; whether the rule held."""
    corpus = CORPUS / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in (*target.seeds(), *kept(target)):
        (corpus / hashlib.sha1(seed, usedforsecurity=False).hexdigest()).write_bytes(seed)
    command = [
        sys.executable,
        "-m",
        "tests.fuzz.covered",
        target.name,
        f"-max_total_time={max(1, int(seconds))}",
        f"-rss_limit_mb={MEMORY_MB}",
        f"-timeout={ONE_S}",
        f"-max_len={LARGEST}",
        f"-artifact_prefix={corpus}/",
        "-print_final_stats=1",
        str(corpus),
    ]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    lines = done.stderr.splitlines()
    runs = next((line.split()[-1] for line in lines if "number_of_executed_units" in line), "?")
    print(f"{target.name}: {runs} inputs, {len(list(corpus.iterdir()))} in the corpus", flush=True)
    if done.returncode:
        print("\n".join(lines[-25:]), flush=True)
    return done.returncode == 0


def blind(target: Target, seconds: float, chance: random.Random) -> bool:
    """Mutations in this process; whether the rule held."""
    seeds, end, count, before = list(target.seeds()), time.monotonic() + seconds, 0, peak_bytes()
    try:
        for data in kept(target):
            check(target, data)
        while time.monotonic() < end:
            data = mutated(seeds, chance)
            check(target, data)
            count += 1
            if not count % 1000 and peak_bytes() - before > GROWTH_BYTES:
                raise RuleBroken(target, data, f"it took more than {GROWTH_BYTES >> 20} MiB")
    except RuleBroken as broken:
        print(f"{broken}\nkept as {broken.keep()}", flush=True)
        return False
    print(f"{target.name}: {count} inputs", flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, help="of the blind mutations, to see the same again")
    parser.add_argument("targets", nargs="*", help="[default: all]")
    told = parser.parse_args()
    chosen = [TARGETS[name] for name in told.targets or TARGETS]
    seconds = told.minutes * 60 / len(chosen)
    seed = told.seed if told.seed is not None else time.time_ns()
    guided = importlib.util.find_spec("atheris") is not None
    print(
        "Guided by coverage (atheris)."
        if guided
        else f"Blind mutations, --seed {seed}; guided by coverage with: "
        f"{sys.executable} -m pip install 'atheris>=3'",
        flush=True,
    )
    chance = random.Random(seed)
    broken = [
        one.name
        for one in chosen
        if not (covered(one, seconds) if guided else blind(one, seconds, chance))
    ]
    print(
        f"The rule was broken by: {', '.join(broken)}; see {KEPT}"
        if broken
        else "Every parser kept the rule."
    )
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
