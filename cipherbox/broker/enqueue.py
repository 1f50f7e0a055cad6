"""Append envelopes' entries to a queue, within the sender's quota for that queue."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

from cipherbox.broker.dead_letters import overflow
from cipherbox.broker.model import Entry, Incoming
from cipherbox.broker.queues import Queue
from cipherbox.broker.state import BrokerState
from cipherbox.broker.usage import NONE
from cipherbox.errors import QuotaExceeded

_new = tuple.__new__


def quota_left(state: BrokerState, queue: Queue, sender: str) -> int:
    """Return the bytes that the sender's quota in this queue has left."""
    return state.limits.quota_bytes - queue.used.get(sender, NONE).size


def check_quota(state: BrokerState, queue: Queue, sender: str, more: int) -> None:
    """Raise QuotaExceeded if ``more`` bytes would exceed the sender's quota in this queue."""
    if more > quota_left(state, queue, sender):
        used = queue.used.get(sender, NONE).size
        quota = state.limits.quota_bytes
        raise QuotaExceeded(f"{sender} has {used} bytes in {queue.name}, of at most {quota}")


def enqueue(
    state: BrokerState,
    queue: Queue,
    references: int,
    numbered: Sequence[tuple[int, Incoming]],
    accepted_at: int,
) -> int:
    """Append the entries of envelopes of one sender, with their numbers; return the first seq."""
    first, sender = queue.next, numbered[0][1].sender
    entries = [
        _new(
            Entry,
            (seq, number, item[14], 0, references, sender, item[4], accepted_at, item[13]),
        )
        for seq, (number, item) in zip(count(first), numbered, strict=False)
    ]
    queue.add_used(sender, sum([entry[2] for entry in entries]), len(entries))
    state.touched.add(queue)
    most = state.limits.head_entries
    if queue.max_length:
        for entry in entries:
            queue.extend([entry], most)
            overflow(state, queue)
    else:
        queue.extend(entries, most)
    return first
