"""Progress events of a client, as lines of text in its predecessors' format.

    [2025-09-08 07:03:00] [SENDER] Server ACK received for message
    0199f0a2-7c31-7d05-9c4e-1b2a00000000

An `Event` is that line as text, with its parts as attributes. Without a listener no line is made. A
large batch is one line, so that logging does not slow down a busy publisher. Client ids are checked
names and message ids are UUIDs; all other text is escaped.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any

from cipherbox import clock
from cipherbox.envelope.ids import message_id
from cipherbox.portable import escape_text

SENDER, RECEIVER, LINE, KEYS = "SENDER", "RECEIVER", "LINE", "KEYS"
ONE_LINE_EACH = 16  # messages of one envelope; more are shown as a range

OnEvent = Callable[[Any], None]


class EventKind(enum.StrEnum):
    """The kind of an event, so that programs need not parse its text."""

    STEP = "step"  # of sending, receiving or connecting
    RECONNECTING = "reconnecting"  # the connection failed; it is retried after a pause
    KEY = "key"  # a peer's key was pinned or changed
    REGISTERED = "registered"  # HQ serves this client's own keys
    CLOCK = "clock"  # this machine's clock is wrong
    STRANGER = "stranger"  # a peer that is not permitted here was refused


class Event(str):
    """One line. ``role`` is its bracketed word, ``text`` the rest, ``kind`` its kind; ``mark``
    means that HQ has the message durably.
    """

    role: str
    text: str
    mark: bool
    kind: EventKind

    def __new__(
        cls, role: str, text: str, mark: bool = False, kind: EventKind = EventKind.STEP
    ) -> Event:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(clock.now_s()))
        line = super().__new__(cls, f"[{at}] [{role}] {text}")
        line.role, line.text, line.mark, line.kind = role, text, mark, kind
        return line


class Events:
    """Sends events to a listener. Without one every method returns immediately."""

    def __init__(self, listener: OnEvent | None) -> None:
        self._listener = listener

    @property
    def has_listener(self) -> bool:
        """Whether there is a listener."""
        return self._listener is not None

    def emit(
        self, role: str, text: str, *, mark: bool = False, kind: EventKind = EventKind.STEP
    ) -> None:
        """Send one event."""
        if self._listener is not None:
            self._listener(Event(role, escape_text(text), mark, kind))

    def messages(
        self, role: str, text: str, envelope_id: bytes, count: int, *, mark: bool = False
    ) -> None:
        """Send ``text`` with ``{}`` replaced by "message ID" for each message, or by the range of
        ids if there are many.
        """
        if self._listener is None:
            return
        if count <= ONE_LINE_EACH:
            for index in range(count):
                self.emit(role, text.format(f"message {message_id(envelope_id, index)}"), mark=mark)
            return
        first, last = message_id(envelope_id, 0), message_id(envelope_id, count - 1)
        self.emit(role, text.format(f"messages {first} to {last} ({count})"), mark=mark)
