"""Where the one file unpacks itself: nobody else may be able to change what runs from there."""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cipherbox.ops import unpack
from cipherbox.ops.unpack import check_place

pytestmark = pytest.mark.skipif(os.name == "nt", reason="modes are Unix's")


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    folder = tmp_path / "a" / "b" / "cache"
    folder.mkdir(parents=True, mode=0o755)
    for one in (folder, *folder.parents[:2]):
        one.chmod(0o755)
    return folder


def test_a_place_of_ones_own_is_fine(deep: Path) -> None:
    check_place(deep)


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("mode", [0o757, 0o777])
def test_a_directory_above_that_others_may_write_is_refused(
    deep: Path, which: int, mode: int
) -> None:
    """Who may write a parent can put another folder in the place of the checked one."""
    place = (deep, *deep.parents)[which]
    place.chmod(mode)
    with pytest.raises(ValueError, match=f"{place} can be written by others"):
        check_place(deep)


def test_a_sticky_directory_will_do_above_it_and_not_for_itself(deep: Path) -> None:
    deep.parent.chmod(0o1777)
    check_place(deep)
    deep.chmod(0o1777)
    with pytest.raises(ValueError, match="can be written by others"):
        check_place(deep)


def test_a_parent_of_another_user_is_refused(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.lstat

    def lstat(self: Path) -> Any:
        found = real(self)
        if self == deep.parent:
            return os.stat_result((*found[:4], 12345, *found[5:]))
        return found

    monkeypatch.setattr(Path, "lstat", lstat)
    with pytest.raises(ValueError, match=f"{deep.parent} belongs to another user"):
        check_place(deep)


def test_a_group_of_ones_own_may_write(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = pwd.getpwuid(os.geteuid())
    deep.parent.chmod(0o775)
    members: list[str] = []
    monkeypatch.setattr(os, "getegid", lambda: deep.parent.stat().st_gid)
    monkeypatch.setattr(
        grp, "getgrgid", lambda gid: grp.struct_group((me.pw_name, "x", gid, members))
    )
    check_place(deep)
    members.append("somebody")
    with pytest.raises(ValueError, match="can be written by others"):
        check_place(deep)


def test_a_link_counts_as_where_it_leads(
    deep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was checked is used, so a link that changes afterwards leads nowhere else."""
    deep.parent.chmod(0o777)
    link = tmp_path / "link"
    link.symlink_to(deep)
    monkeypatch.setenv(unpack.CACHE_VARIABLE, str(link))
    with pytest.raises(ValueError, match=f"{deep.parent} can be written by others"):
        unpack.unpacked("no file", "0" * 64)


def _fake_first(file: str, cache: Path, target: Path) -> None:
    target.mkdir(mode=0o700)


def test_without_a_home_it_unpacks_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv(unpack.CACHE_VARIABLE, raising=False)
    # what Python says of a user without an entry
    monkeypatch.setattr(os.path, "expanduser", lambda name: name)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(unpack, "unpack_first", _fake_first)
    monkeypatch.setattr(unpack, "check_place", lambda *_, **__: None)
    found = unpack.unpacked("file", "0" * 64)
    assert found.parent == tmp_path / f"cipherbox-{os.geteuid()}"
    assert stat.S_IMODE(found.parent.stat().st_mode) == 0o700


def test_a_home_that_runs_nothing_is_said_and_gone_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.delenv(unpack.CACHE_VARIABLE, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda _: str(home))
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(unpack, "unpack_first", _fake_first)
    monkeypatch.setattr(unpack, "check_place", lambda *_, **__: None)
    monkeypatch.setattr(unpack, "runs_nothing", lambda place: place.is_relative_to(home))
    assert unpack.unpacked("file", "0" * 64).parent.parent == temporary
    assert "noexec" in capsys.readouterr().err
    unpack.unpacked("file", "0" * 64)
    assert capsys.readouterr().err == ""  # said once
    monkeypatch.setattr(unpack, "runs_nothing", lambda _: True)
    with pytest.raises(ValueError, match=r"home/.cache.*noexec.*; .*cipherbox-"):
        unpack.unpacked("file", "1" * 64)
    monkeypatch.setenv(unpack.CACHE_VARIABLE, str(tmp_path / "named"))
    with pytest.raises(ValueError, match="named: files there may not be executed"):
        unpack.unpacked("file", "1" * 64)


def test_everything_is_synced_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut just after the first start leaves empty modules that every start uses."""
    file = tmp_path / "cipherbox.pyz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("site/one.py", "1")
        archive.writestr(f"native/{unpack.platform_name()}/any/two.py", "2")
    synced, sync = [], unpack.sync_files

    def note(folder: Path) -> None:
        synced.append((sorted(path.name for path in folder.iterdir()), target.exists()))
        sync(folder)

    target = tmp_path / "cache" / "build"
    target.parent.mkdir()
    monkeypatch.setattr(unpack, "sync_files", note)
    unpack.unpack_first(str(file), target.parent, target)
    assert synced == [(["one.py", "two.py"], False)]
    assert (target / "one.py").read_text() == "1"
    assert os.listdir(target.parent) == ["build"]
