"""Logs: one JSON object per line, rotated files, nothing forged."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from cipherbox.config import LoggingSettings
from cipherbox.ops.logs import ROOT, RotatedFile, fields, get_logger, setup_logging
from cipherbox.ops.systemd import notify


@pytest.fixture(autouse=True)
def _quiet_afterwards() -> Iterator[None]:
    yield
    root = logging.getLogger(ROOT)
    for handler in root.handlers[:]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(logging.NOTSET)
    root.propagate = True


def test_a_line_is_json_with_its_fields() -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    log = get_logger("cipherbox.server.engine")
    log.info("Published %s", "x", extra=fields(client="FL-LAB", envelope=b"\x01\xff", reason="", queue=None))
    log.debug("not at this level")
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    stamp = found.pop("timestamp")
    assert stamp.endswith("Z")
    assert len(stamp) == len("2025-09-08T07:03:00.123Z")
    assert found == {
        "level": "INFO",
        "logger": "server.engine",
        "message": "Published x",
        "client": "FL-LAB",
        "envelope": "01ff",
    }


def test_another_partys_text_cannot_forge_a_line() -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    get_logger("x").error("TLS handshake failed: %s", 'evil\n{"level":"INFO"}\x1b[2J', extra={"peer": "a\nb"})
    (line,) = stream.getvalue().splitlines()
    assert "\x1b" not in line
    assert json.loads(line)["peer"] == "a\nb"


def test_an_exception_keeps_its_traceback_in_the_line() -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    try:
        raise ValueError("no")
    except ValueError:
        get_logger("x").exception("A mistake")
    assert "ValueError: no" in json.loads(stream.getvalue())["traceback"]


def test_each_file_has_its_levels(tmp_path: Path) -> None:
    setup_logging(LoggingSettings(level="DEBUG", directory=tmp_path), io.StringIO())
    log = get_logger("x")
    log.debug("d")
    log.info("i")
    log.warning("w")
    log.error("e")
    files = list(tmp_path.iterdir())
    found = {file.name: [json.loads(line)["message"] for line in file.read_text().splitlines()] for file in files}
    assert found == {"server_debug.log": ["d"], "server_info.log": ["i", "w"], "server_error.log": ["e"]}


def record(at: float, text: str) -> logging.LogRecord:
    made = logging.makeLogRecord({"msg": text, "levelno": 20})
    made.created = at
    return made


@pytest.mark.parametrize(("rotation", "files"), [("never", 1), ("daily", 2), ("hourly", 3)])
def test_files_begin_anew_by_time(tmp_path: Path, rotation: str, files: int) -> None:
    handler = RotatedFile(tmp_path / "server_info.log", LoggingSettings(rotation=rotation))
    day = 86_400 * 20_000
    for at in (day, day + 10, day + 3600, day + 3700, day + 86_400):
        handler.emit(record(float(at), str(at)))
    handler.close()
    made = sorted(tmp_path.iterdir())
    assert len(made) == files
    assert sum(len(file.read_text().splitlines()) for file in made) == 5


def test_files_begin_anew_by_size_and_old_ones_go(tmp_path: Path) -> None:
    handler = RotatedFile(tmp_path / "server_info.log", LoggingSettings(largest_bytes=4096, keep=2, rotation="never"))
    for number in range(100):
        handler.emit(record(1_000_000.0, "x" * 1000 + str(number)))
    handler.close()
    made = sorted(tmp_path.iterdir())
    assert len(made) == 3
    assert all(file.stat().st_size <= 4096 for file in made)
    assert (tmp_path / "server_info.log").read_text().strip().endswith("99")


def test_news_for_systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("READY=1")
    path = tmp_path / "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1", "STATUS=listening")
        assert manager.recv(100) == b"READY=1\nSTATUS=listening"
