"""The metrics port: /metrics for Prometheus, /healthz and /readyz for a supervisor; plain HTTP on
loopback.

/healthz is about this process: 503 says that starting it again would help.  /readyz is about the
service: 503, with the reasons, while HQ is a standby, waits for its store, drains or stops;
starting it again would not help then.  The port is open before the store is, and as long as the
process lives.
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
_ASK_S = 2.0  # to say what is wanted; over loopback that takes a millisecond
_TAKE_S = 5.0  # to take the answer
_AT_ONCE = 16  # connections; the oldest that has not asked yet makes room for a new one
_FRESH = 4  # answers of /metrics made anew in a second; each takes milliseconds of HQ's one loop
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
    """See the module.  ``hq`` is there once the store is open; until then ``waiting`` says why
    not.
    """

    def __init__(self) -> None:
        started_at()
        self.hq: HqStatus | None = None
        self.waiting = "HQ is starting"
        self._places = UnauthenticatedConnections(_AT_ONCE, _AT_ONCE)
        # answers of /metrics of this second, by what was accepted
        self._made: dict[str, tuple[bytes, str]] = {}
        self._second, self._fresh = 0, 0

    def ill(self) -> str:
        """Why this process should be started again; empty: it should not."""
        engine = self.hq.engine if self.hq is not None else None
        if engine is None or engine.outage:
            return ""
        still_s = time.monotonic() - engine.turned_at
        return f"the engine has not moved for {still_s:.0f} s" if still_s > STUCK_S else ""

    def unready(self) -> list[str]:
        """Why HQ does not take everything now."""
        return self.hq.unready() if self.hq is not None else [self.waiting]

    def samples(self) -> list[Sample]:
        if self.hq is not None:
            return samples(self.hq)
        return [Sample("cipherbox_ready", 0), Sample("cipherbox_store_up", 0), *process_samples()]

    def answer(self, method: str, path: str, accept: str) -> Reply:
        """The answer to one request."""
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
        return Reply(404, b"there are /metrics, /healthz and /readyz\n")

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        """The figures; whoever asks all the time gets those of this second."""
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
        """Until cancelled."""
        await trio.serve_listeners(self._handle, listeners)

    async def _handle(self, stream: trio.SocketStream) -> None:
        """Whatever one peer does, it ends alone, and it keeps nobody out."""
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
        place.scope.deadline = trio.current_time() + _ASK_S
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some()
            head += data
            if not data or len(head) > _HEAD_BYTES:
                return
        lines = bytes(head).partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")
        place.silent = False
        place.scope.deadline = trio.current_time() + _TAKE_S
        words = lines[0].split(" ")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (x.partition(":") for x in lines[1:])
        }
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            reply, method = Reply(400, b"this is no HTTP request\n"), "GET"
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
