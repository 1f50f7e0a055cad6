"""The one task that owns the broker.  It drains what has gathered, handles it, commits it in one
transaction, and only then lets confirms and deliveries go; while a commit runs the next batch
gathers: group commit without a timer.

Rules.
1. Nothing of a batch leaves before its commit returned.
2. Memory never stays ahead of the disk.  After a failed commit the core is thrown away: the batch
   is refused with a retryable code, all connections are closed, the core is loaded from the store
   again.  A full disk is found before the core is touched whenever that is possible: then publishes
   alone are refused, and acks go on.
3. `submit` waits while the queue holds too many commands or bytes, so whoever reads from a peer
   stops reading.
4. The store is used from one worker thread at a time, through `in_store` alone; bodies are read in
   another.
5. No peer can hold up the engine: what it hands over are numbers and answers, put into the peer's
   own queue.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
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
    Wanted,
)
from cipherbox.concurrency import Backoff, Flag, Signal, only, retry
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
from cipherbox.server.connection.peer import Call, Peer, Proof
from cipherbox.server.operations.counting import count_batch, count_handed, count_requests
from cipherbox.server.operations.event_log import EventLog
from cipherbox.server.transparency_log import (
    NO_PROOFS,
    Proofs,
    Stored,
    TransparencyLog,
    read_stored,
)
from cipherbox.store.port import HISTORY, Body, Store

T = TypeVar("T")
Runner = Callable[..., Awaitable[object]]
log = get_logger(__name__)
SWEEP_S = 1.0
RECOVER_PAUSE_S = 1.0  # between tries to load again while the store does not answer
SILENT_S = 2.0
FULL_PAUSE_S = 5.0  # publishes are refused at once for so long after a commit found the disk full
# with so much room beside a batch the store is not asked for an exact answer
_PLENTY_BYTES = 256 * 1024 * 1024
_ROW_BYTES = 4096  # what an envelope costs on the disk beside its own bytes


class Engine:
    """See the module.  ``clock_ms`` gives ms since 1970; ``runner`` runs store calls (tests run
    them inline).
    """

    def __init__(
        self,
        store: Store,
        limits: Limits,
        clock_ms: Callable[[], int],
        runner: Runner | None = None,
        audit: TransparencyLog | None = None,
    ) -> None:
        self._store = store
        self.audit = audit
        self._proofs = NO_PROOFS  # of the newest commit
        self._limits = limits
        self._clock_ms = clock_ms
        self._limiter = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(store.readers)
        self._runner = runner
        self._queue: deque[tuple[AnyCommand, int, float]] = deque()  # command, bytes, when it came
        self._times: list[float] = []  # when the commands of the batch under way came
        self._bytes = 0
        self._work, self._room, self._idle = Flag(), Signal(), Flag()
        self._swept_at = 0.0
        self._pages: list[tuple[str, int]] = []
        self._peers: dict[int, Peer] = {}
        self._next_connection = 1
        self._calls: dict[int, Call] = {}
        self._next_call = 1
        self._full_until = 0.0
        self._disk_full = False
        # trio time since when the store has not answered a write or a load
        self._store_since: float | None = None
        self.turns = 0  # of the task: at least one each second, unless a commit hangs
        self._journal = EventLog()
        self.counts = Counts()
        self.draining = False  # publishes are refused, everything else goes on
        self.away = ""  # why the store is not there
        self.turned_at = time.monotonic()  # when the loop last began a batch
        self.bodies = BodyCache(limits.body_cache_bytes, self._read_bodies, self._lost)
        self.broker = Broker(store.load(limits.head_entries), limits)
        self.history = store.get_setting(HISTORY) or os.urandom(16)
        store.put_setting(HISTORY, self.history)
        if audit is not None:
            audit.load(read_stored(store), self.history)
            if audit.begins:
                self._write(Effects(m.Changes(noted=1)))

    # -- for sessions ------------------------------------------------------------------------------

    def attach(self, peer: Peer) -> int:
        """A connection begins; returns its number."""
        number = self._next_connection
        self._next_connection += 1
        self._peers[number] = peer
        self.broker.connect(number, peer.client)
        return number

    def detach(self, connection: int) -> None:
        """A connection is gone; what it held returns to the queues."""
        if self._peers.pop(connection, None) is not None:
            self.post(m.Disconnect(connection))

    async def submit(self, command: AnyCommand, size: int = 0) -> None:
        """Hands a command over, waiting while there is no room."""
        while (
            len(self._queue) >= self._limits.engine_commands
            or self._bytes > self._limits.engine_bytes
        ):
            await self._room.wait()
        # not after its end: nobody would take it back
        if getattr(command, "connection", 0) in self._peers:
            self._put(command, size)

    def post(self, command: AnyCommand) -> None:
        """Hands over a small command without waiting: for HQ's own follow-ups, never for what a
        peer sends.
        """
        self._put(command, 0)

    async def call(self, make: Callable[[int], AnyCommand]) -> Answer:
        """Asks as HQ itself (connection 0); ``make`` gets the correlation id.  A refusal is
        raised.
        """
        answer = (await self._called(make)).answer
        assert answer is not None
        return answer

    @property
    def log_key(self) -> bytes:
        """Public key of the signed log; empty: none is kept."""
        return self.audit.public if self.audit is not None else b""

    def log_head(self) -> bytes:
        """The newest head of the signed log, signed now; empty: none is kept."""
        return self.audit.head(self._clock_ms()) if self.audit is not None else b""

    async def note(self, kind: int, payload: bytes) -> bytes:
        """Puts a group into the signed log; the proof of it, empty when no log is kept."""
        call = await self._called(lambda n: m.Note(0, "", n, kind, payload))
        return call.proof

    async def _called(self, make: Callable[[int], AnyCommand]) -> Call:
        number = self._next_call
        self._next_call += 1
        call = self._calls[number] = Call()
        try:
            self._put(make(number), 0)
            await call.done.wait()
        finally:
            del self._calls[number]
        if isinstance(call.answer, Failed):
            raise call.answer.error
        return call

    async def in_store(self, call: Callable[..., T], *args: object) -> T:
        """Runs one of the store's methods in its thread; it is not abandoned when the caller is
        cancelled.
        """
        if self._runner is not None:
            return await self._runner(call, *args)  # type: ignore[return-value]
        return await trio.to_thread.run_sync(call, *args, limiter=self._limiter)

    def store_away(self, now: float) -> bool:
        """Whether the store has been silent for so long that those who wait should know."""
        return self._store_since is not None and now - self._store_since > SILENT_S

    async def idle(self) -> None:
        """Waits until nothing is queued and nothing is being committed."""
        while self._queue or not self._idle.is_set():
            await self._idle.wait()

    @property
    def disk_full(self) -> bool:
        """Publishes are refused until there is room."""
        return self._disk_full

    @property
    def waiting(self) -> int:
        """Commands that wait for their batch."""
        return len(self._queue)

    def _put(self, command: AnyCommand, size: int) -> None:
        self._queue.append((command, size, time.perf_counter()))
        self._bytes += size
        self._work.set()

    async def _read_bodies(self, numbers: list[int]) -> list[Body | None]:
        if self._runner is not None:
            return await self._runner(self._store.read_bodies, numbers)  # type: ignore[return-value]
        return await trio.to_thread.run_sync(
            self._store.read_bodies, numbers, limiter=self._reading
        )

    def _lost(self, queue: str, seqs: list[int], reason: str) -> None:
        log.error(
            "Envelopes cannot be delivered and become dead letters",
            extra={"queue": queue, "seqs": seqs, "reason": reason},
        )
        self.post(m.Lost([(queue, seq) for seq in seqs], reason))

    # -- the task ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until cancelled; raises when the store is lost for good (damaged, or taken over
        by another HQ).
        """
        while True:
            self.turns += 1
            await self._gather()
            self.turned_at = time.monotonic()
            batch = self._take()
            try:
                effects = await self._commit(batch)
            except Busy as error:
                await self._recover(batch, error)
            except StoreError:
                raise
            except Exception:
                log.exception("HQ made a mistake and loads its state again")
                await self._recover(
                    batch,
                    StoreUnavailable("HQ made a mistake and starts over; nothing was recorded"),
                )
            else:
                self._distribute(effects, batch)

    async def _gather(self) -> None:
        """Waits for work, at most until the next sweep."""
        if not self._queue and not self._pages:
            self._idle.set()
            self._work.clear()
            with trio.move_on_at(self._swept_at + SWEEP_S):
                await self._work.wait()
        self._idle.clear()
        now = trio.current_time()
        if now >= self._swept_at + SWEEP_S:
            self._swept_at = now
            self._put(m.Sweep(), 0)

    def _take(self) -> list[AnyCommand]:
        batch: list[AnyCommand] = []
        size = 0
        self._times = []
        while self._queue and size <= self._limits.batch_commit_bytes:
            command, cost, came = self._queue.popleft()
            batch.append(command)
            self._times.append(came)
            size += cost
        self._bytes -= size
        self._room.notify()
        return batch

    async def _commit(self, batch: list[AnyCommand]) -> Effects:
        wanted = self.broker.wanted(batch)
        wanted.pages += self._pages
        self._pages = []
        need = sum(i.size + _ROW_BYTES for c in batch if isinstance(c, m.Publish) for i in c.items)
        room, facts = True, Facts()
        ask = need if need and self._store.free_bytes() < need + _PLENTY_BYTES else 0
        if (
            ask
            or wanted.known
            or wanted.entries
            or wanted.pages
            or wanted.envelopes
            or wanted.dead
            or wanted.retired
        ):
            more = self._limits.disk_resume_bytes if self._disk_full and ask else 0
            room, facts = await self.in_store(self._look, ask + more, wanted)
        if need:
            self._note_disk(full=not room or trio.current_time() < self._full_until)
        if need and (self._disk_full or self.draining):
            batch = self._refuse_publishes(batch, Draining() if self.draining else DiskFull())
        effects = self.broker.handle(batch, facts, self._clock_ms())
        self._proofs = NO_PROOFS
        if effects.changes:
            self._store_since = trio.current_time()
            self._proofs = await self.in_store(self._write, effects)
            self._store_since = None
        self._pages = effects.pages
        return effects

    def _write(self, effects: Effects) -> Proofs:
        """In the store's thread: the commit with its entry in the signed log; proofs for those
        who published.
        """
        proofs = NO_PROOFS
        if self.audit is not None:
            effects.changes.log, proofs = self.audit.entry(effects, self._clock_ms())
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
                else "The disk has room again: publishes are taken"
            )

    def _look(self, need: int, wanted: Wanted) -> tuple[bool, Facts]:
        """In the store's thread: is there room for so many bytes, and what does the batch want
        to know?
        """
        return not need or self._store.room(need), self._store.facts(
            wanted, self._limits.page_entries
        )

    def _refuse_publishes(self, batch: list[AnyCommand], error: CipherBoxError) -> list[AnyCommand]:
        """No room on the disk, or a drain: publishes are refused before they touch the core; all
        else goes on.
        """
        for command in batch:
            if isinstance(command, m.Publish):
                self._answer(
                    command.connection, [Failed(item.correlation, error) for item in command.items]
                )
        return [c for c in batch if not isinstance(c, m.Publish)]

    def _distribute(self, effects: Effects, batch: Sequence[AnyCommand]) -> None:
        """What a committed batch lets go; no await, so nothing can come between."""
        entry = effects.changes.log.index if effects.changes.log is not None else 0
        self._remember(effects, entry)
        self._journal.committed(effects, batch)
        count_batch(self.counts, effects)
        count_requests(self.counts, batch, self._times)
        self._journal.handed(effects)
        for correlation, proof in self._proofs.notes.items():
            if correlation in self._calls:
                self._calls[correlation].proof = proof
        for connection, answers in effects.answers.items():
            proofs = self._proofs.confirms.get(connection)
            self._answer(connection, answers, (entry, proofs) if proofs is not None else None)
        for connection, tag, queue, entries in effects.handed:
            if connection in self._peers:
                self._peers[connection].hand(tag, queue, entries)
        for connection, error in effects.closed.items():
            if connection in self._peers:
                self._peers[connection].end(error)

    def _remember(self, effects: Effects, log_entry: int) -> None:
        changes = effects.changes
        handed = (
            {entry.number for run in effects.handed for entry in run.entries}
            if changes.envelopes
            else set()
        )
        for number, _, _, incoming in changes.envelopes:
            self.bodies.put(number, log_entry, incoming.body, handed=number in handed)  # type: ignore[arg-type]
        for number, incoming in changes.replaced:
            self.bodies.put(number, log_entry, incoming.body, handed=False)  # type: ignore[arg-type]
        for number in changes.finished:
            self.bodies.drop(number)

    def _answer(
        self, connection: int, answers: Sequence[Answer], proof: Proof | None = None
    ) -> None:
        if connection == 0:
            for answer in answers:
                call = self._calls.get(answer.correlation)
                if call is not None:
                    call.answer = answer
                    call.done.set()
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
                    count_handed(self.counts, answer.entries)
                    peer.fetched(answer)

    # -- after a failure ---------------------------------------------------------------------------

    async def _recover(self, batch: Sequence[AnyCommand], error: CipherBoxError) -> None:
        """Memory may be ahead of the disk: refuse, close, load again."""
        log.error("The store failed; HQ loads its state again", extra={"error": str(error)})
        self.away = str(error)
        self.counts.store_failures += 1
        if isinstance(error, DiskFull):
            self._full_until = trio.current_time() + FULL_PAUSE_S
        for command in batch:
            if isinstance(command, m.Publish):
                self._answer(
                    command.connection, [Failed(item.correlation, error) for item in command.items]
                )
            elif isinstance(command, m.Command):
                self._answer(command.connection, [Failed(command.correlation, error)])
        away = GoingAway("HQ's store failed and HQ starts over; connect again")
        peers, self._peers = list(self._peers.values()), {}
        for peer in peers:
            peer.end(away)
        self.bodies.clear()
        self._pages = []
        self._queue = deque(one for one in self._queue if getattr(one[0], "connection", 0) == 0)
        self._bytes = sum(size for _, size, _ in self._queue)
        self._room.notify()
        self._store_since = self._store_since or trio.current_time()
        snapshot, stored, history = await self._load()
        self._store_since = None
        if self.audit is not None:
            self.audit.load(stored, history)
        if history != self.history:
            log.critical(
                "The store went back in time: confirmed messages may be lost; clients send them "
                "again"
            )
            self.history = history
            for peer in self._peers.values():  # they came meanwhile, and were told the old one
                peer.end(away)
            self._peers.clear()
        self.broker = Broker(snapshot, self._limits)
        for number, peer in self._peers.items():  # those that came meanwhile
            self.broker.connect(number, peer.client)
        self.away = ""

    async def _load(self) -> tuple[m.Snapshot, Stored, bytes]:
        async def load() -> tuple[m.Snapshot, Stored, bytes]:
            self.turns += 1
            snapshot = await self.in_store(self._store.load, self._limits.head_entries)
            history = await self.in_store(self._store.get_setting, HISTORY) or self.history
            return snapshot, await self.in_store(read_stored, self._store), history

        return await retry(
            load,
            Backoff(RECOVER_PAUSE_S, RECOVER_PAUSE_S),
            transient=only(Busy),
            on_failure=lambda error, _: log.error(
                "The store does not answer", extra={"error": str(error)}
            ),
        )
