"""PostgreSQL's binary COPY format, both ways (PostgreSQL documentation, COPY, "Binary Format").

Each row is a count of fields and, for each field, its length and its bytes; length -1 is NULL.
Numbers are big-endian, a timestamptz is in microseconds since 2000-01-01 UTC, text is UTF-8 without
NUL, bytea and uuid are their bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence

HEADER = b"PGCOPY\n\xff\r\n\x00" + bytes(8)
TRAILER = b"\xff\xff"
_LENGTH = struct.Struct(">i")
_COUNT = struct.Struct(">h")
EPOCH_MS = 946_684_800_000  # 2000-01-01
_PIECE = 64 * 1024
NULL = _LENGTH.pack(-1)


def micros(ms: int) -> int:
    """Return a time in ms since 1970 as a timestamptz."""
    return (ms - EPOCH_MS) * 1000


def text(value: str) -> bytes:
    """Return UTF-8; a NUL, which PostgreSQL's text cannot hold, becomes U+FFFD."""
    return value.encode() if "\0" not in value else value.replace("\0", "\ufffd").encode()


def sized(raw: bytes) -> bytes:
    """Return a field of bytes."""
    return _LENGTH.pack(len(raw)) + raw


def row_of(fields: Sequence[bytes | None]) -> bytes:
    """Return a row of encoded fields; None is NULL."""
    parts = [_COUNT.pack(len(fields))]
    for field in fields:
        parts += (NULL,) if field is None else (_LENGTH.pack(len(field)), field)
    return b"".join(parts)


def stream(parts: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """Yield a complete COPY of rows, given in parts of any size, in pieces of about `_PIECE` bytes.

    Small pieces reuse the same memory; large parts are sliced without copying.
    """
    piece, size = [HEADER], 0
    for part in parts:
        if len(part) >= _PIECE:
            yield b"".join(piece)
            view, piece, size = memoryview(part), [], 0
            for at in range(0, len(view), _PIECE):
                yield view[at : at + _PIECE]
            continue
        piece.append(part)
        size += len(part)
        if size >= _PIECE:
            yield b"".join(piece)
            piece, size = [], 0
    yield b"".join([*piece, TRAILER])


def fields_of(row: bytes) -> list[bytes | None]:
    """Return the fields of one row."""
    at = 2
    found: list[bytes | None] = []
    for _ in range(_COUNT.unpack_from(row)[0]):
        (size,) = _LENGTH.unpack_from(row, at)
        at += 4
        if size < 0:
            found.append(None)
        else:
            found.append(row[at : at + size])
            at += size
    return found


class Rows:
    """A stream that collects the output of COPY TO STDOUT, one row per message."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._messages.append(data)

    def __iter__(self) -> Iterator[list[bytes | None]]:
        for at, message in enumerate(self._messages):
            # the header precedes the first row
            body = message[len(HEADER) :] if at == 0 else message
            if body and not body.startswith(TRAILER):
                yield fields_of(body)
