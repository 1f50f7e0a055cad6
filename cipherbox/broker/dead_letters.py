"""Dead letters that somebody looked at: back into their queue, or dropped for good.

A dead letter is kept by the store alone, with its reason; the core is told of it by the facts of a
batch.  Redriven, it goes to the end of its queue as a new entry with no deliveries counted.
Dropped, its body goes, and what the record says of it stays.  Dropping is the one way besides
retention in which an unacknowledged body is ever deleted, so it is an admin's alone.
"""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import Dead, Done, Entry, Facts, Settled
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.errors import Conflict, Forbidden, InvalidRequest, NotFound

OVERFLOW = "the queue is longer than its largest length"


def redrive_or_discard(state: BrokerState, c: m.SettleDead, facts: Facts) -> Done:
    """Redrives or drops the named dead letters; how many there were."""
    queue = state.queues.get(c.queue)
    admin = state.rights.is_admin(c.client, c.connection)
    if queue is None or not (admin or queue.owner == c.client):
        raise NotFound(f"there is no queue {c.queue!r} whose dead letters you may settle")
    if c.drop and not admin:
        raise Forbidden("only an admin drops a dead letter: it is deleted for good")
    if sum(count for _, count in c.ranges) > state.limits.ack_entries:
        raise InvalidRequest(f"one request names at most {state.limits.ack_entries} dead letters")
    stored = facts.dead.get(c.queue, {})
    wanted = [
        entry
        for seq, entry in sorted(stored.items())
        if (queue.name, seq) not in state.gone
        and any(first <= seq < first + count for first, count in c.ranges)
    ]
    if not c.drop:
        _may_return(state, queue, wanted)
    for entry in wanted:
        state.gone.add((queue.name, entry.seq))
        how = m.DROPPED if c.drop else m.REDRIVEN
        state.effects.changes.settled.append(
            Settled(queue.name, entry.seq, entry.number, state.now, c.client, how)
        )
        if c.drop:
            changes = state.effects.changes
            queue.add_used(entry.sender, -entry.size, -1)
            state.touched.add(queue)
            (changes.finished if entry.references == 1 else changes.released).append(entry.number)
        else:
            _redrive(state, queue, entry)
    return Done(c.correlation, len(wanted))


def _may_return(state: BrokerState, queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        end = queue.end_of(entry)
        if 0 < end <= state.now:
            own = 0 < entry.expires_at <= state.now
            why = (
                "its sender's time is over"
                if own
                else "the queue's time to live is over; set a longer one first"
            )
            raise Conflict(f"dead letter {queue.name}/{entry.seq} would expire at once: {why}")


def _redrive(state: BrokerState, queue: Queue, entry: Entry) -> None:
    again = entry._replace(seq=queue.next, attempts=0)
    queue.append(again, state.limits.head_entries)
    state.touched.add(queue)
    state.eager.add(queue)
    if queue.max_length:
        overflow(state, queue)


def overflow(state: BrokerState, queue: Queue) -> None:
    """The oldest waiting entries become dead letters until the queue has its largest length."""
    while queue.depth > queue.max_length and queue.ready:
        dead_letter(state, queue, queue.ready.popleft(), OVERFLOW, "")


def dead_letter(state: BrokerState, queue: Queue, entry: Entry, reason: str, by: str) -> None:
    """A dead letter: out of the queue, kept in the store with its reason."""
    queue.forget(entry)
    state.effects.changes.dead.append(
        Dead(queue.name, entry.seq, entry.number, state.now, reason, by)
    )
    state.touched.add(queue)
