"""Mail that arrives while a pipe holds the mailbox: its peer's frames go to the pipe, messages into
the inbox.

Frames of other clients, and of pipes that ended, are acknowledged and dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cipherbox.apps.pipe.frames import Frame, Kind, is_frame, read_frame
from cipherbox.client.events import RECEIVER, EventKind
from cipherbox.client.receiving.consumer import Consumer
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Backoff, retry
from cipherbox.errors import CipherBoxError, EnvelopeError, MalformedEnvelope

if TYPE_CHECKING:
    from cipherbox.client.client import Client

Take = Callable[[Frame, bytes], bool]  # frame, envelope id -> whether to acknowledge it
_ENVELOPES = 64  # sorted in one step, in order
_PAUSE_S = 1.0  # while HQ has to be asked for the sender's keys


async def receive_frames(
    client: Client, consumer: Consumer, receiver: Receiver, peer: str, take: Take
) -> None:
    """Give the peer's frames to the pipe and everything else to the receiver, until cancelled; the
    receiver's lock is held.
    """

    async def sort(deliveries: list[Delivery]) -> tuple[list[Delivery], list[Delivery]]:
        return await _sorted(client, deliveries, peer, take)

    def tolerate(error: CipherBoxError) -> None:
        text = (
            f"HQ did not confirm an ACK: {error}; it is repeated, or its messages are redelivered"
        )
        client.events.emit(RECEIVER, text)

    await receiver.take_from(consumer, _ENVELOPES, sort, tolerate)


async def _sorted(
    client: Client, deliveries: list[Delivery], peer: str, take: Take
) -> tuple[list[Delivery], list[Delivery]]:
    """Return the frames that are done with, and the rest: messages, and what cannot be opened,
    which the receiver refuses.
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
