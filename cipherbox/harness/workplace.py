"""The temporary directory of one run of demo, prove or bench; a later run removes those of killed
ones, and so does `doctor --clean`.

1. A run holds a lock on a file in its directory.  The lock ends with the process, even a killed
   one; a directory whose lock nobody holds is abandoned.
2. A directory without that file, or with an empty one, is never touched: its run is just beginning,
   or it was to be kept.
3. What is mounted below an abandoned directory is unmounted first.  A PostgreSQL server that was
   left running there ends itself within a minute, as its directory is gone.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cipherbox.harness.disk import detach
from cipherbox.portable import WINDOWS, is_locked, is_root, lock_file

LOCK = "run.lock"
_NAME = re.compile(r"(cipherbox-(demo|prove|bench)|cbx-pg)-[a-z0-9_]{8}")


@contextmanager
def workplace(prefix: str, top: Path | None = None) -> Iterator[Path]:
    """Provide a new directory below ``top`` or that of temporary files; remove it afterwards, and
    first what killed runs left.
    """
    for path in abandoned(top):
        remove_tree(path)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=top))
    try:
        with lock_file(directory / LOCK, "this directory"):
            yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def abandoned(top: Path | None = None) -> Iterator[Path]:
    """Yield the directories of this user's killed runs."""
    for path in sorted(Path(top or tempfile.gettempdir()).glob("c*-*")):
        with suppress(OSError):  # another run removes it at the same time
            if _NAME.fullmatch(path.name) and _is_own(path) and _was_held(path / LOCK):
                yield path


def remove_tree(path: Path) -> None:
    """Remove a directory, after unmounting the disks of a killed run in it."""
    for place in path.glob("*"):
        if place.is_mount():
            detach(place)
    shutil.rmtree(path, ignore_errors=True)


def _is_own(path: Path) -> bool:
    if WINDOWS or is_root():  # there each user has temporary files of their own
        return not path.is_symlink()
    return not path.is_symlink() and path.stat().st_uid == os.getuid()


def _was_held(lock: Path) -> bool:
    """Return whether a process held the lock and has ended: one that holds it writes its id."""
    return lock.stat().st_size > 0 and not is_locked(lock)
