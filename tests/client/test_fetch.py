"""What `fetch` says at its end, and a password that comes from a file named after the command."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.cli.commands import COMMANDS
from cipherbox.cli.main import every_command
from cipherbox.client.keys.local_key import put_local_key
from cipherbox.sealing import key_file as keyfile
from tests.client.test_lookups import typed

PASSWORD = "correct horse battery staple"


@contextmanager
def no_signals(*_: int) -> Iterator[AsyncIterator[int]]:
    """Signals reach the main thread alone, and these commands run in another."""

    async def never() -> AsyncIterator[int]:
        await trio.sleep_forever()
        yield 0

    yield never()


@pytest.fixture(autouse=True)
def without_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "open_signal_receiver", no_signals)


async def test_fetch_says_what_it_refused_and_why(hq: Any) -> None:
    await hq.join("SF-LAB")
    home = hq.home("CA-RC")
    settings = home / "client.toml"
    settings.write_text(
        settings.read_text("utf-8").replace("tell_hq = true", "tell_hq = false"), "utf-8"
    )
    assert (await typed(home, "contacts", "block", "FL-LAB")).exception is None
    for name, texts in (("FL-LAB", ("one", "two")), ("SF-LAB", ("three",))):
        async with hq.client(name) as client:
            for text in texts:
                await client.publish(text, to="CA-RC")
    done = await typed(home, "fetch")
    assert done.exception is None, done.exception
    assert "1 message(s) received: " in done.stdout
    _, _, end = done.stderr.partition("Refused ")
    first, second = end.splitlines()
    assert first == "2 time(s), counting what came again; HQ has the reasons, too:"
    assert second.startswith("  2 from FL-LAB: no mail is taken from FL-LAB; see: ")
    again = await typed(home, "fetch")
    assert "0 message(s) received" in again.stdout
    assert "Refused" not in again.stderr
    listed = await typed(home, "inbox", "list", "--refused")
    assert listed.stdout.count("FL-LAB") >= 2


async def test_a_password_file_before_and_after_the_command(
    hq: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyfile, "MEMORY_KIB", 64)
    monkeypatch.setattr(keyfile, "PASSES", 1)
    home = hq.home("CA-RC")
    put_local_key(home, (home / "local.key").read_bytes(), PASSWORD)
    file, wrong = tmp_path / "password", tmp_path / "wrong"
    for path, text in ((file, PASSWORD), (wrong, "another one")):
        path.write_text(f"{text}\n")
        path.chmod(0o600)
    given = ("--password-file", str(file))
    async with hq.client("FL-LAB") as lab:
        await lab.publish("x", to="CA-RC")
    for words in (
        ("status",),
        ("fetch",),
        ("inbox", "list"),
        ("outbox", "list"),
        ("send", "--to", "FL-LAB", "y"),
    ):
        for line in (
            (*given, *words),
            (*words, *given),
            ("--password-file", str(wrong), *words, *given),
        ):
            done = await typed(home, *line)
            assert done.exception is None, (line, done.exception)
        refused = await typed(home, *words, "--password-file", str(wrong))
        assert type(refused.exception).__name__ == "WrongPassword", words
    advised = await typed(home, "fetch", *given)
    assert f"--password-file {file}" in advised.stderr  # in the command that is to be typed next


def test_every_command_takes_both_after_it() -> None:
    for section in COMMANDS:
        for command, context in every_command(section):
            if hasattr(command, "commands") or command.ignore_unknown_options:
                continue
            known = {name for one in command.params for name in one.opts}
            assert {"--home", "--password-file"} <= known, context.info_name
