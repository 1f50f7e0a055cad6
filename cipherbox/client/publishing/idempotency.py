"""Publish once: an idempotency key makes a repeated publish harmless, also from another process and
after a crash.

The key is recorded in the outbox in the transaction that keeps the envelope, unique for this sender
and route.  So of two concurrent publishes with one key, one wins, and the other finds the winner's
row.  The same key with the same content answers with the first confirmation; with other content it
is refused.  A message that HQ refused or that was cancelled never went anywhere: its key is free,
and the next publish takes its place.
"""

from __future__ import annotations

from collections.abc import Sequence

import trio

from cipherbox.client.connection.reconnecting import Patience
from cipherbox.client.options import PublishOptions
from cipherbox.client.outbox.origins import Once, Origins
from cipherbox.client.outbox.rows import CANCELLED, PARKED, WAITING, Row
from cipherbox.client.publishing.publish import Confirmation, EnvelopePublisher
from cipherbox.envelope.ids import message_id
from cipherbox.errors import InvalidRequest, KeyReused, Queued, from_wire
from cipherbox.limits import LIMITS
from cipherbox.sealing.body import Message

_TURNS = 8  # of two that take each other's place


async def publish_once(
    publishing: EnvelopePublisher,
    messages: Sequence[Message],
    options: PublishOptions,
    key: str,
    *,
    wait: bool,
) -> Confirmation:
    """Publish, or return the confirmation of the first publish with this key; raise KeyReused if
    its content was different.
    """
    if len(options.groups()) > 1:
        raise InvalidRequest(f"an idempotency key goes with at most {LIMITS.recipients} recipients")
    once = Once.of(key, options.to, options.exchange, options.routing_key, messages)
    outbox_sender = publishing.outbox()
    for turn in range(_TURNS):
        found = await outbox_sender.store(outbox_sender.outbox.key_of, once.route, once.key)
        replaces = None
        if isinstance(found, tuple):
            digest, envelope_id = found
            row = await outbox_sender.store(outbox_sender.outbox.find, envelope_id)
            gone_nowhere = isinstance(row, Row) and row.state in (PARKED, CANCELLED)
            if not gone_nowhere:
                if digest != once.digest:
                    raise KeyReused(
                        f"idempotency key {key[:80]!r} was used before with other content, for "
                        f"message {message_id(envelope_id, 0)}; a new message needs a new key"
                    )
                return await _first(publishing, envelope_id, wait)
            replaces = envelope_id
        try:
            return await publishing.publish_group(
                messages, options, wait, origins=Origins(once), replaces=replaces
            )
        except KeyReused:
            if turn == _TURNS - 1:
                raise
    raise AssertionError


async def _first(publishing: EnvelopePublisher, envelope_id: bytes, wait: bool) -> Confirmation:
    """Return the confirmation of what was published before; raise Queued if HQ does not confirm it
    in time.
    """
    outbox_sender = publishing.outbox()
    patience = Patience(publishing.connection)
    looked = False
    while True:
        row = await outbox_sender.store(outbox_sender.outbox.find, envelope_id)
        if not isinstance(row, Row) or row.state != WAITING or not wait:
            if isinstance(row, Row) and row.state in (PARKED, CANCELLED):
                raise from_wire(row.code, row.reason or "it was cancelled on this machine")
            count = row.messages if isinstance(row, Row) else 1
            accepted_at, queues = (row.accepted_at, row.queues) if isinstance(row, Row) else (0, ())
            return Confirmation(
                accepted_at, queues, (), False, ((envelope_id, count),), duplicate=True
            )
        if not looked:
            outbox_sender.look()  # the process that published it may be gone
            looked = True
        if patience.ended:
            error = Queued(
                f"message {message_id(envelope_id, 0)} was published before with this key, and "
                "HQ has not confirmed it yet. It is kept in the outbox and is sent automatically"
            )
            error.message_ids = tuple(str(message_id(envelope_id, i)) for i in range(row.messages))
            raise error
        await patience.wait(trio.Event())
