"""What a command advises when it fails fits what went wrong."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture
def nobody() -> Iterator[str]:
    """A database URL of this machine at which nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"postgresql://hq@127.0.0.1:{held.getsockname()[1]}/hq?tls=off"


def test_a_postgresql_that_refuses_is_named_and_the_hint_is_about_it(
    cipherbox: Run, tmp_path: Path, nobody: str
) -> None:
    """`store upgrade` and `store copy` said: Nothing was lost. Run the command again later."""
    admin, directory = str(tmp_path / "admin"), tmp_path / "hq"
    begun = cipherbox(
        "--home", admin, "init", str(directory), "--address", "127.0.0.1:7443", "--database", nobody
    )
    assert begun.code == 6
    assert "cannot be reached: Connection refused" in begun.err
    assert "Check that PostgreSQL runs and accepts this user" in begun.err
    assert not directory.exists()
    assert (
        cipherbox("--home", admin, "init", str(directory), "--address", "127.0.0.1:7443").code == 0
    )
    settings = directory / "cipherbox.toml"
    text = re.sub(r'(?m)^(kind = )"sqlite"', r'\1"postgresql"', settings.read_text("utf-8"))
    settings.write_text(re.sub(r'(?m)^(url = )""', rf'\1"{nobody}"', text), "utf-8")
    for words in (
        ("store", "upgrade", str(directory)),
        ("store", "copy", str(directory), f"sqlite:{tmp_path / 'copy'}"),
    ):
        shown = cipherbox(*words)
        assert shown.code != 0, words
        assert "Error: No writable PostgreSQL: " in shown.err
        assert "accepts this user in pg_hba.conf" in shown.err
        assert "later" not in shown.err
    looked = cipherbox("doctor", str(directory))
    assert "pg_hba.conf" in looked.out + looked.err
    assert "Error: No writable PostgreSQL" in cipherbox("config", "check", str(directory)).err


def test_a_home_that_is_not_there_is_named_in_the_command_that_makes_it(
    cipherbox: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command as it was printed made another home."""
    home = tmp_path / "a home"
    assert (
        f"--home '{home}' join (the admin gives you a token)"
        in cipherbox("--home", str(home), "status").err
    )
    monkeypatch.setenv("CIPHERBOX_HOME", str(home))
    shown = cipherbox("status").err
    assert "join (the admin gives you a token)" in shown
    assert "--home" not in shown
