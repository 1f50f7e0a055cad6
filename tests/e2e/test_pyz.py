"""The one file: it builds twice to the same bytes, starts on its own, and plays the demo."""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

import cipherbox

from .conftest import ENVIRONMENT

ROOT = Path(__file__).resolve().parent.parent.parent


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("packaging_build", ROOT / "packaging" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file, built once for all workers of this run."""
    own = tmp_path_factory.getbasetemp()
    shared = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    target = shared / "built" / "cipherbox.pyz"
    with (shared / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            builder().build(target)
    return target


def run(pyz: Path, root: Path, *arguments: str, limit_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    environment = {**ENVIRONMENT, "SHIV_ROOT": str(root)}
    command = [sys.executable, "-I", str(pyz), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=limit_s, check=False)


def test_two_builds_give_the_same_bytes(pyz: Path, tmp_path: Path) -> None:
    builder().build(tmp_path / "elsewhere" / "cipherbox.pyz")
    assert (tmp_path / "elsewhere" / "cipherbox.pyz").read_bytes() == pyz.read_bytes()


def test_it_holds_the_product_and_nothing_of_this_machine(pyz: Path) -> None:
    with zipfile.ZipFile(pyz) as archive:
        names = archive.namelist()
        assert names == sorted(names)
        assert "site-packages/cipherbox/manual/quickstart.md" in names
        assert any(name.startswith("site-packages/cipherbox/store/") and name.endswith(".sql") for name in names)
        assert [n for n in names if "__pycache__" in n or n.endswith((".pyc", "direct_url.json", "/RECORD"))] == []
        here = str(ROOT).encode()
        assert [n for n in names if n.startswith("site-packages/cipherbox") and here in archive.read(n)] == []
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}


def test_it_starts_on_its_own(pyz: Path, tmp_path: Path) -> None:
    done = run(pyz, tmp_path / "root", "version")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"CipherBox {cipherbox.__version__}")
    (unpacked,) = [path for path in (tmp_path / "root").iterdir() if path.is_dir()]
    assert unpacked.name.startswith("cipherbox.pyz_")
    done = run(pyz, tmp_path / "root", "manual", "quickstart")
    assert done.stdout.startswith("# Quickstart")


def test_it_plays_the_demo_in_time(pyz: Path, tmp_path: Path) -> None:
    done = run(pyz, tmp_path / "root", "demo", "--json", "--directory", str(tmp_path / "demo"), limit_s=150)
    assert done.returncode == 0, done.stderr + done.stdout
    report = json.loads(done.stdout)
    assert report["differences"] == []
    assert len(report["deliveries"]) == 9
    modules = (tmp_path / "demo" / "output" / "DC-HQ.log").read_text()
    assert "Traceback" not in modules


def test_the_installer_puts_everything_in_its_place(tmp_path: Path) -> None:
    fake = tmp_path / "cipherbox.pyz"
    fake.write_bytes(b"#!/usr/bin/env python3\n")
    command = [str(ROOT / "packaging" / "install.sh"), str(fake)]
    environment = {**ENVIRONMENT, "DESTDIR": str(tmp_path / "root")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "Next: " in done.stdout
    made = {str(p.relative_to(tmp_path / "root")) for p in (tmp_path / "root").rglob("*") if p.is_file()}
    assert made == {
        "opt/cipherbox/cipherbox.pyz",
        "usr/local/bin/cipherbox",
        "etc/systemd/system/cipherbox.service",
        "etc/systemd/system/cipherbox-agent@.service",
    }
    unit = (tmp_path / "root/etc/systemd/system/cipherbox.service").read_text()
    assert "/opt/cipherbox/cipherbox.pyz serve /var/lib/cipherbox" in unit
    missing = subprocess.run([*command[:1], str(tmp_path / "none")], capture_output=True, text=True, check=False)
    assert missing.returncode != 0
    assert "make pyz" in missing.stderr
