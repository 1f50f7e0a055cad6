"""What comes into the mailbox while a pipe holds it: frames of its peer go to the pipe, messages
into the inbox.

Frames of others, and of pipes that ended, are acknowledged and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cipherbox.apps.pipe.frames import Frame, Kind, is_frame, read_frame
from cipherbox.client.events import RECEIVER, EventKind
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Backoff, background, retry
from cipherbox.errors import EnvelopeError, MalformedEnvelope, NetworkError, Refused

if TYPE_CHECKING:
    from cipherbox.client.client import Client

Take = Callable[[Frame, bytes], bool]  # frame, envelope id -> whether it may be acknowledged
_BYTES = 4 * 1024 * 1024
_PAUSE_S = 1.0  # while HQ has to be asked for the sender's keys


async def arriving(
    client: Client, consumer: Consumer, receiver: Receiver, peer: str, take: Take
) -> None:
    """Until cancelled; the receiver's lock is held."""
    owed = PendingReceipts(client)
    try:
        async with background() as nursery:
            nursery.start_soon(owed.run)
            while True:
                frames, others = await _sorted(client, await consumer.batch(64, _BYTES), peer, take)
                try:
                    if others:
                        await receiver.take(others)
                        owed.notify()
                    await client.ack(frames)
                except (NetworkError, Refused) as error:
                    client.events.emit(
                        RECEIVER, f"HQ did not confirm an ACK: {error}; what it was for comes again"
                    )
    finally:
        owed.close()


async def _sorted(
    client: Client, deliveries: list[Delivery], peer: str, take: Take
) -> tuple[list[Delivery], list[Delivery]]:
    """Frames that are done with, and the rest: messages, and what cannot be opened, which the
    receiver refuses.
    """
    frames: list[Delivery] = []
    others: list[Delivery] = []
    for delivery in deliveries:
        try:
            await _open(client, delivery)
        except EnvelopeError:
            others.append(delivery)
            continue
        if not is_frame(delivery):
            others.append(delivery)
            continue
        try:
            frame = read_frame(delivery.messages[0].content)
        except MalformedEnvelope as error:
            client.events.emit(RECEIVER, f"{delivery.sender_id}: {error}")
            frames.append(delivery)
            continue
        if delivery.sender_id != peer:
            if frame.kind == Kind.OPEN:
                client.events.emit(
                    RECEIVER,
                    f"{delivery.sender_id} called; this end is for {peer} alone",
                    kind=EventKind.STRANGER,
                )
            frames.append(delivery)
        elif take(frame, delivery.envelope_id):
            frames.append(delivery)
    return frames, others


async def _open(client: Client, delivery: Delivery) -> None:
    await retry(lambda: client.open(delivery), Backoff(_PAUSE_S, _PAUSE_S))
