"""The second reader on golden bundles and envelopes; and that it is one."""

from __future__ import annotations

import ast
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from tests.golden.second_reader import (
    HERE,
    check_signatures,
    golden,
    label,
    open_body,
    read_bundle,
    read_envelope,
    sha256,
    unwrap,
)


def test_bundles() -> None:
    document = golden("bundles")
    root = x509.load_der_x509_certificate(bytes.fromhex(document["root"]))
    known: dict[bytes, dict[str, Any]] = {}
    for row in document["history"] + document["bundles"]:
        bundle = read_bundle(bytes.fromhex(row["bundle"]))
        assert (bundle["client_id"], bundle["sequence"]) == (row["client_id"], row["sequence"])
        assert bundle["hash"].hex() == row["hash"]
        chain = [x509.load_der_x509_certificate(der) for der in bundle["chain"]]
        chain[0].verify_directly_issued_by(chain[1])
        chain[1].verify_directly_issued_by(root)
        key = chain[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(bundle["certified"], label("bundle") + bundle["hash"], ec.ECDSA(hashes.SHA384()))
        if bundle["version"] == 2:
            message = label("bundle-own") + bytes([bundle["own_suite"]]) + bundle["hash"]
            check_signatures(bundle["sign"], bundle["own_suite"], message, bundle["own"])
        if bundle["previous"] != bytes(32):
            before = known[bundle["previous"]]
            message = label("bundle-continuity") + bytes([bundle["suite"]]) + bundle["hash"]
            check_signatures(before["sign"], bundle["suite"], message, bundle["continued"])
        known[bundle["hash"]] = bundle
        digits = sha256(label("bundle-number"), bundle["hash"])[:16]
        number = f"{int.from_bytes(digits, 'big') % 10**30:030d}"
        assert row["fingerprint"] == " ".join(number[i : i + 5] for i in range(0, 30, 5))
    row = document["key_id"]
    wanted = sha256(label("key-id"), bytes([row["stanza_type"]]), bytes.fromhex(row["public_key"]))[
        :16
    ]
    assert wanted.hex() == row["key_id"]


ENVELOPES = [
    (document, row)
    for document in (golden("envelopes"), golden("rsa"))
    for row in document["opens"]
]


@pytest.mark.parametrize(("document", "row"), ENVELOPES, ids=[row["name"] for _, row in ENVELOPES])
def test_envelopes(document: dict[str, Any], row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["envelope"])
    e = read_envelope(raw)
    sender = read_bundle(bytes.fromhex(document["bundles"][row["sender_bundle"]]))
    assert (e["bundle"], e["sender"]) == (sender["hash"], sender["client_id"])
    assert e["envelope_hash"].hex() == row["envelope_hash"]
    assert sha256(raw).hex() == row["stored_hash"]
    assert e["prompt_receipt"] == (row["name"] == "prompt receipt")
    message = label("envelope-signature") + bytes([e["suite"]]) + e["envelope_hash"]
    check_signatures(sender["sign"], e["suite"], message, e["signatures"])
    wanted = [{**m, "sent_at": m["sent_at"] or e["sealed_at"]} for m in row["messages"]]
    for index, (key_id, kind, _, who) in enumerate(e["stanzas"]):
        seeds = {kind: bytes.fromhex(seed) for kind, seed in document["recipients"][who]}
        if bundle := document.get("recipient_bundles", {}).get(who):
            (public,) = [
                key for *use, key in read_bundle(bytes.fromhex(bundle))["keys"] if use == [1, kind]
            ]
            assert key_id == sha256(label("key-id"), bytes([kind]), public)[:16]
        assert open_body(e, unwrap(raw, e, index, seeds)) == wanted


def test_it_is_a_second_reader() -> None:
    for path in HERE.glob("*second_reader*.py"):
        tree = ast.parse(path.read_text())
        names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
        names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        ours = {name for name in names if name.split(".")[0] in ("cipherbox", "tests")}
        assert ours <= {"tests.golden.second_reader"}, path
