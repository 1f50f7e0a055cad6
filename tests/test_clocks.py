"""One module asks the system for the time of day, and the page `clocks` names who uses it."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from cipherbox import clock
from cipherbox.cli.manual import manual_pages
from tests.test_layers import PACKAGE, modules, nodes_of

# of the logging library, whose records have its own time; and before the package can be imported
OWN_TIME = {"clock.py", "ops/flood.py", "ops/logs.py", "ops/unpack.py"}
SYSTEM = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow"}
SYSTEM |= {"datetime.today", "datetime.datetime.today", "date.today", "uuid.uuid1"}
# with fewer arguments these mean the time of day
MEANT = {"time.gmtime": 1, "time.localtime": 1, "time.ctime": 1, "time.strftime": 2}
# databases with a clock of their own: the lease and a standby's clock, what `doctor` compares, and
# columns of databases of 0.5.0 that get their first value
DATABASES = re.compile(r"clock_timestamp\(|\bnow\(\)|CURRENT_(DATE|TIME)|'now'")
OF_A_DATABASE = {
    "store/postgres/lease.py",
    "store/postgres/inspect.py",
    "client/inbox/schema.py",
    "client/inbox/transfers.py",
}
GIVEN = {"cipherbox.clock", "cipherbox.server.clock_guard", "cipherbox.client.hq_time"}


def asks_the_system(path: Path) -> bool:
    return any(
        (isinstance(n, ast.Attribute) and ast.unparse(n) in SYSTEM)
        or (isinstance(n, ast.Call) and len(n.args) < MEANT.get(ast.unparse(n.func), 0))
        for n in nodes_of(path)
    )


def asks_a_database(path: Path) -> bool:
    return any(
        isinstance(n, ast.Constant) and isinstance(n.value, str) and DATABASES.search(n.value)
        for n in nodes_of(path)
    )


def is_given_the_time(path: Path) -> bool:
    """It imports a clock, or is passed one, or a moment that one shows."""
    for node in nodes_of(path):
        if isinstance(node, ast.ImportFrom):
            if node.module in GIVEN or {f"{node.module}.{a.name}" for a in node.names} & GIVEN:
                return True
        elif isinstance(node, ast.arg) and node.arg == "now_ms":
            return True
        elif isinstance(node, ast.Attribute):
            of = ast.unparse(node.value)
            if node.attr in ("clock_ms", "_clock_ms") or (of == "state" and node.attr == "now"):
                return True
            if node.attr in ("now", "now_ms") and of.endswith(("clock", "_clock")):
                return True
    return False


def test_one_module_asks_the_system_for_the_time_of_day() -> None:
    found = {p.relative_to(PACKAGE).as_posix() for _, p in modules() if asks_the_system(p)}
    assert found == OWN_TIME


def test_no_statement_decides_by_a_databases_clock_but_the_lease() -> None:
    found = {p.relative_to(PACKAGE).as_posix() for _, p in modules() if asks_a_database(p)}
    found |= {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.sql")
        if DATABASES.search(re.sub(r"--.*", "", path.read_text()))
    }
    assert found == OF_A_DATABASE


def test_the_page_names_each_module_that_decides_by_the_time() -> None:
    page = manual_pages()["clocks"]
    section = page[page.index("## What decides by the time of day") :]
    named = re.findall(r"`([a-z_/]+\.py)`", section[: section.index("## A clock for tests")])
    known = {p.relative_to(PACKAGE).as_posix() for _, p in modules() if is_given_the_time(p)}
    assert set(named) - {"server/clock_guard.py", "client/hq_time.py"} == known - {
        "clock.py",
        "server/clock_guard.py",
        "client/hq_time.py",
    }
    twice = {name for name, count in Counter(named).items() if count > 1}
    assert twice <= {"server/clock_guard.py"}  # in the text, too


def test_a_module_that_is_missing_is_noticed(tmp_path: Path) -> None:
    for text in (
        "from cipherbox import clock",
        "from cipherbox.clock import now_ms",
        "def f(now_ms): ...",
        "self._clock_ms()",
        "self._trust.clock.now()",
        "state.now + 1",
    ):
        file = tmp_path / f"{abs(hash(text))}.py"
        file.write_text(text)
        assert is_given_the_time(file), text
    plain = tmp_path / "plain.py"
    plain.write_text("import trio\ntrio.current_time()\nself.now()")
    assert not is_given_the_time(plain)


def test_the_switch_moves_the_time_of_day_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shift"
    before, elapsed = clock.now_s(), clock.elapsed_s()
    monkeypatch.setattr(clock, "switch", str(file))
    assert abs(clock.now_s() - before) < 60  # there is no file yet
    file.write_text("34473600\n")
    assert abs(clock.now_s() - before - 34_473_600) < 60
    assert abs(clock.now_ms() / 1000 - clock.now().timestamp()) < 1
    assert abs(clock.elapsed_s() - elapsed) < 60
    file.write_text("-3600")
    assert abs(clock.now_s() - before + 3600) < 60
    file.write_text("half a nu")
    assert abs(clock.now_s() - before) < 60


def test_hq_and_doctor_report_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    from cipherbox.cli.doctor.hq import clock_findings
    from cipherbox.config.settings import ServerConfig

    monkeypatch.setattr(clock, "switch", "/some/file")
    found = [f.text for f in clock_findings(ServerConfig(Path("hq")), 0, {})]
    assert any(clock.SWITCH in text for text in found)


def test_a_process_is_given_the_switch_by_its_environment(tmp_path: Path) -> None:
    file = tmp_path / "shift"
    file.write_text("34473600")
    program = "from cipherbox import clock; print(clock.now_s() - __import__('time').time())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, clock.SWITCH: str(file)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert abs(float(done.stdout) - 34_473_600) < 60
