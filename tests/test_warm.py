"""A warm start is as a real one for whoever started it and for what runs."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.conftest import WARM

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "COLD" in os.environ, reason="every start is a real one"
)
ENVIRONMENT = {
    k: v for k, v in os.environ.items() if k == "PATH" or k.startswith(warm.AT_START)
} | warm.UTF8
PROBE = """
import gc, json, os, resource, signal, sys, threading
mask = os.umask(0)
os.umask(mask)
files = {n: [f.encoding, f.errors, f.line_buffering, f.isatty(), f.name, f.mode, f.newlines,
             f.fileno()]
         for n, f in (("in", sys.__stdin__), ("out", sys.__stdout__), ("err", sys.__stderr__))}
print(json.dumps({
    "files": files, "kinds": [str(type(f)) for f in (sys.stdin, sys.stdout, sys.stderr)],
    "environment": dict(os.environ), "directory": os.getcwd(), "umask": mask,
    "read": sys.stdin.read(), "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path,
    "flags": list(sys.flags), "main": __name__,
    "open": sorted(n for n in range(100) if os.path.exists(f"/proc/self/fd/{n}")),
    "signals": {n.name: str(signal.getsignal(n)).partition(" at 0x")[0] for n in signal.Signals},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "threads": len(threading.enumerate()),
    "limits": [resource.getrlimit(n) for n in range(16)],
    "parent": os.getppid(), "leader": os.getsid(0) == os.getpid(),
    "group": os.getpgid(0) == os.getpid(),
    "seen": open("/proc/self/cmdline").read().rstrip(chr(0)), "gc": gc.isenabled(),
}))
sys.stdout.flush()
print("and this", file=sys.stderr)
if len(sys.argv) > 1 and sys.argv[1].isdigit():
    sys.exit(int(sys.argv[1]))
if "signal" in sys.argv:
    os.kill(os.getpid(), 9)
if "raise" in sys.argv:
    raise RuntimeError("no")
"""


@pytest.fixture
def probe(tmp_path: Path) -> list[str]:
    (tmp_path / "probe.py").write_text(PROBE)
    return [*warm.PROGRAM, "python", str(tmp_path / "probe.py")]


def started(
    monkeypatch: pytest.MonkeyPatch, command: list[str], forked: bool, **options: Any
) -> list[Any]:
    """How it ended, and what it said."""
    with monkeypatch.context() as patch:
        if not forked:
            patch.setattr(subprocess.Popen, "_execute_child", warm.REALLY)
        options = {"env": {**ENVIRONMENT, "A": "ä"}, "input": "given\n", **options}
        began = WARM.forks
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=False, **options
        )
        assert WARM.forks - began == int(forked)
        return [done.returncode, json.loads(done.stdout), done.stderr]


@pytest.mark.parametrize("argument", ["", "0", "7", "255", "signal", "raise"])
@pytest.mark.parametrize("new_session", [False, True])
def test_what_runs_finds_what_a_new_python_finds(
    probe: list[str],
    argument: str,
    new_session: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"cwd": tmp_path, "start_new_session": new_session}
    real, forked = (
        started(monkeypatch, [*probe, argument], one, **options) for one in (False, True)
    )
    assert forked == real
    assert forked[1]["parent"] == os.getpid()


def test_a_terminal_is_its_own(probe: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for forked in (False, True):
        master, slave = pty.openpty()
        with monkeypatch.context() as patch:
            if not forked:
                patch.setattr(subprocess.Popen, "_execute_child", warm.REALLY)
            process = subprocess.Popen(
                [*warm.PROGRAM, "chat", "--help"],
                stdin=slave,
                stdout=slave,
                stderr=slave,
                start_new_session=True,
                preexec_fn=warm.own_terminal,
                env=ENVIRONMENT,
            )
        os.close(slave)
        data = b""
        try:
            while more := os.read(master, 4096):
                data += more
        except OSError:
            pass
        os.close(master)
        seen.append((process.wait(300), data))
    assert seen[0] == seen[1]
    assert seen[0][0] == 0


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGSTOP])
def test_it_takes_signals_as_a_child(
    tmp_path: Path, sent: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    if signal.getsignal(sent) is signal.SIG_IGN:
        pytest.skip(f"this run ignores {sent.name}, as does what it starts")
    (tmp_path / "waits.py").write_text(
        "print('here', flush=True)\nimport threading\nthreading.Event().wait()\n"
    )
    ends = []
    for forked in (False, True):
        with monkeypatch.context() as patch:
            if not forked:
                patch.setattr(subprocess.Popen, "_execute_child", warm.REALLY)
            process = subprocess.Popen(
                [*warm.PROGRAM, "python", str(tmp_path / "waits.py")],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"here\n"
            process.send_signal(sent)
            if sent == signal.SIGSTOP:
                assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
                process.kill()
            try:
                ends.append((process.wait(300), process.communicate()[1]))
            finally:
                process.kill()
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "options",
    [
        {"env": {**os.environ, "LANG": "xx_XX"}},
        {"env": {**os.environ, "PYTHONIOENCODING": "latin-1"}},
        {"umask": 0o77},
        {"preexec_fn": lambda: None},
        {"close_fds": False},
        {"executable": sys.executable},
    ],
)
def test_what_a_fork_could_not_give_is_started_for_real(options: dict[str, Any]) -> None:
    before = WARM.forks
    done = subprocess.run(
        [*warm.PROGRAM, "version"], capture_output=True, check=False, timeout=300, **options
    )
    assert done.returncode == 0
    assert WARM.forks == before


def test_a_directory_that_is_not_there_is_an_error_of_the_start(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run([*warm.PROGRAM, "version"], cwd=tmp_path / "none", check=False)
