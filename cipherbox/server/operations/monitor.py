"""The metrics port: /metrics for Prometheus, /healthz and /readyz for a supervisor; plain HTTP on
loopback.

/healthz is about this process: 503 means that a restart would help.  /readyz is about the service:
503, with the reasons, while HQ is a standby, waits for its store, drains or stops; a restart would
not help.  The port is open before the store is, and as long as the process runs.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import trio

from cipherbox.ops.metrics import Sample
from cipherbox.server.connection.unauthenticated import Place, UnauthenticatedConnections
from cipherbox.server.operations.gauges import process_samples, samples, started_at
from cipherbox.server.operations.status import HqStatus

STUCK_S = 60.0  # the engine begins a batch at least every second
_HEAD_BYTES = 8192
_REQUEST_S = 2.0  # to send the request; over loopback that takes a millisecond
_RESPONSE_S = 5.0  # to read the response
_AT_ONCE = 16  # connections; the oldest without a request is closed for a new one
_FRESH = 4  # responses of /metrics per second; each takes milliseconds of HQ's event loop
_TEXT = "text/plain; charset=utf-8"
_PHRASES = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    503: "Service Unavailable",
}


class Reply(NamedTuple):
    status: int
    body: bytes
    content_type: str = _TEXT


class Monitor:
    """The metrics port.  ``hq`` is set once the store is open; until then ``waiting``
    says why not.
    """

    def __init__(self) -> None:
        started_at()
        self.hq: HqStatus | None = None
        self.waiting = "HQ is starting"
        self._places = UnauthenticatedConnections(_AT_ONCE, _AT_ONCE)
        # responses of /metrics of this second, by Accept header
        self._made: dict[str, tuple[bytes, str]] = {}
        self._second, self._fresh = 0, 0

    def ill(self) -> str:
        """Return why this process should be restarted; empty if it should not."""
        engine = self.hq.engine if self.hq is not None else None
        if engine is None or engine.outage:
            return ""
        still_s = time.monotonic() - engine.turned_at
        return f"the engine has been stuck for {still_s:.0f} s" if still_s > STUCK_S else ""

    def unready(self) -> list[str]:
        """Return why HQ does not accept everything at present."""
        return self.hq.unready() if self.hq is not None else [self.waiting]

    def samples(self) -> list[Sample]:
        if self.hq is not None:
            return samples(self.hq)
        return [Sample("cipherbox_ready", 0), Sample("cipherbox_store_up", 0), *process_samples()]

    def answer(self, method: str, path: str, accept: str) -> Reply:
        """Return the response to one request."""
        if method not in ("GET", "HEAD"):
            return Reply(405, b"only GET and HEAD\n")
        if path == "/metrics":
            return Reply(200, *self._exposition(accept))
        if path == "/healthz":
            ill = self.ill()
            return Reply(503 if ill else 200, f"{ill or 'ok'}\n".encode())
        if path == "/readyz":
            reasons = self.unready()
            return Reply(503 if reasons else 200, ("\n".join(reasons or ["ready"]) + "\n").encode())
        return Reply(404, b"not found: use /metrics, /healthz or /readyz\n")

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics, at most `_FRESH` times a second newly made."""
        from cipherbox.ops.prometheus import exposition

        second = int(time.monotonic())
        if second != self._second:
            self._second, self._fresh = second, 0
            self._made.clear()
        if self._fresh < _FRESH or accept not in self._made:
            self._fresh += 1
            if len(self._made) >= _FRESH:
                self._made.clear()
            self._made[accept] = exposition(self.samples(), accept)
        return self._made[accept]

    async def serve(self, listeners: list[trio.SocketListener]) -> None:
        """Serve until cancelled."""
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Handle one connection, such that it affects no other."""
        place = self._places.enter("")
        try:
            if place is not None:
                with place.scope:
                    await self._converse(stream, place)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            if place is not None:
                self._places.leave(place)
            stream.socket.close()

    async def _converse(self, stream: trio.SocketStream, place: Place) -> None:
        head = bytearray()
        place.scope.deadline = trio.current_time() + _REQUEST_S
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            head += data
            if not data or len(head) > _HEAD_BYTES:
                return
        lines = bytes(head).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        place.silent = False
        place.scope.deadline = trio.current_time() + _RESPONSE_S
        words = lines[0].split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (x.partition(":") for x in lines[1:])
        }
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            reply, method = Reply(400, b"not an HTTP request\n"), "GET"
        else:
            method = words[0]
            reply = self.answer(method, words[1].partition("?")[0], headers.get("accept", ""))
        answer = (
            f"HTTP/1.1 {reply.status} {_PHRASES[reply.status]}\r\nContent-Type: "
            f"{reply.content_type}\r\nContent-Length: {len(reply.body)}\r\nCache-Control: "
            "no-store\r\nConnection: close\r\n\r\n"
        ).encode()
        await stream.send_all(answer if method == "HEAD" else answer + reply.body)
        await stream.send_eof()
