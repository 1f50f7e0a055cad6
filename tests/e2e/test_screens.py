"""What people see: on a terminal of eighty columns, and in a script.  Each test is named after
what a user met.
"""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from .conftest import ENVIRONMENT, PROGRAM, Hq, make_hq, serving, shell
from .terminal import on_terminal


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def screen(*arguments: str, home: Path, columns: int = 80) -> str:
    with on_terminal(*arguments, home=home, COLUMNS=str(columns)) as terminal:
        terminal.resize(24, columns)
        terminal.end()
        return plain(terminal.shown)


def test_a_day_at_the_terminal(hq: Hq, tmp_path: Path) -> None:
    """One HQ for what only needs one: each paragraph is a case."""
    long = "A-LABORATORY-WITH-A-RATHER-LONG-NAME"
    lab, center = hq.join(long), hq.join("CA-RC")

    # A table never cuts what tells its rows apart.
    queues = screen("queue", "list", home=lab)
    assert all(
        re.search(rf"^box\.{long}{suffix} ", queues, re.MULTILINE)
        for suffix in ("", r"\.bulk", r"\.sys")
    )
    assert "…" not in queues
    assert max(map(len, queues.splitlines())) <= 80
    assert "a wider terminal and --json also show" in queues

    # `send` is one line, and its id can be copied.
    sent = screen("send", "--to", "CA-RC", "hello", home=lab).splitlines()
    (line,) = [one for one in sent if one.startswith("Sent to ")]
    message_id = line.split()[-1]
    assert not any("Encrypted" in one for one in sent)
    assert message_id in screen("outbox", "list", "--all", home=lab)

    # An ordinary look leaves no error in HQ's log.
    for command in (("outbox", "list"), ("doctor", "--all"), ("inbox", "list")):
        assert shell(*command, home=lab).code == 0
    log = (hq.directory.parent / "serve.log").read_text("utf-8")
    assert '"level":"ERROR"' not in log, log

    # Hints fit.
    assert "Use a client's home" in shell("outbox", "list", home=hq.admin).err
    assert "Use a client's home" in shell("send", "--to", "CA-RC", "x", home=hq.admin).err
    assert (
        "--key is the routing key of an exchange"
        in shell("send", "--to", "CA-RC", "--key", "k", "x", home=lab).err
    )
    myself = shell("keys", "verify", "CA-RC", "--fingerprint", "1", home=center)
    assert (myself.code, "CA-RC is this client" in myself.err) == (2, True)
    not_admin = shell("enroll", "X", home=lab)
    assert "cipherbox grant" not in not_admin.err

    # An admin names the owner of a queue; conflicts say what differs; a pattern that is none is
    # said.
    assert "--owner CLIENT_ID" in shell("queue", "declare", "q", home=hq.admin).err
    assert "CA-RC reads it" in shell("queue", "declare", "q", "--owner", "CA-RC", home=hq.admin).out
    assert (
        "with the owner CA-RC, not A-LAB"
        in shell("queue", "declare", "q", "--owner", long, home=hq.admin).err
    )
    assert "of type direct" in shell("exchange", "declare", "labs", home=hq.admin).out
    assert (
        "already exists with the type direct, not topic"
        in shell("exchange", "declare", "labs", "--type", "topic", home=hq.admin).err
    )
    assert "not a pattern" in shell("binding", "declare", "labs", "q", "lab.*", home=hq.admin).err

    # Whoever declares an exchange may bind to it.
    assert shell("grant", "CA-RC", "declare", home=hq.admin).code == 0
    assert shell("exchange", "declare", "mine", home=center).code == 0
    assert shell("binding", "declare", "mine", "q", "k", home=center).code == 0
    refused = shell("binding", "declare", "labs", "q", "k", home=center)
    assert "cipherbox grant CA-RC bind labs" in refused.err

    # --home and --password-file also after the command.
    after = subprocess.run(
        [*PROGRAM, "status", "--home", str(lab)], capture_output=True, env=ENVIRONMENT, check=False
    )
    assert f"{long} (client) is connected".encode() in after.stdout

    # `top` without a terminal prints once.
    top = shell("top", home=hq.admin)
    assert (top.code, top.out.count("HQ is ready")) == (0, 1)

    # Alerts can be tried.
    settings = (
        (lab / "client.toml").read_text("utf-8").replace('command = ""', 'command = "true"', 1)
    )
    (lab / "client.toml").write_text(settings, "utf-8")
    assert shell("alerts", "test", home=lab).out.split() == ["command:", "taken"]
    assert "Set command, webhook or mail" in shell("alerts", "test", home=center).err


def test_a_token_is_pasted_over_two_lines_and_says_how_long_it_lives(
    hq: Hq, tmp_path: Path
) -> None:
    made = shell("enroll", "FL-LAB", "--valid", "2h", home=hq.admin)
    assert re.search(r"works once, until \d{4}-\d\d-\d\d \d\d:\d\d", made.err)
    token = made.out.strip()
    with on_terminal("join", home=tmp_path / "lab") as terminal:
        terminal.expect("Token: ")
        terminal.type(token[:60])
        terminal.expect("the rest of it")
        terminal.type(token[60:])
        assert terminal.end() == 0, terminal.shown
    assert token[20:60] not in terminal.shown
    assert "no other client has joined yet" in terminal.shown
    assert "CA-RC" not in terminal.shown
    again = shell("enroll", "CA-RC", home=hq.admin)
    second = shell("join", home=tmp_path / "center", stdin=f"{again.out[:50]}\n  {again.out[50:]}")
    assert "send --to FL-LAB 'Hello'" in second.err


def test_hq_away_is_no_error_for_a_message_that_is_safe(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    with serving(directory) as process:
        hq = Hq(directory, admin, process)
        lab = hq.join("FL-LAB")
        hq.join("CA-RC")
        assert shell("send", "--to", "CA-RC", "first", home=lab).code == 0
    shown = shell("send", "--to", "CA-RC", "later", home=lab)
    assert shown.code == 11
    assert "Error" not in shown.err
    assert shown.err.startswith("Kept: ")
    queued = shell("send", "--to", "CA-RC", "--wait", "queued", "later", home=lab)
    assert (
        queued.code,
        queued.out.startswith("Kept for CA-RC; it goes out with the next command"),
    ) == (0, True)


def test_init_checks_its_address_and_its_admin_finds_hq_by_loopback(tmp_path: Path) -> None:
    for address in (
        "hq.example.org",
        "hq.example.org:70000",
        "wss://hq.example.org",
        "",
        "my hq:7443",
        "me@hq:7443",
    ):
        shown = shell("init", str(tmp_path / "hq"), "--address", address, home=tmp_path / "admin")
        assert (shown.code, "is no address" in shown.err) == (2, True), address
    shown = shell(
        "init", str(tmp_path / "hq"), "--address", "hq.invalid:7443", home=tmp_path / "admin"
    )
    assert shown.code == 0, shown.err
    assert "The name hq.invalid is not known on this machine" in shown.err
    assert 'address = "127.0.0.1:7443,hq.invalid:7443"' in (
        tmp_path / "admin" / "client.toml"
    ).read_text("utf-8")
    assert 'address = "hq.invalid:7443"' in (tmp_path / "hq" / "cipherbox.toml").read_text("utf-8")


def test_serve_writes_lines_for_people_on_a_terminal_and_json_elsewhere(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    with on_terminal("serve", str(directory), home=admin) as terminal:
        terminal.expect("listens on")
        assert shell("status", home=admin).code == 0
        terminal.expect(r"\d\d:\d\d:\d\d  Client connected  client=admin")
        assert '{"timestamp"' not in terminal.shown
    with serving(directory):
        pass
    log = (tmp_path / "serve.log").read_text("utf-8").splitlines()
    assert all(json.loads(line)["timestamp"] for line in log)


def test_a_user_without_a_home_is_told_what_to_do(tmp_path: Path) -> None:
    environment = {k: v for k, v in ENVIRONMENT.items() if k != "CIPHERBOX_HOME"} | {"HOME": "/"}
    done = subprocess.run(
        [*PROGRAM, "status"], capture_output=True, env=environment, check=False, text=True
    )
    assert done.returncode == 5
    assert "no home directory" in done.stderr
    assert "--home DIRECTORY" in done.stderr


def test_python_runs_a_program_with_the_library(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, beside\nfrom cipherbox.client import open_client\nprint(sys.argv, "
        "beside.X)\nsys.exit(3)\n"
    )
    (tmp_path / "beside.py").write_text("X = 7\n")
    done = shell("python", str(program), "--home", "x", home=tmp_path)
    assert (done.code, done.out) == (3, f"{[str(program), '--home', 'x']!r} 7\n")
    program.write_text("def f():\n    raise ValueError('mine')\nf()\n")
    done = shell("python", str(program), home=tmp_path)
    assert done.code == 1
    assert done.err.splitlines()[-1] == "ValueError: mine"
    assert "runpy" not in done.err
    assert shell("python", "nowhere.py", home=tmp_path).code == 2
    assert shell("python", "-", home=tmp_path, stdin="print(1 + 1)").out == "2\n"


@pytest.mark.parametrize("columns", [80])
def test_the_lists_of_the_manual_fit(columns: int, tmp_path: Path) -> None:
    shown = screen("manual", home=tmp_path, columns=columns)
    assert "example-sender" in shown
    assert max(map(len, shown.splitlines())) <= columns
