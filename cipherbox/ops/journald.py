"""Log lines with their fields for systemd's journal, in its native protocol: one datagram per line.

systemd sets $JOURNAL_STREAM to device and inode of standard error if it is connected to the
journal.  Then lines go to the journal's own socket, and `journalctl CIPHERBOX_CLIENT=FL-LAB` finds
them by their fields.
"""

from __future__ import annotations

import logging
import os
import socket
from typing import Any

from cipherbox.ops.log_line import line_of
from cipherbox.portable import escape_text

SOCKET = "/run/systemd/journal/socket"
VARIABLE = "JOURNAL_STREAM"
# plain names are the journal's own: MESSAGE_ID, for one, means something else there
PREFIX = "CIPHERBOX_"
_FIELD_CHARS = 16 * 1024  # a datagram holds about 200 KiB
_SMALL_CHARS = 1024
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def in_journal(stream: Any) -> bool:
    """Return whether this stream is connected to the journal; False if it was redirected since."""
    device, _, inode = os.environ.get(VARIABLE, "").partition(":")
    try:
        found = os.fstat(stream.fileno())
    except (OSError, AttributeError, ValueError):
        return False
    return hasattr(socket, "AF_UNIX") and (device, inode) == (str(found.st_dev), str(found.st_ino))


def datagram(fields: dict[str, str]) -> bytes:
    """Return the fields as the protocol encodes them; a multi-line value follows its length."""
    out = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            out += name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)


def field_name(name: str) -> str:
    """Return a name as the journal accepts it: capitals, digits and underscores."""
    kept = "".join(c if c.isascii() and c.isalnum() else "_" for c in name)
    return (PREFIX + kept.upper())[:64]


class Journald(logging.Handler):
    """Send each record to the journal; one that it does not accept goes to ``instead``, as a line.

    The fields come from `line_of`, as for the formatters, so that both hide and escape the same.
    """

    def __init__(self, instead: logging.Handler, path: str = SOCKET) -> None:
        super().__init__()
        self._instead = instead
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)  # a journal that hangs must not hold up HQ
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        for most in (_FIELD_CHARS, _SMALL_CHARS):
            try:
                self._socket.sendto(datagram(self.fields(record, most)), self._path)
            except OSError:
                continue
            return
        self._instead.emit(record)

    def fields(self, record: logging.LogRecord, most: int = _FIELD_CHARS) -> dict[str, str]:
        """Return the record as fields of the journal."""
        line = line_of(record)
        found = {
            "MESSAGE": escape_text(str(line.pop("message")), most),
            "PRIORITY": str(
                next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
            ),
            "SYSLOG_IDENTIFIER": "cipherbox",
            "SYSLOG_PID": str(os.getpid()),
        }
        traceback = str(line.pop("traceback", ""))
        for name, value in line.items():
            if name != "timestamp":
                found[field_name(name)] = escape_text(str(value), most)
        if traceback:
            found[field_name("traceback")] = traceback[-most:]
        return found

    def close(self) -> None:
        self._socket.close()
        self._instead.close()
        super().close()
