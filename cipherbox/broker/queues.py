"""One queue in memory: a head of bounded length, unacknowledged and requeued entries, and counters.

    acknowledged | delivered, requeued | head (in memory) | tail (in the store only)
                 ^ first                                  ^ loaded_to                ^ next

Rules:

1. `ready` is sorted by seq: a requeued entry returns to its place near the front.
2. While the whole queue is in memory, a new entry joins `ready`; once the head is full, entries are
   only counted until the store delivers a page.
3. Every entry not acknowledged up to `loaded_to` is in `ready` or in `unacknowledged`, never in
   both; none beyond it is in either.
4. `first` may lag behind the lowest seq that is not acknowledged, never run ahead of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from cipherbox.broker.model import Counters, Entry, NewEntry
from cipherbox.broker.usage import NONE, Totals, Usage

_seq, _expires_at = itemgetter(0), itemgetter(8)
_NONE = 1 << 63  # a seq that no entry has
_new = tuple.__new__
_FEW = 8  # as many are inserted one by one; more are merged


class Unacknowledged(NamedTuple):
    """An entry that was delivered on a connection, with the consumer's tag (0: fetched)."""

    entry: Entry
    connection: int
    tag: int


class PurgeInProgress(NamedTuple):
    """A purge in progress: everything up to a seq becomes a dead letter, page by page."""

    connection: int
    correlation: int
    client: str
    up_to: int
    done: int


class Consumer:
    """A subscription and its window; ``superseded``: its client reads over a newer connection."""

    __slots__ = ("client", "connection", "envelopes", "queue", "size", "superseded", "tag")

    def __init__(self, connection: int, client: str, tag: int, queue: str) -> None:
        self.connection = connection
        self.client = client
        self.tag = tag
        self.queue = queue
        self.envelopes = 0
        self.size = 0
        self.superseded = False

    @property
    def open(self) -> bool:
        return self.envelopes > 0 and self.size > 0 and not self.superseded


class Queue:
    """One queue, as in the module's text."""

    def __init__(
        self,
        name: str,
        owner: str,
        readers: Iterable[str],
        totals: Totals,
        counters: Counters,
    ) -> None:
        self.name = name
        self.owner = owner
        self.readers = set(readers)
        self.ttl_ms = self.max_length = 0  # limits; 0: none
        self.bindings: set[tuple[str, str]] = set()  # (exchange, routing key)
        self.depth = counters.depth
        self.size = counters.size
        self.first = counters.first
        self.next = counters.next
        self.ready: deque[Entry] = deque()
        self.unacknowledged: dict[int, Unacknowledged] = {}
        self.consumers: deque[Consumer] = deque()
        # the highest seq that was in memory; the tail begins after it
        self.loaded_to = self.next - 1
        self.paging = False  # a page is on its way
        self.purges: list[PurgeInProgress] = []
        self.earliest_expiry = 0  # lower bound for entries in `ready`; 0: none expires
        self.used: dict[str, Usage] = {}  # by sender, dead letters included
        self._totals = totals
        # Of the current batch:
        self.senders: set[str] = set()  # their `used` changed
        self.fresh: list[int] = []  # envelope numbers of new entries, in order
        self.fresh_from = _NONE  # seq of the first of them
        self.fresh_to: dict[int, str] = {}  # seq of those already delivered -> client

    def load(self, head: list[Entry], complete: bool) -> None:
        """Set the head that the store loaded; ``complete``: nothing waits after it."""
        self.ready = deque(head)
        self.loaded_to = self.next - 1 if complete else head[-1].seq
        self._note_expiry(head)

    @property
    def tail(self) -> bool:
        """Return whether entries wait in the store that are not in memory."""
        return self.loaded_to < self.next - 1

    @property
    def all_readers(self) -> set[str]:
        return self.readers | {self.owner} if self.owner else self.readers

    def is_reader(self, client: str) -> bool:
        return client in self.readers or (client == self.owner and client != "")

    def add_used(self, sender: str, size: int, envelopes: int) -> None:
        """Add to a sender's usage of this queue, or subtract from it."""
        had = self.used.get(sender, NONE)
        now = Usage(had.size + size, had.envelopes + envelopes)
        if now.envelopes > 0:
            self.used[sender] = now
        else:
            now = NONE
            self.used.pop(sender, None)
        self._totals.add(sender, now.size - had.size, now.envelopes - had.envelopes)
        self.senders.add(sender)

    def extend(self, entries: list[Entry], most: int) -> None:
        """Append new entries; keep those in memory for which the head has room, unless there is a
        tail.
        """
        first = entries[0][0]
        self.depth += len(entries)
        self.size += sum([entry[2] for entry in entries])
        if not self.fresh:
            self.fresh_from = first
        self.fresh += [entry[1] for entry in entries]
        room = most - len(self.ready)
        if self.loaded_to == first - 1 and room > 0:
            kept = entries[:room]
            self.ready.extend(kept)
            self.loaded_to = kept[-1][0]
            if self.ttl_ms or any(map(_expires_at, kept)):
                self._note_expiry(kept)
        self.next = entries[-1][0] + 1

    def new_entries(self, now: int) -> list[NewEntry]:
        """Return the new entries of this batch, for the store."""
        delivered_to = self.fresh_to.get
        rows = []
        for seq, number in enumerate(self.fresh, self.fresh_from):
            client = delivered_to(seq)
            at = 0 if client is None else now
            rows.append(_new(NewEntry, (self.name, seq, number, at, client or "")))
        return rows

    def fresh_seq(self, number: int) -> int | None:
        """Return the seq of an envelope's newest entry of this batch; None: it has none."""
        if number not in self.fresh:
            return None
        return self.fresh_from + len(self.fresh) - 1 - self.fresh[::-1].index(number)

    def end_batch(self) -> None:
        self.senders = set()
        self.fresh = []
        self.fresh_to = {}
        self.fresh_from = _NONE

    def add_page(self, entries: list[Entry], limit: int) -> None:
        """Add the next waiting entries after `loaded_to`; fewer than ``limit`` mean that the
        tail is now in memory.
        """
        self.paging = False
        for entry in entries:
            if entry.seq > self.loaded_to:
                self.ready.append(entry)
                self.loaded_to = entry.seq
        if len(entries) < limit:
            self.loaded_to = self.next - 1
        self._note_expiry(entries)

    def requeue(self, entries: list[Entry]) -> None:
        """Return entries to the front, in seq order."""
        entries.sort(key=_seq)
        self._note_expiry(entries)
        if not entries:
            return
        if not self.ready or entries[-1].seq < self.ready[0].seq:
            self.ready.extendleft(reversed(entries))
        elif len(entries) <= _FEW:
            for entry in entries:
                self.ready.insert(bisect_left(self.ready, entry.seq, key=_seq), entry)
        else:
            self.ready = deque(merge(entries, self.ready, key=_seq))

    def expiry_of(self, entry: Entry) -> int:
        """Return when an entry expires, by its sender's expiry or the queue's limit; 0: never."""
        expires_at, accepted_at = entry[8], entry[7]
        if not self.ttl_ms:
            return expires_at
        end = accepted_at + self.ttl_ms
        return min(end, expires_at) if expires_at else end

    def _note_expiry(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            end = self.expiry_of(entry)
            if end and (end < self.earliest_expiry or not self.earliest_expiry):
                self.earliest_expiry = end

    def limits_changed(self) -> None:
        """Recompute `earliest_expiry` after a change of the queue's limits."""
        self.earliest_expiry = 0
        self._note_expiry(self.ready)

    def expired(self, now: int) -> list[Entry]:
        """Remove expired entries from `ready` and return them."""
        late = [e for e in self.ready if 0 < self.expiry_of(e) <= now]
        if late:
            seqs = {e.seq for e in late}
            self.ready = deque(e for e in self.ready if e.seq not in seqs)
        self.limits_changed()
        return late

    def _place(self, seq: int) -> int:
        """Return the index of a seq in `ready`, or -1."""
        ready = self.ready
        if ready and ready[0].seq <= seq <= ready[-1].seq:
            at = bisect_left(ready, seq, key=_seq)
            if ready[at].seq == seq:
                return at
        return -1

    def find(self, seq: int) -> Entry | None:
        """Return an entry wherever it is in memory."""
        out = self.unacknowledged.get(seq)
        if out is not None:
            return out.entry
        at = self._place(seq)
        return self.ready[at] if at >= 0 else None

    def take(self, seq: int) -> Entry | None:
        """Remove an entry wherever it is in memory, and return it."""
        out = self.unacknowledged.pop(seq, None)
        if out is not None:
            return out.entry
        at = self._place(seq)
        if at < 0:
            return None
        entry = self.ready[at]
        del self.ready[at]
        return entry

    def take_ready(self, runs: Sequence[tuple[int, int]]) -> list[Entry]:
        """Remove sorted runs (first seq, last seq) from `ready`, in one pass over the part
        concerned, and return the entries.
        """
        ready = self.ready
        found: list[Entry] = []
        kept: list[Entry] = []
        for first, last in runs:
            while ready and ready[0].seq < first:
                kept.append(ready.popleft())
            while ready and ready[0].seq <= last:
                found.append(ready.popleft())
        ready.extendleft(reversed(kept))
        return found

    def remove_dead(self, entry: Entry) -> None:
        """Stop counting an entry that became a dead letter; its sender's quota still counts it."""
        self.depth -= 1
        self.size -= entry.size

    def counters(self) -> Counters:
        """Return the counters that a commit writes."""
        if self.depth == 0:
            self.first = self.next
        else:
            end = self.ready[0].seq if self.ready else self.loaded_to + 1
            first = self.first
            while first < end and first not in self.unacknowledged:
                first += 1
            self.first = first
        return Counters(self.name, self.depth, self.size, self.first, self.next)
