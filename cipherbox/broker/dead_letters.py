"""Dead letters that somebody looked at: back into their queue, or dropped for good.

A dead letter is kept by the store alone, with its reason; the core is told of it by the facts of a
batch.  Redriven, it goes to the end of its queue as a new entry with no deliveries counted.
Dropped, its body goes, and what the record says of it stays.  Dropping is the one way besides
retention in which an unacknowledged body is ever deleted, so it is an admin's alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cipherbox.broker import model as m
from cipherbox.broker.consume import bury
from cipherbox.broker.model import Done, Entry, Facts, Settled
from cipherbox.errors import Conflict, Forbidden, InvalidRequest, NotFound

if TYPE_CHECKING:
    from cipherbox.broker.broker import Broker
    from cipherbox.broker.queues import Queue

OVERFLOW = "the queue is longer than its largest length"


def settle(broker: Broker, c: m.SettleDead, facts: Facts) -> Done:
    """Redrives or drops the named dead letters; how many there were."""
    queue = broker.queues.get(c.queue)
    admin = broker.rights.is_admin(c.client, c.connection)
    if queue is None or not (admin or queue.owner == c.client):
        raise NotFound(f"there is no queue {c.queue!r} whose dead letters you may settle")
    if c.drop and not admin:
        raise Forbidden("only an admin drops a dead letter: it is deleted for good")
    if sum(count for _, count in c.ranges) > broker.limits.ack_entries:
        raise InvalidRequest(f"one request names at most {broker.limits.ack_entries} dead letters")
    stored = facts.dead.get(c.queue, {})
    wanted = [
        entry
        for seq, entry in sorted(stored.items())
        if (queue.name, seq) not in broker.gone
        and any(first <= seq < first + count for first, count in c.ranges)
    ]
    if not c.drop:
        _may_return(broker, queue, wanted)
    for entry in wanted:
        broker.gone.add((queue.name, entry.seq))
        how = m.DROPPED if c.drop else m.REDRIVEN
        broker.effects.changes.settled.append(
            Settled(queue.name, entry.seq, entry.number, broker.now, c.client, how)
        )
        if c.drop:
            changes = broker.effects.changes
            queue.add_used(entry.sender, -entry.size, -1)
            broker.touched.add(queue)
            (changes.finished if entry.fan == 1 else changes.released).append(entry.number)
        else:
            _enter_again(broker, queue, entry)
    return Done(c.correlation, len(wanted))


def _may_return(broker: Broker, queue: Queue, entries: list[Entry]) -> None:
    for entry in entries:
        end = queue.end_of(entry)
        if 0 < end <= broker.now:
            own = 0 < entry.expires_at <= broker.now
            why = (
                "its sender's time is over"
                if own
                else "the queue's time to live is over; set a longer one first"
            )
            raise Conflict(f"dead letter {queue.name}/{entry.seq} would expire at once: {why}")


def _enter_again(broker: Broker, queue: Queue, entry: Entry) -> None:
    again = entry._replace(seq=queue.next, attempts=0)
    queue.append(again, broker.limits.head_entries)
    broker.touched.add(queue)
    broker.eager.add(queue)
    if queue.max_length:
        overflow(broker, queue)


def overflow(broker: Broker, queue: Queue) -> None:
    """The oldest waiting entries become dead letters until the queue has its largest length."""
    while queue.depth > queue.max_length and queue.ready:
        bury(broker, queue, queue.ready.popleft(), OVERFLOW, "")
