"""When there is room, and what the reserve does to the disk."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cipherbox.store.reserve import FRESH_S, PLENTY_BYTES, Reserve
from tests.store.faults import Faulty

SIZE = 64 * 1024
MARGIN = SIZE // 8


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


def test_half_a_reserve_is_not_plenty(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, SIZE)
    assert held.make()
    files.free = 2 * PLENTY_BYTES
    held.forget()
    assert not held.plenty(1)
    assert held.room(1, 0)  # makes all of it
    assert held.plenty(1)


@pytest.mark.parametrize(
    ("free", "size", "made"),
    [(0, 0, False), (SIZE - 2, 0, False), (SIZE, SIZE // 2, True), (2 * SIZE, SIZE, True)],
)
def test_it_takes_at_most_half_of_what_is_free(
    tmp_path: Path, free: int, size: int, made: bool
) -> None:
    held, _ = reserve(tmp_path, free)
    assert held.make() is made
    assert held.path.exists() is bool(size)
    if size:
        assert held.path.stat().st_size == size
        assert held.path.stat().st_blocks * 512 >= size  # it really takes the space


def test_it_grows_when_there_is_room_for_all_of_it(tmp_path: Path) -> None:
    held, files = reserve(tmp_path, SIZE)
    held.make()
    files.free = SIZE - 2
    assert held.make()
    assert held.path.stat().st_size == SIZE // 2  # not bit by bit
    files.free = 10 * SIZE
    held.make()
    assert held.path.stat().st_size == SIZE


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
