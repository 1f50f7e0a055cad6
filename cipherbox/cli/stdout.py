"""Standard output that may be closed, full, or no longer read: work continues, and the exit code
reports it.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from contextlib import suppress
from typing import Any


class Guard(io.RawIOBase):
    """Standard output that never raises: after a failure, output is dropped and the error kept."""

    error: OSError | None = None

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def write(self, data: Any) -> int:
        if self.error is None:
            try:
                return os.write(self._fd, data)
            except OSError as error:
                Guard.error = error
        return len(data)


def guard_output(closed: frozenset[int]) -> None:
    """Replace standard output by a `Guard`; ``closed``: which of 0, 1, 2 the caller had closed."""
    if sys.stdout is not None and sys.stdout is not sys.__stdout__:
        return  # replaced already, for example by a test runner
    if 1 in closed:
        Guard.error = OSError(errno.EBADF, "standard output is closed")
    buffer = io.BufferedWriter(Guard(1))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    sys.stdout = io.TextIOWrapper(
        buffer, encoding=encoding, errors="backslashreplace", line_buffering=True
    )


def drop_unread_errors() -> None:
    """Drop a standard error that cannot be written, like a closed terminal's: Python would exit
    with 120 because of it.
    """
    try:
        if sys.stderr is not None:
            sys.stderr.flush()
    except (OSError, ValueError):
        sys.stderr = None


def output_failure() -> OSError | None:
    """Return the error that prevented printing, if any."""
    with suppress(ValueError):
        sys.stdout.flush()
    return Guard.error
