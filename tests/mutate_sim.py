"""`make mutate SIM=50`: change the code of broker, store and inbox, and see whether the simulation
alone notices.

Each mutant has one change: a comparison, an operator, a number, a negated condition or a statement
left out, in a line that the simulation runs through.  Chosen at random by `--seed`, it is played
without faults, and then with the first seeds of the simulation until one fails.  What no seed
notices is listed: either the simulation lacks a fault or a state there, or a rule to check, or the
change means the same.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutate-sim"
EQUIVALENT = ROOT / "tests" / "sim" / "equivalent.toml"
# What the simulation exercises: the path of a message through HQ and into the inbox.
PLACES = (
    "broker/publish.py",
    "broker/enqueue.py",
    "broker/consume.py",
    "broker/broker.py",
    "broker/queues.py",
    "broker/generations.py",
    "broker/dead_letters.py",
    "broker/state.py",
    "store/sqlite/commit.py",
    "store/sqlite/store.py",
    "store/sqlite/queries.py",
    "store/sqlite/database.py",
    "store/spool.py",
    "store/reserve.py",
    "store/files.py",
    "client/inbox/inbox.py",
    "client/inbox/lines_file.py",
    "client/inbox/completion.py",
    "client/inbox/transfers.py",
    "client/local_database.py",
)
_SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
LIMIT_S = 120  # of CPU, so that a busy machine changes no verdict
ROUND = 12  # seeds that show which lines the simulation runs through


def places(tree: ast.Module) -> Iterator[tuple[int, int, int]]:
    """Yield each possible change: the number of a node, for a block the statement in it, and the
    line.
    """
    inside = {
        id(n)
        for f in ast.walk(tree)
        if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)
        for n in ast.walk(f)
    }
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in inside:
            continue
        if (
            (isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPPED)
            or (isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _SWAPPED)
            or (isinstance(node, ast.Constant) and type(node.value) is int)
        ):
            yield number, 0, node.lineno  # type: ignore[attr-defined]
        elif isinstance(node, ast.If | ast.While):
            yield number, -1, node.test.lineno
        body = node.body if isinstance(getattr(node, "body", None), list) else []
        for place, statement in enumerate(body):
            if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
                yield number, place + 1, statement.lineno


def changed(source: str, number: int, place: int) -> tuple[str, int, str]:
    """Return the source with that change, its line, and the change in words."""
    tree = ast.parse(source)
    node: Any = [*ast.walk(tree)][number]
    before = ast.unparse(node).splitlines()[0] if isinstance(node, ast.expr) else ""
    line = getattr(node, "lineno", 0)
    if place > 0:
        statement = node.body[place - 1]
        node.body[place - 1] = ast.copy_location(ast.Pass(), statement)
        return ast.unparse(tree), statement.lineno, "left out"
    if place < 0:
        line = node.test.lineno
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return ast.unparse(ast.fix_missing_locations(tree)), line, "negated"
    if isinstance(node, ast.Compare):
        node.ops[0] = _SWAPPED[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = _SWAPPED[type(node.op)]()  # type: ignore[assignment]
    else:
        node.value = int(node.value) + 1
    return ast.unparse(tree), line, f"{before} -> {ast.unparse(node).splitlines()[0]}"


def known() -> set[tuple[str, str, str]]:
    """Return the changes that the simulation need not notice: file, line and change."""
    rows = tomllib.loads(EQUIVALENT.read_text("utf-8"))["equivalent"]
    return {(row["file"], row["line"], row["change"]) for row in rows}


def play(seeds: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Play the simulation in the copy until a seed fails."""
    command = [sys.executable, *before, "-m", "tests.sim.run", seeds, "--stop", "--calm", "2"]
    return subprocess.run(
        command,
        cwd=COPY,
        env=dict(os.environ, PYTHONPATH=str(COPY)),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (LIMIT_S, LIMIT_S)),
    )


def noticed(seeds: int) -> str:
    """Return what noticed the change, or nothing."""
    done = play(f"0:{seeds}")
    if -done.returncode in (signal.SIGXCPU, signal.SIGKILL):
        return "it does not end"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if ") failed: " in line]
    return (lines or done.stderr.splitlines() or ["it ends"])[-1]


def reached() -> dict[str, set[int]]:
    """Return the lines of each file that a round of seeds runs through."""
    files = ",".join(f"cipherbox/{file}" for file in PLACES)
    done = play(f"0:{ROUND}", "-m", "coverage", "run", f"--include={files}")
    if done.returncode:
        raise SystemExit(f"the simulation fails without any change:\n{done.stdout}{done.stderr}")
    report = [sys.executable, "-m", "coverage", "json", "-q", "-o", "lines.json"]
    subprocess.run(report, cwd=COPY, check=True)
    found = json.loads((COPY / "lines.json").read_text("utf-8"))["files"]
    return {
        file.removeprefix("cipherbox/"): set(one["executed_lines"]) for file, one in found.items()
    }


def main() -> None:
    """Change, play, and print what survived."""
    options = argparse.ArgumentParser(description="Mutants against the simulation alone.")
    options.add_argument("--mutants", type=int, default=50)
    options.add_argument("--seeds", type=int, default=24, help="of the simulation, for each mutant")
    options.add_argument("--seed", type=int, default=1, help="of the choice of mutants")
    chosen = options.parse_args()
    shutil.rmtree(COPY, ignore_errors=True)
    COPY.mkdir(parents=True)
    for name in ("cipherbox", "tests", "systemd"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, COPY / name, ignore=ignored, symlinks=name == "systemd")
    shutil.copy2(ROOT / "pyproject.toml", COPY)
    every = [
        (file, *where)
        for file in PLACES
        for where in places(ast.parse((ROOT / "cipherbox" / file).read_text("utf-8")))
    ]
    random.Random(chosen.seed).shuffle(every)  # the same order whatever is reached
    lines = reached()
    every = [one for one in every if one[3] in lines.get(one[0], ())]
    survivors, fine = [], known()
    for count, (file, number, place, _) in enumerate(every[: chosen.mutants], 1):
        original = (ROOT / "cipherbox" / file).read_text("utf-8")
        source, at, change = changed(original, number, place)
        line = original.splitlines()[at - 1].strip()
        told = f"{file}:{at}: {change}: {line}"
        if (file, line, change) in fine:
            print(f"{count:3} known    {told}", flush=True)
            continue
        (COPY / "cipherbox" / file).write_text(source, "utf-8")
        why = noticed(chosen.seeds)
        (COPY / "cipherbox" / file).write_text(original, "utf-8")
        print(f"{count:3} {'noticed ' if why else 'SURVIVED'} {told}", flush=True)
        if why:
            print(f"    {why[:200]}", flush=True)
        else:
            survivors.append(told)
    print(f"{chosen.mutants} mutants of {len(every)} possible, {len(survivors)} survived:")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
