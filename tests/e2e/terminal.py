"""A command on a terminal of its own, and somebody who types there."""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.warm import own_terminal

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM


class Terminal:
    """What a running command shows; `expect` waits for a text, `type` answers it."""

    def __init__(self, process: "subprocess.Popen[bytes]", master: int) -> None:
        self.process = process
        self.shown = ""
        self._master = master
        self._read = 0

    def expect(self, pattern: str) -> None:
        """Waits until the pattern is shown, after all that was waited for before."""
        found = None
        while (found := re.search(pattern, self.shown[self._read :])) is None:
            assert self._more(), f"{pattern!r} is not in {self.shown!r}"
        self._read += found.end()

    def type(self, line: str) -> None:
        os.write(self._master, f"{line}\n".encode())

    def end(self) -> int:
        """Reads to the end; the exit code."""
        while self._more():
            pass
        return self.process.wait(LIMIT_S)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def close(self) -> None:
        """The terminal is gone."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def _more(self) -> bool:
        ready, _, _ = select.select([self._master], [], [], LIMIT_S)
        assert ready, f"nothing more came after {self.shown!r}"
        try:
            data = os.read(self._master, 4096)
        except OSError:  # Linux says so when the other end is closed
            data = b""
        self.shown += data.decode()
        return bool(data)


@contextmanager
def on_terminal(
    *arguments: str, home: Path, stdin: bytes | None = None, **environment: str
) -> Iterator[Terminal]:
    """Starts a command on a terminal; with ``stdin`` its standard input is a pipe with these
    bytes all the same.
    """
    master, slave = pty.openpty()
    source = slave
    if stdin is not None:
        source, end = os.pipe()
        os.write(end, stdin)
        os.close(end)
    process = subprocess.Popen(
        [*PROGRAM, "--home", str(home), *arguments],
        stdin=source,
        stdout=slave,
        stderr=slave,
        env=ENVIRONMENT | environment,
        start_new_session=True,
        preexec_fn=own_terminal,
    )
    os.close(slave)
    if stdin is not None:
        os.close(source)
    terminal = Terminal(process, master)
    try:
        yield terminal
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(LIMIT_S)
        terminal.close()


__all__ = ["Terminal", "on_terminal"]
