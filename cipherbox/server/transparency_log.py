"""Write HQ's signed log: one entry for each commit, a leaf of one append-only tree;
`envelope.transparency_log` has the format.

The key is HQ's own (Ed25519), created at the first start, encrypted under the service key, and
certified by HQ's TLS key, so that clients can verify it by their connection.  `entry` only prepares
an entry, `committed` advances the log.  A failed commit changes nothing, and the next one uses the
same index.

The tree's right edge is in memory; the hashes of perfect subtrees are in the store, with the entry
that completes them.  So a commit adds one row, and a proof costs O(log n) reads.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nacl.signing
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox import pki
from cipherbox.broker.model import DISCARDED, Confirmed, Effects, LogRow
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as format
from cipherbox.envelope.chained_log import head_hash
from cipherbox.envelope.checkpoint import Checkpoint, origin_of, sign_checkpoint
from cipherbox.envelope.labels import label
from cipherbox.errors import ConfigError
from cipherbox.portable import read_private, write_private
from cipherbox.server.log_mark import LogMark
from cipherbox.server.requests.answers import confirm_groups
from cipherbox.store.port import Store

KEY_FILE = "log.key"
_KEY_USE = label("log-key")


def load_key(path: Path, service_key: bytes) -> nacl.signing.SigningKey:
    """Return HQ's log key, creating it if there is none; raise ConfigError for a wrong
    service key.
    """
    aead = ChaCha20Poly1305(service_key)
    if not path.exists():
        seed, nonce = bytes(nacl.signing.SigningKey.generate()), os.urandom(12)
        write_private(path, nonce + aead.encrypt(nonce, seed, _KEY_USE))
        return nacl.signing.SigningKey(seed)
    data = read_private(path)
    try:
        return nacl.signing.SigningKey(aead.decrypt(data[:12], data[12:], _KEY_USE))
    except (InvalidTag, ValueError):
        raise ConfigError(
            f"{path} cannot be read with this service key", remedy="restore both from your backup"
        ) from None


def certified(key: nacl.signing.SigningKey, server_key: pki.PrivateKey) -> bytes:
    """Return the public key with the signature of HQ's TLS key over it, for WELCOME."""
    public = bytes(key.verify_key)
    return public + server_key.sign(_KEY_USE + public, ec.ECDSA(hashes.SHA384()))


class Stored(NamedTuple):
    """The stored state of the log that is needed to continue it."""

    last: LogRow | None
    edge: Sequence[bytes]  # hashes of the perfect subtrees the tree consists of
    # of the log before 0.6: its newest entry, and the hash of its head; 0: none
    old: tuple[int, bytes]


class Proofs(NamedTuple):
    """The proofs of one commit: for each CONFIRM of a connection, in order, and for each note, by
    correlation id.
    """

    confirms: dict[int, list[bytes]]
    notes: dict[int, bytes]


NO_PROOFS = Proofs({}, {})


class _State(NamedTuple):
    edge: tree.RightEdge
    root: bytes
    last: LogRow | None
    old: tuple[int, bytes]


class TransparencyLog:
    """HQ's signed log."""

    def __init__(self, key: nacl.signing.SigningKey, mark: LogMark | None = None) -> None:
        """``mark`` remembers the newest entry, to be compared with the store at the next start."""
        self.signing_key, self._mark = key, mark
        self.public = bytes(key.verify_key)
        self.load(Stored(None, (), (0, b"")), bytes(16))

    def load(self, stored: Stored, incarnation: bytes) -> None:
        """Continue the log from its stored state."""
        size = stored.last.index if stored.last is not None else 0
        edge = tree.RightEdge(size, stored.edge)
        self._state = _State(edge, edge.root(), stored.last, stored.old)
        self._incarnation = incarnation
        self.origin = origin_of(self.public, incarnation)
        self._next: _State | None = None

    def lost_commits(self, store: Store) -> bool:
        """Return whether the store lacks the newest entry that was committed before this start."""
        return self._mark is not None and self._mark.lost(store)

    @property
    def begins(self) -> bool:
        """Whether the log does not yet record the beginning of this incarnation."""
        last = self._state.last
        return last is None or last.incarnation != self._incarnation

    @property
    def size(self) -> int:
        """The number of committed entries."""
        return self._state.edge.size

    @property
    def last_at(self) -> int:
        """The time of the newest committed entry, ms since 1970; 0 without one."""
        last = self._state.last
        return last.at if last is not None else 0

    def head(self, now_ms: int) -> bytes:
        """Return the newest head, signed now: the log has no more entries at this time."""
        return self.newest(now_ms)[1]

    def newest(self, now_ms: int) -> tuple[int, bytes]:
        """Return the number of entries and the head over them, signed now, as the end of proofs."""
        state = self._state
        at = max(now_ms, state.last.at if state.last is not None else 0)
        return state.edge.size, self._checkpoint(state.edge.size, state.root, at)

    def entry(self, effects: Effects, now_ms: int) -> tuple[LogRow, Proofs]:
        """Prepare the entry for a batch; return it with its proofs."""
        state = self._state
        groups: list[format.Group] = [self._begun(state)] if self.begins else []
        roots = [format.root_of(group) for group in groups]
        confirms: dict[int, list[int]] = {}
        for connection, items in effects.confirmed.items():
            answers = [a for a in effects.answers.get(connection, ()) if type(a) is Confirmed]
            at = 0
            for run in confirm_groups(answers) if items else ():
                kind = format.AGAIN if run[0].duplicate else format.ACCEPTED
                part = items[at : at + len(run)]
                at += len(run)
                head = format.accepted_head(part[0][3], run[0].accepted_at)
                leaves = [i[4] + i[5].to_bytes(4, "big") + i[7] for i in part]
                confirms.setdefault(connection, []).append(len(groups))
                groups.append(format.Group(kind, format.accepted_payload(head, leaves)))
                roots.append(format.group_root(kind, head, leaves))
        notes: dict[int, int] = {}
        for note in effects.changes.notes:
            notes[note.correlation] = len(groups)
            groups.append(format.Group(note.kind, note.payload))
            roots.append(format.root_of(groups[-1]))
        for group in _events(effects, empty=not groups):
            groups.append(group)
            roots.append(format.root_of(group))
        edge = state.edge.copy()
        index = edge.size + 1
        at = max(now_ms, state.last.at if state.last is not None else 0)
        record = format.Record(index, at, tree.merkle_root(roots), len(groups)).encode()
        path = edge.path()
        nodes = edge.append(tree.leaf_hash(record))
        row = LogRow(
            index, at, record, format.encode_groups(groups), b"".join(nodes), self._incarnation
        )
        root = edge.root()
        self._next = _State(edge, root, row, state.old)
        if not confirms and not notes:
            return row, NO_PROOFS
        checkpoint = self._checkpoint(index, root, at)

        def prove(group: int) -> bytes:
            return format.make_proof(record, roots, group, path, checkpoint)

        proofs = Proofs(
            {
                connection: [prove(group) for group in found]
                for connection, found in confirms.items()
            },
            {correlation: prove(group) for correlation, group in notes.items()},
        )
        return row, proofs

    def committed(self) -> None:
        """Advance the log: the commit with the prepared entry succeeded."""
        assert self._next is not None
        self._state, self._next = self._next, None
        if self._mark is not None and self._state.last is not None:
            self._mark.write(self._state.last)

    def _checkpoint(self, size: int, root: bytes, at: int) -> bytes:
        return sign_checkpoint(Checkpoint(self.origin, size, root, at), self.signing_key)

    def _begun(self, state: _State) -> format.Group:
        """Return the first statement of an incarnation: its id, and what it continues."""
        found: dict[str, object] = {"incarnation": self._incarnation.hex()}
        if state.last is not None:
            found["after"] = {
                "origin": origin_of(self.public, state.last.incarnation),
                "size": state.edge.size,
                "root": state.root.hex(),
            }
        elif state.old[0]:
            found["old_log"] = {"entries": state.old[0], "head": state.old[1].hex()}
        return format.Group(format.BEGUN, orjson.dumps(found))


def read_stored(store: Store) -> Stored:
    """Return the stored state of the log."""
    last, old = store.last_log(), store.last_old_log()
    edge = store.log_nodes(tree.edge_nodes(last.index)) if last is not None else []
    return Stored(
        last, edge, (old.index, head_hash(old.head, old.signature)) if old is not None else (0, b"")
    )


def _events(effects: Effects, *, empty: bool) -> list[format.Group]:
    changes = effects.changes
    found: list[tuple[int, object]] = []
    if changes.delivered or any(e.delivered_at for e in changes.entries):
        marks = [(m.queue, m.first, m.last, m.client) for m in changes.delivered]
        marks += [(e.queue, e.seq, e.seq, e.client) for e in changes.entries if e.delivered_at]
        found.append((format.DELIVERED, _runs(marks)))
    if changes.acked:
        found.append(
            (
                format.ACKNOWLEDGED,
                _runs([(m.queue, m.first, m.last, m.client) for m in changes.acked]),
            )
        )
    if changes.dead:
        found.append(
            (format.DEAD, [[d.queue, d.seq, d.number, d.reason, d.by] for d in changes.dead])
        )
    dropped = [
        [d.queue, d.seq, d.number, d.by] for d in changes.closed_dead_letters if d.how == DISCARDED
    ]
    if dropped:
        found.append((format.DROPPED, dropped))
    if effects.acts:
        found.append((format.ACTS, [[a.by, a.what, a.detail] for a in effects.acts]))
    if not found and empty:
        # only counters: the commit has an entry nevertheless
        found.append((format.ACTS, []))
    return [format.Group(kind, orjson.dumps(value)) for kind, value in found]


def _runs(marks: list[tuple[str, int, int, str]]) -> list[list[object]]:
    """Join adjacent runs: a commit that delivers a thousand entries records one run."""
    out: list[list[object]] = []
    for queue, first, last, client in marks:
        before = out[-1] if out else None
        if (
            before is not None
            and before[0] == queue
            and before[2] == first - 1
            and before[3] == client
        ):
            before[2] = last
        else:
            out.append([queue, first, last, client])
    return out
