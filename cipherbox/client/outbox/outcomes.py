"""What became of envelopes, until the outbox has it: many outcomes are written together.

An outcome alone changes three pages of the database and takes a sync.  So it waits for others for
a pause, then for a batch of envelopes to be written with, and after a second pause no longer.  A
task of its own sees to that: an outcome wakes no other, and an envelope needs no timeout.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from cipherbox.classes import define
from cipherbox.client.outbox.rows import Confirmed, Proven, Refused
from cipherbox.concurrency import Flag

PAUSE_S = 0.1


@define
class Outcomes:
    """What one write records."""

    confirmed: list[Confirmed] = attrs.field(factory=list)
    refused: list[Refused] = attrs.field(factory=list)
    proven: list[Proven] = attrs.field(factory=list)

    def __bool__(self) -> bool:
        return bool(self.confirmed or self.refused or self.proven)


class PendingOutcomes:
    """See the module.  ``write`` is called when they wait no longer."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write = write
        self._known = Outcomes()
        self._came = Flag()
        self.due = False  # whether `take` returns them

    def confirmed(self, one: Confirmed) -> None:
        """Add that HQ has an envelope."""
        self._known.confirmed.append(one)
        self._came.set()

    def refused(self, one: Refused) -> None:
        """Add that an envelope will not go, or why it waits."""
        self._known.refused.append(one)
        self._came.set()

    def proven(self, one: Proven) -> None:
        """Add HQ's proof for envelopes."""
        self._known.proven.append(one)
        self._came.set()

    def take(self) -> Outcomes:
        """Return those that are to be written now, which this object then forgets."""
        taken = Outcomes()
        if self.due:
            taken, self._known, self.due = self._known, taken, False
        return taken

    def put_back(self, taken: Outcomes) -> None:
        """Add what could not be written, before all that came later."""
        later, self._known = self._known, taken
        self._known.confirmed += later.confirmed
        self._known.refused += later.refused
        self._known.proven += later.proven
        if self._known:
            self._came.set()

    async def run(self) -> None:
        """Let them be written in time, until cancelled."""
        while True:
            await self._came.wait()
            self._came.clear()
            await trio.sleep(PAUSE_S)
            self.due = True
            await trio.sleep(PAUSE_S)
            if self.due:
                self._write()
