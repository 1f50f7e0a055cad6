"""The one task that owns the broker.  It takes the queued commands as a batch, executes it, commits
it in one transaction, and only then sends confirms and deliveries; while a commit runs, the next
batch accumulates: group commit without a timer.

Rules:

1. Nothing of a batch leaves before its commit has returned.
2. Memory never stays ahead of the disk.  After a failed commit the broker is discarded: the batch
   is refused with a retryable error, all connections are closed, and the broker is reloaded from
   the store.  A full disk is detected before the broker is changed whenever possible: then only
   publishes are refused, and acks continue.
3. `submit` waits while the queue is full, so that the sessions stop reading from their peers.
4. The store is used from one worker thread at a time, only through `in_store`; bodies are read in
   another.
5. No peer can block the engine: it puts numbers and answers into the peer's own queue.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import trio

from cipherbox.broker import model as m
from cipherbox.broker.broker import Broker
from cipherbox.broker.model import (
    Answer,
    AnyCommand,
    Effects,
    Facts,
    Failed,
    FetchedEntries,
    RequiredFacts,
)
from cipherbox.concurrency import Backoff, Flag, background, only, retry
from cipherbox.errors import (
    Busy,
    CipherBoxError,
    DiskFull,
    Draining,
    GoingAway,
    StoreError,
    StoreUnavailable,
)
from cipherbox.limits import Limits
from cipherbox.ops.logs import get_logger
from cipherbox.ops.metrics import Counts
from cipherbox.server.body_cache import BodyCache
from cipherbox.server.command_queue import Batch, CommandQueue
from cipherbox.server.connection.peer import Peer, Proof
from cipherbox.server.operations.counting import count_batch, count_delivered, count_requests
from cipherbox.server.operations.event_log import EventLog
from cipherbox.server.own_calls import OwnCalls
from cipherbox.server.store_threads import Runner, StoreThreads
from cipherbox.server.transparency_log import (
    NO_PROOFS,
    Proofs,
    Stored,
    TransparencyLog,
    read_stored,
)
from cipherbox.store.port import INCARNATION, Store
from cipherbox.store.reserve import PLENTY_BYTES
from cipherbox.store.rows import LOADED, decoding

T = TypeVar("T")
log = get_logger(__name__)
RECOVER_PAUSE_S = 1.0  # between tries to reload while the store is not available
SILENT_S = 2.0
FULL_PAUSE_S = 5.0  # publishes are refused for this time after a commit found the disk full
_LOST = "The store lost commits: confirmed messages may be lost; clients resend them"
_ROW_BYTES = 4096  # that an envelope takes on the disk besides its own bytes


class Engine:
    """The task that owns the broker.  ``clock_ms`` returns ms since 1970; ``runner`` runs store
    calls (tests run them inline); ``refusal`` says why publishes are refused by the clock.
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        clock_ms: Callable[[], int],
        runner: Runner | None = None,
        audit: TransparencyLog | None = None,
        refusal: Callable[[], CipherBoxError | None] = lambda: None,
    ) -> None:
        self._store = store
        self.audit = audit
        self._proofs = NO_PROOFS  # of the newest commit
        self._limits = limits
        self.clock_ms, self._refusal = clock_ms, refusal
        self._threads = StoreThreads(store, runner)
        self._queue = CommandQueue(limits)
        self._idle = Flag()
        self._pages: list[tuple[str, int]] = []
        self._peers: dict[int, Peer] = {}
        self._next_connection = 1
        self._calls = OwnCalls(self.post)
        self._full_until = 0.0
        self._disk_full = not store.room(0)
        # trio's time since which a write or load of the store has been pending
        self._store_since: float | None = None
        self.turns = 0  # of the task: at least one per second, unless a commit hangs
        self._event_log = EventLog()
        self.counts = Counts()
        self.draining = False  # publishes are refused, everything else continues
        self.outage = ""  # why the store is not available
        self.turned_at = time.monotonic()  # when the loop last began a batch
        self.bodies = BodyCache(limits.body_cache_bytes, self._threads.read_bodies, self._lost)
        self.broker = _broker(store.load(limits.head_entries), limits)
        self.incarnation = _incarnation(store, audit)
        if audit is not None:
            audit.load(read_stored(store), self.incarnation)
            if audit.begins:
                self._write(Effects(m.Changes(noted=1)))

    # -- for sessions ------------------------------------------------------------------------------

    def attach(self, peer: Peer) -> int:
        """Register a connection and return its number."""
        number = self._next_connection
        self._next_connection += 1
        self._peers[number] = peer
        self.broker.connect(number, peer.client)
        return number

    def detach(self, connection: int) -> None:
        """Remove a connection; what it has not acknowledged is requeued."""
        if self._peers.pop(connection, None) is not None:
            self.post(m.Disconnect(connection))

    async def submit(self, command: AnyCommand, size: int = 0) -> None:
        """Queue a command, waiting while the queue is full."""
        await self._queue.room()
        # not after the connection's end: nothing would undo it
        if getattr(command, "connection", 0) in self._peers:
            self._queue.put(command, size)

    def post(self, command: AnyCommand) -> None:
        """Queue a small command without waiting: only for HQ's own, never for what a peer sends."""
        self._queue.put(command)

    async def call(self, make: Callable[[int], AnyCommand]) -> Answer:
        """Execute a command as HQ itself (connection 0) and return its answer; raise its error.

        ``make`` gets the correlation id.
        """
        answer = (await self._calls.call(make)).answer
        assert answer is not None
        return answer

    @property
    def log_key(self) -> bytes:
        """The public key of the signed log; empty without a log."""
        return self.audit.public if self.audit is not None else b""

    def log_head(self) -> bytes:
        """Return the newest head of the signed log, signed now; empty without a log."""
        return self.audit.head(self.clock_ms()) if self.audit is not None else b""

    async def note(self, kind: int, payload: bytes) -> bytes:
        """Add a group to the signed log and return its proof, empty without a log."""
        call = await self._calls.call(lambda n: m.Note(0, "", n, kind, payload))
        return call.proof

    async def in_store(self, call: Callable[..., T], *args: object) -> T:
        """Run one of the store's methods in its thread; cancelling the caller does not
        abandon it.
        """
        return await self._threads.run(call, *args)

    def store_silent(self, now: float) -> bool:
        """Return whether the store has been pending so long that clients should be notified."""
        return self._store_since is not None and now - self._store_since > SILENT_S

    async def idle(self) -> None:
        """Wait until nothing is queued and nothing is being committed."""
        while self._queue or not self._idle.is_set():
            await self._idle.wait()

    @property
    def disk_full(self) -> bool:
        """Whether publishes are refused until the disk has room."""
        return self._disk_full

    @property
    def waiting(self) -> int:
        """The number of queued commands."""
        return len(self._queue)

    def _lost(self, queue: str, seqs: list[int], reason: str) -> None:
        # what was acknowledged while it waited to be sent has no body, and is not lost
        found = self.broker.state.queues.get(queue)
        seqs = [seq for seq in seqs if found is not None and found.find(seq) is not None]
        if seqs:
            _log_lost(queue, seqs, reason)
            self.post(m.LostBodies([(queue, seq) for seq in seqs], reason))

    # -- the task ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Run until cancelled; raise StoreError if the store is damaged or another HQ has taken
        over.
        """
        async with background() as nursery:
            nursery.start_soon(self._queue.keep_sweeping)
            await self._take_turns()

    async def _take_turns(self) -> None:
        while True:
            self.turns += 1
            await self._gather()
            self.turned_at = time.monotonic()
            batch = self._queue.take()
            try:
                effects = await self._commit(batch.commands)
            except Busy as error:
                await self._recover(batch.commands, error)
            except StoreError:
                raise
            except Exception:
                log.exception("Internal error; HQ reloads its state")
                await self._recover(
                    batch.commands,
                    StoreUnavailable(
                        "internal error in HQ, which reloads its state; nothing was recorded"
                    ),
                )
            else:
                self._distribute(effects, batch)
                await self._log(effects, batch)

    async def _gather(self) -> None:
        """Wait for commands."""
        if not self._queue and not self._pages:
            self._idle.set()
            await self._queue.work()
        self._idle.clear()

    async def _commit(self, batch: list[AnyCommand]) -> Effects:
        wanted = self.broker.required_facts(batch)
        wanted.pages += self._pages
        self._pages = []
        need = sum(i.size + _ROW_BYTES for c in batch if isinstance(c, m.Publish) for i in c.items)
        room, facts = True, Facts()
        plenty = not self._disk_full and self._store.free_bytes() >= need + PLENTY_BYTES
        ask = 0 if plenty else need
        if ask or wanted != RequiredFacts():
            room, facts = await self.in_store(self._read_facts, ask, wanted)
        if need:
            self._note_disk(full=not room or trio.current_time() < self._full_until)
        now = self.clock_ms()  # before the refusal: it checks the clock
        refusal = Draining() if self.draining else self._refusal()
        if need and (refusal or self._disk_full):
            self._refuse([c for c in batch if isinstance(c, m.Publish)], refusal or DiskFull())
            batch = [c for c in batch if not isinstance(c, m.Publish)]
        effects = self.broker.handle(batch, facts, now)
        self._proofs = NO_PROOFS
        if effects.changes:
            self._store_since = trio.current_time()
            self._proofs = await self.in_store(self._write, effects)
            self._store_since = None
        self._pages = effects.pages
        return effects

    def _write(self, effects: Effects) -> Proofs:
        """Commit with an entry in the signed log, in the store's thread; return the proofs."""
        proofs = NO_PROOFS
        if self.audit is not None:
            effects.changes.log, proofs = self.audit.entry(effects, self.clock_ms())
        self._timed_commit(effects)
        if self.audit is not None:
            self.audit.committed()
        return proofs

    def _timed_commit(self, effects: Effects) -> None:
        began, synced = time.perf_counter(), self._store.synced_s
        self._store.commit(effects.changes, self._store.epoch)
        self.counts.commit.observe(time.perf_counter() - began)
        self.counts.sync.observe(self._store.synced_s - synced)

    def _note_disk(self, *, full: bool) -> None:
        if full != self._disk_full:
            self._disk_full = full
            log.warning(
                "The disk is full: publishes are refused"
                if full
                else "The disk has room again: publishes are accepted"
            )

    def _read_facts(self, need: int, wanted: RequiredFacts) -> tuple[bool, Facts]:
        """Return whether there is room for a batch, and its facts, in the store's thread."""
        return not need or self._store.room(need), self._store.facts(
            wanted, self._limits.page_entries
        )

    def _refuse(self, commands: Sequence[AnyCommand], error: CipherBoxError) -> None:
        """Answer commands with an error, without executing them."""
        for command in commands:
            if isinstance(command, m.Publish):
                self._answer(
                    command.connection, [Failed(item.correlation, error) for item in command.items]
                )
            elif isinstance(command, m.Command):
                self._answer(command.connection, [Failed(command.correlation, error)])

    def _distribute(self, effects: Effects, batch: Batch) -> None:
        """Send the effects of a committed batch; without an await, so nothing can intervene."""
        entry = effects.changes.log.index if effects.changes.log is not None else 0
        self._cache_bodies(effects, entry)
        count_batch(self.counts, effects)
        count_requests(self.counts, batch.commands, batch.queued_at)
        self._calls.prove(self._proofs.notes)
        for connection, answers in effects.answers.items():
            proofs = self._proofs.confirms.get(connection)
            self._answer(connection, answers, (entry, proofs) if proofs is not None else None)
        for connection, tag, queue, entries in effects.deliveries:
            if connection in self._peers:
                self._peers[connection].deliver(tag, queue, entries)
        for connection, error in effects.closed.items():
            if connection in self._peers:
                self._peers[connection].end(error)

    async def _log(self, effects: Effects, batch: Batch) -> None:
        """Log a batch after its confirms and deliveries have left: a line costs 0.35 ms.  It is
        logged even if the engine is cancelled meanwhile.
        """
        try:
            numbers = {*effects.answers, *(run.connection for run in effects.deliveries)}
            peers = [self._peers[one] for one in numbers if one in self._peers]
            if any(peer.lags for peer in peers) and self._event_log.has_lines(effects):
                # The writers of the connections run in the next round of trio's loop, in any order
                # with this task; after a second one all of them have sent what they could.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
        finally:
            self._event_log.committed(effects, batch.commands)
            self._event_log.delivered(effects)

    def _cache_bodies(self, effects: Effects, log_entry: int) -> None:
        changes = effects.changes
        delivered = (
            {entry.number for run in effects.deliveries for entry in run.entries}
            if changes.envelopes
            else set()
        )
        for number, _, _, incoming in changes.envelopes:
            self.bodies.put(number, log_entry, incoming.body, on_its_way=number in delivered)  # type: ignore[arg-type]
        for number, incoming in changes.replaced:
            self.bodies.put(number, log_entry, incoming.body, on_its_way=False)  # type: ignore[arg-type]
        for number in changes.finished:
            self.bodies.drop(number)

    def _answer(
        self, connection: int, answers: Sequence[Answer], proof: Proof | None = None
    ) -> None:
        if connection == 0:
            self._calls.answer(answers)
            return
        peer = self._peers.get(connection)
        if peer is None:
            return
        plain = [a for a in answers if type(a) is not FetchedEntries]
        if plain:
            peer.answer(plain, proof)
        if len(plain) < len(answers):
            for answer in answers:
                if type(answer) is FetchedEntries:
                    count_delivered(self.counts, answer.entries)
                    peer.fetched(answer)

    # -- after a failure ---------------------------------------------------------------------------

    async def _recover(self, batch: Sequence[AnyCommand], error: CipherBoxError) -> None:
        """Refuse the batch, close all connections and reload: memory may be ahead of the disk."""
        log.error("The store failed; HQ reloads its state", extra={"error": str(error)})
        self.outage = str(error)
        self.counts.store_failures += 1
        if isinstance(error, DiskFull):
            self._full_until = trio.current_time() + FULL_PAUSE_S
        self._refuse(batch, error)
        away = GoingAway("HQ's store failed and HQ reloads its state", remedy="reconnect")
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            peer.end(away)
        self.bodies.clear()
        self._pages = []
        self._queue.drop_requests()
        self._store_since = self._store_since or trio.current_time()
        snapshot, stored, incarnation = await self._load()
        self._store_since = None
        if self.audit is not None:
            self.audit.load(stored, incarnation)
        if incarnation != self.incarnation:
            log.critical(_LOST)
            self.incarnation = incarnation
            for peer in self._peers.values():  # connected meanwhile, with the old incarnation
                peer.end(away)
            self._peers.clear()
        self.broker = _broker(snapshot, self._limits)
        for number, peer in self._peers.items():  # those that connected meanwhile
            self.broker.connect(number, peer.client)
        self.outage = ""

    async def _load(self) -> tuple[m.Snapshot, Stored, bytes]:
        async def load() -> tuple[m.Snapshot, Stored, bytes]:
            self.turns += 1
            snapshot = await self.in_store(self._store.load, self._limits.head_entries)
            incarnation = (
                await self.in_store(self._store.get_setting, INCARNATION) or self.incarnation
            )
            return snapshot, await self.in_store(read_stored, self._store), incarnation

        return await retry(
            load,
            Backoff(RECOVER_PAUSE_S, RECOVER_PAUSE_S),
            transient=only(Busy),
            on_failure=lambda error, _: log.error(
                "The store is not available", extra={"error": str(error)}
            ),
        )


def _broker(snapshot: m.Snapshot, limits: Limits) -> Broker:
    with decoding(LOADED):
        return Broker(snapshot, limits)


def _incarnation(store: Store, audit: TransparencyLog | None) -> bytes:
    """Return the store's incarnation id; begin a new one if it has lost commits."""
    incarnation = store.get_setting(INCARNATION) or os.urandom(16)
    if audit is not None and audit.lost_commits(store):
        log.critical(_LOST)
        incarnation = os.urandom(16)
    store.put_setting(INCARNATION, incarnation)
    return incarnation


def _log_lost(queue: str, seqs: list[int], reason: str) -> None:
    log.error(
        "Envelopes cannot be delivered and become dead letters",
        extra={"queue": queue, "seqs": seqs, "reason": reason},
    )
