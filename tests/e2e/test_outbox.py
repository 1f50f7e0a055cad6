"""The outbox as its user sees it: HQ away, told in plain words and a code of its own; back, and
all goes out.
"""

import json
import os
from pathlib import Path

import pytest

from .conftest import make_hq, serving, shell


@pytest.mark.early
def test_messages_and_files_wait_and_go_out(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    lab, center = tmp_path / "FL-LAB", tmp_path / "CA-RC"
    with serving(directory):
        for home in (lab, center):
            token = shell("enroll", home.name, home=admin).out
            assert shell("join", home=home, stdin=token).code == 0
        assert shell("send", "--to", "CA-RC", "keys are known", home=lab).code == 0
    file = tmp_path / "scan.tif"
    file.write_bytes(os.urandom(9_000_000))
    shown = shell("send", "--to", "CA-RC", "while HQ is away", home=lab)
    assert shown.code == 11, shown.err
    assert "HQ cannot be reached since" in shown.err
    assert "kept in the outbox" in shown.err
    assert shell("send", "--to", "CA-RC", "--file", str(file), home=lab).code == 11
    listed = json.loads(shell("outbox", "list", "--json", home=lab).out)
    assert [row["state"] for row in listed] == ["waiting", "sending"]
    message_id = listed[0]["message_id"]
    shown = shell("status", message_id, home=lab)
    assert shown.code == 0
    assert "waits in the outbox" in shown.out
    cancelled = shell("send", "--to", "CA-RC", "--wait", "queued", "--json", "a mistake", home=lab)
    mistake = json.loads(cancelled.out)["message_ids"][0]
    assert shell("outbox", "cancel", "--yes", mistake, home=lab).code == 0
    assert shell("outbox", "send", home=lab).code == 11
    with serving(directory):
        sent = shell("outbox", "send", home=lab)
        assert sent.code == 0, sent.err
        assert shell("receive", "--count", "3", "--idle", "20", home=center).code == 0
        shown = shell("status", message_id, home=lab)
        assert "opened by CA-RC (receipt verified)" in shown.out
    lines = (center / "data" / "received_messages.jsonl").read_text().splitlines()
    contents = [json.loads(line)["content"] for line in lines]
    assert sorted(c for c in contents if isinstance(c, str)) == [
        "keys are known",
        "while HQ is away",
    ]
    arrived = center / "incoming" / "FL-LAB" / "scan.tif"
    assert arrived.read_bytes() == file.read_bytes()
    assert json.loads(shell("outbox", "list", "--json", home=lab).out) == []
