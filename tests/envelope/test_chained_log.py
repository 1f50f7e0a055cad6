"""The signed log of version 0.5.0: a chain of signed heads, read and never written."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Any

import nacl.signing
import pytest

from cipherbox.envelope import chained_log, merkle_tree
from cipherbox.envelope import transparency_log as log
from cipherbox.envelope.labels import label
from cipherbox.errors import CipherBoxError, MalformedEnvelope, SignatureInvalid

KEY = nacl.signing.SigningKey(bytes(range(32)))
PUBLIC = bytes(KEY.verify_key)
GROUPS = [log.Group(log.ACTS, b'[["admin","Grant",{}]]'), log.Group(log.ACTS, b"[]")]
BODY = log.encode_groups(GROUPS)
ROOT = merkle_tree.merkle_root([log.root_of(group) for group in GROUPS])
BEFORE = bytes(range(32, 64))
VALUES: dict[str, Any] = {
    "magic": b"CBXL",
    "version": 1,
    "index": 5,
    "at": 1001,
    "previous": BEFORE,
    "root": ROOT,
    "groups": len(GROUPS),
}


def head(**other: Any) -> bytes:
    return struct.pack(">4sBQQ32s32sI", *(VALUES | other).values())


def signed(raw: bytes, key: nacl.signing.SigningKey = KEY, use: str = "log-head") -> bytes:
    return key.sign(label(use) + hashlib.sha256(raw).digest()).signature


def verify(raw: bytes, before: tuple[int, bytes] | None = (4, BEFORE)) -> chained_log.OldHead:
    return chained_log.verify_entry(raw, signed(raw), BODY, PUBLIC, before)


def test_an_entry_that_follows_the_one_before_it_holds() -> None:
    expected = chained_log.OldHead(5, 1001, BEFORE, ROOT, 2)
    assert verify(head()) == expected
    assert verify(head(), None) == expected
    first = head(index=1, previous=bytes(32))
    assert verify(first, None).index == 1


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"index": 4}, "entry 5 is missing: 4 comes after 4"),
        ({"index": 6}, "entry 5 is missing: 6 comes after 4"),
        ({"previous": bytes(32)}, "predecessor's hash"),
        ({"root": bytes(32)}, "not what was signed"),
        ({"groups": 1}, "not what was signed"),
        ({"groups": 3}, "not what was signed"),
    ],
)
def test_an_entry_that_does_not_fit_is_refused(other: dict[str, Any], why: str) -> None:
    with pytest.raises(SignatureInvalid, match=why):
        verify(head(**other))


@pytest.mark.parametrize(
    "raw",
    [
        head(magic=b"CBXM"),
        head(version=2),
        head(index=0),
        head(groups=0),
        head()[:-1],
        head() + b"\x00",
    ],
)
def test_bytes_that_are_no_head_are_refused(raw: bytes) -> None:
    for read in (chained_log.decode_head, verify):
        with pytest.raises(MalformedEnvelope, match=r"not a head|length"):
            read(raw)


@pytest.mark.parametrize(
    "sign",
    [
        lambda raw: signed(raw, nacl.signing.SigningKey(bytes(32))),
        lambda raw: signed(raw, use="log-tail"),
        lambda raw: signed(raw)[:-1],
        lambda raw: b"",
    ],
)
def test_a_head_with_another_signature_is_refused(sign: Callable[[bytes], bytes]) -> None:
    with pytest.raises(SignatureInvalid, match="not signed with HQ's key"):
        chained_log.verify_entry(head(), sign(head()), BODY, PUBLIC, (4, BEFORE))


def test_every_byte_of_an_entry_counts() -> None:
    raw = head()
    for at in range(len(raw)):
        changed = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        with pytest.raises(SignatureInvalid, match="not signed"):
            chained_log.verify_entry(changed, signed(raw), BODY, PUBLIC, None)
    for at in range(len(BODY)):
        changed = BODY[:at] + bytes([BODY[at] ^ 1]) + BODY[at + 1 :]
        with pytest.raises(CipherBoxError):
            chained_log.verify_entry(raw, signed(raw), changed, PUBLIC, None)


def test_the_next_head_names_this_one_with_its_signature() -> None:
    raw = head()
    named = chained_log.head_hash(raw, signed(raw))
    assert named == hashlib.sha256(raw + signed(raw)).digest()
    following = head(index=6, previous=named)
    assert verify(following, (5, named)).previous == named
