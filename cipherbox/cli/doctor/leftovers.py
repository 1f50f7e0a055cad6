"""Find what killed commands left behind, and remove it (`doctor --clean`).

Rules:

1. Nothing is touched that a running process may be using: it holds a lock on it, or on what makes
   it.  What 0.5.0 writes has no lock, so it counts after an hour.
2. Nothing is removed that may be the only copy of a message: only copies whose original is in
   place, and what no program reads.  A complete backup that lacks its name is only reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from cipherbox import clock
from cipherbox.cli.doctor.findings import GOOD, WARN, Finding
from cipherbox.portable import is_locked, parts_in
from cipherbox.readable import Sentence

if TYPE_CHECKING:
    from cipherbox.config.settings import ClientConfig, ServerConfig

_OLD_PART = re.compile(r"\.(.+)\.[a-z0-9_]{8}")  # as 0.5.0 names it
_OLD_S = 3600
_TOKEN_S = 90 * 86_400  # no token is valid for longer
_SHOWN = 3
_WRITE = Sentence("an interrupted write")


class Leftover(NamedTuple):
    """A file or directory that a killed command left."""

    path: Path
    what: str


def of_hq(config: ServerConfig) -> Iterator[Leftover]:
    """Yield what killed commands left in HQ's directory and beside it."""
    from cipherbox.server.operations.backup import BACKUP_LOCK, MANIFEST, unfinished_backups
    from cipherbox.server.operations.check import LOCK
    from cipherbox.server.operations.setup import UNFINISHED
    from cipherbox.store.spool import link_directories

    top = config.directory
    yield from _parts(top, *(top / name for name in ("ca", "tls", "secrets")))
    if not is_locked(top / BACKUP_LOCK):
        for path in link_directories(top):
            yield Leftover(path, "links of an interrupted backup, which keep deleted files")
        for path in unfinished_backups(config, top.parent):
            if not (path / MANIFEST).exists():
                yield Leftover(path, "an interrupted backup, with HQ's secrets")
    if not is_locked(top / LOCK):
        if (top / UNFINISHED).exists() and not is_locked(top / UNFINISHED):
            yield Leftover(top / UNFINISHED, "the mark of an `init` or a restore that is complete")
        database = config.database.path
        for path in sorted(database.parent.glob(f"{database.name}.schema*.part*")):
            yield Leftover(path, "an interrupted copy of the database before an upgrade")


def of_client(config: ClientConfig) -> Iterator[Leftover]:
    """Yield what killed commands left in a client's home."""
    from cipherbox.client.enrol import PENDING
    from cipherbox.client.home import LOCK, NEXT_KEY
    from cipherbox.client.inbox.decrypted_files import OPENED

    yield from _parts(config.home, config.home / "certs")
    if (config.home / OPENED).exists() and not is_locked(config.home / LOCK):
        yield Leftover(
            config.home / OPENED, Sentence("readable copies of files for an interrupted handler")
        )
    if _is_old(config.home / PENDING, _TOKEN_S):
        for path in (config.home / PENDING, config.home / NEXT_KEY):
            if _is_old(path, _TOKEN_S):  # else a renewal of the certificate uses the key
                yield Leftover(path, Sentence("a `join` whose token has expired"))


def of_machine() -> Iterator[Leftover]:
    """Yield what killed runs of demo, prove and bench left among the temporary files."""
    from cipherbox.harness.workplace import abandoned

    for path in abandoned():
        yield Leftover(path, Sentence("the directory of an interrupted demo, prove or bench"))


def _parts(*directories: Path) -> Iterator[Leftover]:
    for directory in directories:
        for part in parts_in(directory):
            if not is_locked(part):
                yield Leftover(part, _WRITE)
        for path in sorted(directory.glob(".*")):
            name = _OLD_PART.fullmatch(path.name)
            if (
                name
                and (directory / name[1]).is_file()
                and path.is_file()
                and _is_old(path, _OLD_S)
            ):
                yield Leftover(path, _WRITE)


def _is_old(path: Path, seconds: float) -> bool:
    return path.exists() and clock.now_s() - path.stat().st_mtime > seconds


def check(found: Iterable[Leftover], command: str, *, clean: bool) -> Iterator[Finding]:
    """Report what was left; with ``clean`` remove it, and report that."""
    from cipherbox.harness.workplace import remove_tree

    left = list(found)
    for path, what in left if clean else []:
        if path.is_dir():
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
        yield Finding(WARN, "leftovers", Sentence("removed {path}: {what}", path=path, what=what))
    if left and not clean:
        named = [Sentence("{path} ({what})", path=path, what=what) for path, what in left[:_SHOWN]]
        if len(left) > _SHOWN:
            named.append(Sentence("and {count} more", count=len(left) - _SHOWN))
        text = Sentence("killed commands left files behind: {named}", named=named)
        todo = Sentence("remove them: {command} --clean", command=command)
        yield Finding(WARN, "leftovers", text, todo)
    if not left:
        yield Finding(GOOD, "leftovers", Sentence("no command left unfinished files behind"))
