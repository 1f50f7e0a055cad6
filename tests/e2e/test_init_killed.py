"""`init` under SIGKILL, at one step after the other: the next one makes a whole HQ, and takes
nothing else away.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cipherbox.harness.stage import free_port
from tests import soak
from tests.warm import FORKED

from .conftest import ENVIRONMENT, LIMIT_S, shell

# The process kills itself before its Nth change of a directory or sync of a file.
DYING = """
import os, signal, sys
left = int(sys.argv[1])
def counted(real):
    def call(*a, **k):
        global left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    return call
for name in ("replace", "mkdir", "fsync", "unlink"):
    setattr(os, name, counted(getattr(os, name)))
from cipherbox.cli.main import main
main(sys.argv[2:])
"""


def init_until(step: int, directory: Path, admin: Path, *options: str) -> bool:
    """Whether it was killed."""
    words = (
        "--home",
        str(admin),
        "init",
        str(directory),
        "--address",
        f"127.0.0.1:{free_port()}",
        *options,
    )
    done = subprocess.run(
        [sys.executable, "-c", FORKED + DYING, str(step), *words],
        capture_output=True,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode in (0, -9), done.stderr
    return done.returncode == -9


@soak.more
@pytest.mark.parametrize("first", range(1, 7))
def test_init_again(tmp_path: Path, first: int) -> None:
    directory, admin = tmp_path / "hq", tmp_path / "admin"
    killed, stride = 0, 6 if soak.ON else 36
    for step in range(first, 200, stride):
        directory.mkdir()
        (directory / "notes.txt").write_text("mine")
        if not init_until(step, directory, admin):
            break
        killed += 1
        whole = (directory / "cipherbox.toml").exists()
        again = shell("init", str(directory), "--address", f"127.0.0.1:{free_port()}", home=admin)
        assert (again.code, "already has an HQ" in again.err) == (
            (5, True) if whole else (0, False)
        ), again.err
        assert (directory / "notes.txt").read_text() == "mine"
        assert whole or not (directory / ".init-unfinished").exists()
        checked = shell("config", "check", str(directory), home=admin)
        assert checked.code == 0, checked.err
        assert (admin / "client.crt").exists()
        shutil.rmtree(directory)
        shutil.rmtree(admin)
    assert killed > 30 // stride


def test_a_home_that_was_joined_meanwhile_stays(tmp_path: Path) -> None:
    """Another client came into the home of an `init` that was killed: it is not taken for the
    admin's.
    """
    directory, admin, other = tmp_path / "hq", tmp_path / "admin", tmp_path / "other"
    made = shell("init", str(other), "--address", f"127.0.0.1:{free_port()}", home=admin)
    assert made.code == 0, made.err
    for step in range(2, 20):
        assert init_until(step, directory, tmp_path / "first")
        if (directory / "ca" / "root.crt").exists():
            break
        shutil.rmtree(directory)
    before = {path.name: path.read_bytes() for path in admin.iterdir() if path.is_file()}
    refused = shell("init", str(directory), home=admin)
    assert (refused.code, "already belongs to a client" in refused.err) == (5, True)
    assert {path.name: path.read_bytes() for path in admin.iterdir() if path.is_file()} == before
