"""What goes into the core and what comes out: commands, facts, effects, and the changes for the
store.

Rules.  Per-envelope things are tuples (NamedTuple) in lists; attrs classes are per command or per
batch.  The core carries `Incoming.body` and never looks at it.  Everything here is plain data: no
IO, no clock, no randomness.  Numbers: an *envelope number* counts accepted envelopes of this store,
from 1; a *seq* counts entries of one queue, from 1; both only rise and are never used twice.  Times
are ms since 1970; a `connection` is HQ's number for it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import attrs

from cipherbox.contact_lists import ContactLists
from cipherbox.errors import CipherBoxError

ADMIN = "admin"
CLIENT = "client"
EVERYBODY = "*"
KEEP = 0xFFFFFFFF  # of a queue's limit: as it is, none for a new queue
REDRIVEN, DROPPED = "redriven", "dropped"


class ExchangeType(enum.IntEnum):
    """As in AMQP 0-9-1."""

    DIRECT = 0
    FANOUT = 1
    TOPIC = 2


class EntryState(enum.IntEnum):
    """Of one envelope in one queue; the wire's Trace.state."""

    WAITING = 0
    DELIVERED = 1
    ACKNOWLEDGED = 2
    DEAD = 3


# -- per envelope ----------------------------------------------------------------------------------


class Incoming(NamedTuple):
    """One SEND, read from its prefix by the session."""

    correlation: int
    partial: bool
    route_version: int
    sender: str
    envelope_id: bytes  # 16 bytes
    generation: int
    count: int  # type: ignore[assignment]  # messages; tuple.count is not used
    envelope_hash: bytes  # SHA-256 up to the end of the body
    stored_hash: bytes  # SHA-256 of all bytes, checked when read back
    exchange: str
    routing_key: str
    recipients: tuple[str, ...]
    sealed_at: int
    expires_at: int  # 0: never
    size: int  # bytes of the envelope
    body: object  # the envelope's bytes; carried, never looked at
    commitment: bytes = b""  # to the plaintext


class Entry(NamedTuple):
    """One envelope waiting in one queue."""

    seq: int
    number: int  # envelope number
    size: int
    attempts: int  # deliveries so far
    references: int  # queues this envelope went to; 1: its body goes with this entry's ack
    sender: str
    envelope_id: bytes
    accepted_at: int
    expires_at: int


class Known(NamedTuple):
    """What the store knows of an envelope id."""

    number: int
    generation: int
    envelope_hash: bytes
    accepted_at: int
    queues: tuple[str, ...]  # where it went, each once
    waiting: tuple[tuple[str, int], ...]  # (queue, seq) not yet acknowledged
    size: int  # bytes of the generation that HQ has
    dead: tuple[str, ...] = ()  # queues where it is a dead letter and nothing else
    commitment: bytes = b""  # to the plaintext; empty where none was made yet (0.5.0)
    # those of `dead` where nobody has dropped it: its bytes are still here
    kept: tuple[str, ...] = ()


# -- commands --------------------------------------------------------------------------------------


@attrs.define
class Command:
    """Something a connection (or HQ itself, connection 0) asks for."""

    connection: int
    client: str
    correlation: int


@attrs.define
class Publish:
    """All SENDs of one socket read."""

    connection: int
    client: str
    items: list[Incoming]


@attrs.define
class Consume(Command):
    tag: int
    queue: str
    envelopes: int
    size: int


@attrs.define
class Cancel(Command):
    tag: int


@attrs.define
class Credit:
    connection: int
    tag: int
    envelopes: int
    size: int


@attrs.define
class Fetch(Command):
    queue: str
    envelopes: int
    size: int


@attrs.define
class Ack(Command):
    queue: str
    ranges: Sequence[tuple[int, int]]  # (first seq, count)


@attrs.define
class Nack(Command):
    queue: str
    seq: int
    requeue: bool
    outcome: int
    reason: str


@attrs.define
class Resend(Command):
    """queue "" : every queue the client reads; envelope_id zeros: everything unacknowledged."""

    queue: str
    sender: str
    envelope_id: bytes


@attrs.define
class Resolve(Command):
    exchange: str
    routing_key: str


@attrs.define
class DeclareExchange(Command):
    name: str
    type: ExchangeType


@attrs.define
class DeleteExchange(Command):
    name: str


@attrs.define
class DeclareQueue(Command):
    name: str
    owner: str  # "": the declarer; HQ itself may leave a queue without owner
    readers: tuple[str, ...]
    ttl_s: int = KEEP  # what waits longer becomes a dead letter; 0: none
    max_length: int = KEEP  # the oldest above it become dead letters; 0: none


@attrs.define
class SettleDead(Command):
    """Dead letters of a queue go back into it, or are dropped."""

    queue: str
    ranges: Sequence[tuple[int, int]]  # (first seq, count)
    drop: bool


@attrs.define
class DeleteQueue(Command):
    name: str


@attrs.define
class Bind(Command):
    exchange: str
    queue: str
    routing_key: str


@attrs.define
class Unbind(Command):
    exchange: str
    queue: str
    routing_key: str


@attrs.define
class Purge(Command):
    queue: str


@attrs.define
class Grant(Command):
    target: str
    right: str
    resource: str
    give: bool


@attrs.define
class AddClient(Command):
    """A client was certified: it gets its mailboxes; again is harmless."""

    target: str
    role: str


@attrs.define
class EnrolHere(Command):
    """On HQ's own machine, without an admin, a token was made: the signed log says so, whatever
    becomes of it.
    """

    target: str
    role: str


@attrs.define
class Enrol(Command):
    """A token was made, by the admin whose command this is; ``replaces``: for the id of a home
    that has it.
    """

    target: str
    role: str
    replaces: bool


@attrs.define
class ReplaceClient(Command):
    """Another home has this id from now on: the connections of the one before end."""

    target: str


@attrs.define
class KeysAnew(Command):
    """A client that was enrolled again begins with keys that the ones before did not sign."""

    target: str
    sequence: int
    bundle: str  # its hash


@attrs.define
class LimitClient(Command):
    """How much of something (`usage.SETTINGS`) one client may have; -1: as the settings say."""

    target: str
    what: str
    most: int


@attrs.define
class TellContacts(Command):
    """Whom this client takes mail from, in place of what it told before."""

    lists: ContactLists


@attrs.define
class RevokeClient(Command):
    target: str
    reason: str


@attrs.define
class Note(Command):
    """A group for the signed log alone: a key bundle that HQ is about to hand out, a revocation,
    an admin's word.
    """

    kind: int
    payload: bytes


@attrs.define
class List(Command):
    """what: exchanges, queues, bindings, clients, grants."""

    what: str
    name: str
    after: str


@attrs.define
class Retain(Command):
    """Records older than the cutoffs go; HQ's own command."""

    cutoffs: Cutoffs


@attrs.define
class Disconnect:
    """A connection is gone: its consumers end, what they held returns to the front."""

    connection: int


@attrs.define
class Sweep:
    """Bounded housekeeping: expiry at the heads of queues."""


@attrs.define
class Lost:
    """The engine read these bodies back and they were damaged or gone: dead letters with that
    reason.
    """

    entries: Sequence[tuple[str, int]]  # (queue, seq)
    reason: str


AnyCommand = (
    Publish
    | Consume
    | Cancel
    | Credit
    | Fetch
    | Ack
    | Nack
    | Resend
    | Resolve
    | DeclareExchange
    | DeleteExchange
    | DeclareQueue
    | DeleteQueue
    | Bind
    | Unbind
    | Purge
    | Grant
    | AddClient
    | LimitClient
    | RevokeClient
    | List
    | Disconnect
    | Sweep
    | Note
    | Lost
    | SettleDead
    | Retain
    | EnrolHere
    | Enrol
    | ReplaceClient
    | KeysAnew
    | TellContacts
)


# -- facts -----------------------------------------------------------------------------------------


@attrs.define
class Wanted:
    """What the engine must ask the store before these commands; `Broker.wanted(commands)` says
    it.
    """

    known: list[tuple[str, bytes]] = attrs.Factory(list)  # (sender, envelope id)
    # (queue, first seq, count): acks outside the head
    entries: list[tuple[str, int, int]] = attrs.Factory(list)
    pages: list[tuple[str, int]] = attrs.Factory(list)  # (queue, after seq)
    # (queue, sender, envelope id) for resend
    envelopes: list[tuple[str, str, bytes]] = attrs.Factory(list)
    # (queue, first seq, count): dead letters nobody settled
    dead: list[tuple[str, int, int]] = attrs.Factory(list)
    retired: int = 0  # dead letters older than this are about to go with a `Retain`; 0: none


@attrs.define
class Facts:
    """The store's answers."""

    known: dict[tuple[str, bytes], Known] = attrs.Factory(dict)
    entries: dict[str, dict[int, Entry]] = attrs.Factory(dict)  # queue -> seq -> waiting entry
    dead: dict[str, dict[int, Entry]] = attrs.Factory(dict)  # queue -> seq -> dead letter
    pages: dict[str, list[Entry]] = attrs.Factory(dict)  # the next waiting entries, in order
    # (queue, sender, bytes) of each that goes
    retired: list[tuple[str, str, int]] = attrs.Factory(list)


# -- changes: what one commit writes ---------------------------------------------------------------


class NewEnvelope(NamedTuple):
    number: int
    accepted_at: int
    references: int
    incoming: Incoming


class NewEntry(NamedTuple):
    """An envelope's place in a queue; a dead letter whose next generation came gets a second one
    there.
    """

    queue: str
    seq: int
    number: int
    delivered_at: int  # 0: not delivered in this same batch
    client: str  # to whom


class Mark(NamedTuple):
    """A run of seqs of one queue, delivered or acknowledged."""

    queue: str
    first: int
    last: int
    at: int
    client: str


class Dead(NamedTuple):
    queue: str
    seq: int
    number: int
    at: int
    reason: str
    by: str  # client who did it, or "" for HQ


class Settled(NamedTuple):
    """A dead letter somebody redrove or dropped."""

    queue: str
    seq: int
    number: int
    at: int
    by: str
    how: str  # REDRIVEN or DROPPED


class Cutoffs(NamedTuple):
    """What is older than this goes, ms since 1970; 0: nothing of this kind goes."""

    metadata: int
    dead_letters: int
    log: int


class Act(NamedTuple):
    """Something an admin, an owner or HQ itself changed."""

    by: str  # client, or "" for HQ
    what: str  # the command's name
    detail: dict[str, object]


class NewNote(NamedTuple):
    """A group for the signed log."""

    correlation: int
    kind: int
    payload: bytes


class LogRow(NamedTuple):
    """One entry of the signed log; the store keeps it with the commit it speaks of."""

    index: int  # type: ignore[assignment]  # counts from 1
    at: int
    record: bytes  # the leaf of the log's tree
    body: bytes
    nodes: bytes  # hashes of the perfect subtrees that this leaf completes, from level 0 up
    incarnation: bytes  # of the store, when this was written


class OldLogRow(NamedTuple):
    """One entry of the log as version 0.5 kept it."""

    index: int  # type: ignore[assignment]
    at: int
    head: bytes
    signature: bytes
    body: bytes


class Counters(NamedTuple):
    """Of one queue after this commit."""

    queue: str
    depth: int  # waiting or delivered, not acknowledged
    size: int  # their bytes
    first: int  # no unacknowledged seq lies below it
    next: int  # seq of the next entry


@attrs.define
class QueueRow:
    name: str
    owner: str
    readers: tuple[str, ...]
    ttl_s: int = 0
    max_length: int = 0


@attrs.define
class ClientRow:
    name: str
    role: str
    added_at: int
    revoked_at: int = 0
    reason: str = ""


@attrs.define
class Changes:
    """All that one commit writes, in the order of the fields."""

    clients: list[ClientRow] = attrs.Factory(list)  # upserts
    exchanges: list[tuple[str, int]] = attrs.Factory(list)
    dropped_exchanges: list[str] = attrs.Factory(list)
    queues: list[QueueRow] = attrs.Factory(list)  # upserts
    dropped_queues: list[str] = attrs.Factory(list)  # empty ones
    bindings: list[tuple[str, str, str]] = attrs.Factory(list)  # exchange, queue, key
    dropped_bindings: list[tuple[str, str, str]] = attrs.Factory(list)
    grants: list[tuple[str, str, str]] = attrs.Factory(list)  # client, right, resource
    dropped_grants: list[tuple[str, str, str]] = attrs.Factory(list)
    envelopes: list[NewEnvelope] = attrs.Factory(list)
    entries: list[NewEntry] = attrs.Factory(list)
    # envelope number, its next generation
    replaced: list[tuple[int, Incoming]] = attrs.Factory(list)
    delivered: list[Mark] = attrs.Factory(list)  # sets delivered_at and client, raises attempts
    acked: list[Mark] = attrs.Factory(list)
    dead: list[Dead] = attrs.Factory(list)  # bodies of dead letters are kept
    settled: list[Settled] = attrs.Factory(list)  # dead letters redriven or dropped
    # envelope numbers with one reference, now acknowledged: their bodies go
    finished: list[int] = attrs.Factory(list)
    # numbers with several references, one of whose entries was acknowledged: the
    released: list[int] = attrs.Factory(list)
    # store counts down and drops the body at zero
    counters: list[Counters] = attrs.Factory(list)
    highest: dict[str, bytes] = attrs.Factory(dict)  # sender -> highest envelope id
    # (sender, queue) -> bytes, envelopes there
    usage: dict[tuple[str, str], tuple[int, int]] = attrs.Factory(dict)
    # (client, what) -> most; -1: as the settings say
    client_limits: dict[tuple[str, str], int] = attrs.Factory(dict)
    # client -> whom it takes mail from; empty lists: forgotten
    contacts: dict[str, ContactLists] = attrs.Factory(dict)
    bindings_version: int | None = None
    notes: list[NewNote] = attrs.Factory(list)  # for the log alone
    noted: int = 0  # acts that change nothing else, for the log alone
    log: LogRow | None = None  # put in by the engine
    retention: Cutoffs | None = None
    watermark: int = 0  # ids of an earlier time are refused from now on; 0: as before

    def __bool__(self) -> bool:
        return any(getattr(self, a.name) not in ([], {}, None, 0) for a in attrs.fields(Changes))


# -- effects ---------------------------------------------------------------------------------------


class Confirmed(NamedTuple):
    correlation: int
    duplicate: bool  # stored before, with the same bytes
    queues: tuple[str, ...]
    unrouted: tuple[str, ...]
    accepted_at: int


class Failed(NamedTuple):
    correlation: int
    error: CipherBoxError


class Done(NamedTuple):
    correlation: int
    count: int  # type: ignore[assignment]


class Acked(NamedTuple):
    correlation: int
    count: int  # type: ignore[assignment]
    unknown: int


class Routed(NamedTuple):
    correlation: int
    version: int
    queues: tuple[tuple[str, tuple[str, ...]], ...]  # (queue, readers)


class Listed(NamedTuple):
    correlation: int
    rows: list[dict[str, object]]
    after: str


class FetchedEntries(NamedTuple):
    correlation: int
    queue: str
    waiting: int
    entries: list[Entry]


Answer = Confirmed | Failed | Done | Acked | Routed | Listed | FetchedEntries


class Delivery(NamedTuple):
    """Entries delivered to one consumer in this batch."""

    connection: int
    tag: int
    queue: str
    entries: list[Entry]


@attrs.define
class Effects:
    """What follows from one batch; nothing of it may leave before `changes` is committed."""

    changes: Changes = attrs.Factory(Changes)
    answers: dict[int, list[Answer]] = attrs.Factory(dict)  # connection -> in order
    deliveries: list[Delivery] = attrs.Factory(list)
    closed: dict[int, CipherBoxError] = attrs.Factory(dict)  # connections to end (revoked)
    # (queue, after seq): to bring as facts next time
    pages: list[tuple[str, int]] = attrs.Factory(list)
    accepted: dict[int, list[Incoming]] = attrs.Factory(dict)  # connection -> stored now, in order
    # connection -> of each Confirmed, in order: for the log
    confirmed: dict[int, list[Incoming]] = attrs.Factory(dict)
    acts: list[Act] = attrs.Factory(list)  # for the log


# -- what the store loads --------------------------------------------------------------------------


@attrs.define
class Snapshot:
    """The core's state as the store holds it; heads hold the first `head_entries` waiting of
    each queue.
    """

    next_number: int = 1
    bindings_version: int = 1
    watermark: int = 0
    first_seq: int = 1  # of a new queue: no deleted queue had numbers from here on
    clients: list[ClientRow] = attrs.Factory(list)
    exchanges: list[tuple[str, int]] = attrs.Factory(list)
    queues: list[QueueRow] = attrs.Factory(list)
    bindings: list[tuple[str, str, str]] = attrs.Factory(list)
    grants: list[tuple[str, str, str]] = attrs.Factory(list)
    counters: list[Counters] = attrs.Factory(list)
    heads: dict[str, list[Entry]] = attrs.Factory(dict)
    highest: dict[str, bytes] = attrs.Factory(dict)
    usage: dict[tuple[str, str], tuple[int, int]] = attrs.Factory(dict)
    client_limits: dict[tuple[str, str], int] = attrs.Factory(dict)
    contacts: dict[str, ContactLists] = attrs.Factory(dict)
