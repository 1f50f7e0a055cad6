"""The directory of one run of demo, prove or bench, and the processes that the run starts: however
the run ends, they end, and a temporary directory is removed.

1. A run holds a lock on a file in its directory.  The lock ends with the process, even a killed
   one; a directory whose lock nobody holds is abandoned.
2. A directory without that file, or with an empty one, is never touched: its run is just beginning,
   or it is to be kept.  An empty directory is removed after an hour.  The lock is removed last.
3. Each process that a run starts is told the lock by its environment (`RUN_VARIABLE`).  It waits
   for the lock, in a thread, and ends when it gets it: the run has ended.  The first that gets it
   removes the directory, and what other killed runs left; the others wait for it meanwhile.  If
   it is killed, the next one gets the lock.
4. Each of them holds a lock on a file with its own id, in `PROCESSES`.  So a process that does not
   end itself is found and ended by whoever removes the directory: one that is stopped by a signal,
   or another program, such as PostgreSQL, which keeps the locked file open.  An id in a file that
   nobody has locked is another process's.
5. If no such process was left, the next run removes the directory, and so does `doctor --clean`.
   What is mounted below it is unmounted first.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from cipherbox import clock
from cipherbox.harness import RUN_VARIABLE
from cipherbox.harness.disk import detach
from cipherbox.portable import (
    WINDOWS,
    end_process,
    held,
    holder_of,
    interrupted_by_signals,
    is_locked,
    is_mine,
    is_root,
    lock_file,
    lock_when_free,
)

LOCK, PROCESSES = "run.lock", "processes"
POSTGRES = "postgres"  # the name of its file there: killed, it would leave shared memory behind
_NAME = re.compile(r"(cipherbox-(demo|prove|bench)|cbx-pg)-[a-z0-9_]{8}")
_OLD_S = 3600  # of an empty directory
_ENDS_S = 10.0  # for a process that was told to end
_TICK = threading.Event()  # never set


@contextmanager
def workplace(prefix: str, top: Path | None = None) -> Iterator[Path]:
    """Provide a new directory below ``top`` or that of temporary files; remove it afterwards, and
    first what killed runs left.  Signals that end a program interrupt the block, as Ctrl-C does.
    """
    for path in abandoned(top):
        remove_tree(path)
    with interrupted_by_signals():
        directory = Path(tempfile.mkdtemp(prefix=prefix, dir=top))
        with holding(directory):
            yield directory


@contextmanager
def kept_workplace(directory: Path) -> Iterator[Path]:
    """Provide an existing directory, which is kept."""
    lock = directory / LOCK
    lock.touch(0o600)
    (directory / PROCESSES).mkdir()
    try:
        with held(lock, f"{directory} is in use"):
            yield directory
    finally:
        shutil.rmtree(directory / PROCESSES, ignore_errors=True)
        lock.unlink(missing_ok=True)


@contextmanager
def holding(directory: Path) -> Iterator[None]:
    """Hold the lock of a new directory during the block, and then remove the directory."""
    try:
        with lock_file(directory / LOCK, "this directory"):
            (directory / PROCESSES).mkdir()
            try:
                yield
            finally:
                _remove(directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def told(directory: Path) -> dict[str, str]:
    """Return what a process of the run in ``directory`` gets into its environment."""
    lock = directory / LOCK
    return {RUN_VARIABLE: str(lock.absolute())} if lock.exists() else {}


def end_with_run(lock: Path) -> None:
    """Make this process end when the run that started it has ended: see rules 3 and 4."""
    removing = threading.Event()

    def stay() -> None:  # the thread that removes the directory, or is about to, ends this process
        while removing.is_set() or (lock.exists() and not is_locked(lock)):
            _TICK.wait(0.02)

    atexit.register(stay)
    threading.Thread(target=_wait_for_end, args=(lock, removing), daemon=True).start()


def _wait_for_end(lock: Path, removing: threading.Event) -> None:
    directory = lock.parent
    with ExitStack() as stack:
        with suppress(OSError):  # a disk without room for it
            own = directory / PROCESSES / str(os.getpid())
            stack.enter_context(lock_file(own, "this process"))
        try:
            stack.enter_context(lock_when_free(lock))
        except FileNotFoundError:
            pass  # the directory is gone already
        except OSError:
            return  # a file system without locks
        else:
            removing.set()
            with suppress(OSError):  # as above
                if _NAME.fullmatch(directory.name) and lock.stat().st_size:
                    for path in (directory, *abandoned()):
                        remove_tree(path)
        os._exit(1)  # nobody waits for it any more


def abandoned(top: Path | None = None) -> Iterator[Path]:
    """Yield the directories of this user's killed runs."""
    for path in sorted(Path(top or tempfile.gettempdir()).glob("c*-*")):
        with suppress(OSError):  # another run removes it at the same time
            if _NAME.fullmatch(path.name) and _is_own(path) and _is_abandoned(path):
                yield path


def remove_tree(path: Path) -> None:
    """Remove a directory, after ending the processes of a killed run and unmounting its disks."""
    _remove(path)
    shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    """Remove all but the lock."""
    _end_processes(path)
    for place in path.glob("*"):
        if os.path.ismount(place):  # Windows has no `Path.is_mount` before 3.12
            detach(place)
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        elif place.name != LOCK:
            with suppress(OSError):
                place.unlink()


def _end_processes(path: Path) -> None:
    """End what a run started and did not end itself, and wait for its end.  Files of another user
    name no process that this one should end.
    """
    files = [*(path / PROCESSES).glob("*")]
    until = time.monotonic() + _ENDS_S
    for file in files:
        with suppress(FileNotFoundError):
            pid = holder_of(file) if is_mine(file.parent) and is_mine(file) else None
            if pid is not None and pid != os.getpid():
                end_process(pid, orderly=file.name == POSTGRES)
                while is_locked(file) and time.monotonic() < until:
                    _TICK.wait(0.02)


def _is_own(path: Path) -> bool:
    if WINDOWS or is_root():  # there each user has temporary files of their own
        return not path.is_symlink()
    return not path.is_symlink() and path.stat().st_uid == os.getuid()


def _is_abandoned(path: Path) -> bool:
    """Return whether a process held the lock and has ended: one that holds it writes its id."""
    lock = path / LOCK
    if lock.exists():
        return lock.stat().st_size > 0 and not is_locked(lock)
    return not any(path.iterdir()) and clock.now_s() - path.stat().st_mtime > _OLD_S
