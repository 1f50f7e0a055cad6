"""`install` below a directory: what it puts where, again, a newer one, back, and away; and what
it refuses.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import attrs
import pytest

import cipherbox
from cipherbox.cli.install import steps as installing
from cipherbox.cli.install.checks import runs_systemd
from cipherbox.cli.install.places import own_places, read_pointer
from cipherbox.cli.install.schemas import schema_of
from cipherbox.ops.unpack import CACHE_VARIABLE
from cipherbox.store.postgres import schema
from tests import postgres
from tests.warm import FORKED

from .conftest import ENVIRONMENT, Shown, children_s, once, shell

# As a user without rights sees it, whoever runs the tests.
NOBODY = """
from cipherbox import portable
portable.is_root = lambda: False
"""

# The commands of a file as the file runs them, in a fork of a warm process; and nothing is
# compiled, which is most of an installation's time.  Both are done for real where the program is
# installed first (`once_installed`), and in the tests whose subject they are.
QUICK = """
import compileall, sys
compileall.compile_dir = lambda *_, **__: True
from cipherbox.cli.main import main
sys.argv[0] = sys.argv[1]
main(sys.argv[2:])
"""
WARM = FORKED + QUICK


@attrs.frozen
class Machine:
    """A directory to install below, and a file to install."""

    root: Path
    pyz: Path
    real: bool = False  # the built file itself runs

    def run(self, *arguments: str, pyz: Path | None = None, **environment: str) -> Shown:
        start = ["-I"] if self.real else ["-c", WARM]
        command = [sys.executable, *start, str(pyz or self.pyz), *arguments]
        command += ["--root", str(self.root)]
        environment = {**ENVIRONMENT, CACHE_VARIABLE: str(self.pyz.parent / "cache"), **environment}
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )
        assert "Internal error" not in done.stderr, done.stderr
        return Shown(done.returncode, done.stdout, done.stderr)

    @property
    def base(self) -> Path:
        return self.root / "opt/cipherbox"

    def newer(self, number: int) -> Path:
        """The same program as another build."""
        made = self.root.parent / f"build{number}.pyz"
        shutil.copyfile(self.pyz, made)
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(made, "a") as archive:
            archive.writestr("build", f"{number}" * 64)  # the later one of a name counts
        return made

    def files(self) -> dict[str, bytes]:
        """Everything but the trees."""
        return {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file() and not path.is_relative_to(self.base)
        }


@pytest.fixture
def machine(pyz: Path, tmp_path: Path) -> Machine:
    return Machine(tmp_path / "root", pyz)


@pytest.fixture(scope="session")
def once_installed(pyz: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `install` made, under an administrator's umask; and what it printed."""

    def install(path: Path) -> None:
        machine = Machine(path / "root", pyz, real=True)
        path.mkdir()
        for name, option in (("dry", ["--dry-run"]), ("first", []), ("again", [])):
            # the service's user must read all of it
            before = os.umask(0o077)
            try:
                shown = machine.run("install", *option)
            finally:
                os.umask(before)
            assert shown.code == 0, shown.err
            assert machine.root.exists() == (name != "dry")
            (path / name).write_text(shown.out)

    return once(tmp_path_factory, "installed", install)


@pytest.fixture
def installed(machine: Machine, once_installed: Path) -> None:
    """`install` was run on the machine: a copy of what it made, since most of that time goes
    into compiling.
    """
    shutil.copytree(once_installed / "root", machine.root, symlinks=True)


OUTSIDE = {
    "etc/systemd/system/cipherbox.service",
    "etc/systemd/system/cipherbox.socket",
    "etc/systemd/system/cipherbox-websocket.socket",
    "etc/systemd/system/cipherbox-agent@.service",
    "usr/local/share/man/man1/cipherbox.1",
    "usr/local/share/bash-completion/completions/cipherbox",
    "usr/local/share/zsh/site-functions/_cipherbox",
    "usr/local/share/fish/vendor_completions.d/cipherbox.fish",
}


@pytest.mark.usefixtures("installed")
def test_everything_comes_into_its_place_and_a_second_time_nothing_is_done(
    machine: Machine, once_installed: Path
) -> None:
    dry, first, again = ((once_installed / name).read_text() for name in ("dry", "first", "again"))
    assert [line[8:] for line in dry.splitlines()] == [line[8:] for line in first.splitlines()[:-1]]
    assert {*machine.files()} - {"usr/local/bin/cipherbox"} == OUTSIDE
    (tree,) = [path for path in machine.base.iterdir() if not path.is_symlink()]
    assert tree.name.startswith(f"{cipherbox.__version__}-")
    assert read_pointer(machine.base / "current") == tree.name
    assert (
        read_pointer(machine.root / "usr/local/bin/cipherbox")
        == "/opt/cipherbox/current/bin/cipherbox"
    )
    assert (
        read_pointer(machine.root / "etc/cipherbox/cipherbox.toml")
        == "/var/lib/cipherbox/cipherbox.toml"
    )
    assert (machine.root / "var/lib/cipherbox").stat().st_mode & 0o777 == 0o700
    modes = {path.stat().st_mode & 0o777 for path in tree.rglob("*")}
    assert modes == {0o755, 0o644}
    for folder in (
        "opt",
        "opt/cipherbox",
        "usr/local/bin",
        "etc/systemd/system",
        "usr/local/share/man/man1",
    ):
        assert (machine.root / folder).stat().st_mode & 0o777 == 0o755
    assert {line[:7] for line in again.splitlines()[:-1]} == {"  kept "}
    assert "was installed already" in again


@pytest.mark.usefixtures("installed")
def test_the_installed_program_runs_from_its_own_tree(machine: Machine, tmp_path: Path) -> None:
    program = str(machine.base / "current/bin/cipherbox")
    environment = {**ENVIRONMENT, "HOME": str(tmp_path), CACHE_VARIABLE: "/nonexistent"}
    times = []
    for _ in range(5):
        before = children_s()
        done = subprocess.run(
            [program, "version"], capture_output=True, text=True, env=environment, check=False
        )
        times.append(children_s() - before)
        assert done.stdout.startswith(f"CipherBox {cipherbox.__version__}"), done.stderr
    assert min(times) < 0.3, times
    where = f"import sys; sys.path.insert(0, {str(machine.base / 'current/site')!r})\n"
    where += "import cipherbox, orjson; print(orjson.__file__)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", where], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith(str(machine.base / "current/site/orjson")), done.stderr
    again = subprocess.run(
        [program, "install", "--root", str(machine.root)],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert (again.returncode, "was installed already" in again.stdout) == (0, True), again.stderr


@pytest.mark.usefixtures("installed")
def test_sockets_listen_where_the_settings_say(machine: Machine) -> None:
    data = machine.root / "var/lib/cipherbox"
    made = subprocess.run(
        [
            str(machine.base / "current/bin/cipherbox"),
            "--home",
            str(data / "admin"),
            "init",
            str(data),
            "--address",
            "hq.example.org:9443",
            "--websocket-listen",
            "[::1]:9444",
        ],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    assert machine.run("install").code == 0
    units = machine.root / "etc/systemd/system"
    plain = (units / "cipherbox.socket.d/listen.conf").read_text()
    assert "ListenStream=\nListenStream=0.0.0.0:9443\n" in plain
    assert (
        "ListenStream=[::1]:9444\n"
        in (units / "cipherbox-websocket.socket.d/listen.conf").read_text()
    )
    settings = data / "cipherbox.toml"
    settings.write_text(
        settings.read_text().replace('websocket_listen = "[::1]:9444"', 'websocket_listen = ""')
    )
    assert machine.run("install").code == 0
    assert not (units / "cipherbox-websocket.socket.d/listen.conf").exists()


@pytest.mark.usefixtures("installed")
def test_an_upgrade_keeps_a_way_back(machine: Machine) -> None:
    first = read_pointer(machine.base / "current")
    assert machine.run("install", "--rollback").code == 5  # there is nothing before
    unit = machine.root / "etc/systemd/system/cipherbox.service"
    unit.write_text("changed by hand")
    (machine.root / "var/lib/cipherbox/kept").write_text("data")
    second = machine.newer(2)
    assert machine.run("install", pyz=second).code == 0
    assert read_pointer(machine.base / "previous") == first
    assert unit.read_text() != "changed by hand"
    name = read_pointer(machine.base / "current")
    assert name.endswith("-222222222222")
    back = machine.run("install", "--rollback")
    assert back.code == 0, back.err
    assert (read_pointer(machine.base / "current"), read_pointer(machine.base / "previous")) == (
        first,
        name,
    )
    assert machine.run("install", "--rollback").code == 0  # and forth
    assert machine.run("install", pyz=machine.newer(3)).code == 0
    trees = {path.name[-12:] for path in machine.base.iterdir() if not path.is_symlink()}
    assert trees == {"2" * 12, "3" * 12}  # the one before the previous is gone
    assert (machine.root / "var/lib/cipherbox/kept").read_text() == "data"


def test_the_schema_is_found_in_the_log_too(tmp_path: Path) -> None:
    """A database whose last commit is in its log as yet, as after a crash."""
    path = tmp_path / "x.sqlite3"
    database(path, 7)
    assert schema_of(path) == 7
    assert [p.name for p in tmp_path.iterdir()] == ["x.sqlite3"]
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 9")
    assert schema_of(path) == 9
    db.close()
    assert schema_of(tmp_path / "none") == 0


def database(path: Path, version: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("CREATE TABLE x (y)")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()


@pytest.mark.parametrize(
    "path", ["var/lib/cipherbox/cipherbox.sqlite3", "var/lib/cipherbox-agent/lab/outbox.sqlite3"]
)
@pytest.mark.usefixtures("installed")
def test_an_older_file_over_newer_data_is_refused_and_changes_nothing(
    machine: Machine, path: str
) -> None:
    before, current = machine.files(), read_pointer(machine.base / "current")
    database(machine.root / path, 99)
    refused = machine.run("install", pyz=machine.newer(2))
    assert refused.code == 6
    assert "was written by a newer program (schema 99" in refused.err
    assert "nothing was changed" in refused.err
    (machine.root / path).unlink()
    assert machine.files() == before
    assert read_pointer(machine.base / "current") == current


@pytest.mark.usefixtures("installed")
def test_a_way_back_over_newer_data_is_refused_and_names_the_copy(machine: Machine) -> None:
    assert machine.run("install", pyz=machine.newer(2)).code == 0
    told = machine.base / "previous" / "install.json"
    older = json.loads(told.read_text())
    older["schemas"]["hq"] = 1
    told.write_text(json.dumps(older))
    database(machine.root / "var/lib/cipherbox/cipherbox.sqlite3", 3)
    copy = machine.root / "var/lib/cipherbox/cipherbox.sqlite3.schema1"
    copy.write_bytes(b"")
    refused = machine.run("install", "--rollback")
    assert refused.code == 6
    assert str(copy) in refused.err
    assert read_pointer(machine.base / "current").endswith("2" * 12)


def test_uninstall_leaves_the_data_unless_told(machine: Machine) -> None:
    assert machine.run("uninstall").code == 5  # nothing is there
    assert machine.run("install").code == 0
    data = machine.root / "var/lib/cipherbox"
    (data / "cipherbox.sqlite3").write_bytes(b"")
    dry = machine.run("uninstall", "--dry-run")
    assert (dry.code, {*machine.files()} >= OUTSIDE) == (0, True)
    done = machine.run("uninstall")
    assert done.code == 0, done.err
    assert {*machine.files()} == {"var/lib/cipherbox/cipherbox.sqlite3"}
    assert not machine.base.exists()
    assert not os.path.lexists(machine.root / "usr/local/bin/cipherbox")
    assert machine.run("install").code == 0
    asked = machine.run("uninstall", "--purge")
    assert asked.code == 2
    assert "--yes" in asked.err
    assert data.exists()
    assert machine.run("uninstall", "--purge", "--yes").code == 0
    assert machine.files() == {}
    assert not data.exists()


def test_a_client_without_root(pyz: Path, tmp_path: Path) -> None:
    home = tmp_path / "user"
    home.mkdir()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**ENVIRONMENT, "HOME": str(home)}
        command = [sys.executable, "-c", NOBODY + QUICK, str(pyz), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300, check=False
        )

    refused = run("install")
    assert refused.returncode == 5
    assert "needs root" in refused.stderr
    assert "install --client" in refused.stderr
    done = run("install", "--client")
    assert done.returncode == 0, done.stderr
    program = home / ".local/bin/cipherbox"
    version = subprocess.run(
        [str(program), "version"], capture_output=True, text=True, env=ENVIRONMENT, check=False
    )
    assert version.stdout.startswith("CipherBox "), version.stderr
    assert (home / ".local/share/man/man1/cipherbox.1").exists()
    unit = home / ".config/systemd/user/cipherbox-agent.service"
    assert unit.exists() == runs_systemd()
    (home / ".cipherbox").mkdir()
    gone = run("uninstall", "--client")
    assert gone.returncode == 0, gone.stderr
    assert [path for path in home.rglob("*") if path.is_file()] == []
    assert (home / ".cipherbox").is_dir()


def test_a_user_on_windows_gets_a_command_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.cli.install import places as install_places

    for module in (install_places, installing):
        monkeypatch.setattr(module, "WINDOWS", True)
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    places = own_places(Path("/"), tmp_path / "home")
    for name in ("1.0-a", "1.1-b"):
        (places.base / name).mkdir(parents=True)
        for step in installing.pointer_steps(places, name):
            assert not step.done()
            step.do()
            assert step.done()
    assert (read_pointer(places.current), read_pointer(places.previous)) == ("1.1-b", "1.0-a")
    command = places.command.read_text()
    assert places.command.name == "cipherbox.cmd"
    assert str(places.base / "1.1-b" / "bin" / "cipherbox") in command
    assert command.endswith("%*\n")


@pytest.mark.usefixtures("installed")
def test_the_schema_in_postgresql_is_asked_for(machine: Machine, own: postgres.Server) -> None:
    """A newer one is a refusal; an older one, or a server that does not answer, is told and
    stops nothing.
    """
    data, name = machine.root / "var/lib/cipherbox", postgres.schema()
    url = f"{postgres.url(own)}&schema={name}"
    made = shell(
        "init",
        str(data),
        "--address",
        "127.0.0.1:7443",
        "--database",
        url,
        home=machine.root.parent / "home",
    )
    assert made.code == 0, made.err
    known = len(schema.scripts())

    def version(number: int) -> None:
        own.sql(f"COMMENT ON SCHEMA {name} IS 'cipherbox {number}'")

    second = machine.newer(2)
    before, current = machine.files(), read_pointer(machine.base / "current")
    version(known + 7)
    refused = machine.run("install", pyz=second)
    assert refused.code == 6
    assert (
        f"was written by a newer program (version {known + 7}; this program knows {known})"
        in refused.err
    )
    assert (machine.files(), read_pointer(machine.base / "current")) == (before, current)
    version(known - 1)
    older = machine.run("install", "--dry-run", pyz=second)
    assert older.code == 0, older.err
    assert f"is of the older version {known - 1}" in older.err
    assert f"sudo -u cipherbox cipherbox store upgrade {data}" in older.err
    version(known)
    assert "PostgreSQL" not in machine.run("install", "--dry-run", pyz=second).err
    own.stop()
    away = machine.run("install", pyz=second)
    assert away.code == 0, away.err
    assert "cannot be asked for its schema" in away.err
    assert "then install the newer file" in away.err
    told = machine.base / "previous" / "install.json"
    older_program = json.loads(told.read_text())
    older_program["schemas"]["postgresql"] = known - 1
    told.write_text(json.dumps(older_program))
    back = machine.run("install", "--rollback")
    assert back.code == 6
    assert "cannot be asked for its schema" in back.err
    assert read_pointer(machine.base / "current").endswith("2" * 12)


@pytest.mark.usefixtures("installed")
def test_the_database_is_the_one_that_the_settings_name(machine: Machine) -> None:
    elsewhere = machine.root / "srv" / "hq.sqlite3"
    database(elsewhere, 99)
    file = machine.root / "var/lib/cipherbox/cipherbox.toml"
    file.write_text(f'[server]\nname = "HQ"\naddress = "hq:1"\n[database]\npath = "{elsewhere}"\n')
    refused = machine.run("install", pyz=machine.newer(2))
    assert refused.code == 6
    assert f"{elsewhere} was written by a newer program (schema 99" in refused.err
