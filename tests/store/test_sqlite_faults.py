"""What the disk can do to the SQLite store: fail at any point, run full, be cut off, give back
other bytes.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.contact_lists import ContactLists
from cipherbox.errors import CipherBoxError, DiskFull, StoreUnavailable
from cipherbox.store import reserve
from cipherbox.store.sqlite.store import DATABASE, RESERVE
from tests.store.faults import PLENTY, SMALL_RESERVE, FailingEnd, Faulty, opened, spool_names
from tests.store.suite import AT, acknowledged, bodies_of, incoming, published

LARGE = 100_000


def mixed(first: int) -> Changes:
    """A commit that does something of every kind; what stood before is `ground`."""
    changes = published(first, b"small", b"L" * LARGE, queue="new")
    changes.clients = [m.ClientRow("D", "client", AT)]
    changes.exchanges, changes.bindings, changes.grants = (
        [("e2", 0)],
        [("e2", "new", "k")],
        [("D", "bind", "e2")],
    )
    changes.dropped_bindings = [("e", "box.B", "k")]
    changes.replaced = [(1, incoming(1, b"R" * LARGE, generation=1))]
    changes.delivered = [m.SeqRun("box.B", 2, 3, AT, "B")]
    changes.acked, changes.finished = [m.SeqRun("box.B", 4, 5, AT, "B")], [4, 5]
    changes.dead = [m.Dead("box.B", 6, 6, AT, "expired", "")]
    changes.highest = {"A": incoming(first + 1).envelope_id}
    changes.usage = {("A", "new"): (5, 1), ("A", "box.B"): (0, 0)}
    changes.client_limits = {("A", "bytes"): 7, ("A", "queues"): -1}
    changes.contacts = {"A": ContactLists(("B",)), "B": ContactLists()}
    changes.counters.append(m.Counters("box.B", 3, 9, 1, 7))
    changes.bindings_version = 9
    return changes


def ground() -> Changes:
    changes = published(1, b"one", b"two", b"three", b"4" * LARGE, b"five", b"six")
    changes.exchanges, changes.bindings, changes.usage = (
        [("e", 0)],
        [("e", "box.B", "k")],
        {("A", "box.B"): (77, 6)},
    )
    changes.client_limits = {("A", "queues"): 3}
    changes.contacts = {"B": ContactLists((), ("A",))}
    return changes


@pytest.fixture(autouse=True)
def always_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is asked before each commit; `test_reserve` has the rest."""
    monkeypatch.setattr(reserve, "FRESH_S", 0.0)


@pytest.mark.parametrize("call", ["write_synced", "sync_directory", "free_bytes"])
@pytest.mark.parametrize(
    ("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreUnavailable)]
)
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
    assert bodies_of(store, [7, 8, 1]) == [b"small", b"L" * LARGE, b"R" * LARGE]


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_commit_cut_off_at_any_step_of_the_database_leaves_nothing(
    tmp_path: Path, stubborn: bool
) -> None:
    """``stubborn``: the rollback fails as well."""
    store = opened(tmp_path)
    store.commit(ground(), store.epoch)
    before, bodies, spooled = store.load(10), bodies_of(store, range(1, 9)), spool_names(tmp_path)
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
        assert bodies_of(store, range(1, 9)) == bodies
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
    assert bodies_of(store, range(7, 12)) == [b"b" * 60_000] * 5


def test_a_number_used_twice_is_refused_whole(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(ground(), store.epoch)
    before = store.load(10)
    with pytest.raises(StoreUnavailable):
        store.commit(mixed(6), store.epoch)
    assert store.load(10) == before
    store.commit(mixed(7), store.epoch)


@pytest.mark.parametrize("reached", [False, True])
def test_when_ending_fails_the_files_stay_for_whichever_it_was(
    tmp_path: Path, reached: bool
) -> None:
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
    assert bodies_of(again, [1]) == [(b"L" if reached else b"M") * LARGE]
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


# -- a full disk -----------------------------------------------------------------------------------


def test_without_room_publishes_are_refused_and_acks_taken(tmp_path: Path) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(ground(), store.epoch)
    files.free = 0
    assert not store.room(1)
    with pytest.raises(DiskFull):
        store.commit(mixed(7), store.epoch)
    store.commit(acknowledged(1, 2, 3, 4, 5, 6), store.epoch)
    # there was no need; it lacks the page that says that envelopes are refused
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes - 4096
    files.free = SMALL_RESERVE.disk_resume_bytes
    assert not store.room(1)
    store.close()
    store = opened(tmp_path, files)
    assert not store.room(1)
    with pytest.raises(DiskFull):
        store.commit(published(7), store.epoch)
    files.free = SMALL_RESERVE.disk_resume_bytes + 4096
    store.close()
    store = opened(tmp_path, files)
    store.commit(published(7), store.epoch)
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes


@pytest.mark.parametrize("kind", ["ack", "setting"])
def test_what_is_no_publish_takes_the_reserve_and_it_is_made_again(
    tmp_path: Path, kind: str
) -> None:
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
            acked=[m.SeqRun("box.B", n, n, AT, long) for n in seqs],
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


def test_a_disk_that_was_filled_behind_a_fresh_answer_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program was faster than the answer got old: the commit finds it, the reserve stays
    for acks, and the next publish is refused by an exact answer.
    """
    monkeypatch.setattr(reserve, "FRESH_S", 3600.0)
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    files.calls.clear()
    store.commit(published(2, b"L" * LARGE), store.epoch)
    assert "free_bytes" not in files.calls
    files.free = 0
    files.fail = ("write_synced", errno.ENOSPC)
    with pytest.raises(DiskFull):
        store.commit(published(3, b"L" * LARGE), store.epoch)
    files.fail = None
    assert store.free_bytes() == 0
    with pytest.raises(DiskFull, match="no new envelopes"):
        store.commit(published(3, b"L" * LARGE), store.epoch)
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes - 4096
    store.commit(acknowledged(1, 2), store.epoch)
    assert spool_names(tmp_path) == []
    files.free = PLENTY
    store.commit(published(3, b"L" * LARGE), store.epoch)


def test_it_opens_on_a_full_disk(tmp_path: Path) -> None:
    opened(tmp_path).close()
    files = Faulty()
    files.free = 0
    store = opened(tmp_path, files)
    assert not (tmp_path / RESERVE).exists()
    assert not store.room(1)
