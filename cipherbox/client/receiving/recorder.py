"""Record opened envelopes in an open inbox, and complete files beside.

An envelope that cannot be recorded by its sender's fault does not end the others of its batch: each
is then recorded alone, and that one is returned with its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from cipherbox.client.events import RECEIVER, Events
from cipherbox.client.home import keyless
from cipherbox.client.inbox.completion import Completion
from cipherbox.client.inbox.content_types import Recording, recording_of
from cipherbox.client.inbox.inbox import Inbox, InboxStorage
from cipherbox.client.inbox.incoming_files import Arrived
from cipherbox.client.inbox.lines import Received
from cipherbox.client.inbox.schema import LINES
from cipherbox.client.receiving.faults import Fault, fault_of, refusal
from cipherbox.client.receiving.pending_receipts import PendingReceipts
from cipherbox.client.receiving.ports import ReceivingClient
from cipherbox.client.receiving.progress import Key, Progress
from cipherbox.client.sessions.receiving_chains import ReceivedSteps
from cipherbox.client.sessions.sessions import Sessions
from cipherbox.errors import CipherBoxError, EnvelopeError

OnLines = Callable[[list[bytes]], None]


class Recorder:
    """Record for one open inbox.  ``on_lines`` is given the lines of each batch."""

    def __init__(
        self,
        inbox: Inbox,
        receipts: PendingReceipts,
        sessions: Sessions | None,
        progress: Progress,
        events: Events,
        *,
        on_lines: OnLines | None,
        stored: str,
    ) -> None:
        self.inbox, self.receipts = inbox, receipts
        self._sessions, self._progress, self._events = sessions, progress, events
        self._on_lines, self._stored = on_lines, stored
        self._completion = Completion(inbox, self._files_arrived)

    @property
    def completing(self) -> bool:
        """Whether files are being completed."""
        return self._completion.busy

    async def record(
        self, new: Sequence[Received], steps: ReceivedSteps | None
    ) -> dict[Key, EnvelopeError]:
        """Record a batch, with what opening it changed in sessions; return what could not be
        recorded.
        """
        if not new:
            return {}
        lines: list[bytes] | None = None
        failed: dict[Key, EnvelopeError] = {}
        try:
            lines = await self._completion.on_disk(self.inbox.record, new, steps)
        except Exception as error:
            if fault_of(error) is not Fault.SENDER:
                raise
        # outside of that block: the error keeps what was in memory when it was raised
        each = lines is None
        if lines is None:
            new, lines, failed = await self._record_each(new, steps)
        if steps is not None and self._sessions is not None:
            self._sessions.recorded(steps)
        self.receipts.notify(prompt=any(one.prompt_receipt for one in new))
        files = each or bool(self.inbox.file_counts)
        for one in new:
            if recording_of(one) is Recording.LINES:
                self._count(one)
            else:
                files = True
        if self._on_lines is not None and lines:
            self._on_lines(lines)
        if files:
            self._completion.notify()
        return failed

    async def _record_each(
        self, new: Sequence[Received], steps: ReceivedSteps | None
    ) -> tuple[list[Received], list[bytes], dict[Key, EnvelopeError]]:
        recorded: list[Received] = []
        lines: list[bytes] = []
        failed: dict[Key, EnvelopeError] = {}
        for one in new:
            try:
                lines += await self._completion.on_disk(self.inbox.record, [one], steps)
                recorded.append(one)
                steps = None
            except Exception as error:
                if fault_of(error) is not Fault.SENDER:
                    raise
                failed[one.sender, one.envelope_id] = refusal(error)
        return recorded, lines, failed

    def _count(self, one: Received) -> None:
        files = self.inbox.file_counts.get((one.sender, one.envelope_id), 0)
        self._progress.incomplete_files += files
        self._progress.received += len(one.messages) - files
        if len(one.messages) > files:
            self._events.messages(RECEIVER, self._stored, one.envelope_id, len(one.messages))

    # -- files -------------------------------------------------------------------------------------

    async def keep_completing(self) -> None:
        """Complete files until cancelled; a failure of the inbox ends the run."""
        try:
            await self._completion.run()
        except CipherBoxError as error:
            self._progress.fail(error)

    async def complete_now(self) -> None:
        """Complete the files that are complete now."""
        await self._completion.complete()

    def _files_arrived(self, arrived: list[Arrived]) -> None:
        progress = self._progress
        for one in arrived:
            progress.files += 1
            progress.received += 1
            progress.incomplete_files -= one.whole
            where = one.file or "kept under this home's key; cipherbox inbox save writes it"
            text = f"{one.filename} from {one.sender} is whole, {one.size} bytes: {where}"
            self._events.emit(RECEIVER, text, mark=True)
        if arrived:
            self.receipts.notify(prompt=True)
            if self._on_lines is not None:
                self._on_lines([one.line for one in arrived])
        progress.changed.notify()


@contextmanager
def open_recorder(
    client: ReceivingClient,
    storage: InboxStorage,
    progress: Progress,
    *,
    on_lines: OnLines | None,
    keep_contents: bool,
) -> Iterator[Recorder]:
    """Open the inbox for recording; the caller holds its lock."""
    home, events, sessions = client.home, client.events, client.sessions
    if home.identity is None:
        raise keyless()

    def was_cut(cut: int) -> None:
        text = f"{cut} bytes that this inbox had not recorded were cut off {LINES}"
        events.emit(RECEIVER, f"{text}; messages of an interrupted step are redelivered")

    inbox = Inbox(
        home.path,
        was_cut,
        storage,
        keep_contents=keep_contents,
        sessions=sessions,
        say=lambda text: events.emit(RECEIVER, text),
    )
    progress.begin()
    stored = f"Stored {{}} in {LINES}" if storage.plain else "Stored {} under this home's key"
    receipts: PendingReceipts | None = None
    try:
        receipts = PendingReceipts(client)
        yield Recorder(
            inbox,
            receipts,
            sessions,
            progress,
            events,
            on_lines=on_lines,
            stored="Kept {} for the handler" if keep_contents else stored,
        )
    finally:
        inbox.close()
        if sessions is not None:
            sessions.discard_received()
        if receipts is not None:
            receipts.close()
