"""`send` for directories and for files sent in parts: selection, sending, progress."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cipherbox.limits import LIMITS

if TYPE_CHECKING:
    from cipherbox.client.client import Client
    from cipherbox.client.outbox.transfers import Transfer
    from cipherbox.client.publishing.files import OnProgress
    from cipherbox.client.publishing.publish import Confirmation

_TENTH = 10  # plain progress: a line for each tenth


def in_parts(path: Path) -> bool:
    """Return whether this is sent in parts: a directory, or a file too large for a message.  Raise
    FileError for a pipe, a device, or a name that recipients could not store.
    """
    from cipherbox.client.outbox.transfers import check_file, check_path, entries_of

    if path.is_dir():
        entries_of(path.resolve())  # before the first of them is sent
        return True
    check_path(path, (path.name,))
    return check_file(path).st_size > LIMITS.file_from_bytes


async def send_all(
    client: Client,
    paths: Sequence[Path],
    recipients: Sequence[str],
    kind: str,
    *,
    compress: bool,
    copy: bool,
    stanza: str | None,
    on_progress: OnProgress,
) -> list[Confirmation]:
    """Send the paths one after the other, each directory as a unit.  Return the confirmations of
    the manifests.
    """
    from cipherbox.client.file_types import guess_type
    from cipherbox.client.publishing.files import send_directory, send_file

    done = []
    for path in paths:
        if path.is_dir():
            done.append(
                await send_directory(
                    client,
                    path,
                    recipients,
                    compress=compress,
                    copy=copy,
                    stanza=stanza,
                    on_progress=on_progress,
                )
            )
            continue
        done.append(
            await send_file(
                client,
                path,
                (path.name,),
                recipients,
                kind or guess_type(path),
                compress=compress,
                copy=copy,
                stanza=stanza,
                on_progress=on_progress,
            )
        )
    return done


@contextmanager
def progress(*, quiet: bool = False) -> Iterator[OnProgress]:
    """Show a progress bar for each file on a terminal; elsewhere print a line for each tenth."""
    if quiet:
        yield lambda transfer, done: None
    elif sys.stderr.isatty():
        with _bars() as bars:
            yield bars
    else:
        yield _Lines()


@contextmanager
def _bars() -> Iterator[OnProgress]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.progress import TransferSpeedColumn as Speed

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        Speed(),
        TimeRemainingColumn(),
    )
    tasks: dict[int, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True)) as shown:

        def update(transfer: Transfer, done: int) -> None:
            from cipherbox.portable import escape_text

            if transfer.number not in tasks:
                tasks[transfer.number] = shown.add_task(
                    escape_text("/".join(transfer.path)), total=transfer.size
                )
            shown.update(tasks[transfer.number], completed=done)

        yield update


class _Lines:
    def __init__(self) -> None:
        self._printed: dict[int, int] = {}

    def __call__(self, transfer: Transfer, done: int) -> None:
        from cipherbox.cli.output import size_text, warn
        from cipherbox.portable import escape_text

        tenth = _TENTH * done // transfer.size if transfer.size else _TENTH
        if tenth > self._printed.get(transfer.number, -1):
            self._printed[transfer.number] = tenth
            name = escape_text("/".join(transfer.path))
            warn(
                f"{name}: {tenth * 100 // _TENTH} %, {size_text(done)} of "
                f"{size_text(transfer.size)} at HQ"
            )
