"""The store port: everything HQ asks of a database, and what it may rely on.

Rules every store keeps, and the one store suite checks.
1. `commit` is all or nothing and durable when it returns: it survives SIGKILL and a power cut.  On
   any error nothing of it took effect, or the store says `StoreUnavailable` and the caller reloads.
2. `commit` with an epoch other than the one `open` gave raises `Fenced` and writes nothing; so does
   every write after another process opened the store.
3. A body read back is checked against its stored hash: a damaged or missing one is returned as
   None, never as bytes.
4. Nothing that is unacknowledged is ever deleted.  The entry of the signed log in `changes` is
   written in the same transaction, and no entry is written twice.
5. Numbers that clients choose have up to 64 bits; one that the database cannot hold is kept as the
   largest it can.
6. Calls come from one thread at a time, but for `read_bodies`, which comes from a second one while
   others are under way.  No method keeps a reference to its arguments.

`StoreUnavailable` and `DiskFull` are retryable and leave what was committed as it was.
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

# A setting with random bytes: another value means that commits were lost (a backup was restored, or
# a standby promoted that lagged behind), and that clients must send again what they cannot be sure
# of.
INCARNATION = "history"


class BundleRow(NamedTuple):
    """One key bundle, encrypted for the store by the server's directory."""

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
    """A token given out, and what became of it.  `secret_hash` is SHA-256 of the secret."""

    secret_hash: bytes
    client: str
    role: str
    approve: bool  # an admin must let it go
    created_at: int
    expires_at: int
    state: str = "open"  # open, waiting, approved, refused, issued, ended
    csr: bytes = b""
    number: str = ""
    chain: tuple[bytes, ...] = ()
    replaces: bool = False  # the home that has this id ends with it


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
    """What the record says of an envelope's newest generation; ``entry`` of the signed log says
    so, 0: an old one.
    """

    generation: int
    accepted_at: int
    envelope_hash: bytes
    entry: int


class Body(NamedTuple):
    """An envelope that waits: ``log_entry`` says that it was accepted (0: none of this log), and
    its bytes.
    """

    log_entry: int
    data: bytes


class TraceReport(NamedTuple):
    sender: str
    accepted_at: int
    traces: list[TraceRow]
    messages: int  # how many the envelope has


class Store(Protocol):
    """See the module's rules.  Every method may block on the disk; the server calls them in the
    store's thread.
    """

    epoch: int
    synced_s: float  # seconds that commits of this process have waited for stable storage
    readers: int  # so many threads may read bodies at once

    def load(self, head: int) -> Snapshot: ...

    def facts(self, wanted: RequiredFacts, page: int) -> Facts: ...

    def commit(self, changes: Changes, epoch: int) -> None: ...

    def read_bodies(self, numbers: Sequence[int]) -> list[Body | None]: ...

    def trace(self, sender: str, envelope_id: bytes) -> TraceReport | None: ...

    # The signed log; `logtable` has it for every store.
    def last_log(self) -> LogRow | None: ...  # the newest entry

    # in order, at least one if there is one
    def log(self, after: int, most: int, size_bytes: int) -> list[LogRow]: ...

    # of its tree: (level, index)
    def log_nodes(self, nodes: Sequence[tuple[int, int]]) -> list[bytes]: ...

    # its first entry, if it is the newest incarnation; else 0
    def first_of(self, incarnation: bytes) -> int: ...

    def last_old_log(self) -> OldLogRow | None: ...

    def old_log(self, after: int, most: int, size_bytes: int) -> list[OldLogRow]: ...

    def acceptance(self, sender: str, envelope_id: bytes) -> Acceptance | None: ...

    # whether a commit with these cutoffs would drop something
    def older_than(self, cutoffs: Cutoffs) -> bool: ...

    # Rows of dead letters (keys in the manual page `broker`), oldest first, and the cursor of the
    # next page.
    def dead_letters(
        self, queue: str, after: str, most: int, include_closed: bool
    ) -> tuple[list[dict[str, object]], str]: ...

    # The registry: rare, each its own transaction.
    def put_bundle(self, row: BundleRow) -> None: ...

    def bundles(self, client: str, after: int, most: int = ...) -> list[BundleRow]: ...  # in order

    def newest_bundle(self, client: str) -> BundleRow | None: ...

    def bundle_count(self, client: str) -> int: ...

    def counts(self) -> dict[str, tuple[int, int]]: ...  # client -> key bundles, one-time prekeys

    def bundle_by_hash(self, bundle_hash: bytes) -> BundleRow | None: ...

    # Prekeys of a client: replaces the signed part if there is one, adds one-time parts (number,
    # bytes), at most ``most`` in all (Conflict); ``drop``: those from before go first.  How many
    # one-time parts it has now.
    def put_prekeys(
        self, client: str, signed: bytes, once: Sequence[tuple[int, bytes]], most: int, drop: bool
    ) -> int: ...

    # The signed part and the oldest one-time part, which is gone then; empty where there is none.
    def take_prekeys(self, client: str, once: bool) -> tuple[bytes, bytes]: ...

    def put_enrolment(self, row: Enrolment) -> None: ...

    def enrolment(self, secret_hash: bytes) -> Enrolment | None: ...

    # of one client, or of all
    def enrolments(self, states: Sequence[str], client: str = "") -> list[Enrolment]: ...

    def put_certificate(self, row: CertificateRow) -> None: ...

    def certificates(self, client: str | None = None) -> list[CertificateRow]: ...

    def revoke_certificates(self, client: str, at: int) -> list[CertificateRow]: ...

    def get_setting(self, name: str) -> bytes | None: ...

    def put_setting(self, name: str, value: bytes) -> None: ...

    # for so many bytes of publishes, the reserve left alone
    def room(self, size_bytes: int) -> bool: ...

    def free_bytes(self) -> int: ...

    # see `copying`: into an empty store
    def fill(self, table: str, rows: Sequence[Row]) -> None: ...

    # every few seconds: this process still writes; Fenced when another one does
    def renew(self) -> None: ...

    def close(self) -> None: ...
