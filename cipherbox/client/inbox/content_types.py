"""How the inbox records an envelope, by the content type of its message.

A feature with a content type of its own adds its row here.  Whatever is not listed, and every
envelope of several messages, becomes readable lines.
"""

from __future__ import annotations

import enum

from cipherbox.client.inbox.lines import Received
from cipherbox.client.publishing.parts import MANIFEST, PART
from cipherbox.sealing.body import type_of

PIPE_FRAME = "application/x-cipherbox-pipe"


class Recording(enum.Enum):
    """What becomes of an envelope in the inbox; every kind is signed for."""

    LINES = enum.auto()
    FILE = enum.auto()  # one part or the manifest of a file: a line follows when it is complete
    ID_ONLY = enum.auto()  # recorded as received, without its content


CONTENT_TYPES = {
    PART: Recording.FILE,
    MANIFEST: Recording.FILE,
    PIPE_FRAME: Recording.ID_ONLY,  # its pipe has ended, or another receiver took it
}


def recording_of(received: Received) -> Recording:
    """Return how an opened envelope is recorded."""
    if len(received.messages) != 1:
        return Recording.LINES
    found = CONTENT_TYPES.get(type_of(received.messages, 0), Recording.LINES)
    if found is Recording.FILE and not received.queue.endswith(".bulk"):
        return Recording.LINES
    return found


def message_count(received: Received) -> int:
    """Return how many messages an envelope adds to the inbox now; a file counts when it is
    complete.
    """
    return len(received.messages) if recording_of(received) is Recording.LINES else 0
