"""Where what was received lies on this machine: names that cannot lead elsewhere, and files that
never replace others.

A name from a sender goes through `names.safe_name`, name by name, and nothing else makes one.
Whether a place is free is asked of the file system itself, so two names that it holds for the same
(by case, by Unicode form) get numbers.  A directory is only entered when it is one: a file or a
link of that name gets a neighbour with a number.
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

# of a path below the directory of incoming files; systems end at 260 and 4096
PLACE_BYTES = 150 if WINDOWS else 1000
MANY = 100
_LEAST_BYTES = 40  # of a name that makes room for others
_NO_NAME = frozenset(
    [errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ, errno.ENOTDIR, errno.ELOOP, errno.EISDIR]
)
_NO_LINK = frozenset(
    [errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.EACCES]
)


def safe_place(sender: str, names: Sequence[str]) -> Path:
    """The sender's path made safe: below its own directory, and never longer than systems take."""
    *folders, last = [safe_name(name) for name in names]
    while folders and len(os.fsencode(Path(sender, *folders, last))) > PLACE_BYTES:
        folders.pop()
    if len(os.fsencode(Path(sender, last))) > PLACE_BYTES:
        last = safe_name(last, _LEAST_BYTES)
    return Path(sender, *folders, last)


def free_place(top: Path, place: Path, taken: Container[str] = ()) -> Path:
    """``place`` below ``top``, with numbers where something else has the name; ``taken``: `key` of
    what will be there.

    The first name is the sender's id: its directory may be a link, which only the owner of this
    machine can make.
    """
    sender, *folders, last = place.parts
    here = top / sender
    for name in folders:
        here = free_name(here, name, taken, folder=True)
    return free_name(here, last, taken)


def free_name(where: Path, name: str, taken: Container[str] = (), *, folder: bool = False) -> Path:
    """``name`` in a directory, with a number if it is taken; ``folder``: a directory of that
    name is what is wanted.
    """
    stem, suffix = split_name(name)
    number = 1
    while True:
        # After so many of one name, one by chance is free at once: the next number would take ever
        # longer to find.
        mark = number if number <= MANY else os.urandom(4).hex()
        path = where / (name if number == 1 else f"{stem} ({mark}){suffix}")
        if folder and path.is_dir() and not path.is_symlink():
            return path
        if not os.path.lexists(path) and key(path) not in taken:
            return path
        number += 1


def key(path: Path) -> str:
    """The same for paths that some file systems hold for the same."""
    return unicodedata.normalize("NFC", str(path)).casefold()


def move(source: Path, target: Path) -> bool:
    """Gives a synced file its name without replacing anything: False when the name is taken.

    Durable only after `keep`.  Until then, and after a crash in between, ``source`` and ``target``
    are one file.
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
    """Makes names durable, with one sync for each directory, and drops the hidden names; which
    names failed, and why.

    ``moved``: name -> hidden name.
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
    """Drops old hidden files that nobody knows: a step failed or was killed before it recorded
    them.
    """
    for sender in _entries(folder):
        for entry in _entries(Path(sender.path)):
            with suppress(OSError, ValueError):
                if entry.stat(follow_symlinks=False).st_mtime * 1000 > before_ms:
                    continue
                if not known(sender.name, bytes.fromhex(entry.name)):
                    os.unlink(entry.path)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        return list(os.scandir(folder))
    except OSError:
        return []


def _moved(source: Path, target: Path) -> bool:
    """Without links: a rename, or a copy where the target is on another file system."""
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
    """Makes what is missing of the directory and those above it, each for this user alone."""
    if path.is_dir():
        return path
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        private_dir(folder)
    return path


def open_exclusive(path: Path) -> int:
    """A new file for this user alone, for writing; FileExistsError when the name is taken."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | O_BINARY, 0o600)


def is_about_the_name(error: OSError) -> bool:
    """Whether another name may help."""
    return error.errno in _NO_NAME


def open_new(path: Path) -> int:
    """A file for this user alone, made if it is missing, for reading and writing."""
    private_dirs(path.parent)
    return os.open(path, os.O_RDWR | os.O_CREAT | O_BINARY | getattr(os, "O_NOFOLLOW", 0), 0o600)
