"""Requests to HQ's signed log: heads, proofs, cosignatures, and for admins its entries."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import orjson

from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as format
from cipherbox.envelope.checkpoint import COSIGNATURE_BYTES, decode_note, verify_checkpoint
from cipherbox.errors import EnvelopeError, InvalidRequest
from cipherbox.server.log_statements import LENGTH, REVOKED, note
from cipherbox.server.requests.services import Handler, Requester, Services
from cipherbox.server.transparency_log import TransparencyLog
from cipherbox.store.port import Store
from cipherbox.store.rows import decoding
from cipherbox.wire import frames as f

MOST = 256  # sizes, envelopes or serials of one request
MOST_WITNESSES = 64
_LOG_ENTRIES, _LOG_BYTES = 1000, 4 * 1024 * 1024  # of one page
_MOST_RESTORED = 16
_COSIGNED, _RESTORED = "cosigned/", "log-restored/"


def _audit(hq: Services) -> TransparencyLog:
    audit = hq.engine.audit
    if audit is None:
        raise InvalidRequest("this HQ has no signed log")
    return audit


# -- heads and witnesses ---------------------------------------------------------------------------


async def _get_heads(hq: Services, s: Requester, x: f.GetHeads) -> object:
    audit, store = _audit(hq), hq.store
    if len(x.sizes) > MOST or any(a >= b for a, b in pairwise(x.sizes)):
        raise InvalidRequest(f"sizes must be ascending and at most {MOST}")
    size, head = audit.newest(hq.clock_ms())
    proofs = await hq.engine.in_store(_consistency, store, [*x.sizes, size], size)
    return f.Heads(x.correlation, head, proofs, await hq.engine.in_store(cosigned_heads, store))


def _consistency(store: Store, sizes: Sequence[int], most: int) -> list[bytes]:
    """Return the proof from each size to the next; empty where HQ's log has fewer entries."""
    pairs = list(pairwise(sizes))
    wanted: dict[tree.Node, bytes] = {}
    # collect the hashes they need
    _prove_pairs(pairs, most, lambda nodes: [wanted.setdefault(node, b"") for node in nodes])
    # proofs share most of them
    wanted.update(zip(wanted, store.log_nodes(list(wanted)), strict=True))
    return _prove_pairs(pairs, most, lambda nodes: [wanted[node] for node in nodes])


def _prove_pairs(pairs: Sequence[tuple[int, int]], most: int, read: tree.Nodes) -> list[bytes]:
    return [
        b"".join(tree.consistency_proof(a, b, read)) if a <= b <= most else b"" for a, b in pairs
    ]


def cosigned_heads(store: Store) -> list[bytes]:
    names = _names(store, _COSIGNED)
    return [note for name in names if (note := store.get_setting(_COSIGNED + name))]


async def _cosign(hq: Services, s: Requester, x: f.Cosign) -> object:
    """Store a cosigned checkpoint; only those who know the witness's key can verify it."""
    audit, store = _audit(hq), hq.store
    hq.key_requests.spend(s.client)
    try:
        signed = verify_checkpoint(x.note, audit.public)
        signatures = decode_note(x.note).signatures
        added = [one for one in signatures if one.name != signed.origin]
    except EnvelopeError as error:
        raise InvalidRequest(f"this is not a cosigned head of HQ's log: {error}") from None
    if (
        [one.name for one in added] != [s.client]
        or len(added[0].signature) != COSIGNATURE_BYTES
        or len(signatures) != 2
    ):
        raise InvalidRequest(
            f"a witness may submit only its own cosignature, with the name {s.client}"
        )
    if signed.origin != audit.origin or signed.size > audit.size:
        raise InvalidRequest("this head is not of this incarnation of HQ's store")
    await hq.engine.in_store(keep_cosigned, store, s.client, x.note)
    return f.Ok(x.correlation, 1)


def keep_cosigned(store: Store, client: str, note: bytes) -> None:
    """Keep one cosigned checkpoint per client, of the clients that cosigned most recently: clients
    that nobody uses as a witness cannot displace one that continues to cosign.
    """
    names = _names(store, _COSIGNED)
    order = [*(name for name in names if name != client), client]
    for name in order[:-MOST_WITNESSES]:
        store.put_setting(_COSIGNED + name, b"")
    store.put_setting(_COSIGNED + client, note)
    if order != names:
        store.put_setting(_COSIGNED, orjson.dumps(order[-MOST_WITNESSES:]))


# -- proofs ----------------------------------------------------------------------------------------


async def _prove(hq: Services, s: Requester, x: f.Prove) -> object:
    audit, store = _audit(hq), hq.store
    if len(x.envelopes) > MOST or len(x.serials) > MOST:
        raise InvalidRequest(f"at most {MOST} envelopes and serials in one request")
    in_store = hq.engine.in_store
    who = "" if hq.admission.is_admin(s.client) else s.client
    newest = audit.newest(hq.clock_ms())
    entry = _Entry()
    proofs = [
        await in_store(_acceptance_for, store, e.sender_id, e.envelope_id, who, newest, entry)
        for e in x.envelopes
    ]
    revoked = [
        await in_store(_statement, store, REVOKED + serial.lower(), format.REVOKED)
        for serial in x.serials
    ]
    statements = []
    if x.incarnation:
        statements = await in_store(_begun, store, hq.engine.incarnation, newest)
        for incarnation in (await in_store(_restored, store))[-_MOST_RESTORED:]:
            statements.append(
                await in_store(_statement, store, _RESTORED + incarnation, format.RESTORED)
            )
    return f.Proven(x.correlation, proofs, revoked, statements)


def _acceptance_for(
    store: Store,
    sender: str,
    envelope_id: bytes,
    who: str,
    newest: tuple[int, bytes],
    entry: _Entry,
) -> bytes:
    """Return the proof of an envelope that ``who`` (empty: an admin) sent or may read, else
    nothing.

    One envelope per call: it may read a whole entry, and commits wait for it.
    """
    report = store.trace(sender, envelope_id) if who not in ("", sender) else None
    mine = who in ("", sender) or (
        report is not None and any(who in trace.readers for trace in report.traces)
    )
    return _acceptance(store, sender, envelope_id, newest, entry) if mine else b""


def _acceptance(
    store: Store, sender: str, envelope_id: bytes, newest: tuple[int, bytes], entry: _Entry
) -> bytes:
    known = store.acceptance(sender, envelope_id)
    if known is None or not 0 < known.entry <= newest[0] or not entry.read(store, known.entry):
        return b""  # of the log before 0.6, or deleted by retention
    wanted = format.leaf(envelope_id, known.generation, known.envelope_hash)
    for at, group in enumerate(entry.groups):
        if group.kind != format.ACCEPTED or format.read_accepted(group.payload)[0] != sender:
            continue
        leaves, hashes = entry.leaves(at)
        if wanted in leaves:
            path = tree.inclusion_proof(known.entry - 1, newest[0], store.log_nodes)
            return format.make_proof(
                entry.record, entry.roots, at, path, newest[1], hashes, leaves.index(wanted)
            )
    return b""


class _Entry:
    """A cache of the last entry read: envelopes accepted together are asked for together."""

    def __init__(self) -> None:
        self._index = 0
        self.record = b""
        self.groups: list[format.Group] = []
        self.roots: list[bytes] = []
        self._leaves: dict[int, tuple[Any, Any]] = {}

    def read(self, store: Store, index: int) -> bool:
        """Read an entry; return whether HQ has it."""
        if index != self._index:
            rows = store.log(index - 1, 1, 1)
            if not rows or rows[0].index != index:
                return False
            self._index, self.record, self._leaves = index, rows[0].record, {}
            self.groups = format.decode_groups(rows[0].body)
            self.roots = [format.root_of(one) for one in self.groups]
        return True

    def leaves(self, at: int) -> tuple[Any, Any]:
        """Return the leaves of a group of accepted envelopes, and their hashes."""
        if at not in self._leaves:
            self._leaves[at] = format.leaf_hashes_of(self.groups[at].payload)[1:]
        return self._leaves[at]


def _begun(store: Store, incarnation: bytes, newest: tuple[int, bytes]) -> list[f.LogStatement]:
    """Return the statement in the first entry of this incarnation, with its proof."""
    entry = store.first_of(incarnation)
    rows = store.log(entry - 1, 1, 1) if 0 < entry <= newest[0] else []
    if not rows or rows[0].index != entry:
        return []
    groups = format.decode_groups(rows[0].body)
    path = tree.inclusion_proof(entry - 1, newest[0], store.log_nodes)
    proof = format.make_proof(
        rows[0].record, [format.root_of(one) for one in groups], 0, path, newest[1]
    )
    return [f.LogStatement(groups[0].kind, groups[0].payload, proof)]


def _statement(store: Store, name: str, kind: int) -> f.LogStatement:
    raw = store.get_setting(name)
    if raw is None:
        return f.LogStatement(0, b"", b"")
    end = LENGTH + int.from_bytes(raw[:LENGTH], "big")
    return f.LogStatement(kind, raw[LENGTH:end], raw[end:])


async def _attest_restore(hq: Services, s: Requester, x: f.AttestRestore) -> object:
    """Log an admin's signed statement of a restore; clients verify its signature.

    HQ keeps the newest statement of each incarnation: a client may have seen an old one, or see its
    heads in the receipts of others.
    """
    s.need_admin()
    audit = _audit(hq)
    if len(x.statement) > 64 * 1024:
        raise InvalidRequest("the statement is too long")
    incarnation = hq.engine.incarnation.hex()
    await note(hq.engine, hq.store, format.RESTORED, x.statement, [_RESTORED + incarnation])
    await hq.engine.in_store(_list_restored, hq.store, incarnation)
    return f.Ok(x.correlation, audit.size)


def _restored(store: Store) -> list[str]:
    """Return the incarnations that an admin has attested as restored, oldest first."""
    return _names(store, _RESTORED)


def _names(store: Store, setting: str) -> list[str]:
    with decoding(f"the setting {setting}"):
        return list(orjson.loads(store.get_setting(setting) or b"[]"))


def _list_restored(store: Store, incarnation: str) -> None:
    before = [one for one in _restored(store) if one != incarnation]
    store.put_setting(_RESTORED, orjson.dumps([*before, incarnation]))


# -- entries ---------------------------------------------------------------------------------------


async def _read_log(hq: Services, s: Requester, x: f.ReadLog) -> object:
    s.need_admin()
    store, in_store = hq.store, hq.engine.in_store
    most = min(x.count, _LOG_ENTRIES)
    size, head = _audit(hq).newest(hq.clock_ms())
    if x.old:
        last = await in_store(store.last_old_log)
        rows = await in_store(store.old_log, x.after, most, _LOG_BYTES)
        entries = [f.LogEntry(row.head, row.body, row.signature) for row in rows]
        return f.LogEntries(x.correlation, last.index if last is not None else 0, entries, [], head)
    new = [row for row in await in_store(store.log, x.after, most, _LOG_BYTES) if row.index <= size]
    before = tree.edge_nodes(new[0].index - 1) if new else []
    edge = await in_store(store.log_nodes, before)
    return f.LogEntries(
        x.correlation, size, [f.LogEntry(row.record, row.body, b"") for row in new], edge, head
    )


CALLS: dict[type, Handler] = {
    f.GetHeads: _get_heads,
    f.Cosign: _cosign,
    f.Prove: _prove,
    f.AttestRestore: _attest_restore,
    f.ReadLog: _read_log,
}
