"""How far a receiver is: what it recorded, what it is writing, and what ended it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from cipherbox.client.inbox.content_types import message_count
from cipherbox.client.inbox.lines import Received
from cipherbox.concurrency import Signal
from cipherbox.errors import CipherBoxError

Key = tuple[str, bytes]  # sender, envelope id


class Progress:
    """The counts of one receiver.  ``changed`` is notified whenever something was recorded, ended
    or failed.
    """

    def __init__(self) -> None:
        self.received = 0  # messages recorded, and complete files
        self.files = 0  # of these: files
        self.duplicates = 0  # envelopes received before
        self.refused = 0  # envelopes that could not be opened
        self.refusals: Counter[tuple[str, str]] = Counter()  # (sender, reason), bounded
        self.changed = Signal()
        self.failure: CipherBoxError | None = None
        self.limit: int | None = None  # of ``received``
        self.incomplete_files = 0  # messages that are files and not complete yet
        self.recording = 0  # batches
        self.writing: frozenset[Key] = frozenset()
        self.writing_count = self.writing_bytes = 0

    def begin(self) -> None:
        """Forget the state of the last run; the counts stay."""
        self.failure = None
        self.incomplete_files = self.recording = 0
        self.end_writing()

    def stop_after(self, count: int | None) -> None:
        """Set the limit to ``count`` more messages; None for none."""
        self.limit = None if count is None else self.received + count

    @property
    def limit_reached(self) -> bool:
        """Whether enough was recorded."""
        return self.limit is not None and self.received >= self.limit

    def left(self) -> int | None:
        """Return how many messages more may be taken, with all that is on its way; None for any
        number.
        """
        if self.limit is None:
            return None
        return self.limit - self.received - self.incomplete_files - self.writing_count

    def limits(self, new: int) -> bool:
        """Return whether the limit is reached once ``new`` messages and all under way are
        recorded.
        """
        left = self.left()
        return left is not None and left <= new

    def begin_writing(self, new: Sequence[Received], size: int) -> None:
        """Note which envelopes are being recorded; they came in ``size`` bytes."""
        self.writing = frozenset((one.sender, one.envelope_id) for one in new)
        self.writing_count, self.writing_bytes = sum(map(message_count, new)), size

    def end_writing(self) -> None:
        """Note that nothing is being recorded."""
        self.writing = frozenset()
        self.writing_count = self.writing_bytes = 0

    async def written(self) -> None:
        """Wait until nothing is being recorded; raise the failure, if there is one."""
        while self.writing and self.failure is None:
            await self.changed.wait()
        if self.failure is not None:
            raise self.failure

    async def recorded(self) -> None:
        """Wait until every batch is recorded, or failed."""
        while self.recording:
            await self.changed.wait()

    def fail(self, error: CipherBoxError) -> None:
        """End the run with this error, unless it failed before."""
        self.failure = self.failure or error
        self.changed.notify()
