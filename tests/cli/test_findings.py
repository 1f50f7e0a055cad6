"""What `doctor` says of clocks, certificates, disks and rights, without a machine that has them
wrong.
"""

from __future__ import annotations

import os
import shutil
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cipherbox import clock
from cipherbox.cli.doctor import findings
from cipherbox.cli.doctor.findings import (
    BAD,
    GOOD,
    WARN,
    Finding,
    collect,
    disk,
    ends,
    file_rights,
    system_clock,
)
from cipherbox.errors import Problem, StoreError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Frozen:
    """A clock that stands."""

    at = NOW


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> type[Frozen]:
    monkeypatch.setattr(clock, "now_s", lambda: Frozen.at.timestamp())
    Frozen.at = NOW
    return Frozen


@pytest.mark.parametrize(
    ("left", "level", "about", "says"),
    [
        (timedelta(days=400), GOOD, "certificates", "in 400 days"),
        (timedelta(days=29), WARN, "certificates", "in 29 days"),
        (timedelta(days=1, hours=1), WARN, "certificates", "in 1 days"),
        (timedelta(0), BAD, "certificates", "ended on"),
        (timedelta(days=-3), BAD, "certificates", "ended on"),
    ],
)
def test_the_end_of_a_certificate_is_told_long_before(
    at: type[Frozen], left: timedelta, level: str, about: str, says: str
) -> None:
    found = ends("certificates", "it", NOW + left, NOW - timedelta(days=10), "renew it")
    assert (found.level, found.about) == (level, about)
    assert says in found.text
    assert bool(found.todo) == (level != GOOD)


def test_a_clock_that_is_years_off_is_told(at: type[Frozen]) -> None:
    assert [f.level for f in system_clock()] == [GOOD]
    at.at = datetime(1970, 1, 1, tzinfo=UTC)
    (found,) = system_clock()
    assert (found.level, found.about) == (BAD, "clock")
    at.at = NOW - timedelta(days=365)
    found = ends(
        "certificates", "HQ's", NOW + timedelta(days=100), NOW - timedelta(days=10), "renew"
    )
    assert (found.level, found.about) == (BAD, "clock")
    assert "this clock is behind" in found.text
    assert "timedatectl" in found.todo


def test_a_log_from_the_future_is_a_clock_set_back(tmp_path: Path) -> None:
    from cipherbox.broker.model import Changes, LogRow
    from cipherbox.cli.doctor.hq import store_findings
    from cipherbox.config.settings import ServerConfig
    from cipherbox.store.sqlite.store import open_store

    store = open_store(tmp_path, create=True)
    ahead = (datetime.now(UTC).timestamp() + 3 * 365 * 86_400) * 1000
    store.commit(Changes(log=LogRow(1, int(ahead), b"r", b"b", b"n" * 32, bytes(16))), store.epoch)
    store.close()
    found = list(store_findings(ServerConfig(tmp_path), running=False))
    assert [(f.level, f.about) for f in found] == [(GOOD, "store"), (BAD, "clock")]
    assert "1095.0 days behind" in found[1].text
    assert "cipherbox clock confirm" in found[1].todo


@pytest.mark.parametrize(("free", "level"), [(50 * 10**9, GOOD), (10**9, WARN), (10**7, BAD)])
def test_a_disk_is_told_before_it_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, level: str
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, free))
    found = list(disk([tmp_path, tmp_path / "not" / "there" / "yet"]))
    assert [f.level for f in found] == [level]


def test_rights_owners_and_missing_files(tmp_path: Path) -> None:
    key = tmp_path / "local.key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    assert [f.level for f in file_rights(tmp_path, [key])] == [GOOD]
    key.chmod(0o640)
    (found,) = file_rights(tmp_path, [key])
    assert (found.level, found.todo) == (BAD, f"chmod 600 {key}")
    key.chmod(0o600)
    (found,) = file_rights(tmp_path, [key, tmp_path / "gone.key"])
    assert "is missing" in found.text


def test_a_secret_of_another_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    key = tmp_path / "local.key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    os.chown(key, 65534, 65534)
    (found,) = file_rights(tmp_path, [key])
    assert (found.level, found.about) == (BAD, "rights")
    assert "chown -R --reference" in found.todo
    os.chown(tmp_path, 65534, 65534)
    assert [f.level for f in file_rights(tmp_path, [key])] == [GOOD]


def test_a_check_that_fails_is_a_finding_and_stops_no_other() -> None:
    def fails() -> list[Finding]:
        raise StoreError("no database")

    found = collect([("store", fails), ("clock", lambda: [Finding(GOOD, "clock", "x")])])
    assert [(f.level, f.about, f.text) for f in found] == [
        (BAD, "store", "no database"),
        (GOOD, "clock", "x"),
    ]
    assert found[0].todo


def test_a_problem_is_shown_whole_and_read_in_parts() -> None:
    problem = Problem("a; b cannot be written", "run: chmod u+w a; then again")
    assert problem == "a; b cannot be written; run: chmod u+w a; then again"
    shown = findings.finding("rights", problem)
    assert shown == Finding(BAD, "rights", "a; b cannot be written", "run: chmod u+w a; then again")
    assert not Problem()
