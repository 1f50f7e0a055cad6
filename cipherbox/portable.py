"""The only file that knows of Unix and Windows: file modes, locks, signals.

Writes are atomic and durable: a new file beside the old one, synced, renamed over it, the directory
synced.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import sys
import tempfile
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from cipherbox.errors import ConfigError, Problem, StoreLocked

WINDOWS = sys.platform == "win32"
T = TypeVar("T")
O_BINARY = getattr(os, "O_BINARY", 0)  # for os.open: Windows would change the ends of lines
CREDENTIALS_VARIABLE = "CREDENTIALS_DIRECTORY"  # systemd.exec(5)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def read_at(fd: int, size: int, at: int) -> bytes:
    """Bytes from a place in a file; one thread at a time, as Windows has one position for them
    all.
    """
    if sys.platform != "win32":
        return os.pread(fd, size, at)
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, size)


def write_at(fd: int, data: bytes | memoryview, at: int) -> None:
    """All the bytes to a place in a file; one thread at a time."""
    view = memoryview(data)
    while view:
        if sys.platform != "win32":
            size = os.pwrite(fd, view, at)
        else:
            os.lseek(fd, at, os.SEEK_SET)
            size = os.write(fd, view)
        view, at = view[size:], at + size


def sync_directory(path: Path) -> None:
    """Makes a rename or a deletion in ``path`` durable; Windows has no such call and needs none."""
    if WINDOWS:
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Puts on stable storage what any process has written into the file."""
    fd = os.open(path, os.O_RDWR | O_BINARY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replaces ``path`` by ``data``, whole or not at all, durable when it returns."""
    name = ""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            if not WINDOWS:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException as error:
        if name:
            with suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            # a full disk does not say which one it is
            error.filename, error.filename2 = str(path), None
        raise
    sync_directory(path.parent)


def replace_file(source: Path, target: Path) -> None:
    """Rename a file that is already synced over ``target``, durably."""
    os.replace(source, target)
    sync_directory(target.parent)


def copy_file(source: Path, target: Path, part: Path) -> None:
    """Copy a file with its dates to ``target``, which may be on another file system, whole or not
    at all; ``part``: the unfinished copy beside ``target``.
    """
    try:
        part.unlink(missing_ok=True)
        shutil.copyfile(source, part, follow_symlinks=False)
        shutil.copystat(source, part, follow_symlinks=False)
        sync_file(part)
        replace_file(part, target)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write all the bytes at the current position of a file."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_private(path: Path, data: bytes) -> None:
    """As `write_atomic`, readable by this user alone (mode 0600)."""
    write_atomic(path, data, 0o600)


def read_private(path: Path) -> bytes:
    """Reads a secret; ConfigError if others may read it, or if it is not there."""
    try:
        with path.open("rb") as file:
            if not WINDOWS:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & (0o037 if _is_credential(path) else 0o077):
                    raise ConfigError(
                        f"{path} holds a secret but other users may read it (mode {mode:04o})",
                        remedy=f"run: chmod 600 {path}",
                    )
            return file.read()
    except OSError as error:
        raise ConfigError(unreadable(path, error)) from None


def credential(name: str) -> Path | None:
    """The file in which systemd hands the secret ``name`` to this service alone; None if it
    hands over none.
    """
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    path = Path(directory, name) if directory else None
    return path if path is not None and path.exists() else None


def _is_credential(path: Path) -> bool:
    """systemd lets the service read its credentials by an access list, which shows as a right of
    the group.
    """
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    return bool(directory) and path.parent == Path(str(directory))


def can_ask() -> bool:
    """Whether somebody sits at a terminal, wherever standard input and output lead."""
    if WINDOWS:
        return bool(sys.stdin and sys.stdin.isatty())
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def others_may_read(path: Path) -> bool:
    """Whether other users of this machine may read the file; unknown on Windows, and then False."""
    return not WINDOWS and bool(path.stat().st_mode & 0o044)


def private_dir(path: Path) -> Path:
    """Makes the directory (and its parents) if it is missing, for this user alone."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


@contextmanager
def lock_file(path: Path, what: str) -> Iterator[None]:
    """Holds an exclusive lock on ``path`` while the block runs; StoreLocked says which process has
    it.

    The lock goes with the process, also when it is killed, so a stale file locks nobody out.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | O_BINARY, 0o600)
    try:
        if not _try_lock(fd):
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() if not WINDOWS else ""
            who = f" (process {holder})" if holder.isdigit() else ""
            raise StoreLocked(
                f"{what} is in use by another CipherBox process{who}", remedy="end it first"
            )
        os.ftruncate(fd, 0)
        os.write(fd, str(os.getpid()).encode())
        yield
    finally:
        os.close(fd)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock on ``path``; nothing is made or changed, whoever asks."""
    try:
        fd = os.open(path, os.O_RDONLY | O_BINARY)
    except OSError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            # beyond the text, so that others may read the number
            os.lseek(fd, 1 << 20, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Bytes this user may still write on the file system of ``path``."""
    return shutil.disk_usage(path).free


def standard_files() -> frozenset[int]:
    """Which of 0, 1 and 2 were closed; they lead nowhere now, or the next file opened would have
    their number.
    """
    closed = set()
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            closed.add(fd)
            with suppress(OSError):
                os.open(os.devnull, os.O_RDWR)
    return frozenset(closed)


def keep_heap() -> None:
    """Lets the C library keep what was freed, up to 32 MiB, for the next large block.

    glibc gives blocks from 128 KiB up back to the system at once, and the system clears new pages
    for each: that costs a large envelope as much as encrypting it.  Elsewhere this does nothing.
    """
    if sys.platform != "linux":
        return
    import ctypes

    with suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 32 << 20)
        libc.mallopt(_M_ARENA_MAX, 1)


def process_usage(pid: int) -> tuple[float, int] | None:
    """CPU seconds so far and the largest memory in bytes of a running process; None where the
    system does not say.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def other_user() -> dict[str, Any]:
    """Arguments for a subprocess that must not run as root: a user without rights where this is
    root, else none.
    """
    if WINDOWS or os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def is_root() -> bool:
    """Whether this process may change what belongs to the system."""
    return not WINDOWS and os.geteuid() == 0


def ids_of(user: str) -> tuple[int, int] | None:
    """Number of a user and of its group; None when this machine has no such user."""
    if WINDOWS:
        return None
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def owner_of(path: Path) -> str:
    """The name of the user a file belongs to; empty where files have no such owner."""
    if WINDOWS:
        return ""
    import pwd

    uid = path.lstat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def unreadable(path: Path, error: OSError) -> Problem:
    """Return why a file could not be read, and what to do when it is another user's."""
    text = f"cannot read {path}: {error.strerror or error}"
    if not isinstance(error, PermissionError):
        return Problem(text)
    for place in (path, *path.absolute().parents):
        try:
            return Problem(text, _anothers(place))
        except OSError:  # it lies in a directory that this user may not look into
            continue
    return Problem(text)


def why_unreachable(error: OSError) -> str:
    """Why no connection came about, in the system's words; trio wraps what each of the addresses
    said.
    """
    inner: BaseException | None = error
    while isinstance(inner, OSError) and not inner.strerror:
        inner = inner.__cause__
    if isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    if not isinstance(inner, OSError):
        return "no connection"
    if inner.errno and not isinstance(inner, socket.gaierror):  # whose numbers are others
        return os.strerror(inner.errno)
    return inner.strerror or "no connection"


def unwritable(path: Path) -> Problem:
    """Return what keeps this user from writing a file, or into a directory, and what to do; empty
    when nothing does.
    """
    folder = path.is_dir()
    if os.access(path, os.W_OK | (os.X_OK if folder else 0)):
        return Problem()
    if not WINDOWS and os.statvfs(path).f_flag & os.ST_RDONLY:
        return Problem(f"{path} is on a read-only file system", "mount it writable")
    return Problem(f"{path} cannot be written", _anothers(path))


def _anothers(path: Path) -> str:
    """What to do about a file that this user may not use."""
    if WINDOWS:
        return "look at its properties: who may use it?"
    if path.stat().st_uid == os.geteuid():
        return f"it has mode {stat.S_IMODE(path.stat().st_mode):04o}, run: chmod u+rwX {path}"
    if path.absolute().parent.stat().st_uid == os.geteuid():
        return (
            f"it belongs to {owner_of(path)}, run as root: chown "
            f"--reference={path.absolute().parent} {path}"
        )
    return f"{path} belongs to {owner_of(path)}, run this as that user"


def as_user(user: str, work: Callable[..., T], *values: object) -> T:
    """What ``work`` gives, done in a process of that user, where this is root and there is such
    a user.
    """
    ids = ids_of(user)
    if ids is None or not is_root():
        return work(*values)
    from concurrent.futures import ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    try:
        with ProcessPoolExecutor(1, get_context("fork"), _become, ids) as other:
            return other.submit(work, *values).result()
    except BrokenProcessPool:
        raise OSError(f"a process of user {user} ended before its work was done") from None


def _become(uid: int, gid: int) -> None:
    if sys.platform != "win32":
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def give_to(path: Path, ids: tuple[int, int]) -> None:
    """Gives a file to a user and its group."""
    if not WINDOWS:
        os.chown(path, *ids, follow_symlinks=False)


def escape_text(text: str, most: int = 500) -> str:
    """Another party's text made safe for a terminal or a log: control and direction characters
    become escapes.
    """
    cut = text if len(text) <= most else text[:most] + "…"
    return "".join(
        c
        if c == " " or unicodedata.category(c)[0] not in "CZ"
        else c.encode("unicode_escape").decode()
        for c in cut
    )


def stop_signals() -> list[signal.Signals]:
    """What asks a program to end: Ctrl-C and the service manager's TERM."""
    found = [signal.SIGINT, signal.SIGTERM]
    if WINDOWS:
        found.append(signal.Signals["SIGBREAK"])
    return found


def reload_signals() -> list[signal.Signals]:
    """What asks a service to read its settings again; Windows has no such signal."""
    return [] if sys.platform == "win32" else [signal.SIGHUP]


def open_files() -> tuple[int, int] | None:
    """How many file handles this process has and may have; None where the system does not say."""
    if sys.platform == "win32":
        return None
    import resource

    try:
        return len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        return None


def memory_bytes() -> int:
    """Memory of this process that is in use now; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def int64(number: int) -> int:
    """The nearest number that fits into 64 bits: a file's date may lie in the year 2400, and in
    no database.
    """
    return max(-(1 << 63), min(number, (1 << 63) - 1))


def is_being_written(fd: int) -> bool:
    """Whether some program has this file open for writing.  Linux says so to the owner of a
    file; elsewhere, and where the file system has no leases, False.
    """
    if sys.platform != "linux":
        return False
    import fcntl

    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # ignored; SIGIO would end the process
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False
