"""The clients of `bench --compare`: as little as a peer's protocol permits, over a blocking socket.

Each pipelines: a sender has at most WINDOW messages or WINDOW_BYTES unconfirmed, a receiver is sent
as many ahead and acknowledges all that it has read.  They are cheaper than the peers' own clients,
since they parse only what they need; they stop at the first error a server reports.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol, cast

import orjson
import trio

from cipherbox.cli.bench.measured import SAMPLES, STAMP, measured, message, report

WINDOW, WINDOW_BYTES = 2048, 32 * 1024 * 1024
_BUFFER = 256 * 1024
_TIMEOUT_S = 60.0  # a server that is silent for so long has failed
_REPORT_NS = 1_000_000_000
_AT_ONCE_BYTES = 64 * 1024  # small messages and acknowledgements are written together


class PeerFailed(Exception):
    """What a peer's server refused; the text is the server's."""


def window_of(size: int) -> int:
    """Return how many messages of a size may be under way."""
    return max(2, min(WINDOW, WINDOW_BYTES // size))


class PeerClient(Protocol):
    """One connection to a peer's server."""

    def prepare(self, window: int) -> None:
        """Make the stream, and begin to receive from it."""

    def encoded(self, content: bytes) -> bytes:
        """Return the request that publishes a message."""

    def send(self, data: bytes) -> None:
        """Write requests."""

    def confirm(self) -> None:
        """Read one confirm; raise PeerFailed if it is a refusal."""

    def receive(self) -> Iterator[list[tuple[bytes, bytes]]]:
        """Yield what has arrived: what `acknowledge` needs, and the content, of each message."""

    def acknowledge(self, ids: list[bytes]) -> None:
        """Acknowledge messages, which deletes them."""


class Socket:
    """A blocking TLS socket."""

    def __init__(self, task: dict[str, Any], greeting: bool) -> None:
        self._plain = socket.create_connection(("127.0.0.1", task["port"]), _TIMEOUT_S)
        self._plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if greeting:  # a line in clear, before TLS
            while not self._plain.recv(4096).endswith(b"\r\n"):
                pass
        context = ssl.create_default_context(cafile=task["ca"])
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(task["certificate"], task["key"])
        self._tls = context.wrap_socket(self._plain, server_hostname="127.0.0.1")
        self.reader = cast(BinaryIO, self._tls.makefile("rb", buffering=_BUFFER))

    def send(self, data: bytes) -> None:
        self._tls.sendall(data)

    def line(self) -> bytes:
        """Read a line; raise PeerFailed at the end of the stream."""
        line = self.reader.readline()
        if not line.endswith(b"\r\n"):
            raise PeerFailed("the server closed the connection")
        return line


class NatsClient(Socket):
    """NATS JetStream: a stream with work-queue retention and one durable consumer."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task, greeting=True)
        self._inbox = task["do"].encode()  # the subject of answers to this client
        self.send(
            b'CONNECT {"verbose":false,"pedantic":false,"tls_required":true,"lang":"bench",'
            b'"version":"1","protocol":1}\r\nSUB %b 1\r\nPING\r\n' % self._inbox
        )
        while self.line() != b"PONG\r\n":
            pass

    def prepare(self, window: int) -> None:
        self._ask(
            "STREAM.CREATE.BENCH",
            {
                "name": "BENCH",
                "subjects": ["bench"],
                "storage": "file",
                "retention": "workqueue",
                "num_replicas": 1,
            },
        )
        self.send(b"SUB deliveries 2\r\n")
        self._ask(
            "CONSUMER.DURABLE.CREATE.BENCH.C",
            {
                "stream_name": "BENCH",
                "config": {
                    "durable_name": "C",
                    "deliver_subject": "deliveries",
                    "ack_policy": "explicit",
                    "max_ack_pending": window,
                },
            },
        )

    def _ask(self, subject: str, request: dict[str, Any]) -> None:
        body = orjson.dumps(request)
        head = b"PUB $JS.API.%b %b %d\r\n" % (subject.encode(), self._inbox, len(body))
        self.send(head + body + b"\r\n")
        self.confirm()

    def encoded(self, content: bytes) -> bytes:
        return b"PUB bench %b %d\r\n%b\r\n" % (self._inbox, len(content), content)

    def confirm(self) -> None:
        _, body = self._message()
        if b'"error":' in body:
            raise PeerFailed(body.decode(errors="replace"))

    def receive(self) -> Iterator[list[tuple[bytes, bytes]]]:
        while True:
            yield [self._message()]

    def acknowledge(self, ids: list[bytes]) -> None:
        self.send(b"".join(b"PUB %b 4\r\n+ACK\r\n" % one for one in ids))

    def _message(self) -> tuple[bytes, bytes]:
        """Return the reply subject and the content of the next message."""
        while True:
            line = self.line()
            if line.startswith(b"MSG "):
                words = line.split()
                content = self.reader.read(int(words[-1]) + 2)
                return words[-2], content[:-2] if len(content) < _BUFFER else content
            if line == b"PING\r\n":
                self.send(b"PONG\r\n")
            elif line.startswith(b"-ERR"):
                raise PeerFailed(line.decode(errors="replace").strip())


class RedisClient(Socket):
    """Redis Streams: one stream and one consumer group; entries are deleted once acknowledged."""

    def __init__(self, task: dict[str, Any]) -> None:
        super().__init__(task, greeting=False)
        self._unread = 0  # answers to acknowledgements, read before the next one
        self._window = 1

    def prepare(self, window: int) -> None:
        self._window = window
        self.send(_command(b"XGROUP", b"CREATE", b"bench", b"g", b"0", b"MKSTREAM"))
        self.confirm()

    def encoded(self, content: bytes) -> bytes:
        return _command(b"XADD", b"bench", b"*", b"d", content)

    def confirm(self) -> None:
        self._answer()

    def receive(self) -> Iterator[list[tuple[bytes, bytes]]]:
        count = b"%d" % max(1, self._window // 2)
        words = (b"GROUP", b"g", b"c", b"COUNT", count, b"BLOCK", b"1000", b"STREAMS", b"bench")
        while True:
            self.send(_command(b"XREADGROUP", *words, b">"))
            for _ in range(self._unread):
                self._answer()
            self._unread = 0
            for _stream, entries in self._answer() or ():
                yield [(key, fields[1]) for key, fields in entries]

    def acknowledge(self, ids: list[bytes]) -> None:
        self.send(_command(b"XACK", b"bench", b"g", *ids) + _command(b"XDEL", b"bench", *ids))
        self._unread += 2

    def _answer(self) -> Any:
        line = self.line()
        kind, rest = line[:1], line[1:-2]
        if kind == b"$":
            return None if rest == b"-1" else self.reader.read(int(rest) + 2)[:-2]
        if kind == b"*":
            return None if rest == b"-1" else [self._answer() for _ in range(int(rest))]
        if kind == b"-":
            raise PeerFailed(rest.decode(errors="replace"))
        return rest


def _command(*words: bytes) -> bytes:
    parts = [b"*%d\r\n" % len(words)]
    for word in words:
        parts += (b"$%d\r\n" % len(word), word, b"\r\n")
    return b"".join(parts)


CLIENTS: dict[str, Callable[[dict[str, Any]], PeerClient]] = {
    "nats": NatsClient,
    "redis": RedisClient,
}


# -- the measured processes ------------------------------------------------------------------------


async def send(task: dict[str, Any]) -> None:
    """Publish all messages, and read all confirms."""
    client = CLIENTS[task["client"]](task)
    work = _send_at_rate if task["rate"] else _send_all

    async def body() -> None:
        await trio.to_thread.run_sync(work, client, task)

    report(**await measured(body))


def _send_all(client: PeerClient, task: dict[str, Any]) -> None:
    size, count = task["size"], task["messages"]
    window = window_of(size)
    at_once = max(1, min(window // 2, _AT_ONCE_BYTES // size))
    sent = confirmed = reported = 0
    while sent < count:
        if (now := time.monotonic_ns()) - reported > _REPORT_NS:
            reported = now
            report(sent=sent)
        several = min(at_once, count - sent)
        while sent + several - confirmed > window:
            client.confirm()
            confirmed += 1
        client.send(client.encoded(message(now, size).encode()) * several)
        sent += several
    for _ in range(count - confirmed):
        client.confirm()


def _send_at_rate(client: PeerClient, task: dict[str, Any]) -> None:
    begin = time.monotonic_ns()
    for number in range(task["messages"]):
        at = begin + int(number / task["rate"] * 1e9)
        threading.Event().wait(max(0.0, (at - time.monotonic_ns()) / 1e9))
        client.send(client.encoded(message(at, task["size"]).encode()))
        client.confirm()


async def receive(task: dict[str, Any]) -> None:
    """Receive and acknowledge all messages."""
    client = CLIENTS[task["client"]](task)
    window = window_of(task["size"])
    client.prepare(window)
    took: list[float] = []

    async def body() -> None:
        await trio.to_thread.run_sync(_receive, client, task, took)

    report(**await measured(body), took_ms=took, received=task["messages"])


def _receive(client: PeerClient, task: dict[str, Any], took: list[float]) -> None:
    stamped, count, reported = task["size"] >= STAMP, task["messages"], 0
    together = 1 if task["rate"] else max(1, window_of(task["size"]) // 8)
    received, waiting = 0, list[bytes]()
    for batch in client.receive():
        now = time.monotonic_ns()
        for key, content in batch:
            waiting.append(key)
            if stamped and len(took) < SAMPLES:
                took.append((now - int(content[:STAMP])) / 1e6)
        received += len(batch)
        if now - reported > _REPORT_NS:
            reported = now
            report(received=received)
        if len(waiting) >= together or received >= count:
            client.acknowledge(waiting)
            waiting = []
        if received >= count:
            return
