"""The one sender: every sealed envelope of this client goes through it, and every outcome back.

Messages have an outbox entry: they are kept on this machine's disk before the first try.  Parts of
files and receipts have none, since a transfer's record or the inbox remembers them until they are
confirmed; they are sent immediately.  From there on all are alike: the confirm window has their
credit and sends them again over the next connection, and ``on_outcome`` is called once.

One task writes.  What was sealed while it wrote is the next batch, so a busy publisher pays one
sync for many envelopes.  Outcomes are written after a short pause, many together and with a batch,
since one alone changes three pages of the database.  A crash before that sends the same bytes
again, which HQ confirms again.

A batch is sent between its commit and its sync, and no caller is told that it is kept, confirmed or
refused before the sync.  What a crash leaves:

1. Before the commit: nothing was sent, nothing is kept.
2. The process is killed after the commit: the rows are in the outbox, and the next process sends
   them, under the same ids.  It also finds them when a receipt comes first.
3. The power fails between commit and sync: the outbox has the batch or not, and so has HQ.  What
   only HQ has is delivered once; its receipt finds no row and is ignored.  No caller had an answer.
   One that repeats its publish sends a second message, as always without an idempotency key.
4. After the sync: as 2.

So a batch is synced first if 3 would do harm: if it has a ratchet step (a key would be used twice),
an idempotency key or a file of the agent (sent once, whatever happens), or takes the place of
another envelope or generation (that one would be sent again).

What earlier processes of this home left behind goes first, in its order; until that is under way,
new messages wait behind it.  Rows that changed a moment ago may belong to a process that is sending
them now: those are left alone for a while, and sent twice at worst.

Errors are of three kinds:

1. The network, HQ being busy, credentials, a wrong clock: the envelope waits in the outbox and is
   sent when the cause is gone.
2. A changed route, and recipients for whom HQ takes nothing (revoked, unknown, or they take no mail
   from this client): it is sealed again for today's readers, if the allow-list permits them, or for
   the remaining recipients; it waits until then.
3. Every other refusal: it is parked, with the reason, until a person retries or cancels it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import attrs
import trio

from cipherbox import clock
from cipherbox.classes import define
from cipherbox.client.connection.confirm_window import PendingPublish, kept_error
from cipherbox.client.connection.reconnecting import Patience, ReconnectingConnection
from cipherbox.client.events import SENDER, Events
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.outcomes import PendingOutcomes
from cipherbox.client.outbox.resealing import PAGE, Reseal, Resealing, Revoked, waits
from cipherbox.client.outbox.rows import (
    PARKED,
    WAITING,
    Confirmed,
    OutboxEntry,
    Proven,
    Refused,
    Row,
)
from cipherbox.client.publishing.routes import is_mailbox
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.concurrency import Flag, Signal
from cipherbox.envelope.layout import Octets, split
from cipherbox.envelope.prefix import VERSION, peek_version
from cipherbox.errors import (
    CipherBoxError,
    ClockSkew,
    KeyReused,
    RouteChanged,
    SessionMoved,
    StoreError,
    TooOld,
    refused_recipients,
)
from cipherbox.wire.frames import Confirm

# Sealed and not yet on their way to the disk: a publisher then lets the other tasks run, so that
# sealing, writing and sending overlap.  256 envelopes are 70 ms of sealing; fewer cost more syncs.
AHEAD, AHEAD_BYTES = 256, 16 * 1024 * 1024
ABANDONED_MS = 30_000  # a row unchanged for so long belongs to no process that sends
LOOK_S = 5.0  # between looks for such rows
WRITE_RETRY_S = 1.0  # before outcomes that could not be written are written again
CLOSE_S = 5.0  # for the last write


class OutboxSender(Resealing):
    """See the module.

    ``reseal`` seals a row's bytes again in the next generation; ``revoked`` returns the revoked
    recipients; ``sessions`` are what some of the envelopes were sealed with; ``holds`` returns
    whether bytes are signed with today's keys.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        outbox: Outbox,
        events: Events,
        reseal: Reseal,
        revoked: Revoked,
        sessions: Sessions,
        holds: Callable[[bytes], bool],
    ) -> None:
        super().__init__(outbox)
        self._connection, self._window, self._events = connection, connection.window, events
        self._reseal, self._revoked = reseal, revoked
        self._sessions, self._holds = sessions, holds
        self._new: list[PendingPublish] = []
        self._new_bytes = 0
        self.opened_ms = clock.now_ms()
        # kept, and waiting behind what was left; None: nothing was left
        left = outbox.waiting(0, self.opened_ms, 1)
        self._behind: list[PendingPublish] | None = [] if left else None
        self._known: dict[bytes, int] = {}  # envelope id -> generation, of what this process sends
        self._steps: list[_StepToKeep] = []
        self._unsynced: set[PendingPublish] = set()  # sent, and being synced
        self._one_at_a_time = trio.Lock()  # is sealed again
        self._work, self._look = Flag(), Flag()
        self._outcomes = PendingOutcomes(self._work.set)
        self.written = Signal()  # envelopes or outcomes were written to the outbox
        # nothing that HQ may have lost in a restore still counts as confirmed
        self.compared = trio.Event()

    # -- for publishers ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Return whether another envelope would have to wait for room."""
        new, size = len(self._new), self._new_bytes
        return _is_ahead(new, size) or bool(self._behind) or self._window.crowded(new, size)

    async def room(self) -> None:
        """Wait until the confirm window has room."""
        await self._window.room()

    def add(self, item: PendingPublish) -> None:
        """Send a sealed envelope; one with an outbox entry is kept first.

        Raise TooLarge if HQ would refuse it.
        """
        self._window.check(item)
        if item.entry is None:
            self._send(item)
            return
        self._new.append(item)
        self._new_bytes += len(item.raw)
        self._known[item.envelope_id] = item.generation
        self._work.set()

    async def kept(self, item: PendingPublish) -> None:
        """Wait until the envelope is on this machine's disk; raise StoreError if it cannot be."""
        while not item.kept and (item.error is None or item in self._unsynced):
            await self.written.wait()
        if not item.kept and item.error is not None:
            raise item.error

    async def confirmed(
        self, item: PendingPublish, outcome: trio.Event, patience: Patience
    ) -> bool:
        """Wait for HQ's confirm; return False when the patience ended first, and raise HQ's
        refusal.

        ``outcome`` is set by the item's ``on_outcome``, which is not called later: what the outbox
        keeps is still sent, anything else is withdrawn.
        """
        try:
            while not outcome.is_set() and not patience.ended:
                await patience.wait(outcome)
        finally:
            if item.entry is not None:
                item.disown()
            elif not item.gone:
                self._window.forget(item)
        if item.error is not None:
            raise kept_error(item, item.error)
        return item.result is not None

    def park(self, envelope: PendingPublish | Row, error: CipherBoxError) -> None:
        """Park an envelope that HQ refused and nobody here can mend, with the reason."""
        refused = Refused(envelope.envelope_id, envelope.generation, error.code, str(error))
        self._outcomes.refused(refused)

    async def keep_step(self, step: RatchetStep) -> None:
        """Keep a ratchet step that belongs to no envelope of the outbox.

        Raise SessionMoved or StoreError if it was not kept.
        """
        waiting = _StepToKeep(step)
        self._steps.append(waiting)
        self._work.set()
        await waiting.done.wait()
        if waiting.error is not None:
            raise waiting.error

    def look(self) -> None:
        """Look into the outbox now: an envelope waits again."""
        self._look.set()

    async def compare(self, incarnation: bytes) -> None:
        """Compare the id of HQ's store with the last one seen.

        Another one means that HQ was restored and may have lost what it confirmed.
        """
        if incarnation:
            while self._unsynced:
                await self.written.wait()
            self._outcomes.due = True
            await self._write()  # what the earlier store confirmed is recorded before it is doubted
            count = await self.store(self.outbox.resend_if_restored, incarnation)
            if count:
                news = (
                    f"HQ was set back to an earlier state: {count} envelopes that nobody signed "
                    "for are sent again"
                )
                self._events.emit(SENDER, news)
                self.look()
        self.compared.set()

    # -- the tasks ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Write and send until cancelled; then write the outcomes known so far."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                nursery.start_soon(self._outcomes.run)
                self._nursery, self._token = nursery, trio.lowlevel.current_trio_token()
                while True:
                    await self._work.wait()
                    await self._write()
        finally:
            self._outcomes.due = True
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._write()
            with trio.CancelScope(shield=True):  # as long as a call of the outbox may take
                await self.close()

    async def _write(self) -> None:
        self._work.clear()
        ahead = _is_ahead(len(self._new), self._new_bytes)
        new, self._new = self._new, []
        steps, self._steps = self._steps, []
        outcomes = self._outcomes.take()
        if not (new or steps or outcomes):
            return
        if ahead:
            self._window.tell_room()
        batch: list[PendingPublish | _StepToKeep] = [*new, *steps]
        entries = [item.entry for item in new if item.entry is not None]
        early = None
        if new and not steps and not any(map(_is_synced_first, entries)):
            early = partial(self._token.run_sync_soon, self._send_unsynced, new)
        try:
            if self._sessions.unsynced:
                await self.store(self._sessions.sync)
            moved = await self.store(
                self.outbox.write,
                entries,
                outcomes.confirmed,
                outcomes.refused,
                outcomes.proven,
                [one.step for one in steps],
                on_visible=early,
            )
        except CipherBoxError as error:
            self._outcomes.put_back(outcomes)
            for one in batch:
                self._not_kept(one, _failure(error, sent=one in self._unsynced))
            if not new:
                await trio.sleep(WRITE_RETRY_S)
            return
        finally:
            self._new_bytes -= sum(len(item.raw) for item in new if item not in self._unsynced)
            self.written.notify()
        written = [self._was_written(one, moved) for one in batch]
        if going := [one for one in written if one is not None]:
            self._send(*going)

    def _send_unsynced(self, items: list[PendingPublish]) -> None:
        """Send what is committed and being synced, unless the sync was faster than this call."""
        if self._behind is None:
            early = [item for item in items if not item.kept and item.error is None]
            self._unsynced.update(early)
            self._new_bytes -= sum(len(item.raw) for item in early)  # the window counts them now
            self._send(*early)

    def _was_written(
        self, one: PendingPublish | _StepToKeep, moved: set[bytes]
    ) -> PendingPublish | None:
        """Return what is to be sent now.  ``moved``: the sessions, and the idempotency keys, that
        another process used meanwhile.
        """
        if any(step.session_id in moved for step in _steps_of(one)):
            self._not_kept(one, SessionMoved())
            return None
        if isinstance(one, PendingPublish) and one.envelope_id in moved:
            self._not_kept(one, KeyReused())
            return None
        self._sessions.committed(_steps_of(one))
        if isinstance(one, _StepToKeep):
            one.done.set()
            return None
        one.kept = True
        if one in self._unsynced:
            self._unsynced.discard(one)
            if one.gone:  # HQ was faster than this disk
                self.settled(one)
        elif self._behind is not None:
            self._behind.append(one)
        else:
            return one
        return None

    def _not_kept(self, one: PendingPublish | _StepToKeep, error: CipherBoxError) -> None:
        """Report that it was not kept, and is not sent."""
        self._sessions.rolled_back(_steps_of(one))
        if isinstance(one, _StepToKeep):
            one.error = error
            one.done.set()
            return
        self._known.pop(one.envelope_id, None)
        self._unsynced.discard(one)
        self._window.forget(one)
        one.error = error
        one.tell_owner()

    def _send(self, *items: PendingPublish) -> None:
        try:
            if self._connection.failure is not None:
                raise self._connection.failure.copy()
            self._window.add(*items)
        except CipherBoxError as error:
            for item in items:
                if len(items) > 1:  # the error may concern only one of them
                    self._send(item)
                else:
                    item.error, item.gone = error, True
                    self.settled(item)

    # -- what was left behind ----------------------------------------------------------------------

    async def _drain(self) -> None:
        """Send what was left behind, then look for more of it now and then."""
        before = self.opened_ms
        while True:
            self._look.clear()
            with suppress(CipherBoxError):  # the connection failed permanently: the outbox keeps it
                await self._send_left_behind(before)
            behind, self._behind = self._behind, None
            if behind is not None:
                self._send(*behind)
                self._window.tell_room()
            with trio.move_on_after(LOOK_S):
                await self._look.wait()
            if self.outbox.has_spares:
                await self.store(self.outbox.drop_spares)
            now = clock.now_ms()
            before = now if self._look.is_set() else now - ABANDONED_MS

    async def _send_left_behind(self, before_ms: int) -> None:
        after = 0
        while rows := await self.store(self.outbox.waiting, after, before_ms, PAGE):
            for row in rows:
                after = row.number
                if self._known.get(row.envelope_id, -1) < row.generation:
                    await self._resume(row)

    async def _resume(self, row: Row) -> None:
        """Send an envelope of an earlier process; mend it if nobody can open it any more."""
        raw = await self.store(self.outbox.bytes_of, row)
        if raw is None:
            found = await self.store(self.outbox.find, row.envelope_id)
            if found is not None and not found.owed:  # all have opened it; the confirm was lost
                self._outcomes.confirmed(Confirmed(row.envelope_id, row.generation, 0, ()))
            else:
                reason = "its bytes are gone from the outbox"
                self._outcomes.refused(Refused(row.envelope_id, row.generation, 0, reason))
            return
        await self._connection.ready()
        # sealed by an older version, or with keys that this client has replaced since
        if peek_version(raw) != VERSION or not self._holds(raw):
            await self.mend(row.envelope_id, row.generation)
            return
        await self._window.room()
        if self._known.get(row.envelope_id, -1) < row.generation:
            self._known[row.envelope_id] = row.generation
            self._events.messages(SENDER, "Sending {} again", row.envelope_id, row.messages)
            self._send(_pending(row, raw))

    # -- outcomes ----------------------------------------------------------------------------------

    def proven(self, frame: Confirm, items: list[PendingPublish]) -> None:
        """Keep HQ's proof that these envelopes are in its signed log, with those in the outbox."""
        names = tuple(i.envelope_id for i in items if i.kept or i in self._unsynced)
        if names:
            leaves = b"".join(item.leaf() for item in items)
            self._outcomes.proven(Proven(frame.log_position, frame.proof, leaves, names))

    def settled(self, item: PendingPublish) -> None:
        """Record the outcome of an envelope of the outbox; pass every outcome on to its owner."""
        if item in self._unsynced:
            return  # until it is synced
        if not item.kept:
            item.tell_owner()
            return
        self._known.pop(item.envelope_id, None)
        error = item.error
        if item.result is not None:
            self._outcomes.confirmed(
                Confirmed(
                    item.envelope_id, item.generation, item.result.accepted_at, item.result.queues
                )
            )
        elif isinstance(error, RouteChanged):
            if item.on_outcome is None:
                self._nursery.start_soon(self.mend, item.envelope_id, item.generation)
        elif error is not None and (others := _others(item, error)):
            item.others = others
            self._nursery.start_soon(self.seal_for_others, item, error)
            return
        elif error is not None and (refused := _refused(item, error)) is not None:
            self._outcomes.refused(refused)
        if item.on_outcome is not None:
            item.tell_owner()
        else:
            self._events.messages(
                SENDER,
                "Server ACK received for {}" if error is None else f"{{}}: {error}",
                item.envelope_id,
                item.count,
                mark=error is None,
            )


@define(eq=False)
class _StepToKeep:
    """A ratchet step that belongs to no envelope of the outbox."""

    step: RatchetStep
    done: trio.Event = attrs.Factory(trio.Event)
    error: CipherBoxError | None = None


def _pending(row: Row, raw: Octets) -> PendingPublish:
    """Return an envelope of an earlier process, which is to be sent again."""
    item = PendingPublish(raw, row.envelope_id, row.messages, None, row.flags, row.route_version)
    item.generation, item.envelope_hash, item.kept = row.generation, row.envelope_hash, True
    return item


def _steps_of(one: PendingPublish | _StepToKeep) -> tuple[RatchetStep, ...]:
    if isinstance(one, _StepToKeep):
        return (one.step,)
    return one.entry.steps if one.entry is not None else ()


def _is_ahead(new: int, size: int) -> bool:
    return new >= AHEAD or (new > 0 and size >= AHEAD_BYTES)


def _is_synced_first(entry: OutboxEntry) -> bool:
    return bool(entry.steps or entry.origins or entry.replaces or entry.generation)


def _failure(error: CipherBoxError, *, sent: bool) -> StoreError:
    what = "HQ may have it nevertheless" if sent else "it was not sent"
    return StoreError(f"the outbox cannot keep what was sealed, and {what}: {error}")


def _refused(item: PendingPublish, error: CipherBoxError) -> Refused | None:
    """Return the outcome of a refused envelope; None if it just waits.

    One that is refused for its time waits with the reason, until the clocks are right again.
    """
    in_time = not isinstance(error, ClockSkew | TooOld)
    if in_time and waits(error):
        return None
    state = PARKED if in_time else WAITING
    return Refused(item.envelope_id, item.generation, error.code, str(error), state)


def _others(item: PendingPublish, error: CipherBoxError) -> tuple[str, ...]:
    """Return the recipients that HQ did not refuse; none for a route, which leaves nobody out."""
    refused = refused_recipients(error)
    prefix = split(item.raw).prefix if refused else None
    if prefix is None or not is_mailbox(prefix.exchange, prefix.routing_key):
        return ()
    return tuple(one.client_id for one in prefix.recipients if one.client_id not in refused)
