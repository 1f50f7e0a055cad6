"""Sources of an installed version's tree: the contents of the one file, or the installed packages
that this program runs from (pip, pipx).
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import cipherbox
from cipherbox.classes import frozen
from cipherbox.cli.install.programs import call
from cipherbox.errors import ConfigError
from cipherbox.ops.unpack import BUILD_NAME, misfit, platform_name, python_name, unpack

# pip's notes on its own installation, which the copy is not
_PIPS = frozenset(["RECORD", "INSTALLER", "REQUESTED", "direct_url.json"])


@frozen
class ProgramSource:
    """``build`` identifies the contents; ``copy_to`` writes them into a directory."""

    build: str
    copy_to: Callable[[Path], None]

    @property
    def name(self) -> str:
        """Return the name of the tree this version is copied into."""
        return f"{cipherbox.__version__}-{self.build[:12]}"


def program_source(program: Path, python: Path) -> ProgramSource:
    """Return the contents of ``program``, the file this process was started with.

    Raise ConfigError if it cannot run on this machine or with ``python``, or cannot be copied.
    """
    try:
        with ZipFile(program) as archive:
            build = archive.read(BUILD_NAME).decode()
            names = archive.namelist()
    except (OSError, BadZipFile, KeyError):  # pip's command on Windows is an archive, too
        return from_packages(python)
    return _from_file(program, build, names)


def _from_file(file: Path, build: str, names: list[str]) -> ProgramSource:
    why, remedy = misfit(names, platform_name(), python_name())
    if why:
        raise ConfigError(why, remedy=remedy)

    def copy_to(target: Path) -> None:
        with ZipFile(file) as archive:
            unpack(archive, target, platform_name(), None)

    return ProgramSource(build, copy_to)


def from_packages(python: Path) -> ProgramSource:
    """Return the installed packages that this program needs.

    Their compiled parts are for this version of Python, so ``python`` must be of the same one.
    """
    command = [str(python), "-c", "import sys; print('cp%d%d' % sys.version_info[:2])"]
    if call(command) != python_name():
        version = f"{sys.version_info[0]}.{sys.version_info[1]}"
        raise ConfigError(
            f"{python} cannot run the installed packages, which are for Python {version}",
            remedy=f"name a Python {version}: --python FILE",
        )
    files = {path: file for name in _needed() for path, file in _files(name)}
    package = Path(cipherbox.__file__).parent
    for file in package.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            files[f"{package.name}/{file.relative_to(package).as_posix()}"] = file

    digest = hashlib.sha256()
    for path, file in sorted(files.items()):
        data = file.read_bytes()
        digest.update(f"{path}\0{len(data)}\0".encode() + data)

    def copy_to(target: Path) -> None:
        for path, file in files.items():
            copied = target / path
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(file.read_bytes())

    return ProgramSource(digest.hexdigest(), copy_to)


def _needed() -> list[str]:
    """Return the distributions that CipherBox needs, itself first; those for other systems and for
    its extras are left out.
    """
    found, waiting = dict[str, None](), [cipherbox.__name__]
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            wanted = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            if name == cipherbox.__name__:
                raise ConfigError(
                    "this program is neither the one file nor an installed package",
                    remedy="run cipherbox.pyz install, or install the wheel with pipx first",
                ) from None
            continue  # of another system or version of Python
        found[name] = None
        for requirement in wanted:
            match = re.match(r"[\w.-]+", requirement)
            if match and "extra ==" not in requirement:
                waiting.append(match[0])
    return [*found]


def _files(name: str) -> Iterator[tuple[str, Path]]:
    """Yield the files of a distribution, each with its path below `site-packages`."""
    distribution = metadata.distribution(name)
    if distribution.files is None:
        raise ConfigError(
            f"the files that belong to {name} are not recorded",
            remedy="install CipherBox with pipx or pip, or run: cipherbox.pyz install",
        )
    for path in distribution.files:
        first = path.parts[0]
        if first == ".." or path.is_absolute() or "__pycache__" in path.parts:
            continue
        if path.suffix == ".pth" or first.startswith("__editable__") or path.name in _PIPS:
            continue
        file = Path(str(distribution.locate_file(path)))
        if file.is_file():
            yield path.as_posix(), file
