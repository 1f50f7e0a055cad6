"""The second reader on golden receipts, tokens, frames and the log."""

from __future__ import annotations

import base64
from typing import Any

import nacl.signing
import pytest

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


@pytest.mark.parametrize("version", [2, 1])
def test_receipts(version: int) -> None:
    document = golden("receipts" if version == 2 else "receipts_v1")
    signer = read_bundle(bytes.fromhex(document["bundle"]))
    for row in document["exported"]:
        raw = bytes.fromhex(row["exported"])
        c = Cursor(raw)
        assert c.take(6) == b"CBXR" + bytes([version, 0])
        assert c.sized(1).decode() == signer["client_id"]
        c.number(8)
        assert c.take(32) == signer["hash"]
        root, leaves = c.take(32), c.number(4)
        note = c.sized(2) if version == 2 else b""
        assert note.decode() == document.get("checkpoint", "")
        suite = c.number(1)
        assert root.hex() == document["root"]
        message = label("receipt") + bytes([suite]) + sha256(raw[: c.at])
        check_signatures(signer["sign"], suite, message, c.take({1: 64, 2: 3373}[suite]))
        start = c.at
        c.sized(1)
        c.take(16 + 4 + 32 + 8 + 1 + (40 if version == 2 else 0))
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
            current = (
                kinds.setdefault(int(words[0], 16), [])
                if len(words) == 2
                else records.setdefault(words[0], [])
            )
        elif line.startswith("## "):
            current = None
        elif (
            current is not None
            and line.startswith("| ")
            and not line.startswith(("| field ", "| ---"))
        ):
            name, kind = [part.strip() for part in line.split("|")[1:3]]
            current.append((name, kind))
    return kinds, records


def read_value(c: Cursor, kind: str, records: dict[str, list[tuple[str, str]]]) -> Any:
    if kind.startswith("listing of "):
        return [
            read_value(c, kind.removeprefix("listing of "), records) for _ in range(c.number(4))
        ]
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


def checkpoint(note: str, public: bytes, incarnation: bytes) -> tuple[int, bytes]:
    """Size and root of a signed note, read and verified as C2SP's signed-note and
    tlog-checkpoint say.
    """
    text, lines = note.rsplit("\n\n", 1)
    text += "\n"
    origin, size, root, at, _ = text.split("\n")
    assert origin == f"cipherbox/{sha256(public).hex()[:16]}/{incarnation.hex()}"
    assert at.startswith("at ")
    mark, name, signature = lines.split("\n")[0].split(" ")
    raw = base64.b64decode(signature)
    assert (mark, name) == ("\u2014", origin)
    assert raw[:4] == sha256(origin.encode() + b"\n\x01" + public)[:4]
    nacl.signing.VerifyKey(public).verify(text.encode(), raw[4:])
    return int(size), base64.b64decode(root)


def read_proof(raw: bytes) -> dict[str, Any]:
    c = Cursor(raw)
    assert (c.number(1), c.number(1)) == (2, 0)
    found: dict[str, Any] = {"leaves": c.number(4), "leaf": c.number(4)}
    found["own"] = [c.take(32) for _ in range(c.number(1))]
    found["record"] = c.take(58)
    found["group"] = c.number(4)
    found["inner"] = [c.take(32) for _ in range(c.number(1))]
    found["path"] = [c.take(32) for _ in range(c.number(1))]
    found["checkpoint"] = c.sized(2).decode()
    assert c.at == len(raw)
    return found


def test_the_signed_log() -> None:
    document = golden("log")
    public, incarnation = bytes.fromhex(document["key"]), bytes.fromhex(document["incarnation"])
    leaves_of_tree: list[bytes] = []
    roots_of_tree: dict[int, bytes] = {}
    for number, row in enumerate(document["entries"], 1):
        record = bytes.fromhex(row["record"])
        c = Cursor(record)
        assert (c.take(4), c.number(1), c.number(1), c.number(8)) == (b"CBXL", 2, 0, number)
        at, root, groups = c.take(8), c.take(32), c.number(4)
        assert c.at == len(record)
        body, roots, first = Cursor(bytes.fromhex(row["body"])), [], []
        while body.at < len(body.raw):
            kind = body.take(1)
            payload = body.sized(4)
            if kind != b"\x01":
                roots.append(sha256(b"\x00" + kind + payload))
                continue
            inner = Cursor(payload)
            assert inner.sized(1).decode() == row["sender"]
            assert inner.take(8) == at == row["accepted_at"].to_bytes(8, "big")
            common = payload[: inner.at]
            leaves = [inner.take(52) for _ in row["leaves"]]
            assert [leaf.hex() for leaf in leaves] == row["leaves"]
            first = [sha256(b"\x00\x01" + common + leaf) for leaf in leaves]
            roots.append(tree_root(first))
        assert len(roots) == groups
        assert tree_root(roots) == root
        leaves_of_tree.append(sha256(b"\x00" + record))
        size, tree = checkpoint(row["checkpoint"], public, incarnation)
        assert (size, tree) == (number, tree_root(leaves_of_tree))
        roots_of_tree[size] = tree
        for name, own in (("proof", []), ("proof_of_first", first)):
            proof = read_proof(bytes.fromhex(row[name]))
            assert (proof["record"], proof["checkpoint"], proof["leaves"]) == (
                record,
                row["checkpoint"],
                len(own),
            )
            start = climb(first[0], 0, len(own), proof["own"]) if own else roots[0]
            assert climb(start, proof["group"], groups, proof["inner"]) == root
            assert climb(leaves_of_tree[-1], number - 1, number, proof["path"]) == tree
    bundle = document["bundle"]
    name = bundle["client_id"].encode()
    payload = (
        bytes([len(name)])
        + name
        + bundle["sequence"].to_bytes(8, "big")
        + bytes.fromhex(bundle["hash"])
    )
    assert (
        climb(
            sha256(b"\x00\x07" + payload), 3, 4, read_proof(bytes.fromhex(bundle["proof"]))["inner"]
        )
        == root
    )
    for row in document["consistency"]:
        proof = [bytes.fromhex(one) for one in row["proof"]]
        assert proof == subproof(row["old"], leaves_of_tree[: row["new"]], True)
    witness = document["witness"]
    wname, key_id, key = witness["key"].split("+", 2)
    raw_key = base64.b64decode(key)
    assert (raw_key[0], key_id) == (4, sha256(wname.encode() + b"\n" + raw_key)[:4].hex())
    text, lines = witness["note"].rsplit("\n\n", 1)
    line = lines.split("\n")[1].split(" ")
    raw = base64.b64decode(line[2])
    assert (line[1], raw[:4].hex(), int.from_bytes(raw[4:12], "big")) == (
        wname,
        key_id,
        witness["at"],
    )
    message = f"cosignature/v1\ntime {witness['at']}\n{text}\n".encode()
    nacl.signing.VerifyKey(raw_key[1:]).verify(message, raw[12:])


def subproof(m: int, leaves: list[bytes], whole: bool) -> list[bytes]:
    """RFC 9162, section 2.1.4.1, word by word."""
    if m == len(leaves):
        return [] if whole else [tree_root(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if m <= k:
        return [*subproof(m, leaves[:k], whole), tree_root(leaves[k:])]
    return [*subproof(m - k, leaves[k:], False), tree_root(leaves[:k])]


def test_a_group_of_receipts() -> None:
    row = golden("receipt_group")
    c = Cursor(bytes.fromhex(row["group"]))
    assert (c.take(4), c.number(1), c.number(1)) == (b"CBXR", 2, 0)
    assert c.sized(1) == b"CA-RC"
    c.take(8 + 32)
    root, count = c.take(32), c.number(4)
    assert c.sized(2).decode() == row["checkpoint"]
    assert c.number(1) == 1
    c.take(64)
    hashed, own = [], 0
    for _ in range(count):
        if c.number(1) == 0:
            hashed.append(c.take(32))
            continue
        start = c.at
        assert c.sized(1).decode() == row["sender"]
        c.take(16 + 4 + 32 + 32 + 8 + 8 + 1)
        c.take(c.number(4))
        hashed.append(sha256(b"\x00" + c.raw[start : c.at]))
        own += 1
    assert (own, c.at) == (2, len(c.raw))
    assert tree_root(hashed) == root == bytes.fromhex(row["root"])
