"""The local key under a password: what opens it, what a change keeps, what dies in its middle."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import trio

from cipherbox.client.blocking import connect
from cipherbox.client.enrol import join
from cipherbox.client.home import load_home
from cipherbox.client.keys import local_key as localkey
from cipherbox.client.keys.local_key import (
    is_sealed,
    open_local_key,
    password_bytes,
    put_local_key,
    read_password,
)
from cipherbox.client.keys.strength import weakness
from cipherbox.errors import (
    CipherBoxError,
    ConfigError,
    NetworkError,
    PasswordError,
    PasswordNeeded,
    StoreLocked,
    WeakPassword,
    WrongPassword,
)
from cipherbox.portable import CREDENTIALS_VARIABLE, lock_file, write_private
from cipherbox.sealing import key_file as keyfile
from tests.client.real_hq import RealHq
from tests.warm import FORKED

KEY = bytes(range(32))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passwords that cost nothing to guess."""
    monkeypatch.setattr(keyfile, "MEMORY_KIB", 8)
    monkeypatch.setattr(keyfile, "PASSES", 1)


@pytest.fixture
def hq(empty_hq: RealHq) -> RealHq:
    return empty_hq


def sealed(home: Path, password: str | bytes = "first") -> bytes:
    put_local_key(home, KEY, password)
    return (home / "local.key").read_bytes()


def test_a_password_is_set_changed_and_removed(quick: None, tmp_path: Path) -> None:
    write_private(tmp_path / "local.key", KEY)
    assert not is_sealed(tmp_path)
    assert open_local_key(tmp_path, None) == open_local_key(tmp_path, "of no use") == KEY
    first = sealed(tmp_path)
    assert is_sealed(tmp_path)
    assert KEY not in first
    assert (tmp_path / "local.key").stat().st_mode & 0o777 == 0o600
    assert open_local_key(tmp_path, "first") == KEY
    sealed(tmp_path, "second")
    assert open_local_key(tmp_path, b"second") == KEY
    for wrong in ("first", "Second", "second "):
        with pytest.raises(WrongPassword, match=r"^The password is wrong$"):
            open_local_key(tmp_path, wrong)
    with pytest.raises(PasswordNeeded, match="under a password, and none was given"):
        open_local_key(tmp_path, None)
    put_local_key(tmp_path, KEY, None)
    assert (tmp_path / "local.key").read_bytes() == KEY


@pytest.mark.parametrize("empty", ["", b""])
def test_an_empty_password_is_refused(tmp_path: Path, empty: str | bytes) -> None:
    write_private(tmp_path / "local.key", KEY)
    with pytest.raises(PasswordError, match="empty"):
        put_local_key(tmp_path, KEY, empty)
    assert (tmp_path / "local.key").read_bytes() == KEY
    with pytest.raises(PasswordError, match="longer than 1024 bytes"):
        put_local_key(tmp_path, KEY, "x" * 1025)


def test_a_password_is_its_characters_and_not_how_they_are_composed(
    quick: None, tmp_path: Path
) -> None:
    sealed(tmp_path, unicodedata.normalize("NFD", "größe"))
    assert open_local_key(tmp_path, unicodedata.normalize("NFC", "größe").encode()) == KEY
    sealed(tmp_path, b"\xff\xfe")  # a file of random bytes is a password too
    assert open_local_key(tmp_path, b"\xff\xfe") == KEY


def test_no_changed_file_opens_and_none_crashes(quick: None, tmp_path: Path) -> None:
    data = sealed(tmp_path)
    path = tmp_path / "local.key"
    changed = [
        data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]
        for at in range(len(data))
        for bit in (0x01, 0x80)
    ]
    cut = [data[:end] for end in range(len(data)) if end != localkey.SIZE]
    for spoilt in [*changed, *cut, data + b"x", os.urandom(40), KEY[:31], KEY + b"\n"]:
        path.write_bytes(spoilt)
        with pytest.raises((ConfigError, WrongPassword)) as caught:
            open_local_key(tmp_path, "first")
        assert "first" not in repr(caught.value)
        assert path.read_bytes() == spoilt
    write_private(path, keyfile.encrypt(KEY[:31], password=b"first"))
    with pytest.raises(ConfigError, match="does not hold a local key"):
        open_local_key(tmp_path, "first")
    write_private(path, keyfile.encrypt(KEY, local_key=bytes(32)))
    with pytest.raises(ConfigError, match=r"local\.key"):
        open_local_key(tmp_path, "first")


def test_a_file_that_asks_for_too_much_is_refused_before_any_work(tmp_path: Path) -> None:
    data = sealed(tmp_path)
    for memory, passes in ((1024 * 1024 + 1, 4), (2**32 - 1, 4), (65_536, 17)):
        planted = data[:6] + memory.to_bytes(4, "big") + passes.to_bytes(4, "big") + data[14:]
        write_private(tmp_path / "local.key", planted)
        with pytest.raises(
            ConfigError, match=r"local\.key: .*memory or passes exceed the limits of this program"
        ):
            open_local_key(tmp_path, "first")


def cost(home: Path) -> tuple[int, int]:
    data = (home / "local.key").read_bytes()
    return int.from_bytes(data[6:10], "big"), int.from_bytes(data[10:14], "big")


def test_a_cheap_password_is_made_dear_by_the_next_who_opens_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keyfile, "MEMORY_KIB", 8)
        patch.setattr(keyfile, "PASSES", 1)
        data = sealed(tmp_path)
    told: list[str] = []
    with pytest.raises(WrongPassword):
        open_local_key(tmp_path, "wrong", told.append)
    assert (tmp_path / "local.key").read_bytes() == data
    assert open_local_key(tmp_path, "first", told.append) == KEY
    assert cost(tmp_path) == (64 * 1024, 4)
    assert len(told) == 1
    assert "64 MiB and 4 passes" in told[0]
    assert open_local_key(tmp_path, "first", told.append) == KEY
    assert len(told) == 1


def test_what_cannot_be_made_dear_opens_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keyfile, "MEMORY_KIB", 8)
        data = sealed(tmp_path)
    told: list[str] = []

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(localkey, "write_private", full)
        assert open_local_key(tmp_path, "first", told.append) == KEY
    assert "No space left" in told[0]
    # somebody changes it just now: theirs stays
    with lock_file(tmp_path / "local.key.lock", "the password"):
        assert open_local_key(tmp_path, "first", told.append) == KEY
    assert len(told) == 1
    assert (tmp_path / "local.key").read_bytes() == data


def test_making_it_dear_never_undoes_a_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(keyfile, "MEMORY_KIB", 8)
        sealed(tmp_path)
    original = keyfile.encrypt
    once = iter([True])

    def changed_meanwhile(*arguments: Any, **options: Any) -> bytes:
        if next(once, False):
            put_local_key(tmp_path, KEY, "second")
        return original(*arguments, **options)

    monkeypatch.setattr(keyfile, "encrypt", changed_meanwhile)
    assert open_local_key(tmp_path, "first") == KEY
    assert open_local_key(tmp_path, "second") == KEY


def test_two_changes_at_once(quick: None, tmp_path: Path) -> None:
    sealed(tmp_path)
    with lock_file(tmp_path / "local.key.lock", "the password"), pytest.raises(StoreLocked):
        put_local_key(tmp_path, KEY, "second")
    assert open_local_key(tmp_path, "first") == KEY


STEPS = (
    "tempfile.mkstemp",
    "os.fchmod",
    "os.fdopen",
    "os.fsync",
    "os.replace",
    "portable.sync_directory",
)
DYING = """
import os, sys, tempfile
from pathlib import Path
from cipherbox import portable
from cipherbox.client.keys.local_key import put_local_key
from cipherbox.sealing import key_file as keyfile
keyfile.MEMORY_KIB, keyfile.PASSES = 8, 1
home, step, when, password = sys.argv[1:]
module, name = step.split(".")
module = {"os": os, "tempfile": tempfile, "portable": portable}[module]
work = getattr(module, name)
def die(*arguments, **options):
    if when == "after":
        work(*arguments, **options)
    os._exit(9)
setattr(module, name, die)
put_local_key(Path(home), bytes(range(32)), password or None)
"""


@pytest.mark.parametrize(("before", "after"), [("", "first"), ("first", "second"), ("first", "")])
def test_whenever_it_is_killed_the_file_is_the_old_or_the_new(
    quick: None, tmp_path: Path, before: str, after: str
) -> None:
    seen = set()
    for step in STEPS:
        for when in ("before", "after"):
            put_local_key(tmp_path, KEY, before or None)
            command = [sys.executable, "-c", FORKED + DYING, str(tmp_path), step, when, after]
            assert subprocess.run(command, timeout=300, check=False).returncode == 9, step
            opened = [
                p
                for p in (before, after)
                if is_sealed(tmp_path) == bool(p) and _opens(tmp_path, p or None)
            ]
            assert len(opened) == 1, (step, when)
            seen.add(opened[0])
            # Above all no unfinished file with the bare key beside the sealed one.
            assert sorted(os.listdir(tmp_path)) == ["local.key", "local.key.lock"]
    assert seen == {before, after}


def _opens(home: Path, password: str | None) -> bool:
    try:
        return open_local_key(home, password) == KEY
    except WrongPassword:
        return False


def test_a_password_file_is_private_and_one_line(tmp_path: Path) -> None:
    file = tmp_path / "password"
    for text in (b"open sesame", b"open sesame\n", b"open sesame\r\n"):
        write_private(file, text)
        assert read_password(file) == b"open sesame"
    write_private(file, b" two\nlines \n")
    assert read_password(file) == b" two\nlines "
    for text, says in (
        (b"", "must not be empty"),
        (b"\n", "must not be empty"),
        (bytes(5000), "longer than 1024"),
    ):
        write_private(file, text)
        with pytest.raises(PasswordError, match=says):
            read_password(file)
    write_private(file, b"open sesame")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        read_password(file)
    assert "sesame" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read"):
        read_password(tmp_path / "none")


async def protected(hq: RealHq, password: str = "correct horse") -> Path:
    async with hq.admin() as admin:
        await join(hq.home("FL-LAB"), await admin.enrol("FL-LAB"), password=password)
    return hq.home("FL-LAB")


async def test_a_client_joins_and_works_under_a_password(quick: None, hq: RealHq) -> None:
    home = await protected(hq)
    local_key = open_local_key(home, "correct horse")
    told: list[str] = []
    async with hq.client("FL-LAB", password="correct horse", on_event=told.append) as lab:
        await lab.publish("it works", to="FL-LAB")
        for shown in map(repr, (lab.home, lab.home.secret_box, lab.home.identity, lab.home.config)):
            assert "correct horse" not in shown
            assert repr(local_key) not in shown
            assert local_key.hex() not in shown
    for file in (path for path in home.rglob("*") if path.is_file()):
        assert local_key not in file.read_bytes(), file
        assert b"correct horse" not in file.read_bytes(), file
    with pytest.raises(PasswordNeeded):
        load_home(home)
    with pytest.raises(WrongPassword):
        load_home(home, password="incorrect horse")
    put_local_key(home, local_key, "battery staple")
    assert load_home(home, password="battery staple").identity is not None
    put_local_key(home, local_key, None)
    async with hq.client("FL-LAB") as lab:
        await lab.publish("it works", to="FL-LAB")
    # What everything is encrypted under: without it nothing of the home opens.
    write_private(home / "local.key", os.urandom(32))
    with pytest.raises(CipherBoxError, match=r"client\.key"):
        load_home(home)


async def test_the_password_is_held_ready_by_a_setting_or_by_systemd(
    quick: None, hq: RealHq, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = await protected(hq)
    given = tmp_path / "credentials"
    given.mkdir()
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(given))
    with pytest.raises(PasswordNeeded):
        load_home(home)
    write_private(given / "cipherbox-password", b"correct horse\n")
    (given / "cipherbox-password").chmod(0o440)  # as systemd's look, with their access list
    assert load_home(home).identity is not None
    assert load_home(home, password="correct horse").identity is not None
    settings = home / "client.toml"
    text = settings.read_text()
    assert 'password_file = ""' in text
    settings.write_text(text.replace('password_file = ""', 'password_file = "secret"'))
    with pytest.raises(ConfigError, match="secret"):  # the setting goes first
        load_home(home)
    write_private(home / "secret", b"another")
    with pytest.raises(WrongPassword):
        load_home(home)
    write_private(home / "secret", b"correct horse")
    assert load_home(home).identity is not None
    settings.write_text(
        text.replace('password_file = ""', 'password_file = "credential:cipherbox-password"')
    )
    assert load_home(home).identity is not None
    settings.write_text(
        text.replace('password_file = ""', 'password_file = "credential:../secret"')
    )
    with pytest.raises(ConfigError, match=r"\[client\] password_file"):
        load_home(home)


async def test_the_blocking_client_takes_a_password_too(quick: None, hq: RealHq) -> None:
    home = await protected(hq)

    def work() -> str:
        with pytest.raises(WrongPassword):
            with connect(home, password="incorrect horse"):
                pass
        with connect(home, password="correct horse") as client:
            assert "correct horse" not in repr(client)
            return str(client.client_id)

    assert await trio.to_thread.run_sync(work) == "FL-LAB"


async def test_an_interrupted_join_goes_on_with_the_same_password(
    quick: None, hq: RealHq, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client import enrol

    async with hq.admin() as admin:
        token = await admin.enrol("FL-LAB")
    home = hq.home("FL-LAB")

    async def cut(*_: Any) -> None:
        raise NetworkError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(enrol, "fetch_root", cut)
        with pytest.raises(NetworkError):
            await join(home, token, password="an open sesame")
        key = (home / "client.key").read_bytes()
        with pytest.raises(PasswordNeeded):
            await join(home, token)
        with pytest.raises(WrongPassword):
            await join(home, token, password="another sesame")
    assert is_sealed(home)
    await join(home, token, password="an open sesame")
    assert (home / "client.key").read_bytes() == key
    assert load_home(home, password="an open sesame").identity is not None


async def test_a_join_that_began_without_a_password_ends_with_one(
    quick: None, hq: RealHq, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cipherbox.client import enrol

    async with hq.admin() as admin:
        token = await admin.enrol("FL-LAB")

    async def cut(*_: Any) -> None:
        raise NetworkError("cut")

    with monkeypatch.context() as patch:
        patch.setattr(enrol, "fetch_root", cut)
        with pytest.raises(NetworkError):
            await join(hq.home("FL-LAB"), token)
    await join(hq.home("FL-LAB"), token, password="an open sesame")
    assert load_home(hq.home("FL-LAB"), password="an open sesame").identity is not None


async def test_a_password_that_is_easy_to_guess_makes_no_home_and_the_reason_is_said(
    hq: RealHq,
) -> None:
    async with hq.admin() as admin:
        token = await admin.enrol("FL-LAB")
    for weak in ("x", "hunter2", "fl-lab 2026", b"aaaaaaaaaaaaaaaaaaaaaaaa"):
        with pytest.raises(
            WeakPassword, match=r"too easy to guess: .+ Add another word or two"
        ) as caught:
            await join(hq.home("FL-LAB"), token, password=weak)
        assert len(weak) == 1 or str(weak) not in str(caught.value)
    assert not hq.home("FL-LAB").exists()


def test_what_makes_a_password_good_enough() -> None:
    for good in (
        "correct horse battery staple",
        os.urandom(16),
        "e3b0c44298fc1c149afbf4c8996fb924",
        "kraut 7 sesame",
    ):
        assert weakness(password_bytes(good)) == ""
    assert "similar to a commonly used password" in weakness(b"p4ssword1")
    # what everybody knows of its owner is no secret
    assert weakness(b"LAB-OF-FLORIDA", ["LAB-OF-FLORIDA"])


async def test_an_empty_password_makes_no_home(hq: RealHq) -> None:
    async with hq.admin() as admin:
        token = await admin.enrol("FL-LAB")
    with pytest.raises(PasswordError, match="empty"):
        await join(hq.home("FL-LAB"), token, password="")
    assert not hq.home("FL-LAB").exists()
