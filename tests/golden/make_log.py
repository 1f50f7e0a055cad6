"""Three entries of a signed log, their key, and the proof of one group; and a group of receipts as it travels."""

from __future__ import annotations

import hashlib

import nacl.signing

from cipherbox.envelope import log
from cipherbox.envelope.group import Unsigned
from cipherbox.envelope.kinds import Outcome, SignatureSuite
from cipherbox.envelope.receipt import Leaf, merkle_root
from tests.golden import files

KEY = nacl.signing.SigningKey(bytes(range(32)))


def main() -> None:
    entries, before = [], None
    for number in range(1, 4):
        at = 1_800_000_000_000 + number
        named = [bytes([number, i]) for i in range(number)]
        leaves = [log.leaf(name * 8, i, hashlib.sha256(name).digest()) for i, name in enumerate(named)]
        groups = [
            log.Group(log.ACCEPTED, log.accepted_payload(log.accepted_head("FL-LAB", at), leaves)),
            log.Group(log.ACKNOWLEDGED, b'[["box.CA-RC",1,%d,"CA-RC"]]' % number),
            log.Group(log.ACTS, b'[["admin","Grant",{"target":"FL-LAB"}]]'),
            log.Group(log.BUNDLE, log.bundle_payload("CA-RC", 2, hashlib.sha256(b"a bundle").digest())),
        ][: number + 1]
        roots = [log.root_of(group) for group in groups]
        previous = log.head_hash(*before) if before else log.NO_HASH
        head = log.Head(number, at, previous, merkle_root(roots), len(groups)).encode()
        signature = KEY.sign(log.signed_bytes(head)).signature
        before = (head, signature)
        entries.append(
            {
                "head": head.hex(), "signature": signature.hex(), "body": log.encode_groups(groups).hex(),
                "sender": "FL-LAB", "leaves": [one.hex() for one in leaves],
                "proof": log.make_proof(head, signature, roots, 0).hex(),
            }
        )  # fmt: skip
    named = log.read_bundle(groups[3].payload)
    bundle = {
        "client_id": named.client_id, "sequence": named.sequence, "hash": named.bundle_hash.hex(),
        "proof": log.make_proof(head, signature, roots, 3).hex(),
    }  # fmt: skip
    files.write("log", {"key": bytes(KEY.verify_key).hex(), "entries": entries, "bundle": bundle})
    leaves_of = [Leaf(s, bytes([n]) * 14 + b"\0\0", n, bytes([n]) * 32, 5, Outcome.OPENED) for n, s in
                 enumerate(["FL-LAB", "PA-LAB", "FL-LAB"])]  # fmt: skip
    unsigned = Unsigned.over("CA-RC", 1_800_000_000_000, bytes(32), SignatureSuite.ED25519, leaves_of)
    group = unsigned.group(bytes(64), "FL-LAB")
    files.write("receipt_group", {"sender": "FL-LAB", "root": unsigned.root.hex(), "group": group.hex()})
