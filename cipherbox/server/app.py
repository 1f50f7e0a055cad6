"""The composition root of a running HQ: lock, store, engine, listeners, and a graceful stop.

The stop is a shape, not a flag: listeners accept in an inner nursery, sessions live in an outer
one.  When `serve` is cancelled the inner one is cancelled first; then nothing more is read, what
was taken is committed and answered, clients are told that HQ goes away, and after a deadline
everything left is cancelled.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import attrs
import trio

from cipherbox.alerting import Teller
from cipherbox.broker.model import Cutoffs, Retain
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
from cipherbox.store.port import Store
from cipherbox.store.sqlite.store import SqliteStore

log = get_logger(__name__)
_CRL_CHECK_S = 3600.0
_WATCH_S = 60.0
_RETENTION_S, _DAY_MS = 3600.0, 86_400_000
STANDBY_S = 1.0  # a standby looks so often whether it is needed
_RENEW_S = 2.0
_TICK_S = 0.5  # a heartbeat is 1 s or more
_LATE_S = 3.0
_NEWS_S = 10.0  # what `systemctl status` shows may be so old


@attrs.frozen
class Served:
    """Where HQ listens, (host, port) pairs as bound; and what reads its settings again, or
    raises ConfigError.
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
    """Runs HQ until cancelled.  StoreLocked when another process serves this directory.

    While another HQ writes the same database it waits as a standby, and tells ``waiting`` so.

    ``broken_store`` makes it lose envelopes on purpose, for the proof that a proof can fail.
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

            def told(why: str) -> None:
                monitor.waiting = f"HQ waits: {why}"
                waiting(why)

            store = await _open(lambda: open_store(config, kind=kind), told, patient=patient)
            try:
                check_whole(store)
                monitor.hq = HQ(config, store)
                await run(monitor.hq, task_status=task_status)
            finally:
                store.close()


@asynccontextmanager
async def _monitor(config: ServerConfig) -> AsyncIterator[Monitor]:
    """The metrics port, if there is to be one, from before the store is open until the end."""
    monitor = Monitor()
    listeners = await open_listeners(parse_listen(config.metrics.listen))
    if not listeners:
        yield monitor
        return
    with unwrapped():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(monitor.serve, listeners)
            log.info("Metrics are served", extra={"addresses": [address_of(x) for x in listeners]})
            yield monitor
            nursery.cancel_scope.cancel()


async def _open(
    attempt: Callable[[], Store], waiting: Callable[[str], None], *, patient: bool
) -> Store:
    """The store, as soon as nobody else has it; ``patient`` waits for a database that does not
    answer, too.
    """
    said = False

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
        nonlocal said
        systemd.alive()
        if said:
            return
        said = True
        if isinstance(error, StoreLeased):
            log.info("Standby: another HQ serves this database", extra={"holder": str(error)})
        else:
            log.warning(
                "The database does not answer; HQ waits for it", extra={"error": str(error)}
            )
        waiting(str(error))

    return await retry(
        once, Backoff(STANDBY_S, STANDBY_S), transient=only(StoreLeased, Busy), on_failure=failed
    )


async def run(hq: HQ, *, task_status: trio.TaskStatus[Served] = trio.TASK_STATUS_IGNORED) -> None:
    """Runs an HQ that was put together; ends gracefully when cancelled.  Raises what the engine
    ended with.
    """
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
            told, here = parse_listen(text), given.get(name)
            for listener in given_listeners(here, told) if here else await open_listeners(told):
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
            handlers.start_soon(_tick, hq)
            handlers.start_soon(keep_retention, hq)
            handlers.start_soon(_keep_watch, hq)
            handlers.start_soon(_keep_writing, hq)
            handlers.start_soon(_tell_systemd, hq)
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
    """What was taken is committed and answered, then every connection is told to come back
    later.
    """
    hq.stopping = True
    with trio.move_on_after(hq.config.limits.stop_s):
        for session in hq.connections:
            session.quiet()
        await hq.engine.idle()
        for session in hq.connections:
            session.end(GoingAway())
        await hq.connections.all_closed()
        await hq.engine.idle()


async def _tick(hq: HQ) -> None:
    """One clock for all sessions: a task for each would be a tenth of what an idle connection
    costs.
    """
    before = trio.current_time()
    while True:
        await trio.sleep(_TICK_S)
        now = trio.current_time()
        late, before = now - before > _LATE_S, now
        if late:  # HQ itself stood still: its peers have a turn before anybody is judged
            continue
        for session in hq.connections:
            session.tick(now)
        hq.memory.tick(now)
        hq.drain.tick(now)
        settle_floods()


async def _tell_systemd(hq: HQ) -> None:
    """A sign of life as long as the engine's own task takes its turns, and what HQ does in
    words.
    """
    turns, said = -1, ""
    pause_s = min(_NEWS_S, systemd.watchdog_s() / 3 or _NEWS_S)
    while True:
        await trio.sleep(pause_s)
        if turns != hq.engine.turns:
            turns = hq.engine.turns
            systemd.alive()
        count = len(hq.connections)
        text = f"STATUS=serving {count} connection{'' if count == 1 else 's'}"
        if text != said and systemd.notify(text):
            said = text


async def _keep_writing(hq: HQ) -> None:
    """Tells the store that this HQ is alive; ends HQ when another one took over."""
    await trio.sleep(_RENEW_S)
    # of a store that is busy, whoever wants to commit says so
    await repeat(lambda: hq.engine.in_store(hq.store.renew), _RENEW_S, transient=only(Busy))


async def keep_retention(hq: HQ) -> None:
    """Once an hour, old records go as the settings say."""
    await repeat(
        lambda: _retain(hq),
        _RETENTION_S,
        on_failure=lambda error, _: log.error(
            "Old records could not be dropped", extra={"error": str(error)}
        ),
    )


async def _retain(hq: HQ) -> None:
    while True:
        wanted, now = hq.config.retention, hq.clock_ms()
        days = (wanted.metadata_days, wanted.dead_letter_days, wanted.log_days)
        cutoffs = Cutoffs(*(now - d * _DAY_MS if d else 0 for d in days))
        try:
            old = any(days) and await hq.engine.in_store(hq.store.retention_due, cutoffs)
        except Busy:
            return  # the store is away; there is time
        if not old:
            return
        await hq.engine.call(lambda n, c=cutoffs: Retain(0, "", n, c))  # type: ignore[misc]
        log.info("Old records were dropped", extra={"cutoffs": cutoffs._asdict()})


async def _keep_watch(hq: HQ) -> None:
    """Says in the log, long before it is too late, what an admin should look at."""
    watch = Watch(hq)
    say = lambda text, why: log.error(text, extra={"reason": why})  # noqa: E731
    teller = Teller(hq.config.server.name, hq.config.alerts, hq.config.directory, say)
    while True:
        found = watch.look()
        teller.settings = hq.config.alerts
        if teller.settings.any:
            await teller.look(found)
        await trio.sleep(_WATCH_S)


async def _keep_crl(hq: HQ) -> None:
    """Renews the revocation list before it ends."""
    await trio.sleep(_CRL_CHECK_S)
    await repeat(
        lambda: hq.engine.in_store(hq.trust.crl),
        _CRL_CHECK_S,
        on_failure=lambda error, _: log.error(
            "The revocation list could not be renewed", extra={"error": str(error)}
        ),
    )
