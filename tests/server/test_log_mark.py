"""A start notices a store that lost commits that HQ had confirmed, and only such a one."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import nacl.signing
import pytest

from cipherbox.broker.model import Changes, Effects, LogRow
from cipherbox.client.local_database import commits_in_log
from cipherbox.portable import give_to, is_root
from cipherbox.server.log_mark import FILE, LogMark
from cipherbox.server.transparency_log import TransparencyLog
from cipherbox.wire import frames
from tests import postgres
from tests.server.hq import Running, running
from tests.server.test_postgres import at

DATABASE = "cipherbox.sqlite3"
SENT = 6


async def publish(here: Running, count: int) -> list[bytes]:
    sender, recipient = await here.person("FL-LAB"), await here.person("CA-RC")
    raw = await here.client("FL-LAB")
    sent = [sender.seal(recipient, text=f"number {n}").raw for n in range(count)]
    for one in sent:
        assert isinstance(await raw.publish(one), frames.Confirm)
    return sent


async def killed(tmp_path: Path) -> tuple[Path, bytes, Path]:
    """An HQ as SIGKILL leaves it after some envelopes, its incarnation, and the database as it was
    three envelopes before.
    """
    earlier, after = tmp_path / "earlier", tmp_path / "killed"
    async with running(tmp_path / "hq") as here:
        await publish(here, SENT - 3)
        shutil.copytree(tmp_path / "hq", earlier)
        sender = here.people["FL-LAB"]
        raw = await here.dial(sender)
        for n in range(3):
            sealed = sender.seal(here.people["CA-RC"], text=f"later {n}")
            assert isinstance(await raw.publish(sealed.raw), frames.Confirm)
        shutil.copytree(tmp_path / "hq", after)
        return after, here.hq.engine.incarnation, earlier


def flip(directory: Path) -> None:
    """Damage the last but one commit in the write-ahead log: SQLite drops it and the last."""
    log = directory / f"{DATABASE}-wal"
    data = bytearray(log.read_bytes())
    page = int.from_bytes(data[8:12], "big")
    frame = commits_in_log(directory / DATABASE)[-2]
    data[32 + (frame - 1) * (page + 24) + 100] ^= 1
    log.write_bytes(data)


def delete_log(directory: Path) -> None:
    (directory / f"{DATABASE}-wal").unlink()


def put_back(directory: Path) -> None:
    """An old database file in place of the newer one."""
    for name in (DATABASE, f"{DATABASE}-wal"):
        shutil.copy(directory.parent / "earlier" / name, directory / name)
    (directory / f"{DATABASE}-shm").unlink(missing_ok=True)


@pytest.mark.parametrize("lose", [flip, delete_log, put_back])
async def test_lost_commits_begin_a_new_incarnation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, lose: Callable[[Path], None]
) -> None:
    after, incarnation, _ = await killed(tmp_path)
    lose(after)
    with caplog.at_level(logging.CRITICAL):
        async with running(after) as here:
            began = here.hq.engine.incarnation
            assert began != incarnation
    assert "The store lost commits" in caplog.text
    caplog.clear()
    async with running(after) as here:  # once: it is known now
        assert here.hq.engine.incarnation == began
    assert not caplog.text


def nothing(_: Path) -> None:
    pass


def missing(directory: Path) -> None:
    (directory / FILE).unlink()


def damaged(directory: Path) -> None:
    raw = bytearray((directory / FILE).read_bytes())
    raw[3] ^= 1  # an entry far ahead
    (directory / FILE).write_bytes(raw)


def cut_off(directory: Path) -> None:
    (directory / FILE).write_bytes((directory / FILE).read_bytes()[:-1])


def older(directory: Path) -> None:
    """What a power cut may leave of a file that is never synced."""
    shutil.copy(directory.parent / "earlier" / FILE, directory / FILE)


@pytest.mark.parametrize("change", [nothing, missing, damaged, cut_off, older])
async def test_a_mark_that_is_not_ahead_claims_no_loss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Callable[[Path], None]
) -> None:
    after, incarnation, _ = await killed(tmp_path)
    change(after)
    async with running(after) as here:
        assert here.hq.engine.incarnation == incarnation
    assert "lost commits" not in caplog.text


async def test_another_entry_in_its_place_is_a_loss(tmp_path: Path) -> None:
    """An HQ that went on from an earlier state has as many entries again, but others."""
    after, incarnation, earlier = await killed(tmp_path)
    mark = (after / FILE).read_bytes()
    (earlier / FILE).unlink()
    async with running(earlier) as here:
        await publish(here, SENT)
    (earlier / FILE).write_bytes(mark)
    async with running(earlier) as here:
        assert here.hq.engine.incarnation != incarnation


@pytest.mark.skipif(not is_root(), reason="only root can make a file for another user")
def test_a_mark_that_root_made_stays_writable_for_hqs_user(tmp_path: Path) -> None:
    """As `clock confirm --hq` may be run: HQ would never write it again, and notice no loss."""
    ids = 4321, 4322
    give_to(tmp_path, ids)
    LogMark(tmp_path / FILE).write(LogRow(1, 2, b"", b"", bytes(32), bytes(16)))
    found = (tmp_path / FILE).stat()
    assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (*ids, 0o600)


def test_an_entry_that_was_not_committed_leaves_no_mark(tmp_path: Path) -> None:
    """Or a failed commit would be taken for a lost one."""
    log = TransparencyLog(nacl.signing.SigningKey.generate(), LogMark(tmp_path / FILE))
    log.entry(Effects(Changes(noted=1)), 1)
    assert not (tmp_path / FILE).exists()
    log.committed()
    assert (tmp_path / FILE).exists()


async def test_a_postgresql_that_lost_commits_is_noticed(
    tmp_path: Path, postgresql: postgres.Server
) -> None:
    """As after the promotion of a standby that lagged behind, while HQ was down."""
    schema = postgres.schema()
    opener = at(postgresql, schema)
    async with running(tmp_path / "hq", opener=opener) as here:
        incarnation = here.hq.engine.incarnation
        await publish(here, 2)
    async with running(tmp_path / "hq", opener=opener) as here:
        assert here.hq.engine.incarnation == incarnation
    postgresql.sql(f"DELETE FROM {schema}.log WHERE entry = (SELECT max(entry) FROM {schema}.log)")
    async with running(tmp_path / "hq", opener=opener) as here:
        assert here.hq.engine.incarnation != incarnation
