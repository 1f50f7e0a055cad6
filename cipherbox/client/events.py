"""The lines a client says while it works, as the predecessors said them.

    [2025-09-08 07:03:00] [SENDER] Server ACK received for message
    0199f0a2-7c31-7d05-9c4e-1b2a00000000

An `Event` is that line as text, and has its parts as attributes.  Nobody listening costs nothing:
no line is made.  A batch of many messages is one line, so that a busy publisher is not slowed down
by its log.  Client ids are checked names and message ids are UUIDs; every other text that a line
repeats is escaped.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable
from typing import Any

from cipherbox.envelope.ids import message_id
from cipherbox.portable import escape_text

SENDER, RECEIVER, LINE, KEYS = "SENDER", "RECEIVER", "LINE", "KEYS"
ONE_LINE_EACH = 16  # messages of one envelope; more are named as a run

OnEvent = Callable[[Any], None]


class EventKind(enum.StrEnum):
    """What an event tells, for programs: they need not read its text."""

    STEP = "step"  # of sending, receiving or connecting
    RECONNECTING = "reconnecting"  # the connection failed; it is tried again after a pause
    KEY = "key"  # a peer's key was pinned or changed
    STRANGER = "stranger"  # a peer that this end does not talk to was turned away


class Event(str):
    """One line.  ``role`` is its bracketed word, ``text`` what follows; ``mark``: HQ has it
    durably; ``kind``: what it tells.
    """

    role: str
    text: str
    mark: bool
    kind: EventKind

    def __new__(
        cls, role: str, text: str, mark: bool = False, kind: EventKind = EventKind.STEP
    ) -> Event:
        line = super().__new__(cls, f"[{time.strftime('%Y-%m-%d %H:%M:%S')}] [{role}] {text}")
        line.role, line.text, line.mark, line.kind = role, text, mark, kind
        return line


class Events:
    """Where lines go.  Without a listener every method returns at once."""

    def __init__(self, listener: OnEvent | None) -> None:
        self._listener = listener

    @property
    def has_listener(self) -> bool:
        """Whether anybody listens."""
        return self._listener is not None

    def emit(
        self, role: str, text: str, *, mark: bool = False, kind: EventKind = EventKind.STEP
    ) -> None:
        """One line."""
        if self._listener is not None:
            self._listener(Event(role, escape_text(text), mark, kind))

    def messages(
        self, role: str, text: str, envelope_id: bytes, count: int, *, mark: bool = False
    ) -> None:
        """``text`` with ``{}`` replaced by "message ID", a line each, or by the run of ids when
        there are many.
        """
        if self._listener is None:
            return
        if count <= ONE_LINE_EACH:
            for index in range(count):
                self.emit(role, text.format(f"message {message_id(envelope_id, index)}"), mark=mark)
            return
        first, last = message_id(envelope_id, 0), message_id(envelope_id, count - 1)
        self.emit(role, text.format(f"messages {first} to {last} ({count})"), mark=mark)
