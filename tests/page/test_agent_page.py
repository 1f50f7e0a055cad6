"""The page that the agent serves, and the command that finds it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import click
import pytest
import trio

from cipherbox.apps.page import messages
from cipherbox.apps.page.door import read_address
from cipherbox.cli import page as command
from cipherbox.client.home import load_home
from cipherbox.client.inbox.encrypted_lines import START
from cipherbox.client.inbox.inspect import looking
from cipherbox.client.inbox.schema import DATABASE
from cipherbox.config.settings import load_client_config
from cipherbox.errors import ConfigError
from tests import soak
from tests.client.real_hq import RealHq
from tests.page.web import fill


def with_page(home: Path, listen: str) -> None:
    with (home / "client.toml").open("a") as file:
        file.write(f'\n[page]\nlisten = "{listen}"\n')


async def test_the_agent_serves_it_and_no_error_of_the_page_ends_the_agent(
    hq: RealHq, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(command, "AGAIN_S", 0.05)
    home = hq.home("FL-LAB")
    taken = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = taken[0].socket.getsockname()[1]
    text = (home / "client.toml").read_text().split("[page]")[0]
    (home / "client.toml").write_text(text)
    with_page(home, f"127.0.0.1:{port}")
    async with hq.client("FL-LAB") as client, trio.open_nursery() as nursery:
        nursery.start_soon(command.serve_page, click.Context(click.Command("agent")), client)
        with trio.fail_after(60):
            said = ""
            while "The page is not served" not in said:
                said += capsys.readouterr().err
                await trio.sleep(0.02)
            await taken[0].aclose()
            while (address := read_address(home)) is None:
                await trio.sleep(0.02)
        assert address.url.endswith(f".localhost:{port}/")
        nursery.cancel_scope.cancel()
    assert read_address(home) is None


@pytest.mark.parametrize("listen", ["0.0.0.0:80", "127.0.0.1:1, 127.0.0.1:2", "x"])
def test_one_loopback_address_is_a_setting(enrolled: Path, tmp_path: Path, listen: str) -> None:
    source = (enrolled / "homes" / "FL-LAB" / "client.toml").read_text().split("[page]")[0]
    (tmp_path / "client.toml").write_text(source)
    with_page(tmp_path, listen)
    with pytest.raises(ConfigError, match=r"\[page\] listen"):
        load_client_config(tmp_path)


@pytest.mark.parametrize("each", [pytest.param(1, marks=soak.only), 1000])
def test_a_hundred_thousand_messages_are_listed_at_once(
    enrolled: Path, tmp_path: Path, each: int
) -> None:
    """The first page of the list costs the same with 100,000 messages as with 1,000."""
    shutil.copytree(enrolled / "homes" / "CA-RC", tmp_path / "home")
    home = load_home(tmp_path / "home")
    with looking(home) as inbox:
        seconds = []
        for count in (1000, 99_000):
            fill(tmp_path / "home" / DATABASE, home.secret_box.content_box, count // each, each)
            began = time.process_time()
            found = messages.page_of(inbox, START, "", "")
            seconds.append(time.process_time() - began)
            assert len(found.rows) == messages.PAGE
            assert found.following is not None
        assert seconds[1] < 0.3, seconds
