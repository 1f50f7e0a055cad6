"""A conversation: the lines this client sends, their states, and received lines, read from this
home's inbox.

A line is a message of type `TYPE`; its header ``chat`` names its recipients, is sealed with it, and
marks it in the inbox's lines.  Received lines are shown from the readable file of the inbox,
whichever program wrote them: the agent or `receive` of this home, or, while neither runs, this
conversation, which holds the home's lock only during each recording.  So a receiver that starts
beside it takes over silently, and every message is recorded once.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence

import attrs
import trio

from cipherbox.classes import define
from cipherbox.client.client import Client, Confirmation
from cipherbox.client.events import RECEIVER
from cipherbox.client.outbox.queries import OutboxQueries
from cipherbox.client.outbox.rows import CONFIRMED, PARKED
from cipherbox.client.receiving.loop import FETCH_ENVELOPES
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Backoff, Signal, only, retry, supervise
from cipherbox.envelope.outcomes import Outcome, outcome_words
from cipherbox.errors import (
    BundleError,
    CipherBoxError,
    CredentialsError,
    RecipientRevoked,
    StoreLocked,
    TooLarge,
    UnknownRecipient,
)
from cipherbox.sealing.body import Message

TYPE = "text/x-chat; charset=utf-8"
HEADER = "chat"
LINE_BYTES = 64 * 1024
SEALED, AT_HQ, OPENED, REFUSED = "sealed", "with HQ", "opened", "refused"
_NAMED = 32  # recipients named in the header
_LOOK_S = 0.3
OTHER_S = 1.0  # between looks whether another receiver of this home has ended
_PAUSE_S = 5.0
_AT_MOST = 500  # lines under way to HQ; then writing waits
_WATCHED = 2000  # lines that HQ has and not everybody opened; older ones are watched no more


@define(eq=False)
class ChatLine:
    """A line sent from here.  ``opened``, ``refused``: by whom, the latter with the reason."""

    number: int
    message_id: uuid.UUID
    text: str = attrs.field(repr=False)
    envelopes: tuple[bytes, ...]
    state: str = SEALED
    opened: tuple[str, ...] = ()
    refused: tuple[tuple[str, str], ...] = ()


OnState = Callable[[ChatLine], None]


async def reachable_clients(client: Client) -> tuple[list[str], dict[str, CipherBoxError]]:
    """Return the clients this one can write to now, and the errors of those whose keys a person
    must check.
    """
    names = [str(row["name"]) for row in await client.list("clients")]
    found, reasons = await client.directory.reachable(
        [name for name in names if name != client.client_id]
    )
    return found, {name: error for name, error in reasons.items() if isinstance(error, BundleError)}


class Chat:
    """See the module.  ``on_state`` is called with a line whose state changed; ``to_all``: clients
    that no longer exist are left out.
    """

    def __init__(
        self,
        client: Client,
        others: Sequence[str],
        on_state: OnState | None = None,
        *,
        to_all: bool = False,
    ) -> None:
        self.client, self.others = client, list(others)
        self._to_all = to_all
        self._on_state = on_state
        self._number = 0
        self._waiting: list[ChatLine] = []  # not yet with HQ
        self._unopened: list[ChatLine] = []
        self._changed = Signal()

    @property
    def waiting(self) -> int:
        """Return the number of lines HQ has not confirmed."""
        return len(self._waiting)

    async def send(self, text: str) -> ChatLine:
        """Seal and send a line; return when it is durable on this machine."""
        content = text.encode()
        if len(content) > LINE_BYTES:
            raise TooLarge(
                f"a line has at most {LINE_BYTES} bytes, this one {len(content)}",
                remedy="send it as a file",
            )
        while len(self._waiting) >= _AT_MOST:
            await self._changed.wait()
        try:
            confirmation = await self._publish(content)
        except (RecipientRevoked, UnknownRecipient):
            if not self._to_all:
                raise
            self.others = (await reachable_clients(self.client))[0]
            confirmation = await self._publish(content)
        self._number += 1
        envelopes = tuple(
            e for part in (confirmation, *confirmation.more) for e, _ in part.envelopes
        )
        line = ChatLine(self._number, confirmation.message_ids[0], text, envelopes)
        self._waiting.append(line)
        self._tell(line)
        return line

    async def _publish(self, content: bytes) -> Confirmation:
        names = self.others[:_NAMED]
        more = len(self.others) - len(names)
        header = ", ".join(names) + (f" and {more} more" if more else "")
        return await self.client.publish(
            Message(content, TYPE, {HEADER: header}),
            to=self.others,
            wait=False,
            partial=self._to_all,
            prompt_receipt=True,  # a person watches the line's state
        )

    async def settled(self, within_s: float) -> bool:
        """Wait until HQ has all lines; return False on timeout."""
        with trio.move_on_after(within_s):
            while self._waiting:
                await self._changed.wait()
        return not self._waiting

    # -- states ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Follow the states of the lines until cancelled."""
        while True:
            news = self.client.receipts.changed.next()
            with trio.move_on_after(_LOOK_S if self._waiting else _PAUSE_S):
                if self._waiting:
                    await trio.sleep(_LOOK_S)
                else:
                    await self._until_any(news, self._changed.next())
            await self._look()

    @staticmethod
    async def _until_any(*events: trio.Event) -> None:
        async with trio.open_nursery() as nursery:

            async def one(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel()

            for event in events:
                nursery.start_soon(one, event)

    async def _look(self) -> None:
        lines = [*self._waiting, *self._unopened]
        if not lines:
            return
        outbox_sender = self.client.outbox()
        await outbox_sender.store(_update, outbox_sender.outbox, lines, changed := list[ChatLine]())
        self._waiting = [line for line in self._waiting if line.state == SEALED]
        known = {id(line) for line in self._unopened}
        self._unopened += [
            line for line in changed if line.state == AT_HQ and id(line) not in known
        ]
        self._unopened = [line for line in self._unopened if line.state == AT_HQ][-_WATCHED:]
        for line in changed:
            self._tell(line)

    def _tell(self, line: ChatLine) -> None:
        if self._on_state is not None:
            self._on_state(line)
        self._changed.notify()

    # -- receiving ---------------------------------------------------------------------------------

    async def receive(self) -> None:
        """Record what arrives while no other receiver of this home runs, until cancelled."""
        receiver = Receiver(self.client)

        async def unless_locked() -> None:
            await retry(
                lambda: self._consume(receiver),
                Backoff(OTHER_S, OTHER_S),
                transient=only(StoreLocked),
            )

        await supervise(
            unless_locked,
            Backoff(_PAUSE_S, _PAUSE_S),
            transient=lambda error: not isinstance(error, CredentialsError),
            on_failure=lambda error, pause_s: self.client.events.emit(
                RECEIVER, f"{error}; retrying in {pause_s:.0f} s"
            ),
        )

    async def _consume(self, receiver: Receiver) -> None:
        with receiver.locked():
            pass  # no subscription while another receiver of this home runs
        async with self.client.consume_unopened() as consumer:
            await receiver.take_from(consumer, FETCH_ENVELOPES)


def _update(outbox: OutboxQueries, lines: Sequence[ChatLine], changed: list[ChatLine]) -> None:
    for line in lines:
        rows = [row for row in map(outbox.find, line.envelopes) if row is not None]
        opened: list[str] = []
        refused = [("HQ", row.reason) for row in rows if row.state == PARKED]
        for row in rows:
            for recipient, outcome, *_ in outbox.outcomes(row.number):
                if outcome == Outcome.OPENED:
                    opened.append(recipient)
                else:
                    refused.append((recipient, outcome_words(outcome)))
        before = (line.state, line.opened, line.refused)
        line.opened, line.refused = tuple(sorted(opened)), tuple(refused)
        if any(row.state == PARKED for row in rows):
            line.state = REFUSED
        elif rows and all(row.owed <= 0 for row in rows):
            line.state = OPENED
        elif all(row.state == CONFIRMED for row in rows):
            line.state = AT_HQ
        if before != (line.state, line.opened, line.refused):
            changed.append(line)
