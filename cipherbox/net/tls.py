"""TLS 1.3 over TCP as a trio Stream, and the contexts of both ends.

`TlsStream` runs `ssl` over two memory buffers.  One receive drains every record that has arrived,
where trio's own `SSLStream` returns one record of 16 KiB; that gains a third of the bandwidth for
large envelopes.  Rules:
1. One task sends and one receives at a time.
2. The call that makes `ssl` produce output flushes it.
3. A connection closed without close_notify reads as the end of the stream: frames have lengths, so
   truncation is noticed.
4. `send_now` sends a small frame without a turn of the event loop, which costs as much as the
   frame.  What the network does not take, the next `send_all` sends first.
5. Each wake-up costs 60 us, and a large frame arrives in dozens of pieces: while `expect` says that
   more must come, a receive waits for a large part of it (SO_RCVLOWAT, which Linux gives up at the
   end of the stream and when its buffer is full), but only briefly: a slow peer's progress shows.

In TLS 1.3 a client learns only at its first read that HQ refused its certificate.  So read and
write errors are translated by the same function (`stream_error`), and a failed write looks for the
alert that explains it.
"""

from __future__ import annotations

import _ssl
import contextlib
import os
import ssl
import sys
from collections.abc import Iterator

import trio
from cryptography import x509

from cipherbox import clock, pki
from cipherbox.errors import (
    BundleNotCertified,
    CipherBoxError,
    CredentialsError,
    NetworkError,
    NotValidNow,
)
from cipherbox.pki.profile import OutOfDate
from cipherbox.portable import passing_file

_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` does not name
ALPN = "cipherbox/1"
CHUNK = 256 * 1024
_PART, PART_S = CHUNK, 0.5  # waited for at most
_RECORD = 16 * 1024  # largest TLS record
CLOSE_S = 2.0
_FLIGHTS = 4  # of a handshake, and a spare one

_ALERTS = {
    "UNKNOWN_CA": (
        "HQ did not accept this certificate: it was issued by another CA. Enrol again with HQ's "
        "token"
    ),
    "CERTIFICATE_EXPIRED": (
        "HQ did not accept this certificate: by HQ's clock it has expired. If not by this one's, "
        "one of the two clocks is wrong; else ask HQ for a new token and join again"
    ),
    "CERTIFICATE_REVOKED": "HQ did not accept this certificate: it was revoked",
    "BAD_CERTIFICATE": (
        "HQ did not accept this certificate; if it is new, HQ's clock or this machine's may be "
        "wrong"
    ),
    "CERTIFICATE_UNKNOWN": "HQ did not accept this certificate",
    "CERTIFICATE_REQUIRED": "HQ asks for a certificate and this client sent none",
    "ACCESS_DENIED": "HQ did not accept this certificate",
}
_FAULTS = {
    "UNSUPPORTED_PROTOCOL": "the other end does not speak TLS 1.3",
    "PROTOCOL_VERSION": "the other end does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "the other end does not speak TLS",
    "HTTP_REQUEST": "the other end sent a plain HTTP request",
    "NO_APPLICATION_PROTOCOL": "the other end speaks another protocol",
}


_NOT_YET_VALID, _HAS_EXPIRED = 9, 10  # OpenSSL's x509_vfy.h


class Cut(NetworkError, trio.BrokenResourceError, code=NetworkError.code):
    """The stream broke: our error, and also the one that trio's streams raise."""


class NotAccepted(CredentialsError, trio.BrokenResourceError, code=CredentialsError.code):
    """The stream broke because a certificate was refused."""


class NotAcceptedNow(NotValidNow, trio.BrokenResourceError, code=NotValidNow.code):
    """The stream broke because a certificate is not valid by this machine's clock."""


Cut.name, NotAccepted.name = NetworkError.name, CredentialsError.name
NotAcceptedNow.name = NotValidNow.name


def stream_error(error: Exception, peer: str) -> Cut | NotAccepted | NotAcceptedNow:
    """Return an ssl or socket error as one of ours."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if "hostname" in error.verify_message.lower():
            return NotAccepted(f"{peer} is not this HQ: its certificate has another name")
        here = f"{clock.now():%Y-%m-%d %H:%M} UTC by this machine's clock"
        if error.verify_code == _HAS_EXPIRED:
            return NotAcceptedNow(
                f"a certificate of {peer} has ended: it is {here}. If that is wrong, set the clock",
                remedy="else HQ's administrator must renew it (cipherbox ca)",
            )
        if error.verify_code == _NOT_YET_VALID:
            return NotAcceptedNow(
                f"a certificate of {peer} is not valid yet: it is {here}. If that is wrong, "
                "set the clock",
                remedy="else HQ's was ahead when the certificate was made",
            )
        return NotAccepted(f"the certificate of {peer} was not accepted: {error.verify_message}")
    if isinstance(error, ssl.SSLError):
        reason = error.reason or ""
        for alert, text in _ALERTS.items():
            if reason.endswith(f"ALERT_{alert}"):
                return NotAccepted(text)
        for fault, text in _FAULTS.items():
            if fault in reason:
                return Cut(f"no secure connection with {peer}: {text}")
        words = reason.replace("_", " ").lower() or str(error)
        return Cut(f"no secure connection with {peer}: {words}")
    cause = (
        error.__cause__
        if isinstance(error, trio.BrokenResourceError) and error.__cause__
        else error
    )
    text = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
    return Cut(f"the connection with {peer} was cut{': ' + text if text else ''}")


# -- contexts --------------------------------------------------------------------------------------


def _context(purpose: int, certificate: bytes | None, key: pki.PrivateKey | None) -> ssl.SSLContext:
    context = ssl.SSLContext(purpose)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN, "http/1.1"])
    # A trusted CA of an organization may be an intermediate one; violations of RFC 5280 are
    # refused.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
    if certificate is not None and key is not None:
        # `ssl` loads certificates only from files: the key is encrypted with a one-time password
        once = os.urandom(32)
        with passing_file(certificate + pki.key_pem(key, once)) as path, _loading():
            context.load_cert_chain(path, password=pki.password_of(once))
    return context


@contextlib.contextmanager
def _loading() -> Iterator[None]:
    """Raise CredentialsError for what OpenSSL does not load: it reads more of a certificate than
    our parser.
    """
    try:
        yield
    except ssl.SSLError as error:
        words = (error.reason or "").replace("_", " ").lower() or str(error)
        raise CredentialsError(
            f"a certificate is damaged or not suitable for TLS ({words})",
            remedy="restore the certificates from your backup",
        ) from None


def server_context(
    chain: list[x509.Certificate], key: pki.PrivateKey, trusted: list[x509.Certificate]
) -> ssl.SSLContext:
    """Return HQ's context. A client certificate is optional: without one a connection may only
    enrol.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, pki.pem(*chain), key)
    context.verify_mode = ssl.CERT_OPTIONAL
    with _loading():
        context.load_verify_locations(cadata=pki.pem(*trusted).decode())
    # HQ compares the dates itself, with the time that it trusts: while its machine's clock is wrong
    # its clients still get what waits for them (`server.directory.trust`).
    context.verify_flags |= _NO_CHECK_TIME
    context.num_tickets = 0  # every connection shows its certificate again
    return context


def client_context(
    root: x509.Certificate,
    chain: list[x509.Certificate] | None = None,
    key: pki.PrivateKey | None = None,
) -> ssl.SSLContext:
    """Return a client's context: HQ must present a certificate under ``root`` with HQ's logical
    name. `check_hq` checks the rest.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, pki.pem(*chain) if chain else None, key)
    context.hostname_checks_common_name = False
    with _loading():
        context.load_verify_locations(cadata=pki.pem(root).decode())
    return context


def first_contact_context() -> ssl.SSLContext:
    """Return a context only for fetching the root: nothing is verified, and no secret is sent."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT, None, None)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def check_hq(tls: ssl.SSLObject, context: ssl.SSLContext, peer: str) -> None:
    """Raise NotAccepted or NotAcceptedNow unless HQ's certificates also fit the profile. Call it
    after a client's handshake.
    """
    if context.verify_mode is ssl.CERT_NONE:
        return  # first contact: nothing is trusted, and no secret is sent
    try:
        root = _trusted_root(context)
        pki.verify_chain(
            [c for c in _peer_chain(tls) if c != pki.der(root)], root, clock.now(), pki.SERVER
        )
    except OutOfDate as error:  # by the clock for tests: the library has compared the machine's
        raise NotAcceptedNow(f"the certificate of {peer} is not valid now: {error}") from None
    except BundleNotCertified as error:
        raise NotAccepted(f"the certificate of {peer} was not accepted: {error}") from None


def _trusted_root(context: ssl.SSLContext) -> x509.Certificate:
    """Return the only root of a client's context; OpenSSL lists only CA certificates."""
    found = context.get_ca_certs(binary_form=True)
    if len(found) != 1:
        raise BundleNotCertified("the root certificate may not sign others (CA:TRUE)")
    return pki.load_der(found[0])


def _peer_chain(tls: ssl.SSLObject) -> list[bytes]:
    """Return the certificates that the other end sent, in DER, its own first."""
    public = getattr(tls, "get_unverified_chain", None)  # from Python 3.13 on
    if public is not None:
        return list(public())
    found = tls._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
    return [c.public_bytes(_ssl.ENCODING_DER) for c in found or ()]


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Perform a handshake in memory; raise NotAccepted or Cut with the error a client would get."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(down, up, server_hostname=pki.SERVER_NAME),
        server.wrap_bio(up, down, server_side=True),
    ]
    for _ in range(_FLIGHTS):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                raise stream_error(error, "HQ") from None
    check_hq(ends[0], client, "HQ")


# -- TLS -------------------------------------------------------------------------------------------


class TlsStream(trio.abc.Stream):
    """A TLS stream over another stream. Call `do_handshake` first."""

    def __init__(
        self,
        below: trio.abc.Stream,
        context: ssl.SSLContext,
        *,
        server_side: bool,
        peer: str = "HQ",
    ) -> None:
        self._below = below
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        name = None if server_side else pki.SERVER_NAME
        self._check = None if server_side else context
        self._tls = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=name
        )
        self._flush_lock = trio.Lock()
        self._sending = self._receiving = self._closed = False
        self._chunk = _RECORD  # size of the next read: grows while reads fill it
        self._expected = 0
        self._unsent = b""  # encrypted by `send_now`, and not yet sent
        self._broken: ssl.SSLError | None = None  # why `send_now` could not encrypt
        self._socket: trio.socket.SocketType | None = None  # that can wait for many bytes
        if sys.platform == "linux" and isinstance(below, trio.SocketStream):
            self._socket = below.socket
        self.peer = peer

    def peer_certificate(self) -> x509.Certificate | None:
        """Return the certificate that the other end presented and `ssl` verified."""
        der = self._tls.getpeercert(binary_form=True)
        return pki.load_der(der) if der else None

    async def do_handshake(self, turn: trio.CapacityLimiter | None = None) -> None:
        """Perform the handshake; raise CredentialsError or NetworkError if it fails.

        ``turn``: each step acquires it, and releases it after the other tasks of this loop have
        run: a thousand clients that reconnect simultaneously must not delay the connected ones.
        """
        while True:
            if turn is not None:
                await turn.acquire()
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                done = False
            except ssl.SSLError as error:
                with contextlib.suppress(CipherBoxError):
                    await self._flush()  # the alert that tells the other end why
                raise stream_error(error, self.peer) from error
            else:
                done = True
            finally:
                if turn is not None:
                    try:
                        await trio.lowlevel.checkpoint()
                    finally:
                        turn.release()
            await self._flush()
            if done:
                if self._check is not None:
                    check_hq(self._tls, self._check, self.peer)
                return
            if not await self._feed():
                raise Cut(f"{self.peer} closed the connection during the handshake")

    async def _flush(self) -> None:
        if self._flush_lock.locked() or not self._outgoing.pending:
            await self._flush_lock.acquire()
        else:
            self._flush_lock.acquire_nowait()
        try:
            data = self._encrypted()
            if data:
                await self._below.send_all(data)
        except (trio.BrokenResourceError, OSError) as error:
            raise stream_error(error, self.peer) from error
        finally:
            self._flush_lock.release()

    def _encrypted(self) -> bytes:
        """Take what is encrypted and not yet sent."""
        unsent, self._unsent = self._unsent, b""
        return unsent + self._outgoing.read() if unsent else self._outgoing.read()

    async def _feed(self) -> bool:
        """Read what has arrived; return False at the end of the stream."""
        if self._outgoing.pending:
            await self._flush()
        part = min(self._expected - _RECORD, _PART)  # up to a record may have been fed already
        try:
            if self._socket is None:
                data: bytes | bytearray = await self._below.receive_some(self._chunk)
            else:
                data = await self._read(self._socket, part)
        except (trio.BrokenResourceError, OSError) as error:
            raise stream_error(error, self.peer) from error
        self._check_open()
        size = len(data)
        if size == self._chunk:
            self._chunk = min(2 * size, CHUNK)
        elif 4 * size < self._chunk:
            self._chunk = max(self._chunk // 2, _RECORD)
        if size:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()
        return bool(size)

    async def _read(self, socket: trio.socket.SocketType, part: int) -> bytes:
        """Read what has arrived, after waiting for it: mostly nothing has, and to try first, as
        trio does, costs a call and an exception.
        """
        if part >= _RECORD:
            self._chunk = CHUNK
            await self._until_arrived(socket, part)
        else:
            await trio.lowlevel.wait_readable(socket)
        while True:
            try:
                return os.read(socket.fileno(), self._chunk)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(socket)

    async def _until_arrived(self, socket: trio.socket.SocketType, size: int) -> None:
        """Wait until this many bytes have arrived, the stream ended, or some time has passed."""
        socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVLOWAT, size)
        try:
            with trio.move_on_after(PART_S):
                await trio.lowlevel.wait_readable(socket)
        finally:
            with contextlib.suppress(OSError):  # closed meanwhile
                socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVLOWAT, 1)

    def expect(self, size: int) -> None:
        """Announce that at least this many bytes will come: what the current frame lacks."""
        self._expected = size

    def send_now(self, data: bytes) -> bool:
        """Encrypt a small ``data`` and send what the network takes without waiting; return False if
        `send_all`, even of nothing, has to send the rest or to raise why it cannot.
        """
        if self._sending:
            raise trio.BusyResourceError("another task is sending")
        if self._closed:
            return False
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            self._broken = error
            return False
        if self._socket is None or self._flush_lock.locked():
            return False
        found = self._encrypted()
        try:
            sent = os.write(self._socket.fileno(), found)
        except OSError:  # it would block, or it is cut: `send_all` finds out
            sent = 0
        self._unsent = found[sent:]
        return not self._unsent

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send all of ``data``."""
        with self._alone("_sending", "another task is sending"):
            try:
                if self._broken is not None:
                    raise self._broken
                view = memoryview(data)
                if not view and (self._unsent or self._outgoing.pending):
                    await self._flush()
                while view:  # in pieces, so that a large envelope is not in memory twice
                    size = CHUNK if len(view) > CHUNK + CHUNK // 8 else len(view)
                    self._tls.write(view[:size])
                    view = view[size:]
                    await self._flush()
            except ssl.SSLError as error:
                raise stream_error(error, self.peer) from error
            except NetworkError:
                await self._explain()
                raise
            if not data:
                await trio.lowlevel.checkpoint()

    async def _explain(self) -> None:
        """After a failed write, raise the error of the alert that explains it, if one arrived."""
        if self._receiving:
            return
        with trio.move_on_after(0.2), contextlib.suppress(NetworkError):
            while await self.receive_some():
                pass

    async def wait_send_all_might_not_block(self) -> None:
        self._check_open()
        await self._below.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return all that has arrived, at most ``max_bytes``; empty at the end of the stream."""
        if max_bytes is not None and max_bytes < 1:
            raise ValueError("max_bytes must be 1 or more")
        room = max_bytes or 4 * CHUNK
        with self._alone("_receiving", "another task is receiving"):
            if (data := self._at_hand(room)) is not None:
                await trio.lowlevel.checkpoint()
                return data
            while True:
                await self._feed()
                if (data := self._at_hand(room)) is not None:
                    return data

    async def receive_into(self, room: memoryview) -> int:
        """Receive into ``room``, which is not empty; return the number of bytes, 0 at the end of
        the stream.
        """
        with self._alone("_receiving", "another task is receiving"):
            if (size := self._at_hand_into(room)) is not None:
                await trio.lowlevel.checkpoint()
                return size
            while True:
                await self._feed()
                if (size := self._at_hand_into(room)) is not None:
                    return size

    def _at_hand(self, room: int) -> bytes | None:
        """Return the contents of all complete records; None if there is none yet."""
        pieces: list[bytes] = []
        read = self._tls.read
        try:
            while room and (piece := read(min(room, _RECORD))):
                pieces.append(piece)
                room -= len(piece)
        except ssl.SSLWantReadError:
            if not pieces:
                return None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            raise stream_error(error, self.peer) from error
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _at_hand_into(self, room: memoryview) -> int | None:
        size = 0
        try:
            while size < len(room):
                got = self._tls.read(len(room) - size, room[size:])
                assert isinstance(got, int)
                if not got:
                    break
                size += got
        except ssl.SSLWantReadError:
            return size or None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass
        except ssl.SSLError as error:
            raise stream_error(error, self.peer) from error
        return size

    @contextlib.contextmanager
    def _alone(self, what: str, refusal: str) -> Iterator[None]:
        if getattr(self, what):
            raise trio.BusyResourceError(refusal)
        self._check_open()
        setattr(self, what, True)
        try:
            yield
        finally:
            setattr(self, what, False)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError

    async def aclose(self) -> None:
        """Close the stream, after a close_notify if that can be sent promptly."""
        if self._closed:
            await trio.lowlevel.checkpoint()
            return
        self._closed = True
        with contextlib.suppress(ssl.SSLError, CipherBoxError, trio.ClosedResourceError):
            with trio.move_on_after(CLOSE_S) as scope:
                scope.shield = True
                with contextlib.suppress(ssl.SSLWantReadError):
                    self._tls.unwrap()
                await self._flush()
        await self._below.aclose()
