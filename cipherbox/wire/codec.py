"""Encode and decode one frame: `length u32 | kind u8 | body`, where length counts kind and body.

SEND, DELIVER and FETCHED carry the traffic, so they have functions of their own that make and read
plain tuples; a test holds them to the same bytes as the table.  A large envelope is never copied:
encoding returns it as a piece of its own, and decoding returns a view of the buffer that it was
received into.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from cipherbox.errors import ProtocolError
from cipherbox.wire import frames  # fills TABLE
from cipherbox.wire.fields import TABLE, Get, Put, decoder, encoder, kind_of

HEADER = struct.Struct(">IB")
SEND = 0x02
DELIVER = 0x23

LARGE = 256 * 1024  # frames above it get a buffer of their own; envelopes of it are not copied
Octets = bytes | memoryview
SendItem = tuple[int, int, int, Octets]  # correlation, flags, route version, envelope
DeliveredItem = tuple[int, int, int, int, Octets]  # seq, attempt, accepted_at, log entry, envelope


class _Encoders(dict[int, Put]):
    """The encoder of each kind of frame, compiled when one is first sent."""

    def __missing__(self, kind: int) -> Put:
        self[kind] = put = encoder(TABLE[kind].fields)
        return put


class _Decoders(dict[int, Get]):
    """The decoder of each kind of frame, compiled when one is first read."""

    def __missing__(self, kind: int) -> Get:
        spec = TABLE.get(kind)
        if spec is None:
            raise ProtocolError(f"unknown frame kind 0x{kind:02x}")
        self[kind] = get = decoder(spec.cls, spec.fields)
        return get


_ENCODE, _DECODE = _Encoders(), _Decoders()
_SEND_HEAD = struct.Struct(">IBQBQ")
_SEND_BODY = struct.Struct(">QBQ")
_SEND_BYTES = 1 + _SEND_BODY.size  # the least that the length of a SEND states
_DELIVER_HEAD = struct.Struct(">IBII")
_DELIVERED = struct.Struct(">QHQQI")
DELIVERED_BYTES = _DELIVERED.size  # overhead of each envelope in a frame


def encode_body(frame: object) -> bytes:
    """Return the encoded body alone, as a route-changed error carries it in its detail."""
    out: list[bytes] = []
    _ENCODE[kind_of(frame)](frame, out)
    return b"".join(out)


def encode(frame: object) -> bytes:
    """Return the encoded frame, header included."""
    out: list[bytes] = [b""]
    kind = kind_of(frame)
    _ENCODE[kind](frame, out)
    out[0] = HEADER.pack(1 + sum(map(len, out)), kind)
    return b"".join(out)


def decode(kind: int, body: bytes) -> Any:
    """Return the decoded frame, ignoring bytes after its last field; raise ProtocolError if it is
    malformed.
    """
    return _DECODE[kind](body, 0)[0]


def encode_sends(items: Iterable[SendItem]) -> list[Octets]:
    """Return the SEND frames of all items, in pieces to be sent one after the other."""
    out: list[Octets] = []
    for correlation, flags, route_version, envelope in items:
        out.append(
            _SEND_HEAD.pack(_SEND_BYTES + len(envelope), SEND, correlation, flags, route_version)
        )
        out.append(envelope)
    return joined(out)


def joined(pieces: Sequence[Octets]) -> list[Octets]:
    """Return the same bytes in fewer pieces: joined, except for large ones, which a join would
    copy.
    """
    if max(map(len, pieces), default=0) < LARGE:
        return [b"".join(pieces)]
    found: list[Octets] = []
    small: list[Octets] = []
    for piece in pieces:
        if len(piece) < LARGE:
            small.append(piece)
            continue
        found += (b"".join(small), piece)
        small = []
    return [*found, b"".join(small)]


class Pieces:
    """What is to be sent, taken a slice at a time; slices of a large piece are views of it."""

    def __init__(self, pieces: Sequence[Octets]) -> None:
        self._left = deque(piece for piece in joined(pieces) if piece)
        self.size = sum(map(len, self._left))  # what is left

    def take(self, most: int) -> Octets:
        """Return the next ``most`` bytes, or all if hardly more are left: a small last slice would
        cost as much as a large one.
        """
        room = self.size if self.size <= most + most // 8 else most
        self.size -= room
        taken: list[Octets] = []
        while room:
            piece = self._left.popleft()
            if len(piece) > room:
                view = memoryview(piece)
                piece, rest = view[:room], view[room:]
                self._left.appendleft(rest)
            taken.append(piece)
            room -= len(piece)
        return taken[0] if len(taken) == 1 else b"".join(taken)


def _taken(body: Octets, at: int, end: int) -> Octets:
    """Return ``body[at:end]``; a copy, unless it is large and the buffer was made for its frame."""
    part = body[at:end]
    return part.toreadonly() if isinstance(part, memoryview) and end - at >= LARGE else bytes(part)


def decode_send(body: Octets, at: int, end: int) -> SendItem:
    """Return the SEND whose body is ``body[at:end]``."""
    if end - at < 17:
        raise ProtocolError("the frame ends inside SEND")
    correlation, flags, route_version = _SEND_BODY.unpack_from(body, at)
    return correlation, flags, route_version, _taken(body, at + 17, end)


def decode_sends(buf: bytes, at: int, most: int, items: list[SendItem]) -> int:
    """Append the complete SENDs from ``buf[at]`` on, each of at most ``most`` bytes, and return
    the offset of what is no such frame: another kind, an incomplete or an invalid one.
    """
    read, last = _SEND_HEAD.unpack_from, len(buf) - _SEND_HEAD.size
    size = len(buf)
    while at <= last:
        length, kind, correlation, flags, route_version = read(buf, at)
        end = at + 4 + length
        if kind != SEND or not _SEND_BYTES <= length <= most or end > size:
            break
        items.append((correlation, flags, route_version, buf[at + _SEND_HEAD.size : end]))
        at = end
    return at


def encode_deliver(tag: int, entries: list[DeliveredItem]) -> list[Octets]:
    """Return one encoded DELIVER frame, in pieces to be sent one after the other."""
    out: list[Octets] = [b""]
    for seq, attempt, accepted_at, log_entry, envelope in entries:
        out.append(
            _DELIVERED.pack(seq, min(attempt, 0xFFFF), accepted_at, log_entry, len(envelope))
        )
        out.append(envelope)
    out[0] = _DELIVER_HEAD.pack(9 + sum(map(len, out)), DELIVER, tag, len(entries))
    return joined(out)


def decode_deliver(body: Octets, at: int, end: int) -> tuple[int, list[DeliveredItem]]:
    """Return the tag and the entries of the DELIVER whose body is ``body[at:end]``."""
    if end - at < 8:
        raise ProtocolError("the frame ends inside DELIVER")
    tag = int.from_bytes(body[at : at + 4], "big")
    entries, _ = decode_delivered(body, at + 4, end)
    return tag, entries


def decode_delivered(body: Octets, at: int, end: int) -> tuple[list[DeliveredItem], int]:
    """Return a listing of `Delivered` as tuples, and the offset at which it ends."""
    count = int.from_bytes(body[at : at + 4], "big")
    at += 4
    if count * DELIVERED_BYTES > end - at:
        raise ProtocolError(f"a listing announces {count} items in {end - at} bytes")
    entries: list[DeliveredItem] = []
    for _ in range(count):
        if at + DELIVERED_BYTES > end:
            raise ProtocolError("the frame ends inside Delivered")
        seq, attempt, accepted_at, log_entry, size = _DELIVERED.unpack_from(body, at)
        at += DELIVERED_BYTES
        if at + size > end:
            raise ProtocolError("the frame ends inside Delivered")
        entries.append((seq, attempt, accepted_at, log_entry, _taken(body, at, at + size)))
        at += size
    return entries, at


__all__ = [
    "DELIVER",
    "DELIVERED_BYTES",
    "HEADER",
    "LARGE",
    "SEND",
    "TABLE",
    "DeliveredItem",
    "Octets",
    "Pieces",
    "SendItem",
    "decode",
    "decode_deliver",
    "decode_delivered",
    "decode_send",
    "decode_sends",
    "encode",
    "encode_body",
    "encode_deliver",
    "encode_sends",
    "frames",
    "joined",
]
