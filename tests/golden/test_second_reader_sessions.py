"""The second reader of sessions, written from the manual page alone: it imports nothing of
CipherBox.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.golden.second_reader import (
    Cursor,
    check_signatures,
    golden,
    label,
    open_body,
    read_bundle,
    read_envelope,
    sha256,
)

DOCUMENT = golden("sessions")
NAMES = sorted(DOCUMENT["conversations"])


def dh(private: bytes, public: bytes) -> bytes:
    key = x25519.X25519PrivateKey.from_private_bytes(private)
    return key.exchange(x25519.X25519PublicKey.from_public_bytes(public))


def public_of(private: bytes) -> bytes:
    return x25519.X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def hkdf(salt: bytes, secret: bytes, info: bytes, size: int) -> bytes:
    return HKDF(hashes.SHA256(), size, salt, info).derive(secret)


def read_prekeys(raw: bytes, sign: dict[int, bytes]) -> dict[str, Any]:
    c = Cursor(raw)
    magic = c.take(6)
    assert magic in (b"CBXP\x01\x00", b"CBXO\x01\x00")
    signed = magic[3:4] == b"P"
    p: dict[str, Any] = {"client": c.sized(1).decode()}
    if signed:
        p["made"] = c.number(8)
    p |= {
        "identity": c.take(32),
        "number": c.number(4),
        "key": c.take(32),
        "kem": c.take(1184),
        "suite": c.number(1),
    }
    message = (
        label("prekeys" if signed else "prekey-once") + bytes([p["suite"]]) + sha256(raw[: c.at])
    )
    check_signatures(sign, p["suite"], message, c.take({1: 64, 2: 3373}[p["suite"]]))
    assert c.at == len(raw)
    return p


def agree(row: dict[str, Any], shaken: bytes) -> tuple[bytes, bytes, bytes]:
    """B's half: root, AD, session id."""
    secrets = {k: bytes.fromhex(v) for k, v in row["secrets"].items() if isinstance(v, str)}
    c = Cursor(shaken)
    identity_a, ephemeral, _, _, once_number = (
        c.take(32),
        c.take(32),
        c.number(8),
        c.number(4),
        c.number(4),
    )
    ciphertext = c.take(1088)
    assert c.at == len(shaken) == 1168
    assert identity_a == public_of(secrets["identity_a"])
    pair = secrets["once"] if once_number else secrets["signed"]
    kem = mlkem.MLKEM768PrivateKey.from_seed_bytes(pair[32:])
    signed = secrets["signed"][:32]
    secret = (
        b"\xff" * 32
        + dh(signed, identity_a)
        + dh(secrets["identity_b"], ephemeral)
        + dh(signed, ephemeral)
    )
    if once_number:
        secret += dh(pair[:32], ephemeral)
    secret += kem.decapsulate(ciphertext)
    root = hkdf(bytes(32), secret, b"cipherbox/v1_CURVE25519_SHA-256_ML-KEM-768", 32)
    parties = b"".join(len(x).to_bytes(4, "big") + x for x in (b"FL-LAB", b"CA-RC", b""))
    keys = b"\x05" + identity_a + b"\x05" + public_of(secrets["identity_b"])
    keys += b"\x0a" + kem.public_key().public_bytes_raw()
    associated = sha256(label("session"), keys, shaken, parties)
    return root, associated, sha256(label("session-id"), associated)[:16]


def message_key(chain: bytes, number: int) -> bytes:
    for _ in range(number):
        chain = hmac.digest(chain, b"\x02", hashlib.sha256)
    return hmac.digest(chain, b"\x01", hashlib.sha256)


def open_message(raw: bytes, key: bytes, associated: bytes, binding: bytes) -> bytes:
    at = 17 + (1168 if raw[0] == 2 else 0)
    before = associated + raw[:at] + binding
    data = len(before).to_bytes(4, "big") + before + raw[at : at + 40]
    made = hkdf(b"cipherbox/v1", key, label("ratchet-message") + sha256(data), 44)
    return AESGCM(made[:32]).decrypt(made[32:], raw[at + 40 :], data)


@pytest.mark.parametrize("name", NAMES)
def test_conversations(name: str) -> None:
    row = DOCUMENT["conversations"][name]
    sign = read_bundle(bytes.fromhex(DOCUMENT["bundle"]))["sign"]
    signed = read_prekeys(bytes.fromhex(row["signed"]), sign)
    assert (signed["client"], signed["identity"].hex()) == ("CA-RC", DOCUMENT["identity_b_public"])
    if row["once"]:
        once = read_prekeys(bytes.fromhex(row["once"]), sign)
        assert (once["identity"], once["number"]) == (signed["identity"], 8)
    root, associated, session_id = agree(row, bytes.fromhex(row["handshake"]))
    assert [x.hex() for x in (root, associated, session_id)] == [
        row["root"],
        row["associated"],
        row["session_id"],
    ]

    # Every chain, by the ratchet key that speaks in it: the ends take turns, A first, against B's
    # signed prekey.
    a, b = (
        [bytes.fromhex(k) for k in row["secrets"]["ratchet"][who]] for who in ("FL-LAB", "CA-RC")
    )
    assert b[0] == bytes.fromhex(row["secrets"]["signed"])[:32]
    chains: dict[bytes, bytes] = {}
    other, speaks, waits = b[0], a, b[1:]
    while speaks:
        own, *speaks = speaks
        made = hkdf(root, dh(own, public_of(other)), label("ratchet-root"), 64)
        root, chains[public_of(own)] = made[:32], made[32:]
        other, speaks, waits = own, waits, speaks
    said_by: dict[str, list[bytes]] = {"FL-LAB": [], "CA-RC": []}
    for said in row["said"]:
        raw = bytes.fromhex(said["message"])
        assert raw[1:17] == session_id
        c = Cursor(raw, 17 + (1168 if raw[0] == 2 else 0))
        speaker, previous, number = c.take(32), c.number(4), c.number(4)
        keys = said_by[said["by"]]
        earlier = [key for key in keys if key != speaker]
        assert previous == (earlier.count(earlier[-1]) if earlier else 0)
        assert number == keys.count(speaker)
        keys.append(speaker)
        plain = open_message(
            raw, message_key(chains[speaker], number), associated, bytes.fromhex(row["binding"])
        )
        assert plain.hex() == said["plaintext"]
    assert [bytes.fromhex(s["message"])[0] for s in row["said"]] == [2, 2, 1, 1, 1, 1, 1]
    assert [len(set(keys)) for keys in said_by.values()] == [2, 2]


def test_an_envelope() -> None:
    row, keys = DOCUMENT["envelope"], DOCUMENT["conversations"]["one-time"]
    raw = bytes.fromhex(row["envelope"])
    e = read_envelope(raw)
    sender = read_bundle(bytes.fromhex(row["sender_bundle"]))
    message = label("envelope-signature") + bytes([e["suite"]]) + e["envelope_hash"]
    check_signatures(sender["sign"], e["suite"], message, e["signatures"])
    ((key_id, kind, stanza, who),) = e["stanzas"]
    assert (kind, who, len(stanza), stanza.hex()) == (4, "CA-RC", 1273, row["stanza"])
    assert (
        key_id
        == sha256(label("key-id"), b"\x04", bytes.fromhex(DOCUMENT["identity_b_public"]))[:16]
    )
    root, associated, session_id = agree(keys, stanza[17:1185])
    assert session_id == stanza[1:17]
    secret = dh(bytes.fromhex(keys["secrets"]["signed"])[:32], stanza[1185:1217])
    chain = hkdf(root, secret, label("ratchet-root"), 64)[32:]
    binding = label("stanza/ratchet") + sha256(raw[: e["length"]]) + bytes(2)
    content_key = open_message(stanza, message_key(chain, 0), associated, binding)
    assert [m["content"] for m in open_body(e, content_key)] == [row["content"]]
