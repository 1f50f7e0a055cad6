"""HQ where it may not write or read, or on a full disk: the cause and what to do are said, and
nothing is left half.
"""

from __future__ import annotations

import importlib.readers
import io
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import orjson
import pytest

import cipherbox.server.app  # here, so that the other user need not read this one's modules
from cipherbox.cli import main
from cipherbox.cli import serve as commands
from cipherbox.cli.doctor import command as doctor
from cipherbox.cli.doctor import hq as doctor_hq
from cipherbox.client.local_database import open_database
from cipherbox.errors import StoreError
from cipherbox.portable import as_user, give_to, ids_of, is_root, owner_of

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Shown, init_hq, make_hq, serving, shell

assert importlib.readers
assert cipherbox.server.app
assert commands
assert doctor
assert doctor_hq


@pytest.fixture
def directory() -> Iterator[Path]:
    """HQ of a user without rights, where every user comes by."""
    base = Path(tempfile.mkdtemp(prefix="cipherbox-places-"))
    base.chmod(0o755)
    try:
        made, _ = init_hq(base)
        for path in [made, *made.rglob("*")] if is_root() else ():
            give_to(path, ids_of("nobody") or (0, 0))
        yield made
        made.chmod(0o700)
    finally:
        shutil.rmtree(base)


def in_process(*arguments: str) -> Shown:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run(list(arguments))
    return Shown(int(code), out.getvalue(), err.getvalue())


def called(*arguments: str) -> Shown:
    """The command as HQ's user calls it; it must end by itself."""
    # the other user may not be able to load what this loads late
    in_process("doctor", arguments[-1])
    return as_user("nobody", in_process, *arguments)


def findings(directory: Path) -> list[tuple[str, str, str]]:
    found = called("doctor", "--json", str(directory))
    assert found.code == 5
    return [
        (f["about"], f["text"], f["todo"]) for f in orjson.loads(found.out) if f["level"] == "wrong"
    ]


def test_looking_as_root_leaves_nothing_of_roots(directory: Path) -> None:
    for command in (["doctor"], ["config", "check"]):
        assert in_process(*command, str(directory)).code == 0
    assert {path.stat().st_uid for path in directory.rglob("*")} == {directory.stat().st_uid}
    assert not (directory / "lock").exists()


def test_a_directory_that_is_read_only(directory: Path) -> None:
    directory.chmod(0o500)
    text, todo = f"{directory} cannot be written", f"it has mode 0500. Run: chmod u+rwX {directory}"
    served = called("serve", str(directory))
    shown = f"Error: {text}\n       {todo[0].upper()}{todo[1:]}\n"
    assert (served.code, served.err) == (6, shown)
    assert findings(directory) == [("rights", text, todo)]
    checked = called("config", "check", str(directory))
    assert (checked.code, checked.err) == (5, shown)
    directory.chmod(0o700)
    assert called("config", "check", str(directory)).code == 0


def test_a_directory_that_nobody_may_look_into(directory: Path) -> None:
    directory.chmod(0o000)
    for command in (["serve"], ["config", "check"]):
        refused = called(*command, str(directory))
        assert refused.code == 5
        assert "Permission denied" in refused.err
        assert "mode 0000. Run: chmod u+rwX" in refused.err
    ((about, text, todo),) = findings(directory)
    assert about == "rights"
    assert "may not read it" in text
    assert "run this as that user" in todo


@pytest.mark.parametrize("name", ["cipherbox.sqlite3", "spool", "lock"])
def test_a_file_that_root_made_there(directory: Path, name: str) -> None:
    """As after `serve` was run once as root."""
    if not is_root():
        pytest.skip("only root can make a file of another user")
    path = directory / name
    if name == "lock":
        path.touch()
    give_to(path, (0, 0))
    path.chmod(0o755 if path.is_dir() else 0o644)
    served = called("serve", str(directory))
    assert served.code == 6
    assert f"{path} cannot be written\n       It belongs to root" in served.err
    assert f"Run as root: chown --reference={directory} {path}" in served.err
    assert [(about, todo) for about, _, todo in findings(directory)] == [
        ("rights", f"chown -R --reference={directory} {directory}")
    ]


@pytest.mark.parametrize("name", ["cipherbox.toml", "secrets/service.key", "tls/server.crt"])
def test_a_file_that_cannot_be_read(directory: Path, name: str) -> None:
    if not is_root():
        pytest.skip("only root can make a file of another user")
    give_to(directory / name, (0, 0))
    (directory / name).chmod(0o600)
    served = called("serve", str(directory))
    assert served.code == 5
    assert (
        f"annot read {directory / name}: Permission denied\n       It belongs to root. "
        "Run as root: chown"
    ) in served.err
    assert any("chown" in todo for _, _, todo in findings(directory))


def test_init_without_room_leaves_nothing(tmp_path: Path) -> None:
    """A largest file size stands in for a full disk: the database does not fit."""
    command = [*PROGRAM, "--home", str(tmp_path / "admin"), "init", str(tmp_path / "hq")]
    small = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert small.returncode == 6
    assert "the partial installation was removed" in small.stderr
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "hq").mkdir()
    (tmp_path / "hq" / "kept").write_text("somebody's")
    again = shell("init", str(tmp_path / "hq"), home=tmp_path / "admin")
    assert again.code == 0, again.err


def test_a_start_without_room_says_so_and_loses_nothing(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    command = [*PROGRAM, "serve", str(directory)]
    small = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=LIMIT_S,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
    )
    assert small.returncode == 6
    assert "cipherbox doctor" in small.stderr
    with serving(directory):
        assert shell("status", home=admin).code == 0


def test_several_mistakes_of_a_file_have_a_line_each(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    file = directory / "cipherbox.toml"
    good = file.read_text()
    bad = good.replace('level = "INFO"', 'level = "LOUD"').replace("[retention]", "[retentoin]")
    file.write_text(bad)
    refused = shell("serve", str(directory), home=admin)
    assert refused.code == 5
    first, second = refused.err.splitlines()
    assert first.endswith("there is no table [retentoin]; did you mean 'retention'?")
    assert second.endswith("[logging] level is one of DEBUG, INFO, WARNING, ERROR, not 'LOUD'")
    file.write_text(good)
    with serving(directory) as process:
        file.write_text(bad)
        kept = shell("reload", home=admin)
        assert kept.code == 5
        assert len(kept.err.splitlines()) == 3
        assert "Configuration unchanged" in kept.err
        os.rename(file, f"{file}.away")
        gone = shell("reload", home=admin)
        assert gone.code == 5
        assert f"{file} does not exist" in gone.err
        assert process.poll() is None
        assert shell("status", home=admin).code == 0


def test_a_clients_home_that_cannot_be_used(directory: Path) -> None:
    home = directory.parent / "admin"
    for path in [home, *home.iterdir()] if is_root() else ():
        give_to(path, ids_of("nobody") or (0, 0))

    def found() -> list[tuple[str, str, str]]:
        in_process("--home", str(home), "doctor")
        shown = as_user("nobody", in_process, "--home", str(home), "doctor", "--json")
        rows = [
            (f["about"], f["text"], f["todo"])
            for f in orjson.loads(shown.out)
            if f["level"] == "wrong"
        ]
        return [row for row in rows if row[0] != "network"]  # HQ is not there

    assert found() == []
    home.chmod(0o500)
    assert found() == [
        ("rights", f"{home} cannot be written", f"it has mode 0500. Run: chmod u+rwX {home}")
    ]
    home.chmod(0o000)
    ((about, text, todo),) = found()
    assert (about, text) == (
        "rights",
        f"{home} belongs to {owner_of(home)}, and this user may not read it",
    )
    home.chmod(0o700)
    (home / "client.toml").write_text("[client]\nrotatoin = 1\n")
    ((about, text, todo),) = found()
    assert "has no key 'rotatoin'" in text
    assert todo


def opened(path: Path) -> str:
    """Why a client's database cannot be opened."""
    try:
        open_database(path, ["CREATE TABLE x (y)"]).close()
    except StoreError as error:
        return str(error)
    return ""


def test_an_outbox_that_cannot_be_written(directory: Path) -> None:
    home = directory / "home"
    home.mkdir()
    path = home / "outbox.sqlite3"
    assert opened(path) == ""
    for one in [home, *home.iterdir()] if is_root() else ():
        give_to(one, ids_of("nobody") or (0, 0))
    home.chmod(0o500)
    assert (
        as_user("nobody", opened, path)
        == f"{home} cannot be written; it has mode 0500. Run: chmod u+rwX {home}"
    )
    home.chmod(0o700)
    path.chmod(0o400)
    assert (
        as_user("nobody", opened, path)
        == f"{path} cannot be written; it has mode 0400. Run: chmod u+rwX {path}"
    )
    path.chmod(0o600)
    assert as_user("nobody", opened, path) == ""
