"""Places of received files on this machine: names that stay below their directory, and files that
never replace others.

Every component of a sender's path goes through `file_names.safe_name`; nothing else makes names.
The file system itself decides whether a place is free, so two names that it treats as the same (by
case, by Unicode form) get numbers. Only a real directory is entered: for a file or link of that
name, a numbered directory is made instead.
"""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Container, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox.client.file_names import safe_name, split_name
from cipherbox.portable import O_BINARY, WINDOWS, copy_file, private_dir, sync_directory

# of a path below the directory of incoming files; systems allow 260 and 4096
PLACE_BYTES = 150 if WINDOWS else 1000
MANY = 100
_LEAST_BYTES = 40  # to which a long name is shortened
_NO_NAME = frozenset(
    [errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.ELOOP, errno.EISDIR]
)
_NO_LINK = frozenset(
    [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES]
)


def safe_place(sender: str, names: Sequence[str]) -> Path:
    """Return the sender's path made safe: below its own directory, and within the systems' length
    limits.
    """
    *folders, last = [safe_name(name) for name in names]
    while folders and len(os.fsencode(Path(sender, *folders, last))) > PLACE_BYTES:
        folders.pop()
    if len(os.fsencode(Path(sender, last))) > PLACE_BYTES:
        last = safe_name(last, _LEAST_BYTES)
    return Path(sender, *folders, last)


def free_place(top: Path, place: Path, taken: Container[str] = ()) -> Path:
    """Return ``place`` below ``top``, numbered where the name is taken; ``taken`` has the `key` of
    planned paths.

    The first component is the sender's id: its directory may be a link, which only this machine's
    owner can make.
    """
    sender, *folders, last = place.parts
    here = top / sender
    for name in folders:
        here = free_name(here, name, taken, folder=True)
    return free_name(here, last, taken)


def free_name(where: Path, name: str, taken: Container[str] = (), *, folder: bool = False) -> Path:
    """Return ``name`` in a directory, numbered if taken; with ``folder`` an existing directory is
    used.
    """
    stem, suffix = split_name(name)
    number = 1
    while True:
        # After this many of one name use a random suffix: finding the next number would take
        # ever longer.
        mark = number if number <= MANY else os.urandom(4).hex()
        path = where / (name if number == 1 else f"{stem} ({mark}){suffix}")
        if folder and path.is_dir() and not path.is_symlink():
            return path
        if not os.path.lexists(path) and key(path) not in taken:
            return path
        number += 1


def key(path: Path) -> str:
    """Return the same key for paths that some file systems treat as the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def move(source: Path, target: Path) -> bool:
    """Give a synced file its name without replacing anything; return False if the name is taken.

    It is durable only after `keep`. Until then, and after a crash in between, ``source`` and
    ``target`` are the same file.
    """
    private_dirs(target.parent)
    try:
        os.link(source, target, follow_symlinks=False)
    except FileExistsError:
        if not os.path.samefile(source, target):
            return False
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        if not _moved(source, target):
            return False
    return True


def keep(moved: Mapping[Path, Path]) -> dict[Path, OSError]:
    """Make names durable, with one sync for each directory, and delete the hidden names; return the
    names that failed, with the error. ``moved`` maps names to hidden names.
    """
    failed: dict[Path, OSError] = {}
    for folder in {target.parent for target in moved}:
        targets = [target for target in moved if target.parent == folder]
        try:
            sync_directory(folder)
        except OSError as error:
            failed.update(dict.fromkeys(targets, error))
            continue
        for target in targets:
            with suppress(OSError):
                moved[target].unlink()
    return failed


def sweep(folder: Path, before_ms: int, known: Callable[[str, bytes], bool]) -> None:
    """Delete old hidden files that are not recorded: a step failed or was killed before recording
    them.
    """
    for sender in _entries(folder):
        for entry in _entries(Path(sender.path)):
            with suppress(OSError, ValueError):
                if entry.stat(follow_symlinks=False).st_mtime * 1000 > before_ms:
                    continue
                if not known(sender.name, bytes.fromhex(entry.name)):
                    os.unlink(entry.path)


def _empty(folder: Path) -> bool:
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is None
    except FileNotFoundError:
        return True
    except OSError:  # not to be read: it was there before
        return False


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _moved(source: Path, target: Path) -> bool:
    """Rename without links, or copy if the target is on another file system."""
    if os.path.lexists(target):
        return False
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        copy_file(source, target, target.with_name(f".{source.name}.partial"))
    return True


def private_dirs(path: Path) -> Path:
    """Create the directory and missing parents, each private to this user, with durable names:
    what is synced in a directory that a power cut takes away is lost.

    Nothing is put into a directory before its name is durable, so one that is not empty is.
    """
    new = []
    for folder in (path, *path.parents):
        if not _empty(folder):
            break
        new.append(folder)
    for folder in reversed(new):
        private_dir(folder)
        with suppress(PermissionError):  # another user's, which may be entered but not read
            sync_directory(folder.parent)
    return path


def open_exclusive(path: Path) -> int:
    """Open a new private file for writing. Raise FileExistsError if the name is taken."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY, 0o600)


def is_about_the_name(error: OSError) -> bool:
    """Return whether another name may help."""
    return error.errno in _NO_NAME


def open_new(path: Path) -> int:
    """Open a private file for reading and writing, creating it if missing. Its name is durable
    before a byte is written, so that of a file that is not empty is.
    """
    private_dirs(path.parent)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | O_BINARY | getattr(os, "O_NOFOLLOW", 0), 0o600)
    try:
        if not os.fstat(fd).st_size:
            sync_directory(path.parent)
    except BaseException:
        os.close(fd)
        raise
    return fd
