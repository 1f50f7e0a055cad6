"""Odd files, one row each: `test_files` sends every one with `send` and through the agent.  A
new case is one row.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import attrs

from cipherbox.apps.agent.sending import SMALL_BYTES
from cipherbox.limits import LIMITS

ARRIVES, FAILS, WAITS, LEFT = "arrives", "fails", "waits", "left"
Make = Callable[[Path], Path]  # makes the file in a directory that is empty, and returns it


@attrs.frozen
class File:
    """``agent`` and ``send``: what becomes of it; ``says``: in the reason, or in a line of the
    agent's log.
    """

    name: str
    make: Make
    agent: str = ARRIVES
    send: str = ARRIVES
    says: str = ""


class Sized(NamedTuple):
    """Makes a file of a size."""

    size: int

    def __call__(self, folder: Path) -> Path:
        path = folder / f"{self.size}.bin"
        path.write_bytes(os.urandom(min(self.size, 4096)).ljust(self.size, b"."))
        return path


def named(name: str | bytes) -> Make:
    """Makes a file of this name; its content is its own."""

    def make(folder: Path) -> Path:
        path = Path(os.fsdecode(os.path.join(os.fsencode(folder), os.fsencode(name))))
        path.write_bytes(b"content of " + os.urandom(8).hex().encode())
        return path

    return make


def dated(seconds: int) -> Make:
    def make(folder: Path) -> Path:
        path = named("dated.txt")(folder)
        os.utime(path, (seconds, seconds))
        return path

    return make


def deep(levels: int) -> Make:
    def make(folder: Path) -> Path:
        inner = folder.joinpath(*(f"d{n}" for n in range(levels)))
        inner.mkdir(parents=True)
        return named("deep.txt")(inner)

    return make


def linked(folder: Path) -> Path:
    path = folder / "link.txt"
    path.symlink_to(named("target.tmp")(folder))
    return path


def fifo(folder: Path) -> Path:
    path = folder / "pipe"
    os.mkfifo(path)
    return path


def bound_socket(folder: Path) -> Path:
    path = folder / "socket.ipc"
    here = os.getcwd()
    os.chdir(folder)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)
    return path


def unreadable(folder: Path) -> Path:
    path = named("secret.txt")(folder)
    path.chmod(0)
    return path


def sparse(folder: Path) -> Path:
    path = folder / "sparse.img"
    with path.open("wb") as file:
        file.truncate(5_000_000)
        file.write(os.urandom(8))
    return path


SMALL = max(SMALL_BYTES, 1)
LONG = "x" * 246 + ".dcm"  # 250 bytes: no room for an ending
FILES = (
    File("a plain text", named("plain.txt")),
    File("a name with spaces, quotes and a dash first", named("-a 'b' \"c\" $HOME;x.csv")),
    File("a name in Japanese", named("検体-17.vcf")),
    File("a name in the form of a Mac", named("Prüfung.txt")),
    File("a name with a line break", named("two\nlines.txt")),
    File("a name of 250 bytes", named(LONG)),
    File("a name of 255 bytes of two each", named("ü" * 125 + ".jpg")),
    File("a device of Windows", named("con.txt")),
    File("a name that ends with a dot", named("dot.")),
    File("a name that is not UTF-8", named(b"caf\xe9.txt"), FAILS, FAILS, "not UTF-8"),
    File("a long name that is not UTF-8", named(b"\xe9" * 250), FAILS, FAILS, "not UTF-8"),
    File("a file of the year 2400", dated(13_569_465_600)),
    File("a file of 1969", dated(-31_536_000)),
    File("a file of 1970", dated(0)),
    File("nothing in it", Sized(0)),
    File("one byte", Sized(1)),
    File("as large as a small one may be", Sized(SMALL)),
    File("one byte larger", Sized(SMALL + 1)),
    File("one part", Sized(LIMITS.part_bytes)),
    File("one part and a byte", Sized(LIMITS.part_bytes + 1)),
    File("five million bytes that take no room", sparse),
    File("as deep as it may be", deep(20)),
    File("too deep", deep(LIMITS.path_names + 2), FAILS, ARRIVES, "deep"),
    File("a link", linked, LEFT, ARRIVES, "it is a link"),
    File("a pipe", fifo, LEFT, FAILS, "no regular file"),
    File("a socket", bound_socket, LEFT, FAILS, "no regular file"),
    File("a file nobody may read", unreadable, WAITS, FAILS, "cannot be read"),
    File("what Windows leaves", named("Thumbs.db"), LEFT),
    File("what Windows leaves, in lower case", named("desktop.ini"), LEFT),
    File("what a Mac leaves", named(".DS_Store"), LEFT),
    File("what Word leaves", named("~$report.docx"), LEFT),
    File("what LibreOffice leaves", named(".~lock.report.odt#"), LEFT),
    File("a download under way", named("x.part"), LEFT),
    File("a temporary file", named("x.TMP"), LEFT),
    File("what the settings ignore", named("run.log"), LEFT),
    File("a README of one's own", named("README.txt")),
)
