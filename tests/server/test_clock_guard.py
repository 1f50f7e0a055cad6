"""HQ's clock: what a wrong one does not do."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import attrs
import orjson
import pytest
import trio

from cipherbox import clock
from cipherbox.broker import model as m
from cipherbox.config.settings import ClockSettings
from cipherbox.envelope import transparency_log as log
from cipherbox.errors import (
    ClockDoubted,
    EnvelopeRefused,
    NotValidNow,
    StoreUnavailable,
    TooOld,
)
from cipherbox.server import app
from cipherbox.server.ca.credentials import Credentials
from cipherbox.server.clock_guard import ClockGuard, Mark, Recorded, recorded
from cipherbox.server.connection.sender_keys import SenderKeys
from cipherbox.server.directory.bundles import Registration
from cipherbox.server.hq import HQ
from cipherbox.server.operations.alerts import alerts
from cipherbox.server.operations.backup import back_up, restore
from cipherbox.server.operations.offline import confirm_clock
from cipherbox.store.port import CLOCK
from cipherbox.store.sqlite.store import SqliteStore, open_store
from cipherbox.wire import frames
from tests.client.waiting import until
from tests.server.clocks import confirmed_clock, shifted_clock
from tests.server.hq import BIG, Raw, Running, configured, running
from tests.server.inline import Noted
from tests.server.test_reload import admin_of
from tests.store.suite import incoming

DAY, HOUR = 86_400_000, 3_600_000
STEP = HOUR + 60_000  # a sixtieth more
AT = 1_800_000_000_000


@attrs.define
class Machine:
    """A machine's two clocks."""

    wall: int = AT
    elapsed: float = 1000.0
    settings: ClockSettings = attrs.Factory(ClockSettings)

    def pass_by(self, ms: int) -> None:
        self.wall += ms
        self.elapsed += ms / 1000

    def guard(
        self, mark: Mark | None = None, log_at: int = 0, boot: str = "b1", database_at: int = 0
    ) -> ClockGuard:
        return ClockGuard(
            lambda: self.settings,
            Recorded(mark, log_at, database_at),
            lambda: self.wall,
            lambda: self.elapsed,
            boot,
        )


@pytest.mark.parametrize("step", [-399 * DAY, -STEP - 1, STEP + 1, 399 * DAY])
def test_a_step_is_doubted_and_the_expected_time_is_used(step: int) -> None:
    here = Machine()
    guard = here.guard()
    here.pass_by(90 * DAY)  # without a mark, and without a step
    assert guard.now_ms() == here.wall
    assert not guard.doubt
    here.wall += step
    here.pass_by(5000)
    assert guard.now_ms() == AT + 90 * DAY + 5000
    assert guard.doubt
    assert "cipherbox clock confirm" in guard.doubt.remedy
    assert guard.mark(0) is None
    with pytest.raises(ClockDoubted):
        guard.require()
    here.wall -= step
    assert guard.now_ms() == AT + 90 * DAY + 5000
    assert not guard.doubt


@pytest.mark.parametrize("step", [-STEP, -HOUR, -1, 1, HOUR, STEP])
def test_a_small_step_is_followed(step: int) -> None:
    here = Machine()
    guard = here.guard()
    here.wall += step
    assert guard.now_ms() == AT + step
    assert not guard.doubt


@pytest.mark.parametrize("step", [HOUR, HOUR - 1, HOUR + 5000, -HOUR, 1 - HOUR, -HOUR - 5000])
@pytest.mark.parametrize("starts", [False, True])
def test_a_clock_that_was_off_by_an_hour_can_go_back(step: int, starts: bool) -> None:
    """As one that was set to another time zone: it was trusted, and its end was doubted until an
    admin confirmed it, since the two clocks are not read at the same instant.  A run of `prove`
    stood still for it.
    """
    here = Machine()
    guard = here.guard()
    mark = guard.mark(0)
    here.wall += step
    guard.now_ms()
    if starts:
        guard = here.guard(mark)
    assert not guard.doubt
    for late in (2, 1800, -1800, 0):
        mark = guard.mark(0) or mark
        here.pass_by(1_800_000)
        here.wall += late
        guard.now_ms()
    here.wall -= step + 2
    assert abs(guard.now_ms() - here.wall) < 10
    assert not guard.doubt
    assert not here.guard(mark).doubt


def test_a_clock_that_was_off_by_50_minutes_and_then_by_an_hour_can_go_back() -> None:
    """HQ recorded the first, and took the second for a small step from there."""
    here = Machine()
    mark = here.guard().mark(0)
    for off in (-50, 0, -60, 60, 50, 0):
        here.wall = AT + int(off * 60_000)
        mark = here.guard(mark).mark(0) or mark
    assert not here.guard(mark).doubt


@pytest.mark.parametrize("recorded_off", [0, 60_000, HOUR // 2])
@pytest.mark.parametrize("back_to", [0, -60_000, -HOUR + 10_000])
@pytest.mark.parametrize("starts", ["right", "wrong", "doubted"])
def test_a_clock_that_was_an_hour_ahead_can_go_back_at_a_start_after_a_reboot(
    recorded_off: int, back_to: int, starts: str
) -> None:
    """The log's newest entry was an hour ahead.  HQ, and a standby that took over, doubted the
    right time until an admin confirmed it.
    """
    here = Machine(AT + recorded_off)
    guard = here.guard()
    mark = guard.mark(AT - DAY)
    assert mark
    here.wall = AT + recorded_off + HOUR
    log_at = guard.now_ms()
    assert not guard.doubt
    here.elapsed, right = 5.0, AT + recorded_off + back_to
    if starts == "right":
        here.wall = right
    elif starts == "doubted":
        here.wall += 399 * DAY
    guard = here.guard(mark, log_at, "b2")
    assert bool(guard.doubt) is (starts == "doubted")
    if starts == "doubted":  # however long
        here.elapsed += 2 * HOUR / 1000
        right += 2 * HOUR
    here.wall = right
    assert guard.now_ms() == right
    assert not guard.doubt
    assert not here.guard(guard.mark(log_at), log_at, "b3").doubt
    # the records hold: no more than that
    here.wall, here.elapsed = AT + recorded_off - STEP, 5.0
    assert here.guard(mark, log_at, "b2").doubt


def test_many_small_steps_are_doubted_in_the_end() -> None:
    here = Machine()
    guard = here.guard()
    for _ in range(3):
        here.wall += HOUR // 2
        guard.now_ms()
    assert guard.doubt


def test_drift_is_followed_from_mark_to_mark() -> None:
    here = Machine()
    guard = here.guard()
    for _ in range(100):
        here.pass_by(HOUR)
        here.wall += HOUR // 20
        assert guard.mark(0) is not None
    assert not guard.doubt


def test_a_confirmed_clock_is_right() -> None:
    here = Machine()
    guard = here.guard()
    here.wall += 500 * DAY
    guard.now_ms()
    guard.confirm()
    assert not guard.doubt
    assert guard.now_ms() == here.wall


MARK = Mark(AT, AT - DAY, "b1", 500.0)


@pytest.mark.parametrize(
    ("boot", "elapsed", "wall", "log_at", "doubted"),
    [
        # the same boot: the count says how long HQ was stopped
        ("b1", 500 + 30 * 86_400, AT + 30 * DAY, 0, False),
        ("b1", 500 + 30, AT + 500 * DAY, 0, True),
        ("b1", 500 + 30, AT + 2 * HOUR, 0, True),
        ("b1", 500 + 30, AT - 2 * HOUR, 0, True),
        ("b1", 400, AT + DAY, 0, False),  # less than was counted: another boot of that name
        # another boot: only the records say something
        ("b2", 5, AT + 3 * DAY, 0, False),
        ("b2", 5, AT + 7 * DAY + 2 * HOUR, 0, True),
        ("b2", 5, AT + 31 * DAY, 0, True),
        ("b2", 5, AT + 500 * DAY, 0, True),
        ("b2", 5, AT - 2 * HOUR, 0, True),
        ("", 5, AT + 500 * DAY, 0, True),
        # the log went on after the mark, or stands where a wrong clock once set it
        ("b2", 5, AT + 9 * DAY, AT + 3 * DAY, False),
        ("b2", 5, AT, AT + 3 * DAY, True),
        ("b2", 5, AT + DAY, AT - DAY, False),
    ],
)
def test_a_start_is_compared_with_what_was_recorded(
    boot: str, elapsed: float, wall: int, log_at: int, doubted: bool
) -> None:
    guard = Machine(wall, elapsed).guard(Mark.decode(MARK.encode()), log_at or MARK.log_at, boot)
    assert bool(guard.doubt) is doubted
    if not doubted:
        assert guard.now_ms() == wall


def test_a_clock_that_was_ahead_after_a_reboot_may_be_corrected() -> None:
    """A machine that keeps local time starts two hours ahead; then the network corrects it. That
    was doubted until an admin confirmed it.
    """
    for late, doubted in ((60, False), (3599, False), (3601, True)):
        here = Machine(AT + 2 * DAY + 2 * HOUR, 5)
        guard = here.guard(MARK, 0, "b2")
        assert guard.mark(0)
        here.pass_by(late * 1000)
        guard.now_ms()
        here.wall -= 2 * HOUR + 300
        guard.now_ms()
        assert bool(guard.doubt) is doubted
    here = Machine(AT + 2 * HOUR, 5)
    guard = here.guard(MARK, 0, "b2")
    here.wall -= 2 * HOUR
    assert guard.now_ms() == here.wall == AT
    for wall, doubted in ((AT + 5 * DAY, False), (AT - 2 * HOUR, True), (AT, False)):
        here.wall = wall  # not before the records
        assert guard.now_ms() == (AT + 5 * DAY if doubted else wall)
        assert bool(guard.doubt) is doubted


def test_a_clock_that_stood_still_while_the_machine_was_off_may_be_corrected() -> None:
    """One without power begins where it stopped, until the network sets it: that was doubted until
    an admin confirmed it, if HQ was off for more than an hour.
    """
    here = Machine(AT + 2000, 5)
    mark: Mark | None = MARK
    for _ in range(2):  # also if it starts again meanwhile
        guard = here.guard(mark, 0, "b2")
        mark = guard.mark(0)
        here.pass_by(20_000)
    here.wall += 5 * DAY
    assert guard.now_ms() == here.wall
    assert not guard.doubt
    here.wall += 3 * DAY  # the records are not so old
    assert guard.now_ms() < here.wall
    assert guard.doubt
    here.wall -= 3 * DAY
    for _ in range(2):
        guard.now_ms()
        here.pass_by(HOUR)
    assert guard.mark(0) == Mark(here.wall, 0, "b2", here.elapsed)
    here.wall += 2 * HOUR  # it has settled
    guard.now_ms()
    assert guard.doubt


def test_a_right_clock_that_is_set_wrong_soon_after_a_reboot_can_go_back() -> None:
    """Back by an hour it was trusted and recorded, if the newest record was as old as that."""
    here = Machine(AT + HOUR, 5)
    guard = here.guard(MARK, 0, "b2")
    mark = guard.mark(0)
    for step in (-HOUR - 4, -2 * HOUR, 3 * DAY):
        here.wall += step
        here.pass_by(5000)
        guard.now_ms()
        mark = guard.mark(0) or mark
        here.wall -= step
        assert guard.now_ms() == here.wall
        assert not guard.doubt
        assert not here.guard(mark, 0, "b2").doubt


@pytest.mark.parametrize("back", [HOUR // 2, HOUR - 5000, HOUR])
@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("boot", ["b2", "b3"])
def test_a_clock_that_goes_back_after_a_reboot_was_wrong_before_or_is_now(
    back: int, marked: bool, boot: str
) -> None:
    """Back by an hour it was trusted, but what was recorded stayed an hour ahead."""
    here = Machine(AT + 2 * HOUR, 5)
    guard = here.guard(MARK, 0, "b2")
    mark = guard.mark(0)
    here.wall -= back
    guard.now_ms()
    if marked:
        mark = guard.mark(0)
    assert mark
    here.pass_by(1000)
    assert not here.guard(Mark.decode(mark.encode()), 0, boot).doubt
    here.wall += back
    assert guard.now_ms() == here.wall
    assert not here.guard(Mark.decode(mark.encode()), 0, boot).doubt


def test_a_start_an_hour_behind_the_records_is_not_recorded() -> None:
    here = Machine(AT - HOUR + 20_000, 5)
    guard = here.guard(MARK, 0, "b2")
    assert not guard.doubt
    mark = guard.mark(0)
    here.wall += HOUR
    here.pass_by(5000)
    assert guard.now_ms() == here.wall
    assert not here.guard(mark, 0, "b2").doubt


def test_a_clock_that_was_corrected_by_an_hour_is_recorded_when_it_has_settled() -> None:
    here = Machine(AT + 2 * HOUR, 5)
    guard = here.guard(MARK, 0, "b2")
    guard.mark(0)
    here.wall -= HOUR
    guard.now_ms()
    here.pass_by(HOUR)
    mark = guard.mark(0)
    assert mark == Mark(here.wall, 0, "b2", 3605)
    here.wall -= STEP + 1
    guard.now_ms()
    assert guard.doubt  # it has settled


def test_a_mark_of_an_older_program_has_one_bound() -> None:
    value = b'{"at":1800000000000,"log_at":5,"boot":"b1","elapsed_s":1.5}'
    assert Mark.decode(value) == Mark(AT, 5, "b1", 1.5, 0, 0)


@pytest.mark.parametrize(
    ("database", "wall", "expected"),
    [
        (30_000, 31_000, 31_000),
        (30_000, 5 * DAY, 30_000),  # a standby five days ahead took over
        (30_000, -2 * HOUR, 30_000),
        (3 * DAY, 3 * DAY + 1000, 3 * DAY + 1000),  # both were off
        # the database's clock is wrong: it does not count
        (-2 * HOUR, 3 * DAY, 3 * DAY),
        (30 * DAY, 3 * DAY, 3 * DAY),
        # on the same machine, both wrong
        (399 * DAY, 399 * DAY, 0),
    ],
)
def test_another_machine_that_takes_over_is_compared_with_the_databases_clock(
    database: int, wall: int, expected: int
) -> None:
    """It was right by up to a week, and its lists and certificates began only then."""
    guard = Machine(AT + wall, 5).guard(MARK, AT, "b2", AT + database)
    assert guard.now_ms() == AT + expected
    assert bool(guard.doubt) is (wall != expected)


def test_the_databases_clock_counts_though_the_log_is_an_hour_ahead() -> None:
    """The machine that wrote it was ahead, and a minute more than the one that takes over."""
    guard = Machine(AT + 5 * DAY, 5).guard(MARK, AT + HOUR, "b2", AT - 60_000)
    assert guard.now_ms() == AT - 60_000


def test_a_database_whose_clock_was_wrong_at_a_takeover_is_asked_again() -> None:
    """The right clock of the HQ that took over was doubted until an admin confirmed it."""
    here = Machine(AT + 30_000, 5)
    guard = here.guard(MARK, AT, "b2", AT + 2 * HOUR)
    assert "2.0 hours behind the clock of the database's server" in guard.doubt.what
    assert "of HQ's machine and of the database's server" in guard.doubt.remedy
    here.pass_by(5000)
    guard.consult(AT + 2 * HOUR + 5000)
    assert guard.now_ms() == AT + 2 * HOUR + 5000
    guard.consult(AT + 35_500)
    assert guard.now_ms() == here.wall
    assert not guard.doubt
    here.wall += 3 * DAY
    guard.consult(AT + 35_500)
    guard.now_ms()
    assert guard.doubt


def test_a_database_on_the_same_machine_is_corrected_with_it() -> None:
    """Both were ahead after a reboot. The right time was doubted until an admin confirmed it."""
    here = Machine(AT + 2 * HOUR, 5)
    guard = here.guard(MARK, AT, "b2", here.wall)
    mark = guard.mark(0)
    assert not guard.doubt
    here.wall -= 2 * HOUR
    for again in (guard, here.guard(mark, AT + 2 * HOUR, "b2", here.wall)):
        again.consult(here.wall)
        assert again.now_ms() == here.wall
        assert not again.doubt


def test_what_ended_a_doubt_is_recorded_before_the_next_start() -> None:
    here = Machine(AT + 400 * DAY, 5)
    guard = here.guard(MARK, AT, "b2")
    assert not guard.unrecorded
    here.wall = AT + 3 * DAY
    log_at = guard.now_ms()
    assert guard.unrecorded
    mark = guard.mark(log_at)
    assert not guard.unrecorded
    here.wall -= 2 * DAY
    assert not here.guard(mark, log_at, "b2").doubt


def test_the_same_machine_knows_better_than_the_database() -> None:
    guard = Machine(AT + 30_000, 530).guard(MARK, AT, "b1", AT + 3 * HOUR)
    assert not guard.doubt


def test_the_right_clock_after_a_wrong_start_ends_the_doubt() -> None:
    """HQ was stopped for three days, which nobody knew until the clock was right."""
    here = Machine(AT + 500 * DAY, 5)
    guard = here.guard(MARK, 0, "b2")
    assert guard.now_ms() == AT
    here.wall = AT + 3 * DAY
    assert guard.now_ms() == AT + 3 * DAY
    assert not guard.doubt


def test_older_data_says_only_that_time_does_not_go_back() -> None:
    assert not Machine(AT + 90 * DAY).guard(None, AT).doubt
    assert Machine(AT - 2 * HOUR).guard(None, AT).doubt
    assert not Machine(AT).guard(None, 0).doubt


def test_a_setting_widens_it() -> None:
    settings = ClockSettings(step_s=86_400, stopped_days=0)
    here = Machine(AT + 900 * DAY, 5, settings)
    guard = here.guard(MARK, 0, "b2")
    assert not guard.doubt
    here.wall += DAY // 2
    guard.now_ms()
    assert not guard.doubt


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b'{"at": 1}', b'{"at": "x"}'])
def test_an_unreadable_mark_is_none(value: bytes | None) -> None:
    assert Mark.decode(value) is None


# -- in a running HQ -------------------------------------------------------------------------------


async def publish(r: Running, lab: Raw) -> object:
    return await lab.publish(r.people["FL-LAB"].seal(r.people["CA-RC"]).raw)


@pytest.mark.parametrize("days", [399, -399])
async def test_a_step_stops_acceptance_and_issuing_and_nothing_else(
    tmp_path: Path, days: int
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, center = await r.client("FL-LAB"), await r.client("CA-RC")
        assert isinstance(await publish(r, lab), frames.Confirm)
        list_before, server_before = r.hq.trust.crl(), r.hq.trust.server
        with shifted_clock(days):
            refused = await publish(r, lab)
            assert isinstance(refused, frames.Error)
            assert refused.code == ClockDoubted.code
            assert refused.retryable
            # deliveries and acks continue
            await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG)
            (entry,) = (await center.next()).entries
            acked = await center.ask(frames.Ack, "box.CA-RC", [frames.Range(entry[0], 1)])
            assert acked.count == 1
            with pytest.raises(ClockDoubted):
                r.hq.trust.issue(r.people["FL-LAB"].key.public_key(), "FL-LAB")
            await r.hq.certificate.renew_if_due()
            assert r.hq.trust.crl() == list_before
            assert r.hq.trust.server == server_before
            (alert,) = [a for a in alerts(r.hq) if a.name == "clock"]
            assert alert.severity == "critical"
            assert any("clock is in doubt" in why for why in r.hq.unready())
        assert isinstance(await publish(r, lab), frames.Confirm)
        assert not any(a.name == "clock" for a in alerts(r.hq))
        wrong = abs(days) * DAY / 2
        rows = r.hq.store.log(0, 1000, BIG)
        assert all(abs(row.at - clock.now_ms()) < wrong for row in rows)


async def test_hq_asks_a_database_again_whose_clock_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "hq"):
        pass
    off = 2 * HOUR
    monkeypatch.setattr(clock, "boot_id", lambda: "another machine")
    monkeypatch.setattr(SqliteStore, "database_ms", lambda _: clock.now_ms() + off)
    monkeypatch.setattr(app, "RENEW_S", 0.02)
    async with running(tmp_path / "hq") as r:
        assert r.hq.clock.doubt
        off = 0
        with trio.fail_after(30):
            while r.hq.clock.doubt:
                await trio.sleep(0.01)


async def test_a_mark_that_could_not_be_stored_is_stored_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an hour later: a reboot before would doubt a right clock."""
    monkeypatch.setattr(app, "RENEW_S", 0.02)
    async with running(tmp_path / "hq") as r:
        await until(lambda: r.hq.store.get_setting(CLOCK) is not None)  # the start's
        before = r.hq.store.get_setting(CLOCK)

        def fails(*_: object) -> None:
            raise StoreUnavailable("for a test")

        with monkeypatch.context() as patch:
            patch.setattr(r.hq.store, "put_setting", fails)
            with pytest.raises(StoreUnavailable):
                await r.hq.mark_clock()
        await until(lambda: r.hq.store.get_setting(CLOCK) != before)


async def test_what_expires_does_not_expire_by_a_step(tmp_path: Path) -> None:
    async with running(tmp_path / "hq") as r:
        lab, _ = await r.client("FL-LAB"), await r.client("CA-RC")
        sealed = r.people["FL-LAB"].seal(r.people["CA-RC"], expires_at=clock.now_ms() + 2 * DAY)
        assert isinstance(await lab.publish(sealed.raw), frames.Confirm)
        with shifted_clock(399):
            r.hq.engine.post(m.Sweep())
            await r.hq.engine.idle()
        assert r.hq.engine.broker.state.queues["box.CA-RC"].depth == 1


@pytest.mark.parametrize(("days", "kept_days", "rebooted"), [(500, 400, False), (31, 30, True)])
async def test_one_start_with_the_clock_ahead_changes_nothing(
    tmp_path: Path, days: int, kept_days: int, rebooted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention would have run at once, with a watermark of the future."""
    directory = tmp_path / "hq"
    async with running(directory) as r:
        lab, center = await r.client("FL-LAB"), await r.client("CA-RC")
        await publish(r, lab)
        await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG)
        (entry,) = (await center.next()).entries
        await center.ask(frames.Ack, "box.CA-RC", [frames.Range(entry[0], 1)])
        people = r.people
    text = (directory / "cipherbox.toml").read_text()
    (directory / "cipherbox.toml").write_text(
        text.replace("metadata_days = 400", f"metadata_days = {kept_days}")
    )
    with monkeypatch.context() as another:
        if rebooted:
            another.setattr(clock, "boot_id", lambda: "another boot")
        with shifted_clock(days):
            async with running(directory) as r:
                await r.hq.retention.step()
                assert r.hq.clock.doubt
                assert r.hq.engine.broker.state.watermark == 0
    async with running(directory) as r:
        r.people = people
        assert not r.hq.clock.doubt
        assert isinstance(await publish(r, await r.client("FL-LAB")), frames.Confirm)


async def test_retention_deletes_a_day_at_a_time_and_says_how_far_it_is(tmp_path: Path) -> None:
    config = configured(tmp_path / "hq")
    with closing(open_store(config.directory)) as store:
        start = clock.now_ms()
        shift = [0.0]
        hq = HQ(config, store, clock_ms=lambda: clock.now_ms() + int(shift[0] * DAY))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hq.engine.run)
            for name in ("A", "B"):
                await hq.engine.call(lambda n, name=name: m.AddClient(0, "", n, name, "client"))  # type: ignore[misc]
            for day in range(4):
                shift[0] = day
                hq.clock.confirm()
                number = hq.engine.attach(Noted("A"))
                item = incoming(day + 1)._replace(envelope_id=_id(hq.clock_ms(), day))
                await hq.engine.submit(m.Publish(number, "A", [item]), 10)
                await hq.engine.submit(m.Consume(number, "B", 1, 1, "box.B", 9, 1 << 30))
                await hq.engine.submit(m.Ack(number, "B", 2, "box.B", [(day + 1, 1)]))
                await hq.engine.idle()

            def left() -> int:
                return store.db.execute("SELECT count(*) FROM envelopes").fetchone()[0]  # type: ignore[no-any-return]

            assert left() == 4
            shift[0] = 500.5
            hq.clock.confirm()
            # the log has no entry of that time
            await hq.retention.step()
            assert left() == 4
            await hq.engine.call(lambda n: m.EnrolHere(0, "", n, "C", "client"))
            for rest in (3, 2, 1):
                await hq.retention.step()
                assert left() == rest
                assert hq.engine.broker.state.watermark < start + (4 - rest) * DAY + HOUR
                (alert,) = [a for a in alerts(hq) if a.name == "retention"]
                assert f"{98 + rest} days" in alert.text or f"{97 + rest} days" in alert.text
            await hq.retention.step()
            assert left() == 0
            assert not [a for a in alerts(hq) if a.name == "retention"]
            nursery.cancel_scope.cancel()


def _id(at: int, index: int) -> bytes:
    return at.to_bytes(6, "big") + bytes([0x70, 0, 0x80]) + bytes(6) + bytes([index])


# -- what an admin decides -------------------------------------------------------------------------


def acts(r: Running) -> list[tuple[str, str, dict[str, object]]]:
    """What the signed log says that admins did."""
    found = []
    for row in r.hq.store.log(0, 1000, BIG):
        for group in log.decode_groups(row.body):
            if group.kind == log.ACTS:
                found += [tuple(act) for act in orjson.loads(group.payload)]
    return found


async def clock_row(admin: Raw) -> dict[str, object]:
    answer = await admin.ask(frames.List, "clock", "", "")
    (row,) = orjson.loads(answer.rows)
    return row  # type: ignore[no-any-return]


async def test_an_admin_confirms_the_clock_and_the_next_start_knows_it(tmp_path: Path) -> None:
    directory = tmp_path / "hq"
    with shifted_clock(0):
        async with running(directory) as r:
            lab = await r.client("FL-LAB")
            await r.person("CA-RC")
            boss = await admin_of(r)
            clock.now_s = lambda before=clock.now_s: before() + 300 * 86_400  # type: ignore[misc]
            row = await clock_row(boss)
            assert row["shows"] - row["used"] > 299 * DAY  # type: ignore[operator]
            assert "ahead of" in str(row["doubt"])
            other = await r.client("FL-LAB")
            assert await other.refused(frames.ConfirmClock) == "unexpected-frame"
            assert await lab.refused(frames.List, "clock", "", "") == "forbidden"
            assert isinstance(await boss.ask(frames.ConfirmClock), frames.Ok)
            assert (await clock_row(boss))["doubt"] == ""
            assert isinstance(await publish(r, lab), frames.Confirm)
            (act,) = [act for act in acts(r) if act[1] == "ConfirmClock"]
            assert act[0] in r.hq.engine.broker.state.rights.admins()
            assert act[2]["at"] - act[2]["expected"] > 299 * DAY  # type: ignore[operator]
        async with running(directory) as r:
            assert not r.hq.clock.doubt


async def test_a_crash_after_the_entry_only_asks_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is written first: a trusted clock always has one."""
    async with running(tmp_path / "hq") as r:
        boss = await admin_of(r)
        with shifted_clock(300):

            async def lost() -> None:
                raise StoreUnavailable("for a test")

            monkeypatch.setattr(r.hq, "mark_clock", lost)
            assert await boss.refused(frames.ConfirmClock) == StoreUnavailable.name
            monkeypatch.undo()
            guard = ClockGuard(
                lambda: r.hq.config.clock,
                recorded(r.hq.store),
                clock.now_ms,
                clock.elapsed_s,
                clock.boot_id(),
            )
            assert guard.doubt
            assert any(act[1] == "ConfirmClock" for act in acts(r))


async def test_an_admin_sets_a_wrong_watermark_back(tmp_path: Path) -> None:
    directory = tmp_path / "hq"
    async with running(directory) as r:
        lab = await r.client("FL-LAB")
        await r.person("CA-RC")
        boss = await admin_of(r)
        ahead = clock.now_ms() + 100 * DAY
        await r.hq.engine.call(lambda n: m.Retain(0, "", n, m.Cutoffs(ahead, 0, 0)))
        refused = await publish(r, lab)
        assert isinstance(refused, frames.Error)
        assert refused.code == TooOld.code
        other = await r.client("FL-LAB")
        assert await other.refused(frames.SetWatermark, 0) == "unexpected-frame"
        assert await boss.refused(frames.SetWatermark, clock.now_ms() + DAY) == "invalid-request"
        with shifted_clock(300):
            assert await boss.refused(frames.SetWatermark, 0) == "clock-doubted"
        assert isinstance(await boss.ask(frames.SetWatermark, 0), frames.Ok)
        assert isinstance(await publish(r, lab), frames.Confirm)
        (act,) = [act for act in acts(r) if act[1] == "SetWatermark"]
        assert act[2]["before"] == ahead
        people = r.people
    async with running(directory) as r:
        r.people = people
        assert r.hq.engine.broker.state.watermark == act[2]["watermark"]
        assert abs(r.hq.engine.broker.state.watermark - clock.now_ms() + 400 * DAY) < HOUR
        assert isinstance(await publish(r, await r.client("FL-LAB")), frames.Confirm)


async def test_after_a_wrong_future_was_confirmed_there_is_a_way_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HQ renewed its certificate by that time, so that no admin can connect to confirm the right
    one.
    """
    directory = tmp_path / "hq"
    # it asks the library for TLS, whose clock is not shifted here
    monkeypatch.setattr(Credentials, "try_out", lambda _: None)
    async with running(directory) as r:
        lab, _ = await r.client("FL-LAB"), await r.client("CA-RC")
        boss = await admin_of(r)
        with shifted_clock(399):
            assert isinstance(await boss.ask(frames.ConfirmClock), frames.Ok)
            assert isinstance(await publish(r, lab), frames.Confirm)
            await r.hq.certificate.renew_if_due()
            assert not r.hq.certificate.trouble
            await r.hq.engine.call(
                lambda n: m.Retain(0, "", n, m.Cutoffs(r.hq.clock.now_ms(), 0, 0))
            )
        with pytest.raises(NotValidNow, match="not valid yet"):
            await r.dial(r.people["CA-RC"])
        assert r.hq.clock.now_ms() > clock.now_ms() + 398 * DAY
        assert "behind" in str((await clock_row(boss))["doubt"])
        people, wrong = r.people, r.hq.audit.last_at
    confirmed = await confirm_clock(configured(directory))
    assert abs(confirmed - clock.now_ms()) < HOUR
    async with running(directory) as r:
        r.people = people
        boss = await admin_of(r)
        assert not r.hq.clock.doubt
        lab = await r.client("FL-LAB")
        assert (await publish(r, lab)).code == TooOld.code
        assert isinstance(await boss.ask(frames.SetWatermark, 0), frames.Ok)
        assert isinstance(await publish(r, lab), frames.Confirm)
        assert [act[0] for act in acts(r) if act[1] == "ConfirmClock"] == ["BOSS", ""]
        assert wrong <= r.hq.audit.last_at < wrong + 60_000  # it stands still, and proves the order
        center = await r.client("CA-RC")
        await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG)
        assert len((await center.next()).entries) == 2


# -- keys that have ended --------------------------------------------------------------------------


async def test_hq_refuses_what_keys_sign_that_have_ended(tmp_path: Path) -> None:
    """Recipients leave that to HQ: they decide by the order of its log."""
    async with running(tmp_path / "hq") as r:
        lab, _ = await r.client("FL-LAB"), await r.client("CA-RC")
        person = r.people["FL-LAB"]
        assert isinstance(
            await publish(r, lab), frames.Confirm
        )  # by a bundle that HQ does not know
        await r.hq.directory.register("FL-LAB", person.identity.bundle.raw)
        again = await r.client("FL-LAB")
        assert isinstance(await publish(r, again), frames.Confirm)
        with shifted_clock(29):
            r.hq.clock.confirm()
            assert isinstance(await publish(r, again), frames.Confirm)
        with shifted_clock(31):
            r.hq.clock.confirm()
            refused = await publish(r, again)
            assert isinstance(refused, frames.Error)
            assert refused.code == EnvelopeRefused.code
            assert "keys that ended on" in refused.message


async def test_one_connection_names_a_bounded_number_of_bundles() -> None:
    asked = []

    async def ends_at(client: str, name: bytes) -> int:
        asked.append(name)
        return 0

    keys = SenderKeys(ends_at, 8)
    for number in (*range(8), *range(8)):
        await keys.check(bytes(57) + bytes([number]) * 32, "A", 1)
    assert len(asked) == 8
    with pytest.raises(EnvelopeRefused, match="more than 8 key bundles"):
        await keys.check(bytes(57) + b"\xff" * 32, "A", 1)


@pytest.mark.parametrize("days", [500, -399])
async def test_an_hq_in_doubt_starts_and_its_clients_get_what_waits(
    tmp_path: Path, days: int
) -> None:
    """By the doubted clock every certificate has ended, or has not begun: HQ's own, too."""
    async with running(tmp_path / "hq") as r:
        lab, _ = await r.client("FL-LAB"), await r.client("CA-RC")
        assert isinstance(await publish(r, lab), frames.Confirm)
        people = r.people
    wrong = clock.now_ms() + days * DAY
    async with running(tmp_path / "hq", clock_ms=lambda: wrong) as r:
        r.people = people
        assert r.hq.clock.doubt
        center = await r.client("CA-RC")
        await center.ask(frames.Consume, 1, "box.CA-RC", 100, BIG)
        (entry,) = (await center.next()).entries
        assert (await center.ask(frames.Ack, "box.CA-RC", [frames.Range(entry[0], 1)])).count


async def test_a_restored_backup_may_be_of_any_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path / "hq") as r:
        lab, _ = await r.client("FL-LAB"), await r.client("CA-RC")
        assert isinstance(await publish(r, lab), frames.Confirm)
    back_up(configured(tmp_path / "hq"), tmp_path / "backup")
    restore(tmp_path / "backup", tmp_path / "again", None, lambda _, __: None)
    monkeypatch.setattr(clock, "boot_id", lambda: "another machine")
    later = clock.now_ms() + 90 * DAY
    async with running(tmp_path / "again", clock_ms=lambda: later) as r:
        assert not r.hq.clock.doubt


@pytest.mark.parametrize("days", [-20, 399, -399])
async def test_whatever_hqs_clock_shows_a_recorded_certificate_has_begun(
    tmp_path: Path, days: int
) -> None:
    """After a wrong time was confirmed and the clock set right again, an admin gets in."""
    async with running(tmp_path / "hq") as r:
        admin = (await r.person("HQ-ADMIN", role="admin")).chain[0]
        with shifted_clock(days):
            r.hq.clock.confirm()
            if days < 0:
                assert r.hq.trust.identify(admin) == "HQ-ADMIN"
        assert r.hq.trust.identify(admin) == "HQ-ADMIN"
        assert r.hq.clock.doubt


@pytest.mark.parametrize("hours", [-1, -0.5, 1])
async def test_a_step_of_an_hour_refuses_no_new_client(tmp_path: Path, hours: float) -> None:
    """HQ does not doubt it, or hardly: a certificate of a minute ago begins in 54 minutes."""
    async with running(tmp_path / "hq") as r:
        person = await r.person("FL-LAB")
        bundle = person.identity.make_bundle(person.key, person.chain, clock.now_ms())
        with shifted_clock(hours / 24):
            assert r.hq.trust.identify(person.chain[0]) == "FL-LAB"
            registered = await r.hq.directory.register("FL-LAB", bundle.raw)
            assert registered is Registration.NEW


async def test_a_clock_at_the_edge_is_in_doubt_once(caplog: pytest.LogCaptureFixture) -> None:
    """A step of the bound to the millisecond, with both clocks rounded: it came and went."""
    machine = Machine()
    guard = machine.guard()
    machine.wall -= STEP + 1
    for jitter in (0, 1, -1, 1, 500):
        machine.wall += jitter
        guard.now_ms()
    assert guard.doubt
    assert len([one for one in caplog.records if "in doubt" in one.message]) == 1
    machine.wall += 32_000
    assert guard.now_ms() == machine.wall
    assert not guard.doubt


@pytest.mark.parametrize("of_ca", [False, True])
async def test_an_open_connection_ends_when_its_certificate_or_a_ca_expires(
    tmp_path: Path, of_ca: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "CERTIFICATES_S", 0.05)
    async with running(tmp_path / "hq") as r:
        lab = await r.dial(await r.person("FL-LAB", days=1))
        center = await r.dial(await r.person("CA-RC", days=9))
        if of_ca:
            monkeypatch.setattr(r.hq.trust, "ca_ends", ("a CA of HQ", clock.now_ms() - 1))
        with confirmed_clock(r.hq, 0 if of_ca else 1.1), trio.fail_after(60):
            away = await lab.next()
            assert isinstance(away, frames.GoingAway)
            assert ("a CA" if of_ca else "the certificate of FL-LAB") in away.message
            if not of_ca:
                assert isinstance(await center.ask(frames.GetRevocations), frames.Revocations)
