"""Starts of the program from shell scripts, made by the process that runs the tests, which forks
them from its warm one (tests/warm.py) instead of starting a Python with everything imported.

A script calls ``command``, a Python that imports nothing: it hands its arguments, directory,
environment and standard files over a socket and ends as the program ended.
"""

from __future__ import annotations

import os
import pickle
import socket
import subprocess
import sys
import threading
from pathlib import Path

from .conftest import LIMIT_S, PROGRAM

_LARGEST = 200_000
_CALL = """
import os, pickle, socket, sys
at = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
at.connect(sys.argv[1])
asked = pickle.dumps((sys.argv[3:], os.getcwd(), dict(os.environ)))
socket.send_fds(at, [len(asked).to_bytes(4, "big")], [0, 1, 2])
at.sendall(asked)
sys.exit(int(at.recv(4) or 1))
"""


class Forwarder:
    """Runs what is asked of it at a socket, until it is closed."""

    def __init__(self, path: Path) -> None:
        self.command = [sys.executable, "-I", "-S", "-c", _CALL, str(path)]
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listening.bind(str(path))
        self._listening.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Take no more calls, and wait for those that run."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(LIMIT_S)
        self._listening.close()

    def _serve(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:
                return
            threading.Thread(target=_run, args=(caller,), daemon=True).start()


def _run(caller: socket.socket) -> None:
    with caller:
        size, files, _, _ = socket.recv_fds(caller, 4, 3)
        asked = bytearray()
        while len(asked) < int.from_bytes(size, "big"):
            asked += caller.recv(_LARGEST)
        arguments, directory, environment = pickle.loads(asked)
        process = subprocess.Popen(
            [*PROGRAM, *arguments],
            stdin=files[0],
            stdout=files[1],
            stderr=files[2],
            cwd=directory,
            env=environment,
        )
        for file in files:
            os.close(file)
        caller.send(b"%d" % process.wait())
