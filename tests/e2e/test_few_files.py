"""HQ with room for few open files: those it has no room for wait until the silent ones are cut."""

import resource
import socket
import subprocess
from pathlib import Path

from cipherbox.config.settings import load_client_config

from .conftest import ENVIRONMENT, LIMIT_S, PROGRAM, first_line, make_hq, shell

FILES, CONNECTIONS = 64, 90


def test_no_room_for_another_file(tmp_path: Path) -> None:
    directory, admin = make_hq(tmp_path)
    host, _, port = load_client_config(admin).address.rpartition(":")
    log = tmp_path / "serve.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*PROGRAM, "serve", str(directory)],
            stdout=subprocess.PIPE,
            stderr=errors,
            env=ENVIRONMENT,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
        )
    held: list[socket.socket] = []
    try:
        assert " listens on " in first_line(process)
        for _ in range(CONNECTIONS):
            held.append(socket.create_connection((host, int(port)), timeout=LIMIT_S))
        waited = shell("status", home=admin)  # until the silent ones are cut
        assert waited.code == 0, waited.err
        assert "could not be accepted" in log.read_text()
        assert process.poll() is None
    finally:
        for one in held:
            one.close()
        process.terminate()
        process.wait(LIMIT_S)
        assert process.stdout is not None
        process.stdout.close()
