"""Structured logs: one JSON object per line, made for machines and still readable.

    {"timestamp":"2025-09-08T07:03:00.123Z","level":"INFO","logger":"server","message":"...","client":"FL-LAB"}

Lines go to standard error: as JSON, as plain lines where that is a terminal, or with their fields
to systemd's journal where that is what standard error leads to.  On request they also go into
`server_info.log`, `server_debug.log` and `server_error.log`, each with the lines of its level and
above up to the next file's.

Extra fields are given by name, ``log.info("...", extra=fields(client=..., connection=...))``, or
directly as ``extra={"client": ...}``; values that JSON does not know are written as text.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from cipherbox.config.settings import LoggingSettings
from cipherbox.errors import ConfigError
from cipherbox.ops import flood
from cipherbox.ops.flood import Flood
from cipherbox.ops.journald import Journald, in_journal
from cipherbox.ops.log_line import ROOT, line_of, utc_text, value_text
from cipherbox.portable import O_BINARY, escape_text

LOOK_S = 5.0  # how often a file is looked for that was moved away or could not be written
_TEXT = 300  # characters of a value on a terminal
_FILES = {"server_debug.log": (0, 20), "server_info.log": (20, 40), "server_error.log": (40, 1000)}


def get_logger(name: str) -> logging.Logger:
    """Return the logger of a module: pass ``__name__``."""
    return logging.getLogger(name if name.startswith(ROOT) else f"{ROOT}.{name}")


def setup_logging(settings: LoggingSettings, stream: Any = None) -> None:
    """Direct the lines of all CipherBox loggers as ``settings`` says; a second call replaces the
    first.
    """
    # made first: if one fails, the previous handlers stay
    made = _handlers(settings, stream)
    root = logging.getLogger(ROOT)
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.setLevel(settings.level)
    root.propagate = False
    for handler in made:
        handler.addFilter(Flood())
        root.addHandler(handler)


def _handlers(settings: LoggingSettings, stream: Any) -> list[logging.Handler]:
    """Return a handler for the screen or the journal, and one for each file."""
    screen: logging.Handler = logging.StreamHandler(stream or sys.stderr)
    screen.setFormatter(
        PeopleLines() if stream is None and _is_terminal(sys.stderr) else JsonLines()
    )
    if stream is None and in_journal(sys.stderr):
        screen = Journald(screen)
    made = [screen]
    if settings.directory is None:
        return made
    try:
        settings.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"[logging] directory: {settings.directory}: {error.strerror or error}"
        ) from None
    for name, (low, high) in _FILES.items():
        try:
            handler: logging.Handler = RotatedFile(settings.directory / name, settings)
        except ConfigError:
            for one in made:
                one.close()
            raise
        handler.setLevel(low)
        handler.addFilter(_Below(high))
        handler.setFormatter(JsonLines())
        made.append(handler)
    return made


def settle_floods() -> None:
    """Log how many lines of ended floods were left out; HQ's clock calls it."""
    flood.settle(logging.getLogger(ROOT))


def fields(**values: object) -> dict[str, object]:
    """Return the extra fields of a line that are neither None nor empty."""
    return {name: value for name, value in values.items() if value is not None and value != ""}


class JsonLines(logging.Formatter):
    """Format one record as one line of JSON.  Line ends inside values are escaped, so a line cannot
    be forged.
    """

    def format(self, record: logging.LogRecord) -> str:
        return orjson.dumps(
            line_of(record), default=value_text, option=orjson.OPT_NON_STR_KEYS
        ).decode()


class PeopleLines(logging.Formatter):
    """Format a record for a person at a terminal: `12:04:31  Client connected  client=FL-LAB
    remote=10.0.0.7:50214`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = line_of(record)
        level = "" if record.levelno == logging.INFO else f"{record.levelname}: "
        traceback = str(line.pop("traceback", ""))
        message = escape_text(str(line["message"]), _TEXT)
        known = ("timestamp", "level", "logger", "message")
        more = [
            f"{k}={_in_words(v)}" for k, v in line.items() if k not in known and v not in ([], ())
        ]
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock}  {level}{message}" + ("  " + " ".join(more) if more else "")
        return f"{text}\n{traceback}" if traceback else text


def _in_words(value: object) -> str:
    if isinstance(value, list | tuple) and all(
        isinstance(one, list | tuple) and len(one) == 2 for one in value
    ):
        value = ",".join(f"{host}:{port}" for host, port in value)  # addresses
    text = value if isinstance(value, str) else orjson.dumps(value, default=value_text).decode()
    text = escape_text(text, _TEXT)
    return f'"{text}"' if " " in text and not text.startswith(("[", "{")) else text


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


class _Below(logging.Filter):
    """Pass only lines below a level."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level

    def filter(self, record: logging.LogRecord) -> bool:
        return record.levelno < self._level


class RotatedFile(logging.Handler):
    """Append to one file, start a new one by hour or day (UTC) and by size, and keep a number of
    older ones.

    A file that cannot be written stops nothing: this is reported once on standard error, the lines
    go to standard error only, and the file is retried every few seconds.  A file that was moved
    away is created again.  A clock that is set back starts no new file.
    """

    def __init__(self, path: Path, settings: LoggingSettings) -> None:
        super().__init__()
        self.path = path
        self._settings = settings
        self._file = -1
        self._size = 0
        self._period = ""
        self._looked_at = time.monotonic()
        self._broken = False
        try:
            self._open()
        except OSError as error:
            raise ConfigError(
                f"[logging] directory: {path} cannot be written: {error.strerror or error}"
            ) from None

    def emit(self, record: logging.LogRecord) -> None:
        now = time.monotonic()
        try:
            if now - self._looked_at >= LOOK_S:
                self._looked_at = now
                self._look()
            if self._file < 0:
                return
            line = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
            period = self._period_of(record.created)
            if self._size:
                period = max(period, self._period)
            if self._size and (
                period != self._period or self._size + len(line) > self._settings.largest_bytes
            ):
                self._rotate(record.created)
            self._period = period
            self._size += os.write(self._file, line)
            self._broken = False
        except OSError as error:
            self._fail(error)

    def close(self) -> None:
        self._shut()
        super().close()

    def _open(self) -> None:
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | O_BINARY, 0o600)
        found = os.fstat(self._file)
        self._size = found.st_size
        self._period = self._period_of(found.st_mtime if found.st_size else time.time())

    def _shut(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _look(self) -> None:
        """Reopen the file if it could not be written or was moved."""
        if self._file >= 0:
            with suppress(FileNotFoundError):
                if os.stat(self.path).st_ino == os.fstat(self._file).st_ino:
                    return
            self._shut()
        self._open()

    def _fail(self, error: OSError) -> None:
        self._shut()
        if not self._broken:
            self._broken = True
            text = (
                f"The log {self.path} cannot be written: {error.strerror or error}; it is tried "
                "again"
            )
            line = {
                "timestamp": utc_text(time.time()),
                "level": "ERROR",
                "logger": "ops.logs",
                "message": text,
            }
            sys.stderr.write(f"{orjson.dumps(line).decode()}\n")

    def _period_of(self, at: float) -> str:
        form = {"hourly": "%Y%m%d%H", "daily": "%Y%m%d"}.get(self._settings.rotation)
        return time.strftime(form, time.gmtime(at)) if form else ""

    def _rotate(self, at: float) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(at))
        number = 0
        while (rotated := self.path.with_name(f"{self.path.name}.{stamp}.{number:03}")).exists():
            number += 1
        self._shut()
        self.path.rename(rotated)
        self._open()
        older = sorted(
            self.path.parent.glob(f"{self.path.name}.*"), key=lambda f: f.stat().st_mtime_ns
        )
        for surplus in older[: max(0, len(older) - self._settings.keep)]:
            surplus.unlink(missing_ok=True)
