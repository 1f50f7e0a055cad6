"""Each rule of the door and of the guard, from outside: requests to the real server."""

from __future__ import annotations

import re
import stat
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from cipherbox.apps.page import door as door_module
from cipherbox.apps.page import serving, view
from cipherbox.apps.page.door import COOKIE, OPENER, Door, read_address, write_opener
from cipherbox.apps.page.guard import BODY_BYTES, HEADERS, Guard
from cipherbox.apps.page.serving import listen, serve
from cipherbox.apps.page.site import PAGES, Site
from cipherbox.apps.page.view import Helpers
from tests.page.web import Web

PASSWORD = "correct horse battery"


class Closed:
    """A page whose client is not open: the door, the guard and the server are the real ones."""

    def __init__(self, home: Path, by_password: bool = False, idle_s: float = 60.0) -> None:
        async def check(password: str) -> bool:
            return password == PASSWORD

        def bug(error: Exception) -> None:
            raise error

        self.sealed = by_password
        self.door = Door(home, home, idle_s, by_password, check)
        self.site = Site("FL-LAB", self.door, Helpers(list, None, None, dict, bug))  # type: ignore[arg-type]

    async def run(self, task_status: Any) -> None:
        listener, port = await listen("127.0.0.1", 0)
        self.door.open(port)
        task_status.started()
        await serve(Guard(self.site.app, self.door), listener)


async def started(nursery: trio.Nursery, page: Closed) -> Web:
    await nursery.start(page.run)
    return Web(page)  # type: ignore[arg-type]


@pytest.fixture
async def web(tmp_path: Path, nursery: trio.Nursery, monkeypatch: Any) -> AsyncIterator[Web]:
    monkeypatch.setattr(door_module, "WRONG_S", 0.0)
    yield await started(nursery, Closed(tmp_path))
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:{port}",
        "localhost:{port}",
        "evil.example:{port}",
        "x.localhost:{port}",
        "",
        "{name}",
    ],
)
async def test_another_host_reaches_nothing(web: Web, host: str) -> None:
    name, _, port = web.host.rpartition(":")
    answer = await web.get("/enter", host=host.format(port=port, name=name))
    assert answer.status in (400, 421)  # h11 itself refuses a request without one
    assert b"Code" not in answer.body


async def test_two_hosts_reach_nothing(web: Web) -> None:
    raw = f"GET /enter HTTP/1.1\r\nHost: {web.host}\r\nHost: evil.example\r\n\r\n".encode()
    assert (await web.send(raw)).status in (400, 421)


async def test_the_name_cannot_be_guessed_and_is_new_at_each_start(tmp_path: Path) -> None:
    hosts = set()
    for _ in range(3):
        door = Door(tmp_path, tmp_path, 60.0, False, None)  # type: ignore[arg-type]
        door.open(1)
        hosts.add(door.host)
        door.close()
    assert len(hosts) == 3
    assert all(len(host.partition(".")[0]) == 32 for host in hosts)


async def test_the_code_works_once_and_is_in_a_private_file(web: Web, tmp_path: Path) -> None:
    address = read_address(tmp_path)
    assert address is not None
    assert address.url == f"{web.origin}/"
    opener = write_opener(address, tmp_path)
    for path in (tmp_path / "page.json", opener):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert address.code in opener.read_text()
    # as a browser posts it from a local file
    entered = await web.post(
        "/enter", {"code": address.code}, origin="null", sec_fetch_site="cross-site"
    )
    assert entered.status == 200
    assert not (tmp_path / OPENER).exists()
    again = await web.post("/enter", {"code": address.code}, origin="null")
    assert again.status == 401
    assert "set-cookie" not in again.headers
    fresh = read_address(tmp_path)
    assert fresh is not None
    assert fresh.code != address.code


async def test_the_cookie_is_for_this_page_alone(web: Web) -> None:
    cookie = (await web.enter()).headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    parts = {part.strip().lower() for part in cookie.split(";")[1:]}
    assert parts == {"path=/", "secure", "httponly", "samesite=strict"}


@pytest.mark.parametrize("path", ["/messages", "/", "/live", "/console", "/manual/x", "/nowhere"])
async def test_without_the_cookie_there_is_only_the_log_in(web: Web, path: str) -> None:
    answer = await web.get(path)
    assert (answer.status, answer.headers.get("location")) == (303, "/enter")
    web.cookie = "A" * 43
    assert (await web.get(path)).status == 303
    assert (await web.get(path, sec_fetch_mode="cors")).status == 401
    assert (await web.post(path)).status == 401


async def test_what_the_log_in_is_drawn_with_needs_no_cookie(web: Web) -> None:
    assert (await web.get("/static/page.css")).status == 200
    for path in ("/static/../door.py", "/static/%2e%2e/door.py", "/static/..%2fdoor.py"):
        assert (await web.get(path)).status in (303, 401, 404)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:80"},
        {"sec_fetch_site": "cross-site"},
        {"sec_fetch_site": "same-site"},
    ],
)
async def test_a_change_comes_from_this_page(web: Web, headers: dict[str, str]) -> None:
    await web.enter()
    assert (await web.post("/lock", **headers)).status == 403
    assert (await web.ask("PUT", "/upload", b"x", **headers)).status == 403
    assert (await web.post("/lock")).status == 303  # and from this page it works


async def test_every_change_is_checked_before_anything_is_read(web: Web) -> None:
    """Each route that changes something, from elsewhere: also with the cookie, which a browser
    would not even send.
    """
    await web.enter()
    for method, path, *_ in (*PAGES, ("POST", "/lock"), ("POST", "/enter")):
        if method == "GET":
            continue
        for headers in (
            {"origin": "http://evil.example"},
            {"origin": ""},
            {"sec_fetch_site": "cross-site"},
            {"sec_fetch_site": "same-site"},
            {"sec_fetch_site": "none"},
        ):
            answer = await web.ask(method, path, b"to=CA-RC&code=x", **headers)
            assert (answer.status, answer.text) == (403, "This comes from another page."), path


@pytest.mark.parametrize(
    ("mode", "dest", "status"),
    [
        ("navigate", "document", 303),
        ("navigate", "iframe", 403),
        ("no-cors", "image", 403),
        ("no-cors", "script", 403),
        ("cors", "empty", 403),
    ],
)
async def test_other_sites_may_only_link_here(web: Web, mode: str, dest: str, status: int) -> None:
    for site in ("cross-site", "same-site"):
        answer = await web.get(
            "/messages", sec_fetch_site=site, sec_fetch_mode=mode, sec_fetch_dest=dest
        )
        assert answer.status == status


async def test_every_answer_forbids_what_is_not_of_this_page(web: Web) -> None:
    answers = [
        await web.get("/enter"),
        await web.get("/static/page.js"),
        await web.get("/messages"),
        await web.get("/enter", host="evil.example"),
        await web.post("/enter", {"code": "wrong"}),
        await web.post("/enter", origin="http://evil.example"),
        await web.ask("DELETE", "/enter"),
        await web.enter(),
        await web.get("/static/nothing"),
    ]
    assert [one.status for one in answers] == [200, 200, 303, 421, 401, 403, 405, 200, 404]
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers.get(name.lower()) == value, (answer.status, name)
        assert "server" not in answer.headers
        assert "access-control-allow-origin" not in answer.headers
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy


async def test_nothing_is_inline() -> None:
    folder = Path(serving.__file__).parent / "templates"
    for path in folder.glob("*.html"):
        text = path.read_text("utf-8")
        assert " style=" not in text, path
        assert "<style" not in text, path
        assert text.count("<script") == text.count('<script src="/static/'), path
        assert not re.search(r"<[^>]* on[a-z]+=", text), path
        assert "http://" not in text.replace("http://www.w3.org", ""), path
        assert "https://" not in text, path


@pytest.mark.parametrize("method", ["DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT"])
async def test_other_methods_are_refused(web: Web, method: str) -> None:
    assert (await web.ask(method, "/enter")).status in (400, 404, 405)


async def test_bodies_are_bounded(web: Web) -> None:
    await web.enter()
    too_much = b"x" * (BODY_BYTES + 1)
    assert (await web.ask("POST", "/settings", too_much)).status == 413
    chunked = (
        f"POST /enter HTTP/1.1\r\nHost: {web.host}\r\nOrigin: {web.origin}\r\n"
        f"Transfer-Encoding: chunked\r\n\r\n{len(too_much):x}\r\n"
    ).encode()
    assert (await web.send(chunked + too_much + b"\r\n0\r\n\r\n")).status == 413
    raw = f"GET /enter HTTP/1.1\r\nHost: {web.host}\r\nX-Long: {'x' * 200_000}\r\n\r\n"
    assert (await web.send(raw.encode())).status in (400, 431)


async def test_no_websocket_and_no_http2(web: Web) -> None:
    raw = (
        f"GET /live HTTP/1.1\r\nHost: {web.host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await web.send(raw.encode())).status == 403
    stream = await trio.open_tcp_stream("127.0.0.1", web.port)
    async with stream:
        await stream.send_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
        await wait_all_tasks_blocked(0.05)
    assert (await web.get("/enter")).status == 200  # it still serves


async def test_connections_are_bounded(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: Any
) -> None:
    monkeypatch.setattr(serving, "CONNECTIONS", 5)
    monkeypatch.setattr(serving, "IDLE_S", 0.3)  # of a connection that sends nothing
    web = await started(nursery, Closed(tmp_path))
    streams = [await trio.open_tcp_stream("127.0.0.1", web.port) for _ in range(5)]
    await wait_all_tasks_blocked(0.05)
    with trio.fail_after(60):
        extra = await trio.open_tcp_stream("127.0.0.1", web.port)
        try:
            assert await extra.receive_some() == b""
        except trio.BrokenResourceError:
            pass
    for stream in (extra, *streams):
        await stream.aclose()
    with trio.fail_after(60):
        while True:
            try:
                assert (await web.get("/enter")).status == 200
                break
            except (Exception, BaseExceptionGroup):
                await trio.sleep(0.02)
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "slow", ["", "GET /enter HTTP/1.1\r\nHost: ", "POST /enter HTTP/1.1\r\nX: y\r\n"]
)
async def test_half_a_request_ends(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: Any, slow: str
) -> None:
    """A connection that sends a byte now and then does not keep its place (slow loris)."""
    monkeypatch.setattr(serving, "IDLE_S", 0.2)
    web = await started(nursery, Closed(tmp_path))
    stream = await trio.open_tcp_stream("127.0.0.1", web.port)
    with trio.fail_after(60):
        async with stream:
            await stream.send_all(slow.encode())
            with suppress(trio.BrokenResourceError):
                while slow:
                    await stream.send_all(b"a")
                    with trio.move_on_after(0.02):
                        if await stream.receive_some() == b"":
                            break
                else:
                    assert await stream.receive_some() == b""
    nursery.cancel_scope.cancel()


async def test_half_a_form_ends(web: Web, monkeypatch: Any) -> None:
    monkeypatch.setattr(view, "BODY_S", 0.1)
    head = f"POST /enter HTTP/1.1\r\nHost: {web.host}\r\nOrigin: {web.origin}\r\n"
    answer = await web.send(f"{head}Content-Length: 1000\r\n\r\ncode=".encode())
    assert (answer.status, answer.text) == (400, "the form did not arrive in time")


@pytest.mark.parametrize("ends", ["page", "time"])
async def test_a_browser_that_reads_nothing_keeps_neither_page_nor_connection(
    tmp_path: Path, monkeypatch: Any, ends: str
) -> None:
    if ends == "time":
        monkeypatch.setattr(serving, "SEND_S", 0.2)
    with trio.fail_after(60):
        async with AsyncExitStack() as until_the_end, trio.open_nursery() as nursery:
            web = await started(nursery, Closed(tmp_path))
            stream = await trio.open_tcp_stream("127.0.0.1", web.port)
            await until_the_end.enter_async_context(stream)
            request = f"GET /static/page.js HTTP/1.1\r\nHost: {web.host}\r\n\r\n".encode()
            blocked = False
            with suppress(trio.BrokenResourceError):
                while not blocked or ends == "time":
                    with trio.move_on_after(0.2) as quiet:
                        await stream.send_all(request * 100)
                    blocked = quiet.cancelled_caught
            nursery.cancel_scope.cancel()


async def test_an_idle_page_is_locked_and_drawing_anew_is_not_activity(
    tmp_path: Path,
) -> None:
    now = 0.0
    door = Door(tmp_path, tmp_path, 60.0, False, None)  # type: ignore[arg-type]
    door.open(1)
    cookie = await door.enter(door.code)
    assert cookie is not None
    with pytest.MonkeyPatch.context() as patch:
        start = trio.current_time()
        patch.setattr(door_module.trio, "current_time", lambda: start + now)
        now = 50.0
        assert door.admits(cookie, active=True)
        now = 100.0
        assert door.admits(cookie, active=False)  # the page drew itself anew
        now = 111.0
        assert not door.admits(cookie, active=True)
    door.close()


async def test_locking_ends_the_session(web: Web) -> None:
    await web.enter()
    assert (await web.get("/nowhere-yet", x_live="1", sec_fetch_mode="cors")).status != 401
    assert (await web.post("/lock")).status == 303
    assert (await web.get("/messages")).headers["location"] == "/enter"


async def test_a_session_ends_with_the_process(tmp_path: Path, nursery: trio.Nursery) -> None:
    first = Closed(tmp_path)
    web = await started(nursery, first)
    await web.enter()
    first.door.close()
    assert not (tmp_path / "page.json").exists()
    assert (await web.get("/messages")).headers["location"] == "/enter"
    nursery.cancel_scope.cancel()


async def test_a_password_is_asked_for_in_the_page_alone(
    tmp_path: Path, nursery: trio.Nursery, monkeypatch: Any
) -> None:
    monkeypatch.setattr(door_module, "WRONG_S", 0.0)
    web = await started(nursery, Closed(tmp_path, by_password=True))
    page = await web.get("/enter")
    assert 'type="password"' in page.text
    address = read_address(tmp_path)
    assert address is not None
    assert address.code == ""
    assert PASSWORD not in write_opener(address, tmp_path).read_text()
    assert (await web.enter("wrong")).status == 401
    elsewhere = await web.post("/enter", {"password": PASSWORD}, origin="null")
    assert elsewhere.status == 403
    assert "set-cookie" not in elsewhere.headers
    assert (await web.enter(PASSWORD)).status == 200
    assert web.cookie
    nursery.cancel_scope.cancel()


async def test_a_wrong_code_costs_a_pause_one_after_the_other(tmp_path: Path) -> None:
    door = Door(tmp_path, tmp_path, 60.0, False, None)  # type: ignore[arg-type]
    door.open(1)
    waits: list[float] = []
    with pytest.MonkeyPatch.context() as patch:

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        patch.setattr(door_module.trio, "sleep", sleep)
        for wrong in ("", "x", door.code[:-1], "\u0000", "é"):
            assert await door.enter(wrong) is None
    assert waits == [door_module.WRONG_S] * 5
    assert await door.enter(f" {door.code.upper()} ") is not None  # as a person types it
    door.close()
