"""A broken store, which loses one in ten of the envelopes it reports as committed.

Only `prove --broken-store` uses it, to show that the proof detects a loss.
"""

from __future__ import annotations

from cipherbox.broker.model import Changes
from cipherbox.store.sqlite.store import SqliteStore

ONE_IN = 10


class BrokenStore(SqliteStore):
    """A store that loses envelopes."""

    _count = 0

    def commit(self, changes: Changes, epoch: int) -> None:
        lost = set()
        for envelope in changes.envelopes:
            self._count += 1
            if self._count % ONE_IN == 0 and not envelope.incoming.routing_key:
                lost.add(envelope.number)
        # In place: HQ's memory must not make up for what the disk has lost.
        changes.envelopes[:] = [e for e in changes.envelopes if e.number not in lost]
        changes.entries[:] = [e for e in changes.entries if e.number not in lost]
        super().commit(changes, epoch)
