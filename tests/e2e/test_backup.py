"""Backups beside a running HQ, restores, copies to PostgreSQL and back, as an administrator does
them.
"""

import json
import os
import shutil
import stat
from pathlib import Path

import pytest

from tests import postgres, soak

from .conftest import Shown, make_hq, serving, shell


def people(directory: Path, admin: Path, *homes: Path) -> None:
    with serving(directory):
        for home in homes:
            token = shell("enroll", home.name, home=admin).out
            assert shell("join", home=home, stdin=token).code == 0


def received(home: Path) -> list[str]:
    lines = (home / "data" / "received_messages.jsonl").read_text().splitlines()
    return [json.loads(line)["content"] for line in lines]


@pytest.mark.parametrize("into", ["sqlite", pytest.param("postgresql", marks=soak.only)])
def test_back_up_while_it_runs_lose_the_machine_restore(
    request: pytest.FixtureRequest, tmp_path: Path, into: str
) -> None:
    directory, admin = make_hq(tmp_path)
    lab, center = tmp_path / "FL-LAB", tmp_path / "CA-RC"
    people(directory, admin, lab, center)
    backup, again = tmp_path / "backup", tmp_path / "again"
    with serving(directory):
        for text in ("waits", "arrives"):
            assert shell("send", "--to", "CA-RC", text, home=lab).code == 0
        large = tmp_path / "large.bin"
        large.write_bytes(os.urandom(300_000))
        assert shell("send", "--to", "CA-RC", "--file", str(large), home=lab).code == 0
        made = shell("backup", str(directory), "--to", str(backup), home=admin)
        assert made.code == 0, made.err
        assert "Backup:" in made.out
        assert shell("send", "--to", "CA-RC", "after the backup", home=lab).code == 0
        assert shell("receive", "--count", "1", "--idle", "20", home=center).code == 0
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert not any(p.name.startswith("spool.") for p in directory.iterdir())
    shutil.rmtree(directory)
    where = []
    if into == "postgresql":
        server: postgres.Server = request.getfixturevalue("postgresql")
        where = ["--database", f"{postgres.url(server)}&schema={postgres.schema()}"]
    done = shell("restore", str(backup), str(again), *where, home=admin)
    assert done.code == 0, done.err
    assert "Restored and compared" in done.out
    assert "cipherbox serve" in done.err + done.out
    with serving(again):
        stopped = shell("outbox", "send", home=lab)
        # its log was longer: whether that was a restore or a rollback, an admin has to say
        assert stopped.code == 7
        assert "began anew" in stopped.err
        assert shell("audit", "restored", "--yes", home=admin).code == 0
        # it learns of the new history, and sends again
        assert shell("outbox", "send", home=lab).code == 0
        got = shell("fetch", home=center)
        assert got.code == 0, got.err
        assert shell("audit", "verify", home=admin).code == 0
    assert sorted(c for c in received(center) if isinstance(c, str)) == [
        "after the backup",
        "arrives",
        "waits",
    ]
    files = [
        path.read_bytes() for path in (center / "incoming" / "FL-LAB").rglob("*") if path.is_file()
    ]
    assert files == [large.read_bytes()]


def test_what_is_wrong_with_a_backup_is_said(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    backup, again = tmp_path / "backup", tmp_path / "again"
    people(directory, admin, tmp_path / "FL-LAB")
    assert shell("backup", str(directory), "--to", str(backup), home=admin).code == 0

    def refused(*arguments: str, says: str) -> None:
        shown: Shown = shell(*arguments, home=admin)
        assert shown.code not in (0, 70), shown.err
        assert says in shown.err

    refused("backup", str(directory), "--to", str(backup), says="already exists")
    refused("backup", str(tmp_path / "nowhere"), says="cipherbox init")
    refused("restore", str(tmp_path), str(again), says="not a complete backup")
    refused("restore", str(backup), str(directory), says="is not empty")
    for name in ("files/secrets/service.key", "store/cipherbox.sqlite3"):
        file = backup / name
        before = file.read_bytes()
        middle = len(before) // 2
        file.write_bytes(before[:middle] + bytes([before[middle] ^ 1]) + before[middle + 1 :])
        shown = shell("restore", str(backup), str(again), home=admin)
        if name.startswith("files"):
            assert "was changed after the backup" in shown.err
        assert shown.code != 70, shown.err
        if shown.code:
            assert not again.exists()
        else:  # the flipped bit was in an empty page
            shutil.rmtree(again)
        file.write_bytes(before)
    assert shell("restore", str(backup), str(again), home=admin).code == 0


def test_copy_to_postgresql_and_back(tmp_path: Path, postgresql: postgres.Server) -> None:
    directory, admin = make_hq(tmp_path)
    lab, center = tmp_path / "FL-LAB", tmp_path / "CA-RC"
    people(directory, admin, lab, center)
    url = f"{postgres.url(postgresql)}&schema={postgres.schema()}"
    with serving(directory):
        assert shell("send", "--to", "CA-RC", "in SQLite", home=lab).code == 0
        running = shell("store", "copy", str(directory), url, home=admin)
        assert running.code != 0
        assert "process" in running.err
    copied = shell("store", "copy", str(directory), url, "--switch", home=admin)
    assert copied.code == 0, copied.err
    assert "all the same" in copied.out
    again = shell("store", "copy", str(directory), url, "--switch", home=admin)
    assert (again.code, "uses this database already" in again.out) == (0, True)
    with serving(directory):
        assert shell("send", "--to", "CA-RC", "in PostgreSQL", home=lab).code == 0
    back = tmp_path / "back.sqlite3"
    assert (
        shell("store", "copy", str(directory), f"sqlite:{back}", "--switch", home=admin).code == 0
    )
    assert back.exists()
    taken = shell("store", "copy", str(directory), f"sqlite:{back}", home=admin)
    assert (taken.code, "uses this database already" in taken.out) == (0, True)
    with serving(directory):
        assert shell("receive", "--count", "2", "--idle", "20", home=center).code == 0
        assert shell("audit", "verify", home=admin).code == 0
    taken = shell("store", "copy", str(directory), url, home=admin)  # it has an older HQ
    assert (taken.code, "already contains an HQ" in taken.err) == (5, True)
    assert received(center) == ["in SQLite", "in PostgreSQL"]
    assert shell("store", "upgrade", str(directory), home=admin).code == 0
