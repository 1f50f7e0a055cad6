"""Entries of a signed log with their checkpoints and proofs, a cosigned one; and a group of
receipts as it travels.
"""

from __future__ import annotations

import hashlib

import nacl.signing

from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.checkpoint import (
    Checkpoint,
    Note,
    VerifierKey,
    cosign,
    decode_note,
    origin_of,
    sign_checkpoint,
)
from cipherbox.envelope.group import Unsigned
from cipherbox.envelope.outcomes import Outcome
from cipherbox.envelope.receipt import Leaf
from cipherbox.envelope.suites import SignatureSuite
from tests.golden import files

KEY = nacl.signing.SigningKey(bytes(range(32)))
WITNESS = nacl.signing.SigningKey(bytes(range(1, 33)))
PUBLIC = bytes(KEY.verify_key)
ORIGIN = origin_of(PUBLIC, bytes(range(16)))
AT = 1_800_000_000_000


def groups_of(number: int, at: int) -> list[log.Group]:
    named = [bytes([number, i]) for i in range(number)]
    leaves = [log.leaf(name * 8, i, hashlib.sha256(name).digest()) for i, name in enumerate(named)]
    return [
        log.Group(log.ACCEPTED, log.accepted_payload(log.accepted_head("FL-LAB", at), leaves)),
        log.Group(log.ACKNOWLEDGED, b'[["box.CA-RC",1,%d,"CA-RC"]]' % number),
        log.Group(log.ACTS, b'[["admin","Grant",{"target":"FL-LAB"}]]'),
        log.Group(log.BUNDLE, log.bundle_payload("CA-RC", 2, hashlib.sha256(b"a bundle").digest())),
    ][: number + 1]


def main() -> None:
    edge, rows, notes, entries = tree.RightEdge(), {}, [], []
    for number in range(1, 8):
        at = AT + number
        groups = groups_of(min(number, 3), at)
        roots = [log.root_of(group) for group in groups]
        record = log.Record(number, at, tree.merkle_root(roots), len(groups)).encode()
        path = edge.path()
        rows[number] = edge.append(tree.leaf_hash(record))
        note = sign_checkpoint(Checkpoint(ORIGIN, number, edge.root(), at), KEY)
        notes.append(note)
        _, leaves, hashes = log.leaf_hashes_of(groups[0].payload)
        entries.append(
            {
                "record": record.hex(),
                "body": log.encode_groups(groups).hex(),
                "checkpoint": note.decode(),
                "sender": "FL-LAB",
                "accepted_at": at,
                "leaves": [one.hex() for one in leaves],
                "proof": log.make_proof(record, roots, 0, path, note).hex(),
                "proof_of_first": log.make_proof(record, roots, 0, path, note, hashes, 0).hex(),
            }
        )
    named = log.read_bundle(groups[3].payload)
    bundle = {
        "client_id": named.client_id,
        "sequence": named.sequence,
        "hash": named.bundle_hash.hex(),
        "proof": log.make_proof(record, roots, 3, path, notes[-1]).hex(),
    }

    def read(nodes: object) -> list[bytes]:
        return [rows[tree.completed_by(node)][node[0]] for node in nodes]  # type: ignore[attr-defined]

    consistency = [
        {
            "old": old,
            "new": new,
            "proof": [one.hex() for one in tree.consistency_proof(old, new, read)],
        }
        for old, new in ((1, 7), (3, 7), (4, 7), (6, 7), (7, 7), (2, 5))
    ]
    head = decode_note(notes[-1])
    signature = cosign(head.text, "STATE-AUDIT", WITNESS, AT // 1000)
    witness = {
        "key": VerifierKey("STATE-AUDIT", 4, bytes(WITNESS.verify_key)).text,
        "at": AT // 1000,
        "note": Note(head.text, (*head.signatures, signature)).encode().decode(),
    }
    files.write(
        "log",
        {
            "key": PUBLIC.hex(),
            "incarnation": bytes(range(16)).hex(),
            "entries": entries,
            "bundle": bundle,
            "consistency": consistency,
            "witness": witness,
        },
    )
    leaves_of = [
        Leaf(s, bytes([n]) * 14 + b"\0\0", n, bytes([n]) * 32, 5, Outcome.OPENED)
        for n, s in enumerate(["FL-LAB", "PA-LAB", "FL-LAB"])
    ]
    unsigned = Unsigned.over("CA-RC", AT, bytes(32), SignatureSuite.ED25519, leaves_of, notes[-1])
    group = unsigned.group(bytes(64), "FL-LAB")
    files.write(
        "receipt_group",
        {
            "sender": "FL-LAB",
            "root": unsigned.root.hex(),
            "group": group.hex(),
            "checkpoint": notes[-1].decode(),
        },
    )
