"""The findings of `doctor`: one line for each check, with its remedy."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

from cipherbox import clock
from cipherbox.cli.exits import advice
from cipherbox.errors import CipherBoxError, ConfigError, Problem, kind_of, summary
from cipherbox.readable import Sentence

GOOD, WARN, BAD = "good", "warning", "wrong"
LOW_BYTES, LEAST_BYTES = 2 * 1024**3, 256 * 1024**2
LOW_INODES = 1000
SOON_DAYS = 30
SETTINGS = Sentence("correct the file; cipherbox manual configuration lists every setting")
CLOCK = Sentence("set the clock: timedatectl set-ntp true")
NAMED = Sentence("fix what it names, then run this again")
_MINUTE = "%Y-%m-%d %H:%M"
T = TypeVar("T")
# CipherBox was not built before this; a clock that shows an earlier time was never set.
BUILT = datetime(2025, 9, 1, tzinfo=UTC)


class Finding(NamedTuple):
    """The result of one check; ``todo`` is its remedy, empty if there is nothing to do; ``kind`` is
    the meaning of an error that was found.
    """

    level: str
    about: str
    text: str
    todo: str = ""
    kind: str = ""


def finding(about: str, problem: Problem, todo: str = "", kind: str = "") -> Finding:
    """Return a problem as a finding; ``todo`` is its remedy if it has none of its own."""
    return Finding(BAD, about, problem.what, problem.remedy or todo, kind)


def findings_of(about: str, error: CipherBoxError, todo: str = "") -> list[Finding]:
    """Return each problem that an error names as a finding."""
    kind = summary(kind_of(error))
    return [finding(about, problem, todo, kind) for problem in error.problems]


Check = Callable[[], Iterable[Finding]]


def collect(checks: Iterable[tuple[str, Check]]) -> list[Finding]:
    """Return the findings of all checks; an error in a check is a finding, too."""
    found: list[Finding] = []
    for about, check in checks:
        try:
            found += check()
        except (CipherBoxError, OSError, ValueError) as error:
            todo = advice(error) or NAMED
            if isinstance(error, CipherBoxError):
                found += findings_of(about, error, todo)
            else:
                found.append(Finding(BAD, about, str(error), todo))
    return found


def system_clock() -> Iterator[Finding]:
    """Check that the clock was ever set; HQ's clock is compared later."""
    now = clock.now()
    if now < BUILT:
        yield Finding(
            BAD,
            "clock",
            Sentence(
                "this machine's clock shows {day}, before CipherBox was built",
                day=f"{now:%Y-%m-%d}",
            ),
            CLOCK,
        )
    else:
        yield Finding(GOOD, "clock", f"{now:%Y-%m-%d %H:%M:%S} UTC")


def closed(directory: Path) -> bool:
    """Return whether this user may not list the directory."""
    return directory.is_dir() and not os.access(directory, os.R_OK | os.X_OK)


def opening(
    directory: Path, load: Callable[[Path], T], todo: str = SETTINGS
) -> tuple[list[Finding], T | None]:
    """Run the first checks of every machine: clock, permissions, settings.  Return the findings and
    the settings, or None if they cannot be read and no other check is possible.
    """
    found = collect([("clock", system_clock)])
    if closed(directory):
        return [*found, *collect([("rights", lambda: file_rights(directory, []))])], None
    try:
        return found, load(directory)
    except ConfigError as error:
        return [
            *found,
            *findings_of("settings", error, todo),
        ], None


def file_rights(directory: Path, secrets: Iterable[Path]) -> Iterator[Finding]:
    """Check that secrets are private, files have one owner, and the directory is writable."""
    from cipherbox.portable import WINDOWS, owner_of, unwritable

    if closed(directory):
        owner = owner_of(directory)
        yield Finding(
            BAD,
            "rights",
            Sentence(
                "{directory} belongs to {owner}, and this user may not read it",
                directory=directory,
                owner=owner,
            ),
            Sentence("run this as that user: sudo -u {owner} cipherbox ...", owner=owner),
        )
        return
    wrong = False
    for path in secrets:
        if not path.exists():
            yield Finding(
                BAD,
                "files",
                Sentence("{path} is missing", path=path),
                Sentence("restore it from the backup; it cannot be recreated"),
            )
            wrong = True
        elif not WINDOWS and stat.S_IMODE(path.stat().st_mode) & 0o077:
            mode = stat.S_IMODE(path.stat().st_mode)
            yield Finding(
                BAD,
                "rights",
                Sentence(
                    "{path} holds a secret, and others may use it (mode {mode})",
                    path=path,
                    mode=f"{mode:04o}",
                ),
                f"chmod 600 {path}",
            )
            wrong = True
    if why := unwritable(directory):
        yield finding("rights", why)
        wrong = True
    if not WINDOWS:
        for one in _owners(directory):
            yield one
            wrong = True
    if not wrong:
        yield Finding(
            GOOD, "files", Sentence("files and rights in {directory}", directory=directory)
        )


def _owners(directory: Path) -> Iterator[Finding]:
    owner = directory.stat().st_uid
    if os.geteuid() not in (owner, 0):
        yield Finding(
            WARN,
            "rights",
            Sentence(
                "{directory} belongs to another user (uid {owner}, you are {you})",
                directory=directory,
                owner=owner,
                you=os.geteuid(),
            ),
            Sentence("run CipherBox as that user"),
        )
    strangers = []
    for path in [
        *directory.iterdir(),
        *(p for d in ("ca", "tls", "secrets") for p in directory.glob(f"{d}/*")),
    ]:
        try:
            if path.lstat().st_uid != owner:
                strangers.append(path)
        except FileNotFoundError:
            continue
    if strangers:
        yield Finding(
            BAD,
            "rights",
            Sentence(
                "{count} of its files belong to another user, for example {path}",
                count=len(strangers),
                path=strangers[0],
            ),
            f"chown -R --reference={directory} {directory}",
        )


def disk(places: Iterable[Path]) -> Iterator[Finding]:
    """Check the free space and inodes of each file system."""
    seen: set[int] = set()
    for place in places:
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device in seen:
            continue
        seen.add(device)
        free = shutil.disk_usage(place).free
        size = f"{free / 1e9:.1f} GB" if free >= 1e9 else f"{free / 1e6:.0f} MB"
        text = Sentence("{size} free at {place}", size=size, place=place)
        level = BAD if free < LEAST_BYTES else WARN if free < LOW_BYTES else GOOD
        todo = (
            "" if level == GOOD else Sentence("make room, or move the directory to a larger disk")
        )
        yield Finding(level, "disk", text, todo)
        if hasattr(os, "statvfs"):
            found = os.statvfs(place)
            if found.f_files and found.f_favail < LOW_INODES:
                text = Sentence(
                    "only {count} free inodes at {place}", count=found.f_favail, place=place
                )
                yield Finding(BAD, "disk", text, Sentence("delete small files there"))


def ends(
    about: str, what: str, end: datetime, begin: datetime, todo: str, soon_days: int = SOON_DAYS
) -> Finding:
    """Return a finding on the validity of a certificate or list, by this machine's clock."""
    now = clock.now()
    if now < begin:
        return Finding(
            BAD,
            "clock",
            Sentence(
                "{what} begins only on {begin} UTC: this clock is behind",
                what=what,
                begin=f"{begin:{_MINUTE}}",
            ),
            CLOCK,
        )
    days = (end - now).total_seconds() / 86_400
    if days <= 0:
        text = Sentence(
            "{what} ended on {end} UTC; it is {now} by this clock",
            what=what,
            end=f"{end:{_MINUTE}}",
            now=f"{now:{_MINUTE}}",
        )
        return Finding(BAD, about, text, todo)
    text = Sentence(
        "{what} ends on {end}, in {days} days", what=what, end=f"{end:%Y-%m-%d}", days=f"{days:.0f}"
    )
    return Finding(WARN, about, text, todo) if days < soon_days else Finding(GOOD, about, text)
