"""Acknowledge what is recorded, many envelopes at a time.

An ACK costs HQ a commit, as much as a message, and both ends a request.  So ACKs are `EVERY_S`
apart.  After a pause the first one is sent immediately, and one that is full does not wait.

What is put here is recorded, and nothing else remembers that an ACK is due: after a crash or a cut
connection HQ redelivers, and the inbox recognises what it has.  Until then HQ keeps the envelope,
counts it in the quotas of its sender and in the credit of this client; `MOST` and `MOST_BYTES`
bound that far below the quotas, and `_PART` below the credit.

While the connection of a delivery is open, HQ does not redeliver it, so an ACK that HQ did not
answer, or refused for a moment, stays due and is repeated; HQ may have taken it, which does no
harm.  One that HQ refuses permanently is given up: its credit is returned, and HQ redelivers the
envelope to the next connection that may read the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import trio

from cipherbox.client.events import RECEIVER
from cipherbox.client.receiving.delivery import Delivery, settled
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
                if not await self._acknowledge():
                    await trio.sleep(EVERY_S)
                elif not self._flushing:
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

    async def _acknowledge(self) -> bool:
        """Acknowledge what is due; return False if some of it stays due."""
        due, self._due = self._due, []
        self._bytes, self._most_bytes = 0, MOST_BYTES
        again: list[Delivery] = []
        for queue in dict.fromkeys(one.queue for one in due):
            own = [one for one in due if one.queue == queue]
            if again:  # HQ answers none now
                again += own
                continue
            try:
                await self._client.ack(own)
            except CipherBoxError as error:
                again = self._unconfirmed(own, error)
        self.put([one for one in again if not self._flushing])
        if not self._due:
            self._idle.set()
        return not again

    def _unconfirmed(self, own: list[Delivery], error: CipherBoxError) -> list[Delivery]:
        """Return those whose ACK is to be repeated."""
        again = to_repeat(own, error)
        what = "it is repeated" if again else "the messages are stored and are redelivered"
        self._client.events.emit(RECEIVER, f"HQ did not confirm an ACK: {error}; {what}")
        return again


def to_repeat(deliveries: list[Delivery], error: CipherBoxError) -> list[Delivery]:
    """Return those of an ACK that failed which are to be acknowledged again; give up the others."""
    if error.retryable:
        return [one for one in deliveries if not one.lost]
    settled(deliveries)
    return []
