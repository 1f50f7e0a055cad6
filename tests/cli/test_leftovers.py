"""`doctor --clean`: what killed commands left is found and removed, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cipherbox.cli.doctor import hq as doctor_hq
from cipherbox.cli.doctor.findings import GOOD, WARN
from cipherbox.cli.doctor.leftovers import check, of_client, of_hq, of_machine
from cipherbox.client.inbox.decrypted_files import OPENED
from cipherbox.config.settings import ServerConfig, load_client_config, load_server_config
from cipherbox.errors import StoreLocked
from cipherbox.harness.workplace import abandoned, remove_tree, workplace
from cipherbox.portable import (
    WINDOWS,
    give_to,
    ids_of,
    is_root,
    lock_file,
    passed_lock,
    write_private,
)
from cipherbox.server.operations import backup
from cipherbox.server.operations.check import LOCK
from cipherbox.server.operations.setup import UNFINISHED
from tests.client.real_hq import copy_hq
from tests.warm import FORKED


@pytest.fixture
def config(enrolled: Path, tmp_path: Path) -> ServerConfig:
    copy_hq(enrolled, tmp_path, "127.0.0.1:9")
    return load_server_config(tmp_path / "hq")


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


def left_by_hq(config: ServerConfig) -> list[Path]:
    """Something of each kind, as kills leave it."""
    top = config.directory
    part = top.parent / f"backup-1.0123abcd{backup.part_of(config)}"
    files = [
        top / ".cipherbox.toml.abcd_123.part",
        top / "secrets" / ".service.key.0bcdefgh.part",
        top / "tls" / ".server.key.zzzzzzzz",  # of 0.5.0
        top / "spool.0123456789ab" / "00000001-0000000001.spool",
        part / "files" / "secrets" / "service.key",
        top / UNFINISHED,
        top / "cipherbox.sqlite3.schema4.part",
        top / "cipherbox.sqlite3.schema4.part-journal",
    ]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"secret")
    old = time.time() - 4000
    os.utime(files[2], (old, old))
    return [*files[:3], files[3].parent, part, *files[5:]]


def test_hq_s_are_found_named_and_removed_when_asked(config: ServerConfig) -> None:
    before = names(config.directory.parent)
    left = left_by_hq(config)
    found = {item.path: item.what for item in of_hq(config)}
    assert set(found) == set(left)
    assert "HQ's secrets" in found[left[4]]
    (told,) = check(of_hq(config), "cipherbox doctor hq", clean=False)
    assert (told.level, told.todo) == (WARN, "remove them: cipherbox doctor hq --clean")
    assert "and 5 more" in told.text
    assert all(path.exists() for path in left)
    removed = [*check(of_hq(config), "cipherbox doctor hq", clean=True)]
    assert len(removed) == len(left)
    assert f"removed {left[3]}: links of an interrupted backup" in " ".join(
        one.text for one in removed
    )
    assert names(config.directory.parent) == before
    (good,) = check(of_hq(config), "", clean=True)
    assert good.level == GOOD


def test_what_a_running_command_uses_stays(config: ServerConfig) -> None:
    left = left_by_hq(config)
    with ExitStack() as stack:
        for path in (*left[:2], config.directory / LOCK, config.directory / backup.BACKUP_LOCK):
            stack.enter_context(lock_file(path, "this"))
        os.utime(left[2])  # just written
        assert [*of_hq(config)] == []
        [*check(of_hq(config), "", clean=True)]
        assert all(path.exists() for path in left)
    assert len([*of_hq(config)]) == len(left) - 1


def test_a_complete_backup_that_lacks_its_name_is_reported_and_kept(config: ServerConfig) -> None:
    """It may hold the only copy of what was lost since."""
    to = config.directory.parent / "backup"
    backup.back_up(config, to)
    part = to.rename(to.with_name(f"backup.89abcdef{backup.part_of(config)}"))
    other = config.directory.parent / "backup.89abcdef.00000000.part"  # of another HQ
    other.mkdir()
    assert [*of_hq(config)] == []
    found = [
        one
        for one in doctor_hq.look(config.directory, clean=True)
        if (one.level, one.about) == (WARN, "leftovers")
    ]
    assert [str(part) in one.text for one in found] == [True]
    assert part.exists()
    backup.back_up(config, to)
    assert not part.exists()  # now there is another
    assert other.exists()


def test_a_clients_are_found_and_removed(config: ServerConfig) -> None:
    client = load_client_config(config.directory.parent / "homes" / "CA-RC")
    before = names(client.home)
    write_private(client.home / ".allow.json.00000000.part", b"x")
    opened = client.home / OPENED / "0123" / "patient.txt"
    opened.parent.mkdir(parents=True)
    opened.write_text("readable")
    own = client.home / ".notes.original"  # nobody's but the owner's
    own.write_text("mine")
    with lock_file(client.home / "lock", "this home"):
        assert len([*of_client(client)]) == 1
    removed = [*check(of_client(client), "cipherbox doctor", clean=True)]
    assert "readable copies" in removed[-1].text
    assert names(client.home) - before == {".notes.original", "lock", "data"}


@pytest.mark.parametrize("renews", [False, True])
def test_a_join_that_nobody_finished_is_removed_when_its_token_has_ended(
    config: ServerConfig, renews: bool
) -> None:
    """Run again in time it resumes with the same key: `tests/e2e/test_killed.py`."""
    client = load_client_config(config.directory.parent / "homes" / "CA-RC")
    pending, key = client.home / "joining.json", client.home / "client.key.next"
    for path in (pending, key):
        write_private(path, b"x")
    assert [*of_client(client)] == []
    old = time.time() - 91 * 86_400
    for path in (pending, *([] if renews else [key])):
        os.utime(path, (old, old))
    removed = [*check(of_client(client), "cipherbox doctor", clean=True)]
    assert "token has expired" in removed[0].text
    assert not pending.exists()
    assert key.exists() is renews


KILLED = """
import os, signal, sys
from pathlib import Path
from cipherbox.harness.workplace import workplace
with workplace(sys.argv[1], Path(sys.argv[2])) as place:
    (place / "plain.txt").write_text("patient")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_demo_left_goes_with_the_next_run_or_with_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = tmp_path / "cipherbox-demo-abcdefgh"  # of `demo --keep`: no run holds a lock in it
    kept.mkdir()
    with workplace("cipherbox-prove-") as running:
        for prefix in ("cipherbox-demo-", "cipherbox-bench-"):
            command = [sys.executable, "-c", FORKED + KILLED, prefix, str(tmp_path)]
            assert subprocess.run(command, timeout=300, check=False).returncode == -9
            (left,) = abandoned()
            assert left.name.startswith(prefix)
            if prefix == "cipherbox-demo-":
                with workplace("cipherbox-demo-") as later:
                    assert {*tmp_path.iterdir()} == {kept, running, later}
        (found,) = check(of_machine(), "cipherbox doctor", clean=False)
        assert (found.level, str(left) in found.text) == (WARN, True)
        [*check(of_machine(), "cipherbox doctor", clean=True)]
        assert {*tmp_path.iterdir()} == {kept, running}
    assert {*tmp_path.iterdir()} == {kept}


def test_a_run_ends_where_paths_cannot_tell_what_is_mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python 3.11 on Windows."""

    def is_mount(path: Path) -> bool:
        raise AssertionError("there is none")

    monkeypatch.setattr(Path, "is_mount", is_mount)
    with workplace("cipherbox-demo-", tmp_path) as place:
        (place / "homes").mkdir()
    assert [*tmp_path.iterdir()] == []


BEREFT = """
import os, signal, sys
from pathlib import Path
import trio
from cipherbox.harness.stage import Stage
from cipherbox.harness.workplace import workplace
async def main():
    with workplace("cipherbox-prove-") as place:
        program = place / "program.py"
        program.write_text("import threading; print(1, flush=True); threading.Event().wait(600)")
        stage = Stage(place)
        many = place / "many"
        many.mkdir()
        for number in range(2000):
            (many / str(number)).touch()
        for name in ("stopped", "running"):
            process, _ = await stage.start(name, "python", str(program))
            while not [*(place / "processes").glob(str(process.pid))]:
                await trio.sleep(0.01)
            print(process.pid, flush=True)
            if name == "stopped":
                os.kill(process.pid, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGKILL)
trio.run(main)
"""


@pytest.mark.skipif(WINDOWS, reason="it has no SIGKILL")
def test_what_a_killed_run_started_ends_and_its_directory_goes(tmp_path: Path) -> None:
    """Also what a signal had stopped, so that it cannot end itself."""
    command = [sys.executable, "-c", FORKED + BEREFT, "prove"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, timeout=300, check=False
    )
    assert done.returncode == -9
    pids = [int(line) for line in done.stdout.split()]
    assert len(pids) == 2
    until = time.monotonic() + 60
    while any(tmp_path.iterdir()) or any(map(runs, pids)):
        assert time.monotonic() < until, [*tmp_path.iterdir()]
        threading.Event().wait(0.01)


@pytest.mark.skipif(not is_root(), reason="another user's files need root")
def test_nobody_has_root_end_a_process_by_naming_it(tmp_path: Path) -> None:
    """Anyone can make a directory among the temporary files that looks as one of a killed run."""
    for theirs in ("processes/1", "processes"):
        place = tmp_path / "cipherbox-prove-abcdefgh"
        (place / "processes").mkdir(parents=True)
        (place / "run.lock").write_text("1")
        command = [sys.executable, "-c", FORKED + "input()"]
        with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
            with passed_lock(place / "processes" / "1") as lock:
                os.write(lock, str(process.pid).encode())
                give_to(place / theirs, ids_of("nobody") or (1, 1))
                (found,) = abandoned(tmp_path)
                remove_tree(found)
            assert process.poll() is None
            process.kill()
        assert not place.exists()


def runs(pid: int) -> bool:
    """Whether it does; a process that has ended may wait for its parent."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


STOPPED = """
import sys
from pathlib import Path
import trio
from cipherbox.cli.running import run_until_stopped
from cipherbox.harness.workplace import workplace
async def work():
    print("begun", flush=True)
    try:
        await trio.sleep_forever()
    finally:
        print("stopping", flush=True)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(sys.stdin.readline)
with workplace("cipherbox-prove-", Path(sys.argv[1])):
    run_until_stopped(work)
"""


@pytest.mark.skipif(WINDOWS, reason="it has no SIGTERM")
def test_a_second_signal_leaves_nothing_behind(tmp_path: Path) -> None:
    """`timeout` sends two: the one that came while the run was stopping ended the program."""
    command = [sys.executable, "-c", FORKED + STOPPED, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        for shown in ("begun", "stopping"):
            assert process.stdout.readline().strip() == shown
            process.terminate()
        _, err = process.communicate("go on\n", timeout=300)
    assert "KeyboardInterrupt" in err
    assert [*tmp_path.iterdir()] == []


def test_an_unfinished_restore_is_named_with_the_way_on(tmp_path: Path) -> None:
    write_private(tmp_path / UNFINISHED, b"[]")
    found = [one for one in doctor_hq.look(tmp_path) if one.about == "leftovers"]
    assert [one.todo for one in found] == ["run it again: it starts anew"]


def test_two_restores_into_one_directory_do_not_meet(config: ServerConfig, tmp_path: Path) -> None:
    to, again = tmp_path / "backup", tmp_path / "again"
    backup.back_up(config, to)
    met: list[str] = []

    def tell(table: str, rows: int) -> None:
        if not met:
            met.append(table)
            with pytest.raises(StoreLocked, match="another command is creating an HQ"):
                backup.restore(to, again, None, lambda *_: None)
            found = [one for one in doctor_hq.look(again) if one.about == "leftovers"]
            assert found == []

    backup.restore(to, again, None, tell)
    assert met
    assert load_server_config(again).server == config.server
    assert not (again / UNFINISHED).exists()


def test_two_backups_of_one_hq_do_not_meet(config: ServerConfig, tmp_path: Path) -> None:
    met: list[str] = []

    def tell(table: str, rows: int) -> None:
        if not met:
            met.append(table)
            with pytest.raises(StoreLocked, match="the backup of"):
                backup.back_up(config, tmp_path / "other")
            assert [*of_hq(config)] == []

    backup.back_up(config, tmp_path / "backup", tell)
    assert met
    assert not (tmp_path / "other").exists()
