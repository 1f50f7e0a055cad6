"""The composition root of a running HQ: lock, store, engine, listeners, and a graceful stop.

The structure of nurseries determines the stop: listeners accept in an inner nursery, sessions run
in an outer one.  When `serve` is cancelled the inner one is cancelled first.  Then nothing more is
read, what was accepted is committed and answered, clients get GOING_AWAY, and after a timeout the
rest is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing

import attrs
import trio

from cipherbox.alerting import Teller
from cipherbox.concurrency import Backoff, only, repeat, retry, unwrapped
from cipherbox.config.settings import ServerConfig, parse_listen
from cipherbox.errors import Busy, CipherBoxError, GoingAway, StoreError, StoreLeased
from cipherbox.ops import systemd
from cipherbox.ops.logs import get_logger, settle_floods
from cipherbox.portable import lock_file
from cipherbox.server.ca.credentials import check_answered
from cipherbox.server.connection.listeners import (
    ConnectionAcceptor,
    address_of,
    given_listeners,
    open_listeners,
)
from cipherbox.server.hq import HQ
from cipherbox.server.operations.alerts import Watch
from cipherbox.server.operations.check import LOCK, require_places
from cipherbox.server.operations.monitor import Monitor
from cipherbox.server.operations.open_store import check_whole, open_store
from cipherbox.store.port import Standby, Store
from cipherbox.store.sqlite.store import SqliteStore
from cipherbox.store.waiting import WaitingSession

log = get_logger(__name__)
_CRL_CHECK_S = 60.0  # a list made while the clock was ahead is replaced as soon
CERTIFICATES_S = 30.0  # between looks for open connections whose certificates expired
_WATCH_S = 60.0
_MARK_S = 3600.0
STANDBY_S = 1.0  # period at which a standby tries to take the lease
STOOD_BY_S = 30.0  # a single HQ that was killed waits for the end of its own lease, 6 s at most
RENEW_S = 2.0
_TICK_S = 0.5  # a heartbeat is 1 s or more
_LATE_S = 3.0
_STATUS_S = 10.0  # period of what `systemctl status` shows


@attrs.frozen
class Served:
    """The (host, port) pairs on which HQ listens, and a call that reloads its settings or raises
    ConfigError.
    """

    addresses: list[tuple[str, int]]
    websocket: list[tuple[str, int]]
    reload: Callable[[], object]


async def serve(
    config: ServerConfig,
    *,
    broken_store: bool = False,
    waiting: Callable[[str], None] = lambda _: None,
    task_status: trio.TaskStatus[Served] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run HQ until cancelled; raise StoreLocked if another process uses this directory.

    While another HQ has the database's lease it waits as a standby, and calls ``waiting``.

    ``broken_store`` makes it lose envelopes deliberately, to show that `prove` detects it.
    """
    kind = SqliteStore
    if broken_store:
        from cipherbox.store.broken import BrokenStore

        kind = BrokenStore
    require_places(config)
    check_answered(config)
    with lock_file(config.directory / LOCK, f"HQ's directory {config.directory}"):
        patient = config.database.kind != "sqlite"
        async with _monitor(config) as monitor:

            def on_waiting(why: str) -> None:
                monitor.waiting = f"HQ is waiting: {why}"
                waiting(why)

            with closing(WaitingSession()) as session:
                store = await _open(
                    lambda: open_store(config, kind=kind, waiting=session),
                    on_waiting,
                    patient=patient,
                )
            try:
                check_whole(store)
                monitor.hq = HQ(config, store)
                if session.waited_s >= STOOD_BY_S:
                    monitor.hq.standbys.expect()
                await run(monitor.hq, task_status=task_status)
            finally:
                store.close()


@asynccontextmanager
async def _monitor(config: ServerConfig) -> AsyncIterator[Monitor]:
    """Serve the metrics port, if configured, from before the store is open until the end."""
    monitor = Monitor()
    listeners = await open_listeners(parse_listen(config.metrics.listen))
    if not listeners:
        yield monitor
        return
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(monitor.serve, listeners)
            log.info("Serving metrics", extra={"addresses": [address_of(x) for x in listeners]})
            yield monitor
            nursery.cancel_scope.cancel()


async def _open(
    attempt: Callable[[], Store], waiting: Callable[[str], None], *, patient: bool
) -> Store:
    """Open the store as soon as no other HQ has it; ``patient``: also wait for a database that is
    not available.
    """
    logged = False

    async def once() -> Store:
        try:
            return await trio.to_thread.run_sync(attempt)
        except Busy as error:
            if patient:
                raise
            raise StoreError(
                error.what, remedy="look for the reason: cipherbox doctor DIRECTORY"
            ) from error

    def failed(error: CipherBoxError, pause_s: float) -> None:
        nonlocal logged
        systemd.alive()
        if logged:
            return
        logged = True
        if isinstance(error, StoreLeased):
            log.info("Standby: another HQ is active on this database", extra={"holder": str(error)})
        else:
            log.warning(
                "The database is not available; HQ waits for it", extra={"error": str(error)}
            )
        waiting(str(error))

    return await retry(
        once, Backoff(STANDBY_S, STANDBY_S), transient=only(StoreLeased, Busy), on_failure=failed
    )


async def run(hq: HQ, *, task_status: trio.TaskStatus[Served] = trio.TASK_STATUS_IGNORED) -> None:
    """Run an HQ; stop gracefully when cancelled.  Raise the error that ended the engine."""
    stop = trio.Event()

    async def wait_for_stop() -> None:
        try:
            await hq.drain.done.wait()
        finally:
            stop.set()

    with unwrapped():
        async with trio.open_nursery() as outer:
            outer.start_soon(wait_for_stop)
            with trio.CancelScope(shield=True):
                await _serve_until(hq, stop, task_status)
            outer.cancel_scope.cancel()


async def _serve_until(hq: HQ, stop: trio.Event, task_status: trio.TaskStatus[Served]) -> None:
    async with AsyncExitStack() as sockets:
        plain: list[trio.SocketListener] = []
        websocket: list[trio.SocketListener] = []
        given = systemd.passed_sockets()
        for found, name, text in (
            (plain, systemd.PLAIN, hq.config.server.listen),
            (websocket, systemd.WEBSOCKET, hq.config.server.websocket_listen),
        ):
            configured, passed = parse_listen(text), given.get(name)
            for listener in (
                given_listeners(passed, configured) if passed else await open_listeners(configured)
            ):
                sockets.push_async_callback(listener.aclose)
                found.append(listener)
        async with trio.open_nursery() as handlers:
            handlers.start_soon(hq.engine.run)
            await hq.certificate.begin()
            await hq.engine.in_store(hq.trust.crl)
            await hq.revocations.apply()
            handlers.start_soon(hq.certificate.run)
            handlers.start_soon(hq.revocations.run)
            handlers.start_soon(_keep_crl, hq)
            handlers.start_soon(_keep_certificates, hq)
            handlers.start_soon(tick, hq)
            handlers.start_soon(_keep_mark, hq)
            handlers.start_soon(hq.retention.run)
            handlers.start_soon(_keep_watch, hq)
            handlers.start_soon(_keep_writing, hq)
            handlers.start_soon(tell_systemd, hq)
            acceptor = ConnectionAcceptor(hq, handlers)
            async with trio.open_nursery() as accepting:
                for listener in plain:
                    accepting.start_soon(acceptor.serve, listener, False)
                for listener in websocket:
                    accepting.start_soon(acceptor.serve, listener, True)
                served = Served(
                    [address_of(x) for x in plain], [address_of(x) for x in websocket], hq.reload
                )
                log.info(
                    "HQ is ready",
                    extra={"addresses": served.addresses, "websocket": served.websocket},
                )
                task_status.started(served)
                await stop.wait()
                accepting.cancel_scope.cancel()
            await sockets.aclose()
            await _wind_down(hq)
            handlers.cancel_scope.cancel()
    log.info("HQ has stopped")


async def _wind_down(hq: HQ) -> None:
    """Commit and answer what was accepted, then ask all clients to reconnect later."""
    hq.stopping = True
    with trio.move_on_after(hq.config.limits.stop_s):
        for session in hq.connections:
            session.stop_reading()
        await hq.engine.idle()
        for session in hq.connections:
            session.end(GoingAway())
        await hq.connections.all_closed()
        await hq.engine.idle()


async def tick(hq: HQ) -> None:
    """Call `tick` of all sessions; a task for each would be a tenth of an idle
    connection's cost.
    """
    before = trio.current_time()
    while True:
        await trio.sleep(_TICK_S)
        now = trio.current_time()
        late, before = now - before > _LATE_S, now
        if late:  # HQ itself was suspended: give all peers a turn before checking deadlines
            continue
        for session in hq.connections:
            session.tick(now)
        hq.memory.tick(now)
        hq.drain.tick(now)
        settle_floods()


async def tell_systemd(hq: HQ) -> None:
    """Notify systemd's watchdog while the engine's task makes progress, and of HQ's status."""
    turns, shown = -1, ""
    pause_s = min(_STATUS_S, systemd.watchdog_s() / 3 or _STATUS_S)
    while True:
        await trio.sleep(pause_s)
        if turns != hq.engine.turns:
            turns = hq.engine.turns
            systemd.alive()
        count = len(hq.connections)
        text = f"STATUS=serving {count} connection{'' if count == 1 else 's'}"
        if text != shown and systemd.notify(text):
            shown = text


async def _keep_writing(hq: HQ) -> None:
    """Renew the store's lease, and see who waits for it; end HQ if another one has taken over.
    Look at a clock in doubt as often.
    """

    def renewed() -> list[Standby]:
        hq.store.renew()
        return hq.store.standbys()

    async def once() -> None:
        hq.standbys.look(await hq.engine.in_store(renewed))
        await hq.watch_clock()

    await trio.sleep(RENEW_S)
    # commits report a store that is not available
    await repeat(once, RENEW_S, transient=only(Busy))


async def _keep_mark(hq: HQ) -> None:
    """Record the clock at the start and once an hour."""
    await repeat(
        hq.mark_clock,
        _MARK_S,
        on_failure=lambda error, _: log.error(
            "The clock could not be recorded", extra={"error": str(error)}
        ),
    )


async def _keep_watch(hq: HQ) -> None:
    """Raise alerts about what an admin should attend to, in time."""
    watch = Watch(hq)
    say = lambda text, why: log.error(text, extra={"reason": why})  # noqa: E731
    teller = Teller(hq.config.server.name, hq.config.alerts, hq.config.directory, say)
    while True:
        found = watch.look()
        teller.settings = hq.config.alerts
        if teller.settings.any:
            await teller.look(found)
        await trio.sleep(_WATCH_S)


async def _keep_certificates(hq: HQ) -> None:
    """Close open connections whose certificates, or CAs above them, have expired."""
    while True:
        await trio.sleep(CERTIFICATES_S)
        hq.connections.end_expired(hq.trust.require)


async def _keep_crl(hq: HQ) -> None:
    """Renew the revocation list before it expires."""
    await trio.sleep(_CRL_CHECK_S)
    await repeat(
        lambda: hq.engine.in_store(hq.trust.crl),
        _CRL_CHECK_S,
        on_failure=lambda error, _: log.error(
            "The revocation list could not be renewed", extra={"error": str(error)}
        ),
    )
