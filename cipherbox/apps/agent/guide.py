"""Prepare `outgoing` for people: a folder for each client, and a short README."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cipherbox.apps.agent.scan import README
from cipherbox.config.toml_file import AgentSettings
from cipherbox.errors import InvalidRequest
from cipherbox.limits import check_client_id
from cipherbox.portable import private_dir, write_atomic

MOST_FOLDERS = 256  # with more clients, only those pinned here get a folder
_TEXT = """\
Files that you put into a folder here are sealed on this machine and sent.

CA-RC/                only CA-RC can open what you put there
CA-RC+SF-RC/          both of them can
@EXCHANGE/KEY/        whoever reads that route can, if this machine's allow-list permits them

{when}
What HQ has is moved to sent/, what cannot be sent to failed/, what a recipient
refused to refused/. Beside a file in failed/ or refused/ lies NAME.reason.txt.
To send a file again, move it back.

Left alone: hidden files, Thumbs.db, desktop.ini, and names like ~$x, x~, x.part,
x.tmp{ignored}.
"""


def write_readme(top: Path, settings: AgentSettings) -> None:
    """Write the README unless it is up to date."""
    if settings.marker:
        when = (
            f"A file is sent when a file NAME{settings.marker} stands beside it, and no program "
            "writes it any more."
        )
    else:
        when = (
            f"A file is sent when it has not changed for {settings.settle_s:g} seconds, and no "
            "program writes it."
        )
    ignored = f", {settings.ignore}" if settings.ignore else ""
    text = _TEXT.format(when=when, ignored=ignored).encode()
    path = top / README
    with suppress(OSError):
        if path.exists() and path.read_bytes() == text:
            return
        write_atomic(path, text)


def make_folders(top: Path, client_ids: Sequence[str]) -> None:
    """Make the missing folders.  HQ supplies the names, so anything but a client id is ignored."""
    for name in client_ids[:MOST_FOLDERS]:
        with suppress(OSError, InvalidRequest):
            private_dir(top / check_client_id(name))
