"""Consumers: credit, deliveries, fetch, ack, nack, resend.

Deliveries go round-robin over the consumers of a queue that have credit.  Each delivery is counted;
an entry that is requeued after as many as the limit allows becomes a dead letter, and so does an
expired one.  An ack names (queue, seq), so it is valid from any connection of any reader, before or
after a restart.  Its cost is bounded by the number of unacknowledged entries, not by the numbers it
names.

Of one client's consumers of a queue, only those of its newest connection get anything, since it may
be back before HQ notices that its old connection is dead.  What older ones have is requeued first:
else what is new would arrive while that waits for an acknowledgement, and be out of order.  When
the newest connection ends, the one before is served again.  Only the mailbox for receipts is read
by several programs of its owner at the same time, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

from cipherbox.broker import model as m
from cipherbox.broker.dead_letters import dead_letter
from cipherbox.broker.model import Acked, Delivery, Done, Entry, Facts, FetchedEntries, SeqRun
from cipherbox.broker.queues import Consumer, Queue, Unacknowledged
from cipherbox.broker.rights import MAILBOX, SYSTEM, no_queue
from cipherbox.broker.state import BrokerState
from cipherbox.errors import Conflict, InvalidRequest

NO_ID = bytes(16)  # in RESEND: everything unacknowledged
SWEEP_ENTRIES = 50_000  # examined in one sweep: about 5 ms
Runs = list[tuple[int, int]]  # first and last seq, sorted, disjoint
# one reader may have a quarter of a queue's consumers: the other readers need places, too
_CONSUMERS_SHARE = 4
_new = tuple.__new__


def readable(state: BrokerState, client: str, name: str) -> Queue:
    """Return the queue if this client reads it; raise NotFound if not."""
    queue = state.queues.get(name)
    if queue is None or not queue.is_reader(client):
        raise no_queue(name)
    return queue


# -- consumers -------------------------------------------------------------------------------------


def consume(state: BrokerState, c: m.Consume) -> Done:
    queue = readable(state, c.client, c.queue)
    if not c.tag or (c.connection, c.tag) in state.consumers:
        raise Conflict(f"consumer tag {c.tag} is 0 or in use on this connection")
    if len(queue.consumers) >= state.limits.consumers_per_queue:
        raise InvalidRequest(
            f"queue {c.queue!r} has {state.limits.consumers_per_queue} consumers, the most allowed"
        )
    most = max(1, state.limits.consumers_per_queue // _CONSUMERS_SHARE)
    if (
        len(queue.all_readers) > 1
        and sum(one.client == c.client for one in queue.consumers) >= most
    ):
        raise InvalidRequest(
            f"{c.client} already has {most} consumers of {c.queue!r}, the most one reader may have"
        )
    _take_over(state, queue, c.client, c.connection)
    consumer = Consumer(c.connection, c.client, c.tag, c.queue)
    _add_credit(state, consumer, c.envelopes, c.size)
    queue.consumers.append(consumer)
    _choose_newest(queue, c.client)
    state.consumers[(c.connection, c.tag)] = consumer
    state.tags.setdefault(c.connection, set()).add(c.tag)
    state.dispatchable.add(queue)
    return Done(c.correlation, queue.depth)


def _is_shared(queue: Queue) -> bool:
    """Return whether several programs of one client read it at the same time: for receipts."""
    return queue.name.startswith(MAILBOX) and queue.name.endswith(SYSTEM)


def _take_over(state: BrokerState, queue: Queue, client: str, connection: int) -> None:
    """Requeue what older connections of this client have of a queue."""
    if _is_shared(queue):
        return
    own = {x.connection for x in queue.consumers if x.client == client}
    own |= {
        number
        for number, names in state.fetchers.items()
        if queue.name in names and state.client_of.get(number) == client
    }
    if older := {number for number in own if number < connection}:
        _requeue(state, queue, [o for o in queue.unacknowledged.values() if o.connection in older])


def _choose_newest(queue: Queue, client: str) -> None:
    """Let only this client's newest connection consume a queue."""
    own = [x for x in queue.consumers if x.client == client]
    newest = max((x.connection for x in own), default=0)
    for consumer in own:
        consumer.superseded = consumer.connection != newest and not _is_shared(queue)


def _add_credit(state: BrokerState, consumer: Consumer, envelopes: int, size: int) -> None:
    consumer.envelopes = min(consumer.envelopes + envelopes, state.limits.credit_envelopes)
    consumer.size = min(consumer.size + size, state.limits.credit_bytes)


def credit(state: BrokerState, c: m.Credit) -> None:
    """Add credit to a consumer; ignore an unknown tag, since credit may cross a CANCEL."""
    consumer = state.consumers.get((c.connection, c.tag))
    if consumer is not None:
        _add_credit(state, consumer, c.envelopes, c.size)
        state.dispatchable.add(state.queues[consumer.queue])


def cancel(state: BrokerState, c: m.Cancel) -> Done:
    consumer = state.consumers.get((c.connection, c.tag))
    if consumer is None:
        raise InvalidRequest(f"no consumer {c.tag} on this connection")
    return Done(c.correlation, end_consumer(state, consumer))


def end_consumer(state: BrokerState, consumer: Consumer) -> int:
    """End a consumer, requeue what it has not acknowledged, and return the number of those."""
    del state.consumers[(consumer.connection, consumer.tag)]
    state.tags[consumer.connection].discard(consumer.tag)
    queue = state.queues[consumer.queue]
    queue.consumers.remove(consumer)
    _choose_newest(queue, consumer.client)
    own = (consumer.connection, consumer.tag)
    return _requeue(state, queue, [o for o in queue.unacknowledged.values() if o[1:] == own])


def disconnect(state: BrokerState, connection: int) -> None:
    """End a connection: its consumers end, what it fetched is requeued."""
    for tag in sorted(state.tags.get(connection, ())):
        end_consumer(state, state.consumers[(connection, tag)])
    state.tags.pop(connection, None)
    for name in sorted(state.fetchers.pop(connection, ())):
        queue = state.queues.get(name)
        if queue is not None:
            _requeue(state, queue, [o for o in queue.unacknowledged.values() if o[1] == connection])


def end_reader(state: BrokerState, queue: Queue, client: str) -> None:
    """End a client's reading of a queue: its consumers end, what it has of it is requeued."""
    for consumer in [x for x in queue.consumers if x.client == client]:
        end_consumer(state, consumer)
    _requeue(
        state,
        queue,
        [o for o in queue.unacknowledged.values() if state.client_of.get(o[1]) == client],
    )


def _requeue(state: BrokerState, queue: Queue, outs: Sequence[Unacknowledged]) -> int:
    """Requeue unacknowledged entries and return their number."""
    entries = [o[0] for o in outs]
    for entry in entries:
        del queue.unacknowledged[entry[0]]
    _requeue_or_dead_letter(state, queue, entries)
    return len(entries)


def _requeue_or_dead_letter(state: BrokerState, queue: Queue, entries: list[Entry]) -> None:
    most = state.limits.deliveries
    for entry in entries:
        if entry.attempts >= most:
            dead_letter(state, queue, entry, _exhausted(entry), "")
    queue.requeue([e for e in entries if e.attempts < most])
    state.dispatchable.add(queue)


def _exhausted(entry: Entry) -> str:
    return f"delivered {entry.attempts} times without an acknowledgement"


# -- deliveries ------------------------------------------------------------------------------------


def dispatch(state: BrokerState, queue: Queue) -> None:
    """Deliver what is ready to the consumers that have credit."""
    ready = queue.ready
    consumers = queue.consumers
    idle = 0
    batches: dict[tuple[int, int], list[Entry]] = {}
    while ready and idle < len(consumers):
        consumer = consumers[0]
        if not consumer.open:
            idle += 1
        else:
            idle = 0
            room = 1 if len(consumers) > 1 else consumer.envelopes
            taken, size = _take_ready(
                state,
                queue,
                consumer.connection,
                consumer.tag,
                consumer.client,
                room,
                consumer.size,
            )
            consumer.envelopes -= len(taken)
            consumer.size -= size
            key = (consumer.connection, consumer.tag)
            if key in batches:
                batches[key] += taken
            elif taken:
                batches[key] = taken
                state.effects.deliveries.append(
                    Delivery(consumer.connection, consumer.tag, queue.name, taken)
                )
        consumers.rotate(-1)
    want_page(state, queue)


def _take_ready(
    state: BrokerState, queue: Queue, connection: int, tag: int, client: str, room: int, window: int
) -> tuple[list[Entry], int]:
    """Take up to ``room`` entries and ``window`` bytes, which the last one may exceed; return them
    and their size.
    """
    ready, out, fresh_to, fresh_from = (
        queue.ready,
        queue.unacknowledged,
        queue.fresh_to,
        queue.fresh_from,
    )
    now, most = state.now, state.limits.deliveries
    marks = state.effects.changes.delivered
    taken: list[Entry] = []
    bytes_ = 0
    while ready and room > 0 and bytes_ < window:
        entry = ready.popleft()
        seq, number, size, attempts, references, sender, envelope_id, accepted_at, expires_at = (
            entry
        )
        if 0 < expires_at <= now:
            own = 0 < entry.expires_at <= state.now
            dead_letter(
                state,
                queue,
                entry,
                "expired" if own else "older than the queue's time to live",
                "",
            )
            continue
        if attempts >= most:
            dead_letter(state, queue, entry, _exhausted(entry), "")
            continue
        entry = _new(
            Entry,
            (
                seq,
                number,
                size,
                attempts + 1,
                references,
                sender,
                envelope_id,
                accepted_at,
                expires_at,
            ),
        )
        out[seq] = _new(Unacknowledged, (entry, connection, tag))
        if seq >= fresh_from and seq not in fresh_to:
            fresh_to[seq] = client
        else:
            extend(marks, queue.name, seq, now, client)
        taken.append(entry)
        room -= 1
        bytes_ += size
    return taken, bytes_


def want_page(state: BrokerState, queue: Queue) -> None:
    """Ask for the next page if the head runs low and somebody needs it."""
    if queue.paging or not queue.tail or len(queue.ready) >= (state.limits.page_entries + 1) // 2:
        return
    if queue.consumers or not queue.ready:
        queue.paging = True
        state.effects.pages.append((queue.name, queue.loaded_to))


def extend(marks: list[SeqRun], queue: str, seq: int, at: int, client: str) -> None:
    """Add one seq to a list of runs."""
    if marks:
        last = marks[-1]
        if last[2] + 1 == seq and last[0] == queue and last[4] == client:
            marks[-1] = _new(SeqRun, (queue, last[1], seq, at, client))
            return
    marks.append(SeqRun(queue, seq, seq, at, client))


def fetch(state: BrokerState, c: m.Fetch) -> FetchedEntries:
    queue = readable(state, c.client, c.queue)
    _take_over(state, queue, c.client, c.connection)
    limits = state.limits
    room, window = min(c.envelopes, limits.credit_envelopes), min(c.size, limits.credit_bytes)
    taken, _ = _take_ready(state, queue, c.connection, 0, c.client, room, window)
    if taken:
        state.fetchers.setdefault(c.connection, set()).add(queue.name)
    want_page(state, queue)
    return FetchedEntries(c.correlation, queue.name, queue.depth - len(queue.unacknowledged), taken)


# -- ack, nack, resend -----------------------------------------------------------------------------


def runs_of(state: BrokerState, queue: Queue, ranges: Sequence[tuple[int, int]]) -> Runs:
    """Return ranges (first seq, count) as runs of what can be unacknowledged; raise InvalidRequest
    if those are too many.
    """
    runs: Runs = []
    at, end = queue.first, queue.next - 1
    total = 0
    for first, count in sorted(ranges) if len(ranges) > 1 else ranges:
        first, last = max(first, at), min(first + count - 1, end)
        if first <= last:
            runs.append((first, last))
            total += last - first + 1
            at = last + 1
    if total > state.limits.ack_entries:
        raise InvalidRequest(
            f"an ack of {total} envelopes is too large: at most {state.limits.ack_entries}"
        )
    return runs


def ack(state: BrokerState, c: m.Ack, facts: Facts) -> Acked:
    queue = readable(state, c.client, c.queue)
    runs = runs_of(state, queue, c.ranges)
    named = sum(count for _, count in c.ranges)
    if not runs:
        return Acked(c.correlation, 0, named)
    entries = _take_runs(state, queue, runs, facts.entries.get(c.queue))
    if entries:
        _acknowledge(state, queue, entries, c.client)
    return Acked(c.correlation, len(entries), named - len(entries))


def _take_runs(
    state: BrokerState, queue: Queue, runs: Runs, stored: dict[int, Entry] | None
) -> list[Entry]:
    """Remove the entries of the runs from memory, and those of the tail as the store has them."""
    found: list[Entry] = []
    pop = queue.unacknowledged.pop
    for first, last in runs:
        if not queue.unacknowledged:
            break
        for seq in range(first, last + 1):
            out = pop(seq, None)
            if out is not None:
                found.append(out[0])
    sorted_already = True
    if queue.ready and queue.ready[0][0] <= runs[-1][1]:
        waiting = queue.take_ready(runs)
        sorted_already = not waiting
        found += waiting
    if stored and runs[-1][1] > queue.loaded_to:
        for first, last in runs:
            for seq in range(max(first, queue.loaded_to + 1), last + 1):
                entry = _from_store(state, queue, stored, seq)
                if entry is not None:
                    found.append(entry)
    if not sorted_already:
        found.sort()
    return found


def _acknowledge(state: BrokerState, queue: Queue, entries: list[Entry], client: str) -> None:
    """Remove sorted entries: one record per run of seqs, one sum per run of entries of a sender."""
    changes = state.effects.changes
    finished, released, marks = changes.finished, changes.released, changes.acked
    first = last = entries[0][0]
    who, sum_, count = entries[0][5], 0, 0
    total = 0
    for seq, number, size, _, references, sender, _, _, _ in entries:
        if seq > last + 1:
            marks.append(SeqRun(queue.name, first, last, state.now, client))
            first = seq
        last = seq
        if references == 1:
            finished.append(number)
        else:
            released.append(number)
        if sender != who:
            queue.add_used(who, -sum_, -count)
            who, sum_, count = sender, 0, 0
        sum_ += size
        count += 1
        total += size
    marks.append(SeqRun(queue.name, first, last, state.now, client))
    queue.add_used(who, -sum_, -count)
    queue.depth -= len(entries)
    queue.size -= total
    state.touched.add(queue)


def _from_store(
    state: BrokerState, queue: Queue, stored: dict[int, Entry], seq: int
) -> Entry | None:
    """Return an entry that waits in the tail, thus in the store alone; None if an earlier command
    of this batch took it.
    """
    if seq <= queue.loaded_to or (queue.name, seq) in state.gone:
        return None
    entry = stored.get(seq)
    if entry is not None:
        state.gone.add((queue.name, seq))
        size = state.resized.get((queue.name, seq))
        if size is not None:
            entry = entry._replace(size=size)
    return entry


def nack(state: BrokerState, c: m.Nack, facts: Facts) -> Done:
    queue = readable(state, c.client, c.queue)
    entry = queue.take(c.seq)
    if entry is None and not c.requeue:  # an entry of the tail is waiting anyway
        entry = _from_store(state, queue, facts.entries.get(c.queue, {}), c.seq)
    if entry is None:
        return Done(c.correlation, 0)
    if c.requeue:
        _requeue_or_dead_letter(state, queue, [entry])
    else:
        dead_letter(state, queue, entry, c.reason or f"refused by {c.client}", c.client)
    return Done(c.correlation, 1)


def resend(state: BrokerState, c: m.Resend) -> Done:
    """Redeliver everything this client's connections have not acknowledged, or one unacknowledged
    envelope of its queues.
    """
    everything = c.envelope_id == NO_ID
    count = 0
    for name in [c.queue] if c.queue else sorted(state.reads.get(c.client, ())):
        queue = readable(state, c.client, name)
        back = [
            o
            for o in queue.unacknowledged.values()
            if (everything and state.client_of.get(o.connection) == c.client)
            or (o.entry.envelope_id == c.envelope_id and o.entry.sender == c.sender)
        ]
        count += _requeue(state, queue, back)
    return Done(c.correlation, count)


def lost(state: BrokerState, c: m.LostBodies) -> None:
    """Dead-letter the entries whose bodies could not be read back; nothing is lost silently."""
    for name, seq in c.entries:
        queue = state.queues.get(name)
        entry = queue.take(seq) if queue is not None else None
        if queue is not None and entry is not None:
            dead_letter(state, queue, entry, c.reason, "")


def sweep(state: BrokerState) -> None:
    """Dead-letter expired entries in the heads, examining a bounded number each time."""
    examined = 0
    for queue in state.queues.values():
        if not 0 < queue.earliest_expiry <= state.now:
            continue
        examined += len(queue.ready)
        for entry in queue.expired(state.now):
            own = 0 < entry.expires_at <= state.now
            dead_letter(
                state,
                queue,
                entry,
                "expired" if own else "older than the queue's time to live",
                "",
            )
        want_page(state, queue)
        if examined >= SWEEP_ENTRIES:
            return
