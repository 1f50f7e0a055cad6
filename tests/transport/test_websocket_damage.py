"""A WebSocket opening that is damaged, or ends, is a documented error at once, on both sides."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from cipherbox.errors import NetworkError
from cipherbox.net.websocket import accept_websocket, open_websocket

REQUEST = (
    b"GET /cipherbox HTTP/1.1\r\nHost: hq\r\nUpgrade: websocket\r\nConnection: Up\xffgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
ANSWER = (
    b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Up\xffgrade\r\nSec-WebSocket-Accept: "
    b"x\r\n\r\n"
)


@pytest.mark.parametrize(
    "sent", [b"", b"\x00" * 50, REQUEST, REQUEST[:40], b"GET / HTTP/1.1\r\n\r\n"]
)
@pytest.mark.parametrize("side", ["hq", "client"])
async def test_it_ends_at_once(side: str, sent: bytes) -> None:
    near, far = trio.testing.memory_stream_pair()
    near.peer = "them"  # type: ignore[attr-defined]
    async with trio.open_nursery() as nursery:
        await far.send_all(ANSWER if side == "client" and sent is REQUEST else sent)
        await far.send_eof()
        stream: Any = near
        opened = (
            accept_websocket(nursery, stream)
            if side == "hq"
            else open_websocket(nursery, stream, "hq")
        )
        with trio.fail_after(60), pytest.raises(NetworkError):
            await opened
