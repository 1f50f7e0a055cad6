"""Convert what a program publishes to messages, and split them into envelopes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cipherbox.errors import InvalidRequest, TooLarge
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message, text_message

Content = Message | bytes | str
_MESSAGE_OVERHEAD = 12  # length and time of one message in a body
_RECIPIENT_OVERHEAD = 1300  # prefix entry and the largest stanza in use
_FIXED_OVERHEAD = 4608  # prefix, signatures, tag, default type


def as_messages(content: Content | Sequence[Content]) -> list[Message]:
    """Return one or many of Message, bytes and str as messages; str is text, bytes are binary."""
    many = (
        [content]
        if isinstance(content, Message | bytes | bytearray | memoryview | str)
        else content
    )
    if not isinstance(many, Iterable):
        raise InvalidRequest(f"a message is a Message, bytes or str, not {type(many).__name__}")
    found = []
    for one in many:
        if isinstance(one, Message):
            if not isinstance(one.content, bytes):
                kind = type(one.content).__name__
                raise InvalidRequest(
                    f"the content of a Message is bytes, not {kind}; text alone may be given as str"
                )
            found.append(one)
        elif isinstance(one, str):
            found.append(text_message(one))
        elif isinstance(one, bytes | bytearray | memoryview):
            found.append(Message(bytes(one)))
        else:
            raise InvalidRequest(f"a message is a Message, bytes or str, not {type(one).__name__}")
    if not found:
        raise InvalidRequest("there is no message to publish")
    return found


def room_for(envelope_bytes: int, recipients: int) -> int:
    """Return how many bytes of messages an envelope for that number of recipients can hold."""
    return envelope_bytes - _FIXED_OVERHEAD - recipients * _RECIPIENT_OVERHEAD


def cost(message: Message) -> int:
    """Return the most bytes that one message takes in a body."""
    size = len(message.content) + _MESSAGE_OVERHEAD + len(message.content_type) * 4 + 4
    for key, value in message.headers.items():
        size += 3 + len(key.encode()) + len(value.encode())
    return size


def split(
    messages: Sequence[Message], envelope_bytes: int, recipients: int
) -> Iterator[Sequence[Message]]:
    """Yield runs of messages that fit into one envelope each; raise TooLarge for a message that
    fits into none.
    """
    room = room_for(envelope_bytes, recipients)
    start, size = 0, 0
    for at, message in enumerate(messages):
        one = cost(message)
        if one > room:
            raise TooLarge(
                f"message {at + 1} has {len(message.content)} bytes; an envelope holds "
                f"{room - 1024}"
            )
        if at > start and (size + one > room or at - start >= LIMITS.messages):
            yield messages[start:at]
            start, size = at, 0
        size += one
    yield messages[start:]
