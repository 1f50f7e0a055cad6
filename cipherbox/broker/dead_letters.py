"""Dead letters: dead-letter an entry, redrive or discard a dead letter.

A dead letter is kept by the store alone, with its reason; the facts of a batch bring it into the
core.  Redriven, it goes to the end of its queue as a new entry whose delivery count is zero.
Discarded, its body is deleted and its record stays.  Besides retention this is the only way in
which an unacknowledged body is ever deleted, so it is reserved to admins.
"""

from __future__ import annotations

from cipherbox.broker import model as m
from cipherbox.broker.model import ClosedDeadLetter, Dead, Done, Entry, Facts
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.errors import Conflict, Forbidden, InvalidRequest, NotFound

OVERFLOW = "the queue exceeded its maximum length"


def redrive_or_discard(state: BrokerState, c: m.RedriveOrDiscard, facts: Facts) -> Done:
    """Redrive or discard the named dead letters and return their number."""
    queue = state.queues.get(c.queue)
    admin = state.rights.is_admin(c.client, c.connection)
    if queue is None or not (admin or queue.owner == c.client):
        raise NotFound(f"no queue {c.queue!r} with dead letters that you may redrive or discard")
    if c.drop and not admin:
        raise Forbidden("only an admin may discard dead letters: they are deleted permanently")
    if sum(count for _, count in c.ranges) > state.limits.ack_entries:
        raise InvalidRequest(f"too many dead letters: at most {state.limits.ack_entries} at a time")
    wanted = _open_dead_letters(state, queue, c, facts)
    if not c.drop:
        _check_expiry(state, queue, wanted)
    for entry in wanted:
        state.gone.add((queue.name, entry.seq))
        how = m.DISCARDED if c.drop else m.REDRIVEN
        state.effects.changes.closed_dead_letters.append(
            ClosedDeadLetter(queue.name, entry.seq, entry.number, state.now, c.client, how)
        )
        if c.drop:
            changes = state.effects.changes
            queue.add_used(entry.sender, -entry.size, -1)
            state.touched.add(queue)
            (changes.finished if entry.references == 1 else changes.released).append(entry.number)
        else:
            _redrive(state, queue, entry)
    return Done(c.correlation, len(wanted))


def _open_dead_letters(
    state: BrokerState, queue: Queue, c: m.RedriveOrDiscard, facts: Facts
) -> list[Entry]:
    """Return the named dead letters, by the facts and by what happened since in this batch."""
    enqueued_again = set(queue.fresh)  # by their next generation
    replaced = dict(state.effects.changes.replaced)
    found = []
    for seq, entry in sorted(facts.dead.get(c.queue, {}).items()):
        if not any(first <= seq < first + count for first, count in c.ranges):
            continue
        if (queue.name, seq) in state.gone or entry.number in enqueued_again:
            continue
        item = replaced.get(entry.number)
        if item is not None:
            entry = entry._replace(size=item.size, expires_at=item.expires_at)
        found.append(entry)
    return found


def _check_expiry(state: BrokerState, queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        end = queue.expiry_of(entry)
        if 0 < end <= state.now:
            own = 0 < entry.expires_at <= state.now
            why = (
                "its sender's expiry has passed"
                if own
                else "it is older than the queue's time to live; set a longer one first"
            )
            raise Conflict(f"dead letter {queue.name}/{entry.seq} would expire immediately: {why}")


def _redrive(state: BrokerState, queue: Queue, entry: Entry) -> None:
    redriven = entry._replace(seq=queue.next, attempts=0)
    queue.extend([redriven], state.limits.head_entries)
    state.touched.add(queue)
    if queue.max_length:
        overflow(state, queue)


def overflow(state: BrokerState, queue: Queue) -> None:
    """Dead-letter the oldest waiting entries until the queue is within its maximum length."""
    while queue.depth > queue.max_length and queue.ready:
        dead_letter(state, queue, queue.ready.popleft(), OVERFLOW, "")


def dead_letter(state: BrokerState, queue: Queue, entry: Entry, reason: str, by: str) -> None:
    """Take an entry out of its queue and keep it in the store, with its reason."""
    queue.remove_dead(entry)
    state.effects.changes.dead.append(
        Dead(queue.name, entry.seq, entry.number, state.now, reason, by)
    )
    state.touched.add(queue)
