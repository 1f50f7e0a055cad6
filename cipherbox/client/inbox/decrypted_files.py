"""Decrypt stored files to disk: where a person chooses, or for the duration of a handler's call."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cipherbox.client.file_names import safe_name
from cipherbox.client.inbox.hidden import KEPT, kept_name
from cipherbox.client.inbox.places import open_new, private_dirs
from cipherbox.client.inbox.unpacking import unpack
from cipherbox.client.publishing.parts import Entry
from cipherbox.errors import FileError
from cipherbox.portable import O_BINARY, write_all
from cipherbox.sealing.encrypted_file import EncryptedFile
from cipherbox.sealing.local_secret_box import SecretBox

OPENED = "data/opened"  # for running calls
_STEP = 4 * 1024 * 1024


def write_out(home: Path, box: SecretBox, kept: str, size: int, target: Path) -> None:
    """Decrypt a stored file into a new private file. Raise FileError if the stored file is missing
    or the name is taken.
    """
    source = open_kept(home, box, kept)
    try:
        if os.path.lexists(target):
            raise FileError(f"{target} exists already")
        fd = open_new(target)
        try:
            for at in range(0, size, _STEP):
                write_all(fd, source.read(min(_STEP, size - at), at))
            os.fsync(fd)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)
    finally:
        source.close()


def write_out_directory(
    home: Path, box: SecretBox, kept: str, files: Sequence[dict[str, Any]], target: Path
) -> None:
    """Decrypt a stored directory, as `write_out` does."""
    source = open_kept(home, box, kept)
    try:
        if os.path.lexists(target):
            raise FileError(f"{target} exists already")
        entries = [Entry(str(one["name"]), int(one["size"]), 0) for one in files]
        for _ in unpack(source, entries, target.absolute()):
            pass
    finally:
        source.close()


def open_kept(home: Path, box: SecretBox, kept: str) -> EncryptedFile:
    """Open a stored file for reading; nothing of it is written in clear. Raise FileError if it is
    missing.
    """
    try:
        fd = os.open(home / KEPT / kept, os.O_RDONLY | O_BINARY)
    except FileNotFoundError:
        raise FileError(
            f"{home / KEPT / kept} is missing", remedy="ask the sender to send it again"
        ) from None
    return EncryptedFile(fd, box, kept_name(*kept.split("/", 1)))


@contextmanager
def opened_file(
    home: Path, box: SecretBox, kept: str, size: int, filename: str, files: Sequence[dict[str, Any]]
) -> Iterator[Path]:
    """Provide the decrypted file while the block runs."""
    folder = private_dirs(home / OPENED / os.urandom(8).hex())
    path = folder / safe_name(filename)
    try:
        if files:
            write_out_directory(home, box, kept, files, path)
        else:
            write_out(home, box, kept, size, path)
        yield path
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def forget_opened(home: Path) -> None:
    """Delete decrypted files that a crash left; the caller holds the home's lock."""
    with suppress(OSError):
        shutil.rmtree(home / OPENED)
