"""PostgreSQL's binary COPY format, both ways (PostgreSQL documentation, COPY, "Binary Format").

Each row is a count of fields and, for each field, its length and its bytes; -1 stands for NULL.
Numbers are big-endian, a timestamptz is microseconds since 2000-01-01 UTC, text is UTF-8 without
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
    """ms since 1970 as a timestamptz carries them."""
    return (ms - EPOCH_MS) * 1000


def text(value: str) -> bytes:
    """UTF-8; a NUL, which PostgreSQL's text cannot hold, becomes U+FFFD."""
    return value.encode() if "\0" not in value else value.replace("\0", "\ufffd").encode()


def sized(raw: bytes) -> bytes:
    """A field of bytes."""
    return _LENGTH.pack(len(raw)) + raw


def row_of(fields: Sequence[bytes | None]) -> bytes:
    """A row of fields that are encoded already; None is NULL."""
    parts = [_COUNT.pack(len(fields))]
    for field in fields:
        parts += (NULL,) if field is None else (_LENGTH.pack(len(field)), field)
    return b"".join(parts)


def stream(parts: Iterable[bytes]) -> Iterator[bytes | memoryview]:
    """A whole COPY of rows, given in parts of any size, in pieces of some `_PIECE` bytes.

    Pieces that small use the same memory again and again; what is large already is cut and not
    copied.
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
    """The fields of one row."""
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
    """Takes what COPY TO STDOUT gives, one row to a message, and holds the rows' fields."""

    def __init__(self) -> None:
        self._messages: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._messages.append(data)

    def __iter__(self) -> Iterator[list[bytes | None]]:
        for at, message in enumerate(self._messages):
            # the header comes with the first row
            body = message[len(HEADER) :] if at == 0 else message
            if body and not body.startswith(TRAILER):
                yield fields_of(body)
