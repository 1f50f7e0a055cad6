"""Build dist/cipherbox.pyz: CipherBox and everything it needs beside Python, in one file.

    make pyz                                         for this machine and this Python; quick
    python packaging/build.py --platform all [FILE]  for every machine and Python in platforms.py
    python packaging/build.py --platform linux-aarch64 --platform windows-amd64 [FILE]

The same tree and requirements give the same bytes on any machine: pip picks the wheel of each
platform by its tag and checks it against the pinned hashes, what differs between two downloads is
left out, and the archive is written in sorted order with one fixed time and plain modes.  Of the
compiled parts for Linux the debugging information is left out, half of the file: what the system
loads of them is the wheel's, byte for byte.

Beside the file lies what it is made of, as an SBOM: `cipherbox.pyz` and `cipherbox.pyz.cdx.json`.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import struct
import subprocess
import sys
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent
sys.path[:0] = [str(HERE), str(PROJECT)]

from platforms import PYTHONS, SYSTEMS, TAGS  # noqa: E402
from sbom import sbom  # noqa: E402

from cipherbox import __version__  # noqa: E402
from cipherbox.ops.unpack import ANY, BUILD_NAME, NATIVE, SITE, platform_name  # noqa: E402

LARGEST = 60_000_000
OWN_FILES = frozenset([".py", ".md", ".sql", ".typed", ".html", ".css", ".js", ".svg", ".toml"])
NOTES = frozenset(
    [
        "RECORD",
        "INSTALLER",
        "REQUESTED",
        "direct_url.json",
        "WHEEL",
        "top_level.txt",
        "entry_points.txt",
    ]
)
UNNEEDED = re.compile(
    r"trio/_tests/|zstandard/_cffi\.|.*\.pyi$|.*\.(c|h|pxd|pyx)$|[^/]+(\.data|\.dist-info/sboms)/"
    # rich asks Pygments for the colours of source code, which CipherBox never shows: no lexers,
    # formatters or styles, but what their packages hold themselves
    r"|pygments/(lexers|formatters|styles)/(?!(__init__|_mapping)\.py$)"
)
Target = tuple[str, str]  # platform and Python: ("linux-x86_64", "cp311")
Contents = dict[str, bytes]  # path -> bytes
MAIN = """\
import sys

if sys.version_info < (3, 11):
    sys.exit("CipherBox needs Python 3.11 or newer, and this is %d.%d. Start it with a newer one, "
             "for example: python3.11 %s" % (sys.version_info[0], sys.version_info[1], sys.argv[0]))

from unpack import start

start(sys.path[0], {build!r})
"""


def fetch(target: Target, where: Path) -> list[Path]:
    """The wheels of one target; pip refuses one whose hash is not among the pinned."""
    platform, python = target
    where.mkdir()
    (where / "requirements.txt").write_text(requirements(SYSTEMS[platform]), "utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += [
        "--only-binary=:all:",
        "--python-version",
        f"{python[2]}.{python[3:]}",
        "--dest",
        str(where),
    ]
    for tag in TAGS[platform]:
        command += ["--platform", tag]
    subprocess.run([*command, "-r", str(where / "requirements.txt")], check=True)
    return sorted(where.glob("*.whl"))


def requirements(system: str) -> str:
    """The pinned requirements of one system; pip would read their markers for the machine it
    runs on.
    """
    kept = []
    for block in re.split(r"\n(?=[a-z0-9])", (HERE / "requirements.txt").read_text("utf-8")):
        marker = re.search(r" ; (.+?) \\\n", block)
        if not marker or f'"{system}"' in marker[1]:
            kept.append(block.replace(f" ; {marker[1]}", "") if marker else block)
    return "\n".join(kept)


def contents(wheels: list[Path]) -> Contents:
    """What the wheels hold, without what no start needs."""
    found: Contents = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                noted = ".dist-info/" in name and name.rpartition("/")[2] in NOTES
                if not name.endswith("/") and not noted and not UNNEEDED.match(name):
                    data = archive.read(name)
                    found[name] = without_debugging(data) if name.endswith(".so") else data
    return found


def without_debugging(data: bytes) -> bytes:
    """A shared object of Linux up to the end of its last segment: what follows is never loaded."""
    if data[:6] != b"\x7fELF\x02\x01":
        return data
    (at,), size, count = struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
    end = at + size * count
    for number in range(count):
        offset, in_file = (
            struct.unpack_from("<Q", data, at + number * size + 8)[0],
            at + number * size + 32,
        )
        end = max(end, offset + struct.unpack_from("<Q", data, in_file)[0])
    head = bytearray(data[:64])
    struct.pack_into("<Q", head, 40, 0)  # no table of sections,
    struct.pack_into("<HHH", head, 58, 0, 0, 0)  # of no size, with no entries and no names
    return bytes(head) + data[64:end]


def own() -> Contents:
    """Return the package itself, with systemd's units inside, as in a wheel."""
    package = PROJECT / "cipherbox"
    files = [path for path in package.rglob("*") if path.suffix in OWN_FILES]
    files += (package / "units").iterdir()  # a link to systemd/, which rglob does not enter
    return {
        path.relative_to(PROJECT).as_posix(): path.read_bytes() for path in files if path.is_file()
    }


def arranged(parts: dict[Target, Contents]) -> Contents:
    """Each file once: in `site/` if it is the same for all, else below its platform and, if
    needed, its Python.
    """
    made: Contents = {}
    for path in sorted({path for held in parts.values() for path in held}):
        versions = {target: held.get(path) for target, held in parts.items()}
        if len(set(versions.values())) == 1 and not path.endswith((".so", ".pyd")):
            made[SITE + path] = next(iter(parts.values()))[path]
            continue
        for platform in sorted({platform for platform, _ in parts}):
            here = {python: data for (name, python), data in versions.items() if name == platform}
            held = {data for data in here.values() if data is not None}
            if (
                len(held) == 1
                and None not in here.values()
                and "cpython-" not in path
                and ".cp3" not in path
            ):
                made[f"{NATIVE}{platform}/{ANY}/{path}"] = held.pop()
                continue
            if len(held) > 1:
                raise SystemExit(
                    f"{path} differs between the Pythons of {platform}; one tree could not hold "
                    "both"
                )
            for python, data in here.items():
                if data is not None:
                    made[f"{NATIVE}{platform}/{python}/{path}"] = data
    return made


def build(target: Path, targets: list[Target] | None = None) -> str:
    """Build ``target`` and its SBOM; return the SHA-256 of ``target`` in hexadecimal."""
    target.parent.mkdir(parents=True, exist_ok=True)
    targets = targets or [(platform_name(), f"cp{sys.version_info[0]}{sys.version_info[1]}")]
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with ThreadPoolExecutor(4) as pool:
            wheels = list(pool.map(lambda t: fetch(t, Path(scratch, "-".join(t))), targets))
        made = arranged({t: contents(w) for t, w in zip(targets, wheels, strict=True)})
        made |= {SITE + path: data for path, data in own().items()}
        final = Path(scratch, "final.pyz")
        write(final, made)
        if final.stat().st_size > LARGEST:
            size = final.stat().st_size / 1e6
            raise SystemExit(
                f"{size:.1f} MB are more than {LARGEST / 1e6:.0f}: name fewer platforms"
            )
        bill = sbom(final, __version__, [wheel for some in wheels for wheel in some])
        target.with_name(f"{target.name}.cdx.json").write_text(bill, "utf-8")
        final.replace(target)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def write(file: Path, made: Contents) -> None:
    """The archive; the build's name is the hash of all it holds."""
    digest = hashlib.sha256()
    for name in sorted(made):
        digest.update(f"{name}\0{len(made[name])}\0".encode() + made[name])
    made["unpack.py"] = (PROJECT / "cipherbox" / "ops" / "unpack.py").read_bytes()
    made["__main__.py"] = MAIN.format(build=digest.hexdigest()).encode()
    made[BUILD_NAME] = digest.hexdigest().encode()
    with file.open("wb") as raw:
        raw.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(raw, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
            for name in sorted(made):
                entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, made[name])
    file.chmod(0o755)


def main() -> None:
    options = argparse.ArgumentParser(description="Builds the one file.")
    options.add_argument("file", nargs="?", type=Path, default=PROJECT / "dist" / "cipherbox.pyz")
    options.add_argument(
        "--platform", action="append", choices=["all", *TAGS], help="all, or some; again for more"
    )
    chosen = options.parse_args()
    named = list(TAGS) if "all" in (chosen.platform or []) else chosen.platform or []
    targets = [
        (platform, f"cp{python.replace('.', '')}") for platform in named for python in PYTHONS
    ]
    digest = build(chosen.file, targets)
    print(f"{chosen.file}: {chosen.file.stat().st_size / 1e6:.1f} MB, SHA-256 {digest}")


if __name__ == "__main__":
    main()
