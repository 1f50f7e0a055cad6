"""A client on a system that has nothing of Unix: joins, sends, receives, holds its lock, runs
its agent.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import cipherbox

from .conftest import ENVIRONMENT, LIMIT_S, Hq, shell

ROOT = Path(__file__).resolve().parent.parent.parent
PROGRAM = [sys.executable, "-m", "tests.portable.elsewhere"]


def elsewhere(*arguments: str, home: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*PROGRAM, "--home", str(home), *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
        cwd=ROOT,
    )
    assert "Internal error" not in done.stderr, done.stderr
    return done


def succeeds(*arguments: str, home: Path, stdin: str = "") -> str:
    done = elsewhere(*arguments, home=home, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_is_elsewhere(tmp_path: Path) -> None:
    """The stand-in really takes away what it says, and what cannot be asked for is not there."""
    program = (
        "from tests.portable.elsewhere import leave_unix\nleave_unix()\n"
        "import os, signal, socket, sys\nfrom cipherbox import portable\n"
        "found = []\n"
        "for name in ('fcntl', 'pwd', 'resource', 'termios'):\n"
        "    try: __import__(name); found.append(name)\n"
        "    except ModuleNotFoundError: pass\n"
        "found += [n for n in ('geteuid', 'fchmod', 'uname', 'O_NOFOLLOW') if hasattr(os, n)]\n"
        "found += [n for n in ('SIGKILL', 'SIGHUP') if hasattr(signal, n)]\n"
        "found += ['AF_UNIX'] if hasattr(socket, 'AF_UNIX') else []\n"
        "print(portable.WINDOWS, found)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.stdout.strip() == "True []", done.stderr


def test_every_module_of_a_client_can_be_imported() -> None:
    program = (
        "from tests.portable.elsewhere import leave_unix\nleave_unix()\n"
        "import importlib, pkgutil, cipherbox\n"
        "names = [m.name for m in pkgutil.walk_packages(cipherbox.__path__, 'cipherbox.')]\n"
        "hq = ('cipherbox.server', 'cipherbox.store', 'cipherbox.__main__')\n"
        "names = [n for n in names if not n.startswith(hq)]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 100


def test_a_client_without_anything_of_unix(hq: Hq, tmp_path: Path) -> None:
    lab, center, run = tmp_path / "FL-LAB", tmp_path / "CA-RC", tmp_path / "run"
    run.mkdir()
    (run / "plate 1.csv").write_bytes(b"well,value\n" * 2000)
    tokens = {home: shell("enroll", home.name, home=hq.admin).out for home in (lab, center)}
    succeeds("join", home=center, stdin=tokens[center])
    looks = ["version", "status", "outbox list", "inbox list", "keys list", "config show"]
    shown = succeeds(
        *f"join && --home {lab} send --to CA-RC".split(),
        "Sample 17 is ready",
        *f"&& --home {lab} send --to CA-RC --compress --file {run}".split(),
        *(word for look in looks for word in f"&& --home {lab} {look}".split()),
        home=lab,
        stdin=tokens[lab],
    )
    succeeds("fetch", home=center)
    lines = [
        json.loads(x)
        for x in (center / "data" / "received_messages.jsonl").read_text("utf-8").splitlines()
    ]
    assert any("Sample 17 is ready" in json.dumps(line) for line in lines)
    received = list((center / "incoming").rglob("plate 1.csv"))
    assert [path.read_bytes() for path in received] == [b"well,value\n" * 2000]
    assert f"CipherBox {cipherbox.__version__}" in shown
    assert "Sample 17 is ready" in shown or "CA-RC" in shown
    assert "[client]" in shown


def test_the_lock_and_the_agent_without_anything_of_unix(hq: Hq, tmp_path: Path) -> None:
    home = tmp_path / "FL-LAB"
    token = shell("enroll", "FL-LAB", home=hq.admin)
    assert elsewhere("join", home=home, stdin=token.out).returncode == 0
    with subprocess.Popen(
        [*PROGRAM, "--home", str(home), "agent"],
        env=ENVIRONMENT,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as agent:
        try:
            assert agent.stderr is not None
            assert "Watching" in agent.stderr.readline()
            second = elsewhere("receive", home=home)
            assert second.returncode == 6
            assert "in use" in second.stderr
        finally:
            agent.terminate()
            assert agent.wait(LIMIT_S) == 0
