"""Writes requirements.txt and requirements-dev.txt: exact versions with the hashes of every wheel
that fits.

    .venv/bin/python packaging/lock.py

Asks pip (with this machine's own pip configuration) what it would install for each target below and
collects the hashes, so that one file serves every Python and system named here.  A package that
only some systems need gets a marker.  Look at the difference before you commit it: it is the list
of what runs beside the secrets.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from platforms import PYTHONS, SYSTEMS, TAGS

HERE = Path(__file__).resolve().parent
# sys_platform -> pip's tags of each target; those the file is built for, and those on which the
# project is developed.
RUN = {
    system: [tags for platform, tags in TAGS.items() if SYSTEMS[platform] == system]
    for system in ("linux", "darwin", "win32")
}
DEV = {
    "linux": [[f"manylinux_2_34_{cpu}", *TAGS[f"linux-{cpu}"]] for cpu in ("x86_64", "aarch64")],
    "darwin": [TAGS["macos-arm64"]],
}
# what click needs there; pip reads such markers for the machine it runs on
EXTRA = {"win32": ["colorama"]}
# what a package's own code needs, of which the tests use a file alone: axe-core
UNUSED = ("playwright", "greenlet", "pyee")
BUILD = ["setuptools>=77"]  # builds the project itself, without isolation

Found = dict[str, tuple[str, set[str], set[str]]]  # name -> version, hashes, systems


def ask(
    wanted: list[str], python: str, tags: list[str], pins: Path | None
) -> list[dict[str, object]]:
    """What pip would install of ``wanted`` for one target, as its report says."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch, "report.json")
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
        ]
        command += [
            "--only-binary=:all:",
            "--python-version",
            python,
            "--target",
            scratch,
            "--report",
            str(report),
        ]
        for tag in tags:
            command += ["--platform", tag]
        if pins:
            command += ["--constraint", str(pins)]
        subprocess.run([*command, *wanted], check=True)
        packages: list[dict[str, object]] = json.loads(report.read_text())["install"]
        return packages


def _fitting(wanted: list[str], system: str) -> list[str]:
    """What is asked for on a system: a marker in pyproject.toml names the one system it is for."""
    return [
        one.split(";")[0] for one in wanted if ";" not in one or repr(system) in one
    ] + EXTRA.get(system, [])


def collect(wanted: list[str], targets: dict[str, list[list[str]]], pins: Path | None) -> Found:
    """Versions, hashes and systems of everything ``wanted`` needs; refuses two versions of one
    package.
    """
    jobs = [
        (system, python, tags)
        for system, all_tags in targets.items()
        for tags in all_tags
        for python in PYTHONS
    ]
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda job: ask(_fitting(wanted, job[0]), job[1], job[2], pins), jobs)
        )
    found: Found = {}
    for (system, _, _), packages in zip(jobs, answers, strict=True):
        for package in packages:
            metadata: dict[str, str] = package["metadata"]  # type: ignore[assignment]
            download: dict[str, dict[str, dict[str, str]]] = package["download_info"]  # type: ignore[assignment]
            name = metadata["name"].lower().replace("_", "-").replace(".", "-")
            version, hashes, systems = found.setdefault(name, (metadata["version"], set(), set()))
            if version != metadata["version"]:
                raise SystemExit(
                    f"{name}: {version} and {metadata['version']}; narrow pyproject.toml"
                )
            hashes.add(download["archive_info"]["hashes"]["sha256"])
            systems.add(system)
    return found


def write(file: Path, found: Found, targets: dict[str, list[list[str]]], head: str) -> None:
    lines = [f"# {head}", "# Made by packaging/lock.py; change pyproject.toml and run it again."]
    for name, (version, hashes, systems) in sorted(found.items()):
        only = (
            ""
            if systems == set(targets)
            else " or ".join(f'sys_platform == "{s}"' for s in sorted(systems))
        )
        lines.append(f"{name}=={version}" + (f" ; {only}" if only else "") + " \\")
        lines += [f"    --hash=sha256:{h} \\" for h in sorted(hashes)]
        lines[-1] = lines[-1].removesuffix(" \\")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{file.name}: {len(found)} packages")


def main() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
    run, dev = project["dependencies"], project["optional-dependencies"]["dev"]
    found = collect(run, RUN, None)
    write(
        HERE / "requirements.txt", found, RUN, "What the built file holds beside CipherBox itself."
    )
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
        pins.write("".join(f"{name}=={version}\n" for name, (version, _, _) in found.items()))
        pins.flush()
        everything = collect([*run, *dev, *BUILD], DEV, Path(pins.name))
    for name in UNUSED:
        everything.pop(name, None)
    write(
        HERE / "requirements-dev.txt",
        everything,
        DEV,
        "The same and what building and testing need.",
    )


if __name__ == "__main__":
    main()
