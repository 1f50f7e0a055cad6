"""Little proxies on loopback, written from the RFCs and not with the libraries under test:
CONNECT and SOCKS5.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio


class LittleProxy(ABC):
    """Forwards to whatever ``target`` says, or answers as it was told; counts what came."""

    def __init__(self, nursery: trio.Nursery, user: str = "", password: str = "") -> None:
        self.user, self.password = user, password
        self.asked: list[str] = []  # where its clients wanted to go
        self.heads: list[bytes] = []
        self.answer: bytes | None = None  # said instead of anything else
        self.pieces = False  # what it says comes byte by byte
        self.leads_to: Callable[[str], tuple[str, int]] = self._split
        self.address = ""
        self._nursery = nursery

    async def start(self) -> LittleProxy:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = "{}:{}".format(*listener.socket.getsockname()[:2])
        self._nursery.start_soon(trio.serve_listeners, self._handle, [listener])
        return self

    @staticmethod
    def _split(target: str) -> tuple[str, int]:
        host, _, port = target.rpartition(":")
        return host.strip("[]"), int(port)

    async def _handle(self, client: trio.SocketStream) -> None:
        try:
            if self.answer is not None:
                await client.receive_some()
                await client.send_all(self.answer)
                await client.aclose()
                return
            await self.converse(client)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(client)

    @abstractmethod
    async def converse(self, client: trio.SocketStream) -> None: ...

    async def say(self, client: trio.SocketStream, data: bytes) -> None:
        for part in [data[i : i + 1] for i in range(len(data))] if self.pieces else [data]:
            await client.send_all(part)
            await trio.lowlevel.checkpoint()

    async def forward(
        self, client: trio.SocketStream, target: str, good: bytes, bad: bytes
    ) -> None:
        self.asked.append(target)
        try:
            hq = await trio.open_tcp_stream(*self.leads_to(target))
        except OSError:
            await self.say(client, bad)
            return
        await self.say(client, good)
        async with hq, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, hq, nursery)
            nursery.start_soon(self._pump, hq, client, nursery)

    async def _pump(
        self, source: trio.SocketStream, target: trio.SocketStream, nursery: trio.Nursery
    ) -> None:
        try:
            while data := await source.receive_some():
                await target.send_all(data)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()


class ConnectProxy(LittleProxy):
    """RFC 9110, 9.3.6, with Basic credentials (RFC 7617) where it was given some."""

    async def converse(self, client: trio.SocketStream) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            data = await client.receive_some()
            if not data:
                return
            head += data
        self.heads.append(head)
        lines = head.decode("latin-1").split("\r\n")
        method, target, _ = lines[0].split(" ")
        assert method == "CONNECT"
        given = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        wanted = "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
        if self.user and given.get("proxy-authorization") != wanted:
            await self.say(
                client,
                b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n",
            )
            return
        good = b"HTTP/1.1 200 Connection established\r\nVia: 1.1 little\r\n\r\n"
        await self.forward(
            client, target, good, b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"
        )


class SocksProxy(LittleProxy):
    """RFC 1928, with user and password (RFC 1929) where it was given some."""

    async def converse(self, client: trio.SocketStream) -> None:
        async def take(size: int) -> bytes:
            data = b""
            while len(data) < size:
                more = await client.receive_some(size - len(data))
                if not more:
                    raise trio.BrokenResourceError
                data += more
            return data

        version, count = await take(2)
        methods = await take(count)
        assert version == 5
        method = 2 if self.user else 0
        if method not in methods:
            await self.say(client, b"\x05\xff")
            return
        await self.say(client, bytes([5, method]))
        if self.user:
            _, size = await take(2)
            user = await take(size)
            password = await take((await take(1))[0])
            good = (user.decode(), password.decode()) == (self.user, self.password)
            await self.say(client, b"\x01\x00" if good else b"\x01\x01")
            if not good:
                return
        _, command, _, kind = await take(4)
        assert command == 1
        if kind == 1:
            host = ".".join(map(str, await take(4)))
        else:
            assert kind == 3
            host = (await take((await take(1))[0])).decode()
        port = int.from_bytes(await take(2), "big")
        end = b"\x00\x01\x00\x00\x00\x00\x00\x00"
        await self.forward(client, f"{host}:{port}", b"\x05\x00" + end, b"\x05\x05" + end)
