"""`config check` finds every mistake at once, and `config show` says what is in force."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import make_hq, shell


def replace(directory: Path, old: str, new: str) -> None:
    file = directory / "cipherbox.toml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def swap_certificates(directory: Path) -> None:
    server, root = directory / "tls/server.crt", directory / "ca/root.crt"
    server.write_bytes(root.read_bytes())


MISTAKES: list[tuple[Callable[[Path], object], str]] = [
    (lambda d: replace(d, "level = ", "levle = "), "Did you mean 'level'"),
    (lambda d: replace(d, '"INFO"', '"LOUD"'), "is one of DEBUG, INFO"),
    (
        lambda d: (d / "secrets/database.key").write_bytes(bytes(31)),
        "exactly 32 bytes, this file has 31",
    ),
    (lambda d: (d / "secrets/service.key").unlink(), "service.key: No such file"),
    (lambda d: (d / "secrets/service.key").chmod(0o644), "service.key"),
    (lambda d: (d / "ca/issuing.crt").write_text("no certificate"), "issuing.crt"),
    (lambda d: (d / "tls/server.crt").unlink(), "server.crt"),
    (swap_certificates, "server.crt was not issued by"),
    (
        lambda d: (d / "tls/server.key").write_bytes((d / "ca/issuing.key").read_bytes()),
        "is not the key of",
    ),
    (lambda d: (d / "cipherbox.sqlite3").unlink(), "no database"),
    (lambda d: replace(d, "127.0.0.1", "192.0.2.1"), "192.0.2.1"),
    (lambda d: (d / "cipherbox.toml").write_text("[server"), "is not TOML"),
    (lambda d: (d / "cipherbox.toml").unlink(), "does not exist"),
]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory, _ = make_hq(tmp_path_factory.mktemp("made"))
    return directory


@pytest.mark.parametrize("number", range(len(MISTAKES)))
def test_every_mistake_is_named(made: Path, tmp_path: Path, number: int) -> None:
    import shutil

    directory = tmp_path / "hq"
    shutil.copytree(made, directory)
    good = shell("config", "check", str(directory), home=tmp_path)
    assert (good.code, good.err) == (0, "")
    spoil, says = MISTAKES[number]
    spoil(directory)
    shown = shell("config", "check", str(directory), home=tmp_path)
    assert shown.code == 5
    assert says in shown.err
    assert "Traceback" not in shown.err
    assert json.loads(shell("config", "check", str(directory), "--json", home=tmp_path).out)
    refused = shell("serve", str(directory), home=tmp_path)
    assert refused.code in (4, 5, 6), refused.err


def test_what_is_shown_is_what_is_in_force(made: Path, tmp_path: Path) -> None:
    text = shell("config", "show", str(made), home=tmp_path).out
    shown = tomllib.loads(text)
    assert shown["logging"]["rotation"] == "daily"
    assert shown["limits"]["deliveries"] == 20
    as_json = json.loads(shell("config", "show", str(made), "--json", home=tmp_path).out)
    as_json = {
        table: {k: "" if v is None else v for k, v in keys.items()}
        for table, keys in as_json.items()
    }
    assert shown == as_json
    client = shell("config", "show", home=made.parent / "admin")
    assert tomllib.loads(client.out)["client"]["role"] == "admin"
