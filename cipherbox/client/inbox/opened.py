"""Files that are kept under the home's local key, written out in clear: where a person says, or for
a handler's call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cipherbox.client.inbox.arriving import KEPT, kept_name
from cipherbox.client.inbox.places import open_new, private_dirs
from cipherbox.client.names import safe_name
from cipherbox.errors import FileError
from cipherbox.portable import O_BINARY
from cipherbox.sealing.kept import Vault
from cipherbox.sealing.lockedfile import LockedFile

OPENED = "data/opened"  # of calls under way
_STEP = 4 * 1024 * 1024


def write_out(home: Path, vault: Vault, kept: str, size: int, target: Path) -> None:
    """Writes what is kept as a new file of this user alone; FileError when the kept file is gone, or the name taken."""
    try:
        source = LockedFile(os.open(home / KEPT / kept, os.O_RDONLY | O_BINARY), vault, kept_name(*kept.split("/", 1)))
    except FileNotFoundError:
        raise FileError(f"{home / KEPT / kept} is gone; ask the sender to send it again") from None
    try:
        if os.path.lexists(target):
            raise FileError(f"{target} exists already")
        fd = open_new(target)
        try:
            for at in range(0, size, _STEP):
                view = memoryview(source.read(min(_STEP, size - at), at))
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    finally:
        source.close()


@contextmanager
def opened_file(home: Path, vault: Vault, kept: str, size: int, filename: str) -> Iterator[Path]:
    """The file in clear while the block runs."""
    folder = private_dirs(home / OPENED / os.urandom(8).hex())
    path = folder / safe_name(filename)
    try:
        write_out(home, vault, kept, size, path)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def forget_opened(home: Path) -> None:
    """What a crash left in clear goes; the caller holds the home's lock."""
    with suppress(OSError):
        shutil.rmtree(home / OPENED)
