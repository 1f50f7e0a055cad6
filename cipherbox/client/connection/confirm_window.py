"""The window of publishes that HQ has not confirmed yet, in the order they were published.

An envelope is `waiting` until there is a connection with room, then `unconfirmed` until HQ confirms
or refuses it.  When a connection ends, everything unconfirmed waits again, in its old place, and is
sent over the next one: the same bytes under the same id, so HQ stores them once.  A correlation id
belongs to a connection; a `PendingPublish` belongs to the window.  A retryable refusal (disk full,
quota) puts the envelope back as well; any other is its outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from cipherbox.classes import define, frozen
from cipherbox.envelope.ids import message_id
from cipherbox.envelope.layout import Octets, hashes, split
from cipherbox.envelope.transparency_log import leaf
from cipherbox.errors import (
    CipherBoxError,
    ClockSkew,
    CredentialsError,
    LogUnproven,
    ProtocolError,
    Queued,
    TimedOut,
    TooLarge,
    TooOld,
)
from cipherbox.limits import LIMITS
from cipherbox.wire.codec import SendItem
from cipherbox.wire.frames import Confirm

if TYPE_CHECKING:
    from cipherbox.client.connection.connection import Connection
    from cipherbox.client.log.quorum import Quorum
    from cipherbox.client.outbox.rows import OutboxEntry

# a slower connection is considered dead; 16 MiB may take nine minutes
SLOWEST_BYTES_PER_S = 32 * 1024


@frozen
class Confirmed:
    """HQ's confirm of one envelope."""

    accepted_at: int
    again: bool
    queues: tuple[str, ...]
    missing: tuple[str, ...]
    proof: bytes = b""


@define(eq=False)
class PendingPublish:
    """One sealed envelope on its way.  ``on_outcome`` is called once, when ``result`` or ``error``
    is known.
    """

    raw: Octets = attrs.field(repr=False)
    envelope_id: bytes
    count: int
    on_outcome: Callable[[PendingPublish], None] | None
    flags: int = 0
    route_version: int = 0
    # what the outbox keeps of it; None: its content is recorded elsewhere
    entry: OutboxEntry | None = attrs.field(default=None, repr=False)
    generation: int = 0
    # empty: made from the bytes when it is needed
    envelope_hash: bytes = attrs.field(default=b"", repr=False)
    kept: bool = False  # it is in the outbox
    order: int = 0
    correlation: int = 0
    sent_at: float = 0.0
    tries: int = 0
    result: Confirmed | None = None
    error: CipherBoxError | None = None
    trouble: CipherBoxError | None = None  # why it is unconfirmed
    gone: bool = False  # settled, or dropped by its owner
    # for whom the outbox seals it again, when HQ refused only some of its recipients
    others: tuple[str, ...] = ()

    def tell_owner(self) -> None:
        """Call ``on_outcome`` unless the owner has stopped waiting."""
        if self.on_outcome is not None:
            self.on_outcome(self)

    def disown(self) -> None:
        """The owner stops waiting for the outcome; the outbox keeps sending."""
        self.on_outcome = None

    def leaf(self) -> bytes:
        """Return the leaf that must be in HQ's log for this envelope."""
        if not self.envelope_hash:
            self.envelope_hash = hashes(self.raw, split(self.raw)).envelope_hash
        return leaf(self.envelope_id, self.generation, self.envelope_hash)


OnOutcome = Callable[[PendingPublish], None]


def set_by_outcome(event: trio.Event) -> OnOutcome:
    """Return an ``on_outcome`` that sets ``event``."""
    return lambda _: event.set()


class ProofCheck(Protocol):
    """What a window needs of the log verifier."""

    quorum: Quorum

    def confirm(self, frame: Confirm, leaves: Sequence[bytes], *, again: bool) -> None: ...


class WindowOwner(Protocol):
    """What a window tells: the connection, which passes it on."""

    def pause(self, seconds: float) -> None:
        """Call `resume` after this time."""

    def proven(self, frame: Confirm, items: list[PendingPublish]) -> None: ...

    def settled(self, item: PendingPublish) -> None: ...


class ConfirmWindow:
    """See the module.  One per client; it outlives its connections.  ``log`` checks confirms.

    The outcome of each envelope goes to ``owner``, which passes it on to ``on_outcome``.
    """

    def __init__(self, owner: WindowOwner, log: ProofCheck | None = None) -> None:
        self._owner, self._log = owner, log
        # correlation -> of every SEND of this connection that has no answer
        self._leaves: dict[int, bytes] = {}
        # confirmed, but not yet covered by a quorum of witnesses
        self._uncovered: list[tuple[int, PendingPublish, Confirmed]] = []
        self.unconfirmed: dict[int, PendingPublish] = {}
        self.waiting: list[PendingPublish] = []
        # publishers: called when room may have come free
        self.room_listeners: list[Callable[[], None]] = []
        self._connection: Connection | None = None
        self._order = 0
        self._bytes = 0
        self._most = LIMITS.publish_window
        self._most_bytes = LIMITS.publish_window_bytes
        self.envelope_bytes = LIMITS.envelope_bytes  # the largest HQ takes
        self._held = False
        self._busy = 0

    @property
    def full(self) -> bool:
        """Return whether another envelope would have to wait for room."""
        return (
            bool(self.waiting)
            or len(self.unconfirmed) >= self._most
            or self._bytes >= self._most_bytes
        )

    def crowded(self, envelopes: int, size: int) -> bool:
        """Return what `full` would be with this many more envelopes and bytes."""
        return (
            bool(self.waiting)
            or len(self.unconfirmed) + envelopes >= self._most
            or self._bytes + size >= self._most_bytes
        )

    @property
    def size_bytes(self) -> int:
        """Return the number of bytes sent and not confirmed."""
        return self._bytes

    @property
    def idle(self) -> bool:
        """Return whether everything is confirmed."""
        return not self.unconfirmed and not self.waiting and not self._uncovered

    async def room(self) -> None:
        """Wait until the window is no longer `full`."""
        while self.full:
            came = trio.Event()
            self.room_listeners.append(came.set)
            try:
                await came.wait()
            finally:
                self.room_listeners.remove(came.set)

    def tell_room(self) -> None:
        """Notify the listeners that room may be free."""
        for listener in list(self.room_listeners):
            listener()

    def check(self, item: PendingPublish) -> None:
        """Raise TooLarge if HQ would not accept it."""
        if len(item.raw) > self.envelope_bytes:
            raise TooLarge(
                f"the envelope has {len(item.raw)} bytes; HQ takes {self.envelope_bytes}"
            )

    def add(self, *items: PendingPublish) -> None:
        """Take envelopes, and send them immediately if there is a connection with room.

        Raise TooLarge, taking none, if HQ would not accept one of them.
        """
        for item in items:
            self.check(item)
        for item in items:
            self._order += 1
            item.order = self._order
        self.waiting += items
        if self._connection is not None and not self._held:
            self._pump(self._connection)

    def forget(self, item: PendingPublish) -> None:
        """Stop waiting for an outcome; HQ may have the envelope nevertheless."""
        item.gone = True
        if item in self.waiting:
            self.waiting.remove(item)

    def attach(self, connection: Connection) -> None:
        """Take the limits of a new connection, and resend everything unconfirmed over it."""
        self._connection = connection
        self._most = max(1, connection.welcome.publish_window)
        self._most_bytes = max(1, connection.welcome.publish_window_bytes)
        self.envelope_bytes = connection.welcome.envelope_bytes
        self._held = False
        self._pump(connection)

    def detach(self, error: CipherBoxError) -> None:
        """Put back, in order, what the ended connection had not confirmed."""
        self._connection = None
        items = [*self.unconfirmed.values(), *(item for _, item, _ in self._uncovered)]
        for item in items:
            item.trouble = error
        self._take_back(items)
        self.unconfirmed.clear()
        self._uncovered.clear()
        self._leaves.clear()
        self._bytes = 0

    def confirmed(self, frame: Confirm) -> None:
        """Settle everything a CONFIRM names; raise LogUnproven unless its proof holds."""
        self._check(frame)
        places = [(tuple(p.queues), tuple(p.missing)) for p in frame.places]
        proven: list[PendingPublish] | None = [] if frame.proof else None
        for run in frame.ranges:
            if run.place >= len(places):
                raise ProtocolError("CONFIRM names a place it does not hold")
            queues, missing = places[run.place]
            result = Confirmed(frame.accepted_at, run.outcome == 1, queues, missing, frame.proof)
            for correlation in range(
                run.first, run.first + min(run.count, LIMITS.publish_window * 64)
            ):
                item = self._pop(correlation)
                if item is None:
                    proven = None  # unknown to this window: the proof cannot be checked
                elif proven is not None and run.outcome == 0:
                    proven.append(item)
                if item is not None and not item.gone:
                    self._confirm(frame.log_position, item, result)
        if proven:
            self._owner.proven(frame, proven)
        self._busy = 0
        self.resume()
        self.tell_room()

    def _check(self, frame: Confirm) -> None:
        if self._log is None:
            return
        outcomes = {run.outcome for run in frame.ranges}
        leaves = []
        for run in frame.ranges:
            for correlation in range(run.first, run.first + run.count):
                known = self._leaves.pop(correlation, None)
                if known is None:
                    raise LogUnproven("HQ confirmed an envelope that was not sent to it")
                leaves.append(known)
        if len(outcomes) != 1 or not outcomes <= {0, 1}:
            raise ProtocolError("a CONFIRM has one outcome")
        self._log.confirm(frame, leaves, again=outcomes == {1})

    def _confirm(self, entry: int, item: PendingPublish, result: Confirmed) -> None:
        if self._log is not None and self._log.quorum.demanded and entry > self._log.quorum.covered:
            item.trouble = LogUnproven(
                f"HQ confirmed it, and {self._log.quorum.description} have not cosigned that yet"
            )
            self._uncovered.append((entry, item, result))
            return
        item.result = result
        self._settle(item)

    def covered(self, entries: int) -> None:
        """Settle what was confirmed in the first ``entries`` of the log, now that enough witnesses
        cosigned them.
        """
        ready = [one for one in self._uncovered if one[0] <= entries]
        self._uncovered = [one for one in self._uncovered if one[0] > entries]
        for _, item, result in ready:
            if not item.gone:
                item.result = result
                self._settle(item)
        if ready:
            self.tell_room()

    def refused(self, correlation: int, error: CipherBoxError) -> bool:
        """Settle a refused SEND, or put it back if the error is retryable; return whether the ERROR
        was about a SEND.
        """
        item = self._pop(correlation)
        self._leaves.pop(correlation, None)
        if item is None:
            return False
        if item.gone:
            return True
        if error.retryable:
            item.trouble = error
            self._take_back([item])
            if not self._held:
                self._held = True
                self._busy += 1
                self._owner.pause(min(0.1 * 2 ** min(self._busy, 9), 30.0))
        else:
            item.error = error
            self._settle(item)
        return True

    def resume(self) -> None:
        """Resume sending after a pause, or when there is room."""
        self._held = False
        if self._connection is not None and self.waiting:
            self._pump(self._connection)

    def fail(self, error: CipherBoxError) -> None:
        """Settle everything with the error that ended the connection permanently."""
        items, self.waiting = [*self.unconfirmed.values(), *self.waiting], []
        items += [item for _, item, _ in self._uncovered]
        self.unconfirmed.clear()
        self._uncovered.clear()
        for item in items:
            if not item.gone:
                item.error = error
                self._settle(item)

    def overdue(self, connection: Connection, timeout_s: float) -> None:
        """Resend what HQ has not confirmed in time; end a connection on which HQ is silent."""
        now = trio.current_time()
        patience = timeout_s + self._bytes / SLOWEST_BYTES_PER_S
        late = [item for item in self.unconfirmed.values() if now - item.sent_at > patience]
        if not late:
            return
        if connection.heard_at < min(item.sent_at for item in late):
            connection.end(TimedOut(f"HQ did not answer within {timeout_s:g} s"))
            return
        for item in late:
            item.trouble = TimedOut(f"HQ sent no confirm within {timeout_s:g} s")
        self._send(connection, late)

    def _pump(self, connection: Connection) -> None:
        taken = 0
        room = self._most - len(self.unconfirmed)
        for item in self.waiting:
            if taken >= room or (self._bytes >= self._most_bytes and self.unconfirmed):
                break
            taken += 1
            self._bytes += len(item.raw)
        if taken:
            batch, self.waiting = self.waiting[:taken], self.waiting[taken:]
            self._send(connection, batch)

    def _send(self, connection: Connection, items: list[PendingPublish]) -> None:
        now = trio.current_time()
        batch: list[SendItem] = []
        for item in items:
            if item.correlation in self.unconfirmed and self.unconfirmed[item.correlation] is item:
                del self.unconfirmed[item.correlation]
            item.correlation = connection.next_correlation()
            item.sent_at = now
            item.tries += 1
            self.unconfirmed[item.correlation] = item
            if self._log is not None:
                self._leaves[item.correlation] = item.leaf()
            batch.append((item.correlation, item.flags, item.route_version, item.raw))
        connection.send_envelopes(batch)

    def _pop(self, correlation: int) -> PendingPublish | None:
        item = self.unconfirmed.pop(correlation, None)
        if item is not None:
            self._bytes -= len(item.raw)
        return item

    def _take_back(self, items: list[PendingPublish]) -> None:
        for item in items:
            item.correlation = 0
        self.waiting = sorted(
            [*self.waiting, *(i for i in items if not i.gone)], key=lambda i: i.order
        )

    def _settle(self, item: PendingPublish) -> None:
        item.gone = True
        self._owner.settled(item)


def unconfirmed_error(item: PendingPublish, waited: str, away_since: str) -> CipherBoxError:
    """Return the error for an envelope that was not confirmed in time.

    ``away_since``: the time of day since when HQ cannot be reached, or empty.
    """
    reason = f" ({item.trouble})" if item.trouble is not None else ""
    first = message_id(item.envelope_id, 0)
    if away_since:
        what = (
            f"message {first} is kept in the outbox: HQ cannot be reached since "
            f"{away_since}{reason}"
        )
        following = (
            "It is sent with the next command, or automatically while `cipherbox agent` runs"
        )
    else:
        what = f"HQ has not confirmed message {first} within {waited}{reason}"
        following = "It is kept in the outbox and is sent automatically"
    error = Queued(f"{what}. {following}")
    error.message_ids = tuple(str(message_id(item.envelope_id, i)) for i in range(item.count))
    return error


def kept_error(item: PendingPublish, error: CipherBoxError) -> CipherBoxError:
    """Return the error for an envelope; it says so when the envelope waits for a certificate or a
    clock.
    """
    if not isinstance(error, CredentialsError | ClockSkew | TooOld) or not item.kept:
        return error
    first = message_id(item.envelope_id, 0)
    when = (
        "HQ accepts this client again"
        if isinstance(error, CredentialsError)
        else "HQ's time and that of its id are near each other again"
    )
    return error.copy(
        f"{error.what}. Message {first} is kept in the outbox and is sent when {when}"
    )
