"""What a hostile HQ, a hostile sender and other programs of this machine try with the page."""

from __future__ import annotations

import re
from contextlib import AsyncExitStack
from typing import Any

import pytest
import trio
import trio.lowlevel

from cipherbox.apps.page import desk as desk_module
from cipherbox.apps.page import door
from cipherbox.apps.page.live import MOST_LISTENERS
from cipherbox.apps.page.site import PAGES
from cipherbox.client.client import Client
from cipherbox.client.keys.directory import Directory
from cipherbox.errors import UnknownRecipient
from cipherbox.sealing.body import Message
from tests import soak
from tests.client.real_hq import RealHq
from tests.page.web import Answer, Web, page_of

HOSTILE = "<script>alert(1)</script>\u202egpj.exe\u2066\x00\"'{{7*7}}"
CONSOLE = [path for method, path, *_ in PAGES if method == "GET" and path.startswith("/console")]


def harmless(page: Answer) -> None:
    """No tag, attribute or template of the other party's: the page's own script, and no other."""
    assert page.text.count("<script") == page.text.count('<script src="/static/'), page.text
    assert not re.search(r"<[^>]*\son[a-z]+=", page.text)
    assert "Internal error" not in page.text


@soak.more
async def test_rows_of_a_hostile_hq(hq: RealHq, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every field of every row that HQ lists is something else; the page answers."""
    value: Any = None

    async def hostile(client: Any, what: str = "clients", name: str = "") -> list[Any]:
        rows = await asked(client, what, name)
        row = rows[0] if rows else {"name": "x"}
        return [
            value,
            dict.fromkeys(row, value),
            {**dict.fromkeys(row, value), "name": HOSTILE},
            *({**row, key: value} for key in row),
        ]

    async with page_of(hq.admin_home) as admin:
        await admin.until("/console", lambda page: "HQ is ready" in page.words)
        asked = Client.list
        monkeypatch.setattr(Client, "list", hostile)
        monkeypatch.setattr(Client, "dead_letters", hostile)
        values = (HOSTILE, None, 1 << 70, [HOSTILE], "x" * 100_000, -1, 1e308, [], {"a": 1})
        for value in values if soak.ON else values[:4]:
            for path in ("/people", *CONSOLE):
                page = await admin.get(path)
                assert page.status in (200, 400), (path, value, page.words[-300:])
                harmless(page)


async def test_a_hostile_sender(hq: RealHq, center: Web) -> None:
    """Texts, headers, types and names of files with markup and marks of direction, and 10 MB."""
    async with hq.client("FL-LAB") as client:
        headers = {"x": HOSTILE.replace("\0", "")}
        await client.publish([Message(HOSTILE.encode(), "text/plain", headers)], to=["CA-RC"])
        await client.publish("long \u202e" + "y" * 10_000_000, to=["CA-RC"])
    page = await center.until("/messages", lambda page: "10.0 MB" in page.words)
    older = re.search(r'href="(/messages\?[^"]*before=[^"]+)"', page.text)
    assert older is not None  # a page of the list is bounded in bytes, too
    for found in (page, await center.get(older[1].replace("&amp;", "&"))):
        harmless(found)
        assert len(found.body) < 20_000
        (link,) = re.findall(r'class="when" href="([^"]+)"', found.text)
        one = await center.get(link.replace("&amp;", "&"))
        assert one.status == 200
        harmless(one)
        assert len(one.body) < 1_100_000  # the rest is in the saved file
    for query in ("?q=%3Cscript%3E&sender=%3Cscript%3E", f"?said={'x' * 5000}", "?before=%00"):
        harmless(await center.get(f"/messages{query}"))


@soak.more
async def test_a_hundred_thousand_recipients(
    hq: RealHq, lab: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their names cost neither a request each nor a page of all; to everybody means all."""
    await lab.until("/people", lambda page: "CA-RC" in page.words)
    inside = lab.page.site.desk
    assert inside is not None
    names = [f"C{number:06}" for number in range(soak.of(100_000))]
    asked: list[int] = []

    async def listed(self: Any, what: str) -> list[dict[str, Any]]:
        return [{"name": name} for name in [*names, "CA-RC"]] if what == "clients" else []

    async def reachable(self: Any, wanted: Any) -> Any:
        asked.append(len(wanted))
        return ["CA-RC"], {name: UnknownRecipient("no keys") for name in wanted if name != "CA-RC"}

    monkeypatch.setattr(desk_module.Desk, "listed", listed)
    monkeypatch.setattr(Directory, "reachable", reachable)
    page = await lab.get("/people")
    assert len(page.body) < 50_000
    assert max(asked) <= desk_module.MOST_ASKED
    answer = await lab.post("/write", {"to": "*", "text": "to all of them"})
    assert answer.status == 303, answer.words
    assert max(asked) == len(names) + 1
    # a form with as many names is refused, not worked on for minutes
    fields = "&".join(f"to={name}" for name in names)
    assert (await lab.ask("POST", "/write", f"{fields}&text=x".encode())).status == 400


async def test_streams_left_open_do_not_fill_the_page(lab: Web) -> None:
    """Events for a browser that reads nothing, many times: the page keeps answering."""
    head = f"GET /live HTTP/1.1\r\nHost: {lab.host}\r\n"
    raw = f"{head}Cookie: {door.COOKIE}={lab.cookie}\r\n\r\n".encode()
    inside = lab.page.site.desk
    assert inside is not None
    with trio.fail_after(60):
        async with AsyncExitStack() as opened:
            for _ in range(MOST_LISTENERS + 10):
                stream = await trio.open_tcp_stream("127.0.0.1", lab.port)
                await stream.send_all(raw)
                await opened.enter_async_context(stream)
            while inside.listeners < MOST_LISTENERS:
                await trio.sleep(0.02)
            for _ in range(100):
                inside.changed.notify()
                await trio.lowlevel.checkpoint()
            assert (await lab.get("/settings")).status == 200
            assert (await lab.get("/live")).status == 503
            assert inside.listeners == MOST_LISTENERS
        while inside.listeners:
            await trio.sleep(0.02)
