"""The wheel: it holds the whole package, and from its virtual environment `install` works as from
the one file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import cipherbox
from cipherbox.cli.install.places import read_pointer
from cipherbox.portable import WINDOWS

from .conftest import ENVIRONMENT, PROJECT
from .test_install import OUTSIDE

SUFFIXES = {".py", ".md", ".sql", ".typed", ".service", ".socket", ".conf"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make wheel` builds it, from a copy: other tests use the tree meanwhile."""
    source, dist = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    shutil.copytree(
        PROJECT / "cipherbox", source / "cipherbox", ignore=shutil.ignore_patterns("__pycache__")
    )
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    done = subprocess.run(
        [*command, str(source)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = dist.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def command(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command in a virtual environment of its own, as pipx makes one; the libraries are those
    the tests run with.
    """
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True, timeout=300
    )
    python = environment / ("Scripts/python.exe" if WINDOWS else "bin/python")
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet"]
    subprocess.run(
        [*install, "--no-deps", "--no-index", "--no-compile", str(wheel)], check=True, timeout=300
    )
    (packages,) = environment.glob("Lib/site-packages" if WINDOWS else "lib/*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # compiling is most of `install`, and done in test_install.py
    quick = "import compileall; compileall.compile_dir = lambda *_, **__: True\n"
    (packages / "quick.pth").write_text(quick)
    return python.with_name("cipherbox.exe" if WINDOWS else "cipherbox")


def run(command: Path, *arguments: str) -> str:
    done = subprocess.run(
        [str(command), *arguments],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_the_whole_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    files = (PROJECT / "cipherbox").rglob("*")
    wanted = {
        path.relative_to(PROJECT).as_posix()
        for path in files
        if path.suffix in SUFFIXES and path.is_file()
    }
    assert wanted - held == set()
    assert f"cipherbox-{cipherbox.__version__}-" in wheel.name


def test_the_command_of_the_wheel(command: Path) -> None:
    assert run(command, "version").startswith(f"CipherBox {cipherbox.__version__} ")
    assert "open_client" in run(command, "manual", "example-sender")


@pytest.mark.skipif(WINDOWS, reason="HQ runs on Linux")
def test_install_copies_the_packages(command: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    planned = run(command, "install", "--root", str(root), "--dry-run")
    assert not root.exists()
    done = run(command, "install", "--root", str(root))
    assert [line[8:] for line in planned.splitlines()] == [
        line[8:] for line in done.splitlines()[:-1]
    ]
    base = root / "opt/cipherbox"
    outside = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*")
        if path.is_file() and not path.is_relative_to(base)
    }
    assert outside - {"usr/local/bin/cipherbox"} == OUTSIDE
    unit = (root / "etc/systemd/system/cipherbox.service").read_text()
    assert "\nExecStart=/opt/cipherbox/current/bin/cipherbox serve /var/lib/cipherbox\n" in unit

    tree = base / read_pointer(base / "current")
    site = {path.name for path in (tree / "site").iterdir()}
    assert {"cipherbox", "click", "cryptography", "orjson", "trio", "zstandard"} <= site
    assert not {"pytest", "mypy", "ruff", "hypothesis", "setuptools", "pip"} & site
    installed = tree / "bin" / "cipherbox"
    # the service must not depend on the environment of whoever installed it
    assert str(command.parent) not in installed.read_text().splitlines()[0]
    assert run(installed, "version").startswith(f"CipherBox {cipherbox.__version__} ")
    assert run(installed, "manual", "glossary")

    again = run(command, "install", "--root", str(root))
    assert "was installed already" in again
    assert "  done " not in again
