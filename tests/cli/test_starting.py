"""What a command imports is what it uses: imports are most of a short command's CPU time."""

from __future__ import annotations

import subprocess
import sys

import pytest

LOCAL = "cipherbox.cli.main, cipherbox.cli.inbox, cipherbox.client.inbox.inspect"
OUTBOX = (
    "cipherbox.cli.main, cipherbox.cli.outbox, cipherbox.client.home, "
    "cipherbox.client.outbox.outbox, cipherbox.client.outbox.folder_files, "
    "cipherbox.client.outbox.transfers"
)
SENDING = "cipherbox.cli.main, cipherbox.cli.send, cipherbox.client.client"
HQ = {"cipherbox.server", "cipherbox.store", "cipherbox.broker", "pg8000", "prometheus_client"}
LATER = {"zxcvbn", "rich", "trio_websocket", "python_socks", "h11", "smtplib", "http", "difflib"}


@pytest.mark.parametrize(
    ("modules", "unused"),
    [
        ("cipherbox.cli.main, cipherbox.cli.completion_texts", {"trio", "attrs", "cryptography"}),
        (LOCAL, HQ | LATER | {"trio", "ssl"}),
        (OUTBOX, HQ | LATER | {"trio"}),
        (SENDING, HQ | LATER),
    ],
    ids=["version", "inbox list", "outbox list", "send"],
)
def test_a_command_imports_only_what_it_uses(modules: str, unused: set[str]) -> None:
    program = f"import sys, {modules}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path[:] = {sys.path!r}\n{program}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert set(done.stdout.split()) & unused == set()
