"""Logs: one JSON object per line, rotated files, nothing forged."""

import io
import json
import logging
import os
import threading
import time
from pathlib import Path

import orjson
import pytest

from cipherbox.config.settings import LoggingSettings
from cipherbox.errors import ConfigError
from cipherbox.ops.logs import (
    Flood,
    JsonLines,
    PeopleLines,
    RotatedFile,
    fields,
    get_logger,
    setup_logging,
)
from cipherbox.ops.systemd import notify

pytestmark = pytest.mark.usefixtures("logs_as_before")


def test_a_line_is_json_with_its_fields() -> None:
    stream = io.StringIO()
    setup_logging(LoggingSettings(), stream)
    log = get_logger("cipherbox.server.engine")
    log.info(
        "Published %s",
        "x",
        extra=fields(client="FL-LAB", envelope=b"\x01\xff", reason="", queue=None),
    )
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
    get_logger("x").error(
        "TLS handshake failed: %s", 'evil\n{"level":"INFO"}\x1b[2J', extra={"peer": "a\nb"}
    )
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
    found = {
        file.name: [json.loads(line)["message"] for line in file.read_text().splitlines()]
        for file in files
    }
    assert found == {
        "server_debug.log": ["d"],
        "server_info.log": ["i", "w"],
        "server_error.log": ["e"],
    }


def record(at: float, text: str) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "cipherbox.test", "msg": text, "levelno": 20})
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
    handler = RotatedFile(
        tmp_path / "server_info.log", LoggingSettings(largest_bytes=4096, keep=2, rotation="never")
    )
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
        manager.settimeout(60)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1", "STATUS=listening")
        assert manager.recv(100) == b"READY=1\nSTATUS=listening"


def broken_disk(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """A disk that is full while the list says so."""
    full = [False]
    write = os.write

    def maybe(fd: int, data: bytes) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr("cipherbox.ops.logs.os.write", maybe)
    return full


def test_a_disk_that_is_full_for_a_while_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    full = broken_disk(monkeypatch)
    monkeypatch.setattr("cipherbox.ops.logs.LOOK_S", 0.0)
    handler = RotatedFile(tmp_path / "server_info.log", LoggingSettings(directory=tmp_path))
    handler.setFormatter(JsonLines())
    for n in range(6):
        full[0] = 2 <= n < 5
        handler.emit(record(time.time(), str(n)))
    handler.close()
    kept = [
        orjson.loads(line)["message"]
        for line in (tmp_path / "server_info.log").read_bytes().splitlines()
    ]
    assert kept == ["0", "1", "5"]
    assert capsys.readouterr().err.count("cannot be written") == 1


def test_a_file_that_was_moved_away_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cipherbox.ops.logs.LOOK_S", 0.0)
    path = tmp_path / "server_info.log"
    handler = RotatedFile(path, LoggingSettings(directory=tmp_path))
    handler.setFormatter(JsonLines())
    handler.emit(record(time.time(), "before"))
    path.rename(tmp_path / "moved")
    handler.emit(record(time.time(), "after"))
    handler.close()
    assert b"before" in (tmp_path / "moved").read_bytes()
    assert b"after" in path.read_bytes()


def test_a_clock_set_back_begins_no_new_file_and_loses_none(tmp_path: Path) -> None:
    handler = RotatedFile(
        tmp_path / "x.log", LoggingSettings(directory=tmp_path, rotation="hourly")
    )
    handler.setFormatter(JsonLines())
    now = 1_800_000_000.0
    for shift in (0, -7200, -3600, 0, 10, 3600, -86400, 3700):
        handler.emit(record(now + shift, "line"))
    handler.close()
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    assert sum(len(f.read_bytes().splitlines()) for f in files) == 8


def test_a_directory_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    with pytest.raises(ConfigError, match=r"\[logging\] directory"):
        setup_logging(LoggingSettings(directory=tmp_path / "file" / "logs"))
    (tmp_path / "logs" / "server_info.log").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"server_info.log cannot be written"):
        setup_logging(LoggingSettings(directory=tmp_path / "logs"))
    setup_logging(LoggingSettings())


def test_rotation_while_several_threads_write_loses_no_line(tmp_path: Path) -> None:
    settings = LoggingSettings(directory=tmp_path, largest_bytes=4096, keep=1000)
    logger = logging.Logger("cipherbox.threads")
    handler = RotatedFile(tmp_path / "x.log", settings)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    threads = [
        threading.Thread(
            target=lambda t=t: [logger.info("line %d of %d", n, t) for n in range(300)]
        )
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    handler.close()
    lines = [
        orjson.loads(line)["message"]
        for f in tmp_path.iterdir()
        for line in f.read_bytes().splitlines()
    ]
    assert sorted(lines) == sorted(f"line {n} of {t}" for n in range(300) for t in range(4))
    assert len(list(tmp_path.iterdir())) > 10


def test_a_client_that_floods_the_log_hides_nobody_elses_lines() -> None:
    flood = Flood(most=50)

    def passes(at: float, client: str) -> bool:
        line = record(at, "Key bundle registered")
        line.client = client
        return flood.filter(line)

    assert sum(passes(1.0 + n / 1000, "EVIL") for n in range(500)) == 10
    assert passes(1.9, "FL-LAB")
    assert passes(2.5, "EVIL")  # one, with the count of the others,
    assert not any(passes(3.0 + n, "EVIL") for n in range(9))
    assert all(passes(3.0 + n, f"LAB-{n}") for n in range(9))
    left = {(getattr(line, "client", ""), line.left_out) for line in flood.settle(20.0)}  # type: ignore[attr-defined]
    assert left == {("EVIL", 9)}


def test_a_flood_becomes_a_count() -> None:
    flood = Flood(most=3)
    passed = []
    for at in (1.0, 1.1, 1.2, 1.3, 1.4, 2.0):
        line = record(at, "TLS handshake failed")
        if flood.filter(line):
            passed.append((at, getattr(line, "left_out", 0)))
    assert passed == [(1.0, 0), (1.1, 0), (1.2, 0), (2.0, 2)]
    other = record(2.0, "something else")
    assert flood.filter(other)


def test_addresses_at_a_terminal_are_written_as_people_write_them() -> None:
    record = logging.LogRecord(
        "cipherbox.server.app", logging.INFO, "app.py", 1, "HQ is ready", None, None
    )
    record.__dict__.update(addresses=[("127.0.0.1", 7443), ("::1", 7443)], websocket=[])
    assert PeopleLines().format(record).endswith("HQ is ready  addresses=127.0.0.1:7443,::1:7443")
