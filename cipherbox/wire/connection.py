"""One end of a connection without IO: bytes in, events out; frames in, bytes out.

    connection = WireConnection("server")
    connection.receive_data(data)           # as read from the stream, in pieces of any size
    for event in connection.events(): ...   # complete frames, in order
    stream.send_all(connection.send(frame))

States: OPENING until HELLO was answered with WELCOME, then OPEN, then CLOSED.  In OPENING a server
accepts HELLO only and parses nothing after it until `send(Welcome)` has fixed limits and role; a
client accepts WELCOME or ERROR only.  The `sender` column of the table of frames says which side
may send a frame.

Rules:

1. A length is checked as soon as its four bytes have arrived, before its body is waited for.
2. A fault is raised by the `events()` call after the one that returned the valid frames before it;
   from then on the connection is CLOSED and every call raises the same fault.
3. Consecutive SENDs are one `SendBatch` of tuples and a DELIVER is `Deliveries`: these are the
   frames that carry the traffic.
4. Pieces of a frame are kept as they arrived and joined once.  A large frame has its own buffer
   once LARGE bytes of it have arrived, and the reader of the stream may read directly into it
   (`wanted`, `filled`).
5. Announcing a length costs no memory: the buffer grows with what arrives, and is at most
   AHEAD_BYTES ahead of it.
"""

from __future__ import annotations

import enum
from typing import Any, NamedTuple

from cipherbox.errors import FrameTooLarge, ProtocolError, UnexpectedFrame, VersionMismatch
from cipherbox.limits import LIMITS, Limits
from cipherbox.wire import codec
from cipherbox.wire.codec import DELIVER, LARGE, SEND, DeliveredItem, Octets, SendItem
from cipherbox.wire.fields import TABLE, kind_of
from cipherbox.wire.frames import MAGIC, VERSION, Error, Hello, Welcome

_PIECES = 256  # of one frame, then they are joined: a piece of one byte costs forty
# a full envelope of a publisher fits in one step: each further one may copy what has arrived
AHEAD_BYTES = 1024 * 1024
HELLO, WELCOME, ERROR = 0x04, 0x05, 0x08


class State(enum.Enum):
    """The state of one connection."""

    OPENING = "opening"
    OPEN = "open"
    CLOSED = "closed"


class SendBatch(NamedTuple):
    """Consecutive SENDs: (correlation, flags, route version, envelope) each."""

    items: list[SendItem]


class Deliveries(NamedTuple):
    """One DELIVER: (seq, attempt, accepted_at, log entry, envelope) each."""

    tag: int
    entries: list[DeliveredItem]


# Which `sender` values of the table are accepted from a peer, by the role HQ gave the connection.
_ACCEPTED_SENDERS = {
    "anonymous": frozenset({"anonymous", "both"}),
    "client": frozenset({"client", "both", "anonymous"}),
    "admin": frozenset({"client", "both", "anonymous", "admin"}),
    "server": frozenset({"server", "both"}),
}
_KINDS = {
    role: frozenset(k for k, spec in TABLE.items() if spec.sender in senders)
    for role, senders in _ACCEPTED_SENDERS.items()
}
_OPENING = {"server": frozenset({HELLO}), "client": frozenset({WELCOME, ERROR})}
_AFTER_OPENING = frozenset({HELLO, WELCOME})


def negotiate(hello: Hello) -> int:
    """Return the version both ends will speak; raise VersionMismatch if they share none."""
    if hello.magic != MAGIC:
        raise ProtocolError("the peer does not speak the CipherBox protocol")
    if not hello.version_min <= VERSION <= hello.version_max:
        raise VersionMismatch(
            f"HQ speaks protocol version {VERSION}, the client {hello.version_min} to "
            f"{hello.version_max}",
            remedy="update the older program, HQ first (cipherbox manual migrate)",
        )
    return VERSION


class WireConnection:
    """One end of a connection, as in the module's text; ``role`` is "client" or "server"."""

    def __init__(self, role: str, limits: Limits = LIMITS) -> None:
        if role not in _OPENING:
            raise ValueError(f"invalid role {role!r}: must be client or server")
        self.role = role
        self.state = State.OPENING
        self._limits = limits
        self._peer = "server" if role == "client" else "anonymous"
        self._frame_bytes = limits.first_frame_bytes  # the most this end accepts
        self._peer_frame_bytes = limits.first_frame_bytes  # the most the peer accepts
        self._pieces: list[bytes] = []
        # of an incomplete large frame; its bytes precede the pieces
        self._large: bytearray | None = None
        self._filled = 0  # bytes of it that have arrived
        self._have = 0  # bytes not parsed yet
        self._need = 4  # bytes until the next step is possible
        self._fault: ProtocolError | None = None
        self._paused = False  # between HELLO and WELCOME

    # -- out ---------------------------------------------------------------------------------------

    def send(self, frame: object) -> bytes:
        """Return the frame's bytes; WELCOME opens a server's connection."""
        kind = kind_of(frame)
        if self.state is State.CLOSED:
            raise UnexpectedFrame("the connection is closed")
        if self.state is State.OPENING and kind not in (HELLO, WELCOME, ERROR):
            raise UnexpectedFrame(f"cannot send {TABLE[kind].name}: the connection is not open yet")
        data = codec.encode(frame)
        if len(data) - 4 > self._peer_frame_bytes and kind != WELCOME:
            raise FrameTooLarge(
                f"{TABLE[kind].name} has {len(data) - 4} bytes; the peer accepts at most "
                f"{self._peer_frame_bytes}"
            )
        if isinstance(frame, Welcome):
            self._opened(frame)
        return data

    def send_batch(self, items: list[SendItem]) -> list[Octets]:
        """Return the bytes of many SENDs, in pieces to be sent one after the other."""
        return codec.encode_sends(items)

    # -- in ----------------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Accept bytes that were read from the stream."""
        self._have += len(data)
        while data and self._large is not None and self._filled < self._need:
            self._grow()
            room = len(self._large) - self._filled
            piece = data[:room]
            self._large[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            data = data[room:]
        if data:
            self._pieces.append(data)
            if self._large is None and LARGE <= self._have < self._need:
                self._begin_large()
            elif len(self._pieces) > _PIECES:
                self._pieces = [b"".join(self._pieces)]

    def wanted(self) -> memoryview | None:
        """Return where the next bytes of a large frame belong; None between large frames."""
        if self._large is None or self._filled == self._need:
            return None
        self._grow()
        return memoryview(self._large)[self._filled :]

    @property
    def coming(self) -> tuple[int, int]:
        """The number of bytes that an incomplete frame has so far, and its size; else (0, 0)."""
        return (self._have, self._need) if self._have else (0, 0)

    @property
    def missing(self) -> int:
        """The number of bytes that an incomplete frame lacks; 0 if none has begun."""
        return self._need - self._have if self._have > 4 else 0

    def filled(self, size: int) -> None:
        """Record that ``size`` bytes were read into the buffer that `wanted` returned."""
        self._filled += size
        self._have += size

    def _begin_large(self) -> None:
        """Give a large frame a buffer of its own, once LARGE bytes of it have arrived."""
        pieces, self._pieces = self._pieces, []
        self._large = bytearray(min(self._need, self._have + AHEAD_BYTES))
        self._filled = 0
        for piece in pieces:
            self._large[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)

    def _grow(self) -> None:
        """Enlarge the buffer if it is full, never beyond the frame's end."""
        assert self._large is not None
        if self._filled == len(self._large):
            self._large += bytes(min(self._need - self._filled, AHEAD_BYTES))

    def receive_eof(self) -> None:
        """Close the connection; raise ProtocolError if the stream ended within a frame."""
        self.state = State.CLOSED
        if self._have and self._fault is None:
            raise ProtocolError("the connection ended in the middle of a frame")

    def events(self) -> list[Any]:
        """Return the complete frames, in order; raise a fault in the call after the valid ones."""
        if self._fault is not None:
            raise self._fault
        if self._have < self._need or self._paused:
            return []
        found: list[Any] = []
        if self._large is not None:
            large, self._large = self._large, None
            self._have -= len(large)
            self._run(memoryview(large), found)
        if self._have >= 4 and self._fault is None and not self._paused:
            buf = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            at = self._run(buf, found)
            self._keep(buf, at)
        return found

    def _run(self, buf: Octets, found: list[Any]) -> int:
        """Parse; raise a fault immediately only if no valid frame came before it."""
        try:
            return self._parse(buf, found)
        except ProtocolError as fault:
            self._fault = fault
            self.state = State.CLOSED
            self._pieces.clear()
            self._have = 0
            if not found:
                raise
            return len(buf)

    def _keep(self, buf: bytes, at: int) -> None:
        """Keep the beginning of an incomplete frame until the rest of it arrives."""
        if self._fault is not None:
            return
        left = buf[at:] if at else buf
        self._have = len(left)
        self._pieces = [left] if left else []
        if LARGE <= self._have < self._need:
            self._begin_large()

    def _parse(self, buf: Octets, found: list[Any]) -> int:
        """Append complete frames to ``found``; set what the rest needs, and return its offset."""
        at, size = 0, len(buf)
        sends: list[SendItem] | None = None
        from_bytes = int.from_bytes
        while size - at >= 4:
            length = from_bytes(buf[at : at + 4], "big")
            if not 0 < length <= self._frame_bytes:
                self._bad_length(length)
            end = at + 4 + length
            if size - at >= 5:
                kind = buf[at + 4]
                self._check_kind(kind)
            if end > size:
                self._need = end - at
                return at
            if kind == SEND:
                if sends is None:
                    sends = []
                    found.append(SendBatch(sends))
                sends.append(codec.decode_send(buf, at + 5, end))
                if isinstance(buf, bytes):  # the SENDs after it need no check of their own
                    end = codec.decode_sends(buf, end, self._frame_bytes, sends)
            else:
                sends = None
                if kind == DELIVER:
                    found.append(Deliveries(*codec.decode_deliver(buf, at + 5, end)))
                else:
                    found.append(self._event(codec.decode(kind, bytes(buf[at + 5 : end]))))
                    if self._paused or self.state is State.CLOSED:
                        at = end
                        break
            at = end
        self._need = 4
        return at

    def _check_kind(self, kind: int) -> None:
        if self.state is State.OPEN:
            if kind in _KINDS[self._peer] and kind not in _AFTER_OPENING:
                return
        elif kind in _OPENING[self.role]:
            return
        spec = TABLE.get(kind)
        if spec is None:
            raise ProtocolError(f"unknown frame kind 0x{kind:02x}")
        if self._peer == "anonymous" and self.state is State.OPEN:
            raise UnexpectedFrame(
                f"{spec.name} needs a certificate: this connection can only enrol"
            )
        when = "now" if self.state is State.OPEN else "before the connection is open"
        raise UnexpectedFrame(f"this peer may not send {spec.name} {when}")

    def _bad_length(self, length: int) -> None:
        if length == 0:
            raise ProtocolError("empty frame: its kind is missing")
        raise FrameTooLarge(
            f"a frame announces {length} bytes; this connection accepts {self._frame_bytes}"
        )

    def _event(self, frame: Any) -> Any:
        if isinstance(frame, Hello):
            if frame.magic != MAGIC:
                raise ProtocolError("the peer does not speak the CipherBox protocol")
            self._peer_frame_bytes = max(frame.frame_bytes, self._limits.first_frame_bytes)
            self._paused = True
        elif isinstance(frame, Welcome):
            self._opened(frame)
        elif isinstance(frame, Error) and self.role == "client" and self.state is State.OPENING:
            self.state = State.CLOSED
        return frame

    def _opened(self, welcome: Welcome) -> None:
        self.state = State.OPEN
        if self.role == "server":
            self._peer = welcome.role
            anonymous = welcome.role == "anonymous"
            self._frame_bytes = (
                self._limits.anonymous_frame_bytes if anonymous else self._limits.frame_bytes
            )
            self._paused = False
        else:
            self._frame_bytes = self._limits.frame_bytes
            self._peer_frame_bytes = welcome.frame_bytes
