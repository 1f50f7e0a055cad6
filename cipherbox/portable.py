"""The only module that depends on Unix or Windows: file modes, locks, signals.

Writes are atomic and durable: a new file beside the old one, synced and renamed over it, the
directory synced.  Every command imports this module, so it imports what is slow to import late.

A killed write leaves that new file, the part, which may hold a secret.  Its writer holds a lock on
it, which ends with the process: a part that nobody has locked is abandoned, however the clock
stands.  The next write of the same file removes it, and so does `doctor`.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import sys
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
# of the kernel's fs/ext4/ext4.h: _IOR('X', 125, __u32), and do not flush the journal
_FS_IOC_SHUTDOWN, _NO_LOG_FLUSH = 0x8004587D, (2).to_bytes(4, sys.byteorder)
PART = ".part"  # ends the name of what is not finished
_PART_OF = 40  # characters of a file's name that the name of its part begins with
_PART_NAME = re.compile(r"\.(.+)\.[a-z0-9_]{8}" + re.escape(PART), re.DOTALL)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # of glibc's malloc.h


def read_at(fd: int, size: int, at: int) -> bytes:
    """Read bytes at an offset; one thread at a time, since Windows has one position per file."""
    if sys.platform != "win32":
        return os.pread(fd, size, at)
    os.lseek(fd, at, os.SEEK_SET)
    return os.read(fd, size)


def write_at(fd: int, data: bytes | memoryview, at: int) -> None:
    """Write all bytes at an offset; one thread at a time."""
    view = memoryview(data)
    while view:
        if sys.platform != "win32":
            size = os.pwrite(fd, view, at)
        else:
            os.lseek(fd, at, os.SEEK_SET)
            size = os.write(fd, view)
        view, at = view[size:], at + size


def sync_directory(path: Path) -> None:
    """Make renames and deletions in ``path`` durable; Windows has no such call and needs none."""
    if WINDOWS:
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_data(fd: int) -> None:
    """Sync an open file's bytes, and its size if it has grown, but not its times: where it was
    written over, that spares the file system's journal a commit.
    """
    getattr(os, "fdatasync", os.fsync)(fd)  # macOS and Windows have only the latter


def sync_file(path: Path) -> None:
    """Sync to stable storage what any process has written to the file."""
    fd = os.open(path, os.O_RDWR | O_BINARY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Replace a file atomically; the new contents are durable when this returns."""
    name = ""
    try:
        remove_parts(path.parent, path.name)
        fd, name = _new_part(path)
        with os.fdopen(fd, "wb") as file:
            if not WINDOWS:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            if not WINDOWS:  # there an open file cannot be renamed; here it stays locked until then
                os.replace(name, path)
        if WINDOWS:
            os.replace(name, path)
    except BaseException as error:
        if name:
            with suppress(OSError):
                os.unlink(name)
        if isinstance(error, OSError):
            # the error of a full disk names no file
            error.filename, error.filename2 = str(path), None
        raise
    sync_directory(path.parent)


def _new_part(path: Path) -> tuple[int, str]:
    """Create the part of a file, private and locked by this process."""
    import tempfile

    while True:
        fd, name = tempfile.mkstemp(PART, f".{path.name[:_PART_OF]}.", path.parent)
        if not WINDOWS:
            import fcntl

            with suppress(OSError):  # a file system without locks: nobody removes its parts
                fcntl.flock(fd, fcntl.LOCK_EX)
            if not os.fstat(fd).st_nlink:  # removed before it was locked
                os.close(fd)
                continue
        return fd, name


def parts_in(directory: Path, name: str = "") -> list[Path]:
    """Return the parts of files in a directory, of the file ``name`` alone if given."""
    found = []
    with suppress(OSError):
        for entry in os.scandir(directory):
            part = _PART_NAME.fullmatch(entry.name)
            if part and name[:_PART_OF] in ("", part[1]) and entry.is_file(follow_symlinks=False):
                found.append(Path(entry.path))
    return sorted(found)


def is_part(name: str) -> bool:
    """Return whether a file has the name of a part, which may be gone the next moment."""
    return _PART_NAME.fullmatch(name) is not None


def remove_parts(directory: Path, name: str = "") -> list[Path]:
    """Remove abandoned parts as `parts_in` finds them, and return their paths."""
    return [part for part in parts_in(directory, name) if _remove_abandoned(part)]


def _remove_abandoned(part: Path) -> bool:
    try:
        fd = os.open(part, os.O_RDWR | O_BINARY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return False
    try:
        if not _try_lock(fd):
            return False
        if not WINDOWS:
            part.unlink()
    except OSError:
        return False
    finally:
        os.close(fd)
    if WINDOWS:  # where an open file cannot be removed, neither here nor while it is written
        try:
            part.unlink()
        except OSError:
            return False
    return True


@contextmanager
def passing_file(data: bytes) -> Iterator[Path]:
    """Provide data as a private file during the block: in memory where the system has such files,
    so that a killed process leaves nothing.
    """
    here = Path("/proc/self/fd")
    if sys.platform == "linux" and hasattr(os, "memfd_create") and here.is_dir():
        fd = os.memfd_create("cipherbox")
        try:
            write_all(fd, data)
            yield here / str(fd)
        finally:
            os.close(fd)
        return
    import tempfile

    with tempfile.TemporaryDirectory(prefix="cipherbox-") as directory:
        path = Path(directory) / "data"
        path.touch(0o600)
        path.write_bytes(data)
        yield path


def replace_file(source: Path, target: Path) -> None:
    """Rename a file that is already synced over ``target``, durably."""
    os.replace(source, target)
    sync_directory(target.parent)


def copy_file(source: Path, target: Path, part: Path) -> None:
    """Copy a file with its dates to ``target``, also on another file system, atomically; ``part``
    is the unfinished copy beside ``target``.
    """
    import shutil

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
    """Write all bytes at the current position of a file."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_private(path: Path, data: bytes) -> None:
    """Replace a file as `write_atomic`, readable only by this user (mode 0600)."""
    write_atomic(path, data, 0o600)


def read_private(path: Path) -> bytes:
    """Read a secret; raise ConfigError if others may read it, or if it is missing."""
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
    """Return the file in which systemd passes the secret ``name`` to this service; None without."""
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    path = Path(directory, name) if directory else None
    return path if path is not None and path.exists() else None


def _is_credential(path: Path) -> bool:
    """Return whether it is a systemd credential, whose access list shows as a permission of the
    group.
    """
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    return bool(directory) and path.parent == Path(str(directory))


def can_ask() -> bool:
    """Return whether there is a terminal, even if standard input and output are redirected."""
    if WINDOWS:
        return bool(sys.stdin and sys.stdin.isatty())
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def has_screen() -> bool:
    """Return whether a browser can show something: not over a plain SSH connection, for example."""
    if WINDOWS or sys.platform == "darwin":
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def others_may_read(path: Path) -> bool:
    """Return whether other users may read the file; always False on Windows."""
    return not WINDOWS and bool(path.stat().st_mode & 0o044)


def private_dir(path: Path) -> Path:
    """Create a directory and its parents, for this user only, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    return path


@contextmanager
def lock_file(path: Path, what: str) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` during the block; raise StoreLocked, naming the process
    that holds it.

    The lock ends with the process, even a killed one, so a stale file locks nobody out.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | O_BINARY, 0o600)
    try:
        give_to_owner_of_folder(path)
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


@contextmanager
def held(path: Path, busy: str) -> Iterator[None]:
    """Hold the lock on an existing file during the block, leaving its contents; raise StoreLocked
    with the text ``busy`` if another process holds it.
    """
    fd = os.open(path, os.O_RDWR | O_BINARY)
    try:
        if not _try_lock(fd):
            raise StoreLocked(busy, remedy="wait for it, or end it")
        yield
    finally:
        os.close(fd)


@contextmanager
def lock_when_free(path: Path) -> Iterator[None]:
    """Hold the lock on an existing file during the block; wait until no other process holds it."""
    fd = os.open(path, os.O_RDWR | O_BINARY)
    try:
        if sys.platform == "win32":
            while not _try_lock(fd, wait=True):
                pass  # Windows gives up after ten seconds
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def passed_lock(path: Path) -> Iterator[int]:
    """Provide a new file, open and locked, to be passed on to another program: then that one holds
    the lock until it ends.  Write its id into the file.
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | O_BINARY, 0o600)
    try:
        _try_lock(fd)
        yield fd
    finally:
        os.close(fd)


def holder_of(path: Path) -> int | None:
    """Return the id of the process that holds the lock of `lock_file` or `passed_lock` on
    ``path``; None without one.
    """
    try:
        text = path.read_bytes()[:32] if is_locked(path) else b""
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock on ``path``, changing nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | O_BINARY)
    except OSError:
        return False
    try:
        return not _try_lock(fd)
    finally:
        os.close(fd)


def _try_lock(fd: int, wait: bool = False) -> bool:
    """Return whether the lock was free; ``wait``: became free within ten seconds, on Windows."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # beyond the text, so that others can read the process id
            os.lseek(fd, 1 << 20, os.SEEK_SET)
            msvcrt.locking(fd, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def free_bytes(path: Path) -> int:
    """Return the free space for this user on the file system of ``path``."""
    import shutil

    return shutil.disk_usage(path).free


def standard_files() -> frozenset[int]:
    """Return which of 0, 1 and 2 were closed, and open them to the null device: the next file
    opened would get their number.
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
    """Let the C library keep up to 32 MiB of freed memory for the next large block.

    glibc returns blocks above 128 KiB to the system immediately, which then clears pages for each
    new one: for a large envelope that costs as much as encrypting it.  Elsewhere this does nothing.
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
    """Return the CPU seconds and the peak memory in bytes of a running process; None if the system
    does not provide them.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), peak
    except (OSError, IndexError, ValueError, AttributeError):
        return None


def files_of(pid: int) -> int | None:
    """Return the number of open files of a running process; None if the system does not say."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def is_stopped(pid: int) -> bool:
    """Return whether a signal stopped a process, such as SIGSTOP; False where it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except (OSError, IndexError):
        return False


def stop_process(pid: int) -> None:
    """Stop a process until `continue_process`; Windows has no such signal."""
    if sys.platform != "win32":
        os.kill(pid, signal.SIGSTOP)


def continue_process(pid: int) -> None:
    """Let a stopped process continue."""
    if sys.platform != "win32":
        os.kill(pid, signal.SIGCONT)


def end_process(pid: int, *, orderly: bool = False) -> None:
    """Kill another process, if it still runs; ``orderly``: with SIGQUIT, which ends PostgreSQL
    immediately, and without leaving shared memory behind.
    """
    with suppress(OSError):
        if sys.platform == "win32":
            os.kill(pid, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGQUIT if orderly else signal.SIGKILL)


def remove_shared_memory(number: int) -> None:
    """Remove a segment of System V shared memory that a killed process left."""
    import ctypes

    ctypes.CDLL(None).shmctl(number, 0, None)  # 0: IPC_RMID


def shut_file_system(path: Path) -> None:
    """Shut the file system of ``path`` as a power cut does: nothing that is not on the disk yet
    reaches it.  Linux, as root.
    """
    if sys.platform != "linux":
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP), str(path))
    import fcntl

    fd = os.open(path, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, _NO_LOG_FLUSH)
    finally:
        os.close(fd)


def other_user() -> dict[str, Any]:
    """Return arguments for a subprocess that must not run as root: an unprivileged user if this is
    root, else nothing.
    """
    if WINDOWS or os.geteuid() != 0:
        return {}
    import pwd

    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def is_mine(path: Path) -> bool:
    """Return whether this user owns the file, which is no link; True on Windows."""
    return WINDOWS or path.lstat().st_uid == os.geteuid()


def is_root() -> bool:
    """Return whether this process runs as root."""
    return not WINDOWS and os.geteuid() == 0


def ids_of(user: str) -> tuple[int, int] | None:
    """Return the ids of a user and its group; None if the user does not exist."""
    if WINDOWS:
        return None
    import pwd

    try:
        found = pwd.getpwnam(user)
    except KeyError:
        return None
    return found.pw_uid, found.pw_gid


def owner_of(path: Path) -> str:
    """Return the name of a file's owner; empty on Windows."""
    if WINDOWS:
        return ""
    import pwd

    uid = path.lstat().st_uid
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def unreadable(path: Path, error: OSError) -> Problem:
    """Return why a file could not be read, and what to do if another user owns it."""
    text = f"cannot read {path}: {error.strerror or error}"
    if not isinstance(error, PermissionError):
        return Problem(text)
    for place in (path, *path.absolute().parents):
        try:
            return Problem(text, _anothers(place))
        except OSError:  # in a directory that this user may not access
            continue
    return Problem(text)


def why_unreachable(error: OSError) -> str:
    """Return the system's reason for a failed connection; trio wraps the error of each address."""
    import socket

    inner: BaseException | None = error
    while isinstance(inner, OSError) and not inner.strerror:
        inner = inner.__cause__
    if isinstance(inner, BaseExceptionGroup):
        inner = inner.exceptions[0]
    if not isinstance(inner, OSError):
        return "no connection"
    if inner.errno and not isinstance(inner, socket.gaierror):  # which has other numbers
        return os.strerror(inner.errno)
    return inner.strerror or "no connection"


def unwritable(path: Path) -> Problem:
    """Return why this user cannot write a file or into a directory, and what to do; empty if it
    can.
    """
    folder = path.is_dir()
    if os.access(path, os.W_OK | (os.X_OK if folder else 0)):
        return Problem()
    if not WINDOWS and os.statvfs(path).f_flag & os.ST_RDONLY:
        return Problem(f"{path} is on a read-only file system", "mount it writable")
    return Problem(f"{path} cannot be written", _anothers(path))


def _anothers(path: Path) -> str:
    """Return what to do about a file that this user may not access."""
    if WINDOWS:
        return "look at its properties: who may use it?"
    if path.stat().st_uid == os.geteuid():
        return f"it has mode {stat.S_IMODE(path.stat().st_mode):04o}. Run: chmod u+rwX {path}"
    if path.absolute().parent.stat().st_uid == os.geteuid():
        return (
            f"it belongs to {owner_of(path)}. Run as root: chown "
            f"--reference={path.absolute().parent} {path}"
        )
    return f"{path} belongs to {owner_of(path)}. Run this as that user"


def as_user(user: str, work: Callable[..., T], *values: object) -> T:
    """Return the result of ``work``, run in a process of that user if this is root and the user
    exists.
    """
    ids = ids_of(user)
    if ids is None or not is_root():
        return work(*values)
    from multiprocessing import get_context

    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    # it ends with its work, also if this process is killed meanwhile
    other = context.Process(target=_work_as, args=(ids, sender, work, values))
    other.start()
    sender.close()
    try:
        result, error = receiver.recv()
    except EOFError:
        raise OSError(f"a process of user {user} ended before its work was done") from None
    finally:
        receiver.close()
        other.join()
    if error is not None:
        raise error
    return result  # type: ignore[no-any-return]


def _work_as(
    ids: tuple[int, int], sender: Any, work: Callable[..., object], values: tuple[object, ...]
) -> None:
    if sys.platform != "win32":
        os.setgroups([])
        os.setgid(ids[1])
        os.setuid(ids[0])
    try:
        found: tuple[object, Exception | None] = work(*values), None
    except Exception as error:
        found = None, error
    sender.send(found)


def give_to(path: Path, ids: tuple[int, int]) -> None:
    """Make a user and its group the owner of a file."""
    if not WINDOWS:
        os.chown(path, *ids, follow_symlinks=False)


def give_to_owner_of_folder(path: Path) -> None:
    """Keep a file that root has made writable for the owner of its directory."""
    if is_root():
        there = path.parent.stat()
        give_to(path, (there.st_uid, there.st_gid))


def escape_text(text: str, most: int = 500) -> str:
    """Return another party's text with control and direction characters escaped, for a terminal or
    a log.
    """
    cut = text if len(text) <= most else text[:most] + "…"
    return "".join(
        c
        if c == " " or unicodedata.category(c)[0] not in "CZ"
        else c.encode("unicode_escape").decode()
        for c in cut
    )


def stop_signals() -> list[signal.Signals]:
    """Return the signals that stop a program: Ctrl-C and the service manager's TERM."""
    found = [signal.SIGINT, signal.SIGTERM]
    if WINDOWS:
        found.append(signal.Signals["SIGBREAK"])
    return found


def hang_up_signals() -> list[signal.Signals]:
    """Return the signal of a closed terminal; none where it is ignored, as under `nohup`."""
    if sys.platform == "win32" or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return []
    return [signal.SIGHUP]


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Let every signal that stops a program raise KeyboardInterrupt during the block, as Ctrl-C
    does; in a thread other than the main one this does nothing.
    """
    import threading

    before = []
    if threading.current_thread() is threading.main_thread():
        for number in (*stop_signals(), *hang_up_signals()):
            handler = signal.signal(number, signal.default_int_handler)
            before.append((number, signal.SIG_DFL if handler is None else handler))
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)


def reload_signals() -> list[signal.Signals]:
    """Return the signals that reload a service; Windows has none."""
    return [] if sys.platform == "win32" else [signal.SIGHUP]


def open_files() -> tuple[int, int] | None:
    """Return the open file handles of this process and their limit; None if unknown."""
    if sys.platform == "win32":
        return None
    import resource

    try:
        return len(os.listdir("/proc/self/fd")), resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    except OSError:
        return None


def memory_bytes() -> int:
    """Return the memory this process uses; 0 if the system does not provide it."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError, AttributeError):
        return 0


def int64(number: int) -> int:
    """Return the nearest 64-bit number: a file may have a date that no database can store."""
    return max(-(1 << 63), min(number, (1 << 63) - 1))


def is_being_written(fd: int) -> bool:
    """Return whether a program has this file open for writing.  Linux tells the owner of a file;
    elsewhere, and on file systems without leases, False.
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
