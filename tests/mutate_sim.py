"""`make mutate SIM=50`: change the code of broker, store and inbox, and see whether the simulation
alone notices.

Each mutant has one change: a comparison, an operator, a number, a negated condition or a statement
left out.  Chosen at random by `--seed`, it is played with the first seeds of the simulation until
one fails.  What no seed notices is listed: either the simulation lacks a fault or a state there, or
the change means the same, or it only concerns what the simulation does not do (rights, listings,
retention, another release's data).
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutate-sim"
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
LIMIT_S = 600


def places(tree: ast.Module) -> Iterator[tuple[int, int]]:
    """Yield each possible change: the number of a node, and for a block the statement in it."""
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
            yield number, 0
        elif isinstance(node, ast.If | ast.While):
            yield number, -1
        body = node.body if isinstance(getattr(node, "body", None), list) else []
        for place, statement in enumerate(body):
            if isinstance(statement, ast.Expr) and not isinstance(statement.value, ast.Constant):
                yield number, place + 1


def changed(source: str, number: int, place: int) -> tuple[str, str]:
    """Return the source with that change, and the change in words."""
    tree = ast.parse(source)
    node = [*ast.walk(tree)][number]
    before = ast.unparse(node).splitlines()[0] if isinstance(node, ast.expr) else ""
    if place > 0:
        statement = node.body[place - 1]  # type: ignore[attr-defined]
        node.body[place - 1] = ast.copy_location(ast.Pass(), statement)  # type: ignore[attr-defined]
        told = f"line {statement.lineno}: left out: {ast.unparse(statement).splitlines()[0]}"
        return ast.unparse(tree), told
    if place < 0:
        assert isinstance(node, ast.If | ast.While)
        told = f"line {node.lineno}: negated: {ast.unparse(node.test)}"
        node.test = ast.UnaryOp(ast.Not(), node.test)
        return ast.unparse(ast.fix_missing_locations(tree)), told
    if isinstance(node, ast.Compare):
        node.ops[0] = _SWAPPED[type(node.ops[0])]()  # type: ignore[assignment]
    elif isinstance(node, ast.BinOp | ast.BoolOp):
        node.op = _SWAPPED[type(node.op)]()  # type: ignore[assignment]
    elif isinstance(node, ast.Constant):
        node.value = int(node.value) + 1  # type: ignore[arg-type]
    told = f"line {node.lineno}: {before} -> {ast.unparse(node).splitlines()[0]}"  # type: ignore[attr-defined]
    return ast.unparse(tree), told


def noticed(seeds: int) -> str:
    """Play the simulation in the copy; return what noticed the change, or nothing."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "no:randomly",
        "-p",
        "no:cacheprovider",
    ]
    command += ["--tb=line", "tests/sim/test_sim.py", "-k", "promised"]
    environment = dict(os.environ, CIPHERBOX_SEEDS=f"0:{seeds}", PYTHONPATH=str(COPY))
    try:
        done = subprocess.run(
            command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return "it does not end"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    return lines[0] if lines else "it fails"


def main() -> None:
    """Change, play, and print what survived."""
    options = argparse.ArgumentParser(description="Mutants against the simulation alone.")
    options.add_argument("--mutants", type=int, default=50)
    options.add_argument("--seeds", type=int, default=20, help="of the simulation, for each mutant")
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
    assert not noticed(2), "the simulation fails without any change"
    survivors = []
    for count, (file, number, place) in enumerate(
        random.Random(chosen.seed).sample(every, chosen.mutants), 1
    ):
        original = (ROOT / "cipherbox" / file).read_text("utf-8")
        source, told = changed(original, number, place)
        (COPY / "cipherbox" / file).write_text(source, "utf-8")
        why = noticed(chosen.seeds)
        (COPY / "cipherbox" / file).write_text(original, "utf-8")
        print(f"{count:3} {'noticed ' if why else 'SURVIVED'} {file} {told}", flush=True)
        if not why:
            survivors.append(f"{file} {told}")
    print(f"{chosen.mutants} mutants of {len(every)} possible, {len(survivors)} survived:")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
