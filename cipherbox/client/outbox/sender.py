"""Keep sealed envelopes in the outbox, send them, and record their outcomes.

One task writes.  What was sealed while it wrote is the next batch, so a busy publisher pays one
sync for many envelopes, and nothing is sent before the sync that keeps it.  Outcomes are written
with the next batch, or after a short pause: a crash in between sends the same bytes again, which HQ
confirms again.

What earlier processes of this home left behind goes first, in its order; until that is under way,
what is new waits behind it.  Rows that changed a moment ago may belong to a process that is sending
them now: those are left alone for a while, and sent twice at worst.

Errors are of three kinds.  The network, HQ being busy, credentials: the envelope waits, and goes
out when that is mended.  A changed route, and recipients for whom HQ takes nothing (revoked,
unknown, or they take no mail from this client): sealed anew for those who read it now, if the
allow-list permits, and for those who are left; it waits until then.  Every other refusal: aside,
with the reason, until a person retries or cancels it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from cipherbox import clock
from cipherbox.client.connection.confirm_window import PendingPublish
from cipherbox.client.connection.reconnecting import ReconnectingConnection
from cipherbox.client.events import SENDER, Events
from cipherbox.client.outbox.outbox import Outbox
from cipherbox.client.outbox.resealing import PAGE, Reseal, Resealing, Revoked, waits
from cipherbox.client.outbox.rows import Confirmed, Proven, Refused, Row
from cipherbox.client.publishing.routes import is_mailbox
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.concurrency import Flag, Signal
from cipherbox.envelope.layout import split
from cipherbox.envelope.prefix import VERSION, version_of
from cipherbox.errors import (
    CipherBoxError,
    KeyReused,
    RouteChanged,
    SessionMoved,
    StoreError,
    refused_recipients,
)
from cipherbox.wire.frames import Confirm

OUTCOME_PAUSE_S = 0.2  # outcomes alone wait so long for company
ABANDONED_MS = 30_000  # a row that waits so long unchanged belongs to no process that sends
LOOK_S = 5.0  # between looks for such rows
WRITE_RETRY_S = 1.0  # before outcomes that the disk did not take are written again
CLOSE_S = 5.0  # for the last write
in_thread = trio.to_thread.run_sync


class OutboxSender(Resealing):
    """See the module.  ``reseal`` seals a row's bytes again in the next generation, ``revoked``
    names who was; ``sessions``: what some of the envelopes were sealed with; ``holds``: whether
    bytes are signed with today's keys.
    """

    def __init__(
        self,
        connection: ReconnectingConnection,
        outbox: Outbox,
        events: Events,
        reseal: Reseal,
        revoked: Revoked,
        sender: str,
        sessions: Sessions,
        holds: Callable[[bytes], bool],
    ) -> None:
        self.outbox = outbox
        self._revoked, self._sessions, self._holds = revoked, sessions, holds
        self._connection, self._events, self._reseal, self._sender = (
            connection,
            events,
            reseal,
            sender,
        )
        self._window = connection.window
        self._new: list[PendingPublish] = []
        self._new_bytes = 0
        # kept, and waiting behind what was left; None: nothing was left
        self._behind: list[PendingPublish] | None = []
        self._known: dict[bytes, int] = {}  # envelope id -> generation, of what this process sends
        self._confirmed: list[Confirmed] = []
        self._refused: list[Refused] = []
        self._proven: list[Proven] = []
        self._steps: list[_Step] = []
        self._turn = trio.Lock()  # the outbox takes one call at a time
        self._one_at_a_time = trio.Lock()  # is sealed again
        self._work, self._look, self._written = Flag(), Flag(), Signal()
        # HQ's history was looked at: nothing it may have lost counts as confirmed
        self.compared = trio.Event()
        self.opened_ms = clock.now_ms()
        if not outbox.waiting(0, self.opened_ms, 1):
            self._behind = None

    # -- for publishers ----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Return whether another envelope would have to wait for room."""
        return bool(self._behind) or self._window.crowded(len(self._new), self._new_bytes)

    def add(self, item: PendingPublish) -> None:
        """Keep a sealed envelope, then send it.  Raise TooLarge if HQ would refuse it."""
        self._window.check(item)
        self._new.append(item)
        self._new_bytes += len(item.raw)
        self._known[item.envelope_id] = item.generation
        self._work.set()

    def aside(self, item: PendingPublish, error: CipherBoxError) -> None:
        """Its owner could not mend what HQ refused: kept aside with the reason."""
        self._refused.append(Refused(item.envelope_id, item.generation, error.code, str(error)))
        self._work.set()

    def refuse(self, row: Row, error: CipherBoxError) -> None:
        """It cannot be mended: kept aside with the reason."""
        self._refused.append(Refused(row.envelope_id, row.generation, error.code, str(error)))
        self._work.set()

    async def kept(self, item: PendingPublish) -> None:
        """Wait until the envelope is on this machine's disk; raise StoreError if it cannot be."""
        while not item.kept and item.error is None:
            await self._written.wait()
        if not item.kept and item.error is not None:
            raise item.error

    async def turned(self, step: RatchetStep) -> None:
        """Keeps a step of a session that no envelope of the outbox made; SessionMoved,
        StoreError: it was not made.
        """
        told = _Step(step)
        self._steps.append(told)
        self._work.set()
        await told.done.wait()
        if told.error is not None:
            raise told.error

    def look(self) -> None:
        """Look into the outbox now: something waits again."""
        self._look.set()

    async def store(self, call: Callable[..., object], *arguments: object) -> object:
        """Run one of the outbox's methods in a thread, one at a time."""
        async with self._turn:
            return await in_thread(call, *arguments)

    async def compare(self, history: bytes) -> None:
        """HQ has said what its history is; another one than before means that it may have lost
        what it confirmed.
        """
        if history:
            await self._compare(history)
        self.compared.set()

    async def _compare(self, history: bytes) -> None:
        await self._write()  # what the old one confirmed is in the outbox before it is doubted
        count = await self.store(self.outbox.rewound, history)
        if count:
            news = (
                f"HQ was set back to an earlier state: {count} envelopes that nobody signed for "
                "are sent again"
            )
            self._events.emit(SENDER, news)
            self.look()

    # -- the tasks ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled; then what is known is still written."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._drain)
                self._nursery = nursery
                while True:
                    await self._work.wait()
                    if not self._new and not self._steps:
                        with trio.move_on_after(OUTCOME_PAUSE_S):
                            await self._until_new()
                    await self._write()
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await self._write()
            with trio.CancelScope(shield=True):  # as long as a call of the outbox may take
                async with self._turn:
                    self.outbox.close()

    async def _until_new(self) -> None:
        while not self._new and not self._steps:
            self._work.clear()
            await self._work.wait()

    async def _write(self) -> None:
        self._work.clear()
        new, self._new = self._new, []
        confirmed, self._confirmed = self._confirmed, []
        refused, self._refused = self._refused, []
        proven, self._proven = self._proven, []
        steps, self._steps = self._steps, []
        if not (new or confirmed or refused or proven or steps):
            return
        batch: list[PendingPublish | _Step] = [*new, *steps]
        kept = [item.entry for item in new if item.entry is not None]
        turned = [step.turned for step in steps]
        try:
            if self._sessions.unsynced:
                await self.store(self._sessions.sync)
            moved = await self.store(self.outbox.write, kept, confirmed, refused, proven, turned)
            assert isinstance(moved, set)
        except CipherBoxError as error:
            self._confirmed = confirmed + self._confirmed
            self._refused = refused + self._refused
            self._proven = proven + self._proven
            failure = StoreError(
                f"the outbox cannot keep what was sealed, so it was not sent: {error}"
            )
            for one in batch:
                self._unkept(one, failure)
            if not new:
                await trio.sleep(WRITE_RETRY_S)
                self._work.set()
            return
        finally:
            self._new_bytes -= sum(len(item.raw) for item in new)
            self._written.notify()
        for one in batch:
            if any(step.session_id in moved for step in _turned(one)):
                self._unkept(one, SessionMoved())
                continue
            if isinstance(one, PendingPublish) and one.envelope_id in moved:
                self._unkept(one, KeyReused())
                continue
            self._sessions.kept(_turned(one))
            if isinstance(one, _Step):
                one.done.set()
                continue
            one.kept = True
            if self._behind is not None:
                self._behind.append(one)
            else:
                self._send(one)

    def _unkept(self, one: PendingPublish | _Step, error: CipherBoxError) -> None:
        """Report that it was not kept, and is not sent."""
        self._sessions.lost(_turned(one))
        if isinstance(one, _Step):
            one.error = error
            one.done.set()
            return
        self._known.pop(one.envelope_id, None)
        one.error, one.gone = error, True
        one.tell_owner()

    def _send(self, item: PendingPublish) -> None:
        try:
            if self._connection.failure is not None:
                raise again(self._connection.failure)
            self._window.add(item)
        except CipherBoxError as error:
            item.error, item.gone = error, True
            self.settled(item)

    async def _drain(self) -> None:
        """Sends what was left behind, then looks now and then for more of it."""
        before = self.opened_ms
        while True:
            self._look.clear()
            with suppress(CipherBoxError):  # the line has failed for good: what waits, waits
                await self._left_behind(before)
            behind, self._behind = self._behind, None
            for item in behind or []:
                self._send(item)
            if behind is not None:
                self._window.tell_room()
            with trio.move_on_after(LOOK_S):
                await self._look.wait()
            now = clock.now_ms()
            before = now if self._look.is_set() else now - ABANDONED_MS

    async def _left_behind(self, before_ms: int) -> None:
        after = 0
        while True:
            rows = await self.store(self.outbox.waiting, after, before_ms, PAGE)
            assert isinstance(rows, list)
            if not rows:
                return
            for row in rows:
                after = row.number
                if self._known.get(row.envelope_id, -1) < row.generation:
                    await self._resume(row)

    async def _resume(self, row: Row) -> None:
        raw = await self.store(self.outbox.bytes_of, row)
        if not isinstance(raw, bytes):
            found = await self.store(self.outbox.find, row.envelope_id)
            # all have opened it; the confirm went with its process
            if isinstance(found, Row) and not found.owed:
                self._confirmed.append(Confirmed(row.envelope_id, row.generation, 0, ()))
            else:
                self._refused.append(
                    Refused(
                        row.envelope_id, row.generation, 0, "its bytes are gone from the outbox"
                    )
                )
            self._work.set()
            return
        await self._connection.ready()
        # Sealed by an older program, or with the keys this client had before it came back: nobody
        # takes it any more.
        if version_of(raw) != VERSION or not self._holds(raw):
            await self.mend(row.envelope_id, row.generation)
            return
        await self._window.room()
        if self._known.get(row.envelope_id, -1) < row.generation:
            self._known[row.envelope_id] = row.generation
            self._events.messages(SENDER, "Sending {} again", row.envelope_id, row.messages)
            item = PendingPublish(
                raw, row.envelope_id, row.messages, None, row.flags, row.route_version
            )
            item.generation, item.envelope_hash, item.kept = row.generation, row.envelope_hash, True
            self._send(item)

    async def _for_the_others(self, item: PendingPublish, error: CipherBoxError) -> None:
        """HQ refuses some of its recipients; its owner hears so when the others' generation is
        settled.
        """

        def on_outcome(new: PendingPublish | None) -> None:
            text = f"{error}; the others get it: {', '.join(item.others)}"
            if new is not None and new.error is not None:
                text, item.others = f"{error}; {new.error}", new.others
            item.error = type(error)(text, error.detail)
            item.tell_owner()

        if not await self.mend(item.envelope_id, item.generation, error, on_outcome):
            on_outcome(None)

    def proven(self, frame: Confirm, items: list[PendingPublish]) -> None:
        """Keep HQ's proof that these envelopes are in its signed log, with those in the outbox."""
        names = tuple(item.envelope_id for item in items if item.kept)
        if names:
            leaves = b"".join(item.leaf() for item in items)
            self._proven.append(Proven(frame.log_position, frame.proof, leaves, names))
            self._work.set()

    # -- outcomes ----------------------------------------------------------------------------------

    def settled(self, item: PendingPublish) -> None:
        """Record the outcome of an envelope of the outbox, and tell whoever published it."""
        self._known.pop(item.envelope_id, None)
        error = item.error
        if item.result is not None:
            self._confirmed.append(
                Confirmed(
                    item.envelope_id, item.generation, item.result.accepted_at, item.result.queues
                )
            )
        elif isinstance(error, RouteChanged):
            if item.on_outcome is None:
                self._nursery.start_soon(self.mend, item.envelope_id, item.generation)
        elif error is not None and (others := _others(item, error)):
            item.others = others
            self._nursery.start_soon(self._for_the_others, item, error)
            return
        elif error is not None and not waits(error):
            self._refused.append(Refused(item.envelope_id, item.generation, error.code, str(error)))
        self._work.set()
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


@attrs.define(eq=False)
class _Step:
    """A step of a session by itself."""

    turned: RatchetStep
    done: trio.Event = attrs.Factory(trio.Event)
    error: CipherBoxError | None = None


def _turned(one: PendingPublish | _Step) -> tuple[RatchetStep, ...]:
    if isinstance(one, _Step):
        return (one.turned,)
    return one.entry.turned if one.entry is not None else ()


def _others(item: PendingPublish, error: CipherBoxError) -> tuple[str, ...]:
    """Who could get an envelope that HQ refused because of some recipients; of a route nobody
    can be left out.
    """
    refused = refused_recipients(error)
    prefix = split(item.raw).prefix if refused else None
    if prefix is None or not is_mailbox(prefix.exchange, prefix.routing_key):
        return ()
    return tuple(one.client_id for one in prefix.recipients if one.client_id not in refused)


def again(error: CipherBoxError) -> CipherBoxError:
    """Return a copy of an error, to be raised once more."""
    return type(error)(str(error), error.detail)
