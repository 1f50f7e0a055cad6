"""A session over a stream, and a file for sessions: what two programs need to talk without HQ.

    async with await SecureSocket.connect(stream, context, peer_key=their_public_key) as socket:
        await socket.send(b"text")
        answer = await socket.receive()

Any `trio.abc.Stream` will do: TCP, a pipe, a serial line.  On it go frames, `length u32 | bytes`:
the offer of who accepts, the answer of who connects, a first message back, then messages.  Each is
bound to its number and direction, so that one that was dropped, doubled or moved is noticed; and
the end is a message too, so that a cut line is no end.
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


@checked
class SecureSocket:
    """See the module; made by `connect` at one end and `accept` at the other."""

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
        """The end that speaks first.  EnvelopeError: the other is not who it should be;
        HandshakeTimeout; NetworkError.

        ``prologue``: what both ends must know to be the same.  On an error the stream is closed.
        """
        return await cls._shake(stream, context, peer_key, prologue, begins=True)

    @classmethod
    async def accept(
        cls,
        stream: trio.abc.Stream,
        context: SecureContext,
        *,
        peer_key: bytes | None = None,
        prologue: bytes = b"",
    ) -> SecureSocket:
        """The other end of `connect`."""
        return await cls._shake(stream, context, peer_key, prologue, begins=False)

    @classmethod
    async def _shake(
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
        # The frames of the handshake come before there is a session; a socket without one reads and
        # writes them.
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
        """The public key at the other end, 64 bytes."""
        return self.session.peer_key

    async def send(self, data: bytes) -> None:
        """Sends one message; TooLarge, NetworkError."""
        if len(data) > self._most:
            raise TooLarge(f"a message has at most {self._most} bytes, this one has {len(data)}")
        await self._say(_DATA + data)

    async def receive(self) -> bytes | None:
        """The next message, whole; None when the other end is done.

        NetworkError: the line was cut.  EnvelopeError: somebody changed, dropped or doubled
        something; the stream is closed then, since nothing behind it can be trusted to be in its
        place.
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
        """Says that this was all, and closes the stream.  The session stays in its context until
        `session.close`.
        """
        try:
            with trio.move_on_after(1.0):
                await self._say(_END)
        except (NetworkError, InvalidRequest):
            pass  # nobody listens any more
        finally:
            await self._stream.aclose()

    # -- inside ------------------------------------------------------------------------------------

    def _place(self, number: int, *, own: bool) -> bytes:
        return label("secure-socket") + bytes([self._begins == own]) + number.to_bytes(8, "big")

    async def _say(self, plain: bytes) -> None:
        async with self._sending:
            raw = self.session.encrypt(plain, self._place(self._sent, own=True))
            self._sent += 1
            await self._put(raw)

    async def _put(self, raw: bytes) -> None:
        try:
            await self._stream.send_all(_LENGTH.pack(len(raw)) + raw)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise NetworkError("the line was cut") from None

    async def _frame(self, most: int) -> bytes:
        (size,) = _LENGTH.unpack(await self._take(_LENGTH.size))
        if size > most:
            await trio.aclose_forcefully(self._stream)
            raise ProtocolError(
                f"the other end sends {size} bytes at once; at most {most} are taken"
            )
        return await self._take(size)

    async def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            try:
                data = await self._stream.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                raise NetworkError("the line was cut before the other end was done")
            self._buffer += data
        found = bytes(self._buffer[:size])
        del self._buffer[:size]
        return found


@checked
class SqliteSessions:
    """A `SessionStorage` in a file of this user alone, every state encrypted under ``key`` (32
    bytes), durable.
    """

    def __init__(self, path: Path | str, key: bytes) -> None:
        path = Path(path)
        if len(key) != 32:
            raise InvalidRequest(f"the key of a session file has 32 bytes, this one has {len(key)}")
        self._path = path
        self._box = SecretBox(hkdf(key, label("secure-sessions"), 32))
        self._db = open_database(
            path,
            (
                "CREATE TABLE states (session_id BLOB PRIMARY KEY, state BLOB NOT NULL) WITHOUT "
                "ROWID;\n",
            ),
        )
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
