"""The page `files-on-disk` against what real runs leave: no file is missing there, and each has
the mode it says.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from cipherbox.cli.manual import manual_pages
from cipherbox.ops.unpack import CACHE_VARIABLE

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, first_line, shell
from .test_install import WARM

PAGE = manual_pages()["files-on-disk"]


def rows(heading: str) -> dict[str, list[str]]:
    """Path -> the other cells of the table of a section; a path with a slash at its end is a
    directory.
    """
    section = PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    found = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            found.update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1:]))
    assert found, heading
    return found


def undocumented(top: Path, table: dict[str, list[str]], *, modes: bool) -> list[str]:
    """What is below ``top`` and not in the table, or has another mode; the longest pattern that
    fits counts.
    """
    wrong = []
    for path in sorted(top.rglob("*")):
        directory = path.is_dir() and not path.is_symlink()
        name = path.relative_to(top).as_posix() + "/" * directory
        fitting = [
            one for one in table if fnmatchcase(name, one) and one.endswith("/") == directory
        ]
        if not fitting:
            if directory and any(
                one.startswith(name) or fnmatchcase(name, f"{one}*") for one in table
            ):
                continue  # on the way to one, or below a directory whose content is one kind
            wrong.append(name)
        elif modes:
            told = table[max(fitting, key=len)][0]
            if path.lstat().st_mode & 0o777 != int(told, 8):
                wrong.append(f"{name}: {path.lstat().st_mode & 0o777:04o}, not {told}")
    return wrong


@pytest.fixture(autouse=True)
def ordinary_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def run(*arguments: str, home: Path, stdin: str = "") -> None:
    shown = shell(*arguments, home=home, stdin=stdin)
    assert shown.code == 0, shown.err


def test_a_table_that_lacks_a_file_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "ca").mkdir(mode=0o700)
    (tmp_path / "ca" / "root.key").touch(0o600)
    assert undocumented(tmp_path, {"ca/": ["0700"], "ca/root.key": ["0600"]}, modes=True) == []
    assert undocumented(tmp_path, {"ca/": ["0700"]}, modes=True) == ["ca/root.key"]
    assert undocumented(tmp_path, {"ca/": ["0700"], "ca/*": ["0644"]}, modes=True) == [
        "ca/root.key: 0600, not 0644"
    ]


def test_what_hq_and_clients_leave(umasked_hq: Hq, tmp_path: Path) -> None:
    hq = umasked_hq
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    run42 = tmp_path / "run-42"
    run42.mkdir()
    large = run42 / "scan.tif"
    large.write_bytes(os.urandom(2_500_000))
    run("receive", "--idle", "1s", home=center)  # leaves the prekeys that a session begins with
    run("send", "--to", "CA-RC", "text", home=lab)
    run("send", "--to", "CA-RC", "--type", "application/pdf", home=lab, stdin="not text")
    run("send", "--to", "CA-RC", "--file", str(large), "--file", str(run42), "--copy", home=lab)
    run("send", "--to", "CA-RC", "--wrap", "ratchet", "in a session", home=lab)
    for arguments in (
        ("exchange", "declare", "results"),
        ("queue", "declare", "shared", "--owner", "CA-RC"),
        ("binding", "declare", "results", "shared", "all"),
        ("grant", "FL-LAB", "publish", "results"),
    ):
        run(*arguments, home=hq.admin)
    run("route", "allow", "results", "CA-RC", home=lab)
    run("send", "--exchange", "results", "--key", "all", "by route", home=lab)
    run("receive", "--idle", "2s", home=center)
    run("keys", "rotate", home=center)
    run("keys", "renew", home=center)
    word = tmp_path / "word"
    word.write_text("correct horse")
    word.chmod(0o600)
    run("keys", "password", "--new-password-file", str(word), home=center)
    with subprocess.Popen(
        [*PROGRAM, "--home", str(lab), "agent"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=ENVIRONMENT,
    ) as agent:
        try:
            assert "Watching" in first_line(agent)
            run("backup", str(hq.directory), "--to", str(tmp_path / "backup"), home=hq.admin)
            found = undocumented(hq.directory, rows("HQ's directory"), modes=True)
            found += undocumented(lab, rows("A client's home"), modes=True)
        finally:
            agent.terminate()
            agent.communicate(timeout=LIMIT_S)
    assert found == []
    assert undocumented(center, rows("A client's home"), modes=True) == []
    table = rows("A client's home")
    of_admin = [
        *list(table)[:7],
        "certs/",
        "certs/hq-log.key",
        *(name for name in table if name.startswith("log.")),
    ]
    assert undocumented(hq.admin, {name: table[name] for name in of_admin}, modes=True) == []
    assert (center / "incoming" / "FL-LAB" / "scan.tif").is_file()
    assert (center / "incoming" / "FL-LAB" / "run-42" / "scan.tif").is_file()

    kept = {
        path.relative_to(tmp_path / "backup/files").as_posix()
        for path in (tmp_path / "backup/files").rglob("*.*")
    }
    told = {
        name
        for name, cells in rows("HQ's directory").items()
        if cells[-1] == "yes" and not name.endswith("/")
    }
    assert kept == told
    assert {path.name for path in (tmp_path / "backup").iterdir()} == {
        name.strip("/") for name in rows("A backup of HQ")
    }


@pytest.fixture
def umasked_hq(ordinary_umask: None, hq: Hq) -> Hq:
    return hq


def test_what_an_offline_ca_is(tmp_path: Path) -> None:
    run(
        "init",
        str(tmp_path / "hq"),
        "--offline-ca",
        str(tmp_path / "stick"),
        home=tmp_path / "admin",
    )
    assert {path.name for path in (tmp_path / "stick").iterdir()} == {*rows("An offline CA")}
    assert undocumented(tmp_path / "stick", rows("An offline CA"), modes=True) == []
    assert undocumented(tmp_path / "hq", rows("HQ's directory"), modes=True) == []


def test_what_is_installed(pyz: Path, tmp_path: Path) -> None:
    root, cache = tmp_path / "root", {CACHE_VARIABLE: str(tmp_path / "cache")}
    start = [sys.executable, "-c", WARM, str(pyz)]
    for arguments in (
        ["install", "--root", str(root)],
        ["--home", str(tmp_path / "admin"), "init", str(root / "var/lib/cipherbox")],
        ["install", "--root", str(root)],  # the ports, now that there are settings
    ):
        done = subprocess.run(
            [*start, *arguments],
            capture_output=True,
            env=ENVIRONMENT | cache,
            timeout=LIMIT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    table = {path.lstrip("/"): cells for path, cells in rows("An installed system").items()}
    there = [
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() or path.is_symlink()
    ]
    outside = [
        name for name in there if not name.startswith(("opt/cipherbox/", "var/lib/cipherbox/"))
    ]
    assert [name for name in outside if not any(fnmatchcase(name, one) for one in table)] == []
    below = {
        path.name + "/" * (not path.is_symlink()) for path in (root / "opt/cipherbox").iterdir()
    }
    assert [
        name
        for name in below
        if not any(fnmatchcase(f"opt/cipherbox/{name}", one) for one in table)
    ] == []
    missing = [
        one
        for one in table
        if "*" not in one and one.startswith(("etc", "usr")) and one not in there
    ]
    assert missing == []
