"""The disks of the simulated world: one for each node, which can lose what was not synced, tear it,
fail and be full.

SQLite writes through a VFS of our own around the system's, made with ctypes: it sees every write,
truncation and sync, in this process, of the very library that Python uses.  Everything else is
written by Python, whose `os.fsync`, `os.write`, `os.unlink` and `os.replace` are watched.  Nothing
is really synced, which also makes a seed cheap.

A crash is a *survivor* set: what a node's directory contains if it stops at this instant.

1. Killed: everything that was written, synced or not.
2. Power cut: of an SQLite file, the synced bytes and a random selection of the later writes, in
   pieces of 512 bytes; so writes are lost, torn and out of order.  Of another file, the synced
   content, the present one, or a part of what was appended.  Of a directory, the entries as they
   were at its last sync, or the present ones.

The set is taken at the instant of the crash, which may be any call of the disk in the middle of a
step; what the dying life still does, to the end of that step and closing its files, is undone by
`restore`, and nobody hears of it: it sends nothing before its next checkpoint, since a stream takes
nothing at once from a node that crashed.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISREG
from typing import Any

import attrs

SECTOR = 512
_IOERR, _FULL, _CANTOPEN = 10, 13, 14
_OWN = "simulated"
_MESSAGES = (".sqlite3", "spool/", "outbox/", "data/", ".jsonl")  # in the name of a file
_MADE_AGAIN = ("-shm",)  # SQLite makes it again


class Vfs(ctypes.Structure):
    """`struct sqlite3_vfs`, version 3."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("szOsFile", ctypes.c_int),
        ("mxPathname", ctypes.c_int),
        ("pNext", ctypes.c_void_p),
        ("zName", ctypes.c_char_p),
        ("pAppData", ctypes.c_void_p),
        ("xOpen", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 15),
    ]


class Methods(ctypes.Structure):
    """`struct sqlite3_io_methods`, version 3."""

    _fields_ = [
        ("iVersion", ctypes.c_int),
        ("xClose", ctypes.c_void_p),
        ("xRead", ctypes.c_void_p),
        ("xWrite", ctypes.c_void_p),
        ("xTruncate", ctypes.c_void_p),
        ("xSync", ctypes.c_void_p),
        ("rest", ctypes.c_void_p * 13),
    ]


_P, _I, _Q = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64
OPEN = ctypes.CFUNCTYPE(_I, _P, _P, _P, _I, _P)
CLOSE = ctypes.CFUNCTYPE(_I, _P)
WRITE = ctypes.CFUNCTYPE(_I, _P, _P, _I, _Q)
TRUNCATE = ctypes.CFUNCTYPE(_I, _P, _Q)
SYNC = ctypes.CFUNCTYPE(_I, _P, _I)


@attrs.define(eq=False)
class Database:
    """One of SQLite's files: its synced bytes, and what was written since."""

    synced: bytearray
    later: list[tuple[int, bytes | None]] = attrs.Factory(list)  # None: truncated to there

    def sync(self) -> None:
        for at, data in self.later:
            _apply(self.synced, at, data)
        self.later.clear()

    def survivor(self, chance: random.Random) -> bytes:
        """What a power cut leaves."""
        left = bytearray(self.synced)
        kept = chance.random()  # the share that reached the disk
        for at, data in self.later:
            if data is None:
                if chance.random() < kept:
                    _apply(left, at, None)
                continue
            for start in range(0, len(data), SECTOR):
                if chance.random() < kept:
                    _apply(left, at + start, data[start : start + SECTOR])
        return bytes(left)


def _apply(content: bytearray, at: int, data: bytes | None) -> None:
    if data is None:
        del content[at:]
        return
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


@attrs.define(eq=False)
class File:
    """Another file; ``synced`` None: never."""

    synced: bytes | None = None


Survivors = dict[str, bytes]


@attrs.define(eq=False)
class Disk:
    """The disk of one node, the directory ``root``."""

    root: Path
    databases: dict[str, Database] = attrs.Factory(dict)
    files: dict[int, File] = attrs.Factory(dict)  # inode -> file
    entries: dict[str, dict[str, File]] = attrs.Factory(dict)  # directory -> its synced entries
    full: bool = False
    fails_after: int = -1  # calls until one fails; negative: none
    failing: int = 0  # calls that fail then
    stops_after: int = -1  # calls until the node crashes instead of the next one; negative: never
    stop: Callable[[], None] = lambda: None
    calls: int = 0

    def trouble(self, grows: bool) -> int:
        """Return the errno of this call; 0 for none."""
        self.calls += 1
        if self.stops_after >= 0:
            self.stops_after -= 1
            if self.stops_after < 0:
                self.stop()
        if self.fails_after >= 0:
            self.fails_after -= 1
            if self.fails_after < self.failing:
                if self.fails_after < 0:
                    self.failing = 0
                return errno.EIO
        return errno.ENOSPC if self.full and grows else 0

    def fail(self, after: int, times: int) -> None:
        """Let ``times`` calls in a row fail, after so many that work."""
        self.fails_after, self.failing = after + times, times

    # -- what the disk has -------------------------------------------------------------------------

    def settle(self) -> None:
        """Take everything as synced: after a restore, and at the beginning."""
        self.databases.clear()
        self.files.clear()
        self.entries.clear()
        for folder, _, names in os.walk(self.root):
            entries = self.entries[folder] = {}
            for name in names:
                path = os.path.join(folder, name)
                stat = os.lstat(path)
                if S_ISREG(stat.st_mode):
                    file = entries[name] = self.files.setdefault(stat.st_ino, File())
                    if not name.endswith(_MADE_AGAIN):
                        file.synced = _read(path)

    def sync_file(self, path: Path) -> None:
        if str(path) in self.databases:
            self.databases[str(path)].sync()
            return
        with suppress(FileNotFoundError):
            self.files.setdefault(path.stat().st_ino, File()).synced = _read(str(path))

    def sync_directory(self, path: Path) -> None:
        self.entries[str(path)] = {
            one.name: self.files.setdefault(one.inode(), File())
            for one in os.scandir(path)
            if one.is_file(follow_symlinks=False)
        }

    def has_grown(self, path: str) -> bool:
        """Return whether a file has more bytes than were synced."""
        with suppress(OSError):
            stat = os.stat(path)
            if not os.path.isdir(path):
                return stat.st_size > len(self.files.setdefault(stat.st_ino, File()).synced or b"")
        return False

    def forget(self, path: str) -> None:
        """A file loses a name; if it was the last, its inode's number may be used again."""
        with suppress(FileNotFoundError):
            stat = os.stat(path, follow_symlinks=False)
            if stat.st_nlink == 1:
                self.files.pop(stat.st_ino, None)

    def _paths(self) -> list[str]:
        """Return its files, in order."""
        return sorted(
            os.path.join(folder, name)
            for folder, _, names in os.walk(self.root)
            for name in names
            if not name.endswith(_MADE_AGAIN)
            and S_ISREG(os.lstat(os.path.join(folder, name)).st_mode)
        )

    # -- crashes -----------------------------------------------------------------------------------

    def survivors(self, chance: random.Random, power: bool) -> Survivors:
        """What is left if the node stops now; ``power``: with a power cut, else killed."""
        if not power:
            return {os.path.relpath(path, self.root): _read(path) for path in self._paths()}
        left: Survivors = {}
        for name in sorted(self.databases):
            if os.path.exists(name):
                left[os.path.relpath(name, self.root)] = self.databases[name].survivor(chance)
        for folder, _, names in sorted(os.walk(self.root)):
            present: dict[str, File] = {}
            for name in sorted(names):
                path = os.path.join(folder, name)
                if path in self.databases or name.endswith(_MADE_AGAIN):
                    continue
                if S_ISREG((stat := os.stat(path)).st_mode):
                    present[name] = self.files.setdefault(stat.st_ino, File())
            synced = self.entries.get(folder, {})
            for name, file in (present if chance.random() < 0.5 else synced).items():
                path = os.path.join(folder, name)
                if path in self.databases:
                    continue
                now = _read(path) if present.get(name) is file else file.synced
                survivor = _file_survivor(file, now or b"", chance)
                left[os.path.relpath(path, self.root)] = survivor
        return left

    def restore(self, left: Survivors) -> None:
        """Make the directory contain what survived; a file that is still there stays the same."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = os.path.join(folder, name)
                if os.path.islink(path) or os.path.relpath(path, self.root) not in left:
                    os.unlink(path)
        for name, content in left.items():
            path = os.path.join(self.root, name)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
            os.chmod(path, 0o600)
        self.settle()


def flip_bit(left: Survivors, chance: random.Random) -> str:
    """Flip a bit in one file, mostly of those with messages, and return its name."""
    names = [name for name, content in sorted(left.items()) if any(content)]
    messages = [name for name in names if any(part in name for part in _MESSAGES)]
    name = chance.choice(messages if messages and chance.random() < 0.8 else names)
    content = bytearray(left[name])
    used = [at for at in range(0, len(content), 64) if any(content[at : at + 64])]
    at = chance.choice(used) + chance.randrange(64)
    content[min(at, len(content) - 1)] ^= 1 << chance.randrange(8)
    left[name] = bytes(content)
    return name


def _read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def _file_survivor(file: File, now: bytes, chance: random.Random) -> bytes:
    before = file.synced or b""
    choice = chance.random()
    if choice < 0.4 or before == now:
        return before
    if choice < 0.7 or not now.startswith(before):
        return now
    return now[: len(before) + int(chance.random() * (len(now) - len(before)))]


class Disks:
    """All disks of one world, and the hooks that watch them."""

    def __init__(self) -> None:
        self._disks: dict[str, Disk] = {}

    def add(self, root: Path) -> Disk:
        disk = self._disks[str(root)] = Disk(root)
        disk.settle()
        return disk

    def of(self, path: str) -> Disk | None:
        for root, disk in self._disks.items():
            if path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
                return disk
        return None

    def of_fd(self, fd: int) -> tuple[Disk | None, str]:
        path = os.readlink(f"/proc/self/fd/{fd}").removesuffix(" (deleted)")
        return self.of(path), path

    @contextmanager
    def watched(self, monkeypatch: Any) -> Iterator[None]:
        """Watch the disks in this block."""
        _watch_python(self, monkeypatch)
        shim = _shim()
        shim.begin(self)
        try:
            yield
        finally:
            shim.end()


def _watch_python(disks: Disks, monkeypatch: Any) -> None:
    write, pwrite, unlink, replace = os.write, os.pwrite, os.unlink, os.replace
    opened = os.open

    def check(fd: int, grows: bool) -> tuple[Disk | None, str]:
        disk, path = disks.of_fd(fd)
        if disk is not None and (code := disk.trouble(grows)):
            raise OSError(code, os.strerror(code), path)
        return disk, path

    def fsync(fd: int) -> None:
        disk, path = disks.of_fd(fd)  # what a buffered file wrote is seen here alone
        check(fd, grows=disk is not None and disk.has_grown(path))
        if disk is not None:
            (disk.sync_directory if os.path.isdir(path) else disk.sync_file)(Path(path))

    def checked_open(path: Any, flags: int, *more: Any, **options: Any) -> int:
        disk = disks.of(os.fspath(path)) if isinstance(path, str | os.PathLike) else None
        made = flags & os.O_CREAT != 0 and not os.path.exists(path)
        if disk is not None and (code := disk.trouble(grows=made)):
            raise OSError(code, os.strerror(code), os.fspath(path))
        return opened(path, flags, *more, **options)

    def checked_write(fd: int, data: Any) -> int:
        check(fd, grows=True)
        return write(fd, data)

    def checked_pwrite(fd: int, data: Any, at: int) -> int:
        check(fd, grows=True)
        return pwrite(fd, data, at)

    def watched_unlink(path: Any, **more: Any) -> None:
        if not more and (disk := disks.of(os.fspath(path))) is not None:
            disk.forget(os.fspath(path))
        unlink(path, **more)

    def watched_replace(source: Any, target: Any) -> None:
        if (disk := disks.of(os.fspath(target))) is not None:
            disk.forget(os.fspath(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    if hasattr(os, "fdatasync"):
        monkeypatch.setattr(os, "fdatasync", fsync)
    monkeypatch.setattr(os, "open", checked_open)
    monkeypatch.setattr(os, "write", checked_write)
    monkeypatch.setattr(os, "pwrite", checked_pwrite)
    monkeypatch.setattr(os, "unlink", watched_unlink)
    monkeypatch.setattr(os, "replace", watched_replace)


class _Shim:
    """The VFS around the system's.  SQLite keeps pointers to it, so there is one for ever."""

    def __init__(self) -> None:
        import _sqlite3

        self._library = ctypes.CDLL(_sqlite3.__file__)
        find = self._library.sqlite3_vfs_find
        find.restype, find.argtypes = ctypes.POINTER(Vfs), [ctypes.c_char_p]
        self._library.sqlite3_vfs_register.argtypes = [_P, _I]
        self._library.sqlite3_vfs_unregister.argtypes = [_P]
        self._system = find(None)
        self._own = Vfs.from_buffer_copy(self._system.contents)
        self._own.zName = _OWN.encode()
        self._open: Callable[..., int] = OPEN(self._own.xOpen)
        self._callbacks: list[Any] = [OPEN(self._opened)]
        self._own.xOpen = ctypes.cast(self._callbacks[0], _P)
        self._tables: dict[int, Methods] = {}  # of the system's methods -> ours
        self._files: dict[int, tuple[Disk, str]] = {}  # sqlite3_file* -> what it is
        self._disks: Disks | None = None

    def begin(self, disks: Disks) -> None:
        self._disks = disks
        self._library.sqlite3_vfs_register(ctypes.byref(self._own), 1)

    def end(self) -> None:
        self._library.sqlite3_vfs_register(self._system, 1)
        self._library.sqlite3_vfs_unregister(ctypes.byref(self._own))
        self._disks = None
        self._files.clear()

    def _opened(self, vfs: int, name: int | None, file: int, flags: int, out: int) -> int:
        path = os.fsdecode(ctypes.string_at(name)) if name else ""
        disk = self._disks.of(path) if self._disks is not None else None
        if disk is not None and disk.trouble(grows=False):
            ctypes.cast(file, ctypes.POINTER(_P))[0] = None  # nothing to close
            return _CANTOPEN
        code = self._open(vfs, name, file, flags, out)  # it keeps the pointer to the name
        if code or disk is None:
            return code
        methods = ctypes.cast(file, ctypes.POINTER(_P))
        address = methods[0]
        if address not in self._tables:
            self._tables[address] = self._wrapped(Methods.from_address(address))
        methods[0] = ctypes.addressof(self._tables[address])
        self._files[file] = disk, path
        if path not in disk.databases:
            # a file that is new is not synced; one that was there is
            disk.databases[path] = Database(bytearray(Path(path).read_bytes()))
        return code

    def _wrapped(self, system: Methods) -> Methods:
        ours = Methods.from_buffer_copy(system)
        close, write = CLOSE(system.xClose), WRITE(system.xWrite)
        truncate = TRUNCATE(system.xTruncate)

        def closed(file: int) -> int:
            self._files.pop(file, None)
            return close(file)

        def written(file: int, data: int, size: int, at: int) -> int:
            disk, path = self._files.get(file, (None, ""))
            if disk is not None:
                if code := disk.trouble(grows=True):
                    return _FULL if code == errno.ENOSPC else _IOERR
                if path in disk.databases:
                    disk.databases[path].later.append((at, ctypes.string_at(data, size)))
            return write(file, data, size, at)

        def truncated(file: int, size: int) -> int:
            disk, path = self._files.get(file, (None, ""))
            if disk is not None:
                if disk.trouble(grows=False):
                    return _IOERR
                if path in disk.databases:
                    disk.databases[path].later.append((size, None))
            return truncate(file, size)

        def synced(file: int, flags: int) -> int:
            disk, path = self._files.get(file, (None, ""))
            if disk is not None:
                if disk.trouble(grows=False):
                    return _IOERR
                if path in disk.databases:
                    disk.databases[path].sync()
            return 0

        callbacks = [CLOSE(closed), WRITE(written), TRUNCATE(truncated), SYNC(synced)]
        self._callbacks += [close, write, truncate, *callbacks]
        ours.iVersion = min(system.iVersion, 2)  # no memory map
        for field, callback in zip(
            ("xClose", "xWrite", "xTruncate", "xSync"), callbacks, strict=True
        ):
            setattr(ours, field, ctypes.cast(callback, _P))
        return ours


_made: list[_Shim] = []


def _shim() -> _Shim:
    if not _made:
        _made.append(_Shim())
    return _made[0]


def why_not() -> str:
    """Return why these disks cannot be had here; empty if they can."""
    if not os.path.exists("/proc/self/fd"):
        return "needs /proc"
    try:
        _shim()
    except (OSError, AttributeError) as error:
        return f"SQLite's library cannot be found: {error}"
    return ""
