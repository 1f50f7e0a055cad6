"""File modes, atomic writes, locks, names, texts."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cipherbox import limits, portable
from cipherbox.client.file_names import safe_name
from cipherbox.errors import ConfigError, InvalidRequest, StoreLocked
from tests.warm import FORKED


def test_private_files_are_private_and_must_stay_so(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    portable.write_private(path, b"s")
    assert path.stat().st_mode & 0o777 == 0o600
    assert portable.read_private(path) == b"s"
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(ConfigError, match="chmod 600"):
            portable.read_private(path)
    with pytest.raises(ConfigError, match="cannot read"):
        portable.read_private(tmp_path / "none")


AS_ANOTHER = """
import os, sys
from cipherbox.portable import as_user
def work():
    print(os.getpid(), flush=True)
    sys.stdin.readline()
as_user("nobody", work)
"""


@pytest.mark.skipif(not portable.is_root(), reason="another user's process needs root")
def test_a_process_of_another_user_ends_although_its_parent_was_killed() -> None:
    command, pipe = [sys.executable, "-c", FORKED + AS_ANOTHER], subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pid = int(process.stdout.readline())
        assert pid != process.pid
        process.kill()
        process.stdin.write("done\n")
        process.stdin.close()
        # it has the other end: this comes to an end when it does
        assert process.stdout.read() == ""


def test_a_write_that_fails_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    portable.write_atomic(path, b"old")

    def broken(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="space"):
        portable.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not portable.is_locked(path)
    assert not path.exists()
    script = (
        "import sys, pathlib\nfrom cipherbox import portable\nwith "
        "portable.lock_file(pathlib.Path(sys.argv[1]), 'this place'):\n    print('held', "
        "flush=True)\n    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        assert portable.is_locked(path)
        with pytest.raises(StoreLocked, match=f"this place is in use .*process {child.pid}"):
            with portable.lock_file(path, "this place"):
                pass
        child.kill()
        child.wait()
        assert not portable.is_locked(path)
        with portable.lock_file(path, "this place"):
            pass


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\system.ini", "system.ini"),
        ("..", "_"),
        ("", "_"),
        ("/", "_"),
        (".hidden", "hidden"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("a\x00b\nc", "abc"),
        ("a:b*c", "a_b_c"),
        ("\u202egnp.exe", "gnp.exe"),
        ("name. ", "name"),
        ("größe.txt", "größe.txt"),
        ("ä" * 100, "ä" * 60),
        ("s" * 200 + ".vcf.gz", "s" * 113 + ".vcf.gz"),
        ("s" * 200 + ".2024.dcm", "s" * 116 + ".dcm"),
        ("s" * 200 + ".nii.gz", "s" * 113 + ".nii.gz"),
        ("x" * 130 + ".tar.gz", "x" * 113 + ".tar.gz"),
        ("aux .txt", "_aux .txt"),
        ("CONIN$", "_CONIN$"),
        ("e\u0301", "é"),
    ],
)
def test_safe_names(name: str, safe: str) -> None:
    assert safe_name(name) == safe


@given(st.text(max_size=200))
def test_a_safe_name_is_one_plain_component(text: str) -> None:
    name = safe_name(text)
    assert 0 < len(name.encode()) <= 120
    assert name == os.path.basename(name)
    assert not set(name) & set('<>:"/\\|?*')
    assert not name.startswith(".")
    assert name.isprintable()


@given(st.text(max_size=300))
def test_an_escaped_text_moves_no_cursor(text: str) -> None:
    assert portable.escape_text(text).isprintable()


def test_escaping_keeps_what_can_be_read() -> None:
    assert portable.escape_text("Größe 寸") == "Größe 寸"
    assert portable.escape_text("\x1b[31mred\u202e\n") == "\\x1b[31mred\\u202e\\n"


@pytest.mark.parametrize("name", ["FL-LAB", "a", "0", "a_b-c", "x" * 63])
def test_client_ids(name: str) -> None:
    assert limits.check_client_id(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "_a", "a b", "ä", "x" * 64, "a/b", "nul", "Com1", "CONIN$", "a\n"]
)
def test_what_is_no_client_id(name: str) -> None:
    with pytest.raises(InvalidRequest):
        limits.check_client_id(name)


def test_a_copy_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target, part = tmp_path / "source", tmp_path / "target", tmp_path / ".part"
    source.write_bytes(b"content")
    os.utime(source, (1_000_000, 2_000_000))
    part.write_bytes(b"left by a crash")
    portable.copy_file(source, target, part)
    assert target.read_bytes() == b"content"
    assert target.stat().st_mtime == 2_000_000
    assert not part.exists()

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(portable, "sync_file", full)
    source.write_bytes(b"other content")
    with pytest.raises(OSError, match="No space left"):
        portable.copy_file(source, target, part)
    assert target.read_bytes() == b"content"
    assert not part.exists()
    portable.replace_file(source, target)
    assert target.read_bytes() == b"other content"
    assert not source.exists()


def test_a_part_that_a_killed_write_left_goes_with_the_next_write(tmp_path: Path) -> None:
    """One that a process is writing stays, however old; and so do other files."""
    path = tmp_path / "client.key"
    for name in (".client.key.abcdefg1.part", ".client.key.abcdefg2.part", ".client.crt.aaaaaaaa"):
        (tmp_path / name).write_bytes(b"half")
    busy = tmp_path / ".client.key.abcdefg2.part"
    os.utime(busy, (0, 0))
    with portable.lock_file(busy, "a write"):
        assert portable.parts_in(tmp_path) == [
            tmp_path / ".client.key.abcdefg1.part",
            busy,
        ]
        portable.write_private(path, b"new")
        assert sorted(os.listdir(tmp_path)) == [".client.crt.aaaaaaaa", busy.name, "client.key"]
    portable.write_private(path, b"newer")
    assert sorted(os.listdir(tmp_path)) == [".client.crt.aaaaaaaa", "client.key"]


def test_a_part_is_locked_until_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def look(source: str, target: Path) -> None:
        assert portable.is_locked(Path(source))
        assert portable.remove_parts(tmp_path) == []
        replace(source, target)

    monkeypatch.setattr(os, "replace", look)
    portable.write_atomic(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


def test_a_part_that_is_removed_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tempfile.mkstemp
    left = [1]

    def mkstemp(*arguments: object) -> tuple[int, str]:
        fd, name = made(*arguments)  # type: ignore[call-overload]
        if left:
            left.pop()
            assert portable.remove_parts(tmp_path) == [Path(name)]
        return fd, name

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    portable.write_atomic(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("here", ["linux", "another system"])
def test_data_is_passed_as_a_private_file_that_is_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, here: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if here == "linux" and not Path("/proc/self/fd").is_dir():
        pytest.skip("this system has no /proc")
    monkeypatch.setattr(sys, "platform", here)
    with portable.passing_file(b"key") as path:
        assert path.read_bytes() == b"key"
        assert (os.listdir(tmp_path) == []) is (here == "linux")
        if here != "linux":
            assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == []
    assert not path.exists()


@pytest.mark.skipif(not portable.is_root(), reason="only root can make files that belong to others")
def test_a_lock_made_by_root_belongs_to_the_owner_of_its_directory(tmp_path: Path) -> None:
    ids = portable.ids_of("nobody")
    assert ids is not None
    portable.give_to(tmp_path, ids)
    with portable.lock_file(tmp_path / "lock", "this place"):
        found = (tmp_path / "lock").stat()
    assert (found.st_uid, found.st_gid) == ids
