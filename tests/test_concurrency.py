"""Retrying, supervising and waking, on a clock that jumps."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from math import inf

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from cipherbox import concurrency
from cipherbox.concurrency import (
    Backoff,
    Flag,
    KeyedBackoff,
    OneThread,
    Signal,
    any_error,
    background,
    only,
    repeat,
    retry,
    supervise,
    unwrapped,
)
from cipherbox.errors import Busy, CipherBoxError, InvalidRequest, NetworkError, NotFound


def scripted(*outcomes: object) -> tuple[Callable[[], Awaitable[object]], list[float]]:
    """A call that raises or returns these in turn, and the times at which it was called."""
    times: list[float] = []
    left = list(outcomes)

    async def call() -> object:
        times.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return call, times


# -- back-off --------------------------------------------------------------------------------------


async def test_pauses_grow_up_to_the_cap_and_start_again() -> None:
    backoff = Backoff(1.0, 5.0)
    assert [backoff.next() for _ in range(5)] == [1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.next() == 1
    slow = Backoff(2.0, 100.0, factor=1.5)
    assert [slow.next() for _ in range(3)] == [2, 3, 4.5]
    assert Backoff(9.0, 5.0).next() == 5


async def test_jitter_takes_away_its_share_at_most() -> None:
    pauses = [Backoff(8.0, jitter=0.5).next() for _ in range(200)]
    assert all(4 <= pause <= 8 for pause in pauses)
    assert len(set(pauses)) > 100
    backoff = Backoff(1.0, 4.0, jitter=0.5)
    for whole in (1, 2, 4, 4):  # the cap grows, whatever chance took away
        assert whole / 2 <= backoff.next() <= whole


async def test_a_pause_can_be_asked_to_last_longer(autojump_clock: MockClock) -> None:
    backoff = Backoff(1.0, 60.0, healthy_s=5.0)
    assert backoff.next(least_s=30.0) == 30
    await trio.sleep(31)  # the long pause is no sign of health
    assert backoff.next() == 2


async def test_a_try_that_lasted_resets(autojump_clock: MockClock) -> None:
    backoff = Backoff(1.0, 60.0, healthy_s=10.0)
    for expected in (1, 2, 4):
        assert backoff.next() == expected
        await trio.sleep(expected + 10)
    await trio.sleep(0.1)
    assert backoff.next() == 1


async def test_waiting_sleeps_for_the_pause(autojump_clock: MockClock) -> None:
    backoff, began = Backoff(1.0), trio.current_time()
    for _ in range(3):
        await backoff.wait()
    assert trio.current_time() - began == pytest.approx(7)


async def test_each_key_backs_off_alone(autojump_clock: MockClock) -> None:
    keyed: KeyedBackoff[str] = KeyedBackoff(lambda: Backoff(2.0, 300.0))
    assert keyed.due("a")
    assert keyed.next_due() == inf
    assert [keyed.failed("a"), keyed.failed("a"), keyed.failed("b")] == [2, 4, 2]
    assert not keyed.due("a")
    assert keyed.waiting() == ["a", "b"]
    assert keyed.next_due() == trio.current_time() + 2
    await trio.sleep(2)
    assert keyed.due("b")
    assert keyed.waiting() == ["a"]
    assert keyed.failed("b") == 4  # due is no success
    keyed.succeeded("a")
    assert keyed.due("a")
    assert keyed.failed("a") == 2


# -- retrying and supervising ----------------------------------------------------------------------


async def test_retry_returns_the_first_success(autojump_clock: MockClock) -> None:
    call, times = scripted(NetworkError("one"), NetworkError("two"), "done")
    told: list[tuple[str, float]] = []
    result = await retry(
        call, Backoff(1.0), on_failure=lambda error, pause_s: told.append((str(error), pause_s))
    )
    assert result == "done"
    assert [at - times[0] for at in times] == pytest.approx([0, 1, 3])
    assert told == [("one", 1.0), ("two", 2.0)]


async def test_retry_raises_what_is_not_transient(autojump_clock: MockClock) -> None:
    call, times = scripted(InvalidRequest("never"))
    with pytest.raises(InvalidRequest):
        await retry(call, Backoff(1.0))
    assert len(times) == 1
    call, times = scripted(NetworkError("not this one"))
    with pytest.raises(NetworkError):
        await retry(call, Backoff(1.0), transient=only(Busy))
    call, _ = scripted(ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        await retry(call, Backoff(1.0), transient=any_error)


async def test_retry_gives_up_without_a_last_pause(autojump_clock: MockClock) -> None:
    call, times = scripted(NetworkError("1"), NetworkError("2"), NetworkError("3"), "unreached")
    with pytest.raises(NetworkError, match="3"):
        await retry(call, Backoff(1.0), tries=3)
    assert trio.current_time() - times[0] == pytest.approx(3)


async def test_supervise_restarts_and_forgets_old_failures(autojump_clock: MockClock) -> None:
    pauses: list[float] = []
    lasts = iter([0, 0, 100, 0])

    async def task() -> None:
        for seconds in lasts:
            await trio.sleep(seconds)
            raise NetworkError("gone")

    await supervise(
        task,
        Backoff(1.0, 30.0, healthy_s=30.0),
        on_failure=lambda _, pause_s: pauses.append(pause_s),
    )
    assert pauses == [1, 2, 1, 2]


async def test_supervise_ends_with_a_permanent_error(autojump_clock: MockClock) -> None:
    call, times = scripted(NetworkError("passes"), NotFound("permanent"))
    with pytest.raises(NotFound):
        await supervise(call, Backoff(1.0, healthy_s=30.0))
    assert len(times) == 2


async def test_repeat_keeps_its_period_and_backs_off(autojump_clock: MockClock) -> None:
    call, times = scripted(None, Busy("a"), Busy("b"), None, Busy("c"), None)
    told: list[float] = []
    with trio.move_on_after(10 + 1 + 2 + 10 + 1 + 5):
        await repeat(
            call, 10.0, backoff=Backoff(1.0), on_failure=lambda _, pause_s: told.append(pause_s)
        )
    assert [b - a for a, b in pairwise(times)] == pytest.approx([10, 1, 2, 10, 1])
    assert told == [1, 2, 1]


async def test_repeat_without_a_backoff_keeps_its_period(autojump_clock: MockClock) -> None:
    pauses = iter([3.0, 5.0, 7.0])
    call, times = scripted(None, Busy("a"), None)
    with trio.move_on_after(10):
        await repeat(call, lambda: next(pauses))
    assert [at - times[0] for at in times] == pytest.approx([0, 3, 8])


async def test_repeat_ends_with_what_is_not_transient(autojump_clock: MockClock) -> None:
    call, _ = scripted(None, NotFound("permanent"))
    with pytest.raises(NotFound):
        await repeat(call, 1.0, transient=only(Busy))


async def test_repeat_wakes_early_also_for_what_came_during_the_call(
    autojump_clock: MockClock,
) -> None:
    wake, times = Flag(), list[float]()

    async def call() -> None:
        times.append(trio.current_time())
        await trio.sleep(1)
        if len(times) == 1:
            wake.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: repeat(call, 100.0, wake=wake))
        await trio.sleep(10)
        wake.set()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()
    assert [at - times[0] for at in times] == pytest.approx([0, 1, 10])


# -- waking ----------------------------------------------------------------------------------------


async def test_a_signal_wakes_those_who_wait_now() -> None:
    signal, woken = Signal(), list[str]()

    async def waits(name: str) -> None:
        await signal.wait()
        woken.append(name)

    signal.notify()  # nobody hears it
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, "a")
        nursery.start_soon(waits, "b")
        await wait_all_tasks_blocked()
        assert woken == []
        signal.notify()
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["a", "b"]
        nursery.start_soon(waits, "c")
        await wait_all_tasks_blocked()
        assert len(woken) == 2
        signal.notify()
    assert woken[-1] == "c"


async def test_what_was_taken_before_a_look_hears_of_what_came_meanwhile() -> None:
    signal = Signal()
    news = signal.next()
    signal.notify()
    await trio.lowlevel.checkpoint()
    with trio.fail_after(60):
        await news.wait()
    assert not signal.next().is_set()


async def test_a_flag_lasts_until_it_is_cleared() -> None:
    flag, woken = Flag(), list[str]()
    flag.set()
    assert flag.is_set()
    await flag.wait()
    flag.clear()
    assert not flag.is_set()

    async def waits() -> None:
        await flag.wait()
        woken.append("woken")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await wait_all_tasks_blocked()
        flag.clear()  # who waits already keeps waiting, and is not forgotten
        flag.set()
        flag.clear()  # nor does who was woken miss it
    assert woken == ["woken"]
    assert Flag(is_set=True).is_set()


# -- nurseries -------------------------------------------------------------------------------------


async def beside(*errors: Exception, block: Exception | None = None) -> None:
    async def fails(error: Exception) -> None:
        raise error

    async with background() as nursery:
        for error in errors:
            nursery.start_soon(fails, error)
        if block is not None:
            raise block
        await trio.sleep_forever()


async def test_our_own_errors_leave_a_nursery_unwrapped() -> None:
    with pytest.raises(NotFound):
        await beside(NotFound("x"))
    with pytest.raises(NotFound):
        await beside(NotFound("x"), NotFound("y"))
    with pytest.raises(ValueError, match="of the block"):
        await beside(block=ValueError("of the block"))
    with pytest.raises(BaseExceptionGroup):
        await beside(NotFound("x"), ValueError("y"))
    with unwrapped():
        pass


async def test_the_nursery_ends_with_its_block_and_leaves_others_cancellation_alone() -> None:
    ended: list[str] = []

    async def forever() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append("task")

    async with background() as nursery:
        nursery.start_soon(forever)
        await wait_all_tasks_blocked()
    assert ended == ["task"]
    with trio.CancelScope() as scope:
        async with background():
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught


def test_no_command_loads_trio_for_it() -> None:
    """The module is read where something runs, never by a command that only shows something."""
    program = "import sys, cipherbox.cli.main; print('trio' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout.strip() == "False"


async def test_an_error_that_is_not_ours_is_never_retried(autojump_clock: MockClock) -> None:
    call, times = scripted(OSError("disk"))
    with pytest.raises(OSError, match="disk"):
        await repeat(call, 1.0)
    assert len(times) == 1
    assert isinstance(Busy("x"), CipherBoxError)


# -- blocking calls --------------------------------------------------------------------------------


async def test_calls_run_in_one_thread_in_order_and_return_or_raise() -> None:
    thread = OneThread()
    done: list[tuple[int, int]] = []

    def call(number: int) -> int:
        done.append((number, threading.get_ident()))
        return number

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(thread.run, call, number)
    assert sorted(number for number, _ in done) == list(range(20))
    (ident,) = {ident for _, ident in done}
    assert ident != threading.get_ident()
    assert await thread.run(call, 5) == 5
    with pytest.raises(ZeroDivisionError):
        await thread.run(lambda: 1 // 0)
    with pytest.raises(SystemExit):
        await thread.run(sys.exit)
    assert await thread.run(threading.get_ident) == ident
    for number in range(300):
        assert await thread.run(int, number) == number
    with pytest.raises(BlockingIOError):
        thread._bell.recv(1)  # each ring was heard


async def test_cancelling_abandons_no_call_and_begins_none() -> None:
    thread = OneThread()
    begun, go, done = threading.Event(), threading.Event(), []

    def call() -> None:
        begun.set()
        assert go.wait(60)
        done.append("call")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(thread.run, call)
        await trio.to_thread.run_sync(begun.wait, 20)
        nursery.cancel_scope.cancel()
        go.set()
    assert done == ["call"]
    with trio.CancelScope() as scope:
        scope.cancel()
        await thread.run(done.append, "cancelled")
    assert done == ["call"]


async def test_an_interrupt_abandons_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    thread, done = OneThread(), []
    real = trio.lowlevel.wait_readable
    interrupts = [KeyboardInterrupt()]

    async def interrupted(sock: socket.socket) -> None:
        if interrupts:
            raise interrupts.pop()
        await real(sock)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", interrupted)
    with pytest.raises(KeyboardInterrupt):
        await thread.run(done.append, "call")
    assert done == ["call"]
    assert await thread.run(lambda: 5) == 5


async def test_an_idle_thread_ends_and_the_next_call_starts_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(concurrency, "THREAD_IDLE_S", 0.001)
    thread = OneThread()
    for _ in range(20):
        running = await thread.run(threading.current_thread)
        await trio.to_thread.run_sync(running.join, 20)
        assert not running.is_alive()
    assert await thread.run(lambda: 5) == 5
