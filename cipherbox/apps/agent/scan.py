"""Scan `outgoing` for files that are complete.

A file is complete when it has not changed for the settle time, or when its marker (`NAME.ok`)
exists, and when no program has it open for writing, where the system can tell.  Files of programs
and of the system are ignored; a file in a folder that nothing is sent from is reported, once.
"""

from __future__ import annotations

import fnmatch
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from cipherbox.config.toml_file import AgentSettings
from cipherbox.errors import InvalidRequest
from cipherbox.limits import check_client_id, check_name
from cipherbox.portable import int64

README = "README.txt"
LEFT_OUT = (
    "thumbs.db",
    "desktop.ini",
    ".*",
    "~$*",
    "*.part",
    "*.partial",
    "*.tmp",
    "*.crdownload",
    "*.filepart",
    "*~",
)
DEEPEST = 64  # folders; recipients take 32, and what lies deeper than that fails with the reason


class Destination(NamedTuple):
    """The destination of a folder's files: recipients, or an exchange and its key."""

    recipients: tuple[str, ...]
    exchange: str = ""
    key: str = ""


class State(NamedTuple):
    """The state of a file when it was scanned; times in ns since 1970."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int


class Found(NamedTuple):
    """A file in `outgoing`; ``path`` is what the recipients see."""

    file: Path
    path: tuple[str, ...]
    destination: Destination
    state: State
    marked: bool


def state_of(found: os.stat_result) -> State:
    """Return the state of a file; a date beyond what a database takes is capped."""
    return State(
        found.st_size, int64(found.st_mtime_ns), int64(found.st_ctime_ns), int64(found.st_ino)
    )


class Scanner:
    """Scans a folder repeatedly; ``tell`` is called with problems that a person should know."""

    def __init__(self, top: Path, settings: AgentSettings, tell: Callable[[str], None]) -> None:
        self._top, self._settings, self._tell = top, settings, tell
        self._ignored = (
            *LEFT_OUT,
            *(p.strip().lower() for p in settings.ignore.split(",") if p.strip()),
        )
        self._seen: dict[Path, tuple[State, float]] = {}
        # folders of the last look that lie below those of recipients and hold nothing
        self.empty: list[Path] = []

    def look(self) -> tuple[list[Found], list[Found]]:
        """Return (complete files, others), oldest first, and by name where the time is the same."""
        now = time.monotonic()
        seen: dict[Path, tuple[State, float]] = {}
        whole: list[Found] = []
        growing: list[Found] = []
        self.empty = []
        for found in self._files():
            before = self._seen.get(found.file)
            since = before[1] if before is not None and before[0] == found.state else now
            seen[found.file] = (found.state, since)
            settled = found.marked or (
                not self._settings.marker and now - since >= self._settings.settle_s
            )
            (whole if settled else growing).append(found)
        self._seen = seen
        whole.sort(key=lambda found: (found.state.modified_ns, os.fsencode(found.file)))
        return whole, growing

    def marker(self, file: Path) -> Path | None:
        """Return the marker of a file, if markers are used."""
        return file.with_name(file.name + self._settings.marker) if self._settings.marker else None

    # -- inside ------------------------------------------------------------------------------------

    def _files(self) -> Iterator[Found]:
        for entry in _entries(self._top, self._tell):
            path = Path(entry.path)
            if not _is_folder(entry):
                if not self._left_out(entry.name) and entry.name != README:
                    self._tell(f"{path} is not sent: put it into the folder of its recipient")
            elif entry.name.startswith("@"):
                yield from self._exchange(path)
            elif not entry.name.startswith("."):
                yield from self._below(path, "", "")

    def _exchange(self, folder: Path) -> Iterator[Found]:
        for entry in _entries(folder, self._tell):
            if _is_folder(entry) and not entry.name.startswith("."):
                yield from self._below(Path(entry.path), folder.name[1:], entry.name)
            elif not _is_folder(entry) and not self._left_out(entry.name):
                self._tell(
                    f"{entry.path} is not sent: below {folder.name} comes a folder with the name "
                    "of a key"
                )

    def _below(self, folder: Path, exchange: str, key: str) -> Iterator[Found]:
        try:
            if exchange:
                destination = Destination(
                    (), check_name(exchange, "exchange name"), check_name(key, "routing key")
                )
            else:
                destination = Destination(
                    tuple(dict.fromkeys(check_client_id(name) for name in folder.name.split("+")))
                )
        except InvalidRequest as error:
            self._tell(f"nothing is sent from {folder}: {error}")
            return
        yield from self._inside(folder, folder, destination)

    def _inside(self, top: Path, folder: Path, destination: Destination) -> Iterator[Found]:
        marker = self._settings.marker
        entries = _entries(folder, self._tell)
        if not entries and folder != top:
            self.empty.append(folder)
        names = {entry.name for entry in entries}
        for entry in entries:
            path = Path(entry.path)
            if self._left_out(entry.name):
                continue
            if entry.is_symlink():
                self._tell(f"{path} is not sent: it is a link, and may lead anywhere")
            elif _is_folder(entry):
                if len(path.parts) - len(top.parts) > DEEPEST:
                    self._tell(
                        f"nothing is sent from {path}: it lies more than {DEEPEST} folders deep"
                    )
                else:
                    yield from self._inside(top, path, destination)
            elif marker and entry.name.endswith(marker):
                continue
            else:
                try:
                    found = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # it is gone again
                if not stat.S_ISREG(found.st_mode):
                    self._tell(f"{path} is not sent: it is no regular file")
                    continue
                marked = bool(marker) and entry.name + marker in names
                yield Found(path, path.relative_to(top).parts, destination, state_of(found), marked)

    def _left_out(self, name: str) -> bool:
        lower = name.lower()
        return any(fnmatch.fnmatchcase(lower, pattern) for pattern in self._ignored)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether it is a directory that can be read; an unmounted share is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _entries(folder: Path, tell: Callable[[str], None]) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []
    except OSError as error:
        tell(f"{folder} cannot be looked into: {error.strerror}")
        return []
