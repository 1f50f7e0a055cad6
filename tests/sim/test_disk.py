"""The simulated disks do what they say: what was synced survives, what was not may not."""

import os
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from cipherbox import portable
from tests.sim import disk as module
from tests.sim.disk import Disk, Disks

pytestmark = pytest.mark.skipif(bool(module.why_not()), reason=module.why_not() or "-")


@pytest.fixture
def disks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    disks = Disks()
    (tmp_path / "node").mkdir()
    with disks.watched(monkeypatch):
        yield disks


def opened(path: Path, synchronous: str = "FULL") -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute(f"PRAGMA synchronous = {synchronous}")
    db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER PRIMARY KEY, x BLOB)")
    return db


def rows_after(disk: Disk, seed: int, power: bool = True) -> int:
    disk.restore(disk.survivors(random.Random(seed), power))
    with closing(sqlite3.connect(disk.root / "db")) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return db.execute("SELECT count(*) FROM t").fetchone()[0]


@pytest.mark.parametrize("seed", range(5))
def test_a_synced_commit_survives_a_power_cut(tmp_path: Path, disks: Disks, seed: int) -> None:
    disk = disks.add(tmp_path / "node")
    db = opened(disk.root / "db")
    for n in range(20):
        db.execute("INSERT INTO t VALUES (?, ?)", (n, bytes(3000)))
    left = disk.survivors(random.Random(seed), power=True)
    db.close()
    disk.restore(left)
    assert rows_after(disk, seed) == 20


def test_an_unsynced_commit_may_be_lost_and_survives_a_kill(tmp_path: Path, disks: Disks) -> None:
    disk = disks.add(tmp_path / "node")
    db = opened(disk.root / "db")
    db.execute("PRAGMA synchronous = OFF")
    for n in range(20):
        db.execute("INSERT INTO t VALUES (?, ?)", (n, bytes(3000)))
    killed = disk.survivors(random.Random(0), power=False)
    cut = [disk.survivors(random.Random(seed), power=True) for seed in range(20)]
    db.close()
    counts = set()
    for left in cut:
        disk.restore(left)
        counts.add(rows_after(disk, 0, power=False))
    assert min(counts) < 20
    disk.restore(killed)
    assert rows_after(disk, 0, power=False) == 20


def test_a_disk_that_is_full_or_fails_says_so(tmp_path: Path, disks: Disks) -> None:
    disk = disks.add(tmp_path / "node")
    with closing(opened(disk.root / "db")) as db:
        disk.full = True
        with pytest.raises(sqlite3.OperationalError, match="full"):
            db.execute("INSERT INTO t VALUES (1, ?)", (bytes(30_000),))
        with pytest.raises(OSError, match="No space"):
            portable.write_private(disk.root / "file", b"x")
        disk.full = False
        for after in range(30):
            disk.fail(after, 1)
            try:
                db.execute("INSERT INTO t VALUES (?, ?)", (after + 2, bytes(3000)))
            except sqlite3.OperationalError:
                break
        else:
            pytest.fail("no call failed")


def test_a_file_that_was_written_atomically_is_old_or_new(tmp_path: Path, disks: Disks) -> None:
    disk = disks.add(tmp_path / "node")
    portable.write_private(disk.root / "file", b"old")
    left = [disk.survivors(random.Random(seed), power=True) for seed in range(10)]
    assert {one["file"] for one in left} == {b"old"}
    (disk.root / "file").write_bytes(b"newer")
    left = [disk.survivors(random.Random(seed), power=True) for seed in range(20)]
    assert {one["file"] for one in left} >= {b"old", b"newer"}


def test_a_name_that_was_not_synced_may_be_gone(tmp_path: Path, disks: Disks) -> None:
    disk = disks.add(tmp_path / "node")
    (disk.root / "new").write_bytes(b"x")
    portable.sync_file(disk.root / "new")
    assert {"new" in disk.survivors(random.Random(seed), True) for seed in range(20)} == {
        True,
        False,
    }
    portable.sync_directory(disk.root)
    assert all(disk.survivors(random.Random(seed), True)["new"] == b"x" for seed in range(20))


def test_a_node_stops_in_the_middle_of_a_step(tmp_path: Path, disks: Disks) -> None:
    """What it does to the end of that step is undone; a file that is still there is the same."""
    disk = disks.add(tmp_path / "node")
    (disk.root / "file").touch()
    portable.sync_file(disk.root / "file")
    inode = (disk.root / "file").stat().st_ino
    left: list[dict[str, bytes]] = []
    disk.stop = lambda: left.append(disk.survivors(random.Random(0), power=False))
    disk.stops_after = 3  # opening it, and two writes
    fd = os.open(disk.root / "file", os.O_WRONLY)
    for _ in range(5):
        os.write(fd, b"x")
    os.close(fd)
    assert [one["file"] for one in left] == [b"xx"]
    disk.restore(left[0])
    assert (disk.root / "file").read_bytes() == b"xx"
    assert (disk.root / "file").stat().st_ino == inode
