"""A log record as names and values, without secrets.

A log may contain ids, names, sizes, counts, times, hashes and error texts, never a secret, a token
or a body: anything that looks like one is removed, should it be passed on by mistake.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from typing import Any

ROOT = "cipherbox"
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
# an id has 16 bytes, a hash 32, a signature 64; what is longer is content or a key
_LONGEST_BYTES = 64
# Enrolment tokens, private keys, passwords in addresses.
_SECRETS = re.compile(
    r"(cipherbox-1-)[\w-]{16,}|(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE "
    r"KEY-----|$)|(://[^/\s:@\"]{1,200}:)[^/\s@\"]{1,500}(?=@)",
    re.DOTALL,
)


def line_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return a record as names and values, without secrets."""
    line: dict[str, Any] = {
        "timestamp": utc_text(record.created),
        "level": record.levelname,
        "logger": record.name.removeprefix(f"{ROOT}."),
        "message": without_secrets(record.getMessage()),
    }
    for name, value in vars(record).items():
        if name not in _STANDARD and name not in line:
            line[name] = _plain(value)
    if record.exc_info:
        line["traceback"] = without_secrets(logging.Formatter().formatException(record.exc_info))
    return line


def without_secrets(text: str) -> str:
    """Return the text with a mark in place of anything that looks like a token, a private key or a
    password in an address.
    """
    return _SECRETS.sub(lambda found: f"{found[1] or found[2] or found[3]}[hidden]", text)


def utc_text(at: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at)) + f".{int(at * 1000) % 1000:03}Z"


def _plain(value: object) -> object:
    """Return a JSON value unchanged, anything else as text without secrets or bodies."""
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    return value_text(value)


def value_text(value: object) -> str:
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex() if len(value) <= _LONGEST_BYTES else f"({len(value)} bytes)"
    return without_secrets(repr(dict(value)) if isinstance(value, Mapping) else str(value))
