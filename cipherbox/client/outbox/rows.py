"""Records of the outbox: what is written to it and what is read from it."""

from __future__ import annotations

from typing import NamedTuple

import attrs
import orjson

from cipherbox.classes import frozen
from cipherbox.client.outbox.origins import Origins
from cipherbox.client.sessions.sending_chains import RatchetStep
from cipherbox.envelope.layout import Octets

WAITING, CONFIRMED, PARKED, CANCELLED = range(4)
STATES = ("waiting", "confirmed", "aside", "cancelled")
MOST_GENERATIONS = 16  # of an envelope, so that two ends that never agree stop eventually
COPIES = "copies"  # directory of copies of files in transfer
UNTIL_OPENED, UNTIL_DELIVERED, UNTIL_CONFIRMED = "opened", "delivered", "confirmed"


class OutboxEntry(NamedTuple):
    """A sealed envelope to keep; it takes the place of an earlier generation.

    ``replaces`` is the id of another envelope whose place it takes: the same messages, sealed again
    under a new id.
    """

    raw: Octets
    envelope_id: bytes
    generation: int
    count: int  # type: ignore[assignment]  # messages; tuple.count is not used
    exchange: str
    routing_key: str
    recipients: tuple[str, ...]
    flags: int
    route_version: int
    sealed_at: int
    envelope_hash: bytes
    content_key: bytes  # encrypted
    transfer: int | None = None
    replaces: bytes | None = None  # envelope id
    steps: tuple[RatchetStep, ...] = ()  # of the sessions that it was sealed in
    origins: Origins | None = None  # recorded with it
    commitment: bytes = b""  # to the plaintext, the same in every generation
    reason: str = ""  # why it has fewer recipients than the generation before


class Confirmed(NamedTuple):
    """An envelope that HQ has on stable storage."""

    envelope_id: bytes
    generation: int
    accepted_at: int
    queues: tuple[str, ...]


class Proven(NamedTuple):
    """HQ's proof that these envelopes are in its signed log; ``leaves`` are theirs, joined in
    order.
    """

    entry: int
    proof: bytes
    leaves: bytes
    envelope_ids: tuple[bytes, ...]


class Refused(NamedTuple):
    """An envelope that HQ refused for its bytes; ``state`` is PARKED or CANCELLED."""

    envelope_id: bytes
    generation: int
    code: int
    reason: str
    state: int = PARKED


class Signed(NamedTuple):
    """What a recipient signed for one envelope: leaf ``leaf`` of a receipt."""

    envelope_id: bytes
    generation: int
    recipient: str
    outcome: int
    signed_at: int
    leaf: int
    envelope_hash: bytes
    messages: bytes = b""  # an outcome for each, where they differ
    log_entry: int = 0  # where HQ's log accepted it, as HQ stated to the recipient; 0: not stated
    proven_entry: int = 0  # the entry that HQ proved here, if it is another one


@frozen
class Row:
    """One envelope of the outbox; times are ms since 1970."""

    number: int
    envelope_id: bytes
    generation: int
    messages: int
    exchange: str
    routing_key: str
    recipients: tuple[str, ...]
    flags: int
    route_version: int
    sealed_at: int
    size: int  # bytes
    envelope_hash: bytes
    content_key: bytes | None = attrs.field(repr=False)
    state: int
    accepted_at: int
    queues: tuple[str, ...]
    code: int
    reason: str
    changed_at: int
    owed: int  # recipients that have not signed
    file: str | None
    transfer: int | None
    commitment: bytes = b""  # to the plaintext; empty for what 0.5.0 sealed


def values_of(i: OutboxEntry, file: str | None, now: int) -> tuple[object, ...]:
    """Return the values of a row, in the order of the INSERT."""
    return (
        i.envelope_id,
        i.generation,
        i.count,
        i.exchange,
        i.routing_key,
        names_text(i.recipients),
        i.flags,
        i.route_version,
        i.sealed_at,
        len(i.raw),
        i.envelope_hash,
        i.content_key,
        i.raw if file is None else None,
        file,
        i.transfer,
        now,
        len(i.recipients),
        i.commitment,
    )


def confirm_values(c: Confirmed, now: int, proof: int | None) -> tuple[object, ...]:
    """Return the values that record a confirm, in the order of the UPDATE."""
    return (c.accepted_at, names_text(c.queues), now, proof, c.envelope_id, c.generation)


_NAMES: dict[tuple[str, ...], str] = {}


def names_text(names: tuple[str, ...]) -> str:
    """Return the names as JSON, cached: a busy publisher has the same for every envelope."""
    found = _NAMES.get(names)
    if found is None:
        if len(_NAMES) > 256:
            _NAMES.clear()
        found = _NAMES[names] = orjson.dumps(names).decode()
    return found
