"""The core's input and output: commands, facts, effects, and the changes for the store.

Everything here is plain data: no IO, no clock, no randomness.  What exists once per envelope is a
NamedTuple; attrs classes exist once per command or batch.  The core carries `Incoming.body` and
never reads it.  An *envelope number* counts the accepted envelopes of this store, a *seq* the
entries of one queue; both start at 1, only rise, and are never reused.  Times are in milliseconds
since 1970; a `connection` is HQ's number of it.
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
KEEP = 0xFFFFFFFF  # leaves a queue's limit unchanged; a new queue has none
REDRIVEN, DISCARDED = "redriven", "dropped"  # as the store and the signed log have them


class ExchangeType(enum.IntEnum):
    """The types of exchanges, as in AMQP 0-9-1."""

    DIRECT = 0
    FANOUT = 1
    TOPIC = 2


class EntryState(enum.IntEnum):
    """The state of one envelope in one queue, as in the wire's `Trace.state`."""

    WAITING = 0
    DELIVERED = 1
    ACKNOWLEDGED = 2
    DEAD = 3


# -- per envelope ----------------------------------------------------------------------------------


class Incoming(NamedTuple):
    """One SEND, as the session read it from the envelope's prefix."""

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
    references: int  # queues the envelope was stored in; 1: this entry's ack deletes its body
    sender: str
    envelope_id: bytes
    accepted_at: int
    expires_at: int


class KnownEnvelope(NamedTuple):
    """What the store knows about an envelope id."""

    number: int
    generation: int
    envelope_hash: bytes
    accepted_at: int
    queues: tuple[str, ...]  # where it was stored, each once
    waiting: tuple[tuple[str, int], ...]  # (queue, seq), not acknowledged yet
    size: int  # bytes of the generation that HQ has
    dead: tuple[str, ...] = ()  # queues where it is only a dead letter
    commitment: bytes = b""  # to the plaintext; empty for envelopes of 0.5.0
    # those of `dead` where nobody has discarded it: its bytes are still here
    kept: tuple[str, ...] = ()


# -- commands --------------------------------------------------------------------------------------


@attrs.define
class Command:
    """A request of a connection, or of HQ itself (connection 0)."""

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
    """Redeliver; no queue: all the client reads; a zero envelope_id: everything unacknowledged."""

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
    owner: str  # "": the declarer; HQ itself may declare a queue without an owner
    readers: tuple[str, ...]
    ttl_s: int = KEEP  # entries waiting longer become dead letters; 0: no limit
    max_length: int = KEEP  # the oldest entries above it become dead letters; 0: no limit


@attrs.define
class RedriveOrDiscard(Command):
    """Redrive dead letters of a queue, or discard them."""

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
    """A client was certified: create its mailboxes.  Idempotent."""

    target: str
    role: str


@attrs.define
class EnrolHere(Command):
    """A token was made on HQ's own machine, without an admin: the signed log records that even if
    the token is never used.
    """

    target: str
    role: str


@attrs.define
class Enrol(Command):
    """An admin made a token; ``replaces``: for an id that another home has."""

    target: str
    role: str
    replaces: bool


@attrs.define
class ReplaceClient(Command):
    """Another home takes over this id: close the connections of the previous one."""

    target: str


@attrs.define
class ConfirmClock(Command):
    """An admin said that HQ's clock is right; HQ expected another time."""

    at: int  # ms since 1970
    expected: int


@attrs.define
class SetWatermark(Command):
    """An admin set the time before which ids are refused."""

    watermark: int
    before: int


@attrs.define
class KickClient(Command):
    """An admin closes connections of a client, which may come back."""

    target: str
    count: int
    reason: str


@attrs.define
class KeysAnew(Command):
    """A client that was enrolled again begins with keys that its previous ones did not sign."""

    target: str
    sequence: int
    bundle: str  # its hash


@attrs.define
class LimitClient(Command):
    """Set a limit (of `usage.SETTINGS`) for one client; -1: as in the settings."""

    target: str
    what: str
    most: int


@attrs.define
class TellContacts(Command):
    """Replace this client's contact lists."""

    lists: ContactLists


@attrs.define
class RevokeClient(Command):
    target: str
    reason: str


@attrs.define
class Note(Command):
    """Add a group to the signed log and change nothing else: a key bundle that HQ is about to give
    out, a revocation, an admin's statement.
    """

    kind: int
    payload: bytes


@attrs.define
class List(Command):
    """List exchanges, queues, bindings, clients or grants."""

    what: str
    name: str
    after: str


@attrs.define
class Retain(Command):
    """Delete records older than the cutoffs; HQ's own command."""

    cutoffs: Cutoffs


@attrs.define
class Disconnect:
    """A connection ended: end its consumers, requeue what they have not acknowledged."""

    connection: int


@attrs.define
class Sweep:
    """Dead-letter expired entries at the heads of queues, a bounded number at a time."""


@attrs.define
class LostBodies:
    """The bodies of these entries are damaged or missing: dead-letter them, with that reason."""

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
    | LostBodies
    | RedriveOrDiscard
    | Retain
    | ConfirmClock
    | SetWatermark
    | EnrolHere
    | Enrol
    | ReplaceClient
    | KeysAnew
    | KickClient
    | TellContacts
)


# -- facts -----------------------------------------------------------------------------------------


@attrs.define
class RequiredFacts:
    """What the engine must read from the store before it executes these commands."""

    known: list[tuple[str, bytes]] = attrs.Factory(list)  # (sender, envelope id)
    # (queue, first seq, count): acks outside the head
    entries: list[tuple[str, int, int]] = attrs.Factory(list)
    pages: list[tuple[str, int]] = attrs.Factory(list)  # (queue, after seq)
    # (queue, sender, envelope id) for resend
    envelopes: list[tuple[str, str, bytes]] = attrs.Factory(list)
    # (queue, first seq, count): open dead letters
    dead: list[tuple[str, int, int]] = attrs.Factory(list)
    retired: int = 0  # dead letters older than this will be deleted by a `Retain`; 0: none


@attrs.define
class Facts:
    """The store's answer to `RequiredFacts`."""

    known: dict[tuple[str, bytes], KnownEnvelope] = attrs.Factory(dict)
    entries: dict[str, dict[int, Entry]] = attrs.Factory(dict)  # queue -> seq -> waiting entry
    dead: dict[str, dict[int, Entry]] = attrs.Factory(dict)  # queue -> seq -> dead letter
    pages: dict[str, list[Entry]] = attrs.Factory(dict)  # the next waiting entries, in order
    # (queue, sender, bytes) of each dead letter that will be deleted
    retired: list[tuple[str, str, int]] = attrs.Factory(list)


# -- changes: what one commit writes ---------------------------------------------------------------


class NewEnvelope(NamedTuple):
    number: int
    accepted_at: int
    references: int
    incoming: Incoming


class NewEntry(NamedTuple):
    """An envelope's place in a queue; the next generation of a dead letter gets another one."""

    queue: str
    seq: int
    number: int
    delivered_at: int  # 0: not delivered in this same batch
    client: str  # that it was delivered to


class SeqRun(NamedTuple):
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
    by: str  # client that caused it, or "" for HQ


class ClosedDeadLetter(NamedTuple):
    """A dead letter that was redriven or discarded."""

    queue: str
    seq: int
    number: int
    at: int
    by: str
    how: str  # REDRIVEN or DISCARDED


DAY_MS = 86_400_000


class Cutoffs(NamedTuple):
    """Records older than this are deleted, in ms since 1970; 0: none of this kind."""

    metadata: int
    dead_letters: int
    log: int

    def narrowed(self, oldest: Cutoffs) -> Cutoffs | None:
        """Return the cutoffs of a step: at most a day beyond the oldest record of each kind, 0 for
        a kind without one; None if no kind has one.
        """
        pairs = zip(self, oldest, strict=True)
        step = Cutoffs(*(min(cut, old + DAY_MS) if old else 0 for cut, old in pairs))
        return step if any(step) else None


class Act(NamedTuple):
    """A change made by an admin, an owner or HQ itself."""

    by: str  # client, or "" for HQ
    what: str  # the command's name
    detail: dict[str, object]


class NewNote(NamedTuple):
    """A group for the signed log."""

    correlation: int
    kind: int
    payload: bytes


class LogRow(NamedTuple):
    """One entry of the signed log, stored with the commit it describes."""

    index: int  # type: ignore[assignment]  # counts from 1
    at: int
    record: bytes  # the leaf of the log's tree
    body: bytes
    nodes: bytes  # hashes of the perfect subtrees that this leaf completes, from level 0 upwards
    incarnation: bytes  # of the store, when this was written


class OldLogRow(NamedTuple):
    """One entry of the log of version 0.5."""

    index: int  # type: ignore[assignment]
    at: int
    head: bytes
    signature: bytes
    body: bytes


class Counters(NamedTuple):
    """The counters of one queue after this commit."""

    queue: str
    depth: int  # waiting or delivered, not acknowledged
    size: int  # their bytes
    first: int  # no lower seq is unacknowledged
    next: int  # seq of the next new entry


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
    """Everything one commit writes, in the order of the fields."""

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
    delivered: list[SeqRun] = attrs.Factory(list)  # sets delivered_at and client, raises attempts
    acked: list[SeqRun] = attrs.Factory(list)
    dead: list[Dead] = attrs.Factory(list)  # bodies of dead letters are kept
    closed_dead_letters: list[ClosedDeadLetter] = attrs.Factory(list)  # redriven or discarded
    # envelope numbers with one reference, now acknowledged: their bodies are deleted
    finished: list[int] = attrs.Factory(list)
    # numbers with several references, one of whose entries was acknowledged: the store counts
    # down and deletes the body at zero
    released: list[int] = attrs.Factory(list)
    counters: list[Counters] = attrs.Factory(list)
    highest: dict[str, bytes] = attrs.Factory(dict)  # sender -> highest envelope id
    # (sender, queue) -> bytes, envelopes there
    usage: dict[tuple[str, str], tuple[int, int]] = attrs.Factory(dict)
    # (client, what) -> limit; -1: as in the settings
    client_limits: dict[tuple[str, str], int] = attrs.Factory(dict)
    # client -> its contact lists; empty ones are removed
    contacts: dict[str, ContactLists] = attrs.Factory(dict)
    bindings_version: int | None = None
    notes: list[NewNote] = attrs.Factory(list)  # groups for the log only
    noted: int = 0  # acts for the log that change nothing else
    log: LogRow | None = None  # set by the engine
    retention: Cutoffs | None = None
    watermark: int = 0  # ids with an earlier time are refused from now on; 0: unchanged

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


class ListedRows(NamedTuple):
    correlation: int
    rows: list[dict[str, object]]
    after: str


class FetchedEntries(NamedTuple):
    correlation: int
    queue: str
    waiting: int
    entries: list[Entry]


Answer = Confirmed | Failed | Done | Acked | Routed | ListedRows | FetchedEntries


class Delivery(NamedTuple):
    """Entries delivered to one consumer in this batch."""

    connection: int
    tag: int
    queue: str
    entries: list[Entry]


@attrs.define
class Effects:
    """The result of one batch; nothing of it may leave before `changes` is committed."""

    changes: Changes = attrs.Factory(Changes)
    answers: dict[int, list[Answer]] = attrs.Factory(dict)  # connection -> in order
    deliveries: list[Delivery] = attrs.Factory(list)
    closed: dict[int, CipherBoxError] = attrs.Factory(dict)  # connections to close, with the reason
    # (queue, after seq): to be brought as facts with the next batch
    pages: list[tuple[str, int]] = attrs.Factory(list)
    accepted: dict[int, list[Incoming]] = attrs.Factory(dict)  # connection -> stored now, in order
    # connection -> the item of each Confirmed, in order: for the log
    confirmed: dict[int, list[Incoming]] = attrs.Factory(dict)
    acts: list[Act] = attrs.Factory(list)  # for the log


# -- what the store loads --------------------------------------------------------------------------


@attrs.define
class Snapshot:
    """The core's state as the store has it; heads hold the first `head_entries` waiting entries."""

    next_number: int = 1
    bindings_version: int = 1
    watermark: int = 0
    first_seq: int = 1  # of a new queue: above the numbers of all deleted queues
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
