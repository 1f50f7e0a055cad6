"""A second reader of the formats, written from the manual pages alone: it imports nothing of CipherBox.

It reads prefixes, unwraps stanzas, checks commitment and signatures, opens bodies, and checks bundles, receipts,
tokens and frames of the golden files.  When it and the program disagree, the manual or the program is wrong.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import nacl.signing
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mldsa, mlkem, padding, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

HERE = Path(__file__).parent


def golden(name: str) -> Any:
    return json.loads((HERE / f"{name}.json").read_text())


def label(use: str) -> bytes:
    return b"cipherbox/v1/" + use.encode() + b"\0"


def sha256(*parts: bytes) -> bytes:
    return hashlib.sha256(b"".join(parts)).digest()


class Cursor:
    def __init__(self, raw: bytes, at: int = 0) -> None:
        self.raw, self.at = raw, at

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.raw)
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def sized(self, size: int) -> bytes:
        return self.take(self.number(size))


# -- bundles ------------------------------------------------------------------------------------------------------


def read_bundle(raw: bytes) -> dict[str, Any]:
    c = Cursor(raw)
    assert c.take(6) == b"CBXB\x01\x00"
    bundle: dict[str, Any] = {"sequence": c.number(8), "created": c.number(8), "ends": c.number(8)}
    bundle["previous"] = c.take(32)
    bundle["client_id"] = c.sized(1).decode()
    bundle["keys"] = [(c.number(1), c.number(1), c.sized(2)) for _ in range(c.number(1))]
    bundle["chain"] = [c.sized(2) for _ in range(c.number(1))]
    bundle["hash"] = sha256(raw[: c.at])
    bundle["certified"] = c.sized(2)
    bundle["suite"] = c.number(1)
    bundle["continued"] = c.sized(2)
    assert c.at == len(raw)
    bundle["sign"] = {algorithm: key for usage, algorithm, key in bundle["keys"] if usage == 2}
    return bundle


def check_signatures(sign: dict[int, bytes], suite: int, message: bytes, signature: bytes) -> None:
    assert suite == (2 if 2 in sign else 1)
    nacl.signing.VerifyKey(sign[1]).verify(message, signature[:64])
    if suite == 2:
        mldsa.MLDSA65PublicKey.from_public_bytes(sign[2]).verify(signature[64:], message)
    assert len(signature) == {1: 64, 2: 64 + 3309}[suite]


def test_bundles() -> None:
    document = golden("bundles")
    root = x509.load_der_x509_certificate(bytes.fromhex(document["root"]))
    first: dict[str, Any] | None = None
    for row in document["bundles"]:
        bundle = read_bundle(bytes.fromhex(row["bundle"]))
        assert (bundle["client_id"], bundle["sequence"]) == (row["client_id"], row["sequence"])
        assert bundle["hash"].hex() == row["hash"]
        chain = [x509.load_der_x509_certificate(der) for der in bundle["chain"]]
        chain[0].verify_directly_issued_by(chain[1])
        chain[1].verify_directly_issued_by(root)
        key = chain[0].public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        key.verify(bundle["certified"], label("bundle") + bundle["hash"], ec.ECDSA(hashes.SHA384()))
        if bundle["previous"] == bytes(32):
            first = first or bundle
        else:
            assert first is not None
            assert bundle["previous"] == first["hash"]
            message = label("bundle-continuity") + bytes([bundle["suite"]]) + bundle["hash"]
            check_signatures(first["sign"], bundle["suite"], message, bundle["continued"])
        keys = b"".join(bytes([a]) + k for usage, a, k in bundle["keys"] if usage == 2)
        digits = sha256(label("fingerprint"), bundle["client_id"].encode(), b"\0", keys)[:16]
        number = f"{int.from_bytes(digits, 'big') % 10**30:030d}"
        assert row["fingerprint"] == " ".join(number[i : i + 5] for i in range(0, 30, 5))
    row = document["key_id"]
    wanted = sha256(label("key-id"), bytes([row["stanza_type"]]), bytes.fromhex(row["public_key"]))[:16]
    assert wanted.hex() == row["key_id"]


# -- envelopes ----------------------------------------------------------------------------------------------------

PREFIX = ">4sBBIIQQ16sIIBB32s32sHBBB"


def read_envelope(raw: bytes) -> dict[str, Any]:
    names = (
        "magic", "version", "flags", "length", "body", "sealed_at", "expires_at", "id", "generation", "count", "cipher",
        "suite", "bundle", "commitment", "recipients", "sender_size", "exchange_size", "key_size",
    )  # fmt: skip
    e: dict[str, Any] = dict(zip(names, struct.unpack_from(PREFIX, raw), strict=True))
    assert (e["magic"], e["version"], e["flags"], struct.calcsize(PREFIX)) == (b"CBXE", 1, 0, 125)
    c = Cursor(raw, 125)
    e["sender"], e["exchange"] = c.take(e["sender_size"]).decode(), c.take(e["exchange_size"]).decode()
    e["key"] = c.take(e["key_size"]).decode()
    entries = []
    for _ in range(e["recipients"]):
        key_id, kind, size = c.take(16), c.number(1), c.number(2)
        entries.append((key_id, kind, size, c.sized(1).decode()))
    assert c.at == e["length"]
    e["stanzas"] = [(key_id, kind, c.take(size), who) for key_id, kind, size, who in entries]
    e["header_hash"] = sha256(raw[: c.at])
    e["ciphertext"] = c.take(e["body"])
    e["envelope_hash"] = sha256(raw[: c.at])
    e["signatures"] = raw[c.at :]
    return e


def private_key(kind: int, seed: bytes) -> Any:
    if kind == 2:
        return x25519.X25519PrivateKey.from_private_bytes(seed)
    return hpke.MLKEM768X25519PrivateKey(
        mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:64]), x25519.X25519PrivateKey.from_private_bytes(seed[64:])
    )


def unwrap(raw: bytes, e: dict[str, Any], index: int, seeds: dict[int, bytes]) -> bytes:
    _, kind, stanza, _ = e["stanzas"][index]
    binding = sha256(raw[: e["length"]]) + index.to_bytes(2, "big")
    if kind == 3:
        return unwrap_rsa(stanza, seeds[3], label("stanza/rsa-oaep") + binding)
    name, kem = {1: ("hpke-mlkem768-x25519", hpke.KEM.MLKEM768_X25519), 2: ("hpke-x25519", hpke.KEM.X25519)}[kind]
    suite = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    assert len(stanza) == {1: 1168, 2: 80}[kind]
    return suite.decrypt(stanza, private_key(kind, seeds[kind]), info=label("stanza/" + name) + binding)


def unwrap_rsa(stanza: bytes, pkcs8: bytes, binding: bytes) -> bytes:
    key: Any = serialization.load_der_private_key(pkcs8, None)
    secret = key.decrypt(stanza[:-48], padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None))
    assert (len(secret), len(stanza)) == (32, key.key_size // 8 + 48)
    wrapping = AESGCM(HKDF(hashes.SHA256(), 32, b"cipherbox/v1", binding).derive(secret))
    return wrapping.decrypt(bytes(12), stanza[-48:], None)


def open_body(e: dict[str, Any], content_key: bytes) -> list[dict[str, Any]]:
    def derived(use: str, size: int) -> bytes:
        return HKDF(hashes.SHA256(), size, b"cipherbox/v1", label(use)).derive(content_key)

    assert derived("commitment", 32) == e["commitment"]
    cipher: Any = {1: AESGCM, 2: ChaCha20Poly1305}[e["cipher"]]
    plain = cipher(derived("body-key", 32)).decrypt(derived("body-nonce", 12), e["ciphertext"], e["header_hash"])
    c = Cursor(plain)
    assert c.number(1) == 1
    flags, count = c.number(1), c.number(4)
    assert count == e["count"]
    sizes = [c.number(4) for _ in range(count)]
    sent = [c.number(8) for _ in range(count)] if flags & 1 else [0] * count
    default = c.sized(1).decode()
    types = [c.sized(1).decode() or default for _ in range(count)] if flags & 2 else [default] * count
    headers: list[dict[str, str]] = [{} for _ in range(count)]
    if flags & 4:
        for found in headers:
            inner = Cursor(c.sized(2))
            for _ in range(inner.number(1)):
                key = inner.sized(1).decode()
                found[key] = inner.sized(2).decode()
            assert inner.at == len(inner.raw)
    contents = [c.take(size) for size in sizes]
    assert c.at == len(plain)
    return [
        {"content": a.hex(), "content_type": b, "headers": h, "sent_at": s or e["sealed_at"]}
        for a, b, h, s in zip(contents, types, headers, sent, strict=True)
    ]


ENVELOPES = [(document, row) for document in (golden("envelopes"), golden("rsa")) for row in document["opens"]]


@pytest.mark.parametrize(("document", "row"), ENVELOPES, ids=[row["name"] for _, row in ENVELOPES])
def test_envelopes(document: dict[str, Any], row: dict[str, Any]) -> None:
    raw = bytes.fromhex(row["envelope"])
    e = read_envelope(raw)
    sender = read_bundle(bytes.fromhex(document["bundles"][row["sender_bundle"]]))
    assert (e["bundle"], e["sender"]) == (sender["hash"], sender["client_id"])
    assert e["envelope_hash"].hex() == row["envelope_hash"]
    assert sha256(raw).hex() == row["stored_hash"]
    message = label("envelope-signature") + bytes([e["suite"]]) + e["envelope_hash"]
    check_signatures(sender["sign"], e["suite"], message, e["signatures"])
    wanted = [{**m, "sent_at": m["sent_at"] or e["sealed_at"]} for m in row["messages"]]
    for index, (key_id, kind, _, who) in enumerate(e["stanzas"]):
        seeds = {kind: bytes.fromhex(seed) for kind, seed in document["recipients"][who]}
        if bundle := document.get("recipient_bundles", {}).get(who):
            (public,) = [key for *use, key in read_bundle(bytes.fromhex(bundle))["keys"] if use == [1, kind]]
            assert key_id == sha256(label("key-id"), bytes([kind]), public)[:16]
        assert open_body(e, unwrap(raw, e, index, seeds)) == wanted


# -- receipts, tokens, frames -------------------------------------------------------------------------------------


def test_receipts() -> None:
    document = golden("receipts")
    signer = read_bundle(bytes.fromhex(document["bundle"]))
    for row in document["exported"]:
        raw = bytes.fromhex(row["exported"])
        c = Cursor(raw)
        assert c.take(6) == b"CBXR\x01\x00"
        assert c.sized(1).decode() == signer["client_id"]
        c.number(8)
        assert c.take(32) == signer["hash"]
        root, leaves, suite = c.take(32), c.number(4), c.number(1)
        assert root.hex() == document["root"]
        message = label("receipt") + bytes([suite]) + sha256(raw[: c.at])
        check_signatures(signer["sign"], suite, message, c.take({1: 64, 2: 3373}[suite]))
        start = c.at
        c.sized(1)
        c.take(16 + 4 + 32 + 8 + 1)
        c.take(c.number(4))
        assert raw[start : c.at].hex() == row["leaf"]
        node = sha256(b"\0", raw[start : c.at])
        index, path = c.number(4), [c.take(32) for _ in range(c.number(1))]
        assert c.at == len(raw)
        assert climb(node, index, leaves, path) == root


def climb(node: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """RFC 6962: the path's nearest sibling first; a tree splits at the largest power of two below its size."""
    if count == 1:
        assert not path
        return node
    k = 1
    while 2 * k < count:
        k *= 2
    if index < k:
        return sha256(b"\1", climb(node, index, k, path[:-1]), path[-1])
    return sha256(b"\1", path[-1], climb(node, index - k, count - k, path[:-1]))


def test_tokens() -> None:
    for row in golden("token"):
        text = row["text"].removeprefix("cipherbox-1-")
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        assert sha256(raw[:-4])[:4] == raw[-4:]
        c = Cursor(raw[:-4])
        assert c.number(1) == 1
        assert c.take(16).hex() == row["secret"]
        assert c.take(32).hex() == row["root_fingerprint"]
        assert c.number(8) == row["expires_at"]
        assert c.sized(1).decode() == row["client_id"]
        assert c.sized(2).decode() == row["address"]


def manual_table() -> tuple[dict[int, list[tuple[str, str]]], dict[str, list[tuple[str, str]]]]:
    """Frames and records as the manual page has them: name and type of each field."""
    page = (HERE.parent.parent / "cipherbox" / "manual" / "protocol.md").read_text()
    kinds: dict[int, list[tuple[str, str]]] = {}
    records: dict[str, list[tuple[str, str]]] = {}
    current: list[tuple[str, str]] | None = None
    for line in page.splitlines():
        if line.startswith("### "):
            words = line[4:].split()
            current = kinds.setdefault(int(words[0], 16), []) if len(words) == 2 else records.setdefault(words[0], [])
        elif line.startswith("## "):
            current = None
        elif current is not None and line.startswith("| ") and not line.startswith(("| field ", "| ---")):
            name, kind = [part.strip() for part in line.split("|")[1:3]]
            current.append((name, kind))
    return kinds, records


def read_value(c: Cursor, kind: str, records: dict[str, list[tuple[str, str]]]) -> Any:
    if kind.startswith("listing of "):
        return [read_value(c, kind.removeprefix("listing of "), records) for _ in range(c.number(4))]
    if kind in records:
        return {name: read_value(c, inner, records) for name, inner in records[kind]}
    if kind in ("u8", "u16", "u32", "u64"):
        return c.number(int(kind[1:]) // 8)
    if kind == "flag":
        return bool(c.number(1))
    if kind == "id16":
        return c.take(16).hex()
    if kind in ("text8", "text16"):
        return c.sized(int(kind[4:]) // 8).decode()
    return c.sized(4).hex() if kind == "blob" else c.take(len(c.raw) - c.at).hex()


def test_frames_by_the_tables_of_the_manual() -> None:
    kinds, records = manual_table()
    for row in golden("frames"):
        raw = bytes.fromhex(row["frame"])
        assert int.from_bytes(raw[:4], "big") == len(raw) - 4
        assert raw[4] == row["kind"]
        c = Cursor(raw, 5)
        assert {name: read_value(c, kind, records) for name, kind in kinds[raw[4]]} == row["fields"]
        assert c.at == len(raw)


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, from hashed leaves."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + tree_root(leaves[:k]) + tree_root(leaves[k:]))


def test_the_signed_log() -> None:
    document = golden("log")
    key = nacl.signing.VerifyKey(bytes.fromhex(document["key"]))
    before = bytes(32)
    for number, row in enumerate(document["entries"], 1):
        head, signature = bytes.fromhex(row["head"]), bytes.fromhex(row["signature"])
        key.verify(b"cipherbox/v1/log-head\x00" + sha256(head), signature)
        c = Cursor(head)
        assert (c.take(4), c.number(1), c.number(8)) == (b"CBXL", 1, number)
        at, previous, root, groups = c.take(8), c.take(32), c.take(32), c.number(4)
        assert previous == before
        before = sha256(head + signature)
        body, roots = Cursor(bytes.fromhex(row["body"])), []
        while body.at < len(body.raw):
            kind = body.take(1)
            payload = body.sized(4)
            if kind != b"\x01":
                roots.append(sha256(b"\x00" + kind + payload))
                continue
            inner = Cursor(payload)
            assert inner.sized(1).decode() == row["sender"]
            assert inner.take(8) == at
            common = payload[: inner.at]
            leaves = [inner.take(52) for _ in row["leaves"]]
            assert [leaf.hex() for leaf in leaves] == row["leaves"]
            roots.append(tree_root([sha256(b"\x00\x01" + common + leaf) for leaf in leaves]))
        assert len(roots) == groups
        assert tree_root(roots) == root
        proof = Cursor(bytes.fromhex(row["proof"]))
        assert proof.take(len(head) + 64) == head + signature
        assert proof.number(4) == 0
        steps = [proof.take(32) for _ in range(proof.number(1))]
        assert proof.at == len(proof.raw)
        climbed = roots[0]
        for step in steps:  # the group is the first of at most four, so always on the left
            climbed = sha256(b"\x01" + climbed + step)
        assert climbed == root
    bundle = document["bundle"]
    name = bundle["client_id"].encode()
    payload = bytes([len(name)]) + name + bundle["sequence"].to_bytes(8, "big") + bytes.fromhex(bundle["hash"])
    assert sha256(b"\x00\x07" + payload) == roots[3]
    proof = Cursor(bytes.fromhex(bundle["proof"]))
    assert proof.take(len(head) + 64) == head + signature
    assert (proof.number(4), proof.number(1)) == (3, 2)
    assert [proof.take(32) for _ in range(2)] == [roots[2], sha256(b"\x01" + roots[0] + roots[1])]


def test_a_group_of_receipts() -> None:
    row = golden("receipt_group")
    c = Cursor(bytes.fromhex(row["group"]))
    assert (c.take(4), c.number(1), c.number(1)) == (b"CBXR", 1, 0)
    assert c.sized(1) == b"CA-RC"
    c.take(8 + 32)
    root, count = c.take(32), c.number(4)
    assert c.number(1) == 1
    c.take(64)
    hashed, own = [], 0
    for _ in range(count):
        if c.number(1) == 0:
            hashed.append(c.take(32))
            continue
        start = c.at
        assert c.sized(1).decode() == row["sender"]
        c.take(16 + 4 + 32 + 8 + 1)
        c.take(c.number(4))
        hashed.append(sha256(b"\x00" + c.raw[start : c.at]))
        own += 1
    assert (own, c.at) == (2, len(c.raw))
    assert tree_root(hashed) == root == bytes.fromhex(row["root"])


def test_it_is_a_second_reader() -> None:
    tree = ast.parse(Path(__file__).read_text())
    names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names]
    names += [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
    assert not [name for name in names if name.split(".")[0] in ("cipherbox", "tests")]
