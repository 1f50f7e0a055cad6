"""Keys under a password, as a user has them: files, terminals, systemd, and what is said when it
is not right.
"""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cipherbox.cli.exits import Exit
from cipherbox.client.keys.local_key import open_local_key, put_local_key
from cipherbox.portable import write_private
from cipherbox.sealing import key_file as keyfile
from tests.warm import CHEAP

from .conftest import Hq, serving, shell
from .terminal import on_terminal

Wait = Callable[[Callable[[], bool]], None]
FIRST, SECOND = "correct horse", "battery staple"


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """A file with the first password."""
    file = tmp_path / "first"
    write_private(file, f"{FIRST}\n".encode())
    return file


@pytest.fixture
def second(tmp_path: Path) -> Path:
    file = tmp_path / "second"
    write_private(file, f"{SECOND}\n".encode())
    return file


@pytest.fixture
def lab(hq: Hq, first: Path) -> Path:
    """A client that joined with its password in a file."""
    home = hq.directory.parent / "FL-LAB"
    token = shell("enroll", "FL-LAB", home=hq.admin).out
    joined = shell("--password-file", str(first), "join", home=home, stdin=token)
    assert joined.code == 0, joined.err
    assert "under your password" in joined.out
    assert f"--password-file {first} receive" in joined.err
    return home


def test_a_password_file_from_join_to_remove(lab: Path, first: Path, second: Path) -> None:
    key = open_local_key(lab, FIRST)
    with_first, with_second = ("--password-file", str(first)), ("--password-file", str(second))

    sent = shell(*with_first, "send", "--to", "FL-LAB", "hello", home=lab)
    assert sent.code == 0, sent.err
    fetched = shell(*with_first, "fetch", "--json", home=lab)
    assert '"content":"hello"' in fetched.out
    message_id = sent.out.split()[-1]
    assert shell(*with_first, "status", message_id, home=lab).code == 0
    assert shell(*with_first, "outbox", "list", "--all", home=lab).code == 0
    assert shell("keys", "list", home=lab).code == 0  # what is public needs no password
    fingerprint = shell(*with_first, "keys", "fingerprint", home=lab).out

    nobody = shell("send", "--to", "FL-LAB", "hello", home=lab)
    assert nobody.code == Exit.CREDENTIALS
    assert "under a password, and none was given" in nobody.err
    assert "--password-file FILE before the command" in nobody.err
    wrong = shell(*with_second, "send", "--to", "FL-LAB", "hello", home=lab)
    assert wrong.code == Exit.CREDENTIALS
    assert wrong.err.splitlines()[0] == "Error: The password is wrong"
    assert SECOND not in wrong.err
    first.chmod(0o644)
    open_to_all = shell(*with_first, "send", "--to", "FL-LAB", "hello", home=lab)
    assert open_to_all.code == Exit.CONFIG
    assert f"chmod 600 {first}" in open_to_all.err
    first.chmod(0o600)

    changed = shell(*with_first, "keys", "password", "--new-password-file", str(second), home=lab)
    assert changed.code == 0, changed.err
    assert "under the new password" in changed.out
    assert shell(*with_first, "keys", "fingerprint", home=lab).code == Exit.CREDENTIALS
    assert shell(*with_second, "keys", "fingerprint", home=lab).out == fingerprint
    assert open_local_key(lab, SECOND) == key

    asked = shell(*with_second, "keys", "password", "--remove", home=lab)
    assert asked.code == Exit.USAGE
    assert "pass --yes" in asked.err
    refused = shell(*with_first, "keys", "password", "--remove", "--yes", home=lab)
    assert refused.code == Exit.CREDENTIALS
    removed = shell(*with_second, "keys", "password", "--remove", "--yes", home=lab)
    assert removed.code == 0, removed.err
    assert (lab / "local.key").read_bytes() == key
    assert shell("keys", "fingerprint", home=lab).out == fingerprint
    assert "under no password" in shell("keys", "password", "--remove", "--yes", home=lab).out

    nobody = shell("keys", "password", home=lab)
    assert nobody.code == Exit.USAGE
    assert "--new-password-file FILE" in nobody.err
    empty = lab / "empty"
    write_private(empty, b"\n")
    refused = shell("keys", "password", "--new-password-file", str(empty), home=lab)
    assert refused.code == Exit.CREDENTIALS
    assert "must not be empty" in refused.err
    write_private(empty, b"x\n")
    weak = shell("keys", "password", "--new-password-file", str(empty), home=lab)
    assert weak.code == Exit.CREDENTIALS
    assert "too easy to guess: " in weak.err
    assert "under no password" in shell("keys", "password", "--remove", "--yes", home=lab).out
    assert (lab / "local.key").read_bytes() == key


def test_join_with_a_password_needs_somebody_to_ask(hq: Hq, tmp_path: Path) -> None:
    token = shell("enroll", "FL-LAB", home=hq.admin).out
    refused = shell("join", "--password", home=tmp_path / "lab", stdin=token)
    assert refused.code == Exit.USAGE
    assert "cipherbox --password-file FILE join" in refused.err
    assert not (tmp_path / "lab").exists()


def test_the_setting_and_systemd_hold_it_ready(
    lab: Path, first: Path, second: Path, tmp_path: Path
) -> None:
    given = tmp_path / "credentials"
    given.mkdir()
    write_private(given / "cipherbox-password", FIRST.encode())
    (given / "cipherbox-password").chmod(0o440)
    shown = shell("status", home=lab, CREDENTIALS_DIRECTORY=str(given))
    assert shown.code == 0, shown.err
    settings = lab / "client.toml"
    settings.write_text(
        settings.read_text().replace('password_file = ""', f'password_file = "{first}"')
    )
    assert shell("status", home=lab).code == 0
    changed = shell("keys", "password", "--new-password-file", str(second), home=lab)
    assert f"write it to {first} too" in changed.err
    assert shell("status", home=lab).code == Exit.CREDENTIALS
    assert shell("--password-file", str(second), "status", home=lab).code == 0


def test_an_admin_has_a_password_too(hq: Hq, first: Path) -> None:
    assert shell("keys", "password", "--new-password-file", str(first), home=hq.admin).code == 0
    refused = shell("enroll", "FL-LAB", home=hq.admin)
    assert (refused.code, refused.out) == (Exit.CREDENTIALS, "")
    assert shell("--password-file", str(first), "enroll", "FL-LAB", home=hq.admin).code == 0


def test_nothing_is_taken_from_arguments_or_the_environment(lab: Path) -> None:
    for name in ("CIPHERBOX_PASSWORD", "CIPHERBOX_PASSWORD_FILE"):
        assert shell("status", home=lab, **{name: FIRST}).code == Exit.CREDENTIALS
    assert shell("keys", "password", FIRST, home=lab).code == Exit.USAGE
    assert shell("--password", FIRST, "status", home=lab).code == Exit.USAGE


def test_a_cheap_password_is_made_dear_and_that_is_said(
    lab: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the real cost, as nothing else here."""
    key = open_local_key(lab, FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(keyfile, "MEMORY_KIB", 8)
        put_local_key(lab, key, FIRST)
    words, dear = ("--password-file", str(first), "keys", "fingerprint"), {CHEAP: ""}
    shown = shell(*words, home=lab, **dear)
    assert shown.code == 0
    assert "rewritten with the current Argon2id cost" in shown.err
    assert "rewritten" not in shell(*words, home=lab, **dear).err
    assert not keyfile.is_cheap((lab / "local.key").read_bytes())


def test_a_changed_key_file_is_words_and_no_traceback(lab: Path, first: Path) -> None:
    path = lab / "local.key"
    data = path.read_bytes()
    for spoilt in (
        data[:50] + bytes([data[50] ^ 1]) + data[51:],
        data[:-1],
        data[:32],
        b"",
        data[:4] + b"\xff" * 98,
    ):
        path.write_bytes(spoilt)
        shown = shell("--password-file", str(first), "keys", "fingerprint", home=lab)
        assert shown.code in (Exit.CREDENTIALS, Exit.CONFIG), shown.err
        assert shown.err.startswith("Error: ")
        assert "Traceback" not in shown.err
        assert FIRST not in shown.err
        assert shown.out == ""


def test_on_a_terminal_it_is_asked_for_and_not_shown(hq: Hq, tmp_path: Path) -> None:
    home, token = tmp_path / "lab", shell("enroll", "FL-LAB", home=hq.admin).out.strip()
    with on_terminal("join", "--password", home=home, stdin=token.encode()) as screen:
        screen.expect("New password: ")
        screen.type("")
        screen.expect("empty password protects nothing")
        screen.expect("New password: ")
        screen.type("hunter2")
        screen.expect("too easy to guess: This is a very common password")
        screen.expect("New password: ")
        screen.type(FIRST)
        screen.expect("The same again: ")
        screen.type(SECOND)
        screen.expect("The passwords differ")
        for prompt in ("New password: ", "The same again: "):
            screen.expect(prompt)
            screen.type(FIRST)
        assert screen.end() == 0, screen.shown
        assert FIRST not in screen.shown
    question = f"Password of the keys in {home}: "
    with on_terminal("send", "--to", "FL-LAB", home=home, stdin=b"from a pipe") as screen:
        screen.expect(question)
        screen.type(SECOND)
        screen.expect("The password is wrong")
        screen.expect(question)
        screen.type(FIRST)
        assert screen.end() == 0, screen.shown
        assert FIRST not in screen.shown
    unknown = "0199f0a2-7c31-7d05-9c4e-1b2a00000000"
    # looks here, then asks HQ: opens the home twice
    with on_terminal("status", unknown, home=home) as screen:
        screen.expect(question)
        screen.type(FIRST)
        assert screen.end() == Exit.REFUSED, screen.shown
        assert screen.shown.count("Password") == 1
    with on_terminal("status", home=home) as screen:
        for _ in range(3):
            screen.expect(question)
            screen.type("wrong")
        assert screen.end() == Exit.CREDENTIALS
        assert "Error: The password is wrong" in screen.shown
    with on_terminal("keys", "password", home=home) as screen:
        screen.expect(question)
        screen.type(FIRST)
        for prompt in ("New password: ", "The same again: "):
            screen.expect(prompt)
            screen.type(SECOND)
        assert screen.end() == 0, screen.shown
    with on_terminal("keys", "password", "--remove", home=home) as screen:
        screen.expect(r"Remove the password\?.*\[y/N\]: ")
        screen.type("y")
        screen.expect(question)
        screen.type(SECOND)
        assert screen.end() == 0, screen.shown
    assert shell("status", home=home).code == 0


def test_ctrl_c_and_the_end_of_input_leave_everything_as_it_is(lab: Path) -> None:
    before = (lab / "local.key").read_bytes()
    for key in ("\x03", "\x04"):
        with on_terminal("keys", "password", home=lab) as screen:
            screen.expect("Password of the keys")
            screen.type(FIRST)
            screen.expect("New password: ")
            screen.type(key)
            assert screen.end() == Exit.INTERRUPTED
            assert "Traceback" not in screen.shown
    assert (lab / "local.key").read_bytes() == before


def test_the_agent_asks_once(lab: Path, patient: Wait) -> None:
    with on_terminal("agent", home=lab) as screen:
        screen.expect("Password of the keys")
        screen.type(FIRST)
        screen.expect("Watching")
        folder = lab / "outgoing" / "FL-LAB"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "a.txt").write_text("for me")
        patient(lambda: any((lab / "data" / "kept" / "FL-LAB").glob("*")))
        os.kill(screen.process.pid, signal.SIGTERM)
        assert screen.end() == 0, screen.shown
        assert screen.shown.count("Password") == 1
    nobody = shell("agent", home=lab)
    assert nobody.code == Exit.CREDENTIALS  # at which its unit does not start it again


def test_hqs_service_key_comes_from_systemd(hq: Hq, tmp_path: Path) -> None:
    hq.process.terminate()
    hq.process.wait(300)
    given = tmp_path / "credentials"
    given.mkdir()
    log_key = (hq.directory / "secrets" / "log.key").read_bytes()
    (hq.directory / "secrets" / "service.key").rename(given / "service.key")
    (given / "service.key").chmod(0o440)
    settings = hq.directory / "cipherbox.toml"
    settings.write_text(
        settings.read_text().replace('"secrets/service.key"', '"credential:service.key"')
    )
    for command in (("config", "check", str(hq.directory)), ("serve", str(hq.directory))):
        refused = shell(*command, home=tmp_path)
        assert refused.code == Exit.CONFIG
        assert "LoadCredential=service.key:FILE" in refused.err
    assert "credential:service.key" in shell("config", "show", str(hq.directory), home=tmp_path).out
    checked = shell(
        "config", "check", str(hq.directory), home=tmp_path, CREDENTIALS_DIRECTORY=str(given)
    )
    assert checked.code == 0, checked.err
    with serving(hq.directory, CREDENTIALS_DIRECTORY=str(given)):
        assert shell("status", home=hq.admin).code == 0
        assert shell("audit", "verify", home=hq.admin).code == 0
    assert (hq.directory / "secrets" / "log.key").read_bytes() == log_key
    assert [path.name for path in given.iterdir()] == ["service.key"]
