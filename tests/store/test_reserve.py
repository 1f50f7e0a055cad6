"""When there is room, and what the reserve does to the disk."""

from __future__ import annotations

import errno
import re
from pathlib import Path

from cipherbox.cli.doctor import findings
from cipherbox.cli.manual import manual_pages
from cipherbox.client import watch
from cipherbox.limits import LIMITS
from cipherbox.store import reserve as reserve_module
from cipherbox.store.reserve import FRESH_S, PLENTY_BYTES, Reserve
from tests.store.faults import Faulty

SIZE = 64 * 1024
MARGIN = SIZE // 8


RESUME = 4 * SIZE


class Disk(Faulty):
    """A disk of ``total`` bytes, of which others have ``used`` and the reserve what it has."""

    def __init__(self, path: Path, total: int) -> None:
        super().__init__()
        self.path, self.total, self.used = path, total, 0

    def free_bytes(self, path: Path) -> int:
        super().free_bytes(path)
        held = self.path.stat().st_size if self.path.exists() else 0
        return self.total - self.used - held


def reserve(tmp_path: Path, free: int) -> tuple[Reserve, Faulty]:
    files = Faulty()
    files.free = free
    return Reserve(tmp_path / "reserve", SIZE, files), files


def asked(files: Faulty) -> int:
    count = files.calls.count("free_bytes")
    files.calls.clear()
    return count


def test_with_plenty_of_space_the_disk_is_asked_once_a_second(tmp_path: Path) -> None:
    _, files = reserve(tmp_path, PLENTY_BYTES + MARGIN + 10_000)
    now = [5.0]
    held = Reserve(tmp_path / "reserve", SIZE, files, lambda: now[0])
    assert not held.plenty(1)  # not before the reserve is there
    assert held.make()
    asked(files)
    for _ in range(5):
        assert held.plenty(1000)
        held.spend(1000)
    assert not held.plenty(1)  # 5 * 2 * 1000 bytes of it are taken
    assert asked(files) == 0
    now[0] += FRESH_S
    assert not held.plenty(1000)
    assert held.room(1000, 0)  # asks, and looks for the reserve
    assert held.plenty(5000)
    assert asked(files) == 1
    assert held.free_bytes() == files.free


def test_what_is_known_of_the_disk_ends_with_the_reserve_or_an_error(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, 2 * PLENTY_BYTES)
    held.make()
    assert held.plenty(1)
    files.free = 0
    held.forget()
    assert not held.plenty(1)
    assert held.free_bytes() == 0
    files.free = 2 * PLENTY_BYTES
    assert held.room(1, 0)
    assert held.plenty(1)
    held.release()
    assert not held.plenty(1)


def test_a_reserve_that_is_not_whole_is_not_plenty(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, SIZE - 1)
    assert not held.make()
    files.free = 2 * PLENTY_BYTES
    held.forget()
    assert not held.plenty(1)
    assert held.room(1, 0)  # makes it
    assert held.path.stat().st_blocks * 512 >= SIZE  # it really takes the space
    assert held.plenty(1)


def test_one_rule_says_when_envelopes_are_taken_again(tmp_path: Path) -> None:
    """Byte by byte: refused from the envelope that did not fit, taken from `resume` bytes beside
    the reserve on, and a restart changes nothing, wherever the disk stands.
    """
    disk = Disk(tmp_path / "reserve", SIZE + RESUME)

    def start() -> Reserve:
        return Reserve(disk.path, SIZE, disk, resume=RESUME)

    def states(free: int) -> set[bool]:
        """Whether there is room with so many bytes free: of the running one, and after a start."""
        nonlocal held
        disk.used = 0
        disk.used = disk.free_bytes(disk.path) - free
        running = held.room(1, 0)
        held = start()
        held.make()
        return {running, held.room(1, 0)}

    held = start()
    assert held.room(1, 0)  # the first start: the whole rule, to the byte
    assert states(MARGIN + 2) == {True}
    assert states(MARGIN + 1) == {False}
    held.refuse()
    assert states(MARGIN + 2) == {False}
    lacks = SIZE - disk.path.stat().st_size
    assert 0 < lacks <= 4096
    assert states(RESUME + lacks - 1) == {False}
    assert states(RESUME + lacks) == {True}
    assert states(MARGIN + 2) == {True}
    held.release()  # acks took it
    assert states(SIZE + RESUME - 1) == {False}
    assert states(SIZE + RESUME) == {True}


def test_a_first_start_needs_what_is_needed_after_a_full_disk(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "reserve", SIZE + RESUME - 1)
    held = Reserve(disk.path, SIZE, disk, resume=RESUME)
    assert not held.make()
    assert not held.room(0, 1 << 30)
    disk.total += 1
    assert held.room(1, 0)


def test_a_disk_that_does_not_give_it_leaves_none(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, 10 * SIZE)
    files.fail = ("allocate", errno.ENOSPC)
    assert not held.make()
    assert not held.room(1, 1 << 30)
    assert not held.path.exists()


def test_room_counts_log_database_and_empty_pages(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, 10 * SIZE)
    held.make()
    files.free = MARGIN + 1000
    assert held.room(500, 0)
    assert not held.room(501, 0)
    assert held.room(1000, 1000)  # the database has place, the log needs its own
    assert not held.room(1001, 1 << 30)
    assert not held.low()
    files.free = MARGIN - 1
    assert held.low()


def test_the_manual_s_table_of_free_space_is_true() -> None:
    section = manual_pages()["operations"].partition("### The disk is full")[2]
    told = [int(number) for number in re.findall(r"(?m)^\| (\d+)(?: MiB)? \|", section)]
    assert told == sorted(told, reverse=True)
    warns, wrong, soon, again, refused, none = (number << 20 for number in told)
    assert (warns, wrong, wrong) == (findings.LOW_BYTES, findings.LEAST_BYTES, watch.LEAST_BYTES)
    assert soon == LIMITS.disk_reserve_bytes + LIMITS.disk_resume_bytes
    assert again == LIMITS.disk_resume_bytes
    assert refused == LIMITS.disk_reserve_bytes // reserve_module.MARGIN
    assert none == 0
