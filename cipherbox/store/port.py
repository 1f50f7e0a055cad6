"""The store port: what HQ requires of a database, and what it may rely on.

All stores follow these rules; one test suite checks them:

1. `commit` is all or nothing and durable when it returns: it survives SIGKILL and a power cut.
   After an error nothing of it has taken effect, or the error is `StoreUnavailable` and the caller
   reloads.
2. `commit` with an epoch other than the store's raises `Fenced` and writes nothing; so does every
   write after another process has opened the store.
3. A body that is read back is checked against its stored hash: a damaged or missing one is returned
   as None.
4. Nothing unacknowledged is ever deleted.  The entry of the signed log in `changes` is written in
   the same transaction, and never twice.
5. Numbers chosen by clients have up to 64 bits; those too large for the database are stored as its
   largest integer.
6. Calls come from one thread at a time, except that `read_bodies` runs in a second thread beside
   them.  No method keeps a reference to its arguments.

`StoreUnavailable` and `DiskFull` are retryable; what was committed before stays intact.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import attrs

from cipherbox.broker.model import (
    Changes,
    Cutoffs,
    EntryState,
    Facts,
    LogRow,
    OldLogRow,
    RequiredFacts,
    Snapshot,
)
from cipherbox.store.copying import Row

# A setting with the store's incarnation id, random bytes.  When it changes, commits were lost (a
# backup was restored, or a lagging standby promoted), and clients resend what may be missing.
INCARNATION = "history"
# Settings with HQ's record of its clock, and with the time before which ids are refused.
CLOCK, WATERMARK = "clock", "watermark"
TIMES = (CLOCK, WATERMARK)


class BundleRow(NamedTuple):
    """One key bundle, as the server's directory has encrypted it."""

    client: str
    sequence: int
    bundle_hash: bytes
    ciphertext: bytes
    nonce: bytes  # 12
    tag: bytes  # 16
    added_at: int
    ends_at: int


@attrs.define
class Enrolment:
    """An enrolment token and its state; `secret_hash` is the SHA-256 of its secret."""

    secret_hash: bytes
    client: str
    role: str
    approve: bool  # an admin must approve it
    created_at: int
    expires_at: int
    state: str = "open"  # open, waiting, approved, refused, issued, ended
    csr: bytes = b""
    number: str = ""
    chain: tuple[bytes, ...] = ()
    replaces: bool = False  # it replaces the home that has this id


class CertificateRow(NamedTuple):
    serial: str  # hexadecimal, as text: serials have up to 160 bits
    client: str
    issued_at: int
    expires_at: int
    revoked_at: int
    der: bytes


class TraceRow(NamedTuple):
    queue: str
    client: str
    state: EntryState
    attempts: int
    delivered_at: int
    acknowledged_at: int
    reason: str
    readers: tuple[str, ...]


class Acceptance(NamedTuple):
    """The record of an envelope's newest generation; ``entry`` is the entry of the signed log that
    records its acceptance, 0 for one of the old log.
    """

    generation: int
    accepted_at: int
    envelope_hash: bytes
    entry: int


class Body(NamedTuple):
    """The bytes of a waiting envelope; ``log_entry`` of the signed log records its acceptance, 0:
    none of this log.
    """

    log_entry: int
    data: bytes | memoryview


class TraceReport(NamedTuple):
    sender: str
    accepted_at: int
    traces: list[TraceRow]
    messages: int  # their number in the envelope


class Standby(NamedTuple):
    """Another HQ, which waits to take over a store."""

    name: str  # its host and process id
    address: str  # from which the database sees it; empty: its own machine


class Store(Protocol):
    """A store, following the module's rules.  All methods may block on the disk; the server calls
    them in the store's thread.
    """

    epoch: int
    synced_s: float  # time that commits of this process have waited for stable storage
    readers: int  # number of threads that may read bodies concurrently

    def load(self, head: int) -> Snapshot: ...

    def facts(self, wanted: RequiredFacts, page: int) -> Facts: ...

    def commit(self, changes: Changes, epoch: int) -> None: ...

    def read_bodies(self, numbers: Sequence[int]) -> list[Body | None]: ...

    def trace(self, sender: str, envelope_id: bytes) -> TraceReport | None: ...

    # The signed log; `log_table` implements it for all stores.
    def last_log(self) -> LogRow | None: ...  # the newest entry

    # in order; at least one, if any exists
    def log(self, after: int, most: int, size_bytes: int) -> list[LogRow]: ...

    # of its tree: (level, index)
    def log_nodes(self, nodes: Sequence[tuple[int, int]]) -> list[bytes]: ...

    # first entry of the newest incarnation, if it is this one; else 0
    def first_of(self, incarnation: bytes) -> int: ...

    def last_old_log(self) -> OldLogRow | None: ...

    def old_log(self, after: int, most: int, size_bytes: int) -> list[OldLogRow]: ...

    def acceptance(self, sender: str, envelope_id: bytes) -> Acceptance | None: ...

    # The part of these cutoffs that reaches at most a day beyond the oldest record that a commit
    # would delete, of each kind (0: none); None: it would delete nothing.
    def retention_due(self, cutoffs: Cutoffs) -> Cutoffs | None: ...

    # Rows of dead letters (the manual page `broker` lists their keys), oldest first, and the cursor
    # of the next page.
    def dead_letters(
        self, queue: str, after: str, most: int, include_closed: bool
    ) -> tuple[list[dict[str, object]], str]: ...

    # The registry: rare writes, each in a transaction of its own.
    def put_bundle(self, row: BundleRow) -> None: ...

    def bundles(self, client: str, after: int, most: int = ...) -> list[BundleRow]: ...  # in order

    def newest_bundle(self, client: str) -> BundleRow | None: ...

    def bundle_count(self, client: str) -> int: ...

    def counts(self) -> dict[str, tuple[int, int]]: ...  # client -> key bundles, one-time prekeys

    def bundle_by_hash(self, bundle_hash: bytes) -> BundleRow | None: ...

    # Prekeys of a client: replaces the signed part if one is given, adds one-time parts (number,
    # bytes), at most ``most`` in total (else Conflict); ``drop`` deletes the old ones first.
    # Returns the number of one-time parts.
    def put_prekeys(
        self, client: str, signed: bytes, once: Sequence[tuple[int, bytes]], most: int, drop: bool
    ) -> int: ...

    # The signed part and the oldest one-time part, which it deletes; empty if there is none.
    def take_prekeys(self, client: str, once: bool) -> tuple[bytes, bytes]: ...

    def put_enrolment(self, row: Enrolment) -> None: ...

    def enrolment(self, secret_hash: bytes) -> Enrolment | None: ...

    # of one client, or of all
    def enrolments(self, states: Sequence[str], client: str = "") -> list[Enrolment]: ...

    def put_certificate(self, row: CertificateRow) -> None: ...

    def certificates(self, client: str | None = None) -> list[CertificateRow]: ...

    def revoke_certificates(self, client: str, at: int) -> list[CertificateRow]: ...

    def get_setting(self, name: str) -> bytes | None: ...

    # a setting that is a decimal number; 0 without one
    def get_number(self, name: str) -> int: ...

    def put_setting(self, name: str, value: bytes) -> None: ...

    # what the clock of the database's server shows, ms since 1970; 0: it has none of its own
    def database_ms(self) -> int: ...

    # whether this many bytes of publishes fit without the reserve
    def room(self, size_bytes: int) -> bool: ...

    def free_bytes(self) -> int: ...

    # see `copying`: into an empty store
    def fill(self, table: str, rows: Sequence[Row]) -> None: ...

    # deletes everything but the store's own settings: what a killed copy left
    def empty(self) -> None: ...

    # renews the writer's lease every few seconds; Fenced if another process has taken it
    def renew(self) -> None: ...

    # the HQs that wait to take over, as far as the database knows
    def standbys(self) -> list[Standby]: ...

    def close(self) -> None: ...
