"""The event log of envelopes, written after each commit.

The hot path writes no line per message.  A batch of few envelopes, as in interactive use, gets a
line for each, a large batch a single line; at DEBUG every message has its own.  A line has the ids
of message, client and connection as fields; one for many messages has the first and the last id.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cipherbox.broker.model import (
    Ack,
    AnyCommand,
    Changes,
    Delivery,
    Effects,
    FetchedEntries,
    NewEnvelope,
)
from cipherbox.envelope.ids import message_id
from cipherbox.ops.logs import get_logger

log = get_logger(__name__)
FEW = 10  # envelopes or acks of one batch that get a line each
_REMEMBERED = 10_000  # delivered entries, so that an ack's line can name the message


class EventLog:
    """Writes the event log of envelopes."""

    def __init__(self) -> None:
        # (queue, seq) -> (envelope id, messages)
        self._names: dict[tuple[str, int], tuple[bytes, int]] = {}
        self._counts: dict[tuple[str, bytes], int] = {}  # (sender, envelope id) -> messages

    def has_lines(self, effects: Effects) -> bool:
        """Return whether `committed` writes a line about this batch."""
        changes = effects.changes
        return bool(changes.dead or changes.closed_dead_letters) or (
            log.isEnabledFor(logging.INFO) and bool(changes.envelopes or changes.acked)
        )

    def committed(self, effects: Effects, batch: Sequence[AnyCommand] = ()) -> None:
        """Log a committed batch."""
        changes = effects.changes
        for dead in changes.dead:
            extra: dict[str, object] = {
                "queue": dead.queue,
                "seq": dead.seq,
                "client": dead.by or "HQ",
            }
            known = self._names.get((dead.queue, dead.seq))
            if known is not None:
                extra["message_id"] = message_id(known[0], 0)
            log.warning(
                "Dead letter %d of queue '%s': %s", dead.seq, dead.queue, dead.reason, extra=extra
            )
        for one in changes.closed_dead_letters:
            extra = {"queue": one.queue, "seq": one.seq, "client": one.by or "HQ"}
            log.warning(
                "Dead letter %d of queue '%s' %s by %s",
                one.seq,
                one.queue,
                one.how,
                one.by,
                extra=extra,
            )
        if not log.isEnabledFor(logging.INFO):
            return
        if changes.envelopes:
            self._published(effects)
        if changes.acked:
            self._acked(changes, batch)

    def delivered(self, effects: Effects) -> None:
        """Remember delivered entries, to name them when they are acknowledged."""
        if not log.isEnabledFor(logging.INFO):
            return
        names = self._names
        runs: list[Delivery | FetchedEntries] = [*effects.deliveries]
        runs += (
            a for answers in effects.answers.values() for a in answers if type(a) is FetchedEntries
        )
        for run in runs:
            for entry in run.entries[-FEW:]:
                count = self._counts.get((entry.sender, entry.envelope_id), 1)
                names[(run.queue, entry.seq)] = (entry.envelope_id, count)
        while len(names) > _REMEMBERED:
            del names[next(iter(names))]

    def _published(self, effects: Effects) -> None:
        changes = effects.changes
        every = log.isEnabledFor(logging.DEBUG)
        if len(changes.envelopes) > FEW and not every:
            count = sum(e.incoming.count for e in changes.envelopes)
            first, last = changes.envelopes[0].incoming, changes.envelopes[-1].incoming
            extra = {
                "message_id": message_id(first.envelope_id, 0),
                "last_message_id": message_id(last.envelope_id, last.count - 1),
                "clients": sorted(
                    {items[0].sender for items in effects.accepted.values() if items}
                ),
                "connections": [
                    connection for connection, items in effects.accepted.items() if items
                ],
            }
            log.info(
                "Published %d messages in %d envelopes", count, len(changes.envelopes), extra=extra
            )
            return
        connections = {
            (i.sender, i.envelope_id): n for n, items in effects.accepted.items() for i in items
        }
        queues: dict[int, list[str]] = {}
        for entry in changes.entries:
            queues.setdefault(entry.number, []).append(entry.queue)
        for envelope in changes.envelopes:
            incoming = envelope.incoming
            connection = connections.get((incoming.sender, incoming.envelope_id), 0)
            self._line(envelope, queues.get(envelope.number, []), connection, every=every)

    def _line(
        self, envelope: NewEnvelope, queues: list[str], connection: int, *, every: bool
    ) -> None:
        incoming = envelope.incoming
        self._counts[(incoming.sender, incoming.envelope_id)] = incoming.count
        while len(self._counts) > _REMEMBERED:
            del self._counts[next(iter(self._counts))]
        first = message_id(incoming.envelope_id, 0)
        extra = {
            "client": incoming.sender,
            "connection": connection,
            "message_id": first,
            "messages": incoming.count,
        }
        for queue in queues:
            text = "Published message %s to queue '%s' via exchange '%s'"
            log.info(text, first, queue, incoming.exchange, extra=extra)
            if every:
                for index in range(1, incoming.count):
                    name = message_id(incoming.envelope_id, index)
                    log.debug(
                        text, name, queue, incoming.exchange, extra={**extra, "message_id": name}
                    )

    def _acked(self, changes: Changes, batch: Sequence[AnyCommand]) -> None:
        total = sum(mark.last - mark.first + 1 for mark in changes.acked)
        if total > FEW and not log.isEnabledFor(logging.DEBUG):
            clients = sorted({mark.client for mark in changes.acked})
            text = "%d envelopes acknowledged by clients, removed from queues and status"
            log.info(text, total, extra={"clients": clients})
            return
        connections = {(c.queue, c.client): c.connection for c in batch if type(c) is Ack}
        for mark in changes.acked:
            connection = connections.get((mark.queue, mark.client), 0)
            for seq in range(mark.first, mark.last + 1):
                self._ack(mark.queue, seq, mark.client, connection)

    def _ack(self, queue: str, seq: int, client: str, connection: int) -> None:
        extra: dict[str, object] = {
            "client": client,
            "connection": connection,
            "queue": queue,
            "seq": seq,
        }
        envelope_id, count = self._names.pop((queue, seq), (b"", 1))
        if not envelope_id:
            log.info(
                "Envelope %d of queue '%s' acknowledged by client, removed from queues and status",
                seq,
                queue,
                extra=extra,
            )
            return
        text = "Message %s acknowledged by client, removed from queues and status"
        for index in range(count if log.isEnabledFor(logging.DEBUG) else 1):
            name = message_id(envelope_id, index)
            (log.debug if index else log.info)(text, name, extra={**extra, "message_id": name})
