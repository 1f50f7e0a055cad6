"""The second reader on golden receipts, tokens, frames and the log."""

from __future__ import annotations

import base64
from typing import Any

import nacl.signing

from tests.golden.second_reader import (
    HERE,
    Cursor,
    check_signatures,
    climb,
    golden,
    label,
    read_bundle,
    sha256,
    tree_root,
)


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
