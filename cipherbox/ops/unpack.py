"""Unpacking of the one file.  It runs before any other module of the package can, so it uses
Python's standard library only.

The file contains `site/` (the same everywhere), `native/PLATFORM/any/` (for every Python) and
`native/PLATFORM/cp311/`.  The first start copies the parts for this machine into a folder of this
build, under another name until it is complete and synced, so a power cut leaves a whole folder or
none; later starts use the folder, and Python adds the bytecode of what is imported.  `cipherbox
install` unpacks for every Python, into a directory that only root can change.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from zipfile import ZipFile

CACHE_VARIABLE = "CIPHERBOX_CACHE"
BUILD_NAME = "build"  # of the entry that names the build
SITE, NATIVE, ANY = "site/", "native/", "any"
_PART = ".part-"
_STALE_S = 24 * 3600.0  # a start that was killed left this behind


def python_name() -> str:
    """Return the tag of this Python, for example `cp311`."""
    return f"cp{sys.version_info[0]}{sys.version_info[1]}"


def platform_name() -> str:
    """Return the build's name for this machine: `linux-x86_64`, `linux-musl-aarch64`,
    `macos-arm64`, `windows-amd64`.
    """
    if os.name == "nt":
        return (
            "windows-arm64"
            if "ARM64" in sys.version
            else "windows-amd64"
            if sys.maxsize > 2**32
            else "windows-x86"
        )
    machine: str = os.uname().machine
    if sys.platform == "darwin":
        return f"macos-{machine}"
    if machine in ("x86_64", "aarch64") and sys.maxsize < 2**32:
        machine += "-32bit"
    return f"{sys.platform}-{'' if sys.platform != 'linux' or _has_glibc() else 'musl-'}{machine}"


def _has_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError):
        return False


def cache_directories() -> Iterator[Path]:
    """Yield the directories to unpack into, in order of preference; for root never in the home
    that sudo left in $HOME.

    A directory in $CIPHERBOX_CACHE is the only one.  A user without a home, or with a home mounted
    noexec, gets a folder of their own in the temporary directory.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        yield Path(named)
        return
    if os.name == "nt":
        local = os.environ.get("LOCALAPPDATA")
        yield Path(local or os.path.expanduser("~"), "CipherBox", "cache")
        return
    home = os.path.expanduser("~root" if os.geteuid() == 0 else "~")
    if os.path.isabs(home):
        yield Path(home, ".cache", "cipherbox")
    import tempfile  # a later start, which every command is, needs none of the slow modules

    yield Path(tempfile.gettempdir(), f"cipherbox-{os.geteuid()}")


def runs_nothing(place: Path) -> bool:
    """Return whether files there may not be executed, so that compiled modules could not be
    loaded.
    """
    try:
        return bool(os.statvfs(place).f_flag & getattr(os, "ST_NOEXEC", 0))
    except (AttributeError, OSError):
        return False


def misfit(names: list[str], platform: str, python: str) -> tuple[str, str]:
    """Return why an archive with these entries does not run on this machine, and what to do; two
    empty texts if it does.
    """
    held = sorted({tuple(name.split("/")[1:3]) for name in names if name.startswith(NATIVE)})
    platforms = sorted({name for name, _ in held})
    pythons = sorted({tag for name, tag in held if name == platform and tag != ANY})
    if platform not in platforms:
        return (
            f"this file is for {', '.join(platforms)}, and this machine is {platform}",
            "use the file built for it",
        )
    if pythons and python not in pythons:
        versions = ", ".join(f"{tag[2]}.{tag[3:]}" for tag in pythons)
        return (
            f"this file is for Python {versions}, and this is {python[2]}.{python[3:]}",
            "start it with one of those",
        )
    return "", ""


def unpack(archive: ZipFile, target: Path, platform: str, pythons: tuple[str, ...] | None) -> None:
    """Copy the parts for ``platform`` below ``target``; ``pythons`` None: for every version in the
    archive.
    """
    made: set[Path] = set()
    for name, inner in _wanted(archive.namelist(), platform, pythons):
        path = target / inner
        if path.parent not in made:
            path.parent.mkdir(parents=True, exist_ok=True)
            made.add(path.parent)
        path.write_bytes(archive.read(name))


def _wanted(
    names: list[str], platform: str, pythons: tuple[str, ...] | None
) -> Iterator[tuple[str, str]]:
    for name in names:
        if name.startswith(SITE):
            yield name, name[len(SITE) :]
        elif name.startswith(f"{NATIVE}{platform}/"):
            _, _, tag, inner = name.split("/", 3)
            if pythons is None or tag == ANY or tag in pythons:
                yield name, inner


def unpacked(file: str, build: str) -> Path:
    """Return the folder of this build, created at the first start.  Raise OSError or ValueError if
    that is impossible.
    """
    # an unsafe directory (ValueError) is not skipped: a person has to look at it
    unusable: list[str] = []
    for cache in cache_directories():
        try:
            return _in(cache, file, build, unusable)
        except OSError as error:
            unusable.append(f"{error.filename or cache}: {error.strerror}")
    raise ValueError("; ".join(unusable))


def _in(cache: Path, file: str, build: str, unusable: list[str]) -> Path:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache = cache.resolve()  # what is checked is what is used, wherever a link leads later
    check_place(cache)
    if runs_nothing(cache):
        raise OSError(errno.EACCES, "files there may not be executed (mounted noexec)", str(cache))
    target = cache / f"{build[:16]}-{python_name()}"
    if not target.is_dir():
        unpack_first(file, cache, target)
        if unusable:
            sys.stderr.write(
                f"CipherBox has unpacked itself into {cache}, because it cannot use {unusable[0]}. "
                f"{CACHE_VARIABLE} names another place.\n"
            )
    check_place(target, above=cache)
    return target


def unpack_first(file: str, cache: Path, target: Path) -> None:
    import shutil
    import tempfile
    from zipfile import ZipFile

    with ZipFile(file) as archive:
        why, remedy = misfit(archive.namelist(), platform_name(), python_name())
        if why:
            raise ValueError(f"{why}; {remedy}")
        part = Path(tempfile.mkdtemp(prefix=_PART, dir=cache))
        try:
            unpack(archive, part, platform_name(), (python_name(),))
            sync_files(part)
            try:
                part.rename(target)
            except OSError:
                if not target.is_dir():  # else another start was faster
                    raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    for old in cache.glob(f"{_PART}*"):
        if time.time() - old.stat().st_mtime > _STALE_S:
            shutil.rmtree(old, ignore_errors=True)


def sync_files(folder: Path) -> None:
    """Make everything that was written to the file system of a folder durable, in one step: to sync
    a thousand files one by one takes ten seconds.  Windows has no such call.
    """
    try:
        import ctypes

        syncfs = ctypes.CDLL(None, use_errno=True).syncfs  # of Linux
    except (ImportError, OSError, TypeError, AttributeError):
        if hasattr(os, "sync"):
            os.sync()
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        if syncfs(fd) and ctypes.get_errno() in (errno.EIO, errno.ENOSPC, errno.EDQUOT):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(fd)


def check_place(folder: Path, above: Path | None = None) -> None:
    """Raise ValueError if another user could change what this user runs from there.

    As sshd does for its keys: the folder and every directory above it, up to ``above``, must belong
    to this user or to root and must not be writable by others.  A sticky directory such as /tmp is
    accepted above it: there users cannot rename or delete files of others.  So is a group whose
    only member is this user.
    """
    if os.name == "nt":
        return
    for place in (folder, *folder.parents):
        if place == above:
            return
        found = place.lstat()
        own = found.st_uid == os.geteuid()
        if not own and (found.st_uid != 0 or place == folder):
            raise ValueError(f"{place} belongs to another user, who could change what you run")
        if not _writable(found) or (place != folder and found.st_mode & stat.S_ISVTX):
            continue
        raise ValueError(
            f"{place} can be written by others, who could change what you run; run: chmod go-w "
            f"{place}"
        )


def _writable(found: os.stat_result) -> bool:
    """Return whether another user may write there."""
    if found.st_mode & 0o002:
        return True
    return bool(found.st_mode & 0o020) and not (
        found.st_gid == os.getegid() and _private_group(found.st_gid)
    )


def _private_group(number: int) -> bool:
    """Return whether a group has only this user: many systems create one for each user, with a
    umask of 002.
    """
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}


def start(file: str, build: str) -> NoReturn:
    """Unpack and run the program; the entry point of the file."""
    try:
        folder = unpacked(file, build)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"Error: CipherBox cannot unpack itself: {error}.\n")
        sys.stderr.write(
            f"       It may unpack elsewhere: set {CACHE_VARIABLE} to a directory of your own.\n"
        )
        sys.exit(6)
    sys.path[0] = str(folder)
    # Bytecode halves the CPU time of every later start.  PYTHONDONTWRITEBYTECODE spares the folders
    # of sources; this one is our cache.  Python gives each file its name when it is complete, so
    # simultaneous and interrupted starts leave nothing that is half.
    sys.dont_write_bytecode = False
    from cipherbox.__main__ import main

    main()
