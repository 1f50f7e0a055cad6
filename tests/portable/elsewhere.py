"""Runs `cipherbox` as a system without anything of Unix would: `python -m tests.portable.elsewhere
ARGUMENTS`; after `&&` come those of another command, as long as all end well.

What others wrote is imported first, as it has code of its own for each system.  Then the Unix-only
modules cannot be imported any more, the Unix-only functions, flags and signals are gone, and
`sys.platform` says Windows.
"""

from __future__ import annotations

import functools
import importlib
import os
import shutil
import signal
import socket
import sys
import types
from typing import Any

MODULES = (
    "fcntl",
    "pwd",
    "grp",
    "resource",
    "termios",
    "tty",
    "pty",
    "posix",
    "syslog",
    "crypt",
    "spwd",
    "nis",
)
FUNCTIONS = (
    "chown",
    "confstr",
    "fchmod",
    "fchown",
    "fork",
    "getegid",
    "geteuid",
    "getgid",
    "getgroups",
    "getpgid",
    "getuid",
    "killpg",
    "lchown",
    "mkfifo",
    "mknod",
    "nice",
    "posix_fadvise",
    "posix_fallocate",
    "pread",
    "preadv",
    "pwrite",
    "pwritev",
    "sched_getaffinity",
    "sendfile",
    "setgid",
    "setsid",
    "setuid",
    "statvfs",
    "sync",
    "sysconf",
    "uname",
    "wait3",
    "wait4",
    "O_CLOEXEC",
    "O_DIRECTORY",
    "O_NOCTTY",
    "O_NOFOLLOW",
    "O_NONBLOCK",
    "O_SYNC",
    "O_DSYNC",
)
# those of Windows, with SIGBREAK
SIGNALS = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM"}
OTHERS = (
    "asyncio",
    "attr",
    "attrs",
    "click",
    "click.shell_completion",
    "click.testing",
    "cryptography.x509",
    "nacl.bindings",
    "cryptography.hazmat.bindings._rust",
    "orjson",
    "rich.console",
    "rich.progress",
    "rich.table",
    "sqlite3",
    "subprocess",
    "tempfile",
    "trio",
    "trio.testing",
    "trio_websocket",
    "zstandard",
    "logging",
    "multiprocessing",
    "concurrent.futures",
    "ssl",
    "zipfile",
    "getpass",
    "shutil",
    "platform",
    "mimetypes",
    "email",
    "http.client",
    "tomllib",
    "uuid",
    "hashlib",
    "importlib.resources",
    "pdb",
)


class Gone:
    """An import hook: none of these modules exists."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def locking() -> types.ModuleType:
    """Windows' way to lock, as far as it is used: a lock of the whole file, at once or not at
    all.
    """
    import fcntl

    made = types.ModuleType("msvcrt")

    def lock(fd: int, mode: int, count: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    made.LK_NBLCK, made.locking = 2, lock  # type: ignore[attr-defined]
    return made


def _watch_files() -> None:
    """What Windows would change or refuse is an error here: a file opened as text, a sync of one
    opened to read.
    """
    import fcntl

    open_, fsync = os.open, os.fsync
    os.O_BINARY = 0o100000

    def ours() -> bool:
        return str(sys._getframe(2).f_globals.get("__name__", "")).startswith("cipherbox")

    def opened(path: Any, flags: int, mode: int = 0o777, **more: Any) -> int:
        assert flags & 0o100000 or path == os.devnull or not ours(), f"{path} is opened as text"
        return open_(path, flags, mode, **more)

    def synced(fd: int) -> None:
        assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY, (
            "a file opened to read is synced"
        )
        fsync(fd)

    os.open, os.fsync = opened, synced


def leave_unix() -> None:
    """From here on this process is elsewhere."""
    for name in OTHERS:
        importlib.import_module(name)
    sys.modules["msvcrt"] = locking()
    _watch_files()
    asked = os.statvfs

    def disk_usage(path: Any) -> Any:
        found = asked(path)
        return types.SimpleNamespace(free=found.f_bavail * found.f_frsize)

    shutil.disk_usage = disk_usage  # type: ignore[assignment]
    for name in MODULES:
        sys.modules.pop(name, None)
    sys.meta_path.insert(0, Gone())  # type: ignore[arg-type]
    for name in FUNCTIONS:
        if hasattr(os, name):
            delattr(os, name)
    signal.Signals._member_map_["SIGBREAK"] = signal.SIGUSR2
    for name in [
        n for n in dir(signal) if n.startswith("SIG") and n.isupper() and n not in SIGNALS
    ]:
        if isinstance(getattr(signal, name), signal.Signals):
            delattr(signal, name)
    socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)  # type: ignore[assignment]
    for name in ("AF_UNIX", "SO_REUSEPORT", "MSG_DONTWAIT", "SCM_RIGHTS"):
        if hasattr(socket, name):
            delattr(socket, name)
    sys.platform = "win32"


if __name__ == "__main__":
    leave_unix()
    from cipherbox.cli.main import main

    arguments = sys.argv[1:]
    while "&&" in arguments:
        at = arguments.index("&&")
        try:
            main(arguments[:at])
        except SystemExit as end:
            if end.code:
                raise
        arguments = arguments[at + 1 :]
    main(arguments)
