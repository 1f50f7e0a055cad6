"""A client whose clock is wrong deletes nothing, refuses nothing for good, and says so."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox import clock
from cipherbox.client.hq_time import HqClock, deletion_ms, shown_ms, stamp_ms
from cipherbox.client.inbox.inbox import Inbox
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.publishing.files import send_file, send_unfinished
from cipherbox.client.receiving.attempts import LATER_MAX_S, Failure
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.envelope.ids import id_time_ms
from cipherbox.errors import ClockSkew, NotValidNow, TooOld
from cipherbox.limits import LIMITS
from tests.client.test_inbox import received
from tests.client.test_log_order import running
from tests.client.test_looking import asked
from tests.client.test_outbox import fresh
from tests.server.clocks import shifted_clock

DAY, HOUR = 86_400_000, 3_600_000
AT = 1_800_000_000_000


def test_ids_have_hqs_time_while_the_clock_is_wrong(tmp_path: Path) -> None:
    wall, elapsed, said = [AT], [5.0], list[str]()
    here = HqClock(tmp_path, said.append, lambda: wall[0], lambda: elapsed[0])
    wall[0] += 399 * DAY
    assert here.now_ms() == wall[0]  # HQ has shown nothing
    here.shown(AT)
    elapsed[0] += 60
    assert here.now_ms() == AT + 60_000
    (line,) = said
    assert "9576.0 hours ahead of HQ's" in line
    assert "timedatectl set-ntp true" in line
    here.shown(AT + 60_000)  # the next connection
    assert len(said) == 1
    wall[0] = AT + 60_000 + HOUR
    assert here.now_ms() == wall[0]
    here.shown(AT + 60_000)
    wall[0] = AT - 2 * HOUR
    here.shown(AT)
    assert "2.0 hours behind HQ's" in said[1]


def test_a_log_that_is_ahead_is_no_reason_for_a_warning_while_hq_shows_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A time that was confirmed by mistake stays in the log until the clock has reached it."""
    monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _: AT + 500 * DAY)
    said = list[str]()
    here = HqClock(tmp_path, said.append, lambda: AT, lambda: 5.0)
    here.shown(AT)
    assert here.now_ms() == AT
    assert said == []
    alone = HqClock(tmp_path, said.append, lambda: AT, lambda: 5.0)
    for _ in range(2):
        assert alone.now_ms() == AT
    (line,) = said
    assert "before the time that HQ's log has shown here" in line
    alone.shown(AT)
    assert alone.warning == ""


def test_a_home_without_a_time_of_hq_deletes_nothing(tmp_path: Path) -> None:
    assert shown_ms(tmp_path) == deletion_ms(tmp_path) == 0
    assert abs(stamp_ms(tmp_path) - clock.now_ms()) < HOUR
    (tmp_path / "log.sqlite3").write_bytes(b"not a database" * 100)
    assert shown_ms(tmp_path) == 0


def test_one_clock_far_ahead_deletes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = clock.now_ms()
    for hq, own in ((AT * 2, now), (now, AT * 2)):  # HQ's clock, this machine's
        monkeypatch.setattr("cipherbox.client.hq_time.shown_ms", lambda _, hq=hq: hq)
        assert deletion_ms(tmp_path, own) == now
        assert stamp_ms(tmp_path, own) == AT * 2


async def test_a_clock_far_ahead_forgets_no_ids_and_no_keys(hq: Any) -> None:
    """The inbox refused every envelope from then on, and keys that others seal to were gone."""
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        await lab.publish("one", to="CA-RC")
        assert await Receiver(center).run(count=1) == 1
        home = center.home.path
        assert abs(shown_ms(home) - clock.now_ms()) < HOUR
        await center.key_lifecycle.rotate()
        retired = center.home.identity.retired
        assert retired
        real = clock.now_ms()
        with shifted_clock(900):
            with closing(Inbox(home)) as inbox:
                inbox.tidy()
                assert inbox.watermark < real - LIMITS.watermark_ms + HOUR
                assert not inbox.too_old(received(b"x").envelope_id)
            center.key_lifecycle._destroy()
            assert center.home.identity.retired == retired


@pytest.mark.parametrize("days", [900, -20])
async def test_a_client_that_takes_hqs_certificate_for_invalid_is_told_of_the_clock(
    hq: Any, days: int
) -> None:
    """It was told to ask for a new token."""
    with shifted_clock(days):
        with pytest.raises(NotValidNow, match="is not valid now"):
            async with hq.client("FL-LAB") as lab:
                await lab.list("queues")


async def test_a_watermark_that_a_wrong_clock_moved_is_set_back(hq: Any) -> None:
    async with hq.client("CA-RC") as center:
        home = center.home.path
        said: list[str] = []
        with closing(Inbox(home)) as inbox:
            inbox.forget(clock.now_ms() + 100 * DAY)
        with closing(Inbox(home, say=said.append)) as inbox:
            assert not inbox.too_old(received(b"x").envelope_id)
            assert clock.now_ms() - inbox.watermark > LIMITS.watermark_ms - HOUR
        assert len(said) == 1
        with closing(Inbox(home, say=said.append)):
            assert len(said) == 1


async def test_a_client_far_ahead_still_sends_and_is_told(hq: Any) -> None:
    said: list[str] = []
    with shifted_clock(20):  # more than that, and it does not accept HQ's revocation list
        async with hq.client("FL-LAB", keep_trying=True, on_event=said.append) as lab:
            lab.hq_clock.shown(clock.now_ms() - 20 * DAY)
            envelope_id = lab.sealer._ids.next()
    assert abs(id_time_ms(envelope_id) - clock.now_ms()) < HOUR
    assert any("480.0 hours ahead of HQ's" in line for line in said)


async def test_a_time_of_hq_that_was_corrected_is_not_used_any_more(hq: Any) -> None:
    """HQ showed it on this connection.  Every later id was refused, until the program ended."""
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        lab.hq_clock.shown(clock.now_ms() + 3 * DAY)
        with pytest.raises(ClockSkew):
            await lab.publish("by a time of HQ that was wrong", to="CA-RC")
        await lab.publish("by the right one", to="CA-RC")
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1


def test_only_a_refusal_that_contradicts_it_ends_the_use_of_hqs_time(tmp_path: Path) -> None:
    here = HqClock(tmp_path, lambda _: None, lambda: AT, lambda: 5.0)
    here.shown(AT + 3 * DAY)
    here.refused(AT + 5 * DAY)  # of an id by another clock: it is too new for this time, too
    assert here.now_ms() == AT + 3 * DAY
    here.refused(AT + 3 * DAY)
    assert here.now_ms() == AT
    assert not here.wrong_by_ms


@pytest.mark.parametrize("error", [ClockSkew, TooOld])
async def test_what_hq_refuses_for_its_time_waits_until_the_clock_is_right(
    hq: Any, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stood aside, each envelope to be retried by hand."""
    monkeypatch.setattr("cipherbox.client.outbox.sender.LOOK_S", 0.1)
    monkeypatch.setattr("cipherbox.client.outbox.sender.ABANDONED_MS", 0)
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        server = running(lab)
        real, state = server.engine.clock_ms, server.engine.broker.state
        if error is ClockSkew:
            server.engine.clock_ms = lambda: real() - 399 * DAY
        else:
            state.watermark = clock.now_ms() + DAY
        with pytest.raises(error, match="is kept in the outbox and is sent when"):
            await lab.publish("by a wrong clock", to="CA-RC")
        server.engine.clock_ms, state.watermark = real, 0
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1


async def test_a_file_waits_while_a_wrong_clock_takes_its_recipients_keys_for_not_valid(
    hq: Any, tmp_path: Path
) -> None:
    """It was stopped, to be sent again by hand."""
    (tmp_path / "scan.tif").write_bytes(b"x")
    async with hq.client("FL-LAB") as lab, hq.client("CA-RC") as center:
        with shifted_clock(-399):
            with pytest.raises(ClockSkew, match=r"begins only .* differs from HQ's"):
                await send_file(lab, tmp_path / "scan.tif", ["scan.tif"], ["CA-RC"], "")
        assert await send_unfinished(lab) == []
        with trio.fail_after(60):
            assert await Receiver(center).run(count=1) == 1


def test_rows_of_a_clock_that_was_ahead_are_sent(tmp_path: Path) -> None:
    """They would have waited until the clock reached the time they were written at."""
    with closing(Outbox(tmp_path)) as outbox:
        with shifted_clock(399):
            outbox.write([fresh(1)])
        assert len(outbox.waiting(0, clock.now_ms(), 10)) == 1
        outbox.write([fresh(2)])
        assert len(outbox.waiting(0, clock.now_ms() - 30_000, 10)) == 1  # that one is being sent


def test_a_pause_does_not_outlast_the_clock_it_began_by() -> None:
    with shifted_clock(399):
        failure = Failure().after(later=True)
    assert failure.pause_s <= LATER_MAX_S


async def test_status_says_that_the_clock_is_wrong(hq: Any, capfd: Any) -> None:
    async with hq.client("FL-LAB") as lab:
        home = lab.home.path
        assert lab.hq_clock.warning == ""
    await hq.stop()
    settings = home / "client.toml"
    text = settings.read_text().replace("tries = 3", "tries = 1")
    settings.write_text(text.replace("timeout_s = 10.0", "timeout_s = 0.5"))
    with shifted_clock(-20):
        done = await trio.to_thread.run_sync(asked, home, "status")
        shown = json.loads((await trio.to_thread.run_sync(asked, home, "status", "--json")).stdout)
    assert "before the time that HQ's log has shown here" in done.output + capfd.readouterr().err
    assert shown["clock_ahead_ms"] == 0  # HQ showed none now
