"""The frames of a pipe: one message each, sealed like every other.

    byte 0        version, 1
    byte 1        kind
    bytes 2..17   the pipe's random id
    bytes 18..25  number of this frame among DATA and END, from 1; otherwise 0
    bytes 26..33  the highest number that was written out here
    from 34       data; for OPEN and ACCEPT the seconds of --idle; for BREAK the reason

A receiver that is no pipe records such an envelope and signs for it, but writes no line: its pipe
has ended (`content_types`).
"""

from __future__ import annotations

import enum
import struct

import attrs

from cipherbox.classes import frozen
from cipherbox.client.inbox.content_types import PIPE_FRAME
from cipherbox.client.receiving.delivery import Delivery
from cipherbox.errors import MalformedEnvelope
from cipherbox.sealing.body import Message

VERSION = 1
_HEAD = struct.Struct(">BB16sQQ")


class Kind(enum.IntEnum):
    """What a frame means."""

    OPEN = 1  # call
    ACCEPT = 2  # answer to OPEN
    DATA = 3
    END = 4  # of my input
    ALIVE = 5
    BREAK = 6  # aborted, with the reason


@frozen
class Frame:
    """See the module."""

    kind: Kind
    pipe: bytes
    number: int = 0
    written: int = 0
    data: bytes = attrs.field(default=b"", repr=False)

    def message(self) -> Message:
        """Return the frame as a message."""
        return Message(
            _HEAD.pack(VERSION, self.kind, self.pipe, self.number, self.written) + self.data,
            PIPE_FRAME,
        )


def read_frame(content: bytes) -> Frame:
    """Parse a frame; raise MalformedEnvelope if it is invalid or of a newer version."""
    try:
        version, kind, pipe, number, written = _HEAD.unpack_from(content)
        if version != VERSION:
            raise ValueError
        return Frame(Kind(kind), pipe, number, written, content[_HEAD.size :])
    except (struct.error, ValueError):
        raise MalformedEnvelope("invalid pipe frame, or one of a newer program") from None


def is_frame(delivery: Delivery) -> bool:
    """Return whether an opened delivery is a frame of a pipe."""
    return len(delivery.messages) == 1 and delivery.messages[0].content_type == PIPE_FRAME
