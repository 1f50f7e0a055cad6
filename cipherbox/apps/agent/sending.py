"""Send the files of a folder: small files with the same recipients in one envelope, large ones in
parts.

Temporary errors are retried with a back-off; a file that cannot be sent is passed to ``fail``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.apps.agent.pauses import Pauses
from cipherbox.apps.agent.scan import Destination, Found, state_of
from cipherbox.client.file_types import guess_type
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.origins import FolderFile, Origins
from cipherbox.client.outbox.resealing import waits
from cipherbox.client.outbox.transfers import SENDING, Transfer, Transfers, check_path
from cipherbox.client.publishing.files import FileSender, OnProgress
from cipherbox.client.publishing.splitting import cost, room_for
from cipherbox.client.suggest import with_suggestion
from cipherbox.errors import (
    BundleError,
    CipherBoxError,
    CredentialsError,
    FileChanged,
    FileUnreadable,
    NetworkError,
)
from cipherbox.portable import O_BINARY, is_being_written
from cipherbox.sealing.body import Message, pack

if TYPE_CHECKING:
    from cipherbox.client.client import Client

CONCURRENT = 3  # large files in transfer at a time
SMALL_BYTES = 256 * 1024  # larger files are sent in parts, and resumed after interruptions
BUNDLE_BYTES = 1024 * 1024  # a full envelope, as a publisher's
BUNDLE_FILES = 1000  # more would only delay the first of them
MOST_TAKEN = 10_000  # files in the outbox and not yet moved; the limit for taking more
Fail = Callable[[Found, BaseException], Awaitable[None]]


class FolderSender:
    """See the module."""

    def __init__(
        self,
        client: Client,
        pauses: Pauses,
        fail: Fail,
        say: Callable[[str], None],
        on_progress: OnProgress | None,
    ) -> None:
        self._client, self._pauses, self._fail, self._say = client, pauses, fail, say
        self._on_progress = on_progress
        self._outbox_sender = client.outbox()
        self._transfers = Transfers(self._outbox_sender.outbox)
        self._destinations: set[Destination] = set()  # whose small files are being sent
        self._busy: set[Path] = set()
        self._released: set[Path] = set()  # of these: settled since the last `release`
        self._numbers: set[int] = set()  # of transfers under way
        self._slots = trio.CapacityLimiter(CONCURRENT)

    def release(self) -> None:
        """Release settled files; call it before reading from the outbox what was taken.

        A file settled after that stays busy until the next call.
        """
        self._busy -= self._released
        self._released.clear()

    def start(self, nursery: trio.Nursery, whole: Sequence[Found]) -> None:
        """Start sending what is due; without a connection everything waits in its folder."""
        if self._client.connection.current is None:
            return
        small: dict[Destination, list[Found]] = {}
        for found in whole:
            if (
                found.file in self._busy
                or not self._pauses.due(found.file)
                or not self._pauses.due(found.destination)
            ):
                continue
            if found.state.size <= SMALL_BYTES:
                if found.destination not in self._destinations:
                    small.setdefault(found.destination, []).append(found)
            else:
                self._busy.add(found.file)
                nursery.start_soon(self._large, found)
        for destination, files in small.items():
            self._destinations.add(destination)
            self._busy.update(found.file for found in files)
            nursery.start_soon(self._small, destination, files)

    def is_free(self, transfer: Transfer) -> bool:
        """Return whether no task here sends it, and it may be tried."""
        free = transfer.number not in self._numbers and Path(transfer.file) not in self._busy
        return free and self._pauses.due(transfer.number)

    async def resume(self, transfer: Transfer) -> None:
        """Send the rest of a file."""
        self._numbers.add(transfer.number)
        try:
            async with self._slots:
                now = await self._outbox_sender.store(self._transfers.find, transfer.number)
                if (
                    isinstance(now, Transfer) and now.state == SENDING
                ):  # it may have changed meanwhile
                    await self._send(now)
                self._pauses.clear(transfer.number)
        except CipherBoxError as error:
            _raise_if_permanent(error)
            if self._pauses.later(transfer.number, str(error)):
                self._say(f"{transfer.file} is not sent: {error}")
        finally:
            self._numbers.discard(transfer.number)

    # -- small files -------------------------------------------------------------------------------

    async def _small(self, destination: Destination, files: list[Found]) -> None:
        bundle: list[Found] = []
        try:
            recipients = await self._recipients(destination)
            most = min(
                BUNDLE_BYTES,
                room_for(self._client.connection.window.envelope_bytes, len(recipients)) // 2,
            )
            for bundle in _bundles(files, most):
                await self._outbox_sender.room()
                await self._publish(recipients, bundle)
            self._pauses.clear(destination)
        except CipherBoxError as error:
            _raise_if_permanent(error)
            if _is_temporary(error):
                if self._pauses.later(destination, str(error)):
                    self._say(f"{len(files)} file(s) in {files[0].file.parent} wait: {error}")
            else:
                error = await with_suggestion(self._client, error, destination.recipients)
                for found in bundle or files:
                    await self._fail(found, error)
        except Exception as error:  # affects these files only
            for found in bundle or files:
                await self._fail(found, error)
        finally:
            self._destinations.discard(destination)
            self._released.update(found.file for found in files)

    async def _recipients(self, destination: Destination) -> tuple[str, ...]:
        if destination.recipients:
            await self._client.directory.recipients(destination.recipients)
            return destination.recipients
        return tuple(await self._client.readers(destination.exchange, destination.key))

    async def _publish(self, recipients: tuple[str, ...], bundle: Sequence[Found]) -> None:
        messages: list[Message] = []
        files: list[FolderFile] = []
        read = await trio.to_thread.run_sync(_read_all, bundle)
        for found, one in zip(bundle, read, strict=True):
            if isinstance(one, Message):
                files.append(_claim(found, recipients, len(messages)))
                messages.append(one)
            else:
                await self._failed(found, one)
        if messages:
            destination = PublishOptions.make(to=recipients)
            origins = Origins(files=tuple(files))
            await self._client.publishing.publish_group(
                messages, destination, False, origins=origins
            )

    async def _failed(self, found: Found, error: Exception) -> None:
        """Handle an error of this file alone."""
        if isinstance(error, FileChanged):
            return  # the next scan finds it again
        if isinstance(error, FileUnreadable) or (
            isinstance(error, CipherBoxError) and _is_temporary(error)
        ):
            if self._pauses.later(found.file, str(error)):
                self._say(f"{error}; it waits and is tried again")
            return
        await self._fail(found, error)

    # -- large files -------------------------------------------------------------------------------

    async def _large(self, found: Found) -> None:
        number = 0
        try:
            async with self._slots:
                recipients = await self._recipients(found.destination)
                await trio.to_thread.run_sync(_check, found)
                transfer = await self._begin(found, recipients)
                number = transfer.number
                self._numbers.add(number)
                await self._send(transfer)
                self._pauses.clear(found.file)
        except FileChanged as error:
            self._say(f"{error}; it is sent when it stays as it is")
        except CipherBoxError as error:
            _raise_if_permanent(error)
            # otherwise its failure is recorded, and the next scan moves it
            if not number and not _is_temporary(error):
                error = await with_suggestion(self._client, error, found.destination.recipients)
            if not number or _is_temporary(error):
                await self._failed(found, error)
        except Exception as error:  # affects this file only
            await self._fail(found, error)
        finally:
            self._released.add(found.file)
            self._numbers.discard(number)

    async def _begin(self, found: Found, recipients: tuple[str, ...]) -> Transfer:
        claim = _claim(found, recipients, 0)
        begin = self._transfers.begin
        made = await self._outbox_sender.store(
            lambda: begin(
                found.file,
                found.path,
                recipients,
                guess_type(found.file),
                compress=False,
                copy=False,
                claim=claim,
            )
        )
        assert isinstance(made, Transfer)
        return made

    async def _send(self, transfer: Transfer) -> None:
        await FileSender(self._client, transfer, patient=True, on_progress=self._on_progress).run()


def _is_temporary(error: CipherBoxError) -> bool:
    """Return whether the same file may be sent later: HQ is unreachable, or a person has to compare
    keys or permit a recipient.
    """
    return waits(error) or isinstance(error, BundleError | NetworkError)


def _raise_if_permanent(error: CipherBoxError) -> None:
    """Raise a permanent error of this client's certificate, which stops the agent."""
    if isinstance(error, CredentialsError) and not error.retryable:
        raise error


def _bundles(files: Sequence[Found], most: int) -> Iterator[list[Found]]:
    """Yield runs that fit into one envelope each, in order."""
    run: list[Found] = []
    size = 0
    for found in files:
        one = found.state.size + 1024 + 4 * sum(map(len, found.path))
        if run and (size + one > most or len(run) >= BUNDLE_FILES):
            yield run
            run, size = [], 0
        run.append(found)
        size += one
    if run:
        yield run


def _claim(found: Found, recipients: tuple[str, ...], message: int) -> FolderFile:
    return FolderFile(str(found.file), found.path, recipients, *found.state, message)


def _read_all(files: Sequence[Found]) -> list[Message | Exception]:
    return [_read(found) for found in files]


def _read(found: Found) -> Message | Exception:
    """Return a small file as a message, or the error that prevents it."""
    try:
        fd = _open(found)
        try:
            with open(fd, "rb", closefd=False) as file:
                data = file.read(found.state.size + 1)
            if state_of(os.fstat(fd)) != found.state or len(data) != found.state.size:
                raise FileChanged(f"{found.file} changed while it was read")
        finally:
            os.close(fd)
        message = file_message(found.path, data, guess_type(found.file), found.state.modified_ns)
        pack([message])
        cost(message)
        return message
    except Exception as error:
        return error


def _check(found: Found) -> None:
    os.close(_open(found))


def _open(found: Found) -> int:
    """Return a descriptor of the file, unchanged since the scan; raise FileUnreadable, FileChanged,
    or FileError for its name.
    """
    check_path(found.file, found.path)
    try:
        fd = os.open(
            found.file,
            os.O_RDONLY | O_BINARY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0),
        )
    except FileNotFoundError:
        raise FileChanged(f"{found.file} vanished") from None
    except OSError as error:
        raise FileUnreadable(f"{found.file} cannot be read: {error.strerror}") from None
    try:
        now = os.fstat(fd)
        if state_of(now) != found.state or not stat.S_ISREG(now.st_mode):
            raise FileChanged(f"{found.file} changed")
        if is_being_written(fd):
            raise FileUnreadable(f"{found.file} is being written by a program")
    except BaseException:
        os.close(fd)
        raise
    return fd


def file_message(
    path: Sequence[str], content: bytes, content_type: str, modified_ns: int
) -> Message:
    """Return a file as a message; the header `filename` has its path, separated by "/"."""
    headers = {"filename": "/".join(path), "modified_at": str(max(0, modified_ns // 1_000_000))}
    return Message(content, content_type, headers)
