"""Envelope ids: UUIDv7 (RFC 9562, section 5.7), low 16 bits zero; a message's id is its envelope's
plus its index.

    48 bits  ms since 1970        4 bits  version 7     12 bits  counter within the millisecond
     2 bits  variant 10          46 bits  random        16 bits  zero

A generator is monotonic: when the clock is set back by up to an hour, it continues from the last
millisecond it used.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable

from cipherbox.errors import InvalidRequest

_COUNTER_START = 0x400  # random below this at the start of a millisecond; leaves 3,072 ids in it
_BACK_MS = 3_600_000


class EnvelopeIds:
    """A generator of ids for one sender.  ``clock_ms`` returns ms since 1970; ``random(n)`` returns
    n random bytes.
    """

    def __init__(
        self, clock_ms: Callable[[], int], random: Callable[[int], bytes] = os.urandom
    ) -> None:
        self._clock_ms = clock_ms
        self._random = random
        self._ms = 0
        self._counter = 0

    def next(self) -> bytes:
        """Return a new id, 16 bytes, greater than all before, unless the clock was set back by more
        than an hour: ids of a time that was far ahead would be refused for as long.
        """
        noise = int.from_bytes(self._random(8), "big")
        now = self._clock_ms()
        if not 0 <= self._ms - now <= _BACK_MS:
            self._ms, self._counter = now, noise >> 54 & (_COUNTER_START - 1)
        elif self._counter < 0xFFF:
            self._counter += 1
        else:
            self._ms, self._counter = self._ms + 1, noise >> 54 & (_COUNTER_START - 1)
        high = self._ms << 16 | 0x7000 | self._counter
        low = 0b10 << 62 | (noise & (1 << 46) - 1) << 16
        return (high << 64 | low).to_bytes(16, "big")


def is_envelope_id(raw: bytes) -> bool:
    """Return whether the bytes are a UUIDv7 with its low 16 bits zero."""
    return len(raw) == 16 and raw[6] >> 4 == 7 and raw[8] >> 6 == 2 and raw[14:] == b"\x00\x00"


def message_id(envelope_id: bytes, index: int) -> uuid.UUID:
    """Return the id of message ``index`` (from 0) of an envelope."""
    return uuid.UUID(bytes=envelope_id[:14] + index.to_bytes(2, "big"))


def split_message_id(text: str | uuid.UUID) -> tuple[bytes, int]:
    """Return (envelope id, index) of a message id; raise InvalidRequest if it is not a UUID."""
    try:
        raw = (text if isinstance(text, uuid.UUID) else uuid.UUID(text)).bytes
    except ValueError:
        raise InvalidRequest(
            f"invalid message id {text!r}: must be a UUID, as printed by send"
        ) from None
    return raw[:14] + b"\x00\x00", int.from_bytes(raw[14:], "big")


def id_time_ms(envelope_id: bytes) -> int:
    """Return the time in an id, ms since 1970."""
    return int.from_bytes(envelope_id[:6], "big")
