"""A connection to HQ that reconnects for as long as the client is open.

When a connection ends, the next one is opened after an exponential back-off from a tenth of a
second up to a bound (60 s), with jitter, so that a hundred labs do not reconnect in one second.
A new connection first gets what is unconfirmed, then the subscriptions, then new requests.

Two kinds of errors end it permanently: credentials that were not accepted (a retry cannot help, and
must not flood HQ's log), and two ends without a common protocol version.  Everything else is
retried.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import trio

from cipherbox import clock
from cipherbox.client.connection.confirm_window import (
    SLOWEST_BYTES_PER_S,
    ConfirmWindow,
    PendingPublish,
    ProofCheck,
)
from cipherbox.client.connection.connection import Connection, open_connection
from cipherbox.client.events import LINE, EventKind, Events
from cipherbox.concurrency import Backoff, Signal, background
from cipherbox.config.proxies import LineSettings
from cipherbox.config.settings import ClientConfig
from cipherbox.errors import (
    CipherBoxError,
    CredentialsError,
    LogContradiction,
    LogMissing,
    NetworkError,
    Replaced,
    Revoked,
    TimedOut,
    VersionMismatch,
)
from cipherbox.net import tls
from cipherbox.wire import frames
from cipherbox.wire.codec import DeliveredItem

_SYSTEM_BYTES = 4 * 1024 * 1024  # the largest socket buffer of the operating systems
FIRST_PAUSE_S = 0.1  # a restart of HQ takes a second or two
REQUEST_PAUSE_S = 0.4  # before a request that HQ could not take is repeated
_STEP_S = 0.25
AWAY_S = 5.0
GOOD_S = 10.0  # a connection that lasted this long resets the back-off
# HQ is unreachable or refuses this client: messages can wait. Any other error of certificates or
# of the revocation list stops sending.
HQ_UNAVAILABLE = (NetworkError, Revoked, Replaced, tls.NotAccepted)
# errors that reconnecting cannot fix
_PERMANENT = (CredentialsError, VersionMismatch, LogMissing, LogContradiction)


class ConnectionObserver:
    """Callbacks for events of the connection; these do nothing."""

    def accept(self, connection: Connection) -> None:
        """Raise CredentialsError if HQ's certificate was revoked."""

    async def opened(self, welcome: frames.Welcome) -> None:
        """A connection was opened."""

    async def revocation_list(self, number: int) -> None:
        """HQ announced a revocation list."""

    def proven(self, frame: frames.Confirm, items: list[PendingPublish]) -> None:
        """HQ proved that these envelopes are in its signed log."""

    def settled(self, item: PendingPublish) -> None:
        """An envelope in the outbox was confirmed or refused."""
        item.tell_owner()


class Subscriber(Protocol):
    """What the connection needs of a consumer."""

    def attach(self, connection: Connection) -> None: ...

    def detach(self) -> None: ...

    def take(self, entries: list[DeliveredItem]) -> None: ...

    def fail(self, error: CipherBoxError) -> None: ...


class LogCheck(ProofCheck, Protocol):
    """What the connection needs of the log verifier: checks of WELCOME and of confirms."""

    async def welcome(self, connection: Connection, timeout_s: float) -> None: ...


class ReconnectingConnection:
    """A connection that reconnects. ``tries`` and ``timeout_s`` bound a request; reconnecting is
    unbounded.
    """

    def __init__(
        self,
        address: str,
        context: Callable[[], ssl.SSLContext],
        events: Events,
        *,
        tries: int = 3,
        timeout_s: float = 10.0,
        pause_max_s: float = 60.0,
        settings: LineSettings | None = None,
        log: LogCheck | None = None,
    ) -> None:
        self.tries, self.timeout_s = tries, timeout_s
        self._log = log
        self._observer = ConnectionObserver()
        self.window = ConfirmWindow(self, log)
        self.current: Connection | None = None
        self.failure: CipherBoxError | None = None
        self.trouble: CipherBoxError | None = None
        self.attempts = 0  # consecutive failures
        self.away_since = 0.0  # when the first of them failed, in seconds since 1970
        self._away_from = 0.0  # the same by trio's clock
        self.opened = 0  # the number of connections opened so far
        self._address, self._context, self._events = address, context, events
        self._pause_max_s = pause_max_s
        self._settings = settings
        self._subscribers: dict[int, Subscriber] = {}
        self._tag = 0
        self._changed = Signal()
        self._nursery: trio.Nursery | None = None

    @classmethod
    def of(
        cls,
        config: ClientConfig,
        context: Callable[[], ssl.SSLContext],
        events: Events,
        log: LogCheck,
    ) -> ReconnectingConnection:
        """Return the connection that a client's configuration describes."""
        return cls(
            config.address,
            context,
            events,
            tries=config.tries,
            timeout_s=config.timeout_s,
            pause_max_s=config.pause_max_s,
            settings=config.line,
            log=log,
        )

    async def run(self, nursery: trio.Nursery, observer: ConnectionObserver | None = None) -> None:
        """Connect, and reconnect, until cancelled or until a permanent error.

        ``observer`` is called on events; ``nursery`` runs its tasks.
        """
        self._nursery, self._observer = nursery, observer or self._observer
        backoff = Backoff(
            FIRST_PAUSE_S, max(self._pause_max_s, 0.001), jitter=0.5, healthy_s=GOOD_S
        )
        while self.failure is None:
            error, away_s = await self._one_connection()
            if isinstance(error, _PERMANENT) and not error.retryable:
                self._fail(error)
                return
            wait = backoff.next(least_s=away_s)
            text = f"{error}; trying again in {wait:.1f} s"
            self._events.emit(LINE, text, kind=EventKind.RECONNECTING)
            self.trouble = error
            self._wake()
            await trio.sleep(wait)

    async def _one_connection(self) -> tuple[CipherBoxError, float]:
        away_s = 0.0
        try:
            async with open_connection(
                self._address,
                self._context(),
                timeout_s=self.timeout_s,
                handler=self,
                line=self._settings,
            ) as connection:
                if self._log is not None:
                    await self._log.welcome(connection, self.timeout_s)
                self._observer.accept(connection)
                self._up(connection)
                try:
                    await connection.closed.wait()
                finally:
                    self._down(connection)
                away_s = connection.away_s
                assert connection.error is not None
                return connection.error, away_s
        except CipherBoxError as error:
            self._missed()
            return error, away_s
        except OSError as error:
            self._missed()
            return NetworkError(f"HQ cannot be reached: {error.strerror or error}"), away_s

    def _missed(self) -> None:
        if not self.attempts:
            self.away_since, self._away_from = clock.now_s(), trio.current_time()
        self.attempts += 1

    def _up(self, connection: Connection) -> None:
        again = self.opened > 0
        self.current, self.trouble, self.attempts, self.opened = (
            connection,
            None,
            0,
            self.opened + 1,
        )
        if again:
            self._events.emit(LINE, "connected to HQ again")
        self.window.attach(connection)
        for subscriber in list(self._subscribers.values()):
            subscriber.attach(connection)
        self._wake()
        if self._nursery is not None:
            self._nursery.start_soon(self._observer.opened, connection.welcome)

    def _down(self, connection: Connection) -> None:
        self.current = None
        self.window.detach(connection.error or NetworkError("the connection was closed"))
        for subscriber in list(self._subscribers.values()):
            subscriber.detach()

    def _fail(self, error: CipherBoxError) -> None:
        self.failure = error
        self.window.fail(error)
        for subscriber in list(self._subscribers.values()):
            subscriber.fail(error)
        self._wake()

    def _wake(self) -> None:
        self._changed.notify()

    def later(self, seconds: float, act: Callable[[], None]) -> None:
        """Call ``act`` after a pause, unless the client is closed first."""
        assert self._nursery is not None

        async def wait() -> None:
            await trio.sleep(seconds)
            act()

        self._nursery.start_soon(wait)

    @property
    def away(self) -> bool:
        """Return whether HQ has been unreachable for longer than a restart takes, a second or
        two.
        """
        tried = self.current is None and self.attempts >= self.tries
        return tried and trio.current_time() - self._away_from >= min(AWAY_S, self.timeout_s)

    async def last_call(self, call: Callable[[], Awaitable[object]], most_s: float) -> None:
        """Await a last call of a task that is being cancelled, while this connection is open."""
        current = self.current
        if current is None:
            return
        with trio.move_on_after(most_s, shield=True):
            async with background() as nursery:

                async def until_closed() -> None:
                    await current.closed.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(until_closed)
                await call()

    # -- asking ------------------------------------------------------------------------------------

    async def ready(self, attempts: int | None = None) -> Connection:
        """Return the open connection, waiting for one.

        Raise the error that ended it permanently, or the last error after ``attempts`` failed
        attempts.
        """
        while True:
            if self.failure is not None:
                raise self.failure.copy()
            if self.current is not None and self.current.error is None:
                return self.current
            if attempts is not None and self.attempts >= attempts and self.trouble is not None:
                raise self.trouble.copy()
            await self._changed.wait()

    async def _ready_or_away(self) -> Connection:
        while not self.away:
            with trio.move_on_after(_STEP_S):
                return await self.ready()
        raise (
            self.trouble.copy()
            if self.trouble is not None
            else NetworkError("HQ cannot be reached")
        )

    async def request(
        self, kind: Callable[..., Any], *, timeout_s: float | None = None, **fields: Any
    ) -> Any:
        """Send a request and return its answer: up to ``tries`` attempts of ``timeout_s`` each.

        A refusal that is not retryable is raised immediately.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        last: CipherBoxError = TimedOut(f"HQ did not answer within {limit:g} s")
        backoff = Backoff(REQUEST_PAUSE_S, jitter=0.5)
        for attempt in range(1, self.tries + 1):
            began = trio.current_time()
            try:
                with trio.fail_after(limit):
                    connection = await self._ready_or_away()
                return await connection.ask(
                    kind, max(0.001, limit - (trio.current_time() - began)), **fields
                )
            except trio.TooSlowError:
                last = self.trouble.copy() if self.trouble is not None else last
            except CredentialsError:
                raise
            except CipherBoxError as error:
                if not error.retryable or self.away:
                    raise
                last = error
                if attempt < self.tries and not error.closes:
                    await backoff.wait()
        raise last

    # -- subscriptions -----------------------------------------------------------------------------

    def next_tag(self) -> int:
        """Return the number of a new consumer."""
        self._tag += 1
        return self._tag

    def subscribe(self, tag: int, subscriber: Subscriber) -> None:
        """Register a consumer; it is subscribed on every connection."""
        self._subscribers[tag] = subscriber
        if self.failure is not None:
            subscriber.fail(self.failure)
        elif self.current is not None and self.current.error is None:
            subscriber.attach(self.current)

    def unsubscribe(self, tag: int) -> None:
        """Remove a consumer; HQ requeues what is still delivered to it."""
        self._subscribers.pop(tag, None)

    # -- the connection's handler -----------------------------------------------------------------

    def deliveries(self, connection: Connection, tag: int, entries: list[DeliveredItem]) -> None:
        subscriber = self._subscribers.get(tag)
        if subscriber is not None and connection is self.current:
            subscriber.take(entries)

    def confirmed(self, frame: frames.Confirm) -> None:
        self.window.confirmed(frame)

    def refused(self, correlation: int, error: CipherBoxError) -> bool:
        return self.window.refused(correlation, error)

    def news(self, text: str) -> None:
        """Report why HQ accepts nothing now, or that it accepts again."""
        self._events.emit(LINE, text)

    def revocations(self, number: int) -> None:
        """Pass on that HQ has a revocation list of this number."""
        assert self._nursery is not None
        self._nursery.start_soon(self._observer.revocation_list, number)

    def beat(self, connection: Connection) -> None:
        self.window.overdue(connection, self.timeout_s)

    # -- the window's owner ------------------------------------------------------------------------

    def pause(self, seconds: float) -> None:
        """HQ is busy: publishing resumes after this time."""
        self.later(seconds, self.window.resume)

    def proven(self, frame: frames.Confirm, items: list[PendingPublish]) -> None:
        self._observer.proven(frame, items)

    def settled(self, item: PendingPublish) -> None:
        self._observer.settled(item)


class Patience:
    """How long to wait for a confirm: while a large envelope makes progress, and ``tries`` timeouts
    after that.

    While there is a connection, what the system's socket buffer holds may take its time on a slow
    network.  When HQ cannot be reached at all, ``tries`` failed attempts to connect are enough.
    """

    def __init__(self, connection: ReconnectingConnection) -> None:
        self._connection = connection
        self._still_s = 0.0

    @property
    def ended(self) -> bool:
        connection = self._connection
        taken = (
            min(_SYSTEM_BYTES, connection.window.size_bytes)
            if connection.current is not None
            else 0
        )
        most_s = connection.tries * connection.timeout_s + taken / SLOWEST_BYTES_PER_S
        return self._still_s >= most_s or connection.away

    async def wait(self, event: trio.Event) -> None:
        """Wait for the event, for a moment at most."""
        connection, began = self._connection, trio.current_time()
        with trio.move_on_after(min(_STEP_S, connection.timeout_s)) as scope:
            await event.wait()
        if not scope.cancelled_caught:
            self._still_s = 0.0
            return
        current = connection.current
        moved = current is not None and current.moved_at > began
        self._still_s = 0.0 if moved else self._still_s + trio.current_time() - began


class TimeLimit(Patience):
    """A fixed time to wait for a confirm, whatever happens to the connection."""

    def __init__(self, connection: ReconnectingConnection) -> None:
        super().__init__(connection)
        self._until = trio.current_time() + connection.tries * connection.timeout_s

    @property
    def ended(self) -> bool:
        return trio.current_time() >= self._until

    async def wait(self, event: trio.Event) -> None:
        """Wait for the event, until the time is up at most."""
        with trio.move_on_at(self._until):
            await event.wait()
