"""The files of large envelopes: written over soon after they were freed, and never somebody else's
bytes, wherever a crash occurs.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cipherbox import clock, spares
from cipherbox.client.outbox import envelope_files
from cipherbox.client.outbox.envelope_files import EnvelopeFiles
from cipherbox.client.outbox.outbox import FILES, Outbox
from cipherbox.client.outbox.rows import CONFIRMED, WAITING, Confirmed
from cipherbox.errors import StoreError
from tests.client.test_outbox import fresh, sign, signed

LARGE = 100_000


def files(home: Path) -> list[str]:
    return sorted(os.listdir(home / FILES))


def opened_by_all(outbox: Outbox, number: int, size: int = LARGE) -> None:
    """Keep an envelope, and let all its recipients sign for it."""
    item = fresh(number, size=size)
    outbox.write([item])
    outbox.write(confirmed=[Confirmed(item.envelope_id, 0, 7, ())])
    for at, name in enumerate(item.recipients):
        sign(outbox, 100 + 2 * number + at, signed(item, name))


def is_whole(home: Path) -> set[int]:
    """Open a home; return the numbers of its waiting envelopes, whose bytes are their own."""
    outbox = Outbox(home)
    found = set()
    for row in outbox.rows([WAITING]):
        raw = outbox.bytes_of(row)
        assert raw is not None
        assert set(raw) == set(row.envelope_id[:2])
        assert len(raw) == row.size
        found.add(row.envelope_id[1])
    outbox.close()
    return found


def test_a_freed_file_is_written_over(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    opened_by_all(outbox, 1)
    (name,) = files(tmp_path)
    first = fresh(1).envelope_id
    shorter = fresh(2, size=LARGE - 10_000)
    outbox.write([shorter])
    assert files(tmp_path) == [name]
    (row,) = outbox.rows([WAITING])
    assert (row.file, outbox.bytes_of(row)) == (name, shorter.raw)
    gone = outbox.find(first)
    assert gone is not None
    assert outbox.bytes_of(gone) is None
    outbox.write([fresh(3, size=LARGE)])  # the only spare is in use
    assert len(files(tmp_path)) == 2
    outbox.close()
    assert is_whole(tmp_path) == {2, 3}


def test_a_spare_is_not_taken_for_far_fewer_or_for_more_bytes(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    opened_by_all(outbox, 1, size=10 * LARGE)
    outbox.write([fresh(2, size=LARGE), fresh(3, size=10 * LARGE + 1)])
    assert len(files(tmp_path)) == 3
    outbox.close()
    assert is_whole(tmp_path) == {2, 3}


def test_spares_do_not_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [clock.elapsed_s()]
    monkeypatch.setattr(clock, "elapsed_s", lambda: now[0])
    outbox = Outbox(tmp_path)
    assert not outbox.has_spares
    opened_by_all(outbox, 1)
    outbox.drop_spares()
    assert (len(files(tmp_path)), outbox.has_spares) == (1, True)
    now[0] += spares.SPARE_S + 1
    outbox.drop_spares()
    assert (files(tmp_path), outbox.has_spares) == ([], False)
    monkeypatch.setattr(envelope_files, "SPARE_BYTES", 2 * LARGE)
    outbox.write([fresh(n, size=LARGE) for n in (2, 3, 4)])
    outbox.drop([fresh(n).envelope_id for n in (2, 3, 4)])
    assert len(files(tmp_path)) == 2
    outbox.close()
    assert files(tmp_path) == []


def test_a_file_of_long_ago_or_of_another_process_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, other = Outbox(tmp_path), Outbox(tmp_path)
    outbox.write([fresh(1, size=LARGE), fresh(2, size=LARGE)])
    other.drop([fresh(1).envelope_id])
    assert (len(files(tmp_path)), other.has_spares) == (1, False)
    later = clock.elapsed_s() + 3601
    monkeypatch.setattr(clock, "elapsed_s", lambda: later)
    outbox.drop([fresh(2).envelope_id])
    assert (files(tmp_path), outbox.has_spares) == ([], False)
    outbox.close()
    other.close()


def test_a_reader_in_another_process_gets_its_own_bytes_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox, other = Outbox(tmp_path), Outbox(tmp_path)
    item = fresh(1, size=LARGE)
    outbox.write([item])
    (row,) = other.rows([WAITING])
    assert other.bytes_of(row) == item.raw
    read = EnvelopeFiles.read

    def slow(self: EnvelopeFiles, name: str, size: int) -> bytes | None:
        outbox.drop([item.envelope_id])
        outbox.write([fresh(2, size=LARGE)])
        return read(self, name, size)

    monkeypatch.setattr(EnvelopeFiles, "read", slow)
    assert other.bytes_of(row) is None
    assert len(files(tmp_path)) == 1
    outbox.close()
    other.close()


def test_a_spare_that_a_person_removed_is_not_missed(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    opened_by_all(outbox, 1)
    (name,) = files(tmp_path)
    (tmp_path / FILES / name).unlink()
    outbox.write([fresh(2, size=LARGE)])
    outbox.close()
    assert is_whole(tmp_path) == {2}


def test_a_crash_while_a_spare_is_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the home at each instant: every row has its own bytes."""
    home = tmp_path / "home"
    home.mkdir()
    outbox = Outbox(home)
    outbox.write([fresh(9, size=LARGE)])
    opened_by_all(outbox, 1)
    copies: list[Path] = []

    def snapshot(call: Callable[..., object]) -> Callable[..., object]:
        def watched(*args: object, **kwargs: object) -> object:
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(home, copies[-1])
            done = call(*args, **kwargs)
            copies.append(tmp_path / f"copy{len(copies)}")
            shutil.copytree(home, copies[-1])
            return done

        return watched

    def torn(fd: int, data: bytes) -> None:
        os.write(fd, data[: len(data) // 2])
        shutil.copytree(home, tmp_path / "torn")
        os.write(fd, data[len(data) // 2 :])

    monkeypatch.setattr(envelope_files, "write_all", torn)
    monkeypatch.setattr(envelope_files, "sync_data", snapshot(envelope_files.sync_data))
    monkeypatch.setattr(outbox, "_insert", snapshot(outbox._insert))
    outbox.write([fresh(2, size=LARGE)])
    assert len(files(home)) == 2
    found = [is_whole(copy) for copy in (tmp_path / "torn", *copies)]
    assert found == [{9}] * len(found)
    assert len(found) == 5
    outbox.close()
    assert is_whole(home) == {2, 9}


def test_a_spare_that_cannot_be_written_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox = Outbox(tmp_path)
    opened_by_all(outbox, 1)

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(envelope_files, "sync_data", full)
        with pytest.raises(StoreError):
            outbox.write([fresh(2, size=LARGE)])
    assert files(tmp_path) == []
    outbox.write([fresh(2, size=LARGE)])
    (row,) = outbox.rows([WAITING])
    assert outbox.bytes_of(row) == fresh(2, size=LARGE).raw
    outbox.close()


def test_a_failed_commit_frees_nothing(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    opened_by_all(outbox, 1)
    with pytest.raises(TypeError):
        outbox.write([fresh(2, size=LARGE), fresh(3, recipients=None)])
    assert files(tmp_path) == []  # of an envelope that was never kept
    assert len(outbox.rows([CONFIRMED, WAITING])) == 1
    outbox.close()
