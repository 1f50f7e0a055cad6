"""Rows that are the same in both databases, as the port's values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

from cipherbox.broker.model import EntryState, KnownEnvelope
from cipherbox.errors import Damaged, InvalidRequest

LOADED, TRACED = "what HQ reads at its start", "the record of an envelope"
_MOST_QUEUES = (1 << 31) - 1
MOST = (1 << 63) - 1  # clients may name seqs that exceed a database's integers
_DEAD_KEYS = (
    "queue",
    "seq",
    "sender",
    "message_id",
    "messages",
    "bytes",
    "exchange",
    "routing_key",
    "accepted_at",
    "deliveries",
    "last_client",
    "delivered_at",
    "reason",
    "by",
    "dead_at",
    "settled",
    "settled_by",
    "settled_at",
)
Row = Sequence[Any]


@contextmanager
def decoding(what: str) -> Iterator[None]:
    """Raise Damaged, naming ``what`` is stored, if it cannot be decoded or refers to nothing."""
    try:
        yield
    except (ValueError, LookupError):
        raise Damaged(f"{what} is damaged in the database", remedy="restore a backup") from None


def number_of(setting: str, value: bytes | None, without: int = 0) -> int:
    """Return a setting that is a decimal number; ``without`` a value: this one."""
    with decoding(f"the setting {setting}"):
        return int(value) if value is not None else without


def as_known(
    number: int,
    generation: int,
    envelope_hash: bytes,
    accepted_at: int,
    size: int,
    commitment: bytes,
    entries: Iterable[tuple[str, int, int]],
    kept: Callable[[], Iterable[str]],
) -> KnownEnvelope:
    """Return a known envelope, from its ``entries``: queue, seq and state, in order of the queues.

    ``kept`` reads where it is an open dead letter; it is called for the few that are one anywhere.
    """
    states: dict[str, set[int]] = {}
    waiting = []
    for name, seq, state in entries:
        states.setdefault(name, set()).add(state)
        if state < EntryState.ACKNOWLEDGED:
            waiting.append((name, seq))
    dead = tuple(name for name, found in states.items() if found == {EntryState.DEAD})
    here = tuple(sorted({*kept()} & {*dead})) if dead else ()
    return KnownEnvelope(
        number,
        generation,
        envelope_hash,
        accepted_at,
        tuple(states),
        tuple(waiting),
        size,
        dead,
        commitment,
        here,
    )


def _cursor(after: str) -> tuple[int, int]:
    """Return the queue's number and the seq that a page's cursor names."""
    number, _, seq = after.partition("/")
    try:
        found = int(number or 0), int(seq or 0)
    except ValueError:
        found = -1, -1
    if not (0 <= found[0] <= _MOST_QUEUES and 0 <= found[1] <= MOST):
        raise InvalidRequest("invalid cursor: must be empty, or what came with the page before")
    return found


def dead_page(
    run: Callable[[str, Sequence[object]], Sequence[Row]],
    select: str,
    is_open: str,
    queue: str,
    after: str,
    most: int,
    include_closed: bool,
) -> tuple[list[dict[str, object]], str]:
    """Return a page of what ``select`` finds, and the cursor of the next page: the queue's number
    and the seq of the last row.

    ``is_open`` is the condition that a dead letter is open: neither redriven nor discarded.
    """
    where = "WHERE (x.queue_no, x.seq) > (CAST(? AS integer), CAST(? AS bigint))"
    values: list[object] = [*_cursor(after)]
    if queue:
        where += " AND q.name = ? AND q.dropped = 0"
        values.append(queue)
    if not include_closed:
        where += f" AND {is_open}"
    rows = run(f"{select}{where} ORDER BY x.queue_no, x.seq LIMIT ?", (*values, most + 1))
    found: list[dict[str, object]] = []
    for row in rows[:most]:
        envelope_id = row[3] if isinstance(row[3], UUID) else UUID(bytes=row[3])
        found.append({**dict(zip(_DEAD_KEYS, row, strict=False)), "message_id": str(envelope_id)})
    return found, f"{rows[most - 1][-1]}/{rows[most - 1][1]}" if len(rows) > most else ""
