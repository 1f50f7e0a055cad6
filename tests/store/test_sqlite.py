"""The suite on SQLite, and what is SQLite's own: crashes, a full disk, damage, schemas, the views."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import uuid
from pathlib import Path

import attrs
import pytest

from cipherbox.broker import model as m
from cipherbox.errors import CipherBoxError, DiskFull, SchemaTooNew, StoreError, StoreUnavailable
from cipherbox.limits import LIMITS
from cipherbox.store.files import Files
from cipherbox.store.port import Store
from cipherbox.store.sqlite.store import DATABASE, RESERVE, SqliteStore, open_store
from tests.store.suite import AT, Driver, Opener, Suite, incoming

SMALL_RESERVE = attrs.evolve(LIMITS, disk_reserve_bytes=64 * 1024)


class Faulty(Files):
    """Fails the named call with an errno when it is armed."""

    def __init__(self) -> None:
        self.fail: tuple[str, int] | None = None
        self.free = 1 << 40

    def _check(self, name: str) -> None:
        if self.fail and self.fail[0] == name:
            raise OSError(self.fail[1], os.strerror(self.fail[1]))

    def write_synced(self, path: Path, data: bytes) -> None:
        self._check("write_synced")
        super().write_synced(path, data)

    def sync_directory(self, path: Path) -> None:
        self._check("sync_directory")
        super().sync_directory(path)

    def free_bytes(self, path: Path) -> int:
        return self.free


def opened(path: Path, files: Files | None = None) -> SqliteStore:
    return open_store(path, create=True, files=files, limits=SMALL_RESERVE)


class TestSqlite(Suite):
    @pytest.fixture
    def opener(self, tmp_path: Path) -> Opener:
        def again() -> Store:
            return opened(tmp_path)

        return again


@pytest.mark.parametrize("call", ["write_synced", "sync_directory"])
@pytest.mark.parametrize(("code", "error"), [(errno.ENOSPC, DiskFull), (errno.EIO, StoreUnavailable)])
def test_a_failing_spool_fails_the_commit_whole(
    tmp_path: Path, call: str, code: int, error: type[CipherBoxError]
) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    driver = Driver(store).clients()
    before = store.load(10)
    files.fail = (call, code)
    with pytest.raises(error) as found:
        driver.publish(incoming(1), incoming(2, b"x" * 100_000))
    assert found.value.retryable
    files.fail = None
    assert store.load(10) == before
    Driver(store).publish(incoming(1), incoming(2, b"z" * 100_000))
    assert store.read_bodies([1, 2]) == [b"body", b"z" * 100_000]
    store.close()
    again = opened(tmp_path)
    assert again.read_bodies([2]) == [b"z" * 100_000]
    assert len(os.listdir(tmp_path / "spool")) == 1


def test_a_commit_that_fails_inside_the_database_leaves_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    driver = Driver(store).clients()
    driver.publish(incoming(1))
    before = store.load(10)
    changes = m.Changes(
        queues=[m.QueueRow("new", "A", ())],
        envelopes=[m.NewEnvelope(1, AT, 1, incoming(9))],  # the number is taken
    )
    with pytest.raises(StoreUnavailable):
        store.commit(changes, store.epoch)
    assert store.load(10) == before
    Driver(store).run(m.DeclareQueue(0, "", 1, "new", "A", ()))
    assert "new" in {q.name for q in store.load(10).queues}


def test_orphans_of_a_crash_are_swept_and_named_files_stay(tmp_path: Path) -> None:
    store = opened(tmp_path)
    Driver(store).clients().publish(incoming(1, b"x" * 100_000))
    store.close()
    (tmp_path / "spool" / "000000000077-0.envelope").write_bytes(b"orphan")
    again = opened(tmp_path)
    assert os.listdir(tmp_path / "spool") == ["000000000001-0.envelope"]
    assert again.read_bodies([1]) == [b"x" * 100_000]


def test_a_full_disk_refuses_publishes_and_takes_acks(tmp_path: Path) -> None:
    """The database really runs full: its size is capped to what it has."""
    files = Faulty()
    store = opened(tmp_path, files)
    driver = Driver(store).clients()
    driver.publish(*[incoming(i) for i in range(1, 40)])
    driver.consume()
    files.free = 0
    assert not store.room(1)
    with pytest.raises(DiskFull):
        Driver(store).publish(incoming(99))
    assert (tmp_path / RESERVE).exists()
    pages = store.db.execute("PRAGMA page_count").fetchone()[0]
    store.db.execute(f"PRAGMA max_page_count = {pages}")
    files.free = 1 << 40
    with pytest.raises(DiskFull):
        Driver(store).publish(*[incoming(i, b"b" * 60_000) for i in range(100, 130)])
    driver.run(m.Ack(2, "B", 1, "box.B", [(1, 39)]))
    assert store.load(10).heads == {}
    store.db.execute(f"PRAGMA max_page_count = {pages + 10_000}")
    Driver(store).publish(incoming(200))


def test_the_reserve_is_given_up_for_an_ack_and_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = opened(tmp_path)
    driver = Driver(store).clients()
    driver.publish(incoming(1))
    driver.consume()
    calls = []
    real = SqliteStore._commit

    def full_once(self: SqliteStore, changes: m.Changes) -> None:
        calls.append((tmp_path / RESERVE).exists())
        if len(calls) == 1:
            raise DiskFull
        real(self, changes)

    monkeypatch.setattr(SqliteStore, "_commit", full_once)
    driver.run(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
    assert calls == [True, False]
    assert store.room(1)
    assert (tmp_path / RESERVE).stat().st_size == SMALL_RESERVE.disk_reserve_bytes


@pytest.mark.parametrize("size", [1435, 100_000])
def test_a_damaged_body_is_never_handed_out(tmp_path: Path, size: int) -> None:
    store = opened(tmp_path)
    body = os.urandom(size)
    Driver(store).clients().publish(incoming(1, body), incoming(2, body[::-1]))
    store.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    target = tmp_path / "spool" / "000000000001-0.envelope" if size > 65_536 else tmp_path / DATABASE
    raw = bytearray(target.read_bytes())
    at = raw.find(body[:64])
    raw[at + 10] ^= 1
    target.write_bytes(raw)
    again = opened(tmp_path)
    assert again.read_bodies([1, 2]) == [None, body[::-1]]
    if size > 65_536:
        target.unlink()
        assert again.read_bodies([1]) == [None]


def test_schemas(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cipherbox init"):
        open_store(tmp_path)
    opened(tmp_path).close()
    db = sqlite3.connect(tmp_path / DATABASE)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNew, match="newer program"):
        opened(tmp_path)
    (tmp_path / "other").mkdir()
    db = sqlite3.connect(tmp_path / "other" / DATABASE)
    db.execute("CREATE TABLE t (x)")
    db.close()
    with pytest.raises(StoreError, match="another program"):
        opened(tmp_path / "other")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / DATABASE).write_bytes(b"no database at all" * 1000)
    with pytest.raises(StoreError):
        opened(tmp_path / "junk")


def test_settings_of_the_database(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for pragma, value in (("journal_mode", "wal"), ("synchronous", 2), ("page_size", 16384)):
        assert store.db.execute(f"PRAGMA {pragma}").fetchone()[0] == value


# -- the views ----------------------------------------------------------------------------------------------------


def test_the_seeds_tables_have_their_columns_and_one_row_a_message(tmp_path: Path) -> None:
    store = opened(tmp_path)
    driver = Driver(store).clients()
    item = incoming(1, to=("B", "C"))
    driver.publish(item)
    driver.consume()
    driver.run(m.Ack(2, "B", 1, "box.B", [(1, 1)]))
    db = sqlite3.connect(f"file:{tmp_path / DATABASE}?mode=ro", uri=True)
    db.row_factory = sqlite3.Row
    rows = db.execute("SELECT * FROM message_metadata ORDER BY message_id").fetchall()
    assert list(rows[0].keys()) == [
        "message_id", "client_id", "exchange_name", "routing_key", "sent_time", "delivered_time", "acknowledged_time",
    ]  # fmt: skip
    assert [r["message_id"] for r in rows] == [
        str(uuid.UUID(bytes=item.envelope_id[:14] + i.to_bytes(2, "big"))) for i in range(3)
    ]
    assert rows[0]["client_id"] == "A"
    assert rows[0]["sent_time"] == "2027-01-15T08:00:00.001Z"
    assert rows[0]["acknowledged_time"] is None  # C has not
    deliveries = db.execute("SELECT * FROM message_deliveries ORDER BY message_id, queue_name").fetchall()
    assert [(r["queue_name"], r["state"]) for r in deliveries[:2]] == [("box.B", "acknowledged"), ("box.C", "waiting")]
    driver.consume("C", 3)
    driver.run(m.Ack(3, "C", 1, "box.C", [(1, 1)]))
    row = db.execute("SELECT * FROM message_metadata").fetchone()
    assert row["delivered_time"]
    assert row["acknowledged_time"]
    assert store.read_bodies([1]) == [None]
    columns = [d[1] for d in db.execute("PRAGMA table_info(public_keys)")]
    assert columns == ["client_id", "public_key_ciphertext", "nonce", "tag"]


def test_the_manuals_queries_run_and_use_the_index(tmp_path: Path) -> None:
    import cipherbox

    opened(tmp_path)
    page = (Path(cipherbox.__file__).parent / "manual" / "store.md").read_text()
    queries = [part.split("```")[0] for part in page.split("```sql")[1:]]
    assert len(queries) == 3
    db = sqlite3.connect(tmp_path / DATABASE)
    for query in queries:
        db.execute(query).fetchall()
    plan = " ".join(r[3] for r in db.execute("EXPLAIN QUERY PLAN " + next(q for q in queries if "envelope_id" in q)))
    assert "SCAN" not in plan
    assert "envelopes_by_id" in plan


# -- SIGKILL ------------------------------------------------------------------------------------------------------

CHILD = """
import sys
from pathlib import Path
from tests.store.suite import Driver, incoming
from tests.store.test_sqlite import opened
driver = Driver(opened(Path(sys.argv[1])))
first = int(sys.argv[2])
for i in range(first, first + 100_000):
    driver.publish(incoming(i, b"%d" % i * 10), incoming(i + 1_000_000, (b"%d" % i * 20_000)[:70_000]))
    print(i, flush=True)
"""


def test_what_was_committed_survives_sigkill(tmp_path: Path) -> None:
    store = opened(tmp_path)
    Driver(store).clients()
    store.close()
    last = 0
    for _ in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path), str(last + 1)], stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        for _ in range(15):
            last = int(child.stdout.readline() or 0)
        child.send_signal(signal.SIGKILL)
        rest = child.communicate(timeout=30)[0].split()
        last = max([last, *[int(x) for x in rest if x.isdigit()]])
        again = opened(tmp_path)
        heads = again.load(100_000).heads["box.B"]
        assert len(heads) in (2 * last, 2 * last + 2)
        assert len({e.number for e in heads}) == len(heads)
        bodies = again.read_bodies([e.number for e in heads])
        assert all(body is not None for body in bodies)
        last = len(heads) // 2
        again.close()
