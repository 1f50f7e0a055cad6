"""`make mutate [MINUTES=10] [MODULES="envelope.ids wire"]`: change the code; see which test fails.

One piece of the code is changed at a time (`tests/mutations.py`), and the tests that reach the
changed line run, the fastest first.  A change after which all of them pass has survived: a test is
missing, the line is not needed, or the change means the same.  What means the same stands in
`tests/equivalent.toml` with the reason and is not tried again.  Without MODULES the four layers
that compute are taken: broker, wire, envelope, sealing; each module gets its turn, and SEED=1 tries
its changes in another order.

1. The tests of these layers run once in this process, and coverage notes which test reaches a line.
2. Each change is made in a fork of it: the functions get their new code, and nothing is imported,
   collected or started again.  A change costs what its killing test costs: milliseconds.
3. What runs while modules are imported has run by then.  A change there that survives is tried once
   more in a process of its own, in which the module is changed before it is imported; so is a
   change of a closure that adds or removes a free variable.
4. Verdicts are kept in `build/mutate.json`: a change that was killed is not tried again while its
   file stays the same; survivors are tried first.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib.machinery
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from types import CodeType, FunctionType

import attrs
import coverage
import pytest
from _pytest.runner import runtestprotocol

from tests.mutations import Mutation, mutations_of, source

ROOT = Path(__file__).resolve().parent.parent
CODE = ROOT / "cipherbox"
TESTS = {  # where the tests of a layer are
    "broker": ("broker",),
    "wire": ("wire",),
    "envelope": ("envelope", "sealing"),
    "sealing": ("sealing",),
}
LAYERS = tuple(TESTS)
EQUIVALENT = ROOT / "tests" / "equivalent.toml"
VERDICTS = ROOT / "build" / "mutate.json"
OPTIONS = ("-q", "-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist")
KILLED, SURVIVED, ENDLESS, UNREACHED = "killed", "survived", "endless", "unreached"
CPU_S, WALL_S = 5, 300  # what a test may take beside what it usually takes: endless loops
MOST_MEMORY = 8 << 30  # or a change could take all of the machine's


@attrs.frozen
class Equivalent:
    """A change that means the same, and why."""

    module: str
    line: str
    change: str
    reason: str


def module_of(path: Path) -> str:
    """Return the module's name below `cipherbox`."""
    return ".".join(path.relative_to(CODE).with_suffix("").parts)


def mutations(modules: list[str]) -> dict[str, list[Mutation]]:
    """Return every change of these modules and packages, by module."""
    paths: set[Path] = set()
    for name in modules:
        path = CODE / name.replace(".", "/")
        paths |= set(path.rglob("*.py")) if path.is_dir() else {path.with_suffix(".py")}
    return {module_of(path): mutations_of(path) for path in sorted(paths)}


def equivalents() -> set[Equivalent]:
    """Return the changes that are known to mean the same."""
    rows = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))["equivalent"]
    return {Equivalent(**row) for row in rows}


def key(one: Mutation) -> str:
    """Return a name that changes with the file."""
    digest = hashlib.sha256(source(one.path)).hexdigest()[:16]
    return f"{module_of(one.path)} {digest} {one.start} {one.change}"


# -- one change, in a fork or in a process of its own ----------------------------------------------


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)


def change(one: Mutation, functions: dict[tuple[str, str], list[FunctionType]]) -> bool:
    """Give the live functions their new code; return False if that cannot be done."""
    new = compile(one.mutated(), str(one.path), "exec", dont_inherit=True)
    changed = False
    for code in _codes(new):
        name = code.co_qualname
        if name == one.function or name.startswith(f"{one.function}.<locals>."):
            for function in functions.get((str(one.path), name), []):
                if function.__code__.co_firstlineno == code.co_firstlineno:
                    try:
                        function.__code__ = code
                    except ValueError:  # a closure with other free variables
                        return False
                    changed = True
    return changed


def _limit(test_s: float) -> None:
    """End this process when its next test takes much longer than it usually does."""
    most = int(time.process_time() + CPU_S + 5 * test_s) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (most, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    signal.alarm(WALL_S + 10 * int(test_s))


def cold(one: Mutation) -> str:
    """Return the verdict of the module's tests in a new process, changed before it is imported."""
    layer = module_of(one.path).split(".")[0]
    command = [sys.executable, "-m", "tests.mutate", "--cold", str(one.path), f"tests/{layer}"]
    done = subprocess.run(command, input=one.mutated(), cwd=ROOT, capture_output=True, check=False)
    return SURVIVED if done.returncode == 0 else KILLED


def run_cold(path: str, *tests: str) -> int:
    """Run tests with a module whose code comes from standard input; return pytest's exit code."""
    load, raw = importlib.machinery.SourceFileLoader.get_code, sys.stdin.buffer.read()

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        if self.path != path:
            return load(self, name)
        return compile(raw, path, "exec", dont_inherit=True)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    _limit(60)
    return int(pytest.main([*OPTIONS, "-x", *tests]))


# -- all of them, in the process that has run the tests once ---------------------------------------


class Runner:
    """A pytest plugin: runs the tests once, and then what was chosen, in forks."""

    def __init__(self, chosen: list[Mutation], minutes: float, measured: coverage.Coverage) -> None:
        self._chosen, self._ends, self._coverage = chosen, minutes * 60, measured
        self._took: dict[str, float] = defaultdict(float)
        self._failed: set[str] = set()
        self.verdicts: dict[Mutation, str] = {}

    def pytest_configure(self) -> None:
        from hypothesis import HealthCheck, Phase, settings  # not before pytest has seen it

        settings.register_profile(
            "mutate",
            database=None,
            derandomize=True,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.explicit, Phase.generate],  # what fails need not shrink
        )
        settings.load_profile("mutate")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._took[report.nodeid] += report.duration
        if report.failed:
            self._failed.add(report.nodeid)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self._coverage.switch_context(item.nodeid)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        done = yield
        self._coverage.stop()
        if self._failed:
            print(
                f"\nleft out, since they fail without a change: {', '.join(sorted(self._failed))}"
            )
        self._try_all(session)
        return done

    def _try_all(self, session: pytest.Session) -> None:
        items = {item.nodeid: item for item in session.items if item.nodeid not in self._failed}
        data, began = self._coverage.get_data(), time.monotonic()
        functions: dict[tuple[str, str], list[FunctionType]] = defaultdict(list)
        for one in gc.get_objects():
            if isinstance(one, FunctionType) and one.__code__.co_filename.startswith(str(CODE)):
                functions[one.__code__.co_filename, one.__code__.co_qualname].append(one)
        cached = [one for one in gc.get_objects() if isinstance(one, functools._lru_cache_wrapper)]
        for one in cached:
            if str(one.__module__).startswith(("cipherbox.", "tests.")):
                one.cache_clear()
        gc.collect()
        gc.freeze()  # what is never freed is not copied into the forks
        for number, mutation in enumerate(self._chosen):
            if time.monotonic() - began > self._ends:
                print(f"\n{len(self._chosen) - number} changes were not tried", flush=True)
                return
            reached = set(data.contexts_by_lineno(str(mutation.path)).get(mutation.line, []))
            tests = sorted((items[name] for name in reached & items.keys()), key=self._duration)
            verdict = self._try(mutation, tests, functions) if tests else UNREACHED
            # run on import, or a closure that cannot be changed while it lives
            if (verdict == SURVIVED and "" in reached) or (verdict == UNREACHED and reached):
                verdict = cold(mutation)
            self.verdicts[mutation] = verdict
            if number % 50 == 0:
                save(self.verdicts)
            if verdict in (KILLED, ENDLESS):
                print(".", end="", flush=True)
            else:
                print(f"\n{verdict}\n{show(mutation)}", flush=True)

    def _duration(self, item: pytest.Item) -> float:
        return self._took[item.nodeid]

    def _try(
        self,
        mutation: Mutation,
        tests: list[pytest.Item],
        functions: dict[tuple[str, str], list[FunctionType]],
    ) -> str:
        sys.stdout.flush()
        child = os.fork()
        if child:
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            return {0: SURVIVED, 1: KILLED, 2: UNREACHED}.get(status, ENDLESS)
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(null, descriptor)
            if not change(mutation, functions):
                os._exit(2)
            os._exit(any(self._fails(item) for item in tests))
        except BaseException:
            os._exit(1)

    def _fails(self, item: pytest.Item) -> bool:
        _limit(self._duration(item))
        return any(report.failed for report in runtestprotocol(item, log=False))


def choose(modules: list[str], seed: int, known: dict[str, str]) -> list[Mutation]:
    """Return what is to be tried: survivors of before, then the modules in turn."""
    skipped = {(one.module, one.line, one.change) for one in equivalents()}
    turns: list[list[Mutation]] = []
    first: list[Mutation] = []
    for module, found in mutations(modules).items():
        fresh = [one for one in found if (module, one.text, one.change) not in skipped]
        first += [one for one in fresh if known.get(key(one)) == SURVIVED]
        turns.append([one for one in fresh if key(one) not in known])
        random.Random(f"{seed} {module}").shuffle(turns[-1])
    return first + [one for turn in zip_longest(*turns) for one in turn if one is not None]


def load() -> dict[str, str]:
    """Return the verdicts of before."""
    found: dict[str, str] = json.loads(VERDICTS.read_text()) if VERDICTS.exists() else {}
    return found


def save(verdicts: dict[Mutation, str]) -> None:
    """Add verdicts to those of before."""
    VERDICTS.parent.mkdir(exist_ok=True)
    VERDICTS.write_text(json.dumps(load() | {key(one): verdicts[one] for one in verdicts}))


def stale() -> list[Equivalent]:
    """Return the rows about equivalent changes that the code no longer has."""
    found = {
        (module, one.text, one.change)
        for module, many in mutations(list(LAYERS)).items()
        for one in many
    }
    return [one for one in equivalents() if (one.module, one.line, one.change) not in found]


def show(one: Mutation) -> str:
    """Return a row as in `tests/equivalent.toml`, to be dealt with."""
    place = f"cipherbox/{one.path.relative_to(CODE)}:{one.line}"
    return (
        f"# {place} in {one.function}\n[[equivalent]]\nmodule = {json.dumps(module_of(one.path))}\n"
        f"line = {json.dumps(one.text)}\nchange = {json.dumps(one.change)}\n"
    )


def main() -> None:
    """Change, test, and print what survived."""
    if sys.argv[1:2] == ["--cold"]:
        raise SystemExit(run_cold(*sys.argv[2:]))
    options = argparse.ArgumentParser(description="Mutation tests of the layers that compute.")
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("modules", nargs="*", default=LAYERS, help="such as envelope.ids wire")
    chosen = options.parse_args()
    for row in stale():
        print(f"no longer in the code: {row.module}: {row.line}: {row.change}")
    measured = coverage.Coverage(
        data_file=None, config_file=False, include=[f"{CODE / layer}/*" for layer in LAYERS]
    )
    runner = Runner(choose(list(chosen.modules), chosen.seed, load()), chosen.minutes, measured)
    measured.start()
    layers = {name.split(".")[0] for name in chosen.modules}
    tests = sorted({f"tests/{name}" for layer in layers for name in TESTS[layer]})
    pytest.main([*OPTIONS, *tests], plugins=[runner])
    verdicts = runner.verdicts
    save(verdicts)
    print()
    counts = {
        kind: sum(verdict == kind for verdict in verdicts.values())
        for kind in (KILLED, ENDLESS, SURVIVED, UNREACHED)
    }
    print(f"{len(verdicts)} changes:", ", ".join(f"{n} {kind}" for kind, n in counts.items()))


if __name__ == "__main__":
    main()
