"""A database that several parts of one process, and several processes, have open at once."""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from cipherbox.client import local_database
from cipherbox.client.local_database import commits_in_log, lost_commits, open_database, translated
from cipherbox.errors import Damaged
from cipherbox.portable import WINDOWS

STEPS = ("CREATE TABLE numbers (n INTEGER);\n",)
LOOK = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1])
print(*(n for (n,) in db.execute("SELECT n FROM numbers")))
db.close()
"""


def look(path: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(path)], capture_output=True, check=True, timeout=300
    )
    return done.stdout.decode().strip()


def test_commits_stay_though_another_process_ends_between(tmp_path: Path) -> None:
    """Opened twice here: the locks of the first must outlast that, or the other takes the log
    for nobody's.
    """
    path = tmp_path / "x.sqlite3"
    first = open_database(path, STEPS)
    second = open_database(path, STEPS)
    assert look(path) == ""
    first.execute("INSERT INTO numbers VALUES (1)")
    second.execute("INSERT INTO numbers VALUES (2)")
    assert look(path) == "1 2"
    if not WINDOWS:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    first.close()
    second.close()


def test_opening_what_is_up_to_date_writes_nothing(tmp_path: Path) -> None:
    """A commit would sync at every start of a client, once for each of its databases."""
    path = tmp_path / "x.sqlite3"
    open_database(path, STEPS).close()
    db = open_database(path, STEPS)
    assert path.with_name(f"{path.name}-wal").stat().st_size == 0
    db.close()


def test_a_damaged_schema_that_is_no_text_is_named(tmp_path: Path) -> None:
    """SQLite quotes what it cannot parse, and Python cannot decode that."""
    path = tmp_path / "x.sqlite3"
    open_database(path, STEPS).close()
    path.write_bytes(path.read_bytes().replace(b"numbers (n", b"numbers \xa0n"))
    with pytest.raises(Damaged, match=r"x\.sqlite3 is damaged"):
        open_database(path, STEPS)


def test_a_damaged_text_is_named_and_not_quoted(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    db = open_database(path, STEPS)
    with pytest.raises(Damaged, match=r"a text is not UTF-8") as raised, translated(path):
        db.execute("SELECT CAST(x'7365637265e4' AS TEXT)").fetchall()
    assert "secre" not in str(raised.value)
    db.close()


def test_a_log_that_another_program_began_anew_has_lost_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.sqlite3"
    db = open_database(path, STEPS)
    for number in range(5):
        db.execute("INSERT INTO numbers VALUES (?)", (number,))
    commits = commits_in_log(path)
    assert len(commits) >= 5
    assert lost_commits(db, path, commits) == ""
    db.execute("PRAGMA wal_checkpoint(RESTART)")
    db.execute("INSERT INTO numbers VALUES (6)")
    assert lost_commits(db, path, commits) == ""
    db.close()


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("steps", [STEPS, (*STEPS, "CREATE TABLE more (n INTEGER);\n")])
def test_a_loss_is_noticed_though_the_schema_is_written_again(
    tmp_path: Path, steps: tuple[str, ...], at: int
) -> None:
    """``at``: the first commit that the disk damaged. Before 0, nothing was in the database yet."""
    path = tmp_path / "x.sqlite3"
    log = path.with_name(f"{path.name}-wal")
    db = open_database(path, STEPS)
    for number in range(3):
        db.execute("INSERT INTO numbers VALUES (?)", (number,))
    commits = commits_in_log(path)
    database, content = path.read_bytes(), bytearray(log.read_bytes())
    db.close()
    content[32 + (commits[at] - 1) * (24 + 4096) + 1000] ^= 8
    path.write_bytes(database)  # as a kill leaves it
    log.write_bytes(content)
    said: list[str] = []
    open_database(path, steps, 1, said.append).close()
    (text,) = said
    assert f"lost its last {len(commits) - at} changes" in text
    open_database(path, steps, 1, said.append).close()
    assert len(said) == 1


LOCKED = """
import fcntl, sys
with open(sys.argv[1], "r+b") as index:
    fcntl.lockf(index, fcntl.LOCK_EX, 1, 121)  # as a checkpoint does: WAL_CKPT_LOCK of wal.c
    print(flush=True)
    sys.stdin.readline()
"""


@pytest.mark.skipif(WINDOWS, reason="locks of the index as on Unix")
def test_nothing_is_lost_while_another_process_makes_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.sqlite3"
    first = open_database(path, STEPS)
    first.execute("INSERT INTO numbers VALUES (1)")
    commits = commits_in_log(path)
    second = open_database(path, STEPS)
    with subprocess.Popen(
        [sys.executable, "-I", "-c", LOCKED, f"{path}-shm"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        assert second.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone() == (1, -1, -1)
        waits: list[float] = []

        class Tick:
            def wait(self, timeout: float) -> None:
                waits.append(timeout)
                if len(waits) == 2:
                    other.communicate(b"\n", 30)

        monkeypatch.setattr(local_database, "TICK", Tick())
        assert lost_commits(second, path, commits) == ""
        assert len(waits) == 2
    first.close()
    second.close()
