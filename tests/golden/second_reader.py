"""A second reader of the formats, written from the manual pages alone: it imports nothing of
CipherBox.

It reads prefixes, unwraps stanzas, checks commitment and signatures, opens bodies, and checks
bundles, receipts, tokens and frames of the golden files.  When it and the program disagree, the
manual or the program is wrong.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import nacl.signing
from cryptography.hazmat.primitives import hashes, hpke, serialization
from cryptography.hazmat.primitives.asymmetric import mldsa, mlkem, padding, x25519
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


def read_bundle(raw: bytes) -> dict[str, Any]:
    c = Cursor(raw)
    assert c.take(4) == b"CBXB"
    version, flags = c.number(1), c.number(1)
    assert (version in (1, 2), flags) == (True, 0)
    bundle: dict[str, Any] = {"version": version}
    bundle |= {
        "sequence": c.number(8),
        "created": c.number(8),
        "ends": c.number(8),
        "previous": c.take(32),
    }
    bundle["random"] = c.take(16 if version == 2 else 0)
    bundle["client_id"] = c.sized(1).decode()
    bundle["keys"] = [(c.number(1), c.number(1), c.sized(2)) for _ in range(c.number(1))]
    bundle["chain"] = [c.sized(2) for _ in range(c.number(1))]
    bundle["hash"] = sha256(raw[: c.at])
    bundle["certified"] = c.sized(2)
    if version == 2:
        bundle["own_suite"], bundle["own"] = c.number(1), c.sized(2)
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


PREFIX = ">4sBBIIQQ16sIIBBB32s32s32sHBBB"


def read_envelope(raw: bytes) -> dict[str, Any]:
    names = (
        "magic",
        "version",
        "flags",
        "length",
        "body",
        "sealed_at",
        "expires_at",
        "id",
        "generation",
        "count",
        "cipher",
        "suite",
        "hash_suite",
        "bundle",
        "commitment",
        "plain_commitment",
        "recipients",
        "sender_size",
        "exchange_size",
        "key_size",
    )
    e: dict[str, Any] = dict(zip(names, struct.unpack_from(PREFIX, raw), strict=True))
    assert (e["magic"], e["version"], struct.calcsize(PREFIX)) == (b"CBXE", 2, 158)
    assert e["flags"] in (0, 1)
    e["prompt_receipt"] = e["flags"] == 1
    assert e["hash_suite"] == 1
    c = Cursor(raw, 158)
    e["sender"], e["exchange"] = (
        c.take(e["sender_size"]).decode(),
        c.take(e["exchange_size"]).decode(),
    )
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
        mlkem.MLKEM768PrivateKey.from_seed_bytes(seed[:64]),
        x25519.X25519PrivateKey.from_private_bytes(seed[64:]),
    )


def unwrap(raw: bytes, e: dict[str, Any], index: int, seeds: dict[int, bytes]) -> bytes:
    _, kind, stanza, _ = e["stanzas"][index]
    binding = sha256(raw[: e["length"]]) + index.to_bytes(2, "big")
    if kind == 3:
        return unwrap_rsa(stanza, seeds[3], label("stanza/rsa-oaep") + binding)
    name, kem = {
        1: ("hpke-mlkem768-x25519", hpke.KEM.MLKEM768_X25519),
        2: ("hpke-x25519", hpke.KEM.X25519),
    }[kind]
    suite = hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    assert len(stanza) == {1: 1168, 2: 80}[kind]
    return suite.decrypt(
        stanza, private_key(kind, seeds[kind]), info=label("stanza/" + name) + binding
    )


def unwrap_rsa(stanza: bytes, pkcs8: bytes, binding: bytes) -> bytes:
    key: Any = serialization.load_der_private_key(pkcs8, None)
    secret = key.decrypt(
        stanza[:-48], padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    )
    assert (len(secret), len(stanza)) == (32, key.key_size // 8 + 48)
    wrapping = AESGCM(HKDF(hashes.SHA256(), 32, b"cipherbox/v1", binding).derive(secret))
    return wrapping.decrypt(bytes(12), stanza[-48:], None)


def open_body(e: dict[str, Any], content_key: bytes) -> list[dict[str, Any]]:
    def derived(use: str, size: int) -> bytes:
        return HKDF(hashes.SHA256(), size, b"cipherbox/v1", label(use)).derive(content_key)

    assert derived("commitment", 32) == e["commitment"]
    cipher: Any = {1: AESGCM, 2: ChaCha20Poly1305}[e["cipher"]]
    plain = cipher(derived("body-key", 32)).decrypt(
        derived("body-nonce", 12), e["ciphertext"], e["header_hash"]
    )
    assert (
        sha256(label("plaintext-commitment"), e["sealed_at"].to_bytes(8, "big"), plain)
        == e["plain_commitment"]
    )
    c = Cursor(plain)
    assert c.number(1) == 2
    flags, count = c.number(1), c.number(4)
    c.take(32)
    assert count == e["count"]
    sizes = [c.number(4) for _ in range(count)]
    sent = [c.number(8) for _ in range(count)] if flags & 1 else [0] * count
    default = c.sized(1).decode()
    types = (
        [c.sized(1).decode() or default for _ in range(count)] if flags & 2 else [default] * count
    )
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


def climb(node: bytes, index: int, count: int, path: list[bytes]) -> bytes:
    """RFC 6962: the path's nearest sibling first; a tree splits at the largest power of two
    below its size.
    """
    if count == 1:
        assert not path
        return node
    k = 1
    while 2 * k < count:
        k *= 2
    if index < k:
        return sha256(b"\1", climb(node, index, k, path[:-1]), path[-1])
    return sha256(b"\1", path[-1], climb(node, index - k, count - k, path[:-1]))


def tree_root(leaves: list[bytes]) -> bytes:
    """RFC 6962, section 2.1, from hashed leaves."""
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + tree_root(leaves[:k]) + tree_root(leaves[k:]))
