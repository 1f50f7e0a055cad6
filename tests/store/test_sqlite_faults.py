"""What the disk can do to the SQLite store: fail at any point, run full, be cut off, give back other bytes."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.errors import CipherBoxError, Damaged, DiskFull, StoreUnavailable
from cipherbox.store.files import Files
from cipherbox.store.spool import Spool
from cipherbox.store.sqlite import database, queries
from cipherbox.store.sqlite.store import DATABASE, RESERVE
from tests.store.faults import PLENTY, SMALL_RESERVE, FailingEnd, Faulty, opened, spool_names
from tests.store.suite import AT, acknowledged, incoming, published

LARGE = 100_000


def mixed(first: int) -> Changes:
    """A commit that does something of every kind; what stood before is `ground`."""
    changes = published(first, b"small", b"L" * LARGE, queue="new")
    changes.clients = [m.ClientRow("D", "client", AT)]
    changes.exchanges, changes.bindings, changes.grants = [("e2", 0)], [("e2", "new", "k")], [("D", "bind", "e2")]
    changes.dropped_bindings = [("e", "box.B", "k")]
    changes.replaced = [(1, incoming(1, b"R" * LARGE, generation=1))]
    changes.delivered = [m.Mark("box.B", 2, 3, AT, "B")]
    changes.acked, changes.finished = [m.Mark("box.B", 4, 5, AT, "B")], [4, 5]
    changes.dead = [m.Dead("box.B", 6, 6, AT, "expired", "")]
    changes.highest, changes.usage = {"A": incoming(first + 1).envelope_id}, {("A", "new"): 5, ("A", "box.B"): 0}
    changes.counters.append(m.Counters("box.B", 3, 9, 1, 7))
    changes.bindings_version = 9
    return changes


def ground() -> Changes:
    changes = published(1, b"one", b"two", b"three", b"4" * LARGE, b"five", b"six")
    changes.exchanges, changes.bindings, changes.usage = [("e", 0)], [("e", "box.B", "k")], {("A", "box.B"): 77}
    return changes


@pytest.mark.parametrize("call", ["write_synced", "sync_directory", "free_bytes"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreUnavailable)])
def test_a_file_that_fails_fails_the_commit_whole(
    tmp_path: Path, call: str, code: int, error: type[CipherBoxError]
) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(ground(), store.epoch)
    before, spooled = store.load(10), spool_names(tmp_path)
    files.fail = (call, code)
    with pytest.raises(error) as found:
        store.commit(mixed(7), store.epoch)
    assert found.value.retryable
    files.fail = None
    assert store.load(10) == before
    assert spool_names(tmp_path) == spooled  # on a full disk half a file would take what acks need
    store.commit(mixed(7), store.epoch)
    assert store.read_bodies([7, 8, 1]) == [b"small", b"L" * LARGE, b"R" * LARGE]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_commit_cut_off_at_any_step_of_the_database_leaves_nothing(tmp_path: Path, stubborn: bool) -> None:
    """``stubborn``: the rollback fails as well."""
    store = opened(tmp_path)
    store.commit(ground(), store.epoch)
    before, bodies, spooled = store.load(10), store.read_bodies(range(1, 9)), spool_names(tmp_path)
    failed = 0
    for most in range(0, 100_000, 40):
        left = most

        def tick() -> bool:
            nonlocal left
            left -= 1
            return left == -1 or (stubborn and left < 0)

        store.db.set_progress_handler(tick, 1)
        try:
            store.commit(mixed(7), store.epoch)
        except StoreUnavailable:
            failed += 1
        else:
            break
        finally:
            store.db.set_progress_handler(None, 0)
        if failed % 2:  # whichever call comes next finds no half transaction
            store.put_setting("name", b"value")
        assert store.load(10) == before
        assert store.read_bodies(range(1, 9)) == bodies
        assert spool_names(tmp_path) == spooled
    assert failed > 5
    after = store.load(10)
    assert after.bindings == [("e2", "new", "k")]
    assert [e.seq for e in after.heads["box.B"]] == [1, 2, 3]
    store.close()
    assert opened(tmp_path).load(10) == after


def test_a_database_that_runs_full_at_any_page_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(ground(), store.epoch)
    before = store.load(10)
    changes = published(7, *[b"b" * 60_000] * 5)
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    for more in range(100):
        store.db.execute(f"PRAGMA max_page_count = {pages + more}")
        try:
            store.commit(changes, store.epoch)
            break
        except DiskFull:
            assert store.load(10) == before
    assert more > 5
    assert store.read_bodies(range(7, 12)) == [b"b" * 60_000] * 5


def test_a_number_used_twice_is_refused_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(ground(), store.epoch)
    before = store.load(10)
    with pytest.raises(StoreUnavailable):
        store.commit(mixed(6), store.epoch)
    assert store.load(10) == before
    store.commit(mixed(7), store.epoch)


@pytest.mark.parametrize("reached", [False, True])
def test_when_ending_fails_the_files_stay_for_whichever_it_was(tmp_path: Path, reached: bool) -> None:
    """An error from the last sync does not say whether the commit is on the disk."""
    store = opened(tmp_path)
    store.db = FailingEnd(store.db, reached)  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        store.commit(published(1, b"L" * LARGE), store.epoch)
    assert len(spool_names(tmp_path)) == 1
    if not reached:
        store.commit(published(1, b"M" * LARGE), store.epoch)
    store.close()
    again = opened(tmp_path)
    assert again.read_bodies([1]) == [(b"L" if reached else b"M") * LARGE]
    assert len(spool_names(tmp_path)) == 1


def test_a_spool_file_that_cannot_be_deleted_harms_nothing(tmp_path: Path) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    files.fail = ("delete", errno.EACCES)
    store.commit(acknowledged(1), store.epoch)
    assert len(spool_names(tmp_path)) == 1
    store.close()
    opened(tmp_path)
    assert spool_names(tmp_path) == []


# -- a full disk --------------------------------------------------------------------------------------------------


def test_without_room_publishes_are_refused_and_acks_taken(tmp_path: Path) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(ground(), store.epoch)
    files.free = 0
    assert not store.room(1)
    with pytest.raises(DiskFull):
        store.commit(mixed(7), store.epoch)
    store.commit(acknowledged(1, 2, 3, 4, 5, 6), store.epoch)
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes  # there was no need
    files.free = PLENTY
    store.commit(published(7), store.epoch)


@pytest.mark.parametrize("kind", ["ack", "setting"])
def test_what_is_no_publish_takes_the_reserve_and_it_is_made_again(tmp_path: Path, kind: str) -> None:
    """The cap on pages ends when the reserve is gone, as the disk's would."""
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(published(1, *[b"b" * 5000] * 60), store.epoch)
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    real = files.delete

    def delete(path: Path) -> None:
        real(path)
        if path.name == RESERVE:
            store.db.execute("PRAGMA max_page_count = 1000000")

    files.delete = delete  # type: ignore[method-assign]
    files.free = 0
    if kind == "ack":
        long = "C" * 60  # rows that grow, so that pages split
        seqs = range(1, 61)
        changes = Changes(
            acked=[m.Mark("box.B", n, n, AT, long) for n in seqs],
            dead=[m.Dead("box.B", n, n, AT, "r" * 1000, long) for n in seqs],
        )
        store.commit(changes, store.epoch)
        assert store.load(100).heads.get("box.B", []) == []
    else:
        store.put_setting("crl", b"x" * 200_000)
        assert store.get_setting("crl") == b"x" * 200_000
    assert not (tmp_path / RESERVE).exists()
    assert not store.room(1)
    files.free = PLENTY
    assert store.room(1)
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes


def test_a_store_that_was_full_once_gives_its_empty_pages_back(tmp_path: Path) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    count = 200
    store.commit(published(1, *[os.urandom(60_000) for _ in range(count)]), store.epoch)
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = (tmp_path / DATABASE).stat().st_size
    files.free = 0
    assert not store.room(1)
    store.commit(acknowledged(*range(1, count + 1)), store.epoch)
    assert not store.room(1)  # this disk stays full, whatever is given back
    assert (tmp_path / DATABASE).stat().st_size < size // 4
    files.free = 1 << 20
    assert store.room(1000)
    assert store.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_it_opens_on_a_full_disk(tmp_path: Path) -> None:
    opened(tmp_path).close()
    files = Faulty()
    files.free = 0
    store = opened(tmp_path, files)
    assert not (tmp_path / RESERVE).exists()
    assert not store.room(1)


# -- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1435, LARGE])
def test_a_damaged_body_is_never_handed_out(tmp_path: Path, size: int) -> None:
    store = opened(tmp_path)
    body = os.urandom(size)
    store.commit(published(1, body, body[::-1]), store.epoch)
    store.close()
    target = tmp_path / "spool" / spool_names(tmp_path)[0] if size == LARGE else tmp_path / DATABASE
    raw = target.read_bytes()
    for at, bit in ((0, 1), (size // 2, 128), (size - 1, 4)):
        damaged = bytearray(raw)
        damaged[raw.index(body) + at] ^= bit
        target.write_bytes(damaged)
        again = opened(tmp_path)
        assert again.read_bodies([1, 2]) == [None, body[::-1]]
        again.close()
    target.write_bytes(raw)
    assert opened(tmp_path).read_bodies([1, 2]) == [body, body[::-1]]


def test_any_damaged_byte_of_a_body_row_gives_none_or_says_so(tmp_path: Path) -> None:
    """Lengths and types too: each byte of the row's header, hash and place, with several wrong values."""
    store = opened(tmp_path)
    body, large = os.urandom(40), os.urandom(LARGE)
    store.commit(published(1, body, large), store.epoch)
    store.close()
    target = tmp_path / DATABASE
    raw = target.read_bytes()
    name = spool_names(tmp_path)[0].encode()
    spool = Spool(tmp_path / "spool", Files(), 1)
    places = [*range(raw.index(body) - 48, raw.index(body) + 4)]
    places += range(raw.index(name) - 48, raw.index(name) + len(name) + 8)
    seen = set()
    for at in places:
        for flip in (1, 0x0C, 0xFF):
            damaged = bytearray(raw)
            damaged[at] ^= flip
            target.write_bytes(damaged)
            db = sqlite3.connect(target)
            try:
                with database.translated():
                    one, two = queries.read_bodies(db, spool, [1, 2])
            except Damaged:
                seen.add("said so")
                continue
            finally:
                db.close()
            assert one in (body, None)
            assert two in (large, None)
            seen |= {one, two}
    assert seen == {"said so", None, body, large}


@pytest.mark.parametrize(
    ("code", "gone"), [(errno.EMFILE, False), (errno.EACCES, False), (errno.EIO, True), (errno.ENOENT, True)]
)
def test_only_what_is_lost_counts_as_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, gone: bool
) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"L" * LARGE), store.epoch)

    def fails(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fails)
        if gone:
            assert store.read_bodies([1]) == [None]
        else:
            with pytest.raises(StoreUnavailable):
                store.read_bodies([1])
    assert store.read_bodies([1]) == [b"L" * LARGE]


def test_a_spool_file_that_was_cut_or_is_gone_is_none(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    path = tmp_path / "spool" / spool_names(tmp_path)[0]
    os.truncate(path, LARGE - 1)
    assert store.read_bodies([1]) == [None]
    path.unlink()
    assert store.read_bodies([1]) == [None]


# -- crashes ------------------------------------------------------------------------------------------------------

DYING = """
import os, sys
from pathlib import Path
from cipherbox.store.files import Files
from tests.store.faults import opened
from tests.store.suite import acknowledged, published

class Dying(Files):
    def sync_directory(self, path):
        super().sync_directory(path)
        if sys.argv[2] == "between":
            os._exit(9)
    def delete(self, path):
        if path.suffix == ".spool":
            os._exit(9)
        super().delete(path)

store = opened(Path(sys.argv[1]), Dying())
store.commit(acknowledged(1) if sys.argv[2] == "after" else published(2, b"M" * 100_000), store.epoch)
"""


@pytest.mark.parametrize("when", ["between", "after"])
def test_a_crash_around_the_spool_leaves_orphans_that_are_swept(tmp_path: Path, when: str) -> None:
    """``between`` the spool and the commit that names it; ``after`` the commit that drops a file."""
    store = opened(tmp_path)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    store.close()
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), when], timeout=60)
    assert done.returncode == 9
    assert len(spool_names(tmp_path)) == (2 if when == "between" else 1)
    again = opened(tmp_path)
    kept = [b"L" * LARGE] if when == "between" else [None]
    assert again.read_bodies([1, 2]) == [*kept, None]
    assert len(spool_names(tmp_path)) == (1 if when == "between" else 0)
    again.commit(published(2, b"N" * LARGE), again.epoch)
    assert again.read_bodies([2]) == [b"N" * LARGE]


CHILD = """
import sys
from pathlib import Path
from tests.store.faults import opened
from tests.store.suite import acknowledged, published

store = opened(Path(sys.argv[1]))
first = int(sys.argv[2])
for n in range(first, first + 1_000_000, 2):
    changes = published(n, b"%d" % n * 10, (b"%d" % n * 70_000)[:70_000])
    if n > 2:
        before = acknowledged(n - 2, n - 1)
        changes.acked, changes.finished = before.acked, before.finished
    store.commit(changes, store.epoch)
    print(n, flush=True)
"""


def test_what_was_committed_survives_sigkill(tmp_path: Path) -> None:
    """Each commit takes two envelopes and acknowledges the two before."""
    opened(tmp_path).close()
    first = 1
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(first)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(15)]
        child.send_signal(signal.SIGKILL)
        lines += child.communicate(timeout=60)[0].splitlines(keepends=True)
        said = int([line for line in lines if line.endswith("\n")][-1])
        again = opened(tmp_path)
        numbers = [e.number for e in again.load(100_000).heads["box.B"]]
        assert numbers in ([said, said + 1], [said + 2, said + 3])  # killed after the commit and before its word
        n = numbers[0]
        assert again.read_bodies(numbers) == [b"%d" % n * 10, (b"%d" % n * 70_000)[:70_000]]
        assert again.read_bodies(range(1, n)) == [None] * (n - 1)
        assert len(spool_names(tmp_path)) == 1
        assert again.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        first = n + 2
        again.close()
