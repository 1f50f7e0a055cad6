"""Unpack a directory that arrived as one file into a hidden directory, which then gets its name.

Every name goes through `places`, as those of single files do; two names that this file system
treats as the same get numbers. Everything is synced before the directory can get its name. After a
crash it starts again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox.client.inbox.places import free_place, open_exclusive, private_dirs, safe_place
from cipherbox.client.publishing.parts import Entry
from cipherbox.portable import sync_directory, write_all
from cipherbox.sealing.encrypted_file import RandomAccessFile

_PIECE = 4 * 1024 * 1024
FILES_OF_A_STEP = 256


def unpack(stored: RandomAccessFile, entries: Sequence[Entry], hidden: Path) -> Iterator[None]:
    """Unpack, yielding between steps so that a receiver can be stopped. Raise OSError."""
    shutil.rmtree(hidden, ignore_errors=True)
    folders = {private_dirs(hidden): None}
    at = 0
    for number, entry in enumerate(entries):
        place = free_place(hidden.parent, safe_place(hidden.name, entry.path.split("/")))
        folder = place if entry.size < 0 else place.parent
        private_dirs(folder)
        folders.update(
            dict.fromkeys(one for one in (folder, *folder.parents) if one.is_relative_to(hidden))
        )
        if entry.size >= 0:
            fd = open_exclusive(place)
            try:
                for piece in range(0, entry.size, _PIECE):
                    write_all(fd, stored.read(min(_PIECE, entry.size - piece), at + piece))
                    yield
                os.fsync(fd)
            finally:
                os.close(fd)
            with suppress(OSError, OverflowError, ValueError):
                os.utime(place, (entry.modified_at / 1000, entry.modified_at / 1000))
            at += entry.size
        if number % FILES_OF_A_STEP == 0:
            yield
    for folder in folders:
        sync_directory(folder)


def hidden_of(partial: Path) -> Path:
    """Return the path where a directory is unpacked before it gets its name."""
    return partial.with_name(f"{partial.name}.d")


def move_directory(hidden: Path, target: Path) -> bool:
    """Give an unpacked directory its name durably; return False if the name is taken."""
    private_dirs(target.parent)
    if os.path.lexists(target):
        return False
    os.rename(hidden, target)
    sync_directory(target.parent)
    return True
