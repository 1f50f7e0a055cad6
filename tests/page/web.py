"""The page of a client in this process, and requests to it from outside, byte by byte."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, closing
from html import unescape
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import h11
import orjson
import trio

from cipherbox.apps.page import door
from cipherbox.apps.page.page import Page
from cipherbox.apps.page.view import Finding, Helpers
from cipherbox.cli.manual import manual_pages
from cipherbox.cli.page import HqReport, log_lines
from cipherbox.client.client import Client
from cipherbox.client.home import Home
from cipherbox.client.inbox.encrypted_lines import EncryptedLines
from cipherbox.config.settings import load_client_config

PATIENCE_S = 60.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def words(self) -> str:
        """What a person reads: without tags, spaces made one."""
        shown = re.sub(r"(?s)<head>.*?</head>", " ", self.text)
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", shown)).split())


class Web:
    """Somebody who sends requests to a page: as a browser of it does, unless told otherwise."""

    def __init__(self, page: Page, home: Path | None = None) -> None:
        self.page, self.home = page, home
        self.host = page.door.host
        self.port = int(self.host.rpartition(":")[2])
        self.cookie = ""

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    async def ask(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] | None = None,
        **more: str,
    ) -> Answer:
        """One request on a connection of its own.  ``headers`` replace a browser's; ``more`` are
        added, or left out if they are empty.
        """
        given = dict(
            headers
            if headers is not None
            else {
                "Host": self.host,
                "Sec-Fetch-Site": "same-origin",
                "Sec-Fetch-Mode": "navigate",
                "Sec-Fetch-Dest": "document",
                **({"Origin": self.origin} if method not in ("GET", "HEAD") else {}),
                **({"Cookie": f"{door.COOKIE}={self.cookie}"} if self.cookie else {}),
            }
        )
        for name, value in more.items():
            given[name.replace("_", "-").title()] = value
        given = {name: value for name, value in given.items() if value}
        if body or method in ("POST", "PUT"):
            given.setdefault("Content-Length", str(len(body)))
        head = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        raw = f"{method} {path} HTTP/1.1\r\n{head}Connection: close\r\n\r\n".encode("latin-1")
        return await self.send(raw + body)

    async def send(self, raw: bytes) -> Answer:
        with trio.fail_after(PATIENCE_S):
            stream = await trio.open_tcp_stream("127.0.0.1", self.port)
            async with stream:
                try:
                    await stream.send_all(raw)
                except trio.BrokenResourceError:
                    pass  # it was answered before all of it was sent
                return await read_answer(stream, raw.partition(b" ")[0])

    async def get(self, path: str, **more: str) -> Answer:
        return await self.ask("GET", path, **more)

    async def post(self, path: str, fields: Any = (), **more: str) -> Answer:
        return await self.ask("POST", path, urlencode(fields, doseq=True).encode(), **more)

    async def enter(self, secret: str | None = None) -> Answer:
        """Log in with the code that the door has now, or with a password."""
        name = "password" if self.page.door.by_password else "code"
        answer = await self.post("/enter", {name: secret or self.page.door.code})
        found = re.match(rf"{door.COOKIE}=([^;]+)", answer.headers.get("set-cookie", ""))
        self.cookie = found[1] if found else self.cookie
        return answer

    async def until(self, path: str, so: Callable[[Answer], bool]) -> Answer:
        """The page at ``path`` once it is so."""
        answer = await self.get(path)
        with trio.move_on_after(PATIENCE_S):
            while not so(answer):
                await trio.sleep(0.1)
                answer = await self.get(path)
        assert so(answer), f"{answer.status} {answer.words}"
        return answer


async def read_answer(stream: trio.SocketStream, method: bytes = b"GET") -> Answer:
    wire = h11.Connection(h11.CLIENT)
    wire.send(h11.Request(method=method, target="/", headers=[("Host", "x")]))
    wire.send(h11.EndOfMessage())
    status, headers, body = 0, {}, b""
    while True:
        event = wire.next_event()
        if event is h11.NEED_DATA:
            wire.receive_data(await stream.receive_some())
        elif isinstance(event, h11.Response):
            status = event.status_code
            headers = {name.decode(): value.decode() for name, value in event.headers}
        elif isinstance(event, h11.Data):
            body += bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return Answer(status, headers, body)
        elif not isinstance(event, h11.InformationalResponse):
            raise AssertionError(event)


def nothing_wrong(home: Home) -> list[Finding]:
    return []


@asynccontextmanager
async def page_of(
    home: Path,
    *,
    client: Client | None = None,
    diagnose: Callable[[Home], Iterable[Finding]] = nothing_wrong,
    entered: bool = True,
) -> AsyncIterator[Web]:
    """The page of a home, and somebody in it."""
    bugs: list[Exception] = []
    helpers = Helpers(diagnose, HqReport().take, log_lines, manual_pages, bugs.append)
    page = Page(load_client_config(home), helpers, client=client)
    async with trio.open_nursery() as nursery:
        await nursery.start(page.run)
        web = Web(page, home)
        if entered and not page.sealed:
            assert (await web.enter()).status == 200
        try:
            yield web
        finally:
            if bugs:
                raise bugs[0]
        nursery.cancel_scope.cancel()


def fill(path: Path, box: Any, envelopes: int, each: int) -> None:
    """Put so many received messages into an inbox, ``each`` in one envelope."""
    with closing(sqlite3.connect(path)) as db:
        lines = EncryptedLines(db, box)
        start = db.execute("SELECT coalesce(max(place), 0) FROM lines").fetchone()[0]
        for number in range(start, start + envelopes):
            envelope_id = number.to_bytes(14, "big") + bytes(2)
            text = b"".join(
                orjson.dumps(
                    {
                        "message_id": f"{envelope_id.hex()[:8]}-0000-0000-0000-{index:012x}",
                        "sender_id": "FL-LAB",
                        "sent_timestamp": "2026-01-01T00:00:00.000Z",
                        "content": f"value {number} {index}",
                    }
                )
                + b"\n"
                for index in range(each)
            )
            lines.write("FL-LAB", envelope_id, number, text, ["text/plain"], 1)
        db.commit()
