"""Send files of any size: their parts through a bounded window, then the manifest.

A part is read, hashed and compressed in a thread while the one before is sealed; at most
`parts_in_flight` are unconfirmed.  Each confirmed part is recorded, so an interruption costs only
the parts in flight.  The file must not change: its size and time are compared at every part, and a
change stops the transfer permanently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import attrs
import trio

from cipherbox.checks import checked
from cipherbox.client.connection.confirm_window import PendingPublish
from cipherbox.client.events import SENDER
from cipherbox.client.options import PublishOptions, stanza_type
from cipherbox.client.outbox.resealing import waits
from cipherbox.client.outbox.rows import CONFIRMED, WAITING
from cipherbox.client.outbox.transfers import SENT, STOPPED, Transfer, Transfers
from cipherbox.client.publishing.calls import PublishingCalls
from cipherbox.client.publishing.parts import Entry, Manifest, manifest_message, part_message
from cipherbox.client.publishing.publish import Confirmation
from cipherbox.client.publishing.sealer import ResolvedRoute
from cipherbox.client.publishing.sources import Source, open_source
from cipherbox.concurrency import Signal, background
from cipherbox.envelope.stanza_types import StanzaType
from cipherbox.errors import (
    CipherBoxError,
    FileChanged,
    FileError,
    InvalidRequest,
    Queued,
    refused_recipients,
)
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import pack

_RECORD = 16  # confirmed parts of one transaction
_AHEAD = 2  # parts read ahead
_LOOK_S = 0.5
OnProgress = Callable[[Transfer, int], None]  # bytes that HQ has


class _Read(NamedTuple):
    part: int
    digest: bytes
    plain: bytes  # the packed message
    size: int


class FileSender:
    """Sends one file.  ``patient``: wait for HQ without limit; else raise Queued when HQ is
    unreachable.
    """

    def __init__(
        self,
        client: PublishingCalls,
        transfer: Transfer,
        *,
        patient: bool = False,
        on_progress: OnProgress | None = None,
    ) -> None:
        self._client, self._transfer, self._patient = client, transfer, patient
        self._on_progress = on_progress
        self._outbox_sender = client.outbox()
        self._transfers = Transfers(self._outbox_sender.outbox)
        self._in_flight = 0
        self._done: list[tuple[int, bytes, bytes, int]] = []
        self._done_bytes = 0
        self._hashes: dict[int, bytes] = {}
        self._failure: CipherBoxError | None = None
        self._changed = Signal()

    async def run(self) -> Confirmation:
        """Send every part and the manifest; return the manifest's confirmation.

        Raise FileChanged or HQ's refusal, which stop the transfer, or Queued: it continues later.
        Recipients that HQ refuses are left out while others remain, and are in `missing`.
        """
        missing: tuple[str, ...] = ()
        try:
            while True:
                try:
                    return attrs.evolve(await self._run(), missing=missing)
                except CipherBoxError as error:
                    refused = await self._leave_out(error)
                    if not refused:
                        raise
                    missing += refused
        except CipherBoxError as error:
            if not waits(error):
                reason = str(error)
                await self._outbox_sender.store(
                    lambda: self._transfers.finish(self._transfer, STOPPED, reason=reason)
                )
            raise

    async def _leave_out(self, error: CipherBoxError) -> tuple[str, ...]:
        """Leave out the recipients that HQ or the directory refuses, and return them; none if no
        others remain.
        """
        transfer = self._transfer
        refused = tuple(name for name in transfer.recipients if name in refused_recipients(error))
        left = tuple(name for name in transfer.recipients if name not in refused)
        if not refused or not left:
            return ()
        while self._in_flight:  # HQ says the same of these
            self._give_up()
            with trio.move_on_after(_LOOK_S):
                await self._changed.wait()
        self._failure = None
        self._transfer = attrs.evolve(transfer, recipients=left)
        await self._outbox_sender.store(self._transfers.leave_out, self._transfer)
        what = f"{error}; {'/'.join(transfer.path)} goes to {', '.join(left)}"
        self._client.events.emit(SENDER, what)
        return refused

    async def _run(self) -> Confirmation:
        transfer, client = self._transfer, self._client
        hashes = await self._outbox_sender.store(self._transfers.hashes, transfer.number)
        self._hashes = hashes
        self._done_bytes = sum(_size(transfer, part) for part in hashes)
        self._tell()
        options = PublishOptions.make(
            to=transfer.recipients, box="bulk", stanza=transfer.stanza or None
        )
        route = await client.sealer.resolve_route(options)
        source = open_source(transfer, client.home.secret_box.content_box)
        try:
            async with background() as nursery:
                send, receive = trio.open_memory_channel[_Read](_AHEAD)
                nursery.start_soon(self._read_all, source, send)
                async for one in receive:
                    await self._send(options, route, one)
                await self._until(lambda: not self._in_flight)
            modified_ns = source.check()
        finally:
            source.close()
            await self._record()
        manifest = Manifest(
            transfer.id,
            transfer.path,
            transfer.size,
            transfer.part_bytes,
            tuple(self._hashes[part] for part in range(transfer.parts)),
            max(0, modified_ns // 1_000_000),
            transfer.content_type,
            tuple(
                Entry(one.path, one.size, max(0, one.modified_ns // 1_000_000))
                for one in transfer.entries
            ),
        )
        message = manifest_message(manifest)
        kept = await client.publish(
            [message],
            to=list(transfer.recipients),
            box="bulk",
            stanza=transfer.stanza or None,
            wait=False,
        )
        await self._outbox_sender.store(
            lambda: self._transfers.finish(transfer, SENT, manifest=kept.envelope_id)
        )
        return await self._confirmed(kept)

    async def _confirmed(self, kept: Confirmation) -> Confirmation:
        """Return the confirmation of the manifest, which the outbox keeps."""
        while True:
            written = self._outbox_sender.written.next()
            row = await self._outbox_sender.store(self._outbox_sender.outbox.find, kept.envelope_id)
            if row is not None and row.state != WAITING:
                if row.state != CONFIRMED:
                    raise FileError(
                        f"HQ refused the manifest of {self._transfer.file}: {row.reason}"
                    )
                return Confirmation(row.accepted_at, row.queues, (), False, kept.envelopes)
            self._give_up()
            with trio.move_on_after(_LOOK_S):  # another process may have sent it
                await written.wait()

    # -- parts -------------------------------------------------------------------------------------

    async def _read_all(self, source: Source, out: trio.MemorySendChannel[_Read]) -> None:
        before = dict(self._hashes)  # what HQ had of it already must be of this very content
        async with out:
            for part in range(self._transfer.parts):
                try:
                    one = await trio.to_thread.run_sync(self._read, source, part)
                    if part not in before:
                        await out.send(one)
                    elif one.digest != before[part]:
                        raise FileChanged(
                            f"{self._transfer.file} is not the file whose first parts HQ has"
                        )
                except CipherBoxError as error:
                    self._fail(error)
                    return

    def _read(self, source: Source, part: int) -> _Read:
        transfer = self._transfer
        size = _size(transfer, part)
        try:
            data = source.read(size, part * transfer.part_bytes)
        except OSError as error:
            raise FileError(f"{transfer.file} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise FileChanged(f"{transfer.file} became shorter while it was sent")
        if not transfer.entries:
            source.check()  # a directory's files were looked at as they were read
        message = part_message(
            transfer.id, part, transfer.part_bytes, data, compress=transfer.compress
        )
        return _Read(part, hashlib.sha256(data).digest(), pack([message]), size)

    async def _send(self, options: PublishOptions, route: ResolvedRoute, one: _Read) -> None:
        await self._until(lambda: self._in_flight < LIMITS.parts_in_flight)

        def settled(item: PendingPublish) -> None:
            self._in_flight -= 1
            if item.error is not None:
                self._fail(item.error)
            else:
                self._hashes[one.part] = one.digest
                self._done.append((one.part, one.digest, item.envelope_id, one.size))
                self._done_bytes += one.size
                self._tell()
            self._wake()

        item = self._client.sealer.seal(options, route, one.plain, 1, settled, keep=False)
        self._in_flight += 1
        self._outbox_sender.add(item)
        if len(self._done) >= _RECORD:
            await self._record()

    async def _record(self) -> None:
        done, self._done = self._done, []
        if done:
            with trio.CancelScope(shield=True):
                await self._outbox_sender.store(
                    self._transfers.confirmed, self._transfer.number, done
                )

    async def _until(self, so: Callable[[], bool]) -> None:
        while not so():
            if self._failure is not None:
                raise self._failure
            self._give_up()
            with trio.move_on_after(_LOOK_S):
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure

    def _give_up(self) -> None:
        connection = self._client.connection
        if connection.failure is not None:
            raise connection.failure
        if connection.away and not self._patient:
            transfer = self._transfer
            raise Queued(
                f"HQ cannot be reached ({connection.trouble}). It has {self._done_bytes} of the "
                f"{transfer.size} bytes of {transfer.file}; the rest is sent with the next "
                "command, or automatically while `cipherbox agent` runs"
            )

    def _fail(self, error: CipherBoxError) -> None:
        self._failure = self._failure or error
        self._wake()

    def _tell(self) -> None:
        if self._on_progress is not None:
            self._on_progress(self._transfer, self._done_bytes)

    def _wake(self) -> None:
        self._changed.notify()


@checked
async def send_file(
    client: PublishingCalls,
    file: Path | str,
    path: Sequence[str],
    recipients: Sequence[str],
    content_type: str,
    *,
    compress: bool = False,
    copy: bool = False,
    stanza: int | str | None = None,
    patient: bool = False,
    on_progress: OnProgress | None = None,
) -> Confirmation:
    """Take a file into the outbox and send it; see `FileSender.run`.  ``path``: the names the
    recipients see.
    """
    kind = int(stanza_type(stanza) or 0)
    if kind == StanzaType.RATCHET:
        raise InvalidRequest(
            "sessions are for messages", remedy="send a file without stanza 'ratchet'"
        )
    outbox_sender, file = client.outbox(), Path(file)
    transfers = Transfers(outbox_sender.outbox)
    transfer = await outbox_sender.store(
        lambda: transfers.begin(
            file, path, recipients, content_type, compress=compress, copy=copy, stanza=kind
        )
    )
    client.events.emit(
        SENDER, f"Sending {'/'.join(path)}, {transfer.size} bytes in {transfer.parts} parts"
    )
    return await FileSender(client, transfer, patient=patient, on_progress=on_progress).run()


@checked
async def send_directory(
    client: PublishingCalls,
    folder: Path | str,
    recipients: Sequence[str],
    *,
    compress: bool = False,
    copy: bool = False,
    stanza: int | str | None = None,
    patient: bool = False,
    on_progress: OnProgress | None = None,
) -> Confirmation:
    """Send a directory with all its files as a unit, as `send_file` sends a file."""
    kind = int(stanza_type(stanza) or 0)
    if kind == StanzaType.RATCHET:
        raise InvalidRequest(
            "sessions are for messages", remedy="send a directory without stanza 'ratchet'"
        )
    outbox_sender, folder = client.outbox(), Path(folder)
    transfers = Transfers(outbox_sender.outbox)
    transfer = await outbox_sender.store(
        lambda: transfers.begin_directory(
            folder, recipients, compress=compress, copy=copy, stanza=kind
        )
    )
    client.events.emit(
        SENDER, f"Sending {transfer.path[0]}, {len(transfer.entries)} files, {transfer.size} bytes"
    )
    return await FileSender(client, transfer, patient=patient, on_progress=on_progress).run()


async def send_unfinished(
    client: PublishingCalls, *, patient: bool = False, on_progress: OnProgress | None = None
) -> list[CipherBoxError]:
    """Resume every unfinished transfer; return the errors of those that were stopped."""
    outbox_sender = client.outbox()
    transfers = Transfers(outbox_sender.outbox)
    unfinished = await outbox_sender.store(transfers.unfinished)
    stopped: list[CipherBoxError] = []
    for transfer in unfinished:
        try:
            await FileSender(client, transfer, patient=patient, on_progress=on_progress).run()
        except FileError as error:
            stopped.append(error)
    return stopped


def _size(transfer: Transfer, part: int) -> int:
    return min(transfer.part_bytes, transfer.size - part * transfer.part_bytes)
