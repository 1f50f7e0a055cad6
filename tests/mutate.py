"""`make mutate [MINUTES=10] [MODULES="envelope.ids wire"]`: change the code, and see who notices.

mutmut changes one operator, constant or argument at a time in a copy of the tree and runs the tests
that reach it.  A change after which every test still passes has survived: a test is missing, the
line is not needed, or the change means the same.  Survivors are printed as differences, without
those that `tests/equivalent.toml` names with a reason.  Without MODULES the four layers that
compute are taken: broker, envelope, sealing, wire; what was tried before is not tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COPY = ROOT / "build" / "mutate"
EQUIVALENT = ROOT / "tests" / "equivalent.toml"
LAYERS = ("broker", "envelope", "sealing", "wire")
COPIED = ("cipherbox", "tests", "packaging", "systemd", "pyproject.toml")
ENDS_S = 20  # for mutmut to write down what it knows


def prepare(modules: list[str]) -> None:
    """Copy the tree and tell mutmut what to change and which tests to run."""
    COPY.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.rmtree(COPY / name, ignore_errors=True)
            shutil.copytree(ROOT / name, COPY / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, COPY / name)
    paths = [f"cipherbox/{module.replace('.', '/')}" for module in modules]
    only = [f"{path}/*" if (ROOT / path).is_dir() else f"{path}.py" for path in paths]
    tests = sorted({f"tests/{module.split('.')[0]}" for module in modules})
    with (COPY / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write(
            '\n[tool.mutmut]\nsource_paths = ["cipherbox"]\nalso_copy = ["packaging", "systemd"]\n'
            "do_not_mutate_patterns = ['^ *raise ', '^ *f?\"']\n"  # texts of errors
            'pytest_add_cli_args = ["-p", "no:randomly"]\n'
            f"only_mutate = {only}\npytest_add_cli_args_test_selection = {tests}\n"
        )


def mutmut(*arguments: str, seconds: float | None = None) -> str:
    """Run mutmut in the copy; return its output, or with a time limit let it print."""
    command = [sys.executable, "-m", "mutmut", *arguments]
    if seconds is None:
        return subprocess.run(command, cwd=COPY, capture_output=True, text=True, check=True).stdout
    with subprocess.Popen(command, cwd=COPY) as process:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDS_S)
            process.kill()
    return ""


def verdicts() -> dict[str, str]:
    """Return the verdict on each change that was tried."""
    rows = (
        line.strip().rpartition(": ") for line in mutmut("results", "--all", "true").splitlines()
    )
    return {name: verdict for name, _, verdict in rows if verdict not in ("", "not checked")}


def notices_anew(name: str) -> bool:
    """Tell whether a new process with all tests of the layer notices the change.

    mutmut forks a process that has imported everything, and runs the tests that called the changed
    function; code that runs at import, or that a table holds, would be the unchanged one.
    """
    layer = name.split(".")[1]
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:randomly", f"tests/{layer}"]
    environment = {**os.environ, "MUTANT_UNDER_TEST": name}
    run = subprocess.run(command, cwd=COPY / "mutants", env=environment, stdout=subprocess.DEVNULL)
    return run.returncode != 0


def equivalents() -> set[tuple[str, str, str]]:
    """Return the changes that are known to mean the same: module, line before and line after."""
    found = set()
    for row in tomllib.loads(EQUIVALENT.read_text("utf-8"))["equivalent"]:
        line, (old, new) = row["line"], row["change"].split(" -> ")
        for at in (match.start() for match in re.finditer(re.escape(old), line)):
            found.add((row["module"], line, line[:at] + new + line[at + len(old) :]))
    return found


def change_of(name: str, difference: str) -> tuple[str, str, str]:
    """Return the module of a survivor, and the line that it changes before and after."""
    sides = {line[:1]: line[1:].strip() for line in difference.splitlines()[2:]}
    module = name.removeprefix("cipherbox.").rpartition(".")[0]
    return module, sides.get("-", ""), sides.get("+", "")


def main() -> None:
    """Change, test, and print what survived."""
    options = argparse.ArgumentParser(description="Mutation tests of the layers that compute.")
    options.add_argument("--minutes", type=float, default=10)
    options.add_argument(
        "modules", nargs="*", default=LAYERS, help="for example: envelope.ids wire"
    )
    chosen = options.parse_args()
    if importlib.util.find_spec("mutmut") is None:
        raise SystemExit("mutmut is not installed; run: make mutate")
    prepare(list(chosen.modules))
    mutmut("run", seconds=chosen.minutes * 60)
    tried = verdicts()
    if not tried:
        raise SystemExit("nothing was tried: a test failed, or the time was too short; see above")
    survived = [name for name, verdict in tried.items() if verdict == "survived"]
    known, listed = equivalents(), 0
    for name in survived:
        difference = mutmut("show", name)
        if change_of(name, difference) in known or notices_anew(name):
            continue
        listed += 1
        print(difference)
    unreached = sum(verdict == "no tests" for verdict in tried.values())
    print(f"{len(tried)} changes: {listed} survived, {unreached} are reached by no test")


if __name__ == "__main__":
    main()
