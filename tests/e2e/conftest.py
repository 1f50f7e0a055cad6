"""Real processes: an HQ on loopback, and commands as a user types them."""

import atexit
import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import attrs
import pytest

from cipherbox.harness.stage import free_port
from tests.client.real_hq import copy_hq, few_prekeys
from tests.warm import CHEAP

LIMIT_S = 300.0
PROJECT = Path(__file__).resolve().parent.parent.parent
_ANOTHERS = ("CIPHERBOX_", "CREDENTIALS_", "NOTIFY_", "LISTEN_", "WATCHDOG_")
ENVIRONMENT = {k: v for k, v in os.environ.items() if not k.startswith(_ANOTHERS)}
ENVIRONMENT |= {"PYTHONIOENCODING": "utf-8", CHEAP: "1"}
PROGRAM = [sys.executable, "-m", "cipherbox"]
# As PROGRAM, and writes the names of all loaded modules to a file when it ends.
WATCHED = """
import atexit, sys
atexit.register(lambda: open(sys.argv[-1], "w").write("\\n".join(sys.modules)))
from cipherbox.cli.main import main
main(sys.argv[1:-1])
"""


@attrs.frozen
class Shown:
    """The end of one command."""

    code: int
    out: str
    err: str


def shell(
    *arguments: str, home: Path, stdin: str = "", cwd: Path | None = None, **environment: str
) -> Shown:
    """Runs one command to its end, without a terminal."""
    done = subprocess.run(
        [*PROGRAM, "--home", str(home), *arguments],
        input=stdin.encode(),
        capture_output=True,
        env=ENVIRONMENT | environment,
        timeout=LIMIT_S,
        check=False,
        start_new_session=True,
        cwd=cwd,
    )
    return Shown(done.returncode, done.stdout.decode(), done.stderr.decode())


def children_s() -> float:
    """CPU seconds of all processes that ended so far: how long one took, however busy the
    machine is.
    """
    times = os.times()
    return times.children_user + times.children_system


def first_line(process: subprocess.Popen[bytes]) -> str:
    """What a started process says first; it is killed when it says nothing in time."""
    assert process.stdout is not None
    watchdog = threading.Timer(LIMIT_S, process.kill)
    watchdog.start()
    try:
        return process.stdout.readline().decode()
    finally:
        watchdog.cancel()


def line_with(process: subprocess.Popen[bytes], text: str) -> str:
    """The first line that holds this text, among those a started process says while it gets
    ready.
    """
    lines: list[str] = []
    while not lines or text not in lines[-1]:
        lines.append(first_line(process))
        assert lines[-1], lines
    return lines[-1]


@contextmanager
def serving(
    directory: Path, modules: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """`cipherbox serve`, ended by its pid."""
    start = [sys.executable, "-c", WATCHED] if modules else PROGRAM
    command = [*start, "serve", str(directory), *([str(modules)] if modules else [])]
    with (directory.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=log, env=ENVIRONMENT | environment
        )
    try:
        line = first_line(process)
        assert " listens on " in line, line + (directory.parent / "serve.log").read_text()
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(LIMIT_S)
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()


@attrs.frozen
class Hq:
    """A running HQ: its directory, its admin's home, and who joined."""

    directory: Path
    admin: Path
    process: subprocess.Popen[bytes]

    def join(self, client_id: str, *, replace: bool = False) -> Path:
        """Enrol a client by token, unless it was copied with its HQ; return its home.
        ``replace``: in place of the home that has this id.
        """
        home = self.directory.parent / client_id
        if home.exists() and not replace:
            return home
        token = shell("enroll", client_id, *(["--replace"] if replace else []), home=self.admin)
        assert token.code == 0, token.err
        joined = shell("join", home=home, stdin=token.out)
        assert joined.code == 0, joined.err
        few_prekeys(home)
        return home


def make_hq(base: Path, *, joined: bool = False) -> tuple[Path, Path]:
    """Return the data directory and the admin's home of an HQ on a free port: a copy of one that
    this process made with `cipherbox init`.  ``joined``: FL-LAB and CA-RC are enrolled there.
    """
    copy_hq(_made_once(joined), base, f"127.0.0.1:{free_port()}")
    return base / "hq", base / "admin"


@functools.cache
def _made_once(joined: bool) -> Path:
    base = Path(tempfile.mkdtemp(prefix="cipherbox-hq-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    umask = os.umask(0o022)
    try:
        directory, admin = init_hq(base)
        settings = directory / "cipherbox.toml"
        small = f"[limits]\ndisk_reserve_bytes = {1 << 20}"  # of 64 MiB, each start made one
        settings.write_text(settings.read_text().replace("[limits]", small))
        if joined:
            with serving(directory) as process:
                for client_id in ("FL-LAB", "CA-RC"):
                    Hq(directory, admin, process).join(client_id)
            (base / "serve.log").unlink()
    finally:
        os.umask(umask)
    return base


def init_hq(base: Path) -> tuple[Path, Path]:
    """Run `cipherbox init` on a free port; return the data directory and the admin's home."""
    directory, admin = base / "hq", base / "admin"
    made = shell("init", str(directory), "--address", f"127.0.0.1:{free_port()}", home=admin)
    assert made.code == 0, made.err
    return directory, admin


@pytest.fixture
def hq(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hq]:
    """An HQ that serves; with the mark `joined`, FL-LAB and CA-RC are its clients already."""
    joined = request.node.get_closest_marker("joined") is not None
    directory, admin = make_hq(tmp_path, joined=joined)
    with serving(directory) as process:
        yield Hq(directory, admin, process)


@pytest.fixture
def patient() -> Callable[[Callable[[], bool]], None]:
    """Waits, within bounds, until something is so."""

    def wait(so: Callable[[], bool]) -> None:
        event = threading.Event()
        for _ in range(int(LIMIT_S * 20)):
            if so():
                return
            event.wait(0.05)
        raise AssertionError("it did not become so in time")

    return wait


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "packaging_build", PROJECT / "packaging" / "build.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _up_to_date(file: Path) -> bool:
    """Ask `make` whether it would build this file again."""
    if not file.exists() or shutil.which("make") is None:
        return False
    command = ["make", "-q", "-C", str(PROJECT), str(file.relative_to(PROJECT))]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}
    return subprocess.run(command, env=environment, check=False).returncode == 0


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return the path ``name`` that ``make`` made, once for all workers of this run."""
    own = factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    made = shared / name
    with (shared / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            part = shared / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(made)
    return made


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the one file: what `make` built, or, where that is older than its sources, one that
    is built now.
    """
    made = PROJECT / "dist" / "cipherbox.pyz"

    def build(folder: Path) -> None:
        target = folder / made.name
        if _up_to_date(made):
            folder.mkdir()
            shutil.copyfile(made.with_name(f"{made.name}.cdx.json"), f"{target}.cdx.json")
            shutil.copyfile(made, target)
        else:
            builder().build(target)

    return once(tmp_path_factory, "built", build) / made.name
