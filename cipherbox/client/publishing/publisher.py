"""A publisher: batches messages automatically and without a timer.

At most two partly filled envelopes of a publisher are unconfirmed.  Until one is confirmed, further
messages form the next batch; a full batch (by count or bytes) is sent immediately.  So a single
message is sent immediately, and the slower the network, the larger a busy publisher's batches.

`put` is synchronous and seals inline.  It returns False when the batch is full and the window has
no room: then ``await room()`` before the next one (or use `send`, which does).  Nothing is dropped
and nothing grows without bound: a `put` without room raises Busy.  If HQ refused an envelope, the
next call raises its error, and its messages are in `refused`.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from cipherbox.checks import checked, unchecked
from cipherbox.client.connection.confirm_window import PendingPublish
from cipherbox.client.connection.reconnecting import Patience, ReconnectingConnection
from cipherbox.client.events import SENDER
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.sender import OutboxSender
from cipherbox.client.publishing.sealer import ResolvedRoute, Sealer
from cipherbox.client.publishing.splitting import Content, as_messages, cost, room_for
from cipherbox.concurrency import Signal
from cipherbox.errors import (
    Busy,
    CipherBoxError,
    InvalidRequest,
    RouteChanged,
    SessionMoved,
    TimedOut,
    TooLarge,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import BINARY, TEXT, Message, pack, pack_contents, text_message

REFRESH_S = 3600.0  # recipients' new keys are used at the latest after this


class Batch:
    """The messages of the next envelope, kept as bare bytes while they have one type and no
    headers.
    """

    __slots__ = ("contents", "kind", "messages", "size")

    def __init__(self) -> None:
        self.contents: list[bytes] = []
        self.kind = BINARY
        self.messages: list[Message] | None = None
        self.size = 0

    def __len__(self) -> int:
        return len(self.contents if self.messages is None else self.messages)

    def add(self, content: bytes, kind: str) -> None:
        """Add a message without headers."""
        self.size += len(content) + 12
        if self.messages is None:
            if kind == self.kind:
                self.contents.append(content)
                return
            if not self.contents:
                self.kind = kind
                self.contents.append(content)
                return
            self.messages = self.all()
        self.messages.append(Message(content, kind))

    def add_message(self, message: Message) -> None:
        """Add any message."""
        self.size += cost(message)
        if self.messages is None:
            self.messages = self.all()
        self.messages.append(message)

    def all(self) -> list[Message]:
        """Return the messages."""
        return (
            self.messages
            if self.messages is not None
            else [Message(c, self.kind) for c in self.contents]
        )

    def pack(self) -> bytes:
        """Return the plaintext of a body."""
        return (
            pack_contents(self.contents, self.kind)
            if self.messages is None
            else pack(self.messages)
        )


@checked
class Publisher:
    """See the module; made by `Client.publisher`, inside ``async with``."""

    def __init__(
        self,
        sealer: Sealer,
        connection: ReconnectingConnection,
        outbox_sender: OutboxSender,
        options: PublishOptions,
        route: ResolvedRoute,
        nursery: trio.Nursery,
        batch: int | None = None,
    ) -> None:
        if batch is not None and not 1 <= batch <= LIMITS.messages:
            raise InvalidRequest(f"an envelope holds 1 to {LIMITS.messages} messages, not {batch}")
        self.refused: list[tuple[list[Message], CipherBoxError]] = []
        self.accepted = 0  # messages taken by put
        self.confirmed = 0  # messages HQ has
        self.envelopes = 0  # envelopes sealed
        self._sealer, self._connection, self._outbox_sender, self._window = (
            sealer,
            connection,
            outbox_sender,
            connection.window,
        )
        self._options, self._nursery = options, nursery
        self._route: ResolvedRoute | None = route
        self._route_at = trio.current_time()
        self._refreshing = False
        self._most = LIMITS.batch_messages if batch is None else batch
        self._gathering = False  # see `_advance`
        self._gather_bytes = min(
            LIMITS.batch_bytes, room_for(self._window.envelope_bytes, LIMITS.recipients) // 2
        )
        self._batch = Batch()
        self._under_way: dict[PendingPublish, Batch] = {}
        self._rerouting: list[tuple[Batch, PendingPublish | None]] = []  # and what HQ did not take
        self._open = 0  # partly filled and unconfirmed
        self._failure: CipherBoxError | None = None
        self._changed = Signal()

    @property
    def unconfirmed(self) -> int:
        """Return the number of messages taken and not yet confirmed or refused."""
        return self.accepted - self.confirmed - sum(len(messages) for messages, _ in self.refused)

    @unchecked
    def put(self, message: Content) -> bool:
        """Take one message; return False if `await room()` must come before the next."""
        if type(message) is str:
            try:
                content, kind = message.encode(), TEXT
            except UnicodeEncodeError:
                return self._put(text_message(message))  # which says what is wrong
        elif type(message) is bytes:
            content, kind = message, BINARY
        else:
            (message,) = as_messages(message)
            return self._put(message)
        batch = self._batch
        size = batch.size + len(content) + 12
        if self._gathering and kind is batch.kind and size < self._gather_bytes:
            contents = batch.contents
            contents.append(content)
            batch.size = size
            self.accepted += 1
            if len(contents) < self._most:
                return True
            self._advance()
            return not self._full(self._batch)
        return self._put(Message(content, kind))

    def _put(self, message: Message) -> bool:
        if self._failure is not None:
            self._raise()
        if self._full(self._batch):
            raise Busy(
                "the publisher is full; after put() returned False, await room() before the next"
            )
        largest = room_for(
            self._window.envelope_bytes, len(self._route.bundles) if self._route else 1
        )
        size = cost(message)
        if size + 64 > largest:
            raise TooLarge(
                f"the message has {size} bytes; at most {largest - 64} fit into an envelope"
            )
        if self._batch.size + size + 64 > largest:
            self._flush()
        if message.headers or message.sent_at is not None:
            self._batch.add_message(message)
        else:
            self._batch.add(message.content, message.content_type)
        self.accepted += 1
        self._advance()
        return not self._full(self._batch)

    async def room(self) -> None:
        """Wait until `put` may be called."""
        await self._wait(lambda: not self._full(self._batch))

    @unchecked
    async def send(self, message: Content) -> None:
        """Take one message, after waiting for room."""
        if self._full(self._batch):
            await self.room()
        else:
            await trio.lowlevel.checkpoint_if_cancelled()
        self.put(message)

    async def flush(self) -> None:
        """Wait until everything is confirmed; raise TimedOut without progress.  What waits is still
        sent.
        """
        await self._wait(
            lambda: not len(self._batch) and not self._under_way and not self._rerouting
        )

    # -- inside ------------------------------------------------------------------------------------

    def _full(self, batch: Batch) -> bool:
        return batch.size >= LIMITS.batch_bytes or len(batch) >= self._most

    def _advance(self) -> None:
        """Send the batch if it is full and there is room, or if few partly filled ones are
        unconfirmed.

        Otherwise it is `_gathering`: until something else happens, `put` only appends to it.
        """
        batch = self._batch
        self._gathering = False
        if not len(batch) or self._route is None or self._failure is not None:
            return
        full = self._full(batch)
        if not self._outbox_sender.full and (full or self._open < LIMITS.open_batches):
            self._flush()
            self._refresh_when_old()
        else:
            self._gathering = not full and batch.messages is None

    def _flush(self) -> None:
        batch, self._batch = self._batch, Batch()
        self._gathering = False
        self._go(batch)

    def _go(self, batch: Batch, refused: PendingPublish | None = None) -> None:
        if self._route is None:
            self._rerouting.append((batch, refused))
            return
        partial = not self._full(batch)
        settled = self._settled_partial if partial else self._settled
        try:
            item = self._sealer.seal(
                self._options,
                self._route,
                batch.pack(),
                len(batch),
                settled,
                replaces=refused.envelope_id if refused is not None else None,
                reserve=refused is not None,
            )
            self._outbox_sender.add(item)
        except CipherBoxError as error:
            # often in the connection's reader, which must not end: the next call raises it
            self._fail(error, batch)
            return
        self._under_way[item] = batch
        self._open += partial
        self.envelopes += 1

    def _settled_partial(self, item: PendingPublish) -> None:
        self._open -= 1
        self._settled(item)

    def _settled(self, item: PendingPublish) -> None:
        batch = self._under_way.pop(item)
        if item.error is None:
            self.confirmed += len(batch)
            self._sealer.events.messages(
                SENDER, "Server ACK received for {}", item.envelope_id, item.count, mark=True
            )
        elif item.others:  # the outbox sends it to them; the error names the refused recipients
            self.confirmed += len(batch)
            self._gathering = False
            self._failure = self._failure or item.error
        elif isinstance(item.error, RouteChanged | SessionMoved):
            self._rerouting.append((batch, item))
            if self._route is not None:
                self._route = None
                self._nursery.start_soon(self._reroute)
        else:
            self._fail(item.error, batch)
        self.room_came()

    @unchecked
    def room_came(self) -> None:
        """Send what the window now has room for, and wake those who wait."""
        self._advance()
        self._wake()

    def close(self) -> None:
        """Leave what is not confirmed yet to the outbox: the block ended."""
        for item in self._under_way:
            item.disown()

    def _fail(self, error: CipherBoxError, batch: Batch) -> None:
        self._gathering = False
        self.refused.append((batch.all(), error))
        self._failure = self._failure or error
        self._wake()

    def _raise(self) -> None:
        error, self._failure = self._failure, None
        assert error is not None
        lost = sum(len(messages) for messages, _ in self.refused)
        if not lost:
            raise error.copy()
        raise error.copy(
            f"{error.what} ({lost} messages were not published; they are in `refused`)"
        )

    async def _reroute(self) -> None:
        """Resolve the changed route again, check the allow-list, and seal again under new ids."""
        try:
            self._route = await self._sealer.resolve_route(self._options, anew=True)
            self._route_at = trio.current_time()
            batches, self._rerouting = self._rerouting, []
            for batch, item in batches:
                self._go(batch, item)
            self._advance()
        except CipherBoxError as error:
            batches, self._rerouting = self._rerouting, []
            for batch, item in batches:
                if item is not None and item.kept:
                    self._outbox_sender.park(item, error)
                self._fail(error, batch)
        self._wake()

    def _refresh_when_old(self) -> None:
        if not self._refreshing and trio.current_time() - self._route_at > REFRESH_S:
            self._refreshing = True
            self._nursery.start_soon(self._refresh)

    async def _refresh(self) -> None:
        try:
            route = await self._sealer.resolve_route(self._options)
            if self._route is not None:
                self._route = route
            self._route_at = trio.current_time()
        except CipherBoxError as error:
            if not error.retryable:
                self._failure = self._failure or error
                self._gathering = False
                self._wake()
        finally:
            self._refreshing = False

    def _wake(self) -> None:
        self._changed.notify()

    async def _wait(self, done: Callable[[], bool]) -> None:
        await trio.lowlevel.checkpoint()
        patience = Patience(self._connection)
        while True:
            if self._failure is not None:
                self._raise()
            if done():
                return
            if patience.ended:
                connection = self._connection
                reason = (
                    f"; the last trouble: {connection.trouble}"
                    if connection.trouble is not None
                    else ""
                )
                raise TimedOut(
                    f"HQ confirmed nothing within {connection.tries} tries of "
                    f"{connection.timeout_s:g} s{reason}; {self.unconfirmed} messages wait"
                )
            await patience.wait(self._changed.next())


def check_publisher(options: PublishOptions) -> PublishOptions:
    """Return the options; raise InvalidRequest if a publisher cannot have them."""
    if len(options.groups()) > 1:
        raise InvalidRequest(f"a publisher has at most {LIMITS.recipients} recipients")
    return options
