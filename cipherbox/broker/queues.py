"""One queue in memory: a head of bounded length, what is out with consumers, what came back, and
counters.

    acknowledged | out and returned | head (in memory) | tail (in the store only)
                 ^ first                               ^ loaded_to                ^ next

Rules.
1. `ready` is sorted by seq: what comes back goes to its place at the front.
2. As long as the whole tail is in memory a new entry joins `ready`; once the head is full, entries
   only count until the store brings a page.
3. Every unacknowledged seq up to `loaded_to` is in `ready` or in `out`, never in both; none beyond
   it is in either.
4. `first` may lag behind the lowest unacknowledged seq, never run ahead of it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from heapq import merge
from operator import itemgetter
from typing import NamedTuple

from cipherbox.broker.model import Counters, Entry, NewEntry
from cipherbox.broker.usage import NONE, Totals, Used

_seq = itemgetter(0)
_NONE = 1 << 63  # a seq that no entry has
_FEW = 8  # that many are put in one by one; more are merged


class Out(NamedTuple):
    """An entry with a consumer: on which connection, under which tag (0: fetched)."""

    entry: Entry
    connection: int
    tag: int


class Purging(NamedTuple):
    """A purge under way: everything up to a seq becomes a dead letter, page by page."""

    connection: int
    correlation: int
    client: str
    up_to: int
    done: int


class Consumer:
    """A subscription and its window."""

    __slots__ = ("client", "connection", "envelopes", "queue", "size", "tag")

    def __init__(self, connection: int, client: str, tag: int, queue: str) -> None:
        self.connection = connection
        self.client = client
        self.tag = tag
        self.queue = queue
        self.envelopes = 0
        self.size = 0

    @property
    def open(self) -> bool:
        return self.envelopes > 0 and self.size > 0


class Queue:
    """See the module."""

    def __init__(
        self,
        name: str,
        owner: str,
        readers: Iterable[str],
        totals: Totals,
        counters: Counters | None = None,
    ) -> None:
        self.name = name
        self.owner = owner
        self.readers = set(readers)
        self.ttl_ms = self.max_length = 0  # limits; 0: none
        self.bindings: set[tuple[str, str]] = set()  # (exchange, routing key)
        self.depth = counters.depth if counters else 0
        self.size = counters.size if counters else 0
        self.first = counters.first if counters else 1
        self.next = counters.next if counters else 1
        self.ready: deque[Entry] = deque()
        self.out: dict[int, Out] = {}
        self.consumers: deque[Consumer] = deque()
        # the highest seq that was in memory; the tail begins behind it
        self.loaded_to = self.next - 1
        self.paging = False  # a page was asked for
        self.purges: list[Purging] = []
        self.soonest = 0  # no entry in `ready` expires before; 0: none expires
        self.used: dict[str, Used] = {}  # what is here, waiting or dead, by sender
        self._totals = totals
        # Of this batch alone:
        self.senders: set[str] = set()  # whose `used` changed
        self.fresh: list[int] = []  # envelope numbers of the entries that came, in order
        self.fresh_from = _NONE  # seq of the first of them
        self.fresh_to: dict[int, str] = {}  # seq of those delivered already, and to whom

    def load(self, head: list[Entry], complete: bool) -> None:
        """The head as the store gave it; ``complete``: nothing waits behind it."""
        self.ready = deque(head)
        self.loaded_to = self.next - 1 if complete else head[-1].seq
        self._note_expiry(head)

    @property
    def tail(self) -> bool:
        """Whether entries wait in the store that are not in memory."""
        return self.loaded_to < self.next - 1

    @property
    def all_readers(self) -> set[str]:
        return self.readers | {self.owner} if self.owner else self.readers

    def is_reader(self, client: str) -> bool:
        return client in self.readers or (client == self.owner and client != "")

    def add_used(self, sender: str, size: int, envelopes: int) -> None:
        """What a sender has here went up or down."""
        had = self.used.get(sender, NONE)
        now = Used(had.size + size, had.envelopes + envelopes)
        if now.envelopes > 0:
            self.used[sender] = now
        else:
            now = NONE
            self.used.pop(sender, None)
        self._totals.add(sender, now.size - had.size, now.envelopes - had.envelopes)
        self.senders.add(sender)

    def append(self, entry: Entry, most: int) -> None:
        """A new entry at the end; it stays in memory while the head has room and no tail is
        before it.
        """
        seq = entry[0]
        self.depth += 1
        self.size += entry[2]
        if not self.fresh:
            self.fresh_from = seq
        self.fresh.append(entry[1])
        if self.loaded_to == seq - 1 and len(self.ready) < most:
            self.ready.append(entry)
            self.loaded_to = seq
            if entry[8] or self.ttl_ms:
                self._note_expiry((entry,))
        self.next = seq + 1

    def new_entries(self, now: int) -> list[NewEntry]:
        """What came in this batch, for the store."""
        delivered_to = self.fresh_to.get
        rows = []
        for seq, number in enumerate(self.fresh, self.fresh_from):
            client = delivered_to(seq)
            rows.append(
                NewEntry(self.name, seq, number, 0 if client is None else now, client or "")
            )
        return rows

    def end_batch(self) -> None:
        self.senders = set()
        self.fresh = []
        self.fresh_to = {}
        self.fresh_from = _NONE

    def page(self, entries: list[Entry], limit: int) -> None:
        """The next waiting entries behind `loaded_to`; fewer than ``limit`` mean that the tail
        is now in memory.
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
        """Entries that come back go to the front, in seq order."""
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

    def end_of(self, entry: Entry) -> int:
        """When an entry's time is over, by its sender's word or the queue's; 0: never."""
        expires_at, accepted_at = entry[8], entry[7]
        if not self.ttl_ms:
            return expires_at
        end = accepted_at + self.ttl_ms
        return min(end, expires_at) if expires_at else end

    def _note_expiry(self, entries: Iterable[Entry]) -> None:
        for entry in entries:
            end = self.end_of(entry)
            if end and (end < self.soonest or not self.soonest):
                self.soonest = end

    def look_again(self) -> None:
        """The queue's limits changed."""
        self.soonest = 0
        self._note_expiry(self.ready)

    def expired(self, now: int) -> list[Entry]:
        """Takes what is over from `ready`."""
        late = [e for e in self.ready if 0 < self.end_of(e) <= now]
        if late:
            over = {e.seq for e in late}
            self.ready = deque(e for e in self.ready if e.seq not in over)
        self.look_again()
        return late

    def _place(self, seq: int) -> int:
        """Where in `ready` a seq is, or -1."""
        ready = self.ready
        if ready and ready[0].seq <= seq <= ready[-1].seq:
            at = bisect_left(ready, seq, key=_seq)
            if ready[at].seq == seq:
                return at
        return -1

    def find(self, seq: int) -> Entry | None:
        """An entry wherever it is in memory."""
        out = self.out.get(seq)
        if out is not None:
            return out.entry
        at = self._place(seq)
        return self.ready[at] if at >= 0 else None

    def take(self, seq: int) -> Entry | None:
        """Removes an entry wherever it is in memory."""
        out = self.out.pop(seq, None)
        if out is not None:
            return out.entry
        at = self._place(seq)
        if at < 0:
            return None
        entry = self.ready[at]
        del self.ready[at]
        return entry

    def take_ready(self, runs: Sequence[tuple[int, int]]) -> list[Entry]:
        """Removes from `ready` what lies in sorted runs (first seq, last seq), in one pass over
        the part concerned.
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

    def forget(self, entry: Entry) -> None:
        """An entry waits no more: it is a dead letter, which its sender still has here."""
        self.depth -= 1
        self.size -= entry.size

    def counters(self) -> Counters:
        """What a commit writes."""
        if self.depth == 0:
            self.first = self.next
        else:
            end = self.ready[0].seq if self.ready else self.loaded_to + 1
            first = self.first
            while first < end and first not in self.out:
                first += 1
            self.first = first
        return Counters(self.name, self.depth, self.size, self.first, self.next)
