"""Encode messages as the plaintext of a body, and back, in columns: all lengths, then types and
headers, then all contents.

Packing many small messages is one `struct.pack` and one join, with no work repeated for each
message. The manual page `envelope` describes the bytes.

Layout 2 begins with a random salt, so that the prefix can commit to a plaintext without revealing
it. Layout 1, of envelopes of version 1, had no salt.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import overload

import attrs

from cipherbox.classes import define
from cipherbox.errors import InvalidRequest, MalformedEnvelope
from cipherbox.limits import LIMITS

LAYOUT, FIRST_LAYOUT = 2, 1
SALT_BYTES = 32
SENT_TIMES, TYPES, HEADERS = 1, 2, 4
BINARY = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"
_HEAD = struct.Struct(">BBI")


@define
class Message:
    """A message of an application: its content, content type, headers and time of sending (ms;
    None: now).
    """

    content: bytes = attrs.field(repr=False)
    content_type: str = BINARY
    headers: dict[str, str] = attrs.Factory(dict)
    sent_at: int | None = None


def text_message(text: str) -> Message:
    """Return a message of plain text. Raise InvalidRequest if the text has a lone surrogate."""
    return Message(_utf8(text, "text"), TEXT)


def pack(messages: Sequence[Message]) -> bytes:
    """Return the plaintext of messages of any content type. Raise InvalidRequest if one exceeds a
    limit.
    """
    default = messages[0].content_type if messages else BINARY
    mixed = any(m.content_type != default for m in messages)
    if mixed and any(not m.content_type for m in messages):
        # an empty type in the column means the default; so only this default keeps it empty
        default = ""
    flags = 0
    columns: list[bytes] = []
    if any(m.sent_at is not None for m in messages):
        flags |= SENT_TIMES
        columns.append(_times([m.sent_at or 0 for m in messages]))
    columns.append(_short(default, "content type", LIMITS.content_type_bytes))
    if mixed:
        flags |= TYPES
        for m in messages:
            kind = "" if m.content_type == default else m.content_type
            columns.append(_short(kind, "content type", LIMITS.content_type_bytes))
    if any(m.headers for m in messages):
        flags |= HEADERS
        for m in messages:
            encoded = _encode_headers(m.headers)
            columns += [len(encoded).to_bytes(2, "big"), encoded]
    return _join([m.content for m in messages], flags, columns)


def pack_contents(contents: Sequence[bytes], content_type: str = BINARY) -> bytes:
    """Return the plaintext of messages of one type without headers: a publisher's fast path."""
    return _join(contents, 0, [_short(content_type, "content type", LIMITS.content_type_bytes)])


def _join(contents: Sequence[bytes], flags: int, columns: list[bytes]) -> bytes:
    count = len(contents)
    if not 1 <= count <= LIMITS.messages:
        raise InvalidRequest(f"an envelope has 1 to {LIMITS.messages} messages, not {count}")
    head = _HEAD.pack(LAYOUT, flags, count)
    salt = os.urandom(SALT_BYTES)
    return b"".join(
        [head, salt, struct.pack(f">{count}I", *map(len, contents)), *columns, *contents]
    )


def salted(plain: bytes) -> bytes:
    """Return the plaintext in layout 2, adding a salt to one of layout 1."""
    if plain[:1] != bytes([FIRST_LAYOUT]):
        return plain
    return b"".join(
        [bytes([LAYOUT]), plain[1 : _HEAD.size], os.urandom(SALT_BYTES), plain[_HEAD.size :]]
    )


def _times(sent: Sequence[int]) -> bytes:
    try:
        return struct.pack(f">{len(sent)}Q", *sent)
    except struct.error:
        raise InvalidRequest(
            "a message's time must be in milliseconds since 1970, from 0 to 2^64 - 1"
        ) from None


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"invalid {what}: it has a lone surrogate") from None


def _short(text: str, what: str, most: int) -> bytes:
    raw = _utf8(text, what)
    if len(raw) > most:
        raise InvalidRequest(f"a {what} has at most {most} bytes, this one has {len(raw)}")
    return bytes([len(raw)]) + raw


def _encode_headers(headers: dict[str, str]) -> bytes:
    if len(headers) > LIMITS.message_headers:
        raise InvalidRequest(
            f"a message has at most {LIMITS.message_headers} headers, this one has {len(headers)}"
        )
    out = [bytes([len(headers)])]
    for key, value in headers.items():
        raw = _utf8(value, "header value")
        if not key or len(raw) > LIMITS.header_value_bytes:
            raise InvalidRequest(
                f"a header has a name, and a value of at most {LIMITS.header_value_bytes} bytes"
            )
        out += [
            _short(key, "header name", LIMITS.header_key_bytes),
            len(raw).to_bytes(2, "big"),
            raw,
        ]
    encoded = b"".join(out)
    if len(encoded) > 0xFFFF:
        raise InvalidRequest("the headers of a message have at most 65,535 bytes together")
    return encoded


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.raw):
            raise MalformedEnvelope("the body ends too early")
        self.at += size
        return self.raw[self.at - size : self.at]

    def text8(self) -> str:
        return self.text(self.take(self.take(1)[0]))

    @staticmethod
    def text(raw: bytes) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise MalformedEnvelope("a text in the body is not UTF-8") from None


class _Column:
    """One value of each message: checked, and left in place in the plaintext."""

    __slots__ = ("_bounds", "_raw")

    def __init__(self, reader: _Reader, read: Callable[[_Reader], object], count: int) -> None:
        self._raw = reader.raw
        self._bounds = array("L", [reader.at])
        for _ in range(count):
            read(reader)
            self._bounds.append(reader.at)

    def __getitem__(self, index: int) -> bytes:
        return self._raw[self._bounds[index] : self._bounds[index + 1]]


class Messages(Sequence[Message]):
    """The messages of a body, decoded on access: a batch of thousands is often only written out.

    ``contents`` is all contents concatenated; ``bounds`` has the start of each and the end of the
    last. Types and headers were checked and stay in the plaintext: as dictionaries, 65,000 messages
    of 32 headers would take 800 MB.
    """

    __slots__ = ("_default", "_headers", "_sealed_at", "_sent", "_types", "bounds", "contents")

    def __init__(
        self,
        contents: memoryview,
        bounds: list[int],
        default: str,
        types: _Column | None,
        headers: _Column | None,
        sent: tuple[int, ...] | None,
        sealed_at: int,
    ) -> None:
        self.contents, self.bounds = contents, bounds
        self._default, self._types, self._headers, self._sent = default, types, headers, sent
        self._sealed_at = sealed_at

    @property
    def same_type(self) -> str | None:
        """The content type if all messages have the same and none has headers or a time of its own;
        else None.
        """
        plain = self._types is None and self._headers is None and self._sent is None
        return self._default if plain else None

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        message, content = self.apart(range(len(self))[index])
        message.content = bytes(content)
        return message

    def type_of(self, at: int) -> str:
        """Return the content type of a message."""
        return (self._types[at][1:].decode() if self._types else "") or self._default

    def apart(self, at: int) -> tuple[Message, memoryview]:
        """Return a message without its content, and its content, which is not copied."""
        message = Message(
            b"",
            self.type_of(at),
            _decode_headers(_Reader(self._headers[at])) if self._headers else {},
            self._sent[at] or self._sealed_at if self._sent else self._sealed_at,
        )
        return message, self.contents[self.bounds[at] : self.bounds[at + 1]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def apart(messages: Sequence[Message], at: int) -> tuple[Message, bytes | memoryview]:
    """Return a message, whose own content may be empty, and its content, copied only if it is not
    one of `Messages`.
    """
    if isinstance(messages, Messages):
        return messages.apart(at)
    return messages[at], messages[at].content


def type_of(messages: Sequence[Message], at: int) -> str:
    """Return the content type of a message, without making the message."""
    return messages.type_of(at) if isinstance(messages, Messages) else messages[at].content_type


def unpack(plain: bytes, count: int, sealed_at: int) -> Messages:
    """Return the messages. Raise MalformedEnvelope unless the plaintext is exactly ``count``
    messages.
    """
    reader = _Reader(plain)
    layout, flags, found = _HEAD.unpack(reader.take(_HEAD.size))
    if layout not in (LAYOUT, FIRST_LAYOUT) or flags & ~(SENT_TIMES | TYPES | HEADERS):
        raise MalformedEnvelope(
            f"unknown body layout {layout} or flags {flags}", remedy="update this program"
        )
    if layout == LAYOUT:
        reader.take(SALT_BYTES)
    if found != count:
        raise MalformedEnvelope(f"the body has {found} messages, but the prefix says {count}")
    sizes = struct.unpack(f">{count}I", reader.take(4 * count))
    sent = struct.unpack(f">{count}Q", reader.take(8 * count)) if flags & SENT_TIMES else None
    default = reader.text8()
    types = _Column(reader, _Reader.text8, count) if flags & TYPES else None
    headers = _Column(reader, _decode_headers, count) if flags & HEADERS else None
    bounds = list(accumulate(sizes, initial=0))
    if reader.at + bounds[-1] != len(plain):
        raise MalformedEnvelope("the length of the contents does not match the body's columns")
    return Messages(
        memoryview(plain)[reader.at :], bounds, default, types, headers, sent, sealed_at
    )


def _decode_headers(reader: _Reader) -> dict[str, str]:
    size = int.from_bytes(reader.take(2), "big")
    end = reader.at + size
    count = reader.take(1)[0]
    if count > LIMITS.message_headers:
        raise MalformedEnvelope(
            f"a message has {count} headers; at most {LIMITS.message_headers} are allowed"
        )
    headers: dict[str, str] = {}
    for _ in range(count):
        key = reader.text8()
        value = reader.take(int.from_bytes(reader.take(2), "big"))
        if not key or key in headers or len(value) > LIMITS.header_value_bytes:
            raise MalformedEnvelope("a header has no name, is duplicated, or is too long")
        headers[key] = reader.text(value)
    if reader.at != end:
        raise MalformedEnvelope("a message's headers do not match their length")
    return headers
