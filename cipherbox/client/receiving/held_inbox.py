"""A home's inbox held open: its lock, what is written into it, and files that get their names
beside.

`receiver` decides what goes in.  Others of this home wait a little for the lock, and are told who
has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from cipherbox.client.events import RECEIVER
from cipherbox.client.home import LOCK, keyless
from cipherbox.client.inbox.completion import Completion
from cipherbox.client.inbox.content_types import Recording, recording_of
from cipherbox.client.inbox.inbox import Inbox, Storing
from cipherbox.client.inbox.incoming_files import Arrived
from cipherbox.client.inbox.lines import Received
from cipherbox.client.inbox.schema import LINES
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.sessions.receiving_chains import Heard
from cipherbox.errors import CipherBoxError, EnvelopeError, StoreLocked
from cipherbox.portable import lock_file

if TYPE_CHECKING:
    from cipherbox.client.receiving.ports import ReceivingClient

PATIENCE_S = 0.5  # for the lock
OnLines = Callable[[list[bytes]], None]


class HeldInbox:
    """See the module."""

    def __init__(
        self,
        client: ReceivingClient,
        on_lines: OnLines | None,
        incoming: Path | None,
        keep_contents: bool,
    ) -> None:
        self.client = client
        self.storing = Storing.of(client.home, incoming)
        self.received = 0  # messages recorded, and files that are whole
        self.files = 0  # of these: files
        self._keep_contents = keep_contents
        self._home = client.home.path
        self._events = client.events
        self._on_lines = on_lines
        self._inbox: Inbox | None = None
        self._completing: Completion | None = None
        self._owed: PendingReceipts | None = None
        self._locked = False
        self._coming = 0  # messages that are files and not whole yet
        self._moved = trio.Event()
        self._failure: CipherBoxError | None = None
        # what could not be recorded, to be refused
        self._failed: dict[tuple[str, bytes], EnvelopeError] = {}

    async def lock_free(self) -> None:
        """Waits a little until nobody else holds the lock: a conversation does so for a moment
        at a time.
        """
        end = trio.current_time() + PATIENCE_S
        while trio.current_time() < end:
            try:
                with self.locked():
                    return
            except StoreLocked:
                await trio.sleep(PATIENCE_S / 20)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the home's lock; within it, `run`, `drain` and `take` do not take it again."""
        if self._locked:
            yield
            return
        with lock_file(self._home / LOCK, f"the inbox in {self._home}"):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    @contextmanager
    def _opened(self) -> Iterator[Inbox]:
        if self.client.home.identity is None:
            raise keyless()
        with self.locked():

            def was_cut(cut: int) -> None:
                text = f"{cut} bytes that this inbox had not recorded were cut off {LINES}"
                self._events.say(RECEIVER, f"{text}; messages of an interrupted step come again")

            sessions = self.client.sessions
            inbox = Inbox(
                self._home,
                was_cut,
                self.storing,
                keep_contents=self._keep_contents,
                sessions=sessions,
                say=lambda text: self._events.say(RECEIVER, text),
            )
            self._inbox = inbox
            self._completing = Completion(inbox, self._tell)
            self._coming = 0
            try:
                self._owed = PendingReceipts(self.client)
                yield inbox
            finally:
                self._inbox = self._completing = None
                inbox.close()
                if sessions is not None:
                    sessions.unheard()
                if self._owed is not None:
                    self._owed.close()
                    self._owed = None

    @property
    def _completes(self) -> bool:
        return self._completing is not None and self._completing.busy

    async def _record(self, new: list[Received], heard: Heard | None) -> None:
        if not new:
            return
        inbox = self._inbox
        assert inbox is not None
        assert self._completing is not None
        lines = None
        try:
            lines = await self._completing.on_disk(inbox.record, new, heard)
        except Exception as error:
            if fault_of(error) is not Fault.SENDER:
                raise
        # outside of that block: the error keeps what was in memory when it was raised
        if lines is None:
            new, lines = await self._record_each(new, heard)
        if heard is not None and self.client.sessions is not None:
            self.client.sessions.recorded(heard)
        if self._owed is not None:
            self._owed.came()
        for one in new:
            if recording_of(one) is Recording.LINES:
                files = inbox.file_counts.get((one.sender, one.envelope_id), 0)
                self._coming += files
                self.received += len(one.messages) - files
                if len(one.messages) > files:
                    where = (
                        f"Stored {{}} in {LINES}"
                        if self.storing.plain
                        else "Stored {} under this home's key"
                    )
                    text = "Kept {} for the handler" if self._keep_contents else where
                    self._events.messages(RECEIVER, text, one.envelope_id, len(one.messages))
        if self._on_lines is not None and lines:
            self._on_lines(lines)
        self._completing.came()

    async def _record_each(
        self, new: list[Received], heard: Heard | None
    ) -> tuple[list[Received], list[bytes]]:
        """One of them cannot be recorded, by its sender's fault: each by itself, and that one is
        left in `_failed`.
        """
        assert self._inbox is not None
        assert self._completing is not None
        recorded: list[Received] = []
        lines: list[bytes] = []
        for one in new:
            try:
                lines += await self._completing.on_disk(self._inbox.record, [one], heard)
                recorded.append(one)
                heard = None
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                self._failed[one.sender, one.envelope_id] = refusal(error)
        return recorded, lines

    async def _complete(self) -> None:
        assert self._completing is not None
        try:
            await self._completing.run()
        except CipherBoxError as error:
            self._failure = self._failure or error
            self._move()

    async def _complete_now(self) -> None:
        assert self._completing is not None
        await self._completing.complete()

    def _tell(self, arrived: list[Arrived]) -> None:
        for one in arrived:
            self.files += 1
            self.received += 1
            self._coming -= one.whole
            where = one.file or "kept under this home's key; cipherbox inbox save writes it"
            text = f"{one.filename} from {one.sender} is whole, {one.size} bytes: {where}"
            self._events.say(RECEIVER, text, mark=True)
        if arrived and self._owed is not None:
            self._owed.came()
        if arrived and self._on_lines is not None:
            self._on_lines([one.line for one in arrived])
        self._move()

    def _move(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
