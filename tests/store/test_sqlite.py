"""The suite on SQLite, and what is SQLite's own: its settings, schema versions, plans, threads,
two opens.
"""

from __future__ import annotations

import errno
import sqlite3
import threading
from pathlib import Path

import pytest

from cipherbox.broker import model as m
from cipherbox.broker.model import Changes
from cipherbox.errors import DiskFull, Fenced, SchemaTooNew, StoreError, StoreUnavailable
from cipherbox.store.port import Store
from cipherbox.store.sqlite import database, queries
from cipherbox.store.sqlite.store import DATABASE, open_store
from tests.store.faults import Faulty, opened
from tests.store.suite import Driver, Opener, Suite, bodies_of, incoming, published
from tests.store.suite_records import Records


class TestSqlite(Suite, Records):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        def again() -> Store:
            return opened(tmp_path)

        return again


def test_settings_of_the_database(tmp_path: Path) -> None:
    store = opened(tmp_path)
    settings = {
        "journal_mode": "wal",
        "synchronous": 2,
        "page_size": 16384,
        "temp_store": 2,
        "auto_vacuum": 2,
    }
    assert {name: store.db.execute(f"PRAGMA {name}").fetchone()[0] for name in settings} == settings
    assert store.db.execute("PRAGMA busy_timeout").fetchone()[0] >= 1000


def test_another_thread_may_use_it(tmp_path: Path) -> None:
    store = opened(tmp_path)
    thread = threading.Thread(target=lambda: store.commit(published(1), store.epoch))
    thread.start()
    thread.join()
    assert bodies_of(store, [1]) == [b"body"]


# -- schema versions -------------------------------------------------------------------------------


def test_what_is_not_this_programs_database_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cipherbox init"):
        open_store(tmp_path)
    assert list(tmp_path.iterdir()) == []
    for name, setup in {
        "foreign": "CREATE TABLE t (x)",
        "marked": "PRAGMA application_id = 77",
    }.items():
        (tmp_path / name).mkdir()
        db = sqlite3.connect(tmp_path / name / DATABASE)
        db.execute(setup)
        db.close()
        before = (tmp_path / name / DATABASE).read_bytes()
        with pytest.raises(StoreError, match="another program"):
            opened(tmp_path / name)
        assert (tmp_path / name / DATABASE).read_bytes() == before
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / DATABASE).write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError, match="damaged"):
        opened(tmp_path / "junk")


def test_a_newer_schema_is_refused_and_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    db = sqlite3.connect(tmp_path / DATABASE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNew, match="newer program"):
        opened(tmp_path)
    db = sqlite3.connect(tmp_path / DATABASE)
    assert db.execute("PRAGMA user_version").fetchone()[0] == 99


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A database with an envelope, and the steps of a program that knows one more; a test may
    change them.
    """
    store = opened(tmp_path)
    store.commit(published(1), store.epoch)
    store.close()
    steps = [*database.scripts(), "CREATE TABLE later (x);\nINSERT INTO later VALUES (7);\n"]
    monkeypatch.setattr(database, "scripts", lambda: steps)
    return steps


def test_an_older_schema_is_upgraded_after_a_copy(tmp_path: Path, older: list[str]) -> None:
    store = opened(tmp_path)
    assert store.db.execute("SELECT x FROM later").fetchall() == [(7,)]
    assert store.db.execute("PRAGMA user_version").fetchone()[0] == len(older)
    assert bodies_of(store, [1]) == [b"body"]
    copy = sqlite3.connect(tmp_path / f"{DATABASE}.schema{len(older) - 1}")
    assert copy.execute("PRAGMA user_version").fetchone()[0] == len(older) - 1
    assert copy.execute("SELECT data FROM bodies").fetchall() == [(b"body",)]
    assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store.close()
    opened(tmp_path).close()  # and then it is simply opened


@pytest.mark.parametrize(
    "step", ["CREATE TABLE a (x);\nCREATE TABLE a (x);\n", "CREATE TABLE a (x);\nCREATE TABLE b"]
)
def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path, older: list[str], step: str) -> None:
    older[-1] = step
    with pytest.raises((StoreError, StoreUnavailable)):
        opened(tmp_path)
    older.pop()
    store = opened(tmp_path)
    assert store.db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'a'").fetchone() == (
        0,
    )
    assert bodies_of(store, [1]) == [b"body"]


def test_no_upgrade_without_its_copy(tmp_path: Path, older: list[str]) -> None:
    files = Faulty()
    files.fail = ("rename_synced", errno.ENOSPC)
    with pytest.raises(DiskFull):
        opened(tmp_path, files)
    db = sqlite3.connect(tmp_path / DATABASE)
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(older) - 1
    db.close()
    assert bodies_of(opened(tmp_path), [1]) == [b"body"]
    assert not list(tmp_path.glob("*.part"))


# -- one writer ------------------------------------------------------------------------------------


def test_a_store_that_was_taken_over_writes_nothing_of_any_kind(tmp_path: Path) -> None:
    first = opened(tmp_path)
    second = opened(tmp_path)
    assert second.epoch == first.epoch + 1
    for write in (
        lambda: first.put_setting("name", b"value"),
        lambda: first.revoke_certificates("A", 1),
        lambda: first.commit(published(1, b"x" * 100_000), first.epoch),
    ):
        with pytest.raises(Fenced):
            write()
    assert second.get_setting("name") is None
    assert second.load(10).next_number == 1
    assert list((tmp_path / "spool").iterdir()) == []


def test_a_database_that_is_busy_for_long_is_unavailable(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable) as found:
        store.commit(published(1), store.epoch)
    assert found.value.retryable
    other.execute("ROLLBACK")
    store.commit(published(1), store.epoch)


# -- plans -----------------------------------------------------------------------------------------


def test_waiting_entries_are_found_from_where_they_begin(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for query, values in (
        (queries._ENTRY + "AND d.seq >= ? ORDER BY d.seq LIMIT ?", (1, 5, 10)),
        (queries._ENTRY + "AND d.seq BETWEEN ? AND ?", (1, 5, 10)),
        (queries.BY_ID, (b"", "A", 1)),
    ):
        plan = " ".join(r[3] for r in store.db.execute(f"EXPLAIN QUERY PLAN {query}", values))
        assert "SCAN" not in plan
        assert "TEMP B-TREE" not in plan
        assert ("seq>" in plan) is ("d.seq" in query.split("WHERE")[1])


def test_loading_reads_counters_and_no_acknowledged_entries(tmp_path: Path) -> None:
    """Steps of the database's machine, with 50 and with 5,000 acknowledged envelopes before the
    first that waits.
    """
    steps = []
    for count in (50, 5000):
        (tmp_path / str(count)).mkdir()
        store = opened(tmp_path / str(count))
        items = [incoming(i) for i in range(1, count + 1)]
        driver = Driver(store).clients()
        driver.publish(*items)
        driver.run(m.Ack(2, "B", 1, "box.B", [(1, count)]))
        driver.publish(incoming(count + 1))
        ticks = 0

        def tick() -> int:
            nonlocal ticks
            ticks += 1
            return 0

        store.db.set_progress_handler(tick, 1)
        assert [e.number for e in store.load(10).heads["box.B"]] == [count + 1]
        store.db.set_progress_handler(None, 0)
        steps.append(ticks)
    assert steps[1] < steps[0] + 50


def test_empty_changes_are_fine(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(Changes(), store.epoch)
    assert store.facts(m.RequiredFacts(), 1) == m.Facts()
