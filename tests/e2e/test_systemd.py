"""`serve` as systemd starts it: news through the notify socket, a watchdog, sockets that were
open before it was.
"""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cipherbox.config.settings import load_client_config

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, make_hq, shell

# Puts the descriptors where systemd puts them, and names the process as systemd does.
SHIM = """
import os, sys
first, *rest = (int(n) for n in sys.argv[1].split(","))
for number, fd in enumerate([first, *rest]):
    os.dup2(fd, 3 + number)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """The socket that systemd listens on for news."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(LIMIT_S)
        self.news: list[str] = []
        self._lines: list[str] = []

    def wait(self, wanted: str) -> str:
        """The first news that begin so; they are gone through one after the other."""
        ends = time.monotonic() + LIMIT_S
        while time.monotonic() < ends:
            if not self._lines:
                self._lines = self._socket.recv(4096).decode().splitlines()
            self.news.append(self._lines.pop(0))
            if self.news[-1].startswith(wanted):
                return self.news[-1]
        raise AssertionError(f"{wanted} did not come: {self.news}")

    def drain(self) -> None:
        self._socket.settimeout(0.01)
        try:
            while True:
                self.news += self._socket.recv(4096).decode().splitlines()
        except OSError:
            self._socket.settimeout(LIMIT_S)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Manager]:
    found = Manager(tmp_path_factory.mktemp("s") / "notify")
    yield found
    found.close()


def listening() -> socket.socket:
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen(128)
    return found


@contextmanager
def started(
    directory: Path, sockets: dict[str, socket.socket] | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    command = [*PROGRAM, "serve", str(directory)]
    high: list[int] = []
    if sockets:
        high = [fcntl.fcntl(s.fileno(), fcntl.F_DUPFD, 100) for s in sockets.values()]
        command = [sys.executable, "-c", SHIM, ",".join(map(str, high)), *command]
        environment |= {"LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": ":".join(sockets)}
    with (directory.parent / "serve.log").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=ENVIRONMENT | environment, pass_fds=high
        )
    for fd in high:
        os.close(fd)
    try:
        yield process
    finally:
        process.kill()
        process.wait(LIMIT_S)


def test_it_tells_when_it_is_ready_alive_and_stopping(tmp_path: Path, manager: Manager) -> None:
    directory, _ = make_hq(tmp_path)
    news = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1500000"}
    with started(directory, **news) as process:
        manager.wait("READY=1")
        assert manager.wait("STATUS=listening on 127.0.0.1:")
        for _ in range(3):  # how often: tests/server/test_watchdog.py
            manager.wait("WATCHDOG=1")
        assert "STATUS=serving 0 connections" in manager.news
        process.terminate()
        manager.wait("STOPPING=1")
        assert process.wait(LIMIT_S) == 0


def test_a_watchdog_for_another_process_is_not_fed(tmp_path: Path, manager: Manager) -> None:
    directory, _ = make_hq(tmp_path)
    news = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "900000", "WATCHDOG_PID": "1"}
    with started(directory, **news) as process:
        manager.wait("READY=1")
        threading.Event().wait(1.0)
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    manager.drain()
    assert "WATCHDOG=1" not in manager.news


def test_a_restart_refuses_no_connection(tmp_path: Path, manager: Manager) -> None:
    """The sockets outlive HQ; who comes while it is away is served by the next one."""
    directory, admin = make_hq(tmp_path)
    with listening() as plain, listening() as websocket:
        sockets = {"plain": plain, "websocket": websocket}
        port, other = plain.getsockname()[1], websocket.getsockname()[1]
        told = admin / "client.toml"
        address = load_client_config(admin).address
        told.write_text(told.read_text().replace(f'"{address}"', f'"127.0.0.1:{port}"'))
        news = {"NOTIFY_SOCKET": str(manager.path)}
        with started(directory, sockets, **news) as process:
            manager.wait("READY=1")
            assert f"127.0.0.1:{other}" in manager.wait("STATUS=listening")
            assert shell("status", home=admin).code == 0
            process.terminate()
            assert process.wait(LIMIT_S) == 0
        stop = threading.Event()
        refused: list[OSError] = []

        def knock() -> None:
            while not stop.wait(0.05):
                try:
                    socket.create_connection(("127.0.0.1", port), 5).close()
                except OSError as error:
                    refused.append(error)

        knocking = threading.Thread(target=knock)
        knocking.start()
        status = [*PROGRAM, "--home", str(admin), "status"]
        with subprocess.Popen(status, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as ask:
            threading.Event().wait(1.0)
            with started(directory, sockets, **news) as process:
                manager.wait("READY=1")
                assert ask.wait(LIMIT_S) == 0
                told.write_text(
                    told.read_text().replace(f'"127.0.0.1:{port}"', f'"wss://127.0.0.1:{other}/"')
                )
                assert shell("status", home=admin).code == 0
                process.terminate()
                assert process.wait(LIMIT_S) == 0
        stop.set()
        knocking.join(LIMIT_S)
        assert refused == []
    log = (directory.parent / "serve.log").read_text()
    assert "systemd listens on other ports than the settings" in log


def _udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("http", listening, "FileDescriptorName=plain"),
        ("plain", _udp, "does not listen on TCP"),
        ("plain", socket.socket, "does not listen on TCP"),
    ],
)
def test_a_socket_that_is_none_of_hqs_is_refused(
    tmp_path: Path, name: str, make: Callable[[], socket.socket], words: str
) -> None:
    directory, _ = make_hq(tmp_path)
    with make() as given, started(directory, {name: given}) as process:
        assert process.wait(LIMIT_S) == 5
    log = (directory.parent / "serve.log").read_text()
    assert words in log
    assert "Traceback" not in log


def test_sockets_for_another_process_are_left_alone(tmp_path: Path, manager: Manager) -> None:
    directory, _ = make_hq(tmp_path)
    news = {
        "NOTIFY_SOCKET": str(manager.path),
        "LISTEN_PID": "1",
        "LISTEN_FDS": "5",
        "LISTEN_FDNAMES": "http",
    }
    with started(directory, **news) as process:
        manager.wait("READY=1")
        process.terminate()
        assert process.wait(LIMIT_S) == 0


def test_a_port_that_systemd_holds_for_hq_is_not_taken(tmp_path: Path) -> None:
    """With its socket units on, HQ's port is in use while HQ is not there; the same by anybody
    else is a finding.
    """
    directory, admin = make_hq(tmp_path)
    port = int(
        (directory / "cipherbox.toml").read_text().split('listen = "127.0.0.1:')[1].split('"')[0]
    )
    systemctl = tmp_path / "bin" / "systemctl"
    systemctl.parent.mkdir()
    path = {"PATH": f"{systemctl.parent}:{os.environ['PATH']}"}
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", port))
        held.listen()
        for state, address, code in (
            ("active", f"127.0.0.1:{port}", 0),
            ("active", f"[::]:{port}", 0),
            ("failed", f"127.0.0.1:{port}", 5),
            ("active", f"127.0.0.1:1{port}", 5),
        ):
            shown = (
                f"Listen={address} (Stream)\nActiveState={state}\n\nListen=[::]:1 "
                "(Stream)\nActiveState=inactive\n"
            )
            systemctl.write_text(f"#!/bin/sh\ncat <<END\n{shown}END\n")
            systemctl.chmod(0o755)
            for command in (["doctor", str(directory)], ["config", "check", str(directory)]):
                assert shell(*command, home=admin, **path).code == code, (state, address, command)
