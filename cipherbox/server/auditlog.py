"""Makes HQ's signed log: one entry for each commit, chained and signed; `envelope.log` has the format.

The key is HQ's own (Ed25519), made at the first start, encrypted under the service key, and certified by HQ's TLS key,
so that a client knows it from the connection.  `entry` only makes; `committed` moves on.  After a failed commit nothing
has moved, and the next commit takes the same index.
"""

from __future__ import annotations

import os
from pathlib import Path

import nacl.signing
import orjson
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from cipherbox import pki
from cipherbox.broker.model import DROPPED, Effects, LogRow
from cipherbox.envelope import log as format
from cipherbox.envelope.kinds import label
from cipherbox.envelope.receipt import merkle_root
from cipherbox.errors import ConfigError
from cipherbox.portable import read_private, write_private

KEY_FILE = "log.key"
_KEY_USE = label("log-key")


def load_key(path: Path, service_key: bytes) -> nacl.signing.SigningKey:
    """HQ's log key; made if there is none yet.  ConfigError if it is not under this service key."""
    aead = ChaCha20Poly1305(service_key)
    if not path.exists():
        seed, nonce = bytes(nacl.signing.SigningKey.generate()), os.urandom(12)
        write_private(path, nonce + aead.encrypt(nonce, seed, _KEY_USE))
        return nacl.signing.SigningKey(seed)
    data = read_private(path)
    try:
        return nacl.signing.SigningKey(aead.decrypt(data[:12], data[12:], _KEY_USE))
    except (InvalidTag, ValueError):
        raise ConfigError(f"{path} cannot be read with this service key; restore both from your backup") from None


def certified(key: nacl.signing.SigningKey, server_key: pki.PrivateKey) -> bytes:
    """The public key, and HQ's TLS key's signature over it: what WELCOME carries."""
    public = bytes(key.verify_key)
    return public + server_key.sign(_KEY_USE + public, ec.ECDSA(hashes.SHA384()))


class AuditLog:
    """See the module.  ``last`` is the newest entry in the store."""

    def __init__(self, key: nacl.signing.SigningKey, last: LogRow | None) -> None:
        self._key = key
        self._last = last

    def load(self, last: LogRow | None) -> None:
        """The store's word on what the newest entry is."""
        self._last = last

    @property
    def public(self) -> bytes:
        """The log key's public half."""
        return bytes(self._key.verify_key)

    def entry(self, effects: Effects, at: int) -> tuple[LogRow, dict[int | bytes, bytes]]:
        """The entry for a batch, and its proofs: by connection that published in it, by hash of a key bundle."""
        groups: list[format.Group] = []
        roots: list[bytes] = []
        of: dict[int | bytes, int] = {}
        for connection, items in effects.accepted.items():
            if not items:
                continue
            head = format.accepted_head(items[0][3], at)
            leaves = [i[4] + i[5].to_bytes(4, "big") + i[7] for i in items]
            of[connection] = len(groups)
            groups.append(format.Group(format.ACCEPTED, format.accepted_payload(head, leaves)))
            roots.append(format.group_root(format.ACCEPTED, head, leaves))
        for bundle in effects.changes.bundles:
            payload = format.bundle_payload(bundle.client, bundle.sequence, bundle.bundle_hash)
            of[bundle.bundle_hash] = len(groups)
            groups.append(format.Group(format.BUNDLE, payload))
            roots.append(format.root_of(groups[-1]))
        for group in _events(effects):
            groups.append(group)
            roots.append(format.root_of(group))
        last = self._last
        previous = format.head_hash(last.head, last.signature) if last is not None else format.NO_HASH
        index = last.index + 1 if last is not None else 1
        head_bytes = format.Head(index, at, previous, merkle_root(roots), len(groups)).encode()
        signature = self._key.sign(format.signed_bytes(head_bytes)).signature
        row = LogRow(index, at, head_bytes, signature, format.encode_groups(groups))
        proofs = {c: format.make_proof(head_bytes, signature, roots, number) for c, number in of.items()}
        return row, proofs

    def committed(self, row: LogRow) -> None:
        """The commit with this entry succeeded."""
        self._last = row


def _events(effects: Effects) -> list[format.Group]:
    changes = effects.changes
    found: list[tuple[int, object]] = []
    if changes.delivered or any(e.delivered_at for e in changes.entries):
        marks = [(m.queue, m.first, m.last, m.client) for m in changes.delivered]
        marks += [(e.queue, e.seq, e.seq, e.client) for e in changes.entries if e.delivered_at]
        found.append((format.DELIVERED, _runs(marks)))
    if changes.acked:
        found.append((format.ACKNOWLEDGED, _runs([(m.queue, m.first, m.last, m.client) for m in changes.acked])))
    if changes.dead:
        found.append((format.DEAD, [[d.queue, d.seq, d.number, d.reason, d.by] for d in changes.dead]))
    dropped = [[d.queue, d.seq, d.number, d.by] for d in changes.settled if d.how == DROPPED]
    if dropped:
        found.append((format.DROPPED, dropped))
    if effects.acts:
        found.append((format.ACTS, [[a.by, a.what, a.detail] for a in effects.acts]))
    if not found and not changes.bundles and not any(effects.accepted.values()):
        found.append((format.ACTS, []))  # counters and the like: the commit has its entry all the same
    return [format.Group(kind, orjson.dumps(value)) for kind, value in found]


def _runs(marks: list[tuple[str, int, int, str]]) -> list[list[object]]:
    """Neighbours joined: a commit that delivers a thousand entries says so in one line."""
    out: list[list[object]] = []
    for queue, first, last, client in marks:
        before = out[-1] if out else None
        if before is not None and before[0] == queue and before[2] == first - 1 and before[3] == client:
            before[2] = last
        else:
            out.append([queue, first, last, client])
    return out
