"""The rules of a page that is open: every answer of every route, the disk, the processes."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.apps.page import door, site
from cipherbox.apps.page.guard import HEADERS
from cipherbox.apps.page.site import PAGES
from cipherbox.apps.page.view import Helpers
from cipherbox.cli.page import announce
from cipherbox.client.keys.local_key import put_local_key
from cipherbox.sealing import key_file
from cipherbox.sealing.body import Message
from tests.client.real_hq import RealHq, copy_hq
from tests.page.web import Answer, Web, page_of

PASSWORD = "correct horse battery staple 17"
MARK = "17.3 mg/l of what nobody else may know"


def filled_in(web: Web, text: str) -> list[str]:
    """Every page of this home, with the names that its list of messages has."""
    found = re.search(r"/messages/([0-9a-f-]{36})\?sender=([A-Z-]+)", text)
    assert found is not None
    places = {
        "{message_id}": found[1],
        "{client_id}": found[2],
        "{recipient}": found[2],
        "{name}": "page",
    }
    paths = [path for method, path, *_ in PAGES if method == "GET" and path != "/live"]
    for place, value in places.items():
        paths = [path.replace(place, value) for path in paths]
    return [*paths, "/", "/enter", "/static/page.css", "/nowhere", "/messages?q=mg&sender=FL-LAB"]


async def test_no_answer_may_be_kept_framed_or_read_by_another_site(
    hq: RealHq, center: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The headers of `guard` on each answer of each route: pages, files, streams and errors."""
    async with hq.client("FL-LAB") as client:
        await client.publish(MARK, to=["CA-RC"])
    page = await center.until("/messages", lambda page: MARK in page.text)
    answers: dict[str, Answer] = {}
    for path in filled_in(center, page.text):
        answers[path] = await center.get(path)
    for method, path, *_ in PAGES:
        if method != "GET":  # each refuses an empty form, or what does not exist
            answers[f"{method} {path}"] = await center.ask(method, path, b"")

    def fails(self: Any) -> Any:
        raise RuntimeError(MARK)

    told: list[Exception] = []
    monkeypatch.setattr(Helpers, "manual", property(lambda self: fails), raising=False)
    monkeypatch.setattr(Helpers, "on_bug", property(lambda self: told.append), raising=False)
    answers["broken"] = broken = await center.get("/manual/page")
    monkeypatch.undo()
    assert (broken.status, len(told)) == (500, 1)
    assert MARK not in broken.text
    assert {one.status for one in answers.values()} >= {200, 303, 400, 404, 500}
    for path, answer in answers.items():
        for name, value in HEADERS.items():
            assert answer.headers.get(name.lower()) == value, (path, name)
        kind = answer.headers.get("content-type", "text/plain")
        assert kind.partition(";")[0] in site.STATIC.values() or kind.startswith(
            ("text/html", "text/plain", "application/octet-stream", "application/json")
        ), (path, kind)


async def test_nothing_of_a_message_is_written_that_the_inbox_does_not_write(
    hq: RealHq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts are read, searched and saved in the page of a home with a password: none of it is on
    the disk, and no file is new but those of the page itself.
    """
    monkeypatch.setattr(key_file, "MEMORY_KIB", 64)
    monkeypatch.setattr(key_file, "PASSES", 1)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    monkeypatch.setattr(tempfile, "tempdir", None)
    home = hq.home("CA-RC")
    put_local_key(home, (home / "local.key").read_bytes(), PASSWORD.encode())
    async with hq.client("FL-LAB") as client:
        await client.publish([Message(MARK.encode(), "text/plain", {"x": MARK})], to=["CA-RC"])
    async with page_of(home) as web:
        assert (await web.enter(PASSWORD)).status == 200
        page = await web.until("/messages", lambda page: "Receipt signed" in page.words)
        before = set(home.rglob("*"))
        shown = 0
        for path in filled_in(web, page.text):
            shown += MARK in (await web.get(path)).text
        assert shown >= 4  # the list, the search, the message, its file, the conversation
        assert (await web.post("/settings", {"shown": "yes"})).status == 303
        assert {path.name for path in set(home.rglob("*")) - before} <= {"page-settings.json"}
        for folder in (home, scratch, web.page.folder):
            for path in folder.rglob("*"):
                if path.is_file():
                    data = path.read_bytes()
                    assert MARK.encode() not in data, path
                    assert PASSWORD.encode() not in data, path
    assert list(scratch.iterdir()) == []


# What the system starts as a browser: it notes its own arguments, and those of the page's program.
BROWSER = """#!/bin/sh
tr '\\\\0' ' ' < /proc/$PPID/cmdline > {seen}
echo "$0 $@" >> {seen}
cp "$1" {copy} 2>/dev/null || cp "${{1#file://}}" {copy}
mv {seen} {seen}.whole
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
async def test_neither_name_nor_code_is_in_the_list_of_processes(
    enrolled: Path, tmp_path: Path
) -> None:
    """The real program opens a browser, is found again by a second start, and ends by a signal."""
    copy_hq(enrolled, tmp_path, "127.0.0.1:1")
    home, seen, opened = tmp_path / "homes" / "CA-RC", tmp_path / "seen", tmp_path / "opened.html"
    browser = tmp_path / "browser"
    browser.write_text(BROWSER.format(seen=seen, copy=opened))
    browser.chmod(0o755)
    program = [sys.executable, "-m", "cipherbox", "--home", str(home), "page"]
    surroundings = {**os.environ, "DISPLAY": ":0", "BROWSER": str(browser)}
    whole = seen.with_suffix(".whole")
    with trio.fail_after(300):
        process = await trio.lowlevel.open_process(
            program, env=surroundings, stdout=subprocess.PIPE
        )
        try:
            while not whole.exists():
                assert process.poll() is None
                await trio.sleep(0.05)
            address = door.read_address(home)
            assert address is not None
            name = address.url.removeprefix("http://").partition(".")[0]
            arguments = whole.read_text()
            assert "cipherbox" in arguments
            for secret in (name, address.code):
                assert secret not in arguments
                assert secret in opened.read_text()
            own = Path(f"/proc/{process.pid}").joinpath("cmdline").read_bytes()
            assert name.encode() not in own
            again = await trio.run_process(
                [*program, "--no-browser"], env=surroundings, capture_stdout=True
            )
            assert f"Page: {address.url}" in again.stdout.decode()
        finally:
            process.send_signal(signal.SIGINT)
            assert process.stdout is not None
            out = b"".join([data async for data in process.stdout])
            await process.wait()
    assert f"Code: {address.code}".encode() in out
    assert not (home / door.STATE).exists()
    assert list(home.rglob(door.OPENER)) == []


def test_without_a_screen_the_file_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    announce(door.Address("http://x.localhost:1/", "abc"), tmp_path, opens=True)
    assert str(tmp_path / door.OPENER) in capsys.readouterr().out
    shutil.rmtree(tmp_path)
