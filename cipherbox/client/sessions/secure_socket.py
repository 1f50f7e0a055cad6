"""A session over a stream, and a file for sessions: all that two programs need to talk without HQ.

    async with await SecureSocket.connect(stream, context, peer_key=their_public_key) as socket:
        await socket.send(b"text")
        answer = await socket.receive()

Any `trio.abc.Stream` works: TCP, a pipe, a serial line. It carries frames, `length u32 | bytes`:
the acceptor's offer, the connecting end's answer, a first message back, then messages. Each is
bound to its number and direction, so that a dropped, duplicated or reordered one is detected; the
end of the stream is a message too, so that a cut connection is not mistaken for it.
"""

from __future__ import annotations

import struct
from pathlib import Path
from types import TracebackType

import trio

from cipherbox.checks import checked
from cipherbox.client.local_database import open_database, transaction
from cipherbox.envelope.labels import label
from cipherbox.errors import (
    EnvelopeError,
    HandshakeTimeout,
    InvalidRequest,
    NetworkError,
    ProtocolError,
    TooLarge,
)
from cipherbox.sealing.local_secret_box import SecretBox
from cipherbox.sealing.primitives import hkdf
from cipherbox.sealing.ratchet.secure_session import HandshakeBuilder, SecureContext, SecureSession

_LENGTH = struct.Struct(">I")
_FIRST_FRAME = 4096  # an offer has 1,350 bytes, an answer 1,359
_OVERHEAD = 2048
_END, _DATA = b"\x00", b"\x01"
# of a session file
STEPS = ("CREATE TABLE states (session_id BLOB PRIMARY KEY, state BLOB NOT NULL) WITHOUT ROWID;\n",)


@checked
class SecureSocket:
    """An encrypted stream of messages; made by `connect` at one end and `accept` at the other."""

    def __init__(self, stream: trio.abc.Stream, session: SecureSession, *, begins: bool) -> None:
        self.session = session
        self._stream, self._begins = stream, begins
        self._most = session.context.settings.message_bytes
        self._sent = self._received = 0
        self._buffer = bytearray()
        self._ended = False
        self._sending = trio.Lock()

    @classmethod
    async def connect(
        cls,
        stream: trio.abc.Stream,
        context: SecureContext,
        *,
        peer_key: bytes | None = None,
        prologue: bytes = b"",
    ) -> SecureSocket:
        """Run the handshake as the initiator and return the socket. On an error the stream is
        closed.

        ``prologue`` must be the same at both ends. Raise EnvelopeError if the other end is not the
        expected peer, HandshakeTimeout, or NetworkError.
        """
        return await cls._handshake(stream, context, peer_key, prologue, begins=True)

    @classmethod
    async def accept(
        cls,
        stream: trio.abc.Stream,
        context: SecureContext,
        *,
        peer_key: bytes | None = None,
        prologue: bytes = b"",
    ) -> SecureSocket:
        """Run the handshake as the responder and return the socket; see `connect`."""
        return await cls._handshake(stream, context, peer_key, prologue, begins=False)

    @classmethod
    async def _handshake(
        cls,
        stream: trio.abc.Stream,
        context: SecureContext,
        peer_key: bytes | None,
        prologue: bytes,
        *,
        begins: bool,
    ) -> SecureSocket:
        builder = HandshakeBuilder(context).prologue(prologue)
        if peer_key is not None:
            builder.peer_key(peer_key)
        # The handshake's frames precede the session: a socket without a session reads and writes
        # them.
        socket = cls(stream, SecureSession(context, b""), begins=begins)
        try:
            with trio.fail_after(context.settings.handshake_s):
                if begins:
                    first, session_id = builder.begin(await socket._frame(_FIRST_FRAME))
                    socket.session = SecureSession(context, session_id)
                    await socket._put(first)
                    if await socket.receive() != b"":
                        raise ProtocolError("the other end did not confirm the session")
                else:
                    await socket._put(builder.offer())
                    socket.session = SecureSession(
                        context, builder.finish(await socket._frame(_FIRST_FRAME))
                    )
                    await socket.send(b"")
        except trio.TooSlowError:
            await trio.aclose_forcefully(stream)
            raise HandshakeTimeout(
                f"no session within {context.settings.handshake_s:g} s"
            ) from None
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return socket

    async def __aenter__(self) -> SecureSocket:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    @property
    def peer_key(self) -> bytes:
        """The public key (64 bytes) of the other end."""
        return self.session.peer_key

    async def send(self, data: bytes) -> None:
        """Send one message. Raise TooLarge or NetworkError."""
        if len(data) > self._most:
            raise TooLarge(f"a message may have at most {self._most} bytes, not {len(data)}")
        await self._send(_DATA + data)

    async def receive(self) -> bytes | None:
        """Return the next message, or None once the other end has finished.

        Raise NetworkError if the connection was cut, EnvelopeError if a message was changed,
        dropped or duplicated; the stream is closed then, since the order of later messages cannot
        be trusted.
        """
        if self._ended:
            return None
        raw = await self._frame(self._most + _OVERHEAD)
        try:
            plain = self.session.decrypt(raw, self._place(self._received, own=False))
        except EnvelopeError:
            await trio.aclose_forcefully(self._stream)
            raise
        self._received += 1
        if plain[:1] == _END:
            self._ended = True
            return None
        return plain[1:]

    async def aclose(self) -> None:
        """Send the end of the stream and close it. The session stays in its context until
        `session.close`.
        """
        try:
            with trio.move_on_after(1.0):
                await self._send(_END)
        except (NetworkError, InvalidRequest):
            pass  # the other end is gone
        finally:
            await self._stream.aclose()

    # -- internals ---------------------------------------------------------------------------------

    def _place(self, number: int, *, own: bool) -> bytes:
        return label("secure-socket") + bytes([self._begins == own]) + number.to_bytes(8, "big")

    async def _send(self, plain: bytes) -> None:
        async with self._sending:
            raw = self.session.encrypt(plain, self._place(self._sent, own=True))
            self._sent += 1
            await self._put(raw)

    async def _put(self, raw: bytes) -> None:
        try:
            await self._stream.send_all(_LENGTH.pack(len(raw)) + raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise NetworkError("the connection was cut") from None

    async def _frame(self, most: int) -> bytes:
        (size,) = _LENGTH.unpack(await self._take(_LENGTH.size))
        if size > most:
            await trio.aclose_forcefully(self._stream)
            raise ProtocolError(f"the other end sends a frame of {size} bytes, more than {most}")
        return await self._take(size)

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise NetworkError("the connection was cut before the other end had finished")
            self._buffer += data
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found


@checked
class SqliteSessions:
    """A durable `SessionStorage` in a file readable by this user only, with every state encrypted
    under ``key`` (32 bytes).
    """

    def __init__(self, path: Path | str, key: bytes) -> None:
        path = Path(path)
        if len(key) != 32:
            raise InvalidRequest(f"the key of a session file must have 32 bytes, not {len(key)}")
        self._path = path
        self._box = SecretBox(hkdf(key, label("secure-sessions"), 32))
        self._db = open_database(path, STEPS)
        self._db.execute("PRAGMA secure_delete = ON")

    def load(self, session_id: bytes) -> bytes | None:
        row = self._db.execute(
            "SELECT state FROM states WHERE session_id = ?", (session_id,)
        ).fetchone()
        return self._box.decrypt(row[0], session_id) if row is not None else None

    def save(self, session_id: bytes, state: bytes) -> None:
        with transaction(self._db, self._path):
            row = (session_id, self._box.encrypt(state, session_id))
            self._db.execute("INSERT OR REPLACE INTO states VALUES (?, ?)", row)

    def delete(self, session_id: bytes) -> None:
        with transaction(self._db, self._path):
            self._db.execute("DELETE FROM states WHERE session_id = ?", (session_id,))

    def close(self) -> None:
        self._db.close()


__all__ = ["SecureSocket", "SqliteSessions"]
