"""What is in the way of `install` is found before anything is touched."""

from __future__ import annotations

import errno
import os
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from cipherbox.cli.install import checks as install_checks
from cipherbox.cli.install import steps as installing
from cipherbox.cli.install.checks import check
from cipherbox.cli.install.places import Places, system_places
from cipherbox.cli.install.source import program_source
from cipherbox.errors import ConfigError
from cipherbox.portable import as_user, is_root, other_user


def problems(places: Places, **more: Any) -> str:
    options = {"server": True, "python": Path("/bin/sh"), "systemd": False, **more}
    with pytest.raises(ConfigError) as found:
        check(places, **options)
    return str(found.value)


def test_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_checks, "is_root", lambda: True)
    monkeypatch.setattr(install_checks, "runs_systemd", lambda: False)
    text = problems(system_places(Path("/")), systemd=True)
    assert "does not run systemd" in text
    assert "--no-systemd" in text
    assert "/usr/local/bin/cipherbox serve /var/lib/cipherbox" in text


def test_a_python_that_the_service_could_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_checks, "is_root", lambda: True)
    assert "/usr/bin/python3" in problems(
        system_places(Path("/")), python=Path("/", "root", "own", "python3")
    )


def test_a_file_where_a_directory_must_be(tmp_path: Path) -> None:
    (tmp_path / "opt").write_text("a file")
    assert f"{tmp_path / 'opt'} is not a directory" in problems(system_places(tmp_path))


def test_another_program_of_the_same_name_stays(tmp_path: Path) -> None:
    command = tmp_path / "usr/local/bin/cipherbox"
    command.parent.mkdir(parents=True)
    command.write_bytes(b"#!/bin/sh\nexec something-else\n")
    assert f"{command} is another program" in problems(system_places(tmp_path))
    command.write_bytes(b'#!/bin/sh\nexec python3 /opt/cipherbox/cipherbox.pyz "$@"\n')  # of 0.4
    check(system_places(tmp_path), server=True, python=Path("/bin/sh"), systemd=False)


def test_a_directory_that_is_somebody_elses(tmp_path: Path) -> None:
    if not is_root():
        pytest.skip("only root can make a directory of another user")
    other = other_user()["user"]
    places = attrs.evolve(
        system_places(Path("/")),
        base=tmp_path / "cipherbox",
        command=tmp_path / "bin/cipherbox",
        share=tmp_path / "share",
        units=tmp_path / "units",
        data=tmp_path / "data",
        settings=tmp_path / "etc",
    )
    places.base.mkdir()
    check(places, server=True, python=Path("/bin/sh"), systemd=False)
    os.chown(places.base, other, other)
    assert f"{places.base} belongs to nobody" in problems(places)
    os.chown(places.base, 0, 0)
    places.base.chmod(0o775)
    assert "can be written by others" in problems(places)
    places.base.chmod(0o755)
    places.data.mkdir()
    os.chown(places.data, other, other)
    assert f"{places.data} belongs to nobody" in problems(places)
    assert "chown -R cipherbox:" in problems(places)


def found_at(path: Path) -> str:
    return "".join(install_checks.place_problems(path, 0))


def test_a_directory_that_cannot_be_written() -> None:
    """Asked by a user without rights, for whom /opt is such a directory."""
    if not is_root():
        pytest.skip("only root can become another user")
    assert as_user("nobody", found_at, Path("/opt/x")) == (
        "/opt cannot be written; /opt belongs to root. Run this as that user"
    )


def test_a_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_RDONLY))
    assert f"{tmp_path} is on a read-only file system; mount it writable" in problems(
        system_places(tmp_path)
    )


def test_a_full_disk_is_seen_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert "is full: 200 MB must be free" in problems(system_places(tmp_path))
    # to remove something needs no room
    check(system_places(tmp_path), server=True, python=None, systemd=False)


def test_a_disk_that_fills_leaves_the_old_version(
    pyz: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = system_places(tmp_path)
    left = [3]

    def write(path: Path, data: bytes) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.touch()

    monkeypatch.setattr(Path, "write_bytes", write)
    source = program_source(pyz, Path(sys.executable))
    step = installing.tree_step(places, source, Path("/bin/sh"), ["server"], {"etc/x": b"x"})
    with pytest.raises(OSError, match="No space"):
        step.do()
    assert list((tmp_path / "opt/cipherbox").iterdir()) == []


def test_a_file_for_another_machine_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "x.pyz"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("build", "0" * 64)
        archive.writestr("native/plan9-mips/any/x.so", "")
    with pytest.raises(ConfigError, match="this file is for plan9-mips, and this machine is"):
        program_source(other, Path(sys.executable))
