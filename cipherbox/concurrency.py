"""Waiting, waking, retrying and supervising: each mechanism once, on trio's clock.

Which one to take:

    retry       call until it succeeds, fails permanently, or has had its number of tries
    supervise   keep a long-running task alive: restart it after transient errors
    repeat      call periodically; sooner after a wake-up, with back-off after a transient error
    Backoff     growing pauses between tries; KeyedBackoff: one for each key
    Signal      edge-triggered: `notify` wakes the tasks that wait now, later ones wait on
    Flag        level-triggered: `set` lasts until `clear`, also when nobody waits
    OneThread   blocking calls in one thread, in order: a disk or a database
    background  a nursery beside a `with` block that re-raises our own errors unwrapped

Rules:

1. Cooperative scheduling makes a condition safe without a lock: between two awaits nothing else
   runs.  Whoever waits for a condition loops: ``while not condition: await signal.wait()``.
2. An edge is lost on a task that awaits something else in the meantime.  A task that looks with an
   await, as in a database, takes `Signal.next` first, looks, then waits for what it took; a task
   that works alone through what others queue uses a `Flag` and clears it **before** it looks.
3. Only errors that are transient are retried, and the caller says which those are; whatever is no
   `CipherBoxError` is a bug and always ends the task.
4. Every retry pauses, and every pause has a cap.  Many clients that lost one HQ need jitter, or
   they all return in the same second and HQ is lost again (Brooker, "Exponential Backoff And
   Jitter", AWS 2015).  The pauses are constants beside the `Backoff` that uses them.
5. A back-off is reset by success, or by a try that lasted: a connection that held for a minute and
   broke is no continuation of the failures before it.
6. A trio nursery wraps whatever leaves it into an exception group.  A caller who writes
   ``except NotFound`` must not have to know of the tasks behind a `with` block.
"""

from __future__ import annotations

import queue
import random
import socket
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from math import inf
from typing import Any, Generic, NoReturn, TypeVar, TypeVarTuple, Unpack, cast

import trio

from cipherbox.errors import CipherBoxError

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
Ts = TypeVarTuple("Ts")
THREAD_IDLE_S = 10.0
Transient = Callable[[CipherBoxError], bool]
OnFailure = Callable[[CipherBoxError, float], object]  # the error, and the pause before the retry

_random = random.SystemRandom()  # clients forked from one process must not share their jitter


def retryable(error: CipherBoxError) -> bool:
    """Return whether the error says of itself that a retry may succeed."""
    return error.retryable


def any_error(error: CipherBoxError) -> bool:
    """Return True: for tasks that nothing but cancellation may end."""
    return True


def only(*kinds: type[CipherBoxError]) -> Transient:
    """Return a test for errors of these classes."""
    return lambda error: isinstance(error, kinds)


# -- back-off --------------------------------------------------------------------------------------


class Backoff:
    """Pauses that grow by ``factor`` from ``first_s`` up to ``most_s``.

    ``jitter`` is the share of a pause that chance may take away: with 0.5 a pause lies between its
    half and its whole.  A try that lasts longer than ``healthy_s`` resets the back-off.
    """

    __slots__ = ("_factor", "_first_s", "_healthy_s", "_jitter", "_most_s", "_next_s", "until")

    def __init__(
        self,
        first_s: float,
        most_s: float = inf,
        *,
        factor: float = 2.0,
        jitter: float = 0.0,
        healthy_s: float = inf,
    ) -> None:
        self._first_s, self._most_s, self._factor = first_s, most_s, factor
        self._jitter, self._healthy_s = jitter, healthy_s
        self._next_s = min(first_s, most_s)
        self.until = -inf  # trio's time at which the last pause ends

    def next(self, least_s: float = 0.0) -> float:
        """Return the pause before the next try, at least ``least_s``, and let the following one
        grow.
        """
        now = trio.current_time()
        if now - self.until > self._healthy_s:
            self.reset()
        pause_s = self._next_s
        self._next_s = min(pause_s * self._factor, self._most_s)
        if self._jitter:
            pause_s *= 1.0 - _random.uniform(0.0, self._jitter)
        pause_s = max(pause_s, least_s)
        self.until = now + pause_s
        return pause_s

    def reset(self) -> None:
        """Start again with the first pause: the last try succeeded."""
        self._next_s = min(self._first_s, self._most_s)

    async def wait(self) -> None:
        """Sleep for the next pause."""
        await trio.sleep(self.next())


class KeyedBackoff(Generic[K]):
    """A back-off for each key, in memory: a restart tries everything immediately."""

    def __init__(self, make: Callable[[], Backoff]) -> None:
        self._make = make
        self._failing: dict[K, Backoff] = {}

    def failed(self, key: K) -> float:
        """Return the pause before the next try of this key."""
        return self._failing.setdefault(key, self._make()).next()

    def succeeded(self, key: K) -> None:
        """Forget the failures of this key."""
        self._failing.pop(key, None)

    def due(self, key: K) -> bool:
        """Return whether this key may be tried now."""
        found = self._failing.get(key)
        return found is None or trio.current_time() >= found.until

    def waiting(self) -> list[K]:
        """Return the keys that may not be tried yet."""
        now = trio.current_time()
        return [key for key, one in self._failing.items() if one.until > now]

    def next_due(self) -> float:
        """Return trio's time at which the next of the waiting keys is due; infinity if none
        waits.
        """
        now = trio.current_time()
        return min((one.until for one in self._failing.values() if one.until > now), default=inf)


# -- retrying and supervising ----------------------------------------------------------------------


async def retry(
    call: Callable[[], Awaitable[T]],
    backoff: Backoff,
    *,
    tries: int | None = None,
    transient: Transient = retryable,
    on_failure: OnFailure | None = None,
) -> T:
    """Return what ``call`` returns, retrying it after transient errors; raise the last error after
    ``tries`` of them.
    """
    failures = 0
    while True:
        try:
            return await call()
        except CipherBoxError as error:
            failures += 1
            if not transient(error) or failures == tries:
                raise
            pause_s = backoff.next()
            if on_failure is not None:
                on_failure(error, pause_s)
        await trio.sleep(pause_s)


async def supervise(
    task: Callable[[], Awaitable[object]],
    backoff: Backoff,
    *,
    transient: Transient = retryable,
    on_failure: OnFailure | None = None,
) -> None:
    """Supervise a long-running task: restart it after transient errors, until it is cancelled,
    returns, or raises another error.

    ``backoff`` needs its ``healthy_s``: the task reports no success that could reset it.
    """
    await retry(task, backoff, transient=transient, on_failure=on_failure)


async def repeat(
    call: Callable[[], Awaitable[object]],
    every_s: float | Callable[[], float],
    *,
    backoff: Backoff | None = None,
    transient: Transient = any_error,
    on_failure: OnFailure | None = None,
    wake: Flag | None = None,
) -> NoReturn:
    """Call periodically until cancelled: ``every_s`` after each success, after the next pause of
    ``backoff`` (or ``every_s``) after each transient error, and whenever ``wake`` is set.
    """
    while True:
        if wake is not None:
            wake.clear()
        failure: CipherBoxError | None = None
        try:
            await call()
        except CipherBoxError as error:
            if not transient(error):
                raise
            failure = error
        if failure is not None and backoff is not None:
            pause_s = backoff.next()
        else:
            pause_s = every_s() if callable(every_s) else every_s
        if failure is None:
            if backoff is not None:
                backoff.reset()
        elif on_failure is not None:
            on_failure(failure, pause_s)
        with trio.move_on_after(pause_s):
            if wake is None:
                await trio.sleep_forever()
            else:
                await wake.wait()


# -- waking ----------------------------------------------------------------------------------------


class Signal:
    """An edge-triggered wake-up for any number of tasks."""

    __slots__ = ("_next",)

    def __init__(self) -> None:
        self._next: trio.Event | None = None  # made when somebody waits: notifying is free

    def notify(self) -> None:
        """Wake every task that waits now."""
        if self._next is not None:
            self._next.set()
            self._next = None

    def next(self) -> trio.Event:
        """Return the event that the next notification sets (rule 2)."""
        if self._next is None:
            self._next = trio.Event()
        return self._next

    async def wait(self) -> None:
        """Wait for the next notification."""
        await self.next().wait()


class Flag:
    """A level-triggered wake-up: as `trio.Event`, and can be cleared."""

    __slots__ = ("_event",)

    def __init__(self, *, is_set: bool = False) -> None:
        self._event = trio.Event()
        if is_set:
            self._event.set()

    def is_set(self) -> bool:
        """Return whether it is set."""
        return self._event.is_set()

    def set(self) -> None:
        """Wake every task that waits, and those that will wait until it is cleared."""
        self._event.set()

    def clear(self) -> None:
        """Let tasks wait from now on; those that wait already keep waiting."""
        if self._event.is_set():
            self._event = trio.Event()

    async def wait(self) -> None:
        """Wait until it is set; return immediately while it is."""
        await self._event.wait()


# -- blocking calls --------------------------------------------------------------------------------


class _Call(Generic[T]):
    """A call on its way through the thread, and what became of it."""

    __slots__ = ("done", "error", "first", "task", "token", "value", "work")

    def __init__(self, work: Callable[[], T], *, first: bool) -> None:
        self.work, self.first = work, first
        self.task = trio.lowlevel.current_task()
        self.token = trio.lowlevel.current_trio_token()
        self.done = False
        self.value: T | None = None
        self.error: BaseException | None = None


class OneThread:
    """Runs blocking calls one at a time, in order.

    `trio.to_thread` prepares each call for a context, a limiter, a thread name and calls back into
    trio; without that the way there and back costs a third less, which counts where a message
    takes four of them.  The thread ends when it was idle for a while.

    A caller that no other one waits before is woken through a socket of this object: trio's own
    way from a thread to a task takes it one more turn of the event loop.
    """

    __slots__ = ("__weakref__", "_bell", "_calls", "_lock", "_ring", "_running", "_waits")

    def __init__(self) -> None:
        self._calls: queue.SimpleQueue[_Call[Any]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # held while the thread decides to end
        self._running = False
        self._waits = False  # a caller, for the bell
        self._bell, self._ring = socket.socketpair()
        self._bell.setblocking(False)
        # not at the program's end, when the thread may still ring
        weakref.finalize(self, _close, self._bell, self._ring).atexit = False

    async def run(self, call: Callable[[Unpack[Ts]], T], *args: *Ts) -> T:
        """Return what ``call`` returns.  Cancelling the caller does not abandon a call."""
        await trio.lowlevel.checkpoint_if_cancelled()
        one = _Call(partial(call, *args), first=not self._waits)
        with self._lock:
            self._calls.put(one)
            if not self._running:
                self._running = True
                threading.Thread(target=self._work, name="one-thread", daemon=True).start()
        if one.first:
            await self._until_done(one)
        else:
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        if one.error is not None:
            try:
                raise one.error
            finally:
                del one  # its error refers to this frame
        return cast(T, one.value)

    async def _until_done(self, one: _Call[Any]) -> None:
        """Wait for the bell, which rings once for each call that is the first."""
        self._waits = True
        interrupt: KeyboardInterrupt | None = None
        rung = False
        try:
            while not (rung and one.done):
                try:
                    await trio.lowlevel.wait_readable(self._bell)
                except (trio.Cancelled, KeyboardInterrupt) as error:
                    if isinstance(error, KeyboardInterrupt):
                        interrupt = error  # no checkpoint raises it again
                    with trio.CancelScope(shield=True):
                        await trio.lowlevel.wait_readable(self._bell)
                rung = bool(self._bell.recv(1))
        finally:
            self._waits = False
        if interrupt is not None:
            raise interrupt

    def _work(self) -> None:
        while True:
            try:
                one = self._calls.get(timeout=THREAD_IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._calls.empty():
                        self._running = False
                        return
                continue
            try:
                one.value = one.work()
            except BaseException as error:
                one.error = error
            one.done = True
            if one.first:
                self._ring.send(b"\0")
            else:
                one.token.run_sync_soon(trio.lowlevel.reschedule, one.task)
            del one  # what a call held must not live until the next one


def _close(*sockets: socket.socket) -> None:
    for one in sockets:
        one.close()


# -- errors that leave a nursery -------------------------------------------------------------------


def first_of(group: BaseExceptionGroup[CipherBoxError]) -> CipherBoxError:
    """Return the first of our own errors in a group that holds no others."""
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, CipherBoxError)
    return found


@contextmanager
def unwrapped() -> Iterator[None]:
    """Raise the first error of an exception group that holds nothing but our own errors."""
    try:
        yield
    except BaseExceptionGroup as group:
        ours, others = group.split(CipherBoxError)
        if ours is None or others is not None:
            raise
        raise first_of(ours) from None


@asynccontextmanager
async def background() -> AsyncIterator[trio.Nursery]:
    """Open a nursery that is cancelled when the block ends, and re-raises our own errors unwrapped.

    An error of the block itself leaves unwrapped, too, whatever it is.
    """
    failure: BaseException | None = None
    with unwrapped():
        async with trio.open_nursery() as nursery:
            try:
                yield nursery
            except trio.Cancelled:
                nursery.cancel_scope.cancel()
                raise
            except BaseException as error:
                failure = error
            nursery.cancel_scope.cancel()
    if failure is not None:
        try:
            raise failure
        finally:
            del failure
