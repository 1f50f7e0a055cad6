"""A session between two clients: its handshake, its ratchet, what its messages look like, its bytes at rest.

    kind u8 (1, or 2 with a handshake) | session id 16 | [handshake 1,168] | ratchet header 40 | ciphertext, tag 16

The initiator sends the handshake with every message until one came back, so that it does not matter which of them
arrives first.  All that stands before the ciphertext is associated data of it, with the hash of what both ends agreed
on, and what the caller binds it to.

Of several sessions with one peer (both began at once, one was renewed) both ends speak in the newest by the time in its
handshake, then by its id: what both know, so they choose the same.
"""

from __future__ import annotations

import hmac
import os
import struct
from collections.abc import Iterable

import attrs

from cipherbox.errors import KeyMissing, MalformedEnvelope, StoreError
from cipherbox.sealing.sessions import handshake as shake
from cipherbox.sealing.sessions import ratchet
from cipherbox.sealing.sessions.handshake import Agreed, Handshake
from cipherbox.sealing.sessions.ratchet import HEADER, TAG, Header, Random, Ratchet
from cipherbox.sealing.sessions.settings import SETTINGS

PLAIN, FIRST = 1, 2
ID = 16
_HEAD = 1 + ID
_VERSION = 1
_STATE = struct.Struct(">BB16sQQ32s32sH32s32s32s32s32sIIII")
_ENTRY = struct.Struct(">I32s")
_CHAIN = struct.Struct(">32sI")
_SENDS, _RECEIVES, _HEARD = 1, 2, 4


@attrs.frozen
class Session:
    """``since``: when this end made it or first saw it; ``handshake`` is empty once the peer has answered."""

    session_id: bytes
    made_at: int
    since: int
    peer_identity: bytes
    associated: bytes = attrs.field(repr=False)
    handshake: bytes = attrs.field(repr=False)
    state: Ratchet

    @property
    def order(self) -> tuple[int, bytes]:
        """The highest is the one to speak in."""
        return self.made_at, self.session_id

    @property
    def can_send(self) -> bool:
        return bool(self.state.sending)

    def size(self, plaintext: int) -> int:
        """Bytes of its next message with so many bytes of plaintext."""
        return _HEAD + len(self.handshake) + HEADER.size + plaintext + TAG


@attrs.frozen
class Parsed:
    """A message of a session, taken apart; ``head`` is what stands before the ratchet header."""

    session_id: bytes
    handshake: Handshake | None
    header: Header
    head: bytes = attrs.field(repr=False)
    ciphertext: bytes = attrs.field(repr=False)


def started(handshake: Handshake, agreed: Agreed, peer: shake.Prekeys, now_ms: int, random: Random = os.urandom
            ) -> Session:  # fmt: skip
    """The initiator's session."""
    state = ratchet.first(agreed.root, peer.signed, random)
    return Session(
        agreed.session_id, handshake.made_at, now_ms, peer.identity, agreed.associated, handshake.encode(), state
    )


def answered(handshake: Handshake, agreed: Agreed, signed: bytes, now_ms: int) -> Session:
    """The responder's session; ``signed`` is the private signed prekey."""
    state = ratchet.second(agreed.root, signed)
    return Session(
        agreed.session_id, handshake.made_at, now_ms, handshake.identity, agreed.associated, b"", state
    )


def parse(raw: bytes) -> Parsed:
    """MalformedEnvelope for bytes that are no message of a session."""
    if len(raw) < _HEAD + HEADER.size + TAG or raw[0] not in (PLAIN, FIRST):
        raise MalformedEnvelope("these bytes are no message of a session")
    at, handshake = _HEAD, None
    if raw[0] == FIRST:
        if len(raw) < _HEAD + shake.SIZE + HEADER.size + TAG:
            raise MalformedEnvelope("the session's handshake ends too early")
        at += shake.SIZE
        handshake = shake.decode(raw[_HEAD:at])
    header = Header(*HEADER.unpack_from(raw, at))
    return Parsed(raw[1:_HEAD], handshake, header, raw[:at], raw[at + HEADER.size :])


def seal(session: Session, plaintext: bytes, binding: bytes) -> tuple[Session, bytes]:
    """The next state, and the message, which opens only with the same ``binding``."""
    head = bytes([FIRST if session.handshake else PLAIN]) + session.session_id + session.handshake
    state, header, ciphertext = ratchet.encrypt(session.state, plaintext, session.associated + head + binding)
    return attrs.evolve(session, state=state), head + header.encode() + ciphertext


def open_(
    session: Session, parsed: Parsed, binding: bytes, *, max_skipped: int = SETTINGS.max_skipped,
    random: Random = os.urandom,
) -> tuple[Session, bytes]:  # fmt: skip
    """The next state and the plaintext; DecryptionFailed or KeyMissing, and nothing has changed."""
    if not hmac.compare_digest(parsed.session_id, session.session_id):
        raise KeyMissing("the message is of another session")
    associated = session.associated + parsed.head + binding
    state, plaintext = ratchet.decrypt(
        session.state, parsed.header, parsed.ciphertext, associated, max_skipped=max_skipped, random=random
    )
    return attrs.evolve(session, state=state, handshake=b""), plaintext


def newest(sessions: Iterable[Session]) -> Session | None:
    """The one to speak in, of those this end can speak in."""
    return max((s for s in sessions if s.can_send), key=lambda s: s.order, default=None)


def encode(session: Session) -> bytes:
    """A session's bytes at rest, all of them secret: encrypt them."""
    state = session.state
    flags = _SENDS * bool(state.sending) | _RECEIVES * bool(state.receiving) | _HEARD * bool(state.peer)
    fixed = _STATE.pack(
        _VERSION, flags, session.session_id, session.made_at, session.since, session.peer_identity,
        session.associated, len(session.handshake), state.root, state.own, state.peer, state.sending,
        state.receiving, state.sent, state.received, state.previous, len(state.skipped),
    )  # fmt: skip
    chains: list[tuple[bytes, list[bytes]]] = []
    for (key, number), message_key in state.skipped.items():
        if not chains or chains[-1][0] != key:
            chains.append((key, []))
        chains[-1][1].append(_ENTRY.pack(number, message_key))
    skipped = b"".join(_CHAIN.pack(key, len(entries)) + b"".join(entries) for key, entries in chains)
    return fixed + session.handshake + skipped


def decode(raw: bytes) -> Session:
    """What `encode` made; StoreError for anything else."""
    try:
        (version, flags, session_id, made_at, since, identity, associated, length, root, own, peer, sending,
         receiving, sent, received, previous, count) = _STATE.unpack_from(raw)  # fmt: skip
        if version != _VERSION:
            raise StoreError(f"the session was written in version {version}; update this program")
        at = _STATE.size + length
        handshake = raw[_STATE.size : at]
        skipped: dict[tuple[bytes, int], bytes] = {}
        while at < len(raw):
            key, entries = _CHAIN.unpack_from(raw, at)
            at += _CHAIN.size
            for _ in range(entries):
                number, message_key = _ENTRY.unpack_from(raw, at)
                skipped[(key, number)] = message_key
                at += _ENTRY.size
        if at != len(raw) or len(skipped) != count or length not in (0, shake.SIZE):
            raise StoreError("a session's state is damaged")
    except struct.error:
        raise StoreError("a session's state is damaged") from None
    state = Ratchet(
        root, own, peer if flags & _HEARD else b"", sending if flags & _SENDS else b"",
        receiving if flags & _RECEIVES else b"", sent, received, previous, skipped,
    )  # fmt: skip
    return Session(session_id, made_at, since, identity, associated, handshake, state)
