"""Checkpoints: the signed heads of HQ's log, by C2SP's specifications signed-note, tlog-checkpoint
and tlog-cosignature, so that any program that implements those can read, verify and cosign them.

A note is text, an empty line and signature lines.  A checkpoint's text is the origin, the number of
entries, the root in base64, and one extension line: ``at`` and the time of signing.  The origin
contains the hash of the log's key and the store's incarnation id: a restored store has another
origin, so its checkpoints cannot be confused with earlier ones.

Pure functions; signing takes the key as an argument.  The manual page `log` specifies the bytes.
"""

from __future__ import annotations

import base64
import hashlib
import re
from typing import NamedTuple

import nacl.exceptions
import nacl.signing

from cipherbox.errors import InvalidRequest, MalformedEnvelope, SignatureInvalid

MOST_BYTES = 16 * 1024  # of a note
MOST_SIGNATURES = 64
ED25519, COSIGNATURE = 0x01, 0x04  # kinds of keys and signatures
COSIGNATURE_BYTES = 72  # time and signature
_MARK = "\u2014 "
_ORIGIN = re.compile(r"cipherbox/[0-9a-f]{16}/[0-9a-f]{32}")
_NAME = re.compile(r"[^\s+\ud800-\udfff]{1,255}")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x09\x0b-\x1f]")  # all but the end of a line


class Checkpoint(NamedTuple):
    """A head of the log; ``at``: when it was signed, ms since 1970."""

    origin: str
    size: int
    root: bytes
    at: int

    @property
    def text(self) -> str:
        """Return the note's text, which is signed."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\nat {self.at}\n"

    @property
    def incarnation(self) -> bytes:
        """Return the store's incarnation id."""
        return bytes.fromhex(self.origin.rsplit("/", 1)[1])


class NoteSignature(NamedTuple):
    """One signature line."""

    name: str
    key_id: bytes
    signature: bytes

    @property
    def line(self) -> str:
        return f"{_MARK}{self.name} {base64.b64encode(self.key_id + self.signature).decode()}\n"


class Note(NamedTuple):
    """A signed note with its signatures, unverified."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def encode(self) -> bytes:
        return f"{self.text}\n{''.join(one.line for one in self.signatures)}".encode()


class VerifierKey(NamedTuple):
    """A public key with its name, as signed-note writes it: ``name+id+base64``."""

    name: str
    kind: int
    public: bytes

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(
            self.name.encode() + b"\n" + bytes([self.kind]) + self.public
        ).digest()[:4]

    @property
    def text(self) -> str:
        public = base64.b64encode(bytes([self.kind]) + self.public).decode()
        return f"{self.name}+{self.key_id.hex()}+{public}"


def origin_of(key: bytes, incarnation: bytes) -> str:
    """Return the origin of a log, from its key and its store's incarnation id (16 bytes)."""
    return f"cipherbox/{hashlib.sha256(key).hexdigest()[:16]}/{incarnation.hex()}"


def read_verifier_key(text: str, kind: int = COSIGNATURE) -> VerifierKey:
    """Return the key encoded as ``name+id+base64``; raise InvalidRequest if it is invalid."""
    parts = text.strip().split("+", 2)
    try:
        raw = base64.b64decode(parts[2], validate=True) if len(parts) == 3 else b""
    except ValueError:  # also of letters that are not ASCII
        raw = b""
    if len(raw) != 33 or raw[0] != kind or not _NAME.fullmatch(parts[0]):
        raise InvalidRequest(
            f"invalid witness key {text!r}: must be name+id+base64, see `cipherbox witness --key`"
        )
    key = VerifierKey(parts[0], raw[0], raw[1:])
    if key.key_id.hex() != parts[1]:
        raise InvalidRequest(
            f"invalid witness key {text!r}: its id does not match its name and key"
        )
    return key


def sign_checkpoint(checkpoint: Checkpoint, key: nacl.signing.SigningKey) -> bytes:
    """Sign a checkpoint; return the note."""
    key_id = VerifierKey(checkpoint.origin, ED25519, bytes(key.verify_key)).key_id
    text = checkpoint.text
    signature = NoteSignature(checkpoint.origin, key_id, key.sign(text.encode()).signature)
    return Note(text, (signature,)).encode()


def decode_note(raw: bytes) -> Note:
    """Return the note in these bytes; raise MalformedEnvelope unless all of them belong to it."""
    try:
        if len(raw) > MOST_BYTES:
            raise ValueError
        whole = raw.decode("utf-8")
        end = whole.rindex("\n\n")
        text, lines = whole[: end + 1], whole[end + 2 :].split("\n")
        if lines.pop() or not 1 <= len(lines) <= MOST_SIGNATURES or _CONTROL.search(whole):
            raise ValueError
        return Note(text, tuple(_signature(line) for line in lines))
    except ValueError:
        raise MalformedEnvelope("these bytes are not a signed note") from None


def read_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint in a note's text; raise MalformedEnvelope if there is none."""
    try:
        origin, size, root, at, rest = text.split("\n")
        if rest or not (
            _ORIGIN.fullmatch(origin) and _SIZE.fullmatch(size) and at.startswith("at ")
        ):
            raise ValueError
        if not _SIZE.fullmatch(at[3:]):
            raise ValueError
        found = Checkpoint(origin, int(size), base64.b64decode(root, validate=True), int(at[3:]))
        if len(found.root) != 32 or found.text != text or max(found.size, found.at) >= 1 << 63:
            raise ValueError
    except ValueError:
        raise MalformedEnvelope("these bytes are not a head of HQ's log") from None
    return found


def verify_checkpoint(raw: bytes, key: bytes) -> Checkpoint:
    """Return the checkpoint; raise SignatureInvalid unless the log key (Ed25519, 32 bytes) signed
    it under its own origin.
    """
    note = decode_note(raw)
    found = read_checkpoint(note.text)
    if found.origin != origin_of(key, found.incarnation):
        raise SignatureInvalid("a head of HQ's log belongs to another log key")
    wanted = VerifierKey(found.origin, ED25519, key)
    if not any(
        (one.name, one.key_id) == (wanted.name, wanted.key_id)
        and _verifies(key, note.text.encode(), one.signature)
        for one in note.signatures
    ):
        raise SignatureInvalid("a head of HQ's log is not signed with HQ's log key")
    return found


# -- cosignatures ----------------------------------------------------------------------------------


def cosign(text: str, name: str, key: nacl.signing.SigningKey, at_s: int) -> NoteSignature:
    """Return a witness's cosignature of a note's text; ``at_s`` is seconds since 1970."""
    key_id = VerifierKey(name, COSIGNATURE, bytes(key.verify_key)).key_id
    signature = key.sign(_cosigned(text, at_s)).signature
    return NoteSignature(name, key_id, at_s.to_bytes(8, "big") + signature)


def cosigned_at(note: Note, key: VerifierKey) -> int | None:
    """Return when this witness cosigned, in seconds since 1970, or None if it did not."""
    for one in note.signatures:
        if (one.name, one.key_id) == (key.name, key.key_id) and len(
            one.signature
        ) == COSIGNATURE_BYTES:
            at_s = int.from_bytes(one.signature[:8], "big")
            if _verifies(key.public, _cosigned(note.text, at_s), one.signature[8:]):
                return at_s
    return None


def _cosigned(text: str, at_s: int) -> bytes:
    return f"cosignature/v1\ntime {at_s}\n{text}".encode()


def _verifies(key: bytes, message: bytes, signature: bytes) -> bool:
    try:
        nacl.signing.VerifyKey(key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        return False
    return True


def _signature(line: str) -> NoteSignature:
    if not line.startswith(_MARK):
        raise ValueError
    name, _, raw = line.removeprefix(_MARK).partition(" ")
    data = base64.b64decode(raw, validate=True)
    if not _NAME.fullmatch(name) or len(data) < 5 or base64.b64encode(data).decode() != raw:
        raise ValueError
    return NoteSignature(name, data[:4], data[4:])
