"""Sessions as a user types them: real processes, each command a fresh one, a receiver killed
again and again.
"""

import json
import sqlite3
import subprocess
import threading
from pathlib import Path

import pytest

from tests import soak

from .conftest import ENVIRONMENT, PROGRAM, Hq, shell

PAUSE = threading.Event()  # never set


def texts(home: Path) -> list[str]:
    path = home / "data" / "received_messages.jsonl"
    return (
        [json.loads(line)["content"] for line in path.read_text().splitlines()]
        if path.exists()
        else []
    )


@pytest.mark.joined
def test_first_contact_replies_and_a_second_reader(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    early = shell("send", "--to", "CA-RC", "--wrap", "ratchet", "too early", home=lab)
    assert early.code != 0
    assert "no prekeys at HQ" in early.err
    assert shell("fetch", home=center).code == 0  # whatever receives leaves prekeys
    for text in ("one", "two"):
        shown = shell("send", "--to", "CA-RC", "--wrap", "ratchet", text, home=lab)
        assert shown.code == 0, shown.err
        assert "confirmed by HQ" in shown.out
    assert shell("fetch", home=center).code == 0
    assert texts(center) == ["one", "two"]
    back = shell("send", "--to", "FL-LAB", "--wrap", "ratchet", "back", home=center)
    assert back.code == 0, back.err
    assert shell("fetch", home=lab).code == 0
    assert texts(lab) == ["back"]
    opened = shell(
        "send", "--to", "CA-RC", "--wrap", "ratchet", "--wait", "queued", "three", home=lab
    )
    assert opened.code == 0, opened.err
    assert shell("outbox", "list", home=lab).code == 0
    assert shell("send", "--to", "CA-RC", "four", home=lab).code == 0  # and the usual way beside it
    assert shell("fetch", home=center).code == 0
    assert sorted(texts(center)) == ["four", "one", "three", "two"]
    assert shell("send", "--to", "CA-RC", "--wrap", "letter", "x", home=lab).code == 2


@soak.more
@pytest.mark.joined
def test_a_receiver_that_is_killed_loses_nothing(hq: Hq) -> None:
    lab, center = hq.join("FL-LAB"), hq.join("CA-RC")
    assert shell("fetch", home=center).code == 0
    wanted = []
    for turn in range(0, 6, 1 if soak.ON else 2):
        receiver = subprocess.Popen(
            [*PROGRAM, "--home", str(center), "receive"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ENVIRONMENT,
        )
        for number in range(3):
            text = f"{turn}.{number}"
            shown = shell("send", "--to", "CA-RC", "--wrap", "ratchet", text, home=lab)
            assert shown.code == 0, shown.err
            wanted.append(text)
        PAUSE.wait(0.05 * turn)
        receiver.kill()
        receiver.wait()
    for _ in range(20):
        assert shell("fetch", home=center).code == 0
        if len(texts(center)) == len(wanted):
            break
        PAUSE.wait(0.5)
    assert sorted(texts(center)) == sorted(wanted)
    db = sqlite3.connect(center / "inbox.sqlite3")
    assert db.execute("SELECT count(DISTINCT session_id) FROM sessions").fetchone() == (1,)
    db.close()
