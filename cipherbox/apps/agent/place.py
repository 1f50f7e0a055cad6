"""Move files out of `outgoing`, never over another file.

On another file system (a mounted share in `outgoing`) a file is copied, synced, and only then
removed.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from cipherbox.portable import copy_file, private_dir, write_private

REASON = ".reason.txt"
_NAME_BYTES = 255  # what file systems take


def free_name(target: Path) -> Path:
    """Return ``target``, or the same name with a number if it is in use."""
    number, path = 1, target
    while os.path.lexists(path):
        number += 1
        path = target.with_name(_cut(target.stem, f" ({number}){target.suffix}"))
    return path


def move(file: Path, target: Path) -> None:
    """Move the file to a free place; raise OSError if it stays where it is."""
    private_dir(target.parent)
    try:
        os.rename(file, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_file(file, target, target.with_name(".moving.part"))
        os.unlink(file)


def explain(file: Path, reason: str) -> None:
    """Write the reason beside a file; cut a name that leaves no room for the suffix."""
    name = _cut(file.name, REASON)
    write_private(file.with_name(name), f"{reason}\n".encode("utf-8", "backslashreplace"))


def drop_reason(file: Path) -> None:
    """Remove the reason beside a file."""
    with suppress(OSError):
        file.with_name(_cut(file.name, REASON)).unlink()


def _cut(stem: str, ending: str) -> str:
    """Return a name with this ending; cut the stem between characters if it is too long."""
    room = _NAME_BYTES - len(os.fsencode(ending))
    while len(os.fsencode(stem)) > room:
        stem = stem[:-1]
    return stem + ending
