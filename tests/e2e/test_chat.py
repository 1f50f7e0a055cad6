"""Two people in two terminals, scripts on one side, and an agent beside."""

import json
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cipherbox.cli.exits import Exit

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, Hq, shell
from .terminal import on_terminal

Wait = Callable[[Callable[[], bool]], None]
CTRL_D = "\x04"


def inbox(home: Path) -> list[dict[str, Any]]:
    file = home / "data" / "received_messages.jsonl"
    return (
        [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.exists() else []
    )


@pytest.mark.joined
def test_two_terminals(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    with on_terminal("chat", "CA-RC", home=lab) as here:
        here.expect("FL-LAB with CA-RC; each line is sent immediately, Ctrl-D ends")
        here.type("hello \x1b[31mred")
        here.expect("· with HQ")
        with on_terminal("chat", "FL-LAB", home=center) as there:
            there.expect(r"\d\d:\d\d FL-LAB: hello \\x1b\[31mred")
            assert "\x1b[31m" not in there.shown
            here.expect("· opened by CA-RC")
            there.type("grüß dich")
            here.expect(r"\d\d:\d\d CA-RC: grüß dich")
            there.type(CTRL_D)
            assert there.end() == Exit.OK
        here.type(CTRL_D)
        assert here.end() == Exit.OK
    with on_terminal("chat", "FL-LAB", home=center) as again:
        again.expect(r"FL-LAB: hello .*\n(.*\n)*?.*CA-RC with FL-LAB")
    assert [line["content"] for line in inbox(center)] == ["hello \x1b[31mred"]


@pytest.mark.joined
def test_from_a_script_with_an_agent_beside(hq: Hq, patient: Wait) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    with ExitStack() as stack:
        agent = subprocess.Popen(
            [*PROGRAM, "--home", str(center), "agent"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        stack.callback(agent.wait, LIMIT_S)
        stack.callback(agent.terminate)
        patient(lambda: (center / "lock").exists())
        sent = shell(
            "chat", "CA-RC", "--json", "--stay", "5s", home=lab, stdin="one\n\ntwo\r\nthree"
        )
        assert sent.code == Exit.OK, sent.err
        events = [json.loads(line) for line in sent.out.splitlines()]
        assert {event["event"] for event in events} == {"state"}
        assert len({event["message_id"] for event in events}) == 3
        assert (
            sum(event["state"] == "opened" and event["opened"] == ["CA-RC"] for event in events)
            == 3
        )
        shown = shell("chat", "FL-LAB", "--json", "--last", "2", home=center)
        assert [json.loads(line)["text"] for line in shown.out.splitlines()] == ["two", "three"]
        assert all(json.loads(line)["history"] for line in shown.out.splitlines())
        plain = shell("chat", "FL-LAB", home=center)
        assert [line.partition(": ")[2] for line in plain.out.splitlines()] == [
            "one",
            "two",
            "three",
        ]
    assert [line["content"] for line in inbox(center)] == ["one", "two", "three"]
    assert len({line["message_id"] for line in inbox(center)}) == 3


@pytest.mark.joined
def test_to_all_and_what_cannot_be_sent(hq: Hq) -> None:
    lab, center, other = hq.join("FL-LAB"), hq.join("CA-RC"), hq.join("NY-RC")
    sent = shell("chat", "--all", home=lab, stdin="to everybody\n" + "x" * 70_000 + "\nand this\n")
    assert sent.code == Exit.USAGE, sent.err
    assert "at most 65536 bytes; send files with" in sent.err
    for home in (center, other):
        assert shell("fetch", home=home).code == 0
        assert [line["content"] for line in inbox(home)] == ["to everybody", "and this"]
        assert inbox(home)[0]["headers"] == {"chat": "CA-RC, NY-RC"}
    assert "(to CA-RC, NY-RC): to everybody" in shell("chat", "--all", home=center).out
    nobody = shell("chat", "XX-LAB", home=lab, stdin="hello\n")
    assert nobody.code == Exit.REFUSED
    assert "cipherbox clients" in nobody.err
    assert (
        shell("chat", home=lab).code == shell("chat", "CA-RC", "--all", home=lab).code == Exit.USAGE
    )


@pytest.mark.joined
def test_lines_that_hq_did_not_confirm_wait(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    assert shell("chat", "CA-RC", home=lab, stdin="first\n").code == 0
    with on_terminal("chat", "CA-RC", home=lab) as here:
        here.expect("Ctrl-D ends")
        hq.process.terminate()
        hq.process.wait(LIMIT_S)
        here.expect("HQ cannot be reached; lines are kept here and sent later")
        here.type("second")
        here.expect("sealed, not with HQ yet")
        here.type(CTRL_D)
        assert here.end() == Exit.QUEUED
        assert "1 line(s) wait in the outbox" in here.shown
    assert inbox(center) == []
