"""Damage on the disk is never handed out, and a crash between any two steps leaves nothing half."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from cipherbox import spares
from cipherbox.errors import Damaged, StoreUnavailable
from cipherbox.store import spool as spooling
from cipherbox.store.files import Files
from cipherbox.store.port import BundleRow, CertificateRow
from cipherbox.store.spool import Place, Spool, SpoolSnapshot
from cipherbox.store.sqlite import database, queries
from cipherbox.store.sqlite.store import DATABASE
from tests.store.faults import FailingEnd, Faulty, opened, spool_names
from tests.store.suite import AT, acknowledged, bodies_of, published

LARGE = 100_000


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
        assert bodies_of(again, [1, 2]) == [None, body[::-1]]
        again.close()
    target.write_bytes(raw)
    assert bodies_of(opened(tmp_path), [1, 2]) == [body, body[::-1]]


def test_any_damaged_byte_of_a_body_row_gives_none_or_says_so(tmp_path: Path) -> None:
    """Lengths and types too: each byte of the row's header, hash and place, with several wrong
    values.
    """
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
            one, two = one and one.data, two and two.data
            assert one in (body, None)
            assert two in (large, None)
            seen |= {one, two}
    assert seen == {"said so", None, body, large}


@pytest.mark.parametrize(
    ("code", "gone"),
    [(errno.EMFILE, False), (errno.EACCES, False), (errno.EIO, True), (errno.ENOENT, True)],
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
            assert bodies_of(store, [1]) == [None]
        else:
            with pytest.raises(StoreUnavailable):
                bodies_of(store, [1])
    assert bodies_of(store, [1]) == [b"L" * LARGE]


def test_a_spool_file_that_was_cut_or_is_gone_is_none(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    path = tmp_path / "spool" / spool_names(tmp_path)[0]
    os.truncate(path, LARGE - 1)
    assert bodies_of(store, [1]) == [None]
    path.unlink()
    assert bodies_of(store, [1]) == [None]


# -- crashes ---------------------------------------------------------------------------------------

DYING = """
import os, sys
from pathlib import Path
from cipherbox.store.files import Files
from tests.store.faults import opened
from tests.store.suite import acknowledged, bodies_of, published

class Dying(Files):
    def sync_directory(self, path):
        super().sync_directory(path)
        if sys.argv[2] == "between":
            os._exit(9)
    def overwrite_synced(self, path, parts):
        if sys.argv[2] == "half":
            super().overwrite_synced(path, [b"".join(parts)[:50_000]])
        else:
            super().overwrite_synced(path, parts)
        os._exit(9)
    def size(self, path):  # asked when a file is freed
        if path.suffix == ".spool" and sys.argv[2] == "after":
            os._exit(9)
        return super().size(path)

store = opened(Path(sys.argv[1]), Dying())
if sys.argv[2] in ("half", "over"):
    store.commit(published(3, b"S" * 100_000), store.epoch)
    store.commit(acknowledged(3), store.epoch)
changes = acknowledged(1) if sys.argv[2] == "after" else published(2, b"M" * 100_000)
store.commit(changes, store.epoch)
"""


@pytest.mark.parametrize("when", ["between", "after", "half", "over"])
def test_a_crash_around_the_spool_leaves_orphans_that_are_swept(tmp_path: Path, when: str) -> None:
    """``between`` the spool and the commit that names it; ``after`` the commit that frees a
    file; when a spare is ``half`` overwritten, and before the commit that names it (``over``).
    """
    store = opened(tmp_path)
    store.commit(published(1, b"L" * LARGE), store.epoch)
    store.close()
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), when], timeout=300)
    assert done.returncode == 9
    assert len(spool_names(tmp_path)) == (1 if when == "after" else 2)
    again = opened(tmp_path)
    kept = [None] if when == "after" else [b"L" * LARGE]
    assert bodies_of(again, [1, 2, 3]) == [*kept, None, None]
    assert len(spool_names(tmp_path)) == (0 if when == "after" else 1)
    again.commit(published(2, b"N" * LARGE), again.epoch)
    assert bodies_of(again, [2]) == [b"N" * LARGE]


CHILD = """
import sys
import time
from pathlib import Path
from tests.store.faults import opened
from tests.store.suite import acknowledged, bodies_of, published

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
            [sys.executable, "-c", CHILD, str(tmp_path), str(first)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(15)]
        child.send_signal(signal.SIGKILL)
        lines += child.stdout.readlines()  # from the same buffer
        child.wait(300)
        child.stdout.close()
        said = int([line for line in lines if line.endswith("\n")][-1])
        again = opened(tmp_path)
        numbers = [e.number for e in again.load(100_000).heads["box.B"]]
        # killed after the commit and before its word
        assert numbers in ([said, said + 1], [said + 2, said + 3])
        n = numbers[0]
        assert bodies_of(again, numbers) == [b"%d" % n * 10, (b"%d" % n * 70_000)[:70_000]]
        assert bodies_of(again, range(1, n)) == [None] * (n - 1)
        assert len(spool_names(tmp_path)) == 1
        assert again.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        first = n + 2
        again.close()


# -- spares ----------------------------------------------------------------------------------------


def test_a_spare_is_written_over_and_readers_get_the_new_body(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"A" * LARGE), store.epoch)
    names = spool_names(tmp_path)
    store.commit(acknowledged(1), store.epoch)
    store.commit(published(2, b"B" * (LARGE - 100)), store.epoch)
    assert spool_names(tmp_path) == names
    assert bodies_of(store, [1, 2]) == [None, b"B" * (LARGE - 100)]
    written = (tmp_path / "spool" / names[0]).read_bytes()
    assert written == b"B" * (LARGE - 100) + b"A" * 100
    store.close()
    assert bodies_of(opened(tmp_path), [2]) == [b"B" * (LARGE - 100)]


def test_a_row_that_names_a_file_written_over_finds_it_damaged(tmp_path: Path) -> None:
    """As a reader that saw the row before the commit which deleted it."""
    store = opened(tmp_path)
    store.commit(published(1, b"A" * LARGE), store.epoch)
    row = store.db.execute("SELECT * FROM bodies").fetchone()
    store.commit(acknowledged(1), store.epoch)
    store.commit(published(2, b"B" * LARGE), store.epoch)
    store.db.execute(f"INSERT INTO bodies VALUES ({','.join('?' * len(row))})", row)
    assert bodies_of(store, [1, 2]) == [None, b"B" * LARGE]


@pytest.mark.parametrize("size", [LARGE, 2 * LARGE, 5 * LARGE + 1])
def test_a_spare_that_is_too_small_or_far_too_large_is_left_alone(
    tmp_path: Path, size: int
) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"A" * 5 * LARGE), store.epoch)
    store.commit(acknowledged(1), store.epoch)
    store.commit(published(2, b"B" * size), store.epoch)
    assert len(spool_names(tmp_path)) == (1 if size == 2 * LARGE else 2)
    assert bodies_of(store, [2]) == [b"B" * size]


def test_a_spare_that_cannot_be_written_is_gone_and_the_commit_can_be_repeated(
    tmp_path: Path,
) -> None:
    files = Faulty()
    store = opened(tmp_path, files)
    store.commit(published(1, b"A" * LARGE), store.epoch)
    store.commit(acknowledged(1), store.epoch)
    files.fail = ("overwrite_synced", errno.EIO)
    with pytest.raises(StoreUnavailable):
        store.commit(published(2, b"B" * LARGE), store.epoch)
    assert spool_names(tmp_path) == []
    store.commit(published(2, b"B" * LARGE), store.epoch)
    assert bodies_of(store, [2]) == [b"B" * LARGE]


def test_spares_are_few_and_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spooling, "SPARE_BYTES", 2 * LARGE)
    store = opened(tmp_path)
    for number in (1, 2, 3):
        store.commit(published(number, bytes([number]) * LARGE), store.epoch)
    store.commit(acknowledged(1, 2, 3), store.epoch)
    assert len(spool_names(tmp_path)) == 2
    store.renew()
    assert len(spool_names(tmp_path)) == 2
    later = time.monotonic() + spares.SPARE_S + 1
    monkeypatch.setattr(time, "monotonic", lambda: later)
    store.renew()
    assert spool_names(tmp_path) == []
    store.commit(published(4, b"D" * LARGE), store.epoch)
    store.commit(acknowledged(4), store.epoch)
    assert len(spool_names(tmp_path)) == 1
    store.close()
    assert spool_names(tmp_path) == []


def test_nothing_is_written_over_while_a_snapshot_is_read(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"A" * LARGE), store.epoch)
    (name,) = spool_names(tmp_path)
    snapshot = SpoolSnapshot(tmp_path)
    snapshot.take(lambda: [name], lambda: None)
    store.commit(acknowledged(1), store.epoch)
    store.commit(published(2, b"B" * LARGE), store.epoch)
    assert snapshot.read(Place(name, 0), LARGE) == b"A" * LARGE
    snapshot.close()
    store.commit(published(3, b"C" * LARGE), store.epoch)
    assert len(spool_names(tmp_path)) == 2
    assert bodies_of(store, [2, 3]) == [b"B" * LARGE, b"C" * LARGE]


def test_no_spare_is_made_of_what_a_failed_commit_may_need(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.commit(published(1, b"A" * LARGE), store.epoch)
    store.db = FailingEnd(store.db, reached=False)  # type: ignore[assignment]
    with pytest.raises(StoreUnavailable):
        store.commit(acknowledged(1), store.epoch)
    store.commit(published(2, b"B" * LARGE), store.epoch)
    assert bodies_of(store, [1, 2]) == [b"A" * LARGE, b"B" * LARGE]


def test_a_damaged_key_bundle_is_named(tmp_path: Path) -> None:
    store = opened(tmp_path)
    for client in ("FL-LAB", "CA-RC"):
        store.put_bundle(
            BundleRow(client, 1, client.encode(), b"c" * 9, bytes(12), bytes(16), 1, 2)
        )
    store.db.execute("UPDATE bundles SET ciphertext = 'Y2N' WHERE client = 'FL-LAB'")
    for read in (store.newest_bundle, lambda client: store.bundles(client, 0)):
        with pytest.raises(Damaged, match="a key bundle of FL-LAB is damaged"):
            read("FL-LAB")
        assert read("CA-RC")


def test_a_damaged_epoch_and_a_text_that_is_none_are_damage(tmp_path: Path) -> None:
    """Not a database that is away for a while: HQ would wait for it for ever."""
    store = opened(tmp_path)
    store.db.execute("UPDATE settings SET value = x'b2' WHERE name = 'epoch'")
    store.close()
    with pytest.raises(Damaged, match="the setting epoch is damaged"):
        opened(tmp_path)
    with closing(sqlite3.connect(tmp_path / DATABASE)) as db, db:
        db.execute("UPDATE settings SET value = x'37' WHERE name = 'epoch'")
        db.execute("INSERT INTO exchanges VALUES (CAST(x'61e4' AS TEXT), 0)")
    with pytest.raises(Damaged, match="a text is not UTF-8"):
        opened(tmp_path).load(1)


@pytest.mark.parametrize("time", ["issued_at", "expires_at", "revoked_at"])
# SQLite keeps such a time in 48 bits, and the highest of them is its sign
@pytest.mark.parametrize("flipped", [AT - (1 << 47), AT + (1 << 62)])
def test_a_certificate_of_no_time_is_named(tmp_path: Path, time: str, flipped: int) -> None:
    """The next revocation list would end HQ, and so would every start after it."""
    store = opened(tmp_path)
    store.put_certificate(CertificateRow("1", "FL-LAB", AT, AT, AT, b""))
    assert store.certificates()
    store.db.execute(f"UPDATE certificates SET {time} = ?", (flipped,))
    with pytest.raises(Damaged, match="a certificate of FL-LAB is damaged"):
        store.certificates()
