"""Commands under SIGKILL, at one instant after the other: before each change of a directory, each
sync of a file and each commit of a database, and while a new file is still empty.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.warm import FORKED

from .conftest import ENVIRONMENT, LIMIT_S, Shown

# The process kills itself at the Nth of them.
DYING = """
import builtins, io, os, signal, sqlite3, sys
from functools import partial
from cipherbox.store.postgres.driver import PostgresConnection
left = int(sys.argv[1])
def instant():
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
def counted(real):
    def call(*a, **k):
        instant()
        return real(*a, **k)
    return call
for name in ("replace", "rename", "link", "symlink", "mkdir", "rmdir", "unlink", "truncate",
             "fsync", "fchmod"):
    setattr(os, name, counted(getattr(os, name)))
def creating(real):
    def call(name, *a, **k):
        new = isinstance(name, (str, os.PathLike)) and not os.path.lexists(name)
        file = real(name, *a, **k)
        if new and os.path.lexists(name):
            instant()
        return file
    return call
for module in (builtins, io, os):
    module.open = creating(module.open)
class Counted(sqlite3.Connection):
    def execute(self, statement, *values):
        if statement == "COMMIT":
            instant()
        return super().execute(statement, *values)
sqlite3.connect = partial(sqlite3.connect, factory=Counted)
PostgresConnection.end_transaction = counted(PostgresConnection.end_transaction)
from cipherbox.cli.main import main
main(sys.argv[2:])
"""
_NEW = re.compile(r"[0-9a-f]{8,}|\d+")  # in names: numbers, ids, times


def killed_at(step: int, *words: str, home: Path, stdin: str = "", first: str = "") -> Shown:
    """Run a command that kills itself at its ``step``; its code is -9, or that of its end.
    ``first`` is Python that runs before it.
    """
    done = subprocess.run(
        [sys.executable, "-c", FORKED + first + DYING, str(step), "--home", str(home), *words],
        input=stdin.encode(),
        capture_output=True,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
        start_new_session=True,
    )
    return Shown(done.returncode, done.stdout.decode(), done.stderr.decode())


def names(top: Path) -> set[str]:
    """What is below a directory, with its mode; two runs differ in numbers alone."""
    return {
        f"{_NEW.sub('#', path.relative_to(top).as_posix())} {path.lstat().st_mode & 0o7777:o}"
        for path in top.rglob("*")
        if not path.name.endswith(("-wal", "-shm", "lock"))  # of those that run, or were killed
    }


def in_the_open(top: Path, secrets: set[bytes]) -> Iterator[Path]:
    """Yield the files with a secret in them that others may read, whoever may enter above them."""
    for path in top.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o077:
            data = path.read_bytes()
            if b"PRIVATE KEY" in data or any(secret in data for secret in secrets):
                yield path


def secrets_of(top: Path) -> set[bytes]:
    """What HQ and clients must keep to themselves: the keys that others are encrypted under."""
    keys = ("service.key", "database.key", "local.key", "ca.key")
    found = {path.read_bytes() for path in top.rglob("*.key") if path.name in keys}
    assert found
    return found
