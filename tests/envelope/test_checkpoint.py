"""Checkpoints, cosignatures, verifier keys, and how two heads go together."""

from __future__ import annotations

import base64
import hashlib

import nacl.signing
import pytest

from cipherbox.envelope import checkpoint as checkpoints
from cipherbox.envelope import evidence
from cipherbox.envelope import merkle_tree as tree
from cipherbox.envelope.checkpoint import COSIGNATURE, ED25519, Checkpoint, Note, VerifierKey
from cipherbox.errors import InvalidRequest, MalformedEnvelope, SignatureInvalid

KEY = nacl.signing.SigningKey(bytes(32))
PUBLIC = bytes(KEY.verify_key)
ORIGIN = checkpoints.origin_of(PUBLIC, bytes(16))
HEAD = Checkpoint(ORIGIN, 3, b"r" * 32, 1_800_000_000_000)
WITNESS = nacl.signing.SigningKey(b"w" * 32)
NAME = "witness.example/1"


def test_a_head_is_signed_under_its_own_origin_and_every_byte_counts() -> None:
    raw = checkpoints.sign_checkpoint(HEAD, KEY)
    assert checkpoints.verify_checkpoint(raw, PUBLIC) == HEAD
    assert HEAD.incarnation == bytes(16)
    for offset in range(len(raw)):
        changed = raw[:offset] + bytes([raw[offset] ^ 1]) + raw[offset + 1 :]
        with pytest.raises((MalformedEnvelope, SignatureInvalid)):
            checkpoints.verify_checkpoint(changed, PUBLIC)
    with pytest.raises(SignatureInvalid, match="another log"):
        checkpoints.verify_checkpoint(raw, bytes(WITNESS.verify_key))
    foreign = Note(HEAD.text, (checkpoints.cosign(HEAD.text, NAME, WITNESS, 5),)).encode()
    with pytest.raises(SignatureInvalid, match="not signed"):
        checkpoints.verify_checkpoint(foreign, PUBLIC)


@pytest.mark.parametrize(
    "text",
    [
        HEAD.text + "more\n",
        HEAD.text.replace("cipherbox/", "cipherbox-"),
        HEAD.text.replace("\n3\n", "\n03\n"),
        HEAD.text.replace("\n3\n", "\n-3\n"),
        HEAD.text.replace("\n3\n", f"\n{1 << 63}\n"),
        HEAD.text.replace("at ", "on "),
        HEAD.text.replace("at ", "at 0"),
        HEAD._replace(at=1 << 63).text,
        HEAD._replace(root=b"r" * 31).text,
        HEAD._replace(root=b"r" * 33).text,
        HEAD.text.replace("cn", "c\u00e4"),
        "",
    ],
)
def test_what_is_no_head_is_refused(text: str) -> None:
    with pytest.raises(MalformedEnvelope):
        checkpoints.read_checkpoint(text)


def test_the_largest_numbers_of_a_head() -> None:
    most = HEAD._replace(size=(1 << 63) - 1, at=(1 << 63) - 1)
    assert checkpoints.read_checkpoint(most.text) == most
    empty = HEAD._replace(size=0, at=0)
    assert checkpoints.read_checkpoint(empty.text) == empty


def test_a_note_has_one_to_64_signatures_and_16_kib() -> None:
    one = checkpoints.cosign("text\n", NAME, WITNESS, 5)
    for count, good in ((0, False), (1, True), (64, True), (65, False)):
        note = Note("text\n", (one,) * count)
        if good:
            assert checkpoints.decode_note(note.encode()) == note
        else:
            with pytest.raises(MalformedEnvelope):
                checkpoints.decode_note(note.encode())
    for size, good in ((checkpoints.MOST_BYTES, True), (checkpoints.MOST_BYTES + 1, False)):
        text = "x" * (size - len(Note("\n", (one,)).encode())) + "\n"
        raw = Note(text, (one,)).encode()
        assert len(raw) == size
        if good:
            assert checkpoints.decode_note(raw).text == text
        else:
            with pytest.raises(MalformedEnvelope):
                checkpoints.decode_note(raw)
    line = one.line.rstrip()  # 76 bytes in base64: the last letter has four bits to spare
    assert line.endswith("==")
    spare = line[:-3] + chr(ord(line[-3]) + 1) + "=="
    short = f"\u2014 {NAME} {base64.b64encode(bytes(4)).decode()}"
    for other in (spare, short, line[2:], line.replace(NAME, "a+b"), line + "!"):
        with pytest.raises(MalformedEnvelope):
            checkpoints.decode_note(f"text\n\n{other}\n".encode())
    for text in ("a\ttab\n", "a\x00\n"):
        with pytest.raises(MalformedEnvelope):
            checkpoints.decode_note(Note(text, (one,)).encode())


def test_a_witness_cosigns_one_text_at_one_time() -> None:
    key = VerifierKey(NAME, COSIGNATURE, bytes(WITNESS.verify_key))
    line = checkpoints.cosign(HEAD.text, NAME, WITNESS, 1_800_000_000)
    assert checkpoints.cosigned_at(Note(HEAD.text, (line,)), key) == 1_800_000_000
    later = line._replace(signature=(5).to_bytes(8, "big") + line.signature[8:])
    short = line._replace(signature=line.signature[:-1])
    other = line._replace(name="witness.example/2")
    for note in (
        Note(HEAD._replace(size=4).text, (line,)),
        Note(HEAD.text, (later, short, other)),
        Note(HEAD.text, ()),
    ):
        assert checkpoints.cosigned_at(note, key) is None
    assert checkpoints.cosigned_at(Note(HEAD.text, (later, line)), key) == 1_800_000_000


def test_a_verifier_key_is_read_as_it_is_written() -> None:
    key = VerifierKey(NAME, COSIGNATURE, bytes(WITNESS.verify_key))
    digest = hashlib.sha256(NAME.encode() + b"\n\x04" + bytes(WITNESS.verify_key)).digest()
    assert key.text.split("+", 2)[:2] == [NAME, digest[:4].hex()]
    assert checkpoints.read_verifier_key(f" {key.text}\n") == key
    assert checkpoints.read_verifier_key(key._replace(kind=ED25519).text, ED25519).kind == ED25519
    short = base64.b64encode(b"\x04" + key.public[:-1]).decode()
    for wrong in (
        "",
        NAME,
        f"{NAME}+{key.key_id.hex()}",
        key.text + "A",
        key.text.replace("+", "-", 1),
        f"{NAME}+{key.key_id.hex()}+{short}",
        f"{NAME}+{key.key_id.hex()}+\u00e4",
        key._replace(kind=ED25519).text,
        key._replace(name="a b").text,
        key._replace(name="x" * 256).text,
        key.text.replace(key.key_id.hex(), "00000000"),
    ):
        with pytest.raises(InvalidRequest, match="invalid witness key"):
            checkpoints.read_verifier_key(wrong)


def test_how_two_heads_of_a_log_go_together() -> None:
    leaves = [tree.leaf_hash(bytes([number])) for number in range(5)]

    def head(size: int, at: int = 1, origin: str = ORIGIN, root: bytes = b"") -> Checkpoint:
        return Checkpoint(origin, size, root or tree.merkle_root(leaves[:size]), at)

    anew = checkpoints.origin_of(PUBLIC, b"n" * 16)
    two, five = head(2, 1), head(5, 2)
    proof = _proof(leaves, 2, 5)
    table = [
        (two, five, proof, evidence.CONSISTENT),
        (two, two, (), evidence.CONSISTENT),
        (two, head(2, 9, root=b"x" * 32), (), evidence.FORK),
        (two, five, (), evidence.UNPROVEN),
        (head(2, 2), head(5, 2), (), evidence.UNPROVEN),
        (five, head(2, 3), proof, evidence.ROLLBACK),
        (head(5, 2), head(2, 2), proof, evidence.CONSISTENT),  # met late, not signed late
        (five, head(2, 3), (), evidence.ROLLBACK),
        (head(2, 3), five, (), evidence.ROLLBACK),
        (five, head(2, 3, anew), proof, evidence.CONSISTENT),
        (five, head(2, 3, anew), (), evidence.BEGUN_ANEW),
        (two, head(2, 3, anew, b"x" * 32), (), evidence.BEGUN_ANEW),
    ]
    for first, second, path, kind in table:
        assert evidence.compare(first, second, path) == kind, (first, second)
        assert evidence.words(kind, first, second)


def _proof(leaves: list[bytes], old: int, new: int) -> tuple[bytes, ...]:
    """Return the consistency proof of RFC 9162, section 2.1.4.1, by its recursive definition."""

    def subproof(m: int, part: list[bytes], whole: bool) -> list[bytes]:
        if m == len(part):
            return [] if whole else [tree.merkle_root(part)]
        k = 1
        while k * 2 < len(part):
            k *= 2
        if m <= k:
            return [*subproof(m, part[:k], whole), tree.merkle_root(part[k:])]
        return [*subproof(m - k, part[k:], False), tree.merkle_root(part[:k])]

    return tuple(subproof(old, leaves[:new], True))
