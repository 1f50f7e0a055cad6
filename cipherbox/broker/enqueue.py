"""Append an envelope's entry to a queue, within the sender's quota for that queue."""

from __future__ import annotations

from cipherbox.broker.dead_letters import overflow
from cipherbox.broker.model import Entry, Incoming
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.broker.usage import NONE
from cipherbox.errors import QuotaExceeded

_new = tuple.__new__


def check_quota(state: BrokerState, queue: Queue, sender: str, more: int) -> None:
    """Raise QuotaExceeded if ``more`` bytes would exceed the sender's quota in this queue."""
    quota = state.limits.quota_bytes
    used = queue.used.get(sender, NONE).size
    if used + more > quota:
        raise QuotaExceeded(f"{sender} has {used} bytes in {queue.name}, of at most {quota}")


def enqueue(
    state: BrokerState, queue: Queue, number: int, references: int, item: Incoming, accepted_at: int
) -> int:
    """Append an entry to a queue; return its seq."""
    seq = queue.next
    sender, size = item[3], item[14]
    queue.append(
        _new(Entry, (seq, number, size, 0, references, sender, item[4], accepted_at, item[13])),
        state.limits.head_entries,
    )
    queue.add_used(sender, size, 1)
    state.touched.add(queue)
    if queue.max_length:
        overflow(state, queue)
    return seq
