"""Builds dist/cipherbox.pyz: CipherBox and everything it needs beside Python, in one file.

    make pyz                               or, in the development environment: python packaging/build.py [FILE]

The same tree, Python and requirements give the same bytes: every dependency is pinned and checked by hash, what pip
notes about this machine is left out, and the archive is written in sorted order with one fixed time and plain modes.
Compiled parts (cryptography, PyNaCl, orjson, cffi) are those of the Python and system that run the build.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
ENTRY = "cipherbox.__main__:main"
ROOT = "~/.cache/cipherbox"  # where the file unpacks itself at its first start; SHIV_ROOT overrides it
EPOCH = "315532800"  # 1980-01-01, the earliest time a zip file can hold
OWN_FILES = frozenset([".py", ".md", ".sql", ".typed"])
PIP_NOTES = frozenset(["RECORD", "INSTALLER", "REQUESTED", "direct_url.json"])
UNNEEDED = ("trio/_tests",)


def stage(site: Path) -> None:
    """Fills ``site`` with the dependencies and the package, and nothing that differs between two builds."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--no-compile"]
    command += ["--only-binary=:all:", "--target", str(site), "-r", str(HERE / "requirements.txt")]
    subprocess.run(command, check=True)
    shutil.rmtree(site / "bin", ignore_errors=True)
    for unneeded in UNNEEDED:
        shutil.rmtree(site / unneeded, ignore_errors=True)
    for path in site.glob("*.dist-info/*"):
        if path.name in PIP_NOTES:
            path.unlink()
    for source in sorted((PROJECT / "cipherbox").rglob("*")):
        if source.is_file() and source.suffix in OWN_FILES:
            target = site / source.relative_to(PROJECT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)


def normalise(made: Path, target: Path) -> None:
    """Writes ``made`` again in sorted order; modes and times no longer depend on this machine."""
    raw = made.read_bytes()
    shebang = raw[: raw.index(b"\n") + 1]
    with target.open("wb") as file, zipfile.ZipFile(made) as old:
        file.write(shebang)
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as new:
            for name in sorted(set(old.namelist())):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3
                entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
                new.writestr(entry, old.read(name))
    target.chmod(0o755)


def build(target: Path) -> str:
    """Builds ``target`` and returns its SHA-256 in hexadecimal."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        site, made, final = Path(scratch, "site"), Path(scratch, "made.pyz"), Path(scratch, "final.pyz")
        site.mkdir()
        stage(site)
        command = [sys.executable, "-m", "shiv", "--site-packages", str(site), "--entry-point", ENTRY, "--root", ROOT]
        command += ["--python", "/usr/bin/env python3", "--reproducible", "--output-file", str(made)]
        subprocess.run(command, check=True, env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH})
        normalise(made, final)
        final.replace(target)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else PROJECT / "dist" / "cipherbox.pyz")
    digest = build(target)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")


if __name__ == "__main__":
    main()
