"""Lines in systemd's journal, and what must not be in any log."""

from __future__ import annotations

import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cipherbox.config.settings import LoggingSettings
from cipherbox.ops import flood, logs
from cipherbox.ops.journald import Journald, datagram, field_name, in_journal
from cipherbox.ops.logs import ROOT, JsonLines, get_logger, setup_logging

pytestmark = pytest.mark.usefixtures("logs_as_before")

TOKEN = "cipherbox-1-" + "AbC_-9" * 20
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----"


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "journal"))
        found.settimeout(60)
        yield found


def read(data: bytes) -> dict[str, str]:
    """A datagram, as the journal reads it."""
    found = {}
    while data:
        line, _, rest = data.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            size = int.from_bytes(rest[:8], "little")
            value, rest = rest[8 : 8 + size], rest[9 + size :]
        found[name.decode()] = value.decode()
        data = rest
    return found


@pytest.fixture
def handler(tmp_path: Path) -> Iterator[tuple[Journald, io.StringIO]]:
    instead = io.StringIO()
    screen = logging.StreamHandler(instead)
    screen.setFormatter(JsonLines())
    found = Journald(screen, str(tmp_path / "journal"))
    yield found, instead
    found.close()


Handler = tuple[Journald, io.StringIO]


def made(text: str, *values: object, level: int = 20, **extra: object) -> logging.LogRecord:
    record = logging.LogRecord(
        "cipherbox.server.operations.event_log", level, "", 0, text, values, None
    )
    vars(record).update(extra)
    return record


def test_a_line_has_its_fields(handler: Handler, journal: socket.socket) -> None:
    one, instead = handler
    one.handle(
        made("Published %s", "x", client="FL-LAB", connection=7, message_id=b"\x01" * 16, level=30)
    )
    found = read(journal.recv(1 << 20))
    assert found["MESSAGE"] == "Published x"
    assert found["PRIORITY"] == "4"
    assert found["SYSLOG_IDENTIFIER"] == "cipherbox"
    assert found["CIPHERBOX_CLIENT"] == "FL-LAB"
    assert found["CIPHERBOX_CONNECTION"] == "7"
    assert found["CIPHERBOX_MESSAGE_ID"] == "01" * 16
    assert found["CIPHERBOX_LOGGER"] == "server.operations.event_log"
    assert not [name for name in found if name.startswith("_")]
    assert instead.getvalue() == ""


def test_another_partys_text_forges_no_field(handler: Handler, journal: socket.socket) -> None:
    one, _ = handler
    one.handle(made("evil\nPRIORITY=0\n", client="a\n_UID=0\x1b[2J"))
    found = read(journal.recv(1 << 20))
    assert found["PRIORITY"] == "6"
    assert "_UID" not in found
    assert "\x1b" not in found["CIPHERBOX_CLIENT"]
    assert read(datagram({"A": "1\n2", "B": "x=y"})) == {"A": "1\n2", "B": "x=y"}
    assert field_name("größe x") == "CIPHERBOX_GR__E_X"


def test_a_huge_line_is_cut_and_a_journal_that_is_gone_loses_none(
    handler: Handler, tmp_path: Path, journal: socket.socket
) -> None:
    one, instead = handler
    fields = {f"field{n}": "x" * 15_000 for n in range(50)}
    one.handle(made("y" * 1_000_000, **fields))
    assert len(read(journal.recv(1 << 22))["MESSAGE"]) < 20_000
    journal.close()
    (tmp_path / "journal").unlink()
    one.handle(made("still here"))
    assert json.loads(instead.getvalue())["message"] == "still here"


def test_the_journal_is_used_where_systemd_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with (tmp_path / "stream").open("w") as stream:
        there = os.fstat(stream.fileno())
        monkeypatch.delenv("JOURNAL_STREAM", raising=False)
        assert not in_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino}")
        assert in_journal(stream)
        monkeypatch.setattr(sys, "stderr", stream)
        setup_logging(LoggingSettings())
        assert [type(h) for h in logging.getLogger(ROOT).handlers] == [Journald]
        # led into a file since
        monkeypatch.setenv("JOURNAL_STREAM", f"{there.st_dev}:{there.st_ino + 1}")
        assert not in_journal(stream)
        for wrong in ("", "x", "1:", ":"):
            monkeypatch.setenv("JOURNAL_STREAM", wrong)
            assert not in_journal(stream)
    assert not in_journal(io.StringIO())


def test_no_secret_gets_through_whatever_hands_it_over() -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    log = get_logger("x")
    log.info("token %s", TOKEN, extra={"token": TOKEN, "more": [TOKEN, {"k": KEY}]})
    log.info(
        "at postgresql://hq:hunter2@db/cipherbox", extra={"key": KEY, "body": b"content" * 100}
    )
    try:
        raise ValueError(KEY)
    except ValueError:
        log.exception("A mistake")
    text = stream.getvalue()
    for secret in (TOKEN[12:40], "hunter2", "MIGHAgEA", b"content".hex()):
        assert secret not in text
    lines = [json.loads(line) for line in text.splitlines()]
    assert len(lines) == 3
    assert lines[1]["body"] == "(700 bytes)"
    assert "postgresql://hq:[hidden]@db/cipherbox" in lines[1]["message"]


def test_a_flood_that_nothing_follows_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    log = get_logger("x")
    now = [1_000_000.0]
    monkeypatch.setattr(flood.time, "time", lambda: now[0])
    monkeypatch.setattr(logging.time, "time", lambda: now[0])
    monkeypatch.setattr(logging.time, "time_ns", lambda: int(now[0] * 1e9))
    for number in range(1000):
        log.error("TLS handshake failed: %d%%", number)
    logs.settle_floods()
    assert len(stream.getvalue().splitlines()) == flood.MOST
    now[0] += 1.5
    logs.settle_floods()
    logs.settle_floods()
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(lines) == flood.MOST + 1
    assert lines[-1]["left_out"] == 950
    assert lines[-1]["level"] == "ERROR"
    assert lines[-1]["message"].startswith("950 more lines of one kind were left out")


def test_a_flood_that_goes_on_is_a_line_now_and_then() -> None:
    one = flood.Flood(most=5)
    passed = 0
    for second in range(100):
        for number in range(20):
            record = made("again")
            record.created = 1000.0 + second + number / 40
            passed += one.filter(record)
    assert passed <= 5 + 100 / flood.HOLD_S + 1
    record = made("again")
    record.created = 5000.0
    assert one.filter(record)
    assert one.settle(9000.0) == []
