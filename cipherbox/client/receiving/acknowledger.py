"""Acknowledge what is recorded, many envelopes at a time.

An ACK costs HQ a commit, as much as a message, and both ends a request.  So ACKs are `EVERY_S`
apart.  After a pause the first one is sent immediately, and one that is full does not wait.

What is put here is recorded, and nothing else remembers that an ACK is due: after a crash or a cut
connection HQ redelivers, and the inbox recognises what it has.  Until then HQ keeps the envelope,
counts it in the quotas of its sender and in the credit of this client; `MOST` and `MOST_BYTES`
bound that far below the quotas, and `_PART` below the credit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from cipherbox.client.events import RECEIVER
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.concurrency import Flag
from cipherbox.errors import CipherBoxError

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import DeliverySource

EVERY_S = 1.0  # between ACKs
MOST = 64  # envelopes that wait for one
# And their bytes: at 1 MiB an ACK for each envelope took HQ a fifth of its CPU time.
MOST_BYTES = 4 * 1024 * 1024
_PART = 4  # of a queue's credit: HQ delivers from the rest meanwhile
END_S = 1.0  # for what is due when `run` is cancelled


class Acknowledger:
    """The acknowledgements of one receive loop."""

    def __init__(self, client: DeliverySource) -> None:
        self._client = client
        self._due: list[Delivery] = []
        self._bytes, self._most_bytes = 0, MOST_BYTES
        self._work = Flag()
        self._hurry = Flag()  # the next ACK waits for nothing
        self._idle = Flag(is_set=True)
        self._flushing = 0  # calls of `flush`

    def put(self, recorded: Sequence[Delivery]) -> None:
        """Acknowledge these, now or with the next ones."""
        self._due += recorded
        self._bytes += sum(one.size for one in recorded)
        credits = {one.consumer.credit_bytes for one in recorded if one.consumer is not None}
        self._most_bytes = min(self._most_bytes, MOST_BYTES, *(n // _PART for n in credits))
        if self._due:
            self._idle.clear()
            self._work.set()
        if len(self._due) >= MOST or self._bytes >= self._most_bytes:
            self._hurry.set()

    async def run(self) -> None:
        """Acknowledge until cancelled; then what is still due, if HQ answers within a moment."""
        try:
            while True:
                await self._work.wait()
                self._work.clear()
                self._hurry.clear()
                await self._acknowledge()
                if not self._flushing:
                    with trio.move_on_after(EVERY_S):
                        await self._hurry.wait()
        except trio.Cancelled:
            if self._due:
                await self._client.connection.last_call(self._acknowledge, END_S)
            raise

    async def flush(self) -> None:
        """Wait for HQ's answer about everything that is due; each is bounded."""
        self._flushing += 1
        self._hurry.set()
        try:
            await self._idle.wait()
        finally:
            self._flushing -= 1

    async def _acknowledge(self) -> None:
        due, self._due = self._due, []
        self._bytes, self._most_bytes = 0, MOST_BYTES
        try:
            await self._client.ack(due)
        except CipherBoxError as error:
            self._client.events.emit(
                RECEIVER,
                f"HQ did not confirm an ACK: {error}; the messages are stored and are redelivered",
            )
        if not self._due:
            self._idle.set()
