"""The agent: sends what is put into a folder, receives into another, and never gives up.

    outgoing/CA-RC/scan.tif              to CA-RC;  outgoing/CA-RC+SF-RC/ to both
    outgoing/@lab_reports/labs.all/x     to whoever reads exchange lab_reports with key labs.all, if the allow-list
                                         permits them
    sent/ failed/                        where they go; beside a failed one lies NAME.reason.txt
    incoming/FL-LAB/scan.tif             what came, each under its name only when it is whole

A file is taken when its size and time did not change for `SETTLE_S`; names that begin with a dot or end like a download
under way are left alone.  It is moved to `sent` when HQ has all of it.  A crash in between sends nothing twice: the
outbox knows the file by its path, size and time, and goes on where it was.  One agent for each home: its lock is held.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import trio

from cipherbox.client.events import SENDER
from cipherbox.client.files import FileSender, OnProgress, guess_type
from cipherbox.client.inbox.receiver import Receiver
from cipherbox.client.outbox.transfers import SENDING, Transfer, Transfers
from cipherbox.errors import CipherBoxError, CredentialsError, FileChanged, InvalidRequest, StoreError
from cipherbox.limits import check_client_id, check_name
from cipherbox.portable import private_dir, write_private

if TYPE_CHECKING:
    from cipherbox.client.api import Client

OUTGOING, SENT_TO, FAILED, INCOMING = "outgoing", "sent", "failed", "incoming"
SETTLE_S = 2.0
LOOK_S = 1.0
AT_ONCE = 3  # files under way at once, so that a large one does not hold up the small
PAUSE_MAX_S = 60.0
_UNDER_WAY = (".part", ".partial", ".tmp", ".crdownload", ".filepart", "~")


class Address(NamedTuple):
    """Where a folder's files go: recipients, or an exchange and its key."""

    recipients: tuple[str, ...]
    exchange: str = ""
    key: str = ""


class Found(NamedTuple):
    """A file in `outgoing`; ``path`` is what the recipients see."""

    file: Path
    path: tuple[str, ...]
    address: Address
    state: tuple[int, int]  # size, time


class Agent:
    """See the module.  ``folder`` holds the four folders."""

    def __init__(self, client: Client, folder: Path, *, on_progress: OnProgress | None = None) -> None:
        self.client, self.folder = client, folder
        self.sent = 0  # files HQ has
        self.failed = 0
        self.receiver = Receiver(client, incoming=folder / INCOMING)
        self._on_progress = on_progress
        self._events = client.events
        self._seen: dict[Path, tuple[tuple[int, int], float]] = {}
        self._busy: set[Path] = set()
        self._told: set[str] = set()
        self._slots = trio.CapacityLimiter(AT_ONCE)
        for name in (OUTGOING, SENT_TO, FAILED, INCOMING):
            private_dir(folder / name)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled.  StoreLocked when another receiver uses this home; CredentialsError when HQ shuts it out."""
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(self.receiver.keep, own_trouble=True))
            await self._resume(nursery)
            task_status.started()
            while True:
                for found in self._ready():
                    self._busy.add(found.file)
                    nursery.start_soon(self._send, found)
                await trio.sleep(LOOK_S)

    # -- outgoing -----------------------------------------------------------------------------------------------

    def _ready(self) -> list[Found]:
        """Files that have been still for a while."""
        now = trio.current_time()
        ready = []
        seen: dict[Path, tuple[tuple[int, int], float]] = {}
        for found in self._files():
            before = self._seen.get(found.file)
            since = before[1] if before is not None and before[0] == found.state else now
            seen[found.file] = (found.state, since)
            if now - since >= SETTLE_S and found.file not in self._busy:
                ready.append(found)
        self._seen = seen
        return ready

    def _files(self) -> Iterator[Found]:
        top = self.folder / OUTGOING
        for folder in _directories(top):
            if folder.name.startswith("@"):
                for inner in _directories(folder):
                    yield from self._below(inner, folder.name[1:], inner.name)
            else:
                yield from self._below(folder, "", "")

    def _below(self, folder: Path, exchange: str, key: str) -> Iterator[Found]:
        try:
            if exchange:
                address = Address((), check_name(exchange, "exchange name"), check_name(key, "routing key"))
            else:
                address = Address(tuple(check_client_id(name) for name in folder.name.split("+")))
        except InvalidRequest as error:
            self._tell_once(f"{folder} leads nowhere: {error}")
            return
        for directory, names, files in os.walk(folder):
            names[:] = sorted(name for name in names if not name.startswith("."))
            for name in sorted(files):
                file = Path(directory, name)
                if name.startswith(".") or name.lower().endswith(_UNDER_WAY) or file.is_symlink():
                    continue
                try:
                    stat = file.stat()
                except OSError:
                    continue
                yield Found(file, file.relative_to(folder).parts, address, (stat.st_size, stat.st_mtime_ns))

    async def _send(self, found: Found) -> None:
        try:
            async with self._slots:
                transfer = await self._taken(found)
                if transfer.state == SENDING:
                    sender = FileSender(self.client, transfer, patient=True, on_progress=self._on_progress)
                    await sender.run()
                self._move(found.file, SENT_TO)
                self.sent += 1
                self._events.say(SENDER, f"{'/'.join(found.path)} is at HQ", mark=True)
        except FileChanged as error:
            self._events.say(SENDER, f"{error}; it is sent when it stays as it is")
        except StoreError as error:
            self._events.say(SENDER, f"{error}")
            await trio.sleep(PAUSE_MAX_S / 4)
        except CredentialsError:
            raise
        except CipherBoxError as error:
            self._fail(found, error)
        finally:
            self._busy.discard(found.file)
            self._seen.pop(found.file, None)

    async def _taken(self, found: Found) -> Transfer:
        """The transfer of this very file, if it was begun before; else a new one."""
        post = self.client.outbox()
        transfers = Transfers(post.outbox)
        before = await post.store(transfers.of_file, str(found.file), *found.state)
        if isinstance(before, Transfer):
            return before
        address = found.address
        recipients = address.recipients or tuple(await self.client.readers(address.exchange, address.key))
        made = await post.store(
            lambda: transfers.begin(
                found.file, found.path, recipients, guess_type(found.file), compress=False, copy=False
            )
        )
        assert isinstance(made, Transfer)
        return made

    async def _resume(self, nursery: trio.Nursery) -> None:
        """Files begun by other commands of this home, wherever they lie."""
        post = self.client.outbox()
        unfinished = await post.store(Transfers(post.outbox).unfinished)
        assert isinstance(unfinished, list)
        outgoing = self.folder / OUTGOING
        for transfer in unfinished:
            if not Path(transfer.file).is_relative_to(outgoing):
                nursery.start_soon(self._go_on, transfer)

    async def _go_on(self, transfer: Transfer) -> None:
        async with self._slots:
            try:
                await FileSender(self.client, transfer, patient=True, on_progress=self._on_progress).run()
                self._events.say(SENDER, f"{'/'.join(transfer.path)} is at HQ", mark=True)
            except CredentialsError:
                raise
            except CipherBoxError as error:
                self._events.say(SENDER, f"{transfer.file} is not sent: {error}")

    # -- moving -------------------------------------------------------------------------------------------------

    def _fail(self, found: Found, error: CipherBoxError) -> None:
        self.failed += 1
        self._events.say(SENDER, f"{'/'.join(found.path)} is not sent: {error}; it is in {FAILED}")
        moved = self._move(found.file, FAILED)
        if moved is not None:
            write_private(moved.with_name(f"{moved.name}.reason.txt"), f"{error}\n".encode())

    def _move(self, file: Path, where: str) -> Path | None:
        target = self.folder / where / file.relative_to(self.folder / OUTGOING)
        try:
            private_dir(target.parent)
            number = 1
            while os.path.lexists(target):
                number += 1
                target = target.with_name(f"{file.stem} ({number}){file.suffix}")
            os.rename(file, target)
        except OSError as error:
            self._events.say(SENDER, f"{file} cannot be moved to {target.parent}: {error.strerror}")
            return None
        return target

    def _tell_once(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._events.say(SENDER, text)


def _directories(folder: Path) -> list[Path]:
    try:
        return sorted(Path(e.path) for e in os.scandir(folder) if e.is_dir() and not e.name.startswith("."))
    except OSError:
        return []
