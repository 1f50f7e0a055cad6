"""The agent: sends what is put into a folder, receives into another, and runs unattended.

    outgoing/CA-RC/scan.tif              to CA-RC;  outgoing/CA-RC+SF-RC/ to both
    outgoing/@lab_reports/labs.all/x     to whoever reads exchange lab_reports with key labs.all,
                                         if the allow-list permits them
    sent/ failed/ refused/               where they are moved; NAME.reason.txt has the reason
    incoming/FL-LAB/scan.tif             received files, each under its name only when complete

Rules.
1. No file ends the agent: an error concerns that file only.
2. A file waits in `outgoing` while the error may be temporary: HQ is unreachable, a person has to
   compare keys, the file cannot be read.
3. Only a file's row in the outbox, written in the transaction of its envelope, decides whether it
   was sent: never a name, a size, a date or this process's memory.
4. Small files that wait for the same recipients share an envelope, oldest first, and by name where
   the time is the same; large ones are sent in parts, a few at a time, and delay no small one.
5. A crash at any instant sends nothing twice and loses nothing.  One agent for each home: its lock
   is held.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.apps.agent import guide
from cipherbox.apps.agent.file_mover import (
    FAILED,
    OUTGOING,
    REFUSED_TO,
    SENT_TO,
    Disposition,
    FileMover,
)
from cipherbox.apps.agent.pauses import Pauses
from cipherbox.apps.agent.scan import Found, Scanner
from cipherbox.apps.agent.sending import MOST_TAKEN, FolderSender
from cipherbox.client.events import SENDER
from cipherbox.client.outbox.folder_files import FolderFiles
from cipherbox.client.outbox.transfers import Transfers
from cipherbox.client.publishing.files import OnProgress
from cipherbox.client.receiving.handler import Handler, Handlers
from cipherbox.client.receiving.receiver import Receiver
from cipherbox.concurrency import Backoff, repeat
from cipherbox.errors import CipherBoxError
from cipherbox.portable import private_dir

if TYPE_CHECKING:
    from cipherbox.client.client import Client

INCOMING = "incoming"
LOOK_S = 1.0
GUIDE_S = 600.0  # between looks for clients that joined meanwhile
GUIDE_RETRY_S = 5.0  # while HQ cannot be asked for them
EMPTY_TIMES = 6  # the settle time: then an empty folder from which everything was sent is removed
ONE_LINE_EACH = 16  # files of one look; more are named as a run


class Agent:
    """See the module.  ``folder`` holds the five folders."""

    def __init__(
        self,
        client: Client,
        folder: Path | str,
        *,
        on_progress: OnProgress | None = None,
        incoming: Path | None = None,
        handler: Handler | None = None,
        ordered: bool = False,
    ) -> None:
        self.client = client
        self.folder = folder = Path(folder)
        self._handler, self._ordered = handler, ordered
        self.sent = 0  # files HQ has
        self.failed = 0
        self.refused = 0  # by their recipients
        incoming = incoming or client.home.config.inbox.incoming or folder / INCOMING
        self.receiver = Receiver(client, incoming=incoming, keep_contents=handler is not None)
        for name in (OUTGOING, SENT_TO, FAILED, REFUSED_TO):
            private_dir(folder / name)
        private_dir(incoming)
        self._events = client.events
        self._reported: set[str] = set()
        self._strays: list[str] = []
        self._outbox_sender = client.outbox()
        self._files = FolderFiles(self._outbox_sender.outbox)
        self._transfers = Transfers(self._outbox_sender.outbox)
        self._pauses = Pauses()
        settings = client.home.config.agent
        self._scanner = Scanner(folder / OUTGOING, settings, self._strays.append)
        self._mover = FileMover(folder, self._scanner.marker)
        self._sender = FolderSender(client, self._pauses, self._fail, self._say, on_progress)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send and receive until cancelled; raise StoreLocked if another receiver uses this home,
        and CredentialsError if HQ rejects the certificate.
        """
        async with trio.open_nursery() as nursery:
            await nursery.start(partial(self.receiver.keep, own_trouble=True))
            guide.write_readme(self.folder / OUTGOING, self.client.home.config.agent)
            nursery.start_soon(self._guide)
            if self._handler is not None:
                nursery.start_soon(self._handle, self._handler)
            task_status.started()
            while True:
                await self._look(nursery)
                await trio.sleep(LOOK_S)

    async def _handle(self, handler: Handler) -> None:
        """Pass each received message and file to the handler."""
        handlers = Handlers(self.client, ordered=self._ordered)
        try:
            await handlers.work(handler, self.receiver)
        finally:
            handlers.close()

    async def _guide(self) -> None:
        """Keep a folder for each client that can be written to, later ones included."""
        client = self.client

        async def make() -> None:
            await client.connection.ready()
            names = [
                str(row["name"])
                for row in await client.list("clients")
                if row["name"] != client.client_id
            ]
            if len(names) > guide.MOST_FOLDERS:
                names = [name for name in names if client.directory.pins.get(name) is not None]
            reachable, _ = await client.directory.reachable(names)
            await trio.to_thread.run_sync(guide.make_folders, self.folder / OUTGOING, reachable)

        await repeat(make, GUIDE_S, backoff=Backoff(GUIDE_RETRY_S, GUIDE_RETRY_S))

    # -- one look ----------------------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        """Move what is settled, take complete files, and move what was refused."""
        if not self._pauses.due(""):
            return
        try:
            self._sender.release()
            taken = await self._settle()
            whole, _ = await trio.to_thread.run_sync(self._scanner.look)
            if self._scanner.empty:
                quiet_s = EMPTY_TIMES * self.client.home.config.agent.settle_s
                await trio.to_thread.run_sync(self._mover.clear, self._scanner.empty, quiet_s)
            for text in self._strays:
                self._say_once(text)
            self._strays.clear()
            if len(taken) < MOST_TAKEN:
                self._sender.start(
                    nursery, [found for found in whole if str(found.file) not in taken]
                )
            await self._go_on(nursery)
            await self._refusals()
            self._pauses.clear("")
        except Exception as error:
            # an error of this machine, such as a full disk; no file ends the agent (rule 1)
            reason = (
                str(error)
                if isinstance(error, CipherBoxError | OSError)
                else f"{type(error).__name__}: {error}"
            )
            if self._pauses.later("", reason):
                self._say(f"{reason}; the agent continues when this is fixed")

    async def _settle(self) -> set[str]:
        """Move settled files; return the files that are not settled."""
        claims = await self._store(self._files.taken)
        assert isinstance(claims, list)
        ends = await trio.to_thread.run_sync(
            self._mover.plan, [c for c in claims if self._pauses.due(c.file)]
        )
        under_way = {claim.file for claim in claims} - {end.claim.file for end in ends}
        if not ends:
            return under_way
        await self._store(
            self._files.plan,
            [(e.claim.number, str(e.target)) for e in ends if e.target is not None],
        )
        with trio.CancelScope(shield=True):  # what was moved is recorded
            await trio.to_thread.run_sync(self._mover.move, ends)
            done = [end for end in ends if not end.trouble]
            await self._store(self._files.settle, [end.row for end in done])
        for end in ends:
            if end.trouble:
                under_way.add(end.claim.file)
                if self._pauses.later(end.claim.file, end.trouble):
                    self._say(f"{end.trouble}; retrying")
            else:
                self._pauses.clear(end.claim.file)
        self._tell(done)
        return under_way

    def _tell(self, ends: list[Disposition]) -> None:
        at_hq = [end for end in ends if end.confirmed]
        self.sent += len(at_hq)
        if len(at_hq) > ONE_LINE_EACH:
            first, last = at_hq[0].name, at_hq[-1].name
            self._events.emit(SENDER, f"{len(at_hq)} files are at HQ: {first} to {last}", mark=True)
        for end in ends:
            if end.confirmed and len(at_hq) <= ONE_LINE_EACH:
                self._events.emit(SENDER, f"{end.name} is at HQ", mark=True)
            if end.changed:
                self._say(
                    f"{end.name} changed while it was sent; it is sent again when it stays as it is"
                )
            if end.failed:
                self.failed += 1
                self._say(f"{end.name} is not sent: {end.reason}; it is in {FAILED}")

    async def _go_on(self, nursery: trio.Nursery) -> None:
        """Resume transfers that no task sends now, wherever their files are."""
        unfinished = await self._store(self._transfers.unfinished)
        assert isinstance(unfinished, list)
        for transfer in unfinished:
            if self._sender.is_free(transfer):
                if Path(transfer.file).is_relative_to(self.folder / OUTGOING):
                    await self._store(
                        self._files.adopt, transfer.number, self._mover.claim_of(transfer)
                    )
                nursery.start_soon(self._sender.resume, transfer)

    async def _refusals(self) -> None:
        """Move what a recipient refused to `refused`, and what it accepted later back to `sent`."""
        for call, to in (
            (self._files.refusals, REFUSED_TO),
            (self._files.taken_after_all, SENT_TO),
        ):
            claims = await self._store(call)
            assert isinstance(claims, list)
            for claim in claims:
                if not self._pauses.due(claim.place):
                    continue
                end = await trio.to_thread.run_sync(self._mover.shift, claim, to)
                if end.trouble:
                    if self._pauses.later(claim.place, end.trouble):
                        self._say(f"{end.trouble}; retrying")
                    continue
                await self._store(self._files.settle, [end.row])
                if to == REFUSED_TO:
                    self.refused += 1
                    self._say(f"{end.name}: {end.reason}; it is in {REFUSED_TO}")
                else:
                    self._events.emit(
                        SENDER, f"{end.name} was taken after all; it is in {SENT_TO}", mark=True
                    )

    # -- for the sender ----------------------------------------------------------------------------

    async def _fail(self, found: Found, error: BaseException) -> None:
        """Move a file that cannot be sent to `failed`, with the reason."""
        reason = (
            str(error) if isinstance(error, CipherBoxError) else f"{type(error).__name__}: {error}"
        )
        trouble = await trio.to_thread.run_sync(self._mover.fail, found, reason)
        name = "/".join(found.path)
        if not trouble:
            self.failed += 1
            self._say(f"{name} is not sent: {reason}; it is in {FAILED}")
        elif self._pauses.later(found.file, trouble):
            self._say(f"{name} is not sent: {reason}; and {trouble}")

    async def _store(self, call: object, *arguments: object) -> object:
        return await self._outbox_sender.store(call, *arguments)  # type: ignore[arg-type]

    def _say(self, text: str) -> None:
        self._events.emit(SENDER, text)

    def _say_once(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._say(text)
